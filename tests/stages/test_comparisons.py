from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.synthetic.captions import phrase
from stages.synthetic.comparisons import COMPARISONS, SAYS
from stages.synthetic.drawing import draw_frames
from stages.synthetic.families import FAMILIES, GROUP_SIZE, describe_families, draw_family_scenes
from stages.synthetic.render import main, render_families
from stages.synthetic.scenes import Scene, Thing, describe, draw_scene, holds, is_unseen

AMOUNT: dict[str, Callable[[Thing], float]] = {
    "size": lambda thing: math.log(thing.radius),
    "speed": lambda thing: math.log(thing.reach),
    "arrival": lambda thing: thing.appears,
}


def groups(family: str, number: int, seed: int = 3) -> list[list[Scene]]:
    scenes = draw_family_scenes(seed, number * GROUP_SIZE, [family])
    return [scenes[at : at + GROUP_SIZE] for at in range(0, len(scenes), GROUP_SIZE)]


def amounts(family: str, number: int) -> NDArray[np.float64]:
    """[groups, ranks], from the first rank to the last."""
    comparison, rng = COMPARISONS[family], np.random.default_rng(0)
    scene = draw_scene(rng, comparison.level)
    found = np.empty((number, GROUP_SIZE))
    for row in found:
        for variant in comparison.variants(scene, rng):
            (thing,) = variant.things
            row[comparison.ranks.index(str(thing.rank))] = AMOUNT[family](thing)
    return found


def test_there_is_a_measure_for_every_comparison() -> None:
    assert AMOUNT.keys() == COMPARISONS.keys()
    assert {len(comparison.ranks) for comparison in COMPARISONS.values()} == {GROUP_SIZE}
    assert not COMPARISONS.keys() & FAMILIES.keys()


@pytest.mark.parametrize("family", COMPARISONS)
def test_a_group_shows_the_same_but_for_one_amount_and_a_caption_fits_one_video(family: str) -> None:
    for group in groups(family, 12):
        assert len({(scene.background, scene.shade) for scene in group}) == 1
        things = [scene.things[0] for scene in group]
        assert len({(t.shape, t.tint, t.texture, t.motion, t.angle, t.x, t.y) for t in things}) == 1
        for at, scene in enumerate(group):
            statement = describe(scene, SAYS)
            assert [holds(statement, other) for other in group] == [other is group[at] for other in group]


@pytest.mark.parametrize("family", COMPARISONS)
def test_ranks_follow_the_amount_by_steps_that_can_be_told_apart(family: str) -> None:
    steps = np.diff(amounts(family, 200), axis=1)
    least, most = COMPARISONS[family].steps
    assert least <= steps.min()
    assert steps.max() <= most


@pytest.mark.slow
@pytest.mark.parametrize("family", COMPARISONS)
def test_videos_next_to_each_other_in_rank_differ_in_what_twelve_small_frames_show(family: str) -> None:
    by_rank = COMPARISONS[family].ranks
    for group in groups(family, 5):
        ordered = sorted(group, key=lambda scene: by_rank.index(str(scene.things[0].rank)))
        frames = [np.stack(list(draw_frames(scene, 12, 48, 48))).astype(float) for scene in ordered]
        for rank in range(1, GROUP_SIZE):
            changed = np.abs(frames[rank] - frames[rank - 1]).max(axis=-1) > 30
            assert changed.sum() > 30  # pixels of 12 frames


@pytest.mark.slow
@pytest.mark.parametrize("family", COMPARISONS)
def test_the_amount_alone_does_not_give_the_rank(family: str) -> None:
    """Whoever knows the amounts of all groups and names the likeliest rank is right in half of the cases at most."""
    found = amounts(family, 1000)
    edges = np.linspace(found.min(), found.max(), 13)
    counts = np.stack([np.histogram(found[:, rank], edges)[0] for rank in range(GROUP_SIZE)])
    assert counts.max(axis=0).sum() / counts.sum() < 0.55
    assert found[:, 0].max() > found[:, -1].min()


@pytest.mark.slow
@pytest.mark.parametrize("family", COMPARISONS)
@pytest.mark.parametrize("rank", [1, 2])
def test_no_best_amount_finds_the_second_or_third_of_a_group(family: str, rank: int) -> None:
    """Whoever takes the video of a group that is nearest to some amount finds few of them, whatever that amount is."""
    found = amounts(family, 1000)
    shares = [
        float((np.abs(found - wanted).argmin(axis=1) == rank).mean())
        for wanted in np.linspace(found.min(), found.max(), 60)
    ]
    assert max(shares) < 0.5
    assert (found.argmax(axis=1) == GROUP_SIZE - 1).all()


def test_no_two_groups_compare_the_same_thing_whatever_else_is_drawn() -> None:
    families = [*COMPARISONS, "place", "swap"]
    scenes = draw_family_scenes(1, 240, families)
    compared: list[tuple[str, ...]] = []
    others: list[tuple[str, ...]] = []
    for at in range(0, len(scenes), GROUP_SIZE):
        looks = {(s.background, t.shape, t.colour, t.texture) for s in scenes[at : at + GROUP_SIZE] for t in s.things}
        (compared if scenes[at].things[0].rank else others).extend(looks)
    assert len(set(compared)) == len(compared) == 240 // GROUP_SIZE * 3 // 5
    assert not set(compared) & set(others)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_groups_in_an_order_that_tells_nothing() -> None:
    scenes = draw_family_scenes(1, 240, list(COMPARISONS))
    assert scenes == draw_family_scenes(1, 240, list(COMPARISONS))
    assert scenes != draw_family_scenes(2, 240, list(COMPARISONS))
    for comparison in COMPARISONS.values():
        places = Counter(at % GROUP_SIZE for at, s in enumerate(scenes) if s.things[0].rank == comparison.ranks[0])
        assert set(places) == set(range(GROUP_SIZE))


def test_splits_share_no_colour_and_shape() -> None:
    for split, unseen in (("seen", False), ("unseen", True)):
        scenes = draw_family_scenes(1, 240, list(COMPARISONS), split)  # type: ignore[arg-type]
        assert {is_unseen(scene.things[0].colour, scene.things[0].shape) for scene in scenes} == {unseen}


def test_captions_say_the_rank_and_never_the_amount() -> None:
    scenes = draw_family_scenes(5, 48, list(COMPARISONS))
    rng = np.random.default_rng(0)
    said = [
        (s.rank, phrase(statement, rng))
        for statement in describe_families(scenes, list(COMPARISONS))
        for s in statement.claims
    ]
    words = {"smallest": {"smallest", "tiniest"}, "second fastest": {"second", "next"}, "last": {"last", "latest"}}
    for rank, sentence in said:
        assert " the " in f" {sentence}"
        assert words.get(str(rank), set(sentence.split())) & set(sentence.split())
        assert not {"small", "large", "big", "tiny"} & set(sentence.split())
    assert {rank for rank, _ in said} == {rank for comparison in COMPARISONS.values() for rank in comparison.ranks}


def test_what_the_other_families_draw_and_say_for_a_seed_stays() -> None:
    """Numbers measured on them were published."""
    scenes = draw_family_scenes(1, 8, ["place", "order"])
    rng = np.random.default_rng(0)
    said = [phrase(statement, rng) for statement in describe_families(scenes, ["place", "order"])]
    assert said[1] == "we see a cyan star in the upper right corner on a chessboard pattern"
    assert (
        said[7] == "a turquoise bar in the centre and after that a pink heart at the right side on a white background"
    )
    assert not any(thing.rank for scene in scenes for thing in scene.things)


def test_the_command_takes_them_by_name_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["--output", str(tmp_path), "--seed", "2", "--videos", "4", "--families", "speed", "--captions", "2"]) == 0
    )
    captions = [json.loads(line)["caption"] for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert len(captions) == 8
    assert sum("slow" in caption or "least fast" in caption for caption in captions) == 4
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    assert "arrival" in listed
    assert "arrival" not in listed.split("default", 1)[1].split("--split")[0]


def test_comparisons_are_written_as_the_other_families_are(tmp_path: Path) -> None:
    videos = render_families(tmp_path, 4, 8, ["size", "place"])
    assert [video.scene.things[0].rank is None for video in videos] == [False] * 4 + [True] * 4
    assert [video.statement.claims[0].place is None for video in videos] == [True] * 4 + [False] * 4
