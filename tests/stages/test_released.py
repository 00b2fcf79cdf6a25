"""What padding holds where the sums of released code are asked for."""

from __future__ import annotations

import pytest
import torch

from index_store.errors import UsageError
from stages.models.clip import TextFeatures
from stages.models.text import cut, word_mask
from stages.rerankers import make_reranker
from stages.rerankers.base import BroadReranker, CandidateBatch
from stages.rerankers.clip4clip import Clip4ClipReranker
from stages.rerankers.late_interaction import LateInteractionReranker
from stages.rerankers.released import NUM_WORDS, follow_released_code, needs_padding_frame, words_read
from stages.rerankers.ucofia import UcofiaHead, UcofiaReranker
from stages.rerankers.xclip import XClipHead, XClipReranker
from stages.text_cache import TextCache
from tests.stages.ordered import small_clip
from tests.stages.test_rerankers import draw

TEXTS = ("a red star", "a red circle on the left and then a small blue square that rises on a beige background")


@pytest.mark.parametrize("name", ["x-clip", "ucofia", "eercf", "ts2-net"])
def test_frames_that_are_padding_are_pictures_of_zeros(name: str) -> None:
    queries, candidates = draw(num_queries=5, shape=(4, 6, 16))
    assert not candidates.frame_mask.all()
    stored, filled = (make_reranker(name) for _ in range(2))
    picture = torch.randn(6, 16, generator=torch.Generator().manual_seed(5)).half().float()
    for reranker in (stored, filled):
        assert follow_released_code(reranker)
        assert needs_padding_frame(reranker)
    filled.scorer.padding_frame = picture  # type: ignore[attr-defined]
    tokens = torch.where(candidates.frame_mask[..., None, None], candidates.tokens, picture.half())
    with_pictures = CandidateBatch(tokens, None, candidates.frame_mask, candidates.index, candidates.broad)
    assert torch.equal(filled.rank(queries, candidates), stored.rank(queries, with_pictures))


@pytest.mark.slow
def test_words_after_the_end_are_the_text_towers_own() -> None:
    clip = small_clip()
    tower, tokenizer = clip.query_side()
    ids = tokenizer(TEXTS)[:, :16]
    ids[1, 15] = tokenizer.end_id  # the second text is longer
    with torch.inference_mode():
        sentence, words = tower.features(ids)
    clip.keep_padding(16)
    found = clip.encode_texts(TEXTS)
    assert found.words.shape == (2, 16, words.shape[-1])
    torch.testing.assert_close(found.words, words, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.sentence, sentence, atol=1e-5, rtol=0)
    assert found.word_mask.sum(1).tolist() == [5, 16]
    cache = TextCache(clip, 1 << 20)
    for texts in (TEXTS[:1], TEXTS):  # the second time the first text is remembered
        kept: TextFeatures = cache.encode_texts(texts)
        assert torch.equal(kept.words, found.words[: len(texts)])
        assert torch.equal(kept.word_mask, found.word_mask[: len(texts)])


def test_a_text_is_cut_so_that_its_end_is_there() -> None:
    ids = torch.tensor([[7, 1, 9, 0, 0], [7, 1, 2, 3, 9]])
    assert cut(ids, 3, end_id=9).tolist() == [[7, 1, 9], [7, 1, 9]]
    assert word_mask(cut(ids, 4, end_id=9), 9).tolist() == [[True, True, True, False], [True] * 4]
    assert ids[1].tolist() == [7, 1, 2, 3, 9]


def test_as_many_words_are_read_as_the_weights_have() -> None:
    assert words_read(XClipReranker(XClipHead(16, num_words=9, num_frames=4))) == 9
    assert words_read(UcofiaReranker(UcofiaHead(16, num_words=8, num_frames=4))) == 8
    assert words_read(make_reranker("wti")) == NUM_WORDS
    assert words_read(make_reranker("eercf")) is None


def test_methods_without_other_sums_stay_as_they_are() -> None:
    assert not follow_released_code(Clip4ClipReranker())
    assert not follow_released_code(BroadReranker())
    with pytest.raises(UsageError, match="no code of late-interaction is known"):
        follow_released_code(LateInteractionReranker())
