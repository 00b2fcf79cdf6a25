from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from index_store.settings import SamplingSettings
from stages.decoders import decord, load_decoder, pyav
from stages.decoders.base import DeclinedError
from stages.decoders.decord import reason_of
from stages.decoders.pyav import OpenVideo, fetch_by_count, fetch_by_time, open_video, packets_of
from stages.errors import DecodeError
from stages.sampling import choose_frames
from tests.stages.clips import numbers_in, write_clip

# name -> (file suffix, write_clip arguments, does decord take it)
CLIPS: dict[str, tuple[str, dict[str, object], bool]] = {
    "h264 with B-frames": ("mp4", {"options": {"g": "12", "bf": "3", "b-pyramid": "strict"}}, True),
    "h264 without B-frames": ("mp4", {"options": {"g": "10", "bf": "0"}}, True),
    "h264 with one key frame": ("mp4", {"options": {"g": "999", "bf": "2"}}, True),
    "h264 with key frames only": ("mkv", {"options": {"g": "1"}}, True),
    "h264 with open groups": ("mp4", {"options": {"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}}, True),
    "h264 4:4:4": ("mp4", {"pixels": "yuv444p"}, False),
    "h264 4:2:2": ("mkv", {"pixels": "yuv422p"}, True),
    "h264 full range": ("mp4", {"pixels": "yuvj420p"}, True),
    "h264 10 bits": ("mp4", {"pixels": "yuv420p10le"}, False),
    "h264 variable rate": (
        "mp4",
        {"times": [0, 1, 2, 3, 20, 21, 22, 40, 41, 60, 61, 62, 63, 90, 91, 92, 120, 121, 180, 181]},
        True,
    ),
    "h264 in MPEG-TS": ("ts", {"options": {"g": "6", "bf": "2"}}, False),
    "h264 turned by 90 degrees": ("mp4", {"rotation": 90}, True),
    "h264 turned by -90 degrees": ("mp4", {"rotation": -90}, True),
    "h264 turned by 180 degrees": ("mp4", {"rotation": 180}, True),
    "hevc": ("mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=8:bframes=3"}}, False),
    "mpeg4 in AVI": ("avi", {"codec": "mpeg4", "options": {"g": "8"}}, False),
    "mpeg4 with B-frames in AVI": ("avi", {"codec": "mpeg4", "options": {"g": "8", "bf": "2"}}, False),
    "mpeg4 in MP4": ("mp4", {"codec": "mpeg4", "options": {"g": "8"}}, False),
    "mpeg2 in a program stream": ("mpg", {"codec": "mpeg2video", "rate": 25, "options": {"g": "6", "bf": "2"}}, False),
    "vp9": ("webm", {"codec": "libvpx-vp9", "options": {"g": "10", "cpu-used": "8"}}, True),
    "mjpeg": ("avi", {"codec": "mjpeg", "pixels": "yuvj420p"}, False),
    "gif": ("gif", {"codec": "gif", "pixels": "rgb8"}, False),
    "raw h264": ("h264", {"options": {"g": "10", "bf": "2"}}, False),
}


def make(name: str, folder: Path) -> Path:
    suffix, arguments, _ = CLIPS[name]
    times = arguments.get("times")
    num_frames = len(times) if isinstance(times, list) else 40
    return write_clip(folder / f"clip.{suffix}", num_frames=num_frames, **arguments)  # type: ignore[arg-type]


def plain_decode(path: Path) -> NDArray[np.uint8]:
    """Every frame of the file, by the shortest way that PyAV offers."""
    pictures = []
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.best("video")):
            pictures.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
    return np.stack(pictures)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPS)
def test_pyav_fetches_the_frames_that_a_plain_decode_gives(name: str, tmp_path: Path) -> None:
    path = make(name, tmp_path)
    every = plain_decode(path)
    with open_video(str(path)) as video:
        assert len(video.table) == len(every)
        for chosen in (np.array([0]), np.array([len(every) - 1]), np.arange(1, len(every), 3), np.arange(len(every))):
            pictures = pyav.DECODER.fetch(video, chosen)
            assert numbers_in(pictures) == chosen.tolist()
            assert np.array_equal(pictures, every[chosen])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, _, taken) in CLIPS.items() if taken])
def test_decord_gives_the_same_bytes_as_pyav(name: str, tmp_path: Path) -> None:
    with open_video(str(make(name, tmp_path))) as video:
        for chosen in (
            np.array([len(video.table) - 1]),
            np.arange(1, len(video.table), 3),
            np.arange(len(video.table)),
        ):
            pictures = decord.DECODER.fetch(video, chosen)
            assert numbers_in(pictures) == chosen.tolist()
            assert np.array_equal(pictures, pyav.DECODER.fetch(video, chosen))


@pytest.mark.parametrize("name", [name for name, (_, _, taken) in CLIPS.items() if not taken])
def test_decord_declines_what_it_would_get_wrong(name: str, tmp_path: Path) -> None:
    path = make(name, tmp_path)
    with open_video(str(path)) as video, pytest.raises(DeclinedError) as refusal:
        decord.DECODER.fetch(video, np.array([5]))
    assert str(tmp_path) not in str(refusal.value)


def test_frames_hidden_by_an_edit_list_are_not_in_the_table(tmp_path: Path) -> None:
    # Frames before time 0 are there to decode the others, and the edit list says not to show them.
    path = write_clip(
        tmp_path / "edit.mp4",
        30,
        times=list(range(-7, 23)),
        options={"g": "999", "bf": "0"},
        muxer={"avoid_negative_ts": "disabled"},
    )
    with open_video(str(path)) as video:
        assert video.num_hidden == 7
        assert len(video.table) == 23
        assert numbers_in(pyav.DECODER.fetch(video, np.array([0, 5, 22]))) == [7, 12, 29]
        with pytest.raises(DeclinedError, match="edit list hides 7 frames"):
            decord.DECODER.fetch(video, np.array([0]))


def test_times_start_at_the_first_frame_whatever_the_container_says(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "late.mkv", 12, times=list(range(1000, 1012)))
    with open_video(str(path)) as video:
        assert video.table.starts_seconds.tolist() == pytest.approx([i / 10 for i in range(12)])
        assert video.table.duration_seconds == pytest.approx(1.2)


def test_a_stream_without_times_is_counted_at_its_own_rate(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "raw.h264", 20)
    with open_video(str(path)) as video:
        assert video.ticks is None
        assert len(video.table) == 20
        assert np.allclose(np.diff(video.table.starts_seconds), video.table.starts_seconds[1])


@pytest.mark.parametrize("sizes", [((64, 32), (128, 96)), ((128, 96), (64, 32)), ((64, 32), (64, 32))])
def test_of_several_video_streams_decord_takes_the_same_or_declines(
    sizes: tuple[tuple[int, int], ...], tmp_path: Path
) -> None:
    path = tmp_path / "two.mp4"
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, (width, height) in zip(streams, sizes, strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for stream in streams:
            for _ in range(10):
                noise = random.integers(0, 255, (stream.height, stream.width, 3), np.uint8)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
            output.mux(stream.encode(None))
    with open_video(str(path)) as video:
        expected = pyav.DECODER.fetch(video, np.array([0, 9]))
        try:
            pictures = decord.DECODER.fetch(video, np.array([0, 9]))
        except DeclinedError:
            assert len(set(sizes)) == 1 or (video.width, video.height) != (128, 96)
        else:
            assert np.array_equal(pictures, expected)


def test_fetching_by_time_and_by_count_agree(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 40, options={"g": "12", "bf": "3"})
    with open_video(str(path)) as video:
        chosen = choose_frames(video.table, SamplingSettings("uniform", 6))
        by_time = fetch_by_time(video, chosen)
        assert by_time is not None
        assert np.array_equal(by_time, fetch_by_count(video, chosen))


@pytest.mark.slow
def test_frames_with_times_in_the_wrong_order_are_counted(assets: Path) -> None:
    path = assets / "videos" / "woman_drinking_cup.avi"  # AVI has no place for the times of B-frames
    with opened(path) as video:
        chosen = choose_frames(video.table, SamplingSettings("uniform", 4))
        assert fetch_by_time(video, chosen) is None
        assert np.array_equal(pyav.DECODER.fetch(video, chosen), plain_decode(path)[chosen])


@contextmanager
def opened(path: Path) -> Iterator[OpenVideo]:
    with open_video(str(path)) as video:
        yield video


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "[00:05:10] /w/video_reader.cc:270: [/proc/self/fd/3] Failed to measure duration",
            "Failed to measure duration",
        ),
        (
            "[09:59:59] /w/x.cc:151: Check failed: st_nb >= 0 (-11 vs. 0) ERROR cannot find\n\nStack trace:\n0x7f",
            "ERROR cannot find",
        ),
        ("", "RuntimeError"),
    ],
)
def test_messages_of_decord_lose_what_differs_from_run_to_run(message: str, expected: str) -> None:
    assert reason_of(RuntimeError(message)) == expected


def test_formats_that_name_other_files_are_not_opened(tmp_path: Path) -> None:
    write_clip(tmp_path / "real.mp4", 5)
    script = tmp_path / "script.txt"
    script.write_text("ffconcat version 1.0\nfile real.mp4\n")
    with pytest.raises(DecodeError) as refusal, open_video(str(script)):
        pass
    assert refusal.value.reason_code == "not_a_video"


def test_a_missing_decoder_is_an_import_error() -> None:
    with pytest.raises(ImportError):
        load_decoder("no_such_decoder")


def test_torchcodec_says_why_it_cannot_be_used() -> None:
    from stages.decoders.torchcodec import missing_reason

    assert missing_reason("cpu") == "cpu is no CUDA device"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_frames_and_times_of_torchcodec_are_those_of_the_other_decoders(tmp_path: Path, device: str) -> None:
    """On a CPU nobody would use it, but it is asked in the same words there as on a GPU."""
    import torch

    from stages.decode_pool import DecodeTask
    from stages.decoders.torchcodec import GpuDecodeThreads, cannot_load
    from stages.video import decode

    if why := cannot_load():
        pytest.skip(why)
    sampling = SamplingSettings("uniform", 12)
    paths = [write_clip(tmp_path / f"{i}.mp4", 40, size=(320, 240), options={"g": "12", "bf": "3"}) for i in range(6)]
    with GpuDecodeThreads(sampling, [device]) as source:
        results = list(source.map(DecodeTask(path) for path in paths))
    for path, result in zip(paths, results, strict=True):
        expected = decode(path, sampling)
        assert result.frames is not None
        assert (result.frames.note, result.frames.decoder[:10]) == ("", "torchcodec")
        pixels = torch.as_tensor(result.frames.frames)
        assert str(pixels.device) == device
        assert numbers_in(pixels.cpu().numpy()) == numbers_in(expected.frames)
        assert result.frames.timestamps_seconds.tolist() == expected.timestamps_seconds.tolist()
        assert np.abs(pixels.cpu().numpy().astype(int) - expected.frames).mean() < 4


def test_a_stream_that_begins_in_the_middle_of_a_file_is_passed_over() -> None:
    class Container:
        """Does what PyAV does with a packet of a stream that was not there when the file was opened."""

        def __init__(self) -> None:
            self.packets = iter([1, None, 2, None, None, 3])

        def demux(self, stream: object) -> Iterator[int]:
            for packet in self.packets:
                if packet is None:
                    raise IndexError("list index out of range")
                yield packet

    packets: list[object] = list(packets_of(Container(), None))  # type: ignore[arg-type]
    assert packets == [1, 2, 3]
