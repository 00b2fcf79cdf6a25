"""Families in which a caption says what sets a video apart from those like it: it alone has another size, time ...

"The red star on a meadow that is of another size than the rest" is true of one video of its group. Nothing in that
video says so: each of the group is the odd one in something, and what is odd in one group is usual in the next. A score
of one video alone finds the group and then guesses; who sees the others finds the odd one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from stages.synthetic.scenes import OPPOSITES, Attribute, Level, Scene, Thing, draw_tint

SAYS: frozenset[Attribute] = frozenset({"colour", "shape", "background", "rank"})
"""What all videos of a group have in common, and what is odd about one."""

_JITTER = 0.015
"""Of places, in fractions of the side: the videos of a group that are alike are not the same."""


@dataclass(frozen=True, slots=True)
class OddOnes:
    """One kind of group: of the same things, each differs from all others in one property of its own."""

    level: Level
    """Of the scene that a group starts from."""
    ranks: tuple[str, ...]
    """What captions call the videos of a group."""

    def variants(self, scene: Scene, rng: np.random.Generator) -> list[Scene]:
        """A group, in random order."""
        (thing,) = scene.things
        usual, odd = {}, {}
        for oddity in self.ranks:
            values = _DRAWS[oddity](scene, rng)
            usual[oddity], odd[oddity] = (values[at] for at in rng.permutation(2).tolist())
        group = []
        for one in self.ranks:
            chosen = thing
            for oddity in self.ranks:
                chosen = (odd if oddity == one else usual)[oddity](chosen)
            tint = draw_tint(rng, chosen.colour)
            x, y = (float(at + rng.uniform(-_JITTER, _JITTER)) for at in (chosen.x, chosen.y))
            group.append(replace(scene, things=(replace(chosen, tint=tint, x=x, y=y, rank=one),)))
        return [group[at] for at in rng.permutation(len(group)).tolist()]


Give = Callable[[Thing], Thing]


def _sizes(scene: Scene, rng: np.random.Generator) -> tuple[Give, Give]:
    low, high = _apart(rng, math.log(0.12), math.log(0.3), 0.5)
    return (lambda thing: replace(thing, radius=math.exp(low))), (lambda thing: replace(thing, radius=math.exp(high)))


def _times(scene: Scene, rng: np.random.Generator) -> tuple[Give, Give]:
    low, high = _apart(rng, 0.0, 0.6, 0.3)
    return (lambda thing: replace(thing, appears=low)), (lambda thing: replace(thing, appears=high))


def _places(scene: Scene, rng: np.random.Generator) -> tuple[Give, Give]:
    """Beside the path of the thing, so that how it moves stays as it is."""
    (thing,) = scene.things
    low, high = _apart(rng, 0.22, 0.78, 0.35)
    if thing.motion in ("up", "down"):
        return (lambda thing: replace(thing, x=low)), (lambda thing: replace(thing, x=high))
    return (lambda thing: replace(thing, y=low)), (lambda thing: replace(thing, y=high))


def _motions(scene: Scene, rng: np.random.Generator) -> tuple[Give, Give]:
    (thing,) = scene.things
    other = OPPOSITES[thing.motion]
    return (lambda thing: thing), (lambda thing: replace(thing, motion=other))


def _apart(rng: np.random.Generator, lowest: float, highest: float, least: float) -> tuple[float, float]:
    """Two amounts in this range, at least so far from each other."""
    low = float(rng.uniform(lowest, highest - least))
    return low, float(rng.uniform(low + least, highest))


_DRAWS: dict[str, Callable[[Scene, np.random.Generator], tuple[Give, Give]]] = {
    "odd size": _sizes,
    "odd time": _times,
    "odd place": _places,
    "odd motion": _motions,
}
"""Oddity -> two values of the property; chance says which of them is usual in the group, so neither tells."""

ODD_ONES: dict[str, OddOnes] = {
    "odd": OddOnes(Level((1,), ("right", "left", "up", "down"), 0.0, 0.0, SAYS), tuple(_DRAWS)),
}
