"""How near to the limits of this machine every stage comes: ``tbpipe bench``.

| file         | what it has                                                                              |
|--------------|------------------------------------------------------------------------------------------|
| records.py   | what is found: limits, one row for each stage, what could not be measured                |
| measure.py   | yardsticks and stages, measured in turns                                                 |
| machine.py   | the yardsticks: products, memory, disk, hashing                                          |
| data.py      | what is worked on: a store and clips made for the occasion, or those of a real store     |
| models.py    | models without their weights                                                             |
| count.py     | operations of the products that some code makes                                          |
| material.py  | all that is worked on, opened or made when it is asked for                               |
| scale.py     | how much of it                                                                           |
| videos.py    | decode, extract                                                                          |
| towers.py    | image tower, text tower                                                                  |
| recall.py    | reading, index, broad view                                                               |
| methods.py   | rerank: what a pair of each method needs by count, and what it takes                     |
| growth.py    | how cost grows with the corpus, with K, frames and tokens                                |
| run.py       | all of it, one step after the other                                                      |
| plot.py      | the ratios as a picture                                                                  |

A limit is counted, in bytes and operations, and divided by the rate that a yardstick reaches on the same machine in the
same moment. Nothing here is part of any other command.
"""
