from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from index_store.errors import UsageError
from index_store.settings import KeepRule
from stages.models import MODELS, load_model
from stages.models.clip import ClipModel
from stages.models.weights import write_weights
from stages.rerankers.fusion import FusionConfig
from stages.tokens import choose_tokens, pool
from stages.training.frames import FrameParts, FrameVideos
from stages.training.lists import Batch
from stages.training.model import TokenBinderModel
from stages.training.ranks import Ranks
from stages.training.videos import rows_at

LENGTHS = (3, 1, 4)
"""Frames of three videos, of at most four."""


@pytest.fixture
def clip() -> ClipModel:
    return load_model("tbpipe-small", "", "cpu", "float32")


@pytest.fixture
def pixels(clip: ClipModel) -> Tensor:
    size = clip.architecture.image_size
    return torch.randint(0, 256, (sum(LENGTHS), 3, size, size), generator=torch.Generator().manual_seed(0)).byte()


def learner(clip: ClipModel, keep: str) -> TokenBinderModel:
    config = FusionConfig(clip.architecture.embed_dim, 0)
    return TokenBinderModel(clip, config, 0, keep=KeepRule.read(keep)).requires_grad_().train()


def videos_of(model: TokenBinderModel, pixels: Tensor, at_once: int, num_tokens: int) -> FrameVideos:
    batch = Batch(np.arange(len(LENGTHS)), ["a", "b", "c"])
    shape = (max(LENGTHS), num_tokens, model.fusion.config.width)
    return FrameVideos(batch, FrameParts(pixels, LENGTHS, at_once), 0, shape, model, Ranks())


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["all", "cls", "5", "distinct:5"])
def test_tokens_and_pooled_are_what_extract_would_store(clip: ClipModel, pixels: Tensor, keep: str) -> None:
    rule = KeepRule.read(keep)
    assert rule is not None
    rows, where = choose_tokens(clip.encode_frames(pixels), rule)
    videos = videos_of(learner(clip, keep), pixels, 3, rows.shape[1])
    found, places = videos.tokens(np.array([[2, 0]]))
    for video, frames in enumerate(rows.split(LENGTHS)):
        mask = found.frame_mask[0, video]
        assert mask.tolist() == [frame < LENGTHS[video] for frame in range(max(LENGTHS))]
        torch.testing.assert_close(found.tokens[0, video][mask], normalize(frames, dim=-1), atol=1e-5, rtol=0)
        torch.testing.assert_close(videos.pooled[video], pool(frames[:, 0]), atol=1e-5, rtol=0)
    assert places.tolist() == [[2, 0]]
    assert (found.places is None) == (where is None)
    if where is not None:
        assert torch.equal(found.places[0][found.frame_mask[0]], where)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [3, 100])
def test_the_gradient_through_parts_is_that_through_one_graph(clip: ClipModel, pixels: Tensor, at_once: int) -> None:
    model = learner(clip, "5")
    generator = torch.Generator().manual_seed(1)
    wanted = torch.randn(len(LENGTHS), 4, 6, model.fusion.config.width, generator=generator)
    direction = torch.randn(len(LENGTHS), model.fusion.config.width, generator=generator)

    rows = model.frame_tokens(pixels)[0].split(LENGTHS)
    loss = torch.zeros(())
    for video, frames in enumerate(rows):
        loss = loss + (frames * wanted[video, : len(frames)]).sum()
        loss = loss + (normalize(frames[:, 0].mean(dim=0), dim=-1) * direction[video]).sum()
    loss.backward()
    expected = {name: value.grad.clone() for name, value in model.image.named_parameters()}
    model.zero_grad()

    videos = videos_of(model, pixels, at_once, 6)
    found, _ = videos.tokens(np.array([[0]]))
    mask = found.frame_mask[0, :, :, None, None]
    ((found.tokens[0] * wanted * mask).sum() + (videos.pooled * direction).sum()).backward()
    videos.backward()
    for name, value in model.image.named_parameters():
        torch.testing.assert_close(value.grad, expected[name], atol=1e-5 * float(expected[name].abs().max()), rtol=1e-4)
    assert max(float(value.abs().max()) for value in expected.values()) > 0


def test_the_gradient_of_chosen_rows_has_the_same_bits_each_time() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, wanted = torch.randn(8, 4, 500, generator=generator), torch.randn(40, 5, 4, 500, generator=generator)
    index = torch.randint(0, 8, (40, 5), generator=generator)
    found = []
    for _ in range(10):
        leaf = rows.clone().requires_grad_()
        chosen = rows_at(leaf, index)
        assert torch.equal(chosen, leaf[index])
        (chosen * wanted).sum().backward()
        found.append(leaf.grad)
    expected = torch.zeros_like(rows).index_add(0, index.flatten(), wanted.flatten(0, 1))
    torch.testing.assert_close(found[0], expected)
    assert all(torch.equal(one, found[0]) for one in found)


def test_a_model_that_files_cannot_stand_for_is_refused() -> None:
    folder = MODELS["tbpipe-small"]
    load_model("tbpipe-small", "", "cpu").check_takes_files()
    with pytest.raises(UsageError, match=r"model local-dir .* cannot be loaded from a weight file"):
        load_model(f"local-dir:{folder}", "", "cpu").check_takes_files()


@pytest.mark.slow
def test_the_written_model_recalls_as_it_was_trained(clip: ClipModel, pixels: Tensor, tmp_path: Path) -> None:
    model = learner(clip, "all").eval()
    with torch.no_grad():
        model.indicators[0] += 0.1 * model.indicators[1]
        model.image.proj *= 1.5
    path = tmp_path / "w.clip.safetensors"
    write_weights(path, model.clip_weights(model.state_dict()))
    loaded = load_model("tbpipe-small", str(path), "cpu", "float32")
    assert loaded.settings().weights_sha256 == clip.digest_with(path)
    assert loaded.logit_scale == pytest.approx(clip.logit_scale)
    texts = ["a red circle", "a blue star moves to the left and then up"]
    with torch.no_grad():
        sentences, tokens = model.encode(texts)[:, 0], model.frame_tokens(pixels)[0]
    torch.testing.assert_close(loaded.encode_texts(texts).sentence, sentences, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(normalize(loaded.encode_frames(pixels), dim=-1), tokens, atol=1e-5, rtol=0)
    assert not torch.allclose(sentences, load_model("tbpipe-small", "", "cpu").encode_texts(texts).sentence, atol=1e-2)
