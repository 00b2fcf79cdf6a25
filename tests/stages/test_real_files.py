"""Real and hostile files: what state they end in, whichever decoder is first and whichever process decodes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np
import pytest

from index_store.settings import SamplingSettings
from stages.decode_pool import DecodePool, DecodeTask
from stages.errors import DecodeError
from stages.video import FrameBatch, decode

UNIFORM = SamplingSettings("uniform", 12)
SINGLE = SamplingSettings("uniform", 1)
NO_FRAMES = {
    "absurd_dimensions_raw_100000.avi": "no_frame",
    "audio_only.mp4": "no_video_stream",
    "audio_only_ac3.mkv": "no_video_stream",
    "audio_only_two_aac.mp4": "no_video_stream",
    "concat_script_as_video.mp4": "playlist",
    "directory_named_video.mp4": "not_a_file",
    "gif_canvas_65535.gif": "no_frame",
    "real_no_decodable_frame.mp4": "no_frame",
    "real_zero_empty_stsc.mp4": "no_frame",
    "text_renamed.mp4": "not_a_video",
    "truncated_no_moov.mp4": "damaged",
    "valid_header_garbage_payload.mp4": "no_frame",
    "zero_bytes.mp4": "empty_file",
    "zero_frames.mp4": "no_frame",
}
PARTIAL = {"bit_flips.mp4", "cut_mid_mdat.mp4", "real_corrupted_missing_pps.mp4", "truncated.mkv"}
NUM_FILES = {"videos_tech": 60, "bad": 22, "bad/names": 22}

pytestmark = pytest.mark.slow

Summary = tuple[object, ...]
"""Pixels and times, then everything else that is kept of a file; or why there is nothing."""


def summary(result: FrameBatch | DecodeError) -> Summary:
    if isinstance(result, DecodeError):
        return (result.reason_code, result.detail)
    pixels = hashlib.sha256(result.frames.tobytes()).hexdigest()
    times = tuple(result.timestamps_seconds.tolist())
    return (pixels, times, result.is_partial, result.duration_seconds, result.decoder, result.note)


def decoded(path: Path, sampling: SamplingSettings = UNIFORM, *decoders: str) -> Summary:
    """What this process makes of it."""
    try:
        return summary(decode(path, sampling, decoders) if decoders else decode(path, sampling))
    except DecodeError as error:
        return summary(error)


def files_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name not in ("README.md", "names")]


@pytest.fixture(scope="module")
def found(assets: Path) -> dict[Path, Summary]:
    """What this process makes of each of them."""
    return {path: decoded(path) for folder in NUM_FILES for path in files_in(assets / folder)}


@pytest.mark.parametrize("folder", NUM_FILES)
def test_every_file_ends_in_the_right_state_whichever_decoder_is_first(
    folder: str, assets: Path, found: dict[Path, Summary]
) -> None:
    paths = files_in(assets / folder)
    assert len(paths) == NUM_FILES[folder]
    for path in paths:
        if path.name in NO_FRAMES:
            assert found[path][0] == NO_FRAMES[path.name], path.name
            continue
        assert found[path][2] == (path.name in PARTIAL), path.name
        assert decoded(path, UNIFORM, "pyav")[:2] == found[path][:2], path.name
        # where no earlier frame was decoded before
        assert decoded(path, SINGLE, "pyav")[:2] == decoded(path, SINGLE)[:2], path.name


def test_clips_of_each_kind_give_the_same_frames_whichever_decoder_is_first(assets: Path) -> None:
    """The two smallest of each container, codec, pixel format and order of frames; all: test_real_videos.py.

    The others are of the same kinds, and decoding them takes minutes.
    """
    kinds: dict[object, list[Path]] = {}
    for path in sorted(files_in(assets / "videos"), key=lambda path: path.stat().st_size):
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            assert stream is not None
            codec = stream.codec_context
            kind = (container.format.name, codec.name, codec.pix_fmt, codec.has_b_frames, path.suffix)
        kinds.setdefault(kind, []).append(path)
    assert len(kinds) == 10
    for path in [path for paths in kinds.values() for path in paths[:2]]:
        found = decoded(path, SamplingSettings("uniform", 4))
        assert found[2] is False
        assert decoded(path, SamplingSettings("uniform", 4), "pyav")[:2] == found[:2], path.name


def test_worker_processes_make_the_same_of_them(found: dict[Path, Summary]) -> None:
    """Workers that have decoded other files before, among them hostile ones, and are replaced now and then."""
    paths = [path for path in found if not path.name.startswith("derived")]  # twenty times the same clip
    with DecodePool(UNIFORM, num_workers=3, recycle_after=7) as pool:
        for result in pool.map(DecodeTask(path) for path in paths):
            batch = result.error or result.frames
            assert batch is not None
            assert summary(batch) == found[result.task.path], result.task.path.name
            result.release()


def test_re_encodings_of_one_clip_show_the_same_pictures(assets: Path) -> None:
    """The same moments are chosen in every container, codec and frame size."""
    folder = assets / "videos_tech"
    expected = decode(folder / "derived_h264.mp4", UNIFORM)
    thumbnails = thumbnails_of(expected)
    for path in sorted(folder.glob("derived*")):
        batch = decode(path, UNIFORM)
        if len(batch.frames) == 12:
            assert batch.timestamps_seconds.tolist() == pytest.approx(expected.timestamps_seconds.tolist(), abs=0.07)
            if batch.frames.shape[1:3] == (180, 320):
                assert np.abs(thumbnails_of(batch) - thumbnails).mean() < 6, path.name


def thumbnails_of(batch: FrameBatch) -> np.ndarray:
    """Mean grey of 20 x 20 blocks, float [n, 9, 16]."""
    grey = batch.frames.astype(np.float32).mean(axis=-1)
    return grey.reshape(len(grey), 9, 20, 16, 20).mean(axis=(2, 4))
