from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch.nn.functional import cosine_similarity, normalize
from torchvision.transforms.functional import resize

from index_store.errors import InputError, UsageError
from stages.models import MODELS, load_model, model_names
from stages.models.clip import ClipModel, choose_device, choose_dtype, has_native_bfloat16
from stages.models.quick_gelu import quick_gelu
from stages.models.weights import unfilled
from stages.preprocess import normalise
from tests.stages.model_files import TINY, reference_model, save_folder, save_state

TEXTS = ["a dog", "", "two red dogs run over the long green hill and a cat looks at them from the roof", "DOG!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("models") / "tiny", reference_model(), mean=[0.4, 0.5, 0.6], std=0.25)


@pytest.fixture(scope="module")
def model(folder: Path) -> ClipModel:
    return load_model(f"local-dir:{folder}", device="cpu")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def some_pixels(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures: pure noise would look the same to any model."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 5, 5), generator=generator, dtype=torch.uint8)
    return resize(coarse, [size, size], antialias=True)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, stages.models; print([m for m in ('torch', 'open_clip', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_row_0_is_the_image_embedding_and_the_others_are_projected_patches(model: ClipModel) -> None:
    pixels = some_pixels(3)
    reference = reference_model()
    normalised = normalise(pixels, (0.4, 0.5, 0.6), (0.25, 0.25, 0.25))
    tokens = model.encode_frames(pixels)
    assert tokens.shape == (3, 1 + 4 * 4, 24)
    assert tokens.dtype == torch.float32
    assert torch.equal(tokens[:, 0], reference.encode_image(normalised))
    visual = reference.visual
    hidden = visual.transformer(visual._embeds(normalised))
    torch.testing.assert_close(tokens[:, 5], visual.ln_post(hidden[:, 5]) @ visual.proj)


def test_normalised_pixels_give_the_same_as_uint8(model: ClipModel) -> None:
    pixels = some_pixels(2)
    assert torch.equal(
        model.encode_frames(pixels), model.encode_frames(normalise(pixels, (0.4, 0.5, 0.6), (0.25, 0.25, 0.25)))
    )


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_a_frame_is_the_same_bits_in_any_company(model: ClipModel, threads: int, batch: int) -> None:
    frame = some_pixels(1, seed=99)
    found = set()
    for place in range(batch):
        pixels = some_pixels(batch, seed=place)
        pixels[place] = frame[0]
        found.add(model.encode_frames(pixels)[place].numpy().tobytes())
    assert len(found) == 1


def test_sentence_is_the_text_embedding_and_stands_at_the_end_of_the_words(model: ClipModel) -> None:
    features = model.encode_texts(TEXTS)
    assert model._tokenizer is not None
    expected = reference_model().encode_text(model._tokenizer(TEXTS))
    torch.testing.assert_close(features.sentence, expected, rtol=1e-5, atol=1e-5)
    lengths = features.word_mask.sum(dim=1)
    torch.testing.assert_close(features.words[torch.arange(len(TEXTS)), lengths - 1], features.sentence)
    assert lengths.tolist() == [4, 2, 20, 4]  # start, a, dog, end; start, end; cut at W; start, dog, !, end
    assert features.words[~features.word_mask].abs().max() == 0
    assert features.words[features.word_mask].abs().min(dim=1).values.max() > 0


def test_a_text_is_the_same_bits_in_any_company(model: ClipModel, threads: int) -> None:
    together = model.encode_texts(TEXTS * 5)
    for place, words in enumerate(TEXTS):
        alone = model.encode_texts([words])
        length = alone.words.shape[1]
        for copy_place in range(place, len(TEXTS) * 5, len(TEXTS)):
            assert torch.equal(alone.sentence[0], together.sentence[copy_place])
            assert torch.equal(alone.words[0], together.words[copy_place, :length])


def test_no_texts_give_no_features(model: ClipModel) -> None:
    features = model.encode_texts([])
    assert features.sentence.shape == (0, 24)
    assert features.words.shape[0] == features.word_mask.shape[0] == 0


def test_settings_are_the_same_whichever_tower_is_loaded(folder: Path, model: ClipModel) -> None:
    settings = model.settings()
    assert settings.name == "local-dir"
    assert settings.pretrained == str(folder)
    assert (settings.embed_dim, settings.tokens_per_frame, settings.image_size) == (24, 17, 32)
    assert (settings.mean, settings.std) == ((0.4, 0.5, 0.6), (0.25, 0.25, 0.25))
    assert (settings.interpolation, settings.resize_mode, settings.compute_dtype) == ("bicubic", "shortest", "float32")
    for towers in ("image", "text"):
        assert load_model(settings.name, settings.pretrained, device="cpu", towers=towers).settings() == settings


@pytest.mark.parametrize("name", MODELS)
def test_shipped_models_load_again_from_their_settings(name: str) -> None:
    model = load_model(name, device="cpu")
    settings = model.settings()
    assert settings.name == name
    assert model.encode_texts(["a dog"]).sentence.shape == (1, settings.embed_dim)
    again = load_model(settings.name, settings.pretrained, device="cpu", towers="image")
    assert again.settings() == settings
    pixels = some_pixels(2, settings.image_size)
    assert again.encode_frames(pixels).shape == (2, settings.tokens_per_frame, settings.embed_dim)


def test_only_the_asked_tower_works(folder: Path) -> None:
    with pytest.raises(UsageError, match="without its text tower"):
        load_model(f"local-dir:{folder}", towers="image").encode_texts(["a"])
    with pytest.raises(UsageError, match="without its image tower"):
        load_model(f"local-dir:{folder}", towers="text").encode_frames(some_pixels(1))


def test_logit_scale_is_the_factor_of_the_cosines(model: ClipModel) -> None:
    assert model.logit_scale == pytest.approx(float(reference_model().logit_scale.exp()))


def test_quick_gelu_follows_the_configuration(tmp_path: Path) -> None:
    config = copy.deepcopy(TINY) | {"quick_gelu": True}
    reference = reference_model(config)
    quick = load_model(f"local-dir:{save_folder(tmp_path / 'quick', reference, config)}", device="cpu")
    pixels = normalise(some_pixels(2), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.equal(quick.encode_frames(pixels)[:, 0], reference.encode_image(pixels))
    assert not torch.allclose(quick.encode_frames(pixels)[:, 0], reference_model().encode_image(pixels), atol=1e-3)
    drawn = torch.randn(64, requires_grad=True)
    with torch.no_grad():
        alone = quick_gelu(drawn)
    assert torch.equal(alone, quick_gelu(drawn))  # two ways: gradients need what the other one overwrites
    (slope,) = torch.autograd.grad(quick_gelu(drawn).sum(), drawn)
    assert torch.allclose(slope, torch.autograd.grad(QuickGELU()(drawn).sum(), drawn)[0])


def test_average_pooled_towers_have_patches_too(tmp_path: Path) -> None:
    config = copy.deepcopy(TINY)
    config["vision_cfg"] |= {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    reference = reference_model(config)
    model = load_model(f"local-dir:{save_folder(tmp_path / 'avg', reference, config)}", device="cpu", towers="image")
    pixels = normalise(some_pixels(2), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    tokens = model.encode_frames(pixels)
    assert tokens.shape == (2, 17, 24)
    torch.testing.assert_close(tokens[:, 0], reference.encode_image(pixels))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_points_the_same_way(folder: Path, model: ClipModel, dtype: str) -> None:
    pixels = some_pixels(4)
    half = load_model(f"local-dir:{folder}", device="cpu", dtype=dtype)
    tokens = half.encode_frames(pixels)
    assert tokens.dtype == torch.float32
    assert not torch.equal(tokens, model.encode_frames(pixels))
    assert cosine_similarity(tokens, model.encode_frames(pixels), dim=-1).min() >= 0.999
    assert torch.equal(half.encode_texts(TEXTS).sentence, model.encode_texts(TEXTS).sentence)
    assert half.settings().compute_dtype == dtype


def test_wrong_names_are_told_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'ViT-B-23'; did you mean ViT-B-32"):
        load_model("ViT-B-23", "openai")
    with pytest.raises(UsageError, match="did you mean tbpipe-small"):
        load_model("tbpipe-smal")
    with pytest.raises(UsageError, match="open_clip's names work"):
        load_model("§§§")


@pytest.mark.parametrize("name", ["RN50", "convnext_base"])
def test_towers_without_tokens_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"model {name} has a convolutional image tower without patch tokens; ViT"):
        load_model(name, "openai")
    assert name not in model_names()


def test_model_names_are_known() -> None:
    assert {*MODELS, "ViT-B-32", "PE-Core-B-16", "MobileCLIP2-S0"} <= set(model_names())


def test_a_broken_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no open_clip_config.json in"):
        load_model(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        load_model(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(InputError, match="has no 'model_cfg'"):
        load_model(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 4}}')
    with pytest.raises(InputError, match="has no 'vision_cfg'"):
        load_model(f"local-dir:{tmp_path}")


def test_devices_and_precisions() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="no device is called 'gpu'"):
        choose_device("gpu")
    with pytest.raises(UsageError, match="device meta is not supported"):
        choose_device("meta")
    with pytest.raises(UsageError, match="CUDA devices are usable here"):
        choose_device("cuda:63")
    assert choose_dtype("auto", torch.device("cuda")) == "float16"
    assert choose_dtype("bfloat16", torch.device("cpu")) == "bfloat16"
    with pytest.raises(UsageError, match="use auto, float32, bfloat16, float16"):
        choose_dtype("half", torch.device("cpu"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("flags : fpu avx512f avx512_bf16", True), ("Features : fp asimd bf16", True), ("flags : fpu avx512f", False)],
)
def test_bfloat16_is_used_where_the_processor_has_it(tmp_path: Path, flags: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(flags)
    assert has_native_bfloat16(tmp_path / "cpuinfo") is expected
    assert has_native_bfloat16(tmp_path / "absent") is False


NAMES = {
    "ViT-B-32": 50,
    "ViT-B-16": 197,
    "PE-Core-T-16-384": 577,
    "PE-Core-B-16": 197,
    "ViT-B-32-SigLIP2-256": 65,
    "MobileCLIP2-B": 197,
    "MobileCLIP2-S0": 65,
    "EVA02-B-16": 197,
    "ViTamin-S": 197,
    "coca_ViT-B-32": 256,
    "swin_base_patch4_window7_224": 50,
}
"""Tokens a frame of released models."""
IMAGE_ONLY = {
    "ViT-B-16",
    "PE-Core-B-16",
    "ViT-B-32-SigLIP2-256",
    "EVA02-B-16",
    "ViTamin-S",
    "swin_base_patch4_window7_224",
}
"""SigLIP2's tokenizer is not part of open_clip; the others' text towers are of kinds that are tried with ViT-B-32,
PE-Core-T and MobileCLIP2-B."""


@dataclass(frozen=True)
class Released:
    """open_clip's model of a name with random weights, and ours with the same."""

    name: str
    reference: Any
    weights: Path
    model: ClipModel


@pytest.fixture(scope="module")
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Released]:
    import open_clip

    name = request.param
    with unfilled():  # drawing every number as the libraries do takes ten times as long as the tests
        reference = open_clip.create_model(name).eval()
    towers: Any = "image" if name in IMAGE_ONLY else "both"
    fill_by_pattern(reference.visual if name in IMAGE_ONLY else reference)
    path = tmp_path_factory.mktemp("released") / "weights.safetensors"
    state = {key: value for key, value in reference.state_dict().items() if towers == "both" or "visual." in key}
    weights = save_state(state, path)
    yield Released(name, reference, weights, load_model(name, str(weights), device="cpu", towers=towers))
    weights.unlink()  # up to 600 MB


def fill_by_pattern(module: torch.nn.Module) -> None:
    """Weights of the usual size, norms around 1: the same random numbers, from another place each time."""
    length = 1 << 20
    drawn = torch.randn(length, generator=torch.Generator().manual_seed(0)).repeat(2)
    start = 0
    for key, parameter in module.named_parameters():
        start = (start + 7919) % length
        for part in parameter.data.view(-1).split(length):
            part.copy_(drawn[start : start + len(part)])
        if parameter.ndim > 1:
            parameter.data.mul_(parameter[0].numel() ** -0.5)
        else:
            parameter.data.mul_(0.1).add_(not key.endswith("bias"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("released", NAMES, indirect=True)
def test_released_towers_agree_with_open_clip(released: Released) -> None:
    name, reference, model = released.name, released.reference, released.model
    settings = model.settings()
    pixels = some_pixels(2, settings.image_size)
    tokens = model.encode_frames(pixels)
    with torch.inference_mode():
        expected = reference.encode_image(normalise(pixels, settings.mean, settings.std))
        assert expected.std() > 1e-3
        found = normalize(tokens[:, 0], dim=-1) if name.startswith("coca") else tokens[:, 0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert tokens.shape == (2, NAMES[name], settings.embed_dim)
        assert settings.tokens_per_frame == NAMES[name]
        if name not in IMAGE_ONLY:
            assert model._tokenizer is not None
            sentence = model.encode_texts(TEXTS).sentence
            found = normalize(sentence, dim=-1) if name.startswith("coca") else sentence
            torch.testing.assert_close(found, reference.encode_text(model._tokenizer(TEXTS)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "released", ["PE-Core-T-16-384", "ViT-B-32-SigLIP2-256", "MobileCLIP2-B", "MobileCLIP2-S0"], indirect=True
)
def test_a_patch_is_what_the_head_makes_of_it_alone(released: Released) -> None:
    size = released.model.settings().image_size
    pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    patch = 7
    with torch.inference_mode():
        trunk = released.reference.visual.trunk
        hidden = trunk.forward_features(pixels)
        if hidden.ndim == 4:
            only = hidden.flatten(2)[:, :, patch, None, None]
        else:
            only = hidden[:, trunk.num_prefix_tokens + patch, None]
        expected = released.reference.visual.head(trunk.forward_head(only))
    close = 1e-4 * float(expected.abs().max())  # random weights make numbers of any size
    torch.testing.assert_close(released.model.encode_frames(pixels)[:, 1 + patch], expected, rtol=1e-4, atol=close)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("released", ["ViT-B-32"], indirect=True)
def test_vit_b_32_is_the_same_bits_in_any_company_and_close_in_bfloat16(released: Released, threads: int) -> None:
    model = released.model
    frame = some_pixels(1, 224, seed=99)
    found = set()
    for place in (0, 3, 7):
        pixels = some_pixels(8, 224, seed=place)
        pixels[place] = frame[0]
        found.add(model.encode_frames(pixels)[place].numpy().tobytes())
    assert len(found) == 1
    if threads == 1:
        half = load_model("ViT-B-32", str(released.weights), device="cpu", dtype="bfloat16", towers="image")
        pixels = some_pixels(2, 224)
        assert cosine_similarity(half.encode_frames(pixels), model.encode_frames(pixels), dim=-1).min() >= 0.999


@pytest.mark.gpu
def test_gpu_agrees_with_cpu_and_with_itself_in_any_company(folder: Path, model: ClipModel) -> None:
    gpu = load_model(f"local-dir:{folder}", device="cuda")
    assert gpu.dtype == "float16"
    frame = some_pixels(1, seed=99)
    expected = model.encode_frames(frame)
    found = set()
    for place in range(16):
        pixels = some_pixels(16, seed=place)
        pixels[place] = frame[0]
        tokens = gpu.encode_frames(pixels)[place].cpu()
        assert cosine_similarity(tokens, expected[0], dim=-1).min() >= 0.999
        found.add(tokens.numpy().tobytes())
    assert len(found) == 1
    sentence = gpu.encode_texts(TEXTS).sentence.cpu()
    assert cosine_similarity(sentence, model.encode_texts(TEXTS).sentence, dim=-1).min() >= 0.999
