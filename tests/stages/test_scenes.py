"""Scenes, statements about them, and the sentences that say them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stages.synthetic.captions import phrase
from stages.synthetic.scenes import (
    BACKGROUNDS,
    COLOURS,
    LEVELS,
    SHAPES,
    Claim,
    Scene,
    Statement,
    Thing,
    change,
    count_wrong,
    describe,
    details_of,
    draw_scene,
    holds,
    is_unseen,
    loosen,
    vary,
)


def thing(shape: str, colour: str, **changes: object) -> Thing:
    plain = Thing(shape, colour, "plain", "still", 0.18, 0.5, 0.5, 0.0, 0.0, 1.0, COLOURS[colour], 0.0)
    return replace(plain, **changes)  # type: ignore[arg-type]


RED_CIRCLE, BLUE_STAR = Claim("circle", "red"), Claim("star", "blue")
BOTH = Scene((thing("circle", "red", x=0.2), thing("star", "blue", x=0.8)), "white", (0, 0, 0))
IN_TURN = Scene((thing("circle", "red", leaves=0.5), thing("star", "blue", appears=0.5)), "white", (0, 0, 0))


@pytest.mark.parametrize(
    ("statement", "scene", "expected"),
    [
        (Statement((RED_CIRCLE,)), BOTH, True),
        (Statement((BLUE_STAR, RED_CIRCLE), "white"), BOTH, True),
        (Statement((RED_CIRCLE,), "black"), BOTH, False),
        (Statement((Claim("circle", "blue"),)), BOTH, False),
        (Statement((RED_CIRCLE, RED_CIRCLE)), BOTH, False),
        (Statement((Claim("circle", place="left"), Claim(colour="blue"))), BOTH, True),
        (Statement((Claim("circle", place="right"),)), BOTH, False),
        (Statement((RED_CIRCLE, BLUE_STAR), in_order=True), IN_TURN, True),
        (Statement((BLUE_STAR, RED_CIRCLE), in_order=True), IN_TURN, False),
        (Statement((RED_CIRCLE, BLUE_STAR), in_order=True), BOTH, False),
    ],
)
def test_a_statement_holds_when_different_things_can_take_its_parts(
    statement: Statement, scene: Scene, expected: bool
) -> None:
    assert holds(statement, scene) is expected
    assert (count_wrong(statement, scene) == 0) is expected


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (Statement((RED_CIRCLE, BLUE_STAR), "black"), 1),
        (Statement((Claim("circle", "blue"), Claim("star", "red"))), 2),
        (Statement((Claim("ring", "green"),), "black"), 3),
        (Statement((Claim("ring"), RED_CIRCLE, BLUE_STAR)), 1),
        (Statement((RED_CIRCLE, BLUE_STAR), in_order=True), 1),
    ],
)
def test_wrong_details_are_counted_with_the_best_cast(statement: Statement, expected: int) -> None:
    assert count_wrong(statement, BOTH) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LEVELS))
def test_what_is_said_and_what_follows_from_it_is_true(name: str) -> None:
    rng, level = np.random.default_rng(11), LEVELS[name]
    for _ in range(200):
        scene = draw_scene(rng, level)
        statement = describe(scene, level.says)
        assert holds(statement, scene)
        assert holds(loosen(statement, rng, 0.5), scene)
        assert len(scene.things) in level.num_things
        assert all(t.colour not in BACKGROUNDS[scene.background] for t in scene.things)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LEVELS))
def test_a_variation_makes_the_caption_wrong(name: str) -> None:
    rng, level = np.random.default_rng(12), LEVELS[name]
    wrong = 0
    for _ in range(200):
        scene = draw_scene(rng, level, "seen")
        other = vary(scene, rng, level, "seen")
        assert other != scene
        assert not any(is_unseen(t.colour, t.shape) for t in other.things)
        wrong += not holds(describe(scene, level.says), other)
    # A plain thing that becomes striped leaves the caption true, as a plain texture is not mentioned.
    assert wrong > (200 if "texture" not in details_of(level) else 150) - 1


def test_changes_of_order_direction_and_owner_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    reversed_scene = change(IN_TURN, "order", rng)
    assert holds(Statement((BLUE_STAR, RED_CIRCLE), in_order=True), reversed_scene)
    swapped = change(BOTH, "swap", rng)
    assert holds(Statement((Claim("circle", "blue"), Claim("star", "red"))), swapped)
    moving = replace(BOTH, things=(thing("circle", "red", motion="right"),))
    assert change(moving, "direction", rng).things[0].motion == "left"
    assert change(BOTH, "order", rng) == BOTH


def test_every_colour_and_every_shape_has_one_partner_kept_from_training() -> None:
    unseen = [(colour, shape) for colour in COLOURS for shape in SHAPES if is_unseen(colour, shape)]
    assert {colour for colour, _ in unseen} == set(COLOURS)
    assert {shape for _, shape in unseen} == set(SHAPES)
    assert len(unseen) == 10


@pytest.mark.slow
@pytest.mark.parametrize(("combinations", "expected"), [("seen", False), ("unseen", True)])
def test_splits_keep_their_colour_shape_pairs(combinations: str, expected: bool) -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        scene = draw_scene(rng, LEVELS["mixed"], combinations)  # type: ignore[arg-type]
        assert any(is_unseen(t.colour, t.shape) for t in scene.things) is expected


def test_captions_mention_everything_and_vary() -> None:
    statement = Statement((Claim("triangle", "red", "striped", "small", "growing"),), "grey")
    captions = {phrase(statement, np.random.default_rng(seed)) for seed in range(50)}
    assert len(captions) > 20
    for caption in captions:
        assert {"red", "striped", "triangle"} <= set(caption.split())
        assert "grey" in caption or "gray" in caption
        assert any(word in caption for word in ("grow", "bigger"))
        assert any(word in caption for word in ("small", "little", "tiny"))


def test_the_order_of_events_is_told_whichever_comes_first_in_the_sentence() -> None:
    statement = Statement((Claim("ring", "red"), Claim("heart", "blue")), in_order=True)
    for seed in range(50):
        caption = phrase(statement, np.random.default_rng(seed))
        ring, heart = min(i for w in ("ring", "donut") if (i := caption.find(w)) >= 0), caption.find("heart")
        assert (heart < ring) == (" after a" in caption and "and after that" not in caption)
