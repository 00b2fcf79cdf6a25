"""Families of near-duplicates: the fine-grained benchmark, in which a caption and its neighbours differ in one detail.

The videos of a group show the same things in front of the same background. What sets them apart is where a thing is,
how it moves, what comes first, or which of two has which colour: details that a mean over frames hardly holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stages.synthetic.comparisons import COMPARISONS, Comparison
from stages.synthetic.odd_ones import ODD_ONES, OddOnes
from stages.synthetic.scenes import (
    OPPOSITES,
    Attribute,
    Combinations,
    Level,
    Scene,
    Statement,
    describe,
    draw_scene,
    holds,
    is_allowed,
)

GROUP_SIZE = 4
"""Videos that differ from each other in the detail of their family only."""

SAYS: frozenset[Attribute] = frozenset({"colour", "shape", "background", "motion", "place", "order"})

_GIVE_UP = 100
"""Groups in a row that say nothing new."""

_DIRECTIONS = tuple(OPPOSITES)
_GRID = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of group."""

    level: Level
    """Of the scene that a group starts from."""
    variants: Callable[[Scene, np.random.Generator], list[Scene]]
    """That scene -> the scenes of the group, itself among them or not."""


def _places(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    (thing,) = scene.things
    chosen = rng.choice(len(_GRID) ** 2, GROUP_SIZE, replace=False)
    return [replace(scene, things=(replace(thing, x=_GRID[at % 3], y=_GRID[at // 3]),)) for at in chosen.tolist()]


def _directions(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    (thing,) = scene.things
    chosen = rng.choice(_DIRECTIONS, GROUP_SIZE, replace=False)
    return [replace(scene, things=(replace(thing, motion=str(motion)),)) for motion in chosen]


def _orders(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    return [scene, reorder(scene), recolour(scene), reorder(recolour(scene))]


def _swaps(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    return [scene, mirror(scene), recolour(scene), mirror(recolour(scene))]


def _duets(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    return [scene, turn(scene, 0), turn(scene, 1), turn(turn(scene, 0), 1)]


def _parades(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    turned = turn(scene, int(rng.integers(2)))
    return [scene, reorder(scene), turned, reorder(turned)]


def turn(scene: Scene, which: int) -> Scene:
    """One thing moves the opposite way."""
    things = list(scene.things)
    things[which] = replace(things[which], motion=OPPOSITES[things[which].motion])
    return replace(scene, things=tuple(things))


def reorder(scene: Scene) -> Scene:
    """The second of two things comes first."""
    first, second = scene.things
    return replace(
        scene,
        things=(
            replace(second, appears=first.appears, leaves=first.leaves),
            replace(first, appears=second.appears, leaves=second.leaves),
        ),
    )


def recolour(scene: Scene) -> Scene:
    """Two things exchange colours."""
    first, second = scene.things
    return replace(
        scene,
        things=(
            replace(first, colour=second.colour, tint=second.tint),
            replace(second, colour=first.colour, tint=first.tint),
        ),
    )


def mirror(scene: Scene) -> Scene:
    """Two things exchange places."""
    first, second = scene.things
    return replace(scene, things=(replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)))


FAMILIES: dict[str, Family] = {
    "place": Family(Level((1,), ("still",), 0.0, 0.0, SAYS), _places),
    "direction": Family(Level((1,), ("right", "left", "up", "down"), 0.0, 0.0, SAYS), _directions),
    "order": Family(Level((2,), ("still",), 1.0, 0.0, SAYS), _orders),
    "swap": Family(Level((2,), ("still",), 0.0, 0.0, SAYS), _swaps),
    "duet": Family(Level((2,), _DIRECTIONS, 0.0, 0.0, SAYS), _duets),
    "parade": Family(Level((2,), _DIRECTIONS, 1.0, 0.0, SAYS), _parades),
}
"""From one thing that is somewhere to two that move, one after the other. duet: both at once; parade: in turn."""

RELATIVE: dict[str, Comparison | OddOnes] = COMPARISONS | ODD_ONES
"""Asked for by name: their captions are true within a group only, and no video alone shows that they are."""

KNOWN: dict[str, Family | Comparison | OddOnes] = FAMILIES | RELATIVE
"""All there are."""


def draw_family_scenes(
    seed: int, num_videos: int, families: Sequence[str] = tuple(FAMILIES), combinations: Combinations = "any"
) -> list[Scene]:
    """Scenes in groups of GROUP_SIZE, families in turn; every full description is true of one scene only.

    Group g is ``scenes[g * GROUP_SIZE :][:GROUP_SIZE]`` and of family ``families[g % len(families)]``; the last group
    may be cut. With ``combinations`` "unseen" every group has a colour-shape pair that training never sees. What groups
    of a relative family show no group of another kind shows in front of the same background. Raises ValueError when the
    families have not that many different scenes.
    """
    rng = np.random.default_rng([seed, num_videos, len(families), 5])
    scenes: list[Scene] = []
    stated: set[tuple[object, ...]] = set()
    shown: dict[type, set[tuple[str, ...]]] = {kind: set() for kind in (Family, Comparison, OddOnes)}
    rejected = 0
    while len(scenes) < num_videos:
        family = KNOWN[families[len(scenes) // GROUP_SIZE % len(families)]]
        group = family.variants(draw_scene(rng, family.level, combinations), rng)
        allowed = all(is_allowed(scene, "seen" if combinations == "seen" else "any") for scene in group)
        meanings = {_meaning(describe(scene, family.level.says)) for scene in group}
        looks = {look for scene in group for look in _looks(scene)}
        kind = type(family)
        is_new = not meanings & stated and not any(
            looks & others for other, others in shown.items() if other is not kind or kind is Comparison
        )
        if allowed and is_new and _are_told_apart(group, family.level.says):
            scenes += group
            stated |= meanings
            shown[kind] |= looks
            rejected = 0
            continue
        rejected += 1
        if rejected == _GIVE_UP:
            raise ValueError(f"these families have no {num_videos} videos that captions can tell apart; ask for fewer")
    return scenes[:num_videos]


def _are_told_apart(group: Sequence[Scene], says: frozenset[Attribute]) -> bool:
    """True if what can be said about each scene is true of no other one in the group."""
    said = [describe(scene, says) for scene in group]
    return all(holds(one, scene) == (at == own) for own, one in enumerate(said) for at, scene in enumerate(group))


def _meaning(statement: Statement) -> tuple[object, ...]:
    """The same for two statements that say the same of two things, whichever they name first."""
    claims = statement.claims if statement.in_order else tuple(sorted(statement.claims, key=repr))
    return statement.background, statement.in_order, claims


def _looks(scene: Scene) -> set[tuple[str, ...]]:
    return {(scene.background, thing.shape, thing.colour, thing.texture) for thing in scene.things}


def describe_families(scenes: Sequence[Scene], families: Sequence[str] = tuple(FAMILIES)) -> list[Statement]:
    """All that may be said about each scene of ``draw_family_scenes``."""
    return [describe(scene, KNOWN[family_of(at, families)].level.says) for at, scene in enumerate(scenes)]


def family_of(place: int, families: Sequence[str] = tuple(FAMILIES)) -> str:
    """The family of the scene at this place of ``draw_family_scenes``."""
    return families[place // GROUP_SIZE % len(families)]
