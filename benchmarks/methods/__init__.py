"""Every method in one table, on rendered near-duplicates with the small model: what it finds and what it costs.

    python -m benchmarks methods

| file       | what it has                                                                        |
|------------|------------------------------------------------------------------------------------|
| plan.py    | the rows: methods as they are without training, and trained alike                  |
| run.py     | one row: train, evaluate, measure                                                  |
| cost.py    | CPU seconds of a (query, video) pair and bytes read of a query                     |
| results.py | a finished row is a line in a file                                                 |
| report.py  | lines -> table for people, Markdown, JSON                                          |
| picture.py | the same as bars                                                                   |
"""
