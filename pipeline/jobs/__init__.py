"""One module for each kind of command: open the store, load what is needed, run the stage, give back a record to print.

| module     | commands                                       |
|------------|------------------------------------------------|
| extract.py | extract                                        |
| rerank.py  | rerank, search                                 |
| upkeep.py  | index, info, quarantine                        |
| evaluate.py, train.py, import_weights.py, bench.py | what they are called |
"""
