"""FAISS's exact index as its wheel ships it. Argument: the job."""

import time
from pathlib import Path

import faiss
import numpy as np
from timing import least, read_job, tell

job = read_job()
faiss.omp_set_num_threads(job["threads"])
vectors, queries = np.load(job["vectors"]), np.load(job["queries"])
before = time.process_time()
index = faiss.IndexFlatIP(vectors.shape[1])
index.add(vectors)
build = time.process_time() - before
search, (_, ids) = least(job["repetitions"], lambda: index.search(queries, job["neighbours"]))
np.save(Path(job["output"], "ids.npy"), ids)
tell(job, build=build, search=search)
