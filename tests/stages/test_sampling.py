from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_store.settings import SamplingSettings
from stages.sampling import FrameTable, choose_frames, midpoints, shown_at


def table_of(starts: list[float], duration: float, keys: tuple[int, ...] = (0,)) -> FrameTable:
    is_key = np.zeros(len(starts), bool)
    is_key[list(keys)] = True
    return FrameTable(np.array(starts, np.float64), is_key, duration)


def constant(num_frames: int, rate: float, keys: tuple[int, ...] = (0,)) -> FrameTable:
    return table_of((np.arange(num_frames) / rate).tolist(), num_frames / rate, keys)


def test_uniform_takes_the_frames_on_screen_in_the_middle_of_equal_segments() -> None:
    # 100 frames at 10/s: 4 segments of 2.5 s, middles 1.25, 3.75, 6.25, 8.75 s
    assert choose_frames(constant(100, 10), SamplingSettings("uniform", 4)).tolist() == [12, 37, 62, 87]


@pytest.mark.parametrize("num_frames", [1, 2, 11, 12])
def test_short_videos_give_each_frame_once(num_frames: int) -> None:
    chosen = choose_frames(constant(num_frames, 25), SamplingSettings("uniform", 12))
    assert chosen.tolist() == list(range(num_frames))


def test_time_counts_not_the_number_of_the_frame() -> None:
    # 10 frames in the first second, then one that stays for nine: uniform over 10 s sees it four times, keeps it once
    table = table_of([*(i / 10 for i in range(10)), 1.0], 10.0)
    assert choose_frames(table, SamplingSettings("uniform", 5)).tolist() == [10]
    assert shown_at(table, np.array([0.0, 0.05, 0.95, 1.0, 9.9])).tolist() == [0, 9, 10]


def test_times_rounded_by_the_container_choose_the_same_frames() -> None:
    exact = np.arange(72) / 24  # middles of 12 segments of 0.25 s fall exactly on frames 3, 9, 15, ...
    for starts in (
        exact,
        np.round(exact, 3),
        np.floor(exact * 1000) / 1000,
        exact.astype(np.float32).astype(np.float64),
    ):
        table = FrameTable(starts, np.arange(72) == 0, float(starts[-1]) + 1 / 24)
        assert choose_frames(table, SamplingSettings("uniform", 12)).tolist() == list(range(3, 72, 6))


def test_fps_takes_a_frame_every_so_often() -> None:
    assert choose_frames(constant(100, 10), SamplingSettings("fps", 12, 1.0)).tolist() == list(range(0, 100, 10))
    assert choose_frames(constant(100, 10), SamplingSettings("fps", 12, 0.5)).tolist() == [0, 20, 40, 60, 80]


def test_fps_beyond_the_number_of_frames_is_spread_over_the_whole_video() -> None:
    chosen = choose_frames(constant(1000, 10), SamplingSettings("fps", 12, 1.0))
    assert chosen.tolist() == choose_frames(constant(1000, 10), SamplingSettings("uniform", 12)).tolist()
    assert chosen[-1] > 900


def test_fps_above_the_rate_of_the_video_repeats_no_frame() -> None:
    assert choose_frames(constant(5, 10), SamplingSettings("fps", 12, 20.0)).tolist() == [0, 1, 2, 3, 4]


def test_keyframe_takes_key_frames_and_thins_them_evenly() -> None:
    keys = tuple(range(0, 100, 10))
    assert choose_frames(constant(100, 10, keys), SamplingSettings("keyframe", 12)).tolist() == list(keys)
    # 10 keys in 5 runs of 2, the middle (later) of each
    assert choose_frames(constant(100, 10, keys), SamplingSettings("keyframe", 5)).tolist() == [10, 30, 50, 70, 90]


def test_keyframe_without_any_key_frame_takes_the_first() -> None:
    table = FrameTable(np.arange(4) / 4, np.zeros(4, bool), 1.0)
    assert choose_frames(table, SamplingSettings("keyframe", 12)).tolist() == [0]


@given(
    gaps=st.lists(st.floats(0, 5), min_size=0, max_size=40),
    last=st.floats(0, 5),
    frames=st.integers(1, 16),
    mode=st.sampled_from(["uniform", "fps", "keyframe"]),
    fps=st.floats(0.01, 100),
)
def test_any_table_gives_ascending_frames_within_the_limit(
    gaps: list[float], last: float, frames: int, mode: str, fps: float
) -> None:
    starts = np.concatenate([[0.0], np.cumsum(gaps)])
    table = FrameTable(starts, np.arange(starts.size) % 3 == 0, float(starts[-1]) + last)
    sampling = SamplingSettings(mode, frames, fps if mode == "fps" else None)  # type: ignore[arg-type]
    chosen = choose_frames(table, sampling)
    assert chosen.dtype == np.int64
    assert 1 <= chosen.size <= frames
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < len(table)
    if mode == "uniform" and len(table) <= frames:
        assert chosen.tolist() == list(range(len(table)))


@given(num_frames=st.integers(13, 3000), rate=st.floats(1, 240))
def test_uniform_at_a_constant_rate_gives_exactly_the_frames_asked_for(num_frames: int, rate: float) -> None:
    assert choose_frames(constant(num_frames, rate), SamplingSettings("uniform", 12)).size == 12


def test_only_keeps_what_is_left_on_screen() -> None:
    rest = constant(10, 10).only(np.array([2, 3, 7]))
    assert rest.starts_seconds.tolist() == pytest.approx([0, 0.1, 0.5])
    assert rest.duration_seconds == pytest.approx(0.8)


@pytest.mark.parametrize("starts", [[], [0.5, 1.0], [0.0, 2.0, 1.0], [0.0, float("nan")]])
def test_a_table_that_is_not_in_order_is_refused(starts: list[float]) -> None:
    with pytest.raises(ValueError, match="frame table"):
        FrameTable(np.array(starts), np.zeros(len(starts), bool), 3.0)


def test_midpoints() -> None:
    assert midpoints(12.0, 4).tolist() == [1.5, 4.5, 7.5, 10.5]
