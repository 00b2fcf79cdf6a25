from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from index_store.errors import InputError
from stages.keys import in_part, unique_key
from stages.looks import looks_like_video
from stages.scan import scan

MP4_HEAD = b"\x00\x00\x00\x18ftypmp42"


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def keys(*sources: Path) -> list[str]:
    return [file.key for file in scan(sources).files]


def test_a_folder_gives_posix_keys_relative_to_it_in_order(tmp_path: Path) -> None:
    touch(tmp_path / "b" / "x.mp4")
    touch(tmp_path / "a.mkv")
    touch(tmp_path / "b" / "UPPER.MOV")
    assert keys(tmp_path) == ["a.mkv", "b/UPPER.MOV", "b/x.mp4"]


def test_content_decides_where_the_suffix_does_not(tmp_path: Path) -> None:
    touch(tmp_path / "no_suffix", MP4_HEAD)
    touch(tmp_path / "notes.md", b"# not a video")
    touch(tmp_path / "double.mp4.bak", MP4_HEAD)
    touch(tmp_path / "text.mp4", b"not a video, but it says that it is one")
    found = scan([tmp_path])
    assert [file.key for file in found.files] == ["double.mp4.bak", "no_suffix", "text.mp4"]
    assert found.num_ignored == 1


def test_hidden_files_count_and_hidden_folders_do_not(tmp_path: Path) -> None:
    touch(tmp_path / ".hidden.mp4")
    touch(tmp_path / ".trash" / "x.mp4")
    touch(tmp_path / "._resource_fork.mp4")
    assert keys(tmp_path) == [".hidden.mp4"]


def test_loops_of_links_end_and_dangling_links_are_listed(tmp_path: Path) -> None:
    touch(tmp_path / "loopdir" / "x.mp4")
    (tmp_path / "loopdir" / "again").symlink_to("..")
    (tmp_path / "loop_a.mp4").symlink_to("loop_b.mp4")
    (tmp_path / "loop_b.mp4").symlink_to("loop_a.mp4")
    (tmp_path / "dangling.mp4").symlink_to("does_not_exist.mp4")
    found = scan([tmp_path])
    assert [file.key for file in found.files] == ["dangling.mp4", "loop_a.mp4", "loop_b.mp4", "loopdir/x.mp4"]
    assert [file.size_bytes for file in found.files] == [0, 0, 0, 1]


def test_pipes_and_sockets_are_listed_without_being_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # a socket's address may only be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.mp4")
        assert keys(tmp_path) == ["pipe.mp4", "socket.mp4"]


def test_a_name_that_is_not_utf8_gets_a_key_that_is(tmp_path: Path) -> None:
    name = os.fsdecode(b"bad\xff.mp4")
    touch(tmp_path / name)
    (file,) = scan([tmp_path]).files
    assert file.key == "bad\\xff.mp4"
    assert os.fsencode(file.path.name) == b"bad\xff.mp4"


def test_the_same_file_twice_is_one_video(tmp_path: Path) -> None:
    video = touch(tmp_path / "x.mp4")
    assert keys(tmp_path, video) == ["x.mp4"]


def test_two_sources_with_the_same_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    touch(tmp_path / "one" / "x.mp4")
    touch(tmp_path / "two" / "x.mp4")
    assert keys(tmp_path / "one", tmp_path / "two") == ["two/x.mp4", "x.mp4"]


def test_unique_key_never_runs_out() -> None:
    path = Path("/a/x.mp4")
    assert unique_key("x.mp4", path, {"x.mp4"}) == "a/x.mp4"
    assert unique_key("x.mp4", path, {"x.mp4", "a/x.mp4"}) == "x.mp4~2"
    assert unique_key("x.mp4", path, {"x.mp4", "a/x.mp4", "x.mp4~2"}) == "x.mp4~3"


def test_manifests_give_paths_beside_them_and_keys_if_wanted(tmp_path: Path) -> None:
    touch(tmp_path / "v" / "a.mp4")
    table = touch(tmp_path / "list.csv", b'path,key\nv/a.mp4,first\n"v/gone, away.mp4",\n')
    lines = touch(tmp_path / "list.jsonl", (json.dumps({"path": "v/a.mp4"}) + "\n").encode())
    assert keys(table) == ["first", "v/gone, away.mp4"]
    assert keys(lines) == ["v/a.mp4"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "file\nx.mp4\n", "no column 'path'"),
        ("a.csv", "path\n", "lists no video"),
        ("a.csv", "path,key\n,k\n", "line 2: 'path' is empty"),
        ("a.jsonl", '{"path": "a"}\n{broken\n', "line 2: not JSON"),
        ("a.jsonl", '{"video": "a"}\n', "line 1: no text under 'path'"),
        ("a.jsonl", '{"path": 3}\n', "line 1: no text under 'path'"),
    ],
)
def test_a_broken_manifest_names_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scan([touch(tmp_path / name, content.encode())])


def test_a_source_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        scan([tmp_path / "gone"])


def test_a_store_inside_a_source_is_left_alone(tmp_path: Path) -> None:
    touch(tmp_path / "store" / "tbpipe.toml")
    touch(tmp_path / "store" / "catalog.sqlite")
    touch(tmp_path / "store" / "shards" / "x.mp4")
    touch(tmp_path / "y.mp4")
    assert keys(tmp_path) == ["y.mp4"]


@pytest.mark.parametrize("num_parts", [1, 2, 7])
def test_parts_cover_everything_once_counted_from_0_or_from_1(num_parts: int) -> None:
    names = [f"clip{number}.mp4" for number in range(200)]
    for first in (0, 1):
        parts = [{name for name in names if in_part(name, part, num_parts)} for part in range(first, first + num_parts)]
        assert sorted(name for part in parts for name in part) == sorted(names)


def test_unreadable_folders_are_problems(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    assert [problem.path for problem in scan([tmp_path]).problems] == [locked]


def test_looks_like_video_does_not_open_folders(tmp_path: Path) -> None:
    assert not looks_like_video(tmp_path)
