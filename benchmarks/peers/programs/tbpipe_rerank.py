"""tbpipe's late interaction: from a query's vectors to its ranking, broad view included. Argument: the job."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timing import least, read_job, tell

from index_store.records import Query
from index_store.store import Store
from stages.models.clip import TextFeatures
from stages.rerank import rerank
from stages.rerankers import make_reranker
from stages.search import open_index

job = read_job()
torch.set_num_threads(job["threads"])
candidates = np.load(job["candidates"])
words = torch.from_numpy(np.load(job["words"]))
sentences = torch.from_numpy(np.load(job["sentences"]))
queries = [Query(f"{place:07d}", str(place)) for place in range(len(words))]


class Encoded:
    """A text encoder whose texts are places in ``words``."""

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Their features."""
        rows = [int(text) for text in texts]
        return TextFeatures(sentences[rows], words[rows], torch.ones(len(rows), words.shape[1], dtype=torch.bool))


with Store.open(Path(job["store"])).snapshot() as snapshot:
    index = open_index(snapshot)
    id_of = {int(Path(record.key).stem): record.id for record in snapshot.videos()}
    ids = [[id_of[video] for video in row] for row in candidates.tolist()]

    def read_all() -> int:
        """A query at a time; the number of tokens."""
        return sum(snapshot.read_tokens(row).tokens.size for row in ids)

    def rank() -> NDArray[np.float32]:
        """Scores of each query's candidates, in their order."""
        scores = np.full(candidates.shape, np.nan, np.float32)
        rankings = rerank(snapshot, index, Encoded(), queries, make_reranker("late-interaction"), top_k=len(ids[0]))
        for place, ranking in enumerate(rankings):
            by_id = {hit.video_id: hit.focused_score for hit in ranking.hits}
            scores[place] = [by_id.get(video, np.nan) for video in ids[place]]
        return scores

    reading, _ = least(job["repetitions"], read_all)
    whole, scores = least(job["repetitions"], rank)
np.save(Path(job["output"], "scores.npy"), scores * words.shape[1])
tell(job, reading=reading, all=whole)
