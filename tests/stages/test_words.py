from __future__ import annotations

import torch

from stages.rerankers.words import TextsByLength


def test_texts_of_one_length_come_together_and_go_back_to_their_places() -> None:
    mask = torch.arange(5) < torch.tensor([[3], [1], [3], [5], [3]])
    words = torch.arange(25).view(5, 5)  # text n has the words 5 n + m
    by_length = TextsByLength(mask)
    packed = by_length.pack(words)
    found = [group.of(packed).tolist() for group in by_length.groups(6)]
    assert found == [[[5]], [[0, 1, 2], [10, 11, 12]], [[20, 21, 22]], [[15, 16, 17, 18, 19]]]
    sums = torch.cat([group.of(packed).sum(1) for group in by_length.groups(100)])
    assert by_length.in_order(sums).tolist() == (words * mask).sum(1).tolist()


def test_a_text_longer_than_asked_for_is_alone() -> None:
    by_length = TextsByLength(torch.ones(2, 4, dtype=torch.bool))
    assert [(group.texts, group.rows) for group in by_length.groups(3)] == [
        (slice(0, 1), slice(0, 4)),
        (slice(1, 2), slice(4, 8)),
    ]
