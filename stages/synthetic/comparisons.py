"""Families in which only a comparison answers: the videos of a group differ in how much, and captions say the rank.

"The second largest red circle on a meadow" is true of one video of its group, and nothing in that video says so. How
large things are differs between groups as much as within one. The extremes need no comparison, all the same: who ranks
by size finds the largest. It is the ranks between that no score of one video alone can find.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from stages.synthetic.scenes import Attribute, Level, Scene, Thing

SAYS: frozenset[Attribute] = frozenset({"colour", "shape", "texture", "background", "motion", "rank"})


@dataclass(frozen=True, slots=True)
class Comparison:
    """One kind of group: the same thing four times, more and more of one property."""

    level: Level
    """Of the scene that a group starts from."""
    ranks: tuple[str, ...]
    """What captions call the videos of a group, from the least of the property to the most."""
    lowest: float
    highest: float
    """The range of the property over all groups; a group covers about half of it."""
    steps: tuple[float, float]
    """From one video to the next, least and most; the least can be seen in pictures of 48 x 48 pixels."""
    give: Callable[[Thing, float], Thing]
    """The thing with that much of the property."""

    def variants(self, scene: Scene, rng: np.random.Generator) -> list[Scene]:
        """A group, in random order: its place in the corpus must not tell a video's rank."""
        (thing,) = scene.things
        above = np.concatenate([[0.0], np.cumsum(rng.uniform(*self.steps, len(self.ranks) - 1))])
        amounts = rng.uniform(self.lowest, self.highest - above[-1]) + above
        group = [
            replace(scene, things=(replace(self.give(thing, float(amount)), rank=rank),))
            for rank, amount in zip(self.ranks, amounts, strict=True)
        ]
        return [group[at] for at in rng.permutation(len(group)).tolist()]


def _sized(thing: Thing, amount: float) -> Thing:
    """Nearer to the middle than it was, so that the largest is seen whole."""
    return replace(thing, radius=math.exp(amount), x=(thing.x + 0.5) / 2, y=(thing.y + 0.5) / 2)


def _moving(thing: Thing, amount: float) -> Thing:
    """How far it goes in the whole video is how fast it is; the middle of its path is the picture's."""
    return replace(thing, reach=math.exp(amount), radius=min(thing.radius, 0.14))


def _appearing(thing: Thing, amount: float) -> Thing:
    return replace(thing, appears=amount)


_TEXTURED = 0.5
"""Striped and dotted ones are things of their own: more groups that captions tell apart."""

COMPARISONS: dict[str, Comparison] = {
    "size": Comparison(
        Level((1,), ("still",), 0.0, _TEXTURED, SAYS),
        ("smallest", "second smallest", "second largest", "largest"),
        math.log(0.085),
        math.log(0.32),
        (0.17, 0.26),
        _sized,
    ),
    "speed": Comparison(
        Level((1,), ("right", "left", "up", "down"), 0.0, _TEXTURED, SAYS),
        ("slowest", "second slowest", "second fastest", "fastest"),
        math.log(0.06),
        math.log(0.36),
        (0.22, 0.34),
        _moving,
    ),
    "arrival": Comparison(
        Level((1,), ("still",), 0.0, _TEXTURED, SAYS),
        ("first", "second", "third", "last"),
        0.0,
        0.84,
        (0.09, 0.14),
        _appearing,
    ),
}
"""size: log of the radius; speed: log of the reach; arrival: when in the video the thing comes, to stay."""
