"""A file that points to other files or addresses is never followed, by no decoder, however it is disguised."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest

from index_store.settings import SamplingSettings
from stages.decode_pool import DecodePool, DecodeTask
from stages.decoders import pyav
from stages.decoders.pyav import open_video
from stages.errors import DecodeError
from stages.video import decode
from tests.stages.clips import numbers_in, write_clip
from tests.stages.hostile_files import TEXTS, watched, write_playlists, write_with_reference, write_with_subtitles

UNIFORM = SamplingSettings("uniform", 4)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify tells who opens a file")


def test_the_watch_sees_a_decoder_that_follows(tmp_path: Path) -> None:
    with watched(tmp_path) as watch:
        assert watch.num_touched() == 0
        playlist = tmp_path / "list.ffconcat"
        playlist.write_text(TEXTS["concat"].format(target="target.ts"))
        with av.open(str(playlist)) as container:
            next(container.decode(video=0))
        assert watch.num_touched() > 0
        with pytest.raises(av.FFmpegError):
            av.open(f"http://127.0.0.1:{watch.port}/x.ts")
        assert watch.num_touched() > 0


@pytest.mark.slow
def test_playlists_of_every_kind_are_refused_and_not_followed(tmp_path: Path) -> None:
    with watched(tmp_path) as watch:
        paths = write_playlists(tmp_path, watch)
        assert watch.num_touched() > 0  # its copy was just made
        with DecodePool(UNIFORM, num_workers=2) as pool:
            results = {
                result.task.path.stem: result.error and result.error.reason_code
                for result in pool.map(DecodeTask(path) for path in paths)
            }
        assert watch.num_touched() == 0
    assert set(results.values()) <= {"playlist", "not_a_video", "no_frame", "damaged"}
    for kind in ("hls", "concat", "dash", "asf_reference", "asx", "smil", "pls"):
        assert results[f"{kind}_0"] == "playlist"


@pytest.mark.parametrize("kind", ["hls", "concat"])
def test_subtitles_that_are_a_playlist_are_not_followed(kind: str, tmp_path: Path) -> None:
    with watched(tmp_path) as watch:
        for target in (str(watch.path), f"http://127.0.0.1:{watch.port}/x.ts"):
            path = write_with_subtitles(tmp_path / "subtitled.avi", TEXTS[kind].format(target=target))
            with open_video(str(path)) as video:
                assert [stream.type for stream in video.container.streams] == ["video", "subtitle"]
                assert numbers_in(pyav.DECODER.fetch(video, video.table.is_key.nonzero()[0])) == [0, 12]
            library = pytest.importorskip("decord")  # is not asked for AVI, and would not follow it either
            assert len(library.VideoReader(str(path), num_threads=1)) == 20
            assert numbers_in(decode(path, UNIFORM).frames) == [2, 7, 12, 17]
        assert watch.num_touched() == 0


def test_a_movie_whose_frames_are_in_another_file_is_not_followed(tmp_path: Path) -> None:
    with watched(tmp_path) as watch:
        path = write_with_reference(tmp_path / "reference.mov", watch.path)
        with av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:
            list(container.demux(video=0))
        assert watch.num_touched() > 0  # so the reference is one
        with pytest.raises(DecodeError) as refusal:
            decode(path, UNIFORM)
        assert refusal.value.reason_code == "no_frame"
        library = pytest.importorskip("decord")  # is not asked for such a file, and would not follow it either
        with contextlib.suppress(library.DECORDError):
            library.VideoReader(str(path), num_threads=1)
        assert watch.num_touched() == 0


NAMES = (
    "http:evil.mp4",
    "concat:target.ts|target.ts",
    "file:target.ts",
    "subfile,,start,0,end,0,,:target.ts",
    "pipe:0",
    "async:target.ts",
    "%05d.mp4",
    "data:video;base64,AAAA",
    "-i",
)


@pytest.mark.slow
def test_names_that_mean_something_to_libraries_are_names_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    with watched(folder) as watch:
        clip = write_clip(tmp_path / "clip.mp4", 20)
        for name in NAMES:
            os.link(clip, folder / name)
        script = (
            "import sys; from pathlib import Path; from stages.video import decode; from tests.stages.clips import *\n"
            "from index_store.settings import SamplingSettings as S\n"
            "for name in sys.argv[1:]: print(*numbers_in(decode(Path(name), S('uniform', 4)).frames))"
        )
        command = [sys.executable, "-c", script, *NAMES]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.splitlines() == ["2 7 12 17"] * len(NAMES), done.stderr
        assert watch.num_touched() == 0
