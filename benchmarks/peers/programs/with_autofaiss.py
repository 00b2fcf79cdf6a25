"""autofaiss makes an index and chooses its kind, unless told which; FAISS searches it. Argument: the job."""

import time
from pathlib import Path

import faiss
import numpy as np
from autofaiss import build_index
from timing import least, read_job, tell

if __name__ == "__main__":
    job = read_job()
    faiss.omp_set_num_threads(job["threads"])
    vectors, queries = np.load(job["vectors"]), np.load(job["queries"])
    before = time.process_time()
    index, _ = build_index(
        vectors,
        save_on_disk=False,
        index_key=job.get("index_key"),
        metric_type="ip",
        max_index_memory_usage="4G",
        current_memory_available="8G",
        nb_cores=job["threads"],
        verbose=30,
    )
    build = time.process_time() - before
    search, (_, ids) = least(job["repetitions"], lambda: index.search(queries, job["neighbours"]))
    np.save(Path(job["output"], "ids.npy"), ids)
    tell(job, build=build, search=search)
