"""What is kept on disk, and nothing about how it was computed. FORMAT.md has every byte of it.

| public name                            | in          | on disk                                                     |
|----------------------------------------|-------------|-------------------------------------------------------------|
| Store, StoreWriter, Snapshot           | store.py    | the store directory; nobody else opens what is in it        |
| StoreSettings, read_settings           | settings.py | ``tbpipe.toml``, section ``[store]``                        |
| Catalog, ShardRecord, GenerationRecord | catalog.py  | ``catalog.sqlite``: says what is real, the one commit point |
| write_shard, FeatureReader             | features.py | ``shards/00000042.h5``, never changed once it has that name |
| VectorIndex                            | vectors.py  | ``index/00000007/``, one generation, swapped in as a whole  |
| IndexManifest, read_manifest           | index_files.py | its files; flat_file.py updates an exact one   |
| read_queries, write_ranking            | runs.py     | files of people: queries, judgements and rankings (``runs/``) |
| read_captions, VideoNames              | captions.py | files of people: captions; lines.py reads both              |
| StandingState                          | standing_state.py | ``runs/standing-*.npz``: answers to standing queries  |
| PreparedReader, prepared_writer        | prepared.py | ``prepared/``                                               |
| writer_lock                            | lock.py     | ``writer.lock``                                             |
| reader_lock                            | readers.py  | ``readers.lock``: keeps the files of what somebody reads    |
| check_seal, write_seal                 | seal.py     | ``catalog.seal``: checksums and parity of the catalog       |
| verify, repair, compact                | of the same names | all of it: what is damaged, and what is in no use     |
| replacing, write_bytes                 | atomic.py   | ``.tmp-*`` until the rename                                 |
| Layout, FORMAT_VERSION                 | layout.py   | every path above                                            |
| VideoRecord, VideoFeatures, ...        | records.py  | the rows and arrays themselves                              |
| TbpipeError and its tree               | errors.py   | -                                                           |

Import from the file that owns the name: this package imports nothing by itself, so that looking at one part (the
settings, an error class) does not load HDF5, FAISS or SQLite.
"""
