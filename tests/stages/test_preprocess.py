from __future__ import annotations

import resource
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torch.nn.functional import cosine_similarity, interpolate

from index_store.errors import UsageError
from index_store.settings import ModelSettings
from stages.models import load_model
from stages.preprocess import Preprocessor, normalise, resize_in_float
from tests.stages.model_files import reference_model, save_folder

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
MODES = ("shortest", "longest", "squash")
SIZES = [(720, 1280), (640, 360), (240, 427), (224, 224), (225, 224), (223, 601), (37, 100), (3, 5), (1, 1), (64, 500)]
EXTREME = [(2, 301), (400, 2), (9, 1001), (63, 1001), (1001, 63), (30, 300), (300, 30)]


def settings(mode: str = "shortest", interpolation: str = "bicubic", size: int = 224) -> ModelSettings:
    return ModelSettings(
        name="any",
        pretrained="",
        weights_sha256="0" * 64,
        embed_dim=24,
        tokens_per_frame=17,
        image_size=size,
        mean=MEAN,
        std=STD,
        interpolation=interpolation,
        resize_mode=mode,
        compute_dtype="float32",
    )


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A picture with shapes, edges and some noise, uint8 [1, H, W, 3]."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.NEAREST), dtype=np.int16)
    noisy = smooth + generator.integers(-20, 21, smooth.shape)
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))[None]


def by_pil(frame: torch.Tensor, mode: str, interpolation: str, size: int = 224) -> torch.Tensor:
    """What open_clip's own transform makes of one frame [H, W, 3], as levels 0..255."""
    transform = image_transform(size, False, (0.0,) * 3, (1.0,) * 3, mode, interpolation)
    levels: torch.Tensor = transform(Image.fromarray(frame.numpy())) * 255
    return levels


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_pixels_are_those_of_pil(shape: tuple[int, int], mode: str, interpolation: str) -> None:
    frame = picture(*shape)
    pixels = Preprocessor(settings(mode, interpolation))(frame)
    assert pixels.shape == (1, 3, 224, 224)
    assert pixels.dtype == torch.uint8
    difference = (pixels[0].float() - by_pil(frame[0], mode, interpolation)).abs()
    assert difference.mean() <= 0.3
    assert difference.max() <= 8  # where PIL resizes the columns before the rows, overshoot is cut off elsewhere


@pytest.mark.parametrize("shape", EXTREME, ids=str)
def test_extreme_shapes_look_as_pil_makes_them(shape: tuple[int, int]) -> None:
    frame = picture(*shape)
    difference = (Preprocessor(settings())(frame)[0].float() - by_pil(frame[0], "shortest", "bicubic")).abs()
    assert difference.mean() <= 1
    assert difference.max() <= 40  # at an edge; the scale differs by up to 1 in 900
    assert Preprocessor(settings("longest"))(frame).shape == (1, 3, 224, 224)  # PIL's own path fails for 2 x 1024


def test_extreme_shapes_do_not_eat_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Preprocessor(settings())(picture(2, 4000).expand(12, -1, -1, -1))  # resized whole: 12 x 224 x 448000 x 3 = 3.6 GB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_batch_is_its_frames_one_by_one() -> None:
    preprocess = Preprocessor(settings(size=32))
    frames = torch.cat([picture(48, 80, seed) for seed in range(5)])
    assert torch.equal(preprocess(frames), torch.cat([preprocess(frame[None]) for frame in frames]))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("shape", "size"), [((360, 640), (224, 398)), ((150, 100), (336, 224)), ((90, 160), (90, 120))]
)
def test_what_a_gpu_makes_of_a_picture_is_hardly_a_level_off(
    shape: tuple[int, int], size: tuple[int, int], interpolation: str
) -> None:
    """The resizing in float that a GPU does, done on the CPU."""
    pixels = picture(*shape).permute(0, 3, 1, 2)
    expected = interpolate(pixels, size, mode=interpolation, antialias=True)
    difference = (resize_in_float(pixels, *size, interpolation).int() - expected.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_pixels_of_a_gpu_are_those_of_the_cpu(shape: tuple[int, int], mode: str) -> None:
    frame = picture(*shape)
    preprocess = Preprocessor(settings(mode))
    difference = (preprocess(frame.cuda()).cpu().int() - preprocess(frame).int()).abs()
    assert difference.max() <= 2
    assert difference.float().mean() < 0.02


def test_the_result_is_its_own_memory() -> None:
    frames = picture(224, 224)
    pixels = Preprocessor(settings())(frames)
    frames.zero_()
    assert pixels.is_contiguous()
    assert pixels.float().mean() > 10


def test_normalise_is_the_models_scale() -> None:
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(2, 3, 1, 3)
    expected = (pixels.double() / 255 - torch.tensor(MEAN).double()[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(normalise(pixels, MEAN, STD), expected.float())


def test_an_unknown_resize_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="resize mode 'stretch' is unknown; expected one of shortest, longest, squash"):
        Preprocessor(settings("stretch"))


@pytest.mark.parametrize("name", ["bunny_opening.webm", "budgie_ladder.mp4", "carphone.mp4"])
def test_embeddings_of_real_frames_are_those_of_the_pil_path(assets: Path, tmp_path: Path, name: str) -> None:
    with av.open(str(assets / "videos" / name)) as container:
        decoded = list(islice(container.decode(video=0), 0, 40, 13))
    frames = torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]))
    folder = save_folder(tmp_path / "tiny", reference_model(), mean=list(MEAN), std=list(STD))
    model = load_model(f"local-dir:{folder}", device="cpu", towers="image")
    ours = model.encode_frames(Preprocessor(model.settings())(frames))
    levels = torch.stack([by_pil(frame, "shortest", "bicubic", 32) for frame in frames])
    theirs = model.encode_frames(normalise(levels, MEAN, STD))
    assert cosine_similarity(ours, theirs, dim=-1).min() >= 0.999
