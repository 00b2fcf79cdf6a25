"""Videos that the project draws itself, and the small model that learned from them: data for tests, demo, benchmarks.

| file             | what it has                                                             |
|------------------|-------------------------------------------------------------------------|
| scenes.py        | what can happen in a video: things, motions, places, statements         |
| families.py      | groups of scenes that differ in one detail                              |
| comparisons.py   | more of them, that differ in how much: size, speed, arrival             |
| odd_ones.py      | others, in which each video alone has another size, place ... than all  |
| drawing.py       | how a scene looks, frame by frame                                       |
| captions.py      | how a statement is said                                                 |
| render.py        | real H.264 files with captions, queries and judgements                  |
| pretrain.py      | makes the small CLIP; pretrain_data.py has its frames                   |
| pretrain_text.py | teaches a copy of its text tower what TokenBinder's weights start from  |
"""
