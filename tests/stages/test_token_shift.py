from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from index_store.errors import UsageError
from stages.models import load_model
from stages.models.architecture import resolve
from stages.models.clip import ClipModel
from stages.models.image import build
from stages.models.token_shift import shift_tokens
from tests.stages.model_files import reference_model, save_folder
from tests.stages.test_models import some_pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("models") / "tiny", reference_model())


@pytest.fixture(scope="module")
def model(folder: Path) -> ClipModel:
    return load_model(f"local-dir:{folder}-tokenshift", device="cpu", dtype="float32")


def test_tokens_come_from_the_frames_beside() -> None:
    """15 tokens, so fold is 2: 1, 3, 5 ... from before, then 4, 6, 8 ... from after."""
    frames = torch.arange(3.0)[None, :, None, None].expand(1, 3, 15, 1)
    before, after = [0.0, 0.0, 1.0], [1.0, 2.0, 2.0]
    found = shift_tokens(frames)[0, :, :, 0].T.tolist()
    own = [0.0, 1.0, 2.0]
    assert found == [own, before, own, before] + [after, before] * 5 + [after]


def test_where_both_want_a_token_the_frame_after_has_it() -> None:
    """7 tokens, fold 1: every token from 1 on comes from before, from 4 on from after; the last frame's from before."""
    frames = torch.arange(3.0)[None, :, None, None].expand(1, 3, 7, 1)
    found = shift_tokens(frames)[0, :, :, 0].T.tolist()
    assert found == [[0.0, 1.0, 2.0]] + [[0.0, 0.0, 1.0]] * 3 + [[1.0, 2.0, 1.0]] * 3


def test_nothing_comes_from_padding() -> None:
    frames = torch.randn(2, 5, 17, 3)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    shifted = shift_tokens(frames, mask)
    assert torch.equal(shifted[0], shift_tokens(frames[:1])[0])
    assert torch.equal(shifted[1, :2], shift_tokens(frames[1:, :2])[0])
    assert not torch.equal(shifted[1, :2], shift_tokens(frames)[1, :2])


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match="found 6"):
        shift_tokens(torch.zeros(1, 2, 6, 3))


def test_a_model_with_the_shift_has_another_name(model: ClipModel, folder: Path) -> None:
    plain = load_model(f"local-dir:{folder}", device="cpu", dtype="float32")
    ours, theirs = model.settings(), plain.settings()
    assert ours.name == theirs.name + "-tokenshift"
    assert ours.weights_sha256 == theirs.weights_sha256
    assert (model.sees_videos, plain.sees_videos) == (True, False)
    with pytest.raises(UsageError, match="sees single frames"):
        plain.encode_videos(torch.zeros(1, 2, 3, 32, 32), torch.ones(1, 2, dtype=torch.bool))


def test_frames_see_their_neighbours_and_nothing_else(model: ClipModel, folder: Path) -> None:
    """Both blocks of this tower shift: a frame reaches two frames far, and the plain model's tokens differ."""
    videos = some_pixels(8).view(2, 4, 3, 32, 32)
    mask = torch.ones(2, 4, dtype=torch.bool)
    tokens = model.encode_videos(videos, mask)
    assert tokens.shape == (2, 4, 17, 24)
    assert torch.equal(model.encode_videos(videos.flip(0), mask).flip(0), tokens)
    changed = videos.clone()
    changed[0, 3] = 255
    differs = (model.encode_videos(changed, mask) != tokens).flatten(2).any(-1)
    assert differs.tolist() == [[False, True, True, True], [False] * 4]
    plain = load_model(f"local-dir:{folder}", device="cpu", dtype="float32")
    assert not torch.allclose(plain.encode_frames(videos[0]), tokens[0])
    torch.testing.assert_close(model.encode_frames(videos[0]), plain.encode_frames(videos[0]))


def test_padding_changes_no_real_frame(model: ClipModel) -> None:
    video = some_pixels(2)[None]
    padded = torch.cat([video, some_pixels(2, seed=3)[None]], dim=1)
    alone = model.encode_videos(video, torch.ones(1, 2, dtype=torch.bool))
    beside = model.encode_videos(padded, torch.tensor([[True, True, False, False]]))
    torch.testing.assert_close(beside[:, :2], alone)


def test_a_tower_without_blocks_of_clip_is_refused() -> None:
    siglip = replace(resolve("ViT-B-16-SigLIP", "", {}), token_shift=True)
    with torch.device("meta"), pytest.raises(UsageError, match="no token shift"):
        build(siglip)
