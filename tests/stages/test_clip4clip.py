from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from stages.rerankers import make_reranker
from stages.rerankers.clip4clip import Clip4ClipHead, Clip4ClipTightHead
from stages.rerankers.temporal import pool
from tests.stages.test_heads import drawn
from tests.stages.test_rerankers import draw


def test_without_weights_it_is_the_cosine_with_the_mean_direction() -> None:
    queries, candidates = draw()
    scores = make_reranker("clip4clip").rank(queries, candidates)
    for row, column in candidates.is_candidate.nonzero().tolist():
        video = int(candidates.index[row, column])
        frames = candidates.tokens[video, :, 0].float()[candidates.frame_mask[video]]
        expected = normalize(queries.sentence[row], dim=0) @ normalize(normalize(frames, dim=-1).mean(0), dim=0)
        assert scores[row, column].item() == pytest.approx(expected.item(), abs=1e-6)


@torch.inference_mode()
def test_the_recurrent_layer_is_the_one_that_torch_has() -> None:
    head = drawn(lambda: Clip4ClipHead(64, recurrent=True))
    assert isinstance(head, Clip4ClipHead)
    assert head.lstm_visual is not None
    _, candidates = draw(shape=(5, 1, 64))
    tokens, mask = candidates.tokens.float(), candidates.frame_mask
    packed = pack_padded_sequence(tokens[:, :, 0], mask.sum(1), batch_first=True, enforce_sorted=False)
    states, _ = pad_packed_sequence(head.lstm_visual(packed)[0], batch_first=True, total_length=5)
    torch.testing.assert_close(head.videos(tokens, mask), pool(states + tokens[:, :, 0], mask), atol=1e-6, rtol=1e-5)


def test_more_frames_than_positions_are_refused() -> None:
    head = Clip4ClipTightHead(64, 1, num_positions=4)
    frames = torch.ones(2, 4, 1, 64)
    with pytest.raises(ValueError, match=r"4 frames.* 3 positions"):
        head.score(torch.ones(1, 1, 64), head.videos(frames, torch.ones(2, 4, dtype=torch.bool)))
