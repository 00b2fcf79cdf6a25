from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from index_store.errors import InputError
from stages.models import load_model, load_text_side, remembered
from stages.models.architecture import resolve
from stages.models.weights import find_pinned
from tests.stages.model_files import reference_model, save_folder

SHA = "0a" * 32


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TBPIPE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", 0.0)
    return tmp_path / "cache" / "tbpipe" / "weights"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"1234")
    return path


def test_a_file_is_found_until_it_looks_different(cache: Path, weights: Path) -> None:
    assert remembered.find(SHA) == []
    remembered.remember(SHA, remembered.stamps_of([weights]))
    assert remembered.find(SHA) == [weights]
    assert remembered.find("0b" * 32) == []
    about = weights.stat()
    weights.write_bytes(b"4321")  # same size, same inode, and the time put back: only the time of change tells
    os.utime(weights, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert remembered.find(SHA) == []
    remembered.remember(SHA, remembered.stamps_of([weights]))
    weights.unlink()
    assert remembered.find(SHA) == []


def test_a_file_that_changed_while_it_was_read_is_not_remembered(cache: Path, weights: Path) -> None:
    stamps = remembered.stamps_of([weights])
    weights.write_bytes(b"12345")
    remembered.remember(SHA, stamps)
    assert not cache.exists()


def test_a_file_that_may_still_be_changing_is_not_remembered(
    cache: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", time.time())
    remembered.remember(SHA, remembered.stamps_of([weights]))
    assert not cache.exists()


def test_what_others_could_have_written_is_not_believed(cache: Path, weights: Path) -> None:
    remembered.remember(SHA, remembered.stamps_of([weights]))
    note = cache / f"{SHA}.json"
    note.chmod(0o622)
    assert remembered.find(SHA) == []
    note.chmod(0o600)
    assert remembered.find(SHA) == [weights]
    for content in ("", "{", "3", "[3]", "[[]]", '[["\\u0000", 1, 1, 1, 1, 1]]'):
        note.write_text(content)
        assert remembered.find(SHA) == []
    assert remembered.find(f"../weights/{SHA}") == []


def test_a_cache_that_cannot_be_written_does_no_harm(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TBPIPE_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", 0.0)
    remembered.remember(SHA, remembered.stamps_of([weights]))
    assert remembered.find(SHA) == []


def test_a_text_side_is_opened_without_hashing_what_is_remembered(cache: Path, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "tiny", reference_model())
    pinned = load_model(f"local-dir:{folder}", device="cpu", dtype="float32").settings()
    architecture = resolve(pinned.name, pinned.pretrained, {})
    assert find_pinned(architecture, pinned)[1] == pinned.weights_sha256
    model = load_text_side(pinned, "cpu", "float32")
    assert model.settings() == pinned
    assert model.encode_texts(["a dog"]).sentence.shape == (1, pinned.embed_dim)

    (folder / "bpe_merges.txt.gz").write_bytes((folder / "bpe_merges.txt.gz").read_bytes() + b"\0")
    source, digest = find_pinned(architecture, pinned)
    assert digest is None
    assert source.digest() != pinned.weights_sha256
    with pytest.raises(InputError, match="no weight file"):
        find_pinned(architecture, replace(pinned, pretrained=str(tmp_path / "elsewhere.pt"), weights_sha256=SHA))
