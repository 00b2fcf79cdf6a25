"""Statements about a scene as English sentences, with paraphrases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stages.synthetic.scenes import Claim, Statement

_SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "ball", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "cross", "plus sign"),
    "ring": ("ring", "ring", "donut"),
    "diamond": ("diamond",),
    "crescent": ("crescent", "crescent moon"),
    "rectangle": ("rectangle", "bar"),
}
_COLOURS: dict[str, tuple[str, ...]] = {"turquoise": ("turquoise", "cyan"), "purple": ("purple", "purple", "violet")}
_TEXTURES: dict[str, tuple[str, ...]] = {"striped": ("striped",), "dotted": ("dotted", "spotted")}
_SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "little", "tiny"),
    "large": ("large", "large", "big", "huge"),
}
_BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "white": ("on a white background", "on white", "in front of a white wall"),
    "black": ("on a black background", "on black", "in the dark"),
    "grey": ("on a grey background", "on a gray background", "in front of a grey wall"),
    "navy": ("on a dark blue background", "on navy blue", "in front of a dark blue wall"),
    "beige": ("on a beige background", "on sand", "on a sandy background"),
    "meadow": ("on a meadow", "on green grass", "over a grassy field"),
    "checkerboard": ("on a checkerboard", "over a checkered floor", "on a chessboard pattern"),
    "curtain": ("in front of a red curtain", "before red curtains", "on a stage with a red curtain"),
    "sunset": ("at sunset", "in front of a sunset sky", "under an orange and purple sky"),
    "starry": ("under a starry sky", "at night among the stars", "in a starry night"),
}
_MOTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "right": (("moves to the right", "moving to the right"), ("goes from left to right", "going from left to right")),
    "left": (("moves to the left", "moving to the left"), ("goes from right to left", "going from right to left")),
    "up": (("moves up", "moving up"), ("rises", "rising"), ("goes upwards", "going upwards")),
    "down": (("moves down", "moving down"), ("falls", "falling"), ("sinks", "sinking")),
    "circling": (("moves in a circle", "moving in a circle"), ("goes round and round", "going round and round")),
    "bouncing": (("bounces", "bouncing"), ("bounces up and down", "bouncing up and down")),
    "spinning": (("spins", "spinning"), ("turns around itself", "turning around itself")),
    "growing": (("grows", "growing"), ("gets bigger", "getting bigger")),
    "shrinking": (("shrinks", "shrinking"), ("gets smaller", "getting smaller")),
    "blinking": (("blinks", "blinking"), ("flashes on and off", "flashing on and off")),
}
"""Motion -> pairs of finite verb and participle."""
_PLACES: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "at the left side"),
    "right": ("on the right", "at the right side"),
    "top": ("at the top", "in the upper half"),
    "bottom": ("at the bottom", "in the lower half"),
    "middle": ("in the middle", "in the centre"),
    "top left": ("at the top left", "in the upper left corner"),
    "top right": ("at the top right", "in the upper right corner"),
    "bottom left": ("at the bottom left", "in the lower left corner"),
    "bottom right": ("at the bottom right", "in the lower right corner"),
}
_RANKS: dict[str, tuple[tuple[str, str], ...]] = {
    "smallest": (("smallest", ""), ("tiniest", ""), ("smallest", "of all")),
    "second smallest": (("second smallest", ""), ("next to smallest", ""), ("second smallest", "of all")),
    "second largest": (("second largest", ""), ("next to largest", ""), ("second biggest", "of all")),
    "largest": (("largest", ""), ("biggest", ""), ("largest", "of all")),
    "slowest": (("slowest", ""), ("least fast", "")),
    "second slowest": (("second slowest", ""), ("next to slowest", "")),
    "second fastest": (("second fastest", ""), ("next to fastest", ""), ("second quickest", "")),
    "fastest": (("fastest", ""), ("quickest", "")),
    "first": (("first", "to appear"), ("first", "to come"), ("earliest", "")),
    "second": (("second", "to appear"), ("second", "to come"), ("second earliest", "")),
    "third": (("third", "to appear"), ("third", "to come"), ("second latest", "")),
    "last": (("last", "to appear"), ("last", "to come"), ("latest", "")),
    "odd size": (("oddly sized", ""), ("", "of another size than the rest"), ("", "unlike the rest in size")),
    "odd time": (("oddly timed", ""), ("", "that comes at another time than the rest"), ("", "seen when no other is")),
    "odd place": (("oddly placed", ""), ("", "at another place than the rest"), ("", "where no other is")),
    "odd motion": (("oddly moving", ""), ("", "that moves another way than the rest"), ("", "moving like no other")),
}
"""Rank -> pairs of what is said before the thing's looks and what is said after it."""
_OPENINGS: tuple[str, ...] = ("", "", "", "a video of ", "the video shows ", "there is ", "we see ", "a clip with ")


def phrase(statement: Statement, rng: np.random.Generator) -> str:
    """One of the many ways to say the statement in lower-case English."""
    body = _tell_order(statement, rng) if statement.in_order else _tell_together(statement, rng)
    if statement.background is None:
        return body
    background = _pick(_BACKGROUNDS[statement.background], rng)
    return f"{background}, {body}" if rng.random() < 0.15 else f"{body} {background}"


def _tell_together(statement: Statement, rng: np.random.Generator) -> str:
    """The claims in random order, joined by "and" or the like."""
    claims = [statement.claims[i] for i in rng.permutation(len(statement.claims))]
    if len(claims) > 1 and all(claim.motion for claim in claims) and rng.random() < 0.5:
        return " while ".join(f"{_name(claim, rng)} {_verb(claim, rng, finite=True)}" for claim in claims)
    if len(claims) == 1 and claims[0].motion and rng.random() < 0.4:
        return f"{_name(claims[0], rng)} {_verb(claims[0], rng, finite=True)}"
    parts = [_with_details(claim, rng) for claim in claims]
    joint = " and " if rng.random() < 0.7 else _pick((" next to ", " together with ", " beside "), rng)
    return _pick(_OPENINGS, rng) + (parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + joint + parts[-1])


def _tell_order(statement: Statement, rng: np.random.Generator) -> str:
    """The claims one after another; the order of the words is not always the order of events."""
    parts = [_with_details(claim, rng) for claim in statement.claims]
    if len(parts) == 2:
        first, second = parts
        forms = (
            f"first {first}, then {second}",
            f"{first} followed by {second}",
            f"{first} and after that {second}",
            f"{second} after {first}",
            f"{first} before {second}",
        )
        return _pick(forms, rng)
    return "first " + ", then ".join(parts)


def _with_details(claim: Claim, rng: np.random.Generator) -> str:
    """The thing with how it moves and where it is."""
    words = [_name(claim, rng)]
    if claim.motion:
        words.append(_verb(claim, rng, finite=False))
    if claim.place:
        words.append(_pick(_PLACES[claim.place], rng))
    return " ".join(words)


def _verb(claim: Claim, rng: np.random.Generator, *, finite: bool) -> str:
    assert claim.motion is not None
    forms = _MOTIONS[claim.motion]
    return forms[int(rng.integers(len(forms)))][0 if finite else 1]


def _name(claim: Claim, rng: np.random.Generator) -> str:
    """The thing itself, such as "a small striped red circle" or "the largest circle"."""
    if claim.rank:
        forms = _RANKS[claim.rank]
        before, after = forms[int(rng.integers(len(forms)))]
        name = _name(replace(claim, rank=None), rng).partition(" ")[2]
        return " ".join(word for word in ("the", before, name, after) if word)
    words = []
    if claim.size:
        words.append(_pick(_SIZES[claim.size], rng))
    looks = []
    if claim.texture:
        looks.append(_pick(_TEXTURES[claim.texture], rng))
    if claim.colour:
        looks.append(_pick(_COLOURS.get(claim.colour, (claim.colour,)), rng))
    if rng.random() < 0.3:
        looks.reverse()
    noun = _pick(_SHAPES[claim.shape], rng) if claim.shape else _pick(("shape", "thing", "object"), rng)
    if looks and rng.random() < 0.1:
        return f"{_with_article([*words, noun])} that is {' and '.join(looks)}"
    return _with_article([*words, *looks, noun])


def _with_article(words: Sequence[str]) -> str:
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
