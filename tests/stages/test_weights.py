from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from index_store.errors import ComponentMissingError, InputError, UsageError
from stages.models import MODELS, load_model
from stages.models.architecture import from_folder, resolve
from stages.models.weights import StateReader, fill, find_weights, unfilled
from tests.stages.model_files import reference_model, save_folder, save_state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("models") / "tiny", reference_model())


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download cache and no network; returns the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cache_file(cache: Path, repository: str, name: str, content: bytes) -> Path:
    """Put a file where the hub client keeps what it downloaded."""
    root = cache / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    path = root / "snapshots" / commit / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"abc" * 1_000_000)
    source = find_weights(resolve("ViT-B-32", "", MODELS), str(path))
    assert source.digest() == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    assert source.pretrained == str(path)


def test_digest_of_a_folder_is_what_sha256sum_prints(folder: Path) -> None:
    names = ["open_clip_config.json", "bpe_merges.txt.gz", "open_clip_model.safetensors"]
    listing = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
    source = find_weights(from_folder("local-dir", folder), "")
    assert source.digest() == hashlib.sha256(listing).hexdigest()


@pytest.mark.parametrize("form", ["safetensors", "pt", "wrapped.pth", "parallel.bin", "legacy.pt"])
def test_every_form_of_file_gives_the_same_model(folder: Path, tmp_path: Path, form: str) -> None:
    model = reference_model(seed=5)
    path = tmp_path / f"weights.{form}"
    state = model.state_dict()
    if form == "safetensors":
        save_state(model.state_dict(), path)
    elif form == "legacy.pt":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        prefixed = {f"module.{key}": value for key, value in state.items()}
        torch.save({"wrapped.pth": {"state_dict": state, "epoch": 3}, "parallel.bin": prefixed}.get(form, state), path)
    loaded = load_model(f"local-dir:{folder}", str(path), device="cpu")
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.encode_frames(pixels)[:, 0], model.encode_image(pixels))
    assert loaded.settings().pretrained == str(path)


def test_text_tower_under_its_own_prefix_is_found(tmp_path: Path) -> None:
    path = tmp_path / "custom.safetensors"
    save_file({"text.text_projection": torch.ones(2, 2), "visual.proj": torch.zeros(1)}, path)
    reader = StateReader(path)
    assert list(reader.tower("text.")) == ["text_projection"]
    assert list(reader.tower("visual.")) == ["proj"]


def test_half_precision_files_are_widened(folder: Path, tmp_path: Path) -> None:
    state = {key: value.half() for key, value in reference_model().state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    model = load_model(f"local-dir:{folder}", str(tmp_path / "half.safetensors"), device="cpu", towers="image")
    assert model.encode_frames(torch.rand(1, 3, 32, 32)).isfinite().all()


class Evil:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_never_run(folder: Path, tmp_path: Path) -> None:
    torch.save({"visual.proj": torch.ones(1), "x": Evil(tmp_path / "made")}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="nothing else is ever unpickled"):
        load_model(f"local-dir:{folder}", str(tmp_path / "evil.pt"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["empty.safetensors", "short.safetensors", "empty.pt", "text.bin", "number.pt"])
def test_broken_files_are_input_errors(folder: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "short.safetensors":
        path.write_bytes((folder / "open_clip_model.safetensors").read_bytes()[:-100])
    elif name == "number.pt":
        torch.save(3, path)
    else:
        path.write_bytes(b"no weights" if name == "text.bin" else b"")
    with pytest.raises(InputError, match=str(path)):
        load_model(f"local-dir:{folder}", str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"no tensor visual\.proj \(1 of 32 missing\)"),
        ("surplus", r"tensor visual\.extra that the model lacks \(1 of them\)"),
        ("shape", r"tensor visual\.proj is \[64, 25\], expected \[64, 24\]"),
    ],
)
def test_weights_of_another_model_name_the_key(folder: Path, tmp_path: Path, change: str, message: str) -> None:
    state = {key: value.clone() for key, value in reference_model().state_dict().items()}
    if change == "missing":
        del state["visual.proj"]
    elif change == "surplus":
        state["visual.extra"] = torch.zeros(1)
    else:
        state["visual.proj"] = torch.zeros(64, 25)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=message):
        load_model(f"local-dir:{folder}", str(tmp_path / "other.safetensors"))


def test_unfilled_modules_are_filled_completely(tmp_path: Path) -> None:
    torch.manual_seed(0)
    filled = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    before = torch.get_rng_state()
    with unfilled():
        bare = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    assert torch.equal(torch.get_rng_state(), before)
    fill(bare, filled.state_dict(), "", tmp_path)
    assert torch.equal(bare(torch.ones(1, 3)), filled(torch.ones(1, 3)))


def test_wrong_tag_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no weights 'opanai' for model ViT-B-32; give a tag such as openai, or a"):
        load_model("ViT-B-32", "opanai")
    with pytest.raises(
        UsageError, match=r"model ViT-B-32 needs weights; give a tag such as openai, .* or a .safetensors"
    ):
        load_model("ViT-B-32")


def test_wrong_paths() -> None:
    with pytest.raises(InputError, match=r"no weight file /nowhere/x\.safetensors"):
        load_model("ViT-B-32", "/nowhere/x.safetensors")
    with pytest.raises(InputError, match=r"is not a weight file; expected one of \.safetensors"):
        load_model("ViT-B-32", __file__)


def test_a_folder_needs_no_tag(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has its own weights: leave 'openai' out"):
        load_model(f"local-dir:{folder}", "openai")
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    with pytest.raises(InputError, match="no weight file in"):
        load_model(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(("name", "tag"), [("ViT-B-32", "openai"), ("hf-hub:org/model", "")])
def test_offline_and_not_cached_says_what_to_do(offline: Path, name: str, tag: str) -> None:
    with pytest.raises(
        ComponentMissingError, match=r"are not in the cache .*--pretrained FILE, or use --model tbpipe-small"
    ):
        load_model(name, tag)


def test_cached_weights_need_no_network_and_bring_their_activation(offline: Path) -> None:
    path = cache_file(offline, "timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors", b"weights")
    source = find_weights(resolve("ViT-B-32", "", MODELS), "openai")
    assert (source.path, source.pretrained) == (path, "openai")
    assert source.architecture.quick_gelu
    assert source.architecture.name == "ViT-B-32-quickgelu"
    again = find_weights(resolve(source.architecture.name, "", MODELS), source.pretrained)
    assert again == source


def test_tags_and_files_bring_their_preprocessing(offline: Path, tmp_path: Path) -> None:
    cache_file(offline, "timm/ViT-B-16-SigLIP2", "open_clip_model.safetensors", b"weights")
    by_tag = find_weights(resolve("ViT-B-16-SigLIP2", "", MODELS), "webli").architecture.preprocessing
    assert (by_tag.mean, by_tag.std, by_tag.resize_mode) == ((0.5,) * 3, (0.5,) * 3, "squash")
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    file = str(tmp_path / "w.safetensors")
    assert find_weights(resolve("ViT-B-16-SigLIP2", "", MODELS), file).architecture.preprocessing == by_tag
    clip = find_weights(resolve("ViT-B-32", "", MODELS), file).architecture.preprocessing
    assert (clip.mean[0], clip.resize_mode) == (0.48145466, "shortest")


def test_a_hub_model_is_a_folder_in_the_cache(offline: Path, folder: Path) -> None:
    for path in folder.iterdir():
        cache_file(offline, "org/model", path.name, path.read_bytes())
    model = load_model("hf-hub:org/model", device="cpu", towers="text")
    assert model.settings().name == "hf-hub:org/model"
    again = load_model(model.settings().name, model.settings().pretrained, device="cpu", towers="text")
    assert again.settings() == model.settings()
