"""What is computed. Each stage reads what the one before has left, and knows nothing of where it runs.

| stage    | file             | reads                                  | gives                                        |
|----------|------------------|----------------------------------------|----------------------------------------------|
| scan     | scan.py          | folders, files, manifests; the catalog | what is new, changed, moved                  |
| decode   | decode_pool.py   | video files                            | frames at chosen times, in order             |
|          | video.py         | one file                               | FrameBatch; sampling.py chooses the times    |
|          | decoders/        | one file per decoder library           | pixels                                       |
| extract  | extract.py       | frames                                 | features, committed to the store             |
|          | models/          | one file per model family              | tokens of frames, features of texts          |
| index    | index.py         | pooled features                        | a generation of the index                    |
|          | index_update.py  | the one before, and what changed since | the next                                     |
| prepare  | prepare.py       | a method's weights, the store's tokens | its video side, kept in ``prepared/``        |
|          | video_source.py  | that, or the tokens                    | the K candidates as a method looks at them   |
| search   | search.py        | texts and the index                    | Ranking of K candidates (broad view)         |
| rerank   | rerank.py        | a Ranking and the K candidates' tokens | a better Ranking (focused view)              |
|          | standing.py      | what was answered before               | those answers that are still right           |
|          | rerankers/       | one file per method                    | scores                                       |
|          | normalise.py     | scores of a bank of queries            | scores without what every query likes        |
|          | normalised.py    | rankings of queries and of a bank      | the same rankings by normalised scores       |
| read     | datasets/        | annotation files of the benchmarks     | splits of videos and captions                |
| train    | training/        | captions, the store's features; frames | weights of a reranker that learns            |
| import   | import_weights.py | a released checkpoint                 | a model for extract, a head for rerank       |
| evaluate | evaluate.py      | captions, both views                   | recall and ranks, exact over the whole store |
| bench    | bench/           | each of the above                      | how near to this machine's limits it comes   |

synthetic/ draws the videos that the project's own model, demo and tests live on.

errors.py has the reasons for which a video can fail. This package imports nothing by itself, so that decode workers
stay light.
"""
