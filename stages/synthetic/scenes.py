"""What happens in a rendered video, and which statements are true of it.

A ``Scene`` is all that the renderer needs to draw; a ``Statement`` is what a sentence claims. ``holds`` decides whether
a statement is true of a scene, so that captions can be made coarser without becoming true of a wrong video by accident.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (250, 135, 20),
    "yellow": (245, 225, 40),
    "green": (35, 165, 60),
    "turquoise": (50, 215, 205),
    "blue": (35, 80, 225),
    "purple": (135, 45, 175),
    "pink": (255, 135, 190),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
"""sRGB of every colour a thing can have."""

SHAPES: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "cross",
    "ring",
    "diamond",
    "crescent",
    "rectangle",
)
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted")

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "white": ("white", "yellow"),
    "black": ("black", "purple"),
    "grey": (),
    "navy": ("black", "blue", "purple"),
    "beige": ("white", "yellow"),
    "meadow": ("green", "turquoise", "black"),
    "checkerboard": ("black", "white"),
    "curtain": ("red", "black", "purple"),
    "sunset": ("orange", "red", "pink", "purple"),
    "starry": ("black", "purple"),
}
"""Every background, with the colours that would not stand out in front of it."""

MOTIONS: tuple[str, ...] = (
    "still",
    "right",
    "left",
    "up",
    "down",
    "circling",
    "bouncing",
    "spinning",
    "growing",
    "shrinking",
    "blinking",
)
PLACES: tuple[str, ...] = (
    "left",
    "right",
    "top",
    "bottom",
    "middle",
    "top left",
    "top right",
    "bottom left",
    "bottom right",
)
_SWEEPS_ACROSS = frozenset({"right", "left", "circling"})
_SWEEPS_ALONG = frozenset({"up", "down", "bouncing", "circling"})
OPPOSITES = {
    "right": "left",
    "left": "right",
    "up": "down",
    "down": "up",
    "growing": "shrinking",
    "shrinking": "growing",
}
"""Motions that a mean over frames cannot tell apart: each the other one backwards."""
_STAYS = frozenset({"still", "spinning", "growing", "shrinking", "blinking"})
_ROUND = frozenset({"circle", "ring"})
"""Shapes that nobody can see spin."""

Attribute = Literal["colour", "shape", "size", "texture", "motion", "place", "background", "order", "rank"]
Detail = Literal["colour", "shape", "background", "texture", "swap", "order", "direction"]
"""What similar scenes differ in. swap: who has which colour; order: what comes first; direction: opposite movement."""
Combinations = Literal["any", "seen", "unseen"]
"""Which colour-shape pairs may occur: any; only those that training may see; at least one that training never sees."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape that moves. Lengths are fractions of the side of the square in the middle of the picture."""

    shape: str
    colour: str
    texture: str
    motion: str
    radius: float
    x: float
    """Middle of its path, 0 = left, 1 = right."""
    y: float
    """Middle of its path, 0 = top, 1 = bottom."""
    reach: float
    """How far a moving thing goes from the middle of its path."""
    appears: float
    """When it comes, as a fraction of the duration."""
    leaves: float
    tint: tuple[int, int, int]
    """The very sRGB it is drawn in: its colour, a little varied."""
    angle: float
    """How it is turned at the start, radians."""
    rank: str | None = None
    """Such as ``second largest`` among its near-duplicates; None where it has none, or they do not differ so."""

    @property
    def size(self) -> str | None:
        """``small``, ``large``, or None for what is between or changes, which captions do not mention."""
        if self.motion in ("growing", "shrinking"):
            return None
        if self.radius < 0.145:
            return "small"
        return "large" if self.radius > 0.235 else None

    @property
    def place(self) -> str | None:
        """Such as ``left`` or ``top right``; None when it moves about."""
        if self.motion not in _STAYS:
            return None
        across = "left" if self.x < 0.4 else "right" if self.x > 0.6 else ""
        along = "top" if self.y < 0.4 else "bottom" if self.y > 0.6 else ""
        return f"{along} {across}".strip() or "middle"


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that can be seen in one video."""

    things: tuple[Thing, ...]
    """In order of appearance."""
    background: str
    shade: tuple[int, int, int]
    """Added to the background's sRGB, so that no two greys are quite the same."""

    @property
    def is_sequence(self) -> bool:
        """True when one thing leaves before the next one comes."""
        return len(self.things) > 1 and self.things[0].leaves <= self.things[1].appears


@dataclass(frozen=True, slots=True)
class Claim:
    """What a sentence says about one thing; None where it says nothing."""

    shape: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None
    motion: str | None = None
    place: str | None = None
    rank: str | None = None

    def holds(self, thing: Thing) -> bool:
        """True if nothing that is claimed is wrong for ``thing``."""
        return (
            self.shape in (None, thing.shape)
            and self.colour in (None, thing.colour)
            and self.texture in (None, thing.texture)
            and self.size in (None, thing.size)
            and self.motion in (None, thing.motion)
            and self.place in (None, thing.place)
            and self.rank in (None, thing.rank)
        )


@dataclass(frozen=True, slots=True)
class Statement:
    """What a sentence says about a video."""

    claims: tuple[Claim, ...]
    background: str | None = None
    in_order: bool = False
    """True: the claimed things come one after another, in this order."""


def holds(statement: Statement, scene: Scene) -> bool:
    """True if the statement is true of the scene: different things of it can take the parts of the claims."""
    if statement.background not in (None, scene.background):
        return False
    if statement.in_order and not scene.is_sequence:
        return False
    num_claims = len(statement.claims)
    for chosen in permutations(range(len(scene.things)), num_claims):
        if statement.in_order and list(chosen) != sorted(chosen):
            continue
        if all(claim.holds(scene.things[i]) for claim, i in zip(statement.claims, chosen, strict=True)):
            return True
    return False


def count_wrong(statement: Statement, scene: Scene) -> int:
    """How many details of the statement are wrong for the scene, when its things take the parts of the claims at best.

    0 exactly where ``holds`` is true. A claim without a thing is wrong in all its details; a wrong order counts as one.
    """
    things: list[Thing | None] = [*scene.things, *[None] * len(statement.claims)]
    best = min(
        sum(_count_wrong(claim, thing) for claim, thing in zip(statement.claims, chosen, strict=True))
        for chosen in permutations(things, len(statement.claims))
    )
    best += statement.background not in (None, scene.background)
    return max(best, int(not holds(statement, scene)))


def _count_wrong(claim: Claim, thing: Thing | None) -> int:
    names = ("shape", "colour", "texture", "size", "motion", "place", "rank")
    claimed = [name for name in names if getattr(claim, name) is not None]
    return sum(thing is None or getattr(claim, name) != getattr(thing, name) for name in claimed)


@dataclass(frozen=True, slots=True)
class Level:
    """How difficult the videos of a corpus are, and what their captions may mention."""

    num_things: tuple[int, ...]
    """Each equally likely."""
    motions: tuple[str, ...]
    sequences: float
    """Share of the videos with several things in which they come one after another."""
    textured: float
    """Share of the things that are striped or dotted."""
    says: frozenset[Attribute]


_LOOKS: frozenset[Attribute] = frozenset({"colour", "shape", "size", "texture", "background"})

LEVELS: dict[str, Level] = {
    "single": Level((1,), ("still", "right", "left", "up", "down", "circling"), 0.0, 0.0, _LOOKS),
    "pair": Level((2,), ("still", "spinning"), 0.0, 0.2, _LOOKS | {"place"}),
    "motion": Level((1, 2), MOTIONS, 0.0, 0.2, _LOOKS | {"motion"}),
    "order": Level((2,), MOTIONS, 1.0, 0.2, _LOOKS | {"order"}),
    "crowd": Level((3,), ("still", "spinning", "blinking"), 0.0, 0.2, _LOOKS | {"place"}),
    "mixed": Level((1, 1, 2, 2, 2), MOTIONS, 0.25, 0.25, _LOOKS | {"motion", "place", "order"}),
}
"""From one thing in front of a background to everything at once."""

_LAYOUTS: dict[int, tuple[tuple[tuple[float, float, float, float], ...], ...]] = {
    1: (((0.5, 0.5, 0.28, 0.28),),),
    2: (
        ((0.27, 0.5, 0.0, 0.26), (0.73, 0.5, 0.0, 0.26)),
        ((0.5, 0.27, 0.26, 0.0), (0.5, 0.73, 0.26, 0.0)),
    ),
    3: (
        ((0.25, 0.27, 0.0, 0.0), (0.75, 0.27, 0.0, 0.0), (0.5, 0.74, 0.0, 0.0)),
        ((0.5, 0.26, 0.0, 0.0), (0.25, 0.73, 0.0, 0.0), (0.75, 0.73, 0.0, 0.0)),
    ),
    4: (((0.27, 0.27, 0.0, 0.0), (0.73, 0.27, 0.0, 0.0), (0.27, 0.73, 0.0, 0.0), (0.73, 0.73, 0.0, 0.0)),),
}
"""Number of things seen together -> layouts; of each thing the middle of its path, and its reach across and along."""


def is_unseen(colour: str, shape: str) -> bool:
    """True for the colour-shape pairs kept from training: one shape of every colour, one colour of every shape."""
    return (tuple(COLOURS).index(colour) + 3 * SHAPES.index(shape)) % 10 == 0


def draw_scene(rng: np.random.Generator, level: Level, combinations: Combinations = "any") -> Scene:
    """One scene of that level at random; no two things in it have both colour and shape in common."""
    count = int(rng.choice(level.num_things))
    background = str(rng.choice(tuple(BACKGROUNDS)))
    pairs = _draw_pairs(rng, count, background, combinations)
    sequence = count > 1 and bool(rng.random() < level.sequences)
    slots = [_LAYOUTS[1][0][0]] * count if sequence else _draw_layout(rng, count)
    things = []
    for i, ((colour, shape), slot) in enumerate(zip(pairs, slots, strict=True)):
        times = (i / count, (i + 1) / count) if sequence else (0.0, 1.0)
        things.append(
            _draw_thing(rng, level, colour, shape, slot, times, alone=sequence or count == 1, crowded=count > 2)
        )
    shade = (int(rng.integers(-10, 11)), int(rng.integers(-10, 11)), int(rng.integers(-10, 11)))
    return Scene(tuple(things), background, shade)


def _draw_pairs(
    rng: np.random.Generator, count: int, background: str, combinations: Combinations
) -> list[tuple[str, str]]:
    """Colour and shape of each thing, all different."""
    visible = [c for c in COLOURS if c not in BACKGROUNDS[background]]
    pairs = [(c, s) for c in visible for s in SHAPES]
    seen = [pair for pair in pairs if not is_unseen(*pair)]
    pool = seen if combinations == "seen" else pairs
    chosen = [pool[i] for i in rng.choice(len(pool), size=count, replace=False)]
    if combinations == "unseen" and not any(is_unseen(*pair) for pair in chosen):
        unseen = [pair for pair in pairs if is_unseen(*pair)]
        chosen[int(rng.integers(count))] = unseen[int(rng.integers(len(unseen)))]
    return chosen


def _draw_layout(rng: np.random.Generator, count: int) -> list[tuple[float, float, float, float]]:
    """Slots for things seen together, in random order."""
    layouts = _LAYOUTS[count]
    slots = layouts[int(rng.integers(len(layouts)))]
    return [slots[i] for i in rng.permutation(count)]


def _draw_thing(
    rng: np.random.Generator,
    level: Level,
    colour: str,
    shape: str,
    slot: tuple[float, float, float, float],
    times: tuple[float, float],
    alone: bool,
    crowded: bool,
) -> Thing:
    """A thing with size, texture, motion and place at random, within its slot."""
    x, y, across, along = slot
    possible = [
        m
        for m in level.motions
        if (across or m not in _SWEEPS_ACROSS)
        and (along or m not in _SWEEPS_ALONG)
        and not (m == "spinning" and shape in _ROUND)
    ]
    motion = str(rng.choice(possible))
    if alone and motion in _STAYS:
        x, y = (float(rng.choice((0.27, 0.5, 0.73))) for _ in range(2))
    sizes = ((0.12, 0.14), (0.165, 0.205), (0.24, 0.27))
    low, high = sizes[int(rng.choice(3 if not crowded else 2, p=(0.25, 0.5, 0.25) if not crowded else (0.4, 0.6)))]
    return Thing(
        shape=shape,
        colour=colour,
        texture=str(rng.choice(("striped", "dotted"))) if rng.random() < level.textured else "plain",
        motion=motion,
        radius=float(rng.uniform(low, high)),
        x=x + float(rng.uniform(-0.03, 0.03)),
        y=y + float(rng.uniform(-0.03, 0.03)),
        reach=max(across, along),
        appears=times[0],
        leaves=times[1],
        tint=draw_tint(rng, colour),
        angle=float(rng.uniform(-0.12, 0.12)),
    )


def draw_tint(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    """The colour's sRGB, each channel varied by up to 14."""
    red, green, blue = (int(np.clip(c + rng.integers(-14, 15), 0, 255)) for c in COLOURS[colour])
    return red, green, blue


def describe(scene: Scene, says: frozenset[Attribute]) -> Statement:
    """All that a caption which mentions these attributes can say about the scene."""
    claims = tuple(
        Claim(
            shape=thing.shape if "shape" in says else None,
            colour=thing.colour if "colour" in says else None,
            texture=thing.texture if "texture" in says and thing.texture != "plain" else None,
            size=thing.size if "size" in says else None,
            motion=thing.motion if "motion" in says and thing.motion != "still" else None,
            place=thing.place if "place" in says else None,
            rank=thing.rank if "rank" in says else None,
        )
        for thing in scene.things
    )
    background = scene.background if "background" in says else None
    return Statement(claims, background, in_order="order" in says and scene.is_sequence)


def loosen(statement: Statement, rng: np.random.Generator, keep: float = 0.75) -> Statement:
    """A statement that follows from ``statement``: details are left out at random, each kept with probability ``keep``.

    Colour and shape go more rarely than the rest, and never both; one of several things may go as a whole.
    """
    claims = list(statement.claims)
    if len(claims) > 1 and rng.random() > 0.5 + keep / 2:
        del claims[int(rng.integers(len(claims)))]
    loose = tuple(_loosen_claim(claim, rng, keep) for claim in claims)
    background = statement.background if rng.random() < keep else None
    return Statement(loose, background, statement.in_order and len(loose) > 1)


def _loosen_claim(claim: Claim, rng: np.random.Generator, keep: float) -> Claim:
    details = {name: getattr(claim, name) for name in ("texture", "size", "motion", "place")}
    kept = {name: value if rng.random() < keep else None for name, value in details.items()}
    dropped = rng.random()
    return replace(
        claim,
        **kept,
        colour=None if claim.shape and dropped < (1 - keep) / 4 else claim.colour,
        shape=None if claim.colour and dropped > 1 - (1 - keep) / 4 else claim.shape,
    )


def vary(
    scene: Scene,
    rng: np.random.Generator,
    level: Level,
    combinations: Combinations = "any",
    details: Iterable[Detail] | None = None,
) -> Scene:
    """A hard negative: a scene that differs in one of ``details``, by default all that the level talks about.

    Raises ValueError when none of them can be changed.
    """
    possible = [detail for detail in details_of(level) if details is None or detail in details]
    for _ in range(1000):
        changed = change(scene, possible[int(rng.integers(len(possible)))], rng)
        if changed != scene and is_allowed(changed, combinations):
            return changed
    raise ValueError(f"nothing among {', '.join(possible)} can be changed in {scene}")


def details_of(level: Level) -> tuple[Detail, ...]:
    """The details in which scenes of that level can differ so that captions tell them apart."""
    details: list[Detail] = ["colour", "shape", "background"]
    if max(level.num_things) > 1:
        details.append("swap")
    if level.textured:
        details.append("texture")
    if level.sequences and "order" in level.says:
        details.append("order")
    if "motion" in level.says:
        details.append("direction")
    return tuple(details)


def change(scene: Scene, kind: Detail, rng: np.random.Generator) -> Scene:
    """``scene`` with one detail of that kind drawn anew; the same scene where it has none, or chance wills it."""
    things = list(scene.things)
    i = int(rng.integers(len(things)))
    if kind == "background":
        return replace(scene, background=str(rng.choice(tuple(BACKGROUNDS))))
    if kind == "colour":
        colour = str(rng.choice(tuple(COLOURS)))
        if colour != things[i].colour:
            things[i] = replace(things[i], colour=colour, tint=draw_tint(rng, colour))
    elif kind == "shape":
        things[i] = replace(things[i], shape=str(rng.choice(SHAPES)))
    elif kind == "texture":
        things[i] = replace(things[i], texture=str(rng.choice(TEXTURES)))
    elif kind == "direction":
        things[i] = replace(things[i], motion=OPPOSITES.get(things[i].motion, things[i].motion))
    elif len(things) < 2:
        return scene
    elif kind == "swap" and things[0].colour != things[1].colour:
        a, b = things[0], things[1]
        things[0] = replace(a, colour=b.colour, tint=b.tint)
        things[1] = replace(b, colour=a.colour, tint=a.tint)
    elif kind == "order" and scene.is_sequence:
        a, b = things[0], things[1]
        things[0] = replace(b, appears=a.appears, leaves=a.leaves)
        things[1] = replace(a, appears=b.appears, leaves=b.leaves)
    return replace(scene, things=tuple(things))


def is_allowed(scene: Scene, combinations: Combinations) -> bool:
    """Nothing that cannot be seen, no two things alike in colour and shape, no pair that the split forbids."""
    if any(thing.motion == "spinning" and thing.shape in _ROUND for thing in scene.things):
        return False
    pairs = [(thing.colour, thing.shape) for thing in scene.things]
    if len(set(pairs)) < len(pairs) or any(colour in BACKGROUNDS[scene.background] for colour, _ in pairs):
        return False
    unseen = [is_unseen(*pair) for pair in pairs]
    return {"any": True, "seen": not any(unseen), "unseen": any(unseen)}[combinations]
