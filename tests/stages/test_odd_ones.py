from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages.synthetic.captions import phrase
from stages.synthetic.comparisons import COMPARISONS
from stages.synthetic.drawing import draw_frames
from stages.synthetic.families import FAMILIES, GROUP_SIZE, describe_families, draw_family_scenes
from stages.synthetic.odd_ones import ODD_ONES, SAYS
from stages.synthetic.render import main
from stages.synthetic.scenes import Scene, Thing, describe, draw_scene, holds, is_unseen

_BESIDE = {"right": "y", "left": "y", "up": "x", "down": "x"}

AMOUNT: dict[str, Callable[[Thing], float]] = {
    "odd size": lambda thing: math.log(thing.radius),
    "odd time": lambda thing: thing.appears,
    "odd place": lambda thing: float(getattr(thing, _BESIDE[thing.motion])),
    "odd motion": lambda thing: float(thing.motion in ("right", "down")),
}
APART = {"odd size": 0.4, "odd time": 0.25, "odd place": 0.25, "odd motion": 1.0}
"""At least, from the usual to the odd."""


def groups(number: int, seed: int = 3) -> list[list[Scene]]:
    scenes = draw_family_scenes(seed, number * GROUP_SIZE, ["odd"])
    return [scenes[at : at + GROUP_SIZE] for at in range(0, len(scenes), GROUP_SIZE)]


def test_there_is_a_measure_for_every_oddity_and_a_video_for_each() -> None:
    (odd_ones,) = ODD_ONES.values()
    assert set(AMOUNT) == set(APART) == set(odd_ones.ranks)
    assert len(odd_ones.ranks) == GROUP_SIZE
    assert not ODD_ONES.keys() & (FAMILIES.keys() | COMPARISONS.keys())


def test_each_video_differs_from_the_rest_in_what_its_caption_says_and_in_nothing_else() -> None:
    for group in groups(20):
        assert len({(s.background, s.shade, s.things[0].shape, s.things[0].colour) for s in group}) == 1
        for oddity, amount in AMOUNT.items():
            (odd,) = (scene.things[0] for scene in group if scene.things[0].rank == oddity)
            rest = [amount(scene.things[0]) for scene in group if scene.things[0].rank != oddity]
            assert max(rest) - min(rest) < 0.05
            assert min(abs(amount(odd) - usual) for usual in rest) >= APART[oddity]


def test_a_caption_fits_one_video_of_the_whole_corpus() -> None:
    scenes = [scene for group in groups(30) for scene in group]
    statements = describe_families(scenes, ["odd"])
    for at, statement in enumerate(statements):
        assert [place for place, scene in enumerate(scenes) if holds(statement, scene)] == [at]


@pytest.mark.slow
def test_no_amount_is_odd_by_itself() -> None:
    """What the odd videos of all groups show and what the others show is distributed alike."""
    family, rng = ODD_ONES["odd"], np.random.default_rng(0)
    scene = draw_scene(rng, family.level)
    things = [variant.things[0] for _ in range(800) for variant in family.variants(scene, rng)]
    for oddity, amount in AMOUNT.items():
        odd, usual = ([amount(t) for t in things if (t.rank == oddity) is is_odd] for is_odd in (True, False))
        marks = np.linspace(min(usual), max(usual), 50)
        shares = [np.searchsorted(np.sort(values), marks) / len(values) for values in (odd, usual)]
        assert np.abs(shares[0] - shares[1]).max() < 0.09


def test_the_odd_one_differs_in_what_twelve_small_frames_show() -> None:
    for group in groups(6):
        frames = [np.stack(list(draw_frames(scene, 12, 48, 48))).astype(float) for scene in group]
        for one in range(GROUP_SIZE):
            for other in range(one):
                changed = np.abs(frames[one] - frames[other]).max(axis=-1) > 30
                assert changed.sum() > 60  # pixels of 12 frames


def test_captions_say_what_is_odd_and_what_all_of_the_group_have() -> None:
    scenes = [scene for group in groups(12) for scene in group]
    rng = np.random.default_rng(0)
    marks = {
        "odd size": ("siz",),
        "odd time": ("time", "when"),
        "odd place": ("place", "where"),
        "odd motion": ("mov",),
    }
    for scene in scenes:
        (thing,) = scene.things
        sentence = phrase(describe(scene, SAYS), rng)
        assert any(mark in sentence for mark in marks[str(thing.rank)])
        assert "  " not in sentence
        said = {word for word in sentence.split() if word in ("small", "large", "left", "right", "up", "down", "top")}
        assert not said


def test_places_in_a_group_tell_nothing_and_splits_share_no_colour_and_shape() -> None:
    for split in ("seen", "unseen"):
        scenes = draw_family_scenes(1, 240, ["odd"], split)
        for oddity in AMOUNT:
            places = Counter(at % GROUP_SIZE for at, scene in enumerate(scenes) if scene.things[0].rank == oddity)
            assert set(places) == set(range(GROUP_SIZE))
        assert {is_unseen(s.things[0].colour, s.things[0].shape) for s in scenes} == {split == "unseen"}


def test_groups_of_other_kinds_show_other_things() -> None:
    families = ["odd", "place", "size"]
    scenes = draw_family_scenes(1, 240, families)
    shown: dict[str, set[tuple[str, ...]]] = {family: set() for family in families}
    for at, scene in enumerate(scenes):
        thing = scene.things[0]
        look = (scene.background, thing.shape, thing.colour, thing.texture)
        shown[families[at // GROUP_SIZE % len(families)]].add(look)
    assert not shown["odd"] & (shown["place"] | shown["size"])
    assert not shown["place"] & shown["size"]


@pytest.mark.slow
def test_more_videos_than_captions_can_tell_apart_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(tmp_path / "odd"), "--families", "odd", "--split", "test", "--videos", "400"])
    assert stopped.value.code == 2
    assert "no 400 videos" in capsys.readouterr().err
    assert not (tmp_path / "odd").exists()
