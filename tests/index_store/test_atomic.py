from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from index_store.atomic import remove, replacing, sync_tree, write_bytes


def test_the_new_bytes_replace_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_bytes_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def half_written() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_written()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_appears_whole_and_a_killed_writers_rest_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".tmp-folder").mkdir()
    (tmp_path / ".tmp-folder" / "rest").write_bytes(b"half")
    with replacing(tmp_path / "folder") as temporary:
        assert not temporary.exists()
        temporary.mkdir()
        (temporary / "a").write_bytes(b"1")
        assert not (tmp_path / "folder").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "a"]


def test_content_is_on_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        steps.append("sync " + os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))
        fsync(descriptor)

    def recorded_replace(source: Any, target: Any) -> None:
        steps.append("rename " + os.path.relpath(target, tmp_path))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    with replacing(tmp_path / "d") as temporary:
        temporary.mkdir()
        (temporary / "a").write_bytes(b"1")
    assert steps == ["sync .tmp-d/a", "sync .tmp-d", "rename d", "sync ."]


def test_remove_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name in ("folder", "file", "nothing"):
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_sync_tree_takes_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    sync_tree(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        sync_tree(tmp_path / "none")
