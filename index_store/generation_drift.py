"""Whether an exact index holds the vectors of this store's videos: files can be whole and belong to another store."""

from __future__ import annotations

import numpy as np

from index_store.catalog import GenerationRecord
from index_store.flat_file import flat_header
from index_store.index_files import IDS_FILE, INDEX_FILE
from index_store.snapshot import Snapshot
from index_store.vectors import EXACT_FACTORY


def drift(snapshot: Snapshot, generation: GenerationRecord) -> str:
    """What a generation has that the videos have not; empty when nothing is wrong, or when its vectors are not exact.

    Videos that were changed since its commit are left out. Its files must be whole already. One block of vectors is in
    memory, and one byte a video.
    """
    if generation.factory != EXACT_FACTORY:
        return ""
    ids = np.load(generation.path / IDS_FILE, allow_pickle=False)
    dim = snapshot.settings.embed_dim
    header = flat_header(len(ids), dim)
    path = generation.path / INDEX_FILE
    if path.stat().st_size != len(header) + 4 * dim * len(ids):
        return f"is no exact index of {len(ids)} vectors of width {dim}"
    changed = np.fromiter((video_id for video_id, _ in snapshot.changed_since(generation.commit_number)), np.int64)
    is_foreign = ~np.isin(ids, changed)
    stored = np.memmap(path, "<f4", "r", len(header), (len(ids), dim)) if len(ids) else np.empty((0, dim), np.float32)
    for block_ids, vectors in snapshot.read_pooled():
        kept = ~np.isin(block_ids, changed)
        block_ids, vectors = block_ids[kept], vectors[kept]
        rows = np.minimum(np.searchsorted(ids, block_ids), max(0, len(ids) - 1))
        wrong = ids[rows] != block_ids if len(ids) else np.ones(len(block_ids), np.bool_)
        wrong[~wrong] = (stored[rows[~wrong]] != vectors[~wrong]).any(axis=1)
        if wrong.any():
            return f"{int(wrong.sum())} videos or more have other vectors (first: id {block_ids[wrong][0]})"
        is_foreign[rows] = False
    if is_foreign.any():
        return f"{int(is_foreign.sum())} vectors are of videos that have no features (first: id {ids[is_foreign][0]})"
    return ""
