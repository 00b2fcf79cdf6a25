"""tbpipe's index, which is FAISS's exact one with its threshold for BLAS set. Argument: the job."""

import time
from pathlib import Path

import numpy as np
from timing import least, read_job, tell

from index_store.vectors import VectorIndex

job = read_job()
vectors, queries = np.load(job["vectors"]), np.load(job["queries"])
before = time.process_time()
index = VectorIndex.build(lambda: [(np.arange(len(vectors)), vectors)], len(vectors), vectors.shape[1])
build = time.process_time() - before
search, found = least(job["repetitions"], lambda: index.search(queries, job["neighbours"]))
np.save(Path(job["output"], "ids.npy"), found.ids)
tell(job, build=build, search=search)
