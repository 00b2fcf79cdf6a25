"""Rendered corpora: real files, the same bytes for the same seed, and captions that are true of one video."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index_store.settings import SamplingSettings
from stages.synthetic.drawing import draw_frames
from stages.synthetic.render import (
    DEMO_SEED,
    VideoFormat,
    draw_scenes,
    encode_video,
    render_corpus,
    render_demo,
)
from stages.synthetic.scenes import BACKGROUNDS, COLOURS, LEVELS, SHAPES, Scene, Thing, describe, holds
from stages.video import decode

SMALL = VideoFormat(width=64, height=48, frames_per_second=8, seconds=1.0)


def thing(**changes: object) -> Thing:
    plain = Thing("square", "red", "plain", "still", 0.2, 0.5, 0.5, 0.0, 0.0, 1.0, COLOURS["red"], 0.0)
    return replace(plain, **changes)  # type: ignore[arg-type]


def middle_of_red(frame: np.ndarray) -> tuple[float, float]:
    """X and y of the middle of what is red in uint8 [H, W, 3], in pixels."""
    rows, columns = np.nonzero((frame[..., 0] > 150) & (frame[..., 1] < 90))
    return columns.mean() + 0.5, rows.mean() + 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_drawn_in_its_colour_where_it_is(shape: str) -> None:
    scene = Scene((thing(shape=shape),), "grey", (0, 0, 0))
    (frame,) = draw_frames(scene, 1, 100, 120)
    red = (frame[..., 0] > 180) & (frame[..., 1] < 60)
    rows, columns = np.nonzero(red)
    assert 200 < red.sum() < 1700
    assert columns.min() >= 60 - 26
    assert columns.max() <= 60 + 26
    assert rows.min() >= 50 - 26
    assert rows.max() <= 50 + 26
    np.testing.assert_array_equal(frame[0, 0], (128, 128, 128))


def test_a_square_has_the_area_its_radius_says_to_a_tenth_of_a_pixel_row() -> None:
    (frame,) = draw_frames(Scene((thing(),), "black", (0, 0, 0)), 1, 100, 100)
    coverage = (frame[..., 0].astype(float) - 18) / (COLOURS["red"][0] - 18)
    side = 2 * 0.86 * 0.2 * 100
    assert coverage.sum() == pytest.approx(side**2, rel=0.01)


@pytest.mark.parametrize(
    ("motion", "x_direction", "y_direction"), [("right", 1, 0), ("left", -1, 0), ("up", 0, -1), ("down", 0, 1)]
)
def test_moving_things_go_where_they_should(motion: str, x_direction: int, y_direction: int) -> None:
    scene = Scene((thing(motion=motion, reach=0.25),), "black", (0, 0, 0))
    frames = list(draw_frames(scene, 10, 100, 100))
    first, last = middle_of_red(frames[0]), middle_of_red(frames[-1])
    # From 0.05 to 0.95 of the way of 2 x 0.25 of the side.
    assert last[0] - first[0] == pytest.approx(x_direction * 45, abs=1)
    assert last[1] - first[1] == pytest.approx(y_direction * 45, abs=1)


@pytest.mark.parametrize("background", sorted(BACKGROUNDS))
def test_a_wide_picture_shows_the_same_in_its_middle(background: str) -> None:
    scene = Scene((thing(motion="right", reach=0.25),), background, (3, -4, 5))
    for square, wide, tall in zip(
        draw_frames(scene, 3, 64, 64), draw_frames(scene, 3, 64, 96), draw_frames(scene, 3, 90, 64), strict=True
    ):
        np.testing.assert_allclose(wide[:, 16:80], square.astype(int), atol=1)
        np.testing.assert_allclose(tall[13:77], square.astype(int), atol=1)


def test_things_are_there_in_their_time_only() -> None:
    scene = Scene((thing(leaves=0.5), thing(shape="star", appears=0.5)), "black", (0, 0, 0))
    still = Scene((thing(),), "black", (0, 0, 0))
    frames, alone = list(draw_frames(scene, 8, 64, 64)), next(draw_frames(still, 8, 64, 64))
    np.testing.assert_array_equal(frames[3], alone)
    assert (frames[4] != alone).any()
    np.testing.assert_array_equal(frames[4], frames[7])


def test_encoded_frames_come_back_and_bytes_repeat(tmp_path: Path) -> None:
    scene = draw_scenes(5, 1, LEVELS["pair"])[0]
    frames = list(draw_frames(scene, SMALL.num_frames, SMALL.height, SMALL.width))
    for name in ("a.mp4", "b.mp4"):
        encode_video(tmp_path / name, frames, SMALL)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    batch = decode(tmp_path / "a.mp4", SamplingSettings("uniform", SMALL.num_frames))
    assert batch.frames.shape == (8, 48, 64, 3)
    np.testing.assert_allclose(batch.timestamps_seconds, np.arange(8) / 8, atol=1e-6)
    assert np.abs(batch.frames.astype(int) - np.stack(frames)).mean() < 8


@pytest.mark.slow
def test_a_corpus_repeats_to_the_byte_and_no_caption_is_true_of_two_videos(tmp_path: Path) -> None:
    videos = render_corpus(tmp_path / "one", 3, 24, "mixed", group_size=4, video_format=SMALL)
    render_corpus(tmp_path / "two", 3, 24, "mixed", group_size=4, video_format=SMALL)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 24 + 3
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert [video.group for video in videos] == [i // 4 for i in range(24)]
    assert len({video.statement for video in videos}) == 24
    assert all(video.path == tmp_path / "one" / "videos" / video.key for video in videos)
    lines = (tmp_path / "one" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"key": v.key, "caption": v.caption} for v in videos]


def test_another_seed_gives_other_videos() -> None:
    level = LEVELS["mixed"]
    assert draw_scenes(1, 10, level) == draw_scenes(1, 10, level)
    assert not set(draw_scenes(1, 10, level)) & set(draw_scenes(2, 10, level))


@pytest.mark.slow
def test_too_many_videos_for_a_level_are_refused() -> None:
    level = replace(LEVELS["single"], says=frozenset({"shape"}))
    with pytest.raises(ValueError, match="ask for fewer"):
        draw_scenes(0, len(SHAPES) + 1, level)


@pytest.mark.parametrize(
    "sizes", [{"width": 63}, {"height": 8}, {"frames_per_second": 0}, {"seconds": 0.01}], ids=lambda s: next(iter(s))
)
def test_impossible_formats_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"even|frame"):
        VideoFormat(**sizes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [DEMO_SEED, 1, 2])
def test_each_demo_query_has_one_right_video_and_hard_ones_a_twin(tmp_path: Path, seed: int) -> None:
    videos, queries = render_demo(tmp_path, seed, video_format=SMALL)
    assert len(videos) == 56
    assert [query.is_hard for query in queries] == [False] * 12 + [True] * 4
    by_key = {video.key: video for video in videos}
    says = LEVELS["mixed"].says
    for query in queries:
        (key,) = query.relevant_keys
        assert by_key[key].path.is_file()
        if query.is_hard:
            full = describe(by_key[key].scene, says)
            assert [video.key for video in videos if holds(full, video.scene)] == [key]
            assert query.text == by_key[key].caption
    rows = (tmp_path / "qrels.tsv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "query-id\tcorpus-id\tscore"
    assert rows[1:] == [f"{query.id}\t{query.relevant_keys[0]}\t1" for query in queries]
    texts = [json.loads(line) for line in (tmp_path / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    assert texts == [{"_id": query.id, "text": query.text} for query in queries]


def test_a_demo_too_small_for_its_queries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 9"):
        render_demo(tmp_path, num_videos=8)
