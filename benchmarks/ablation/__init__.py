"""The tables of the TokenBinder paper again, on rendered near-duplicates, with the small model: hours, not minutes.

    python -m benchmarks.ablation --work DIR --start first.safetensors

| file       | what it has                                                        |
|------------|--------------------------------------------------------------------|
| plan.py    | the tables, what the paper found, and the trials that they need    |
| run.py     | one trial on two rendered corpora: train, evaluate                 |
| results.py | a finished trial is a line in a file                               |
| report.py  | lines -> tables with mean, spread and a verdict                    |
| picture.py | the same as panels with error bars                                 |
"""
