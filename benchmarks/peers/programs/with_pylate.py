"""Candidates read as hloc reads its features, scored by PyLate's rerank. Argument: the job.

hloc keeps a group for each picture and opens the file for each read.
"""

from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from pylate import rank
from timing import least, read_job, tell

job = read_job()
torch.set_num_threads(job["threads"])
candidates = np.load(job["candidates"])
words = torch.from_numpy(np.load(job["words"]))


def read(video: int) -> NDArray[np.float16]:
    """Tokens [T, D] of a video."""
    with h5py.File(job["features"], "r", libver="latest") as file:
        return np.asarray(file[f"{video:07d}"]["tokens"])


def read_all() -> int:
    """A query at a time; the number of tokens."""
    return sum(len(read(video)) for row in candidates.tolist() for video in row)


def rerank() -> NDArray[np.float32]:
    """Scores of each query's candidates, in their order; a query at a time, so that memory does not grow."""
    scores = np.empty(candidates.shape, np.float32)
    for place, row in enumerate(candidates.tolist()):
        tokens = [torch.nn.functional.normalize(torch.from_numpy(read(video)).float(), dim=-1) for video in row]
        (found,) = rank.rerank(
            documents_ids=[row], queries_embeddings=words[place : place + 1], documents_embeddings=[tokens]
        )
        by_id = {hit["id"]: hit["score"] for hit in found}
        scores[place] = [by_id[video] for video in row]
    return scores


with torch.inference_mode():
    reading, _ = least(job["repetitions"], read_all)
    whole, scores = least(job["repetitions"], rerank)
np.save(Path(job["output"], "scores.npy"), scores)
tell(job, reading=reading, all=whole)
