"""What is kept on disk, and nothing about how it was computed. FORMAT.md has every byte of it.

| public name                            | in                  | on disk                                               |
|----------------------------------------|---------------------|-------------------------------------------------------|
| Store                                  | store.py            | the directory; nobody else opens what is in it        |
| StoreWriter                            | writer.py           | what the one writer may do                            |
| Snapshot                               | snapshot.py         | what a reader sees                                    |
| StoreSettings, read_settings           | settings.py         | ``tbpipe.toml``, section ``[store]``                  |
| read_refresh_settings                  | refresh_settings.py | ``tbpipe.toml``, section ``[refresh]``                |
| Catalog, ShardRecord, GenerationRecord | catalog.py          | ``catalog.sqlite``: what is real, the commit point    |
| write_shard, FeatureReader             | features.py         | ``shards/00000042.h5``, never changed once named      |
| VectorIndex                            | vectors.py          | ``index/00000007/``, one generation, swapped in whole |
| IndexManifest, read_manifest           | index_files.py      | its files; flat_file.py updates an exact one          |
| read_queries, write_ranking            | runs.py             | queries, judgements and rankings, files of people     |
| read_captions, VideoNames              | captions.py         | captions, files of people; lines.py reads both        |
| StandingState                          | standing_state.py   | ``runs/standing-*.npz``: answers to standing queries  |
| PreparedReader, prepared_writer        | prepared.py         | ``prepared/``                                         |
| writer_lock                            | lock.py             | ``writer.lock``                                       |
| reader_lock                            | readers.py          | ``readers.lock``: keeps the files that are being read |
| check_seal, write_seal                 | seal.py             | ``catalog.seal``: checksums and parity of the catalog |
| verify, repair, compact                | of the same names   | all of it: what is damaged, and what is in no use     |
| replacing, write_bytes                 | atomic.py           | ``.tmp-*`` until the rename                           |
| Layout, FORMAT_VERSION                 | layout.py           | every path above                                      |
| VideoRecord, VideoFeatures, ...        | records.py          | the rows and arrays themselves                        |
| TbpipeError and its tree               | errors.py           | -                                                     |

Import from the file that owns the name: this package imports nothing by itself, so that looking at one part (the
settings, an error class) does not load HDF5, FAISS or SQLite.
"""
