from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor, nn

from index_store.errors import InputError
from stages.import_weights import import_weights
from stages.models.torchscript import is_torchscript, read_torchscript
from stages.models.weights import read_checkpoint
from tests.stages.checkpoints import QUICK_TINY, tiny_clip
from tests.stages.model_files import reference_model, save_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:Converting a tensor")


class Traced(nn.Module):
    """A CLIP whose image tower is what it runs."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        for name, part in [*model.named_children(), *model.named_parameters(recurse=False)]:
            setattr(self, name, part)

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.visual(pixels)
        return found


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP as OpenAI ships it."""
    model = CLIP(**QUICK_TINY).eval()
    model.load_state_dict(tiny_clip())
    path = tmp_path_factory.mktemp("archive") / "ViT-B-32.pt"
    torch.jit.trace(Traced(model), torch.rand(1, 3, 32, 32), check_trace=False).save(str(path))
    return path


@pytest.mark.slow
def test_the_tensors_are_those_of_the_state_dict(archive: Path) -> None:
    assert is_torchscript(archive)
    found, expected = read_torchscript(archive), tiny_clip()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_half_precision_and_views_come_out_whole(tmp_path: Path) -> None:
    module = nn.Linear(6, 4).half()
    module.weight = nn.Parameter(torch.randn(6, 4).half().T)
    torch.jit.script(module).save(str(tmp_path / "linear.pt"))
    found = read_torchscript(tmp_path / "linear.pt")
    assert torch.equal(found["weight"], module.weight)
    assert torch.equal(found["bias"], module.bias)


def test_openais_own_file_is_imported(archive: Path, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model", reference_model(seed=99), QUICK_TINY)
    output = folder / "openai.safetensors"
    import_weights("openai-clip", archive, output, f"local-dir:{folder}")
    found = read_checkpoint(output)
    assert {name: tuple(found[name].shape) for name in found} == {n: tuple(t.shape) for n, t in tiny_clip().items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in tiny_clip().items())


def rewritten(archive: Path, path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The archive with every file as ``change`` makes it, or without it for None."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = change(name, source.read(name))
            if content is not None:
                target.writestr(name, content)
    return path


class Evil:
    """Unpickling this would make a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, ("made",)


def evil_index() -> bytes:
    file = io.BytesIO()
    pickle.Pickler(file, protocol=2).dump({"x": Evil()})
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.pkl", evil_index(), "which no archive of tensors needs"),
        ("data.pkl", b"", "cannot be read as a TorchScript archive"),
        ("data.pkl", b"\x80\x02K\x01.", "it holds no module"),
        ("data.pkl", b"\x80\x02K\x01", "cannot be read"),
        ("data.pkl", b"\x80\x02R.", "cannot be read"),
        ("data.pkl", b"\x80\x02K\x01}b.", "cannot be read"),
        ("data.pkl", None, "without a readable data.pkl"),
        ("data/0", b"\0\0", "cannot be read"),
        ("data/0", None, "cannot be read"),
    ],
)
def test_anything_else_is_refused(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = rewritten(archive, tmp_path / "x.pt", lambda file, old: content if file.endswith(f"/{name}") else old)
    with pytest.raises(InputError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


def test_a_truncated_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.pt").write_bytes(archive.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"cut\.pt"):
        read_checkpoint(tmp_path / "cut.pt")
