from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index_store.settings import SamplingSettings
from stages.errors import DETAIL_LENGTH, REASONS, DecodeError
from stages.video import FrameBatch, decode
from tests.stages.clips import numbers_in, write_audio, write_clip

UNIFORM = SamplingSettings("uniform", 12)


def reason_of(path: Path, sampling: SamplingSettings = UNIFORM) -> str:
    with pytest.raises(DecodeError) as refusal:
        decode(path, sampling)
    return refusal.value.reason_code


def same(one: FrameBatch, other: FrameBatch) -> bool:
    """Everything a store keeps of the two is equal."""
    return (
        np.array_equal(one.frames, other.frames)
        and np.array_equal(one.timestamps_seconds, other.timestamps_seconds)
        and (one.duration_seconds, one.note, one.is_partial) == (other.duration_seconds, other.note, other.is_partial)
    )


@pytest.mark.parametrize("decoders", [("decord", "pyav"), ("pyav",), ("decord",)])
def test_decode_gives_the_chosen_frames_with_their_times(decoders: tuple[str, ...], tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 100, options={"g": "25", "bf": "2"})
    batch = decode(path, SamplingSettings("uniform", 4), decoders)
    assert numbers_in(batch.frames) == [12, 37, 62, 87]
    assert batch.timestamps_seconds.tolist() == pytest.approx([1.2, 3.7, 6.2, 8.7])
    assert batch.duration_seconds == pytest.approx(10.0)
    assert batch.decoder.startswith(decoders[0])
    assert (batch.note, batch.is_partial) == ("", False)


def test_keyframe_and_fps_sampling(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 40, options={"g": "10", "bf": "0", "sc_threshold": "0"})
    assert numbers_in(decode(path, SamplingSettings("keyframe", 12)).frames) == [0, 10, 20, 30]
    assert numbers_in(decode(path, SamplingSettings("fps", 12, 2.0)).frames) == [0, 5, 10, 15, 20, 25, 30, 35]


def test_what_decord_cannot_do_is_done_by_pyav_and_noted(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.gif", 20, codec="gif", pixels="rgb8")
    for decoders in (("decord", "pyav"), ("decord",)):
        batch = decode(path, UNIFORM, decoders)
        assert batch.decoder.startswith("pyav")
        assert batch.note.startswith("decord: ")
        assert not batch.is_partial


def test_a_decoder_that_is_not_installed_is_noted(tmp_path: Path) -> None:
    batch = decode(write_clip(tmp_path / "clip.mp4", 5), UNIFORM, ("no_such_library", "pyav"))
    assert batch.note == "no_such_library is not installed"
    assert numbers_in(batch.frames) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [(16, 2), (2, 16), (48, 1024), (1024, 48)])
def test_extreme_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 3, size=(max(size[0], 8), size[1]))
    assert decode(path, UNIFORM).frames.shape[1:3] == (size[1], max(size[0], 8))


# ---- names and places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        b"x.mp4",
        b"x.avi",
        b"no_suffix",
        b"-i.mp4",
        b"bad\xff.mp4",
        b"a:b|c.mp4",
        b"new\nline%d.mp4",
        b"http:",
        b"concat:x",
        b"x.txt",
        "é視🎬".encode(),
    ],
)
def test_the_name_of_a_file_changes_nothing(name: bytes, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 15)
    expected = decode(clip, UNIFORM)
    odd = tmp_path / os.fsdecode(name)
    odd.write_bytes(clip.read_bytes())
    assert same(decode(odd, UNIFORM), expected)


def test_a_relative_path_and_a_link_lead_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 5)
    (tmp_path / "link.mp4").symlink_to("clip.mp4")
    monkeypatch.chdir(tmp_path)
    assert same(decode(Path("link.mp4"), UNIFORM), decode(clip, UNIFORM))


def _directory(folder: Path) -> Path:
    path = folder / "directory.mp4"
    path.mkdir()
    write_clip(path / "inner.mp4", 3)
    return path


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo.mp4")
    return folder / "fifo.mp4"


def _socket(folder: Path) -> Path:
    here = os.getcwd()
    os.chdir(folder)  # the address of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.mp4")
    finally:
        os.chdir(here)
    return folder / "socket.mp4"


def _dangling(folder: Path) -> Path:
    (folder / "dangling.mp4").symlink_to("does_not_exist.mp4")
    return folder / "dangling.mp4"


def _loop(folder: Path) -> Path:
    (folder / "a.mp4").symlink_to("b.mp4")
    (folder / "b.mp4").symlink_to("a.mp4")
    return folder / "a.mp4"


def _below_a_file(folder: Path) -> Path:
    (folder / "file").write_bytes(b"x")
    return folder / "file" / "clip.mp4"


def _fifo_behind_a_link(folder: Path) -> Path:
    (folder / "link.mp4").symlink_to(_fifo(folder))
    return folder / "link.mp4"


@pytest.mark.parametrize(
    ("make", "reason_code"),
    [
        (_directory, "not_a_file"),
        (_fifo, "not_a_file"),
        (_fifo_behind_a_link, "not_a_file"),
        (_socket, "not_a_file"),
        (_loop, "not_a_file"),
        (_dangling, "missing"),
        (_below_a_file, "missing"),
        (lambda folder: folder / "never_there.mp4", "missing"),
        (lambda folder: Path("/dev/null"), "not_a_file"),
        (lambda folder: Path("/dev/zero"), "not_a_file"),
    ],
)
def test_only_regular_files_are_read_and_nothing_blocks(
    make: Callable[[Path], Path], reason_code: str, tmp_path: Path
) -> None:
    assert reason_of(make(tmp_path)) == reason_code


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 3)
    path.chmod(0)
    assert reason_of(path) == "unreadable"


# ---- contents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason_code"),
    [
        (b"", "empty_file"),
        (b"\0" * 10_000, "not_a_video"),
        (b"This is a text.\n" * 100, "not_a_video"),
        (b"x", "not_a_video"),
        (b"\xff\xfe\x00", "not_a_video"),
        (np.random.default_rng(7).bytes(50_000), "not_a_video"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + b"\0" * 100, "damaged"),
        (b"RIFF\x10\0\0\0AVI " + b"\1" * 200, "damaged"),
        (b"ffconcat version 1.0\nfile 'clip.mp4'\n", "playlist"),
        (b"\xef\xbb\xbf\n  ffconcat version 1.0\nfile clip.mp4\n", "playlist"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\nclip.mp4\n#EXT-X-ENDLIST\n", "playlist"),
        ("#EXTM3U\nclip.mp4\n".encode("utf-16"), "playlist"),
        (b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>', "playlist"),
        (b"<smil><body><video src='clip.mp4'/></body></smil>", "playlist"),
        (b"[playlist]\nFile1=clip.mp4\n", "playlist"),
        (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n", "playlist"),
        (b"file 'clip.mp4'\n", "playlist"),
        (b"http://127.0.0.1:9/clip.mp4\n", "playlist"),
    ],
)
def test_what_is_no_video_gets_its_reason_and_is_not_followed(content: bytes, reason_code: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 3)
    path = tmp_path / "it.mp4"
    path.write_bytes(content)
    assert reason_of(path) == reason_code


def test_audio_has_no_video_stream(tmp_path: Path) -> None:
    assert reason_of(write_audio(tmp_path / "audio.mp4")) == "no_video_stream"


def test_a_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "picture.mp4", 1, codec="png", pixels="rgb24", container="image2pipe")
    assert numbers_in(decode(path, UNIFORM).frames) == [0]


def test_a_damaged_middle_gives_a_partial_video_the_same_on_every_run(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 120, options={"g": "10", "bf": "0"}, muxer={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2
    content[start : start + 900] = np.random.default_rng(3).bytes(900)
    path.write_bytes(content)
    batch = decode(path, UNIFORM)
    assert batch.is_partial
    assert batch.note
    assert str(tmp_path) not in batch.note
    assert 9 <= len(batch.frames) <= 12
    # The frames before the damage are the ones that an undamaged file gives.
    before = batch.timestamps_seconds < 5
    assert numbers_in(batch.frames[before]) == [round(second * 10) for second in batch.timestamps_seconds[before]]
    for decoders in (("decord", "pyav"), ("decord", "pyav")):
        assert same(decode(path, UNIFORM, decoders), batch)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_file_that_is_cut_off_is_partial_and_says_so(suffix: str, tmp_path: Path) -> None:
    muxer = {"mp4": {"movflags": "faststart"}}.get(suffix, {})
    path = write_clip(tmp_path / f"clip.{suffix}", 60, codec="mpeg4", options={"g": "5"}, muxer=muxer)
    size = path.stat().st_size
    os.truncate(path, size * 2 // 3)
    batch = decode(path, UNIFORM)
    assert batch.is_partial
    assert f"{size - size * 2 // 3} bytes are missing" in batch.note
    numbers = numbers_in(batch.frames)
    expected = [round(second * 10) for second in batch.timestamps_seconds]
    assert numbers[:-1] == expected[:-1]  # the last one may itself be cut in two
    assert max(expected) < 45


def test_a_file_without_its_index_is_damaged(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 60)
    os.truncate(path, path.stat().st_size // 2)
    assert reason_of(path) == "damaged"


def test_garbage_in_all_frames_gives_no_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 30, muxer={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start:] = np.random.default_rng(1).bytes(len(content) - start)
    path.write_bytes(content)
    assert reason_of(path) == "no_frame"


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "clip.mp4", 30)
    monkeypatch.setattr("stages.video.MAX_BATCH_BYTES", 12 * 96 * 64 * 3 - 1)
    with pytest.raises(DecodeError, match="12 frames of 96x64 take") as refusal:
        decode(path, UNIFORM)
    assert refusal.value.reason_code == "out_of_memory"


# ---- records and errors ------------------------------------------------------------------------------------------


def test_a_batch_whose_parts_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        FrameBatch(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3), 1.0, "x", "", is_partial=False)


def test_errors_carry_a_known_code_and_a_short_printable_detail() -> None:
    error = DecodeError("no_frame", "first\nline \x1b[31m\udcff" + "x" * 1000)
    assert error.detail.isprintable()
    assert len(error.detail) == DETAIL_LENGTH
    assert REASONS["no_frame"] in str(error)
    with pytest.raises(ValueError, match="is not one of the reason codes"):
        DecodeError("bad_luck")


def test_a_codec_that_nobody_knows_is_a_reason(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 5)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert reason_of(path) == "no_frame"


def test_of_a_file_that_is_cut_off_only_pyav_is_asked(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 60, muxer={"movflags": "faststart"}, options={"g": "10"})
    os.truncate(path, path.stat().st_size - 200)
    batch = decode(path, SamplingSettings("uniform", 4))
    assert len(batch.frames) == 4
    assert batch.is_partial
    assert batch.note == "the file is cut off: 200 bytes are missing at its end"
    assert batch.decoder.startswith("pyav")
