from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from index_store.settings import SamplingSettings, StoreSettings, TokenSettings
from stages.models import MODELS, load_model
from stages.models.architecture import resolve
from stages.models.clip import ClipModel
from stages.models.clip_vip import ClipVip, ClipVipTower, spread
from stages.preprocess import normalise
from stages.tokens import pack_features
from tests.conftest import SHARED
from tests.stages.model_files import TINY_CLIP_VIP, save_clip_vip

FRAMES, PATCHES, PROXIES = 6, 16, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    folder = save_clip_vip(tmp_path_factory.mktemp("models") / "vip")
    return load_model(f"local-dir:{folder}", device="cpu")


def tower_of(model: ClipModel) -> ClipVip:
    tower = model.image_side()
    assert isinstance(tower, ClipVipTower)
    return tower.module


def some_videos(count: int, num_frames: int = FRAMES, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, num_frames, 3, 32, 32), generator=generator, dtype=torch.uint8)


def encode(model: ClipModel, pixels: Tensor) -> Tensor:
    return model.encode_videos(pixels, torch.ones(pixels.shape[:2], dtype=torch.bool))


def who_sees_whom(num_frames: int, proxies: int = PROXIES, patches: int = PATCHES) -> Tensor:
    """Bool [N, N], row = who looks."""
    length = proxies + num_frames * patches
    frame = (torch.arange(length) - proxies).div(patches, rounding_mode="floor")
    is_proxy = torch.arange(length) < proxies
    return is_proxy[:, None] | is_proxy[None] | (frame[:, None] == frame[None])


def test_proxies_see_everything_and_patches_the_proxies_and_their_frame(model: ClipModel) -> None:
    block = tower_of(model).transformer.resblocks[0]
    hidden = torch.randn(1, PROXIES + 3 * PATCHES, 64)
    with torch.inference_mode():
        before = block(hidden, 3)[0]
        sees = torch.zeros(hidden.shape[1], hidden.shape[1], dtype=torch.bool)
        for place in range(hidden.shape[1]):
            changed = hidden.clone()
            changed[0, place] += torch.randn(64)
            sees[:, place] = (block(changed, 3)[0] != before).any(dim=-1)
    assert torch.equal(sees, who_sees_whom(3))


def test_the_authors_tokens_see_the_same() -> None:
    if not (SHARED / "golden").is_dir():
        pytest.skip("numbers of the authors' code not found")
    with np.load(SHARED / "golden" / "clipvip.npz", allow_pickle=False) as file:
        proxies, frames, patches = file["probe.M_N_L"].tolist()
        assert file["probe.connectivity"].tolist() == who_sees_whom(frames, proxies, patches).tolist()


def test_two_attentions_are_one_with_a_mask(model: ClipModel) -> None:
    tower = tower_of(model)
    pixels = torch.randn(2, FRAMES, 3, 32, 32)
    blocked = ~who_sees_whom(FRAMES)
    with torch.inference_mode():
        hidden, *_, last = tower.hidden_states(pixels)
        for block in tower.transformer.resblocks:
            looked = block.ln_1(hidden)
            hidden = hidden + block.attn(looked, looked, looked, attn_mask=blocked, need_weights=False)[0]
            inner = block.mlp["c_fc"](block.ln_2(hidden))
            hidden = hidden + block.mlp["c_proj"](inner * torch.sigmoid(1.702 * inner))
    torch.testing.assert_close(last, hidden, atol=1e-5, rtol=1e-5)


def test_row_0_of_every_frame_is_the_first_proxy_and_the_others_are_patches(model: ClipModel) -> None:
    tower = tower_of(model)
    pixels = some_videos(2)
    tokens = encode(model, pixels)
    assert tokens.shape == (2, FRAMES, 1 + PATCHES, TINY_CLIP_VIP["embed_dim"])
    preprocessing = model.architecture.preprocessing
    with torch.inference_mode():
        hidden = tower(normalise(pixels.flatten(0, 1), preprocessing.mean, preprocessing.std).unflatten(0, (2, FRAMES)))
        video = tower.ln_post(hidden[:, 0]) @ tower.proj
        patch = tower.ln_post(hidden[:, PROXIES + 2 * PATCHES + 7]) @ tower.proj
    for frame in range(FRAMES):
        torch.testing.assert_close(tokens[:, frame, 0], video)
    torch.testing.assert_close(tokens[:, 2, 1 + 7], patch)


def test_what_is_pooled_is_the_first_proxy(model: ClipModel) -> None:
    tokens = encode(model, some_videos(1))[0]
    settings = StoreSettings(model.settings(), SamplingSettings("uniform", FRAMES), TokenSettings("float16", "all"))
    features = pack_features(tokens[:4], np.arange(4.0), settings)
    assert features is not None
    np.testing.assert_allclose(features.pooled, normalize(tokens[0, 0], dim=-1).numpy(), atol=1e-7)


def test_the_order_of_frames_counts(model: ClipModel) -> None:
    pixels = some_videos(1)
    assert not torch.allclose(encode(model, pixels)[0, 0, 0], encode(model, pixels.flip(1))[0, 0, 0], atol=1e-3)


@pytest.mark.parametrize("size", [1, 3])
def test_a_video_is_the_same_bits_in_any_company(model: ClipModel, size: int) -> None:
    found = set()
    for place in range(size):
        pixels = some_videos(size, seed=1 + place)
        pixels[place] = some_videos(1, seed=0)[0]
        found.add(encode(model, pixels)[place].numpy().tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("num_frames", [1, 2, 5, 12])
@pytest.mark.parametrize("length", [1, 12, 13])
def test_short_videos_repeat_frames_as_linspace_does(num_frames: int, length: int) -> None:
    if num_frames <= length:
        places, firsts = spread(torch.arange(length)[None] < num_frames)
        expected = np.linspace(0, num_frames - 1, length).astype(int).tolist()
        assert places[0].tolist() == expected
        assert firsts[0, :num_frames].tolist() == [expected.index(frame) for frame in range(num_frames)]


def test_the_frames_of_a_short_video_get_the_tokens_of_their_first_place(model: ClipModel) -> None:
    pixels = some_videos(2)
    lengths = torch.tensor([3, FRAMES])
    tokens = model.encode_videos(pixels, torch.arange(FRAMES) < lengths[:, None])
    repeated = torch.stack([pixels[0, [0, 0, 0, 1, 1, 2]], pixels[1]])
    expected = encode(model, repeated)
    assert torch.equal(tokens[0, :3], expected[0, [0, 3, 5]])
    assert torch.equal(tokens[1], expected[1])
    black = model.encode_videos(pixels, torch.stack([torch.arange(FRAMES) < 3, torch.zeros(FRAMES) > 0]))
    assert torch.equal(black[0, :3], tokens[0, :3])


def test_half_precision_stays_close(model: ClipModel, tmp_path: Path) -> None:
    folder = save_clip_vip(tmp_path / "vip")
    half = load_model(f"local-dir:{folder}", device="cpu", dtype="bfloat16")
    pixels = some_videos(2)
    assert cosine_similarity(encode(half, pixels), encode(model, pixels), dim=-1).min() >= 0.999


@pytest.mark.parametrize(("name", "patches"), [("clip-vip-B-32", 49), ("clip-vip-B-16", 196)])
def test_the_published_sizes_have_a_name(name: str, patches: int) -> None:
    architecture = resolve(name, "", MODELS)
    assert architecture.quick_gelu
    assert architecture.preprocessing.resize_mode == "squash"
    with torch.device("meta"):
        tower = ClipVipTower(architecture)
    assert tower.tokens_per_frame == 1 + patches
    assert tower.module.added_cls.shape == (3, 768)
    assert tower.module.temporal_embedding.shape == (1, 12, 768)


def test_a_frame_alone_is_a_video_of_its_own(model: ClipModel) -> None:
    pixels = some_videos(1)[0]
    assert torch.equal(model.encode_frames(pixels), encode(model, pixels[:, None])[:, 0])
