from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.text_cache import TextCache
from tests.stages.corpus import DrawnTexts

TEXTS = ["a b c", "d", "a b", "d", "e f g h", "a b c"]


@pytest.mark.parametrize("capacity_bytes", [0, 300, 700, 1 << 20])
def test_remembered_texts_have_the_features_of_the_encoder(capacity_bytes: int) -> None:
    cache = TextCache(DrawnTexts(), capacity_bytes)
    for asked in (TEXTS[:3], TEXTS, TEXTS[::-1], TEXTS[1:2]):
        found, expected = cache.encode_texts(asked), DrawnTexts().encode_texts(asked)
        assert torch.equal(found.sentence, expected.sentence)
        assert torch.equal(found.words, expected.words)
        assert torch.equal(found.word_mask, expected.word_mask)
        np.testing.assert_array_equal(cache.sentences(asked), expected.sentence.numpy())


def test_what_fits_is_encoded_once_and_sentences_always_are() -> None:
    roomy, tight = DrawnTexts(), DrawnTexts()
    cache = TextCache(roomy, 1 << 20)
    cache.encode_texts(TEXTS)
    cache.encode_texts(TEXTS[::-1])
    cache.sentences(TEXTS)
    assert roomy.asked == [4]
    cache = TextCache(tight, 0)
    cache.encode_texts(TEXTS)
    cache.encode_texts(TEXTS)
    cache.sentences(TEXTS)
    assert tight.asked == [4, 4]
