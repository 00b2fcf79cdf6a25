"""A scene -> the pictures of its video: anti-aliased shapes in front of a background, with numpy alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from stages.synthetic.scenes import Scene, Thing

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8]
SignedDistance = Callable[[Array, Array], Array]


def draw_frames(scene: Scene, num_frames: int, height: int, width: int) -> Iterator[Pixels]:
    """Each frame of the scene, uint8 [H, W, 3] RGB, at equal distances in time."""
    backdrop = _draw_background(scene, height, width)
    for i in range(num_frames):
        canvas = backdrop.copy()
        moment = (i + 0.5) / num_frames
        for thing in scene.things:
            if thing.appears <= moment < thing.leaves:
                _draw_thing(canvas, thing, (moment - thing.appears) / (thing.leaves - thing.appears))
        yield np.rint(canvas).astype(np.uint8)


def _draw_thing(canvas: Array, thing: Thing, progress: float) -> None:
    """Blend the thing into float32 [H, W, 3]; ``progress`` runs from 0 to 1 while it is there."""
    height, width = canvas.shape[:2]
    side = min(height, width)
    x, y, radius, angle = _pose(thing, progress)
    if radius <= 0:
        return
    middle_x, middle_y = (width - side) / 2 + x * side, (height - side) / 2 + y * side
    scale = radius * side
    margin = 1.5 * scale + 2
    left, right = max(0, int(middle_x - margin)), min(width, int(middle_x + margin) + 1)
    top, bottom = max(0, int(middle_y - margin)), min(height, int(middle_y + margin) + 1)
    if left >= right or top >= bottom:
        return
    across = (np.arange(left, right, dtype=np.float32) + 0.5 - np.float32(middle_x)) / np.float32(scale)
    along = (np.arange(top, bottom, dtype=np.float32) + 0.5 - np.float32(middle_y)) / np.float32(scale)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    u = across[None, :] * cos + along[:, None] * sin
    v = along[:, None] * cos - across[None, :] * sin
    coverage = np.clip(0.5 - _SHAPES[thing.shape](u, v) * np.float32(scale), 0, 1)[:, :, None]
    colour = _paint(thing, u, v, scale)
    window = canvas[top:bottom, left:right]
    window += coverage * (colour - window)


def _pose(thing: Thing, progress: float) -> tuple[float, float, float, float]:
    """x, y, radius (fractions of the side) and angle (radians) at that point of the thing's time."""
    x, y, radius, angle = thing.x, thing.y, thing.radius, thing.angle
    along_path = thing.reach * (2 * progress - 1)
    turn = 2 * math.pi * progress
    match thing.motion:
        case "right":
            x += along_path
        case "left":
            x -= along_path
        case "down":
            y += along_path
        case "up":
            y -= along_path
        case "circling":
            x += 0.8 * thing.reach * math.cos(turn)
            y += 0.8 * thing.reach * math.sin(turn)
        case "bouncing":
            y += thing.reach * (0.9 - 1.6 * abs(math.sin(turn)))
        case "spinning":
            angle += turn
        case "growing":
            radius *= 0.6 + 0.7 * progress
        case "shrinking":
            radius *= 1.3 - 0.7 * progress
        case "blinking":
            radius *= float(progress * 4 % 1 < 0.7)
    return x, y, radius, angle


def _paint(thing: Thing, u: Array, v: Array, scale: float) -> Array:
    """float32 [h, w, 3], or [3] for a plain thing: its colour, with stripes or dots in a lighter or darker shade."""
    base = np.array(thing.tint, dtype=np.float32)
    if thing.texture == "plain":
        return base
    target = np.float32(20 if base.mean() > 140 else 255)
    mark = base + np.float32(0.75) * (target - base)
    if thing.texture == "striped":
        distance = np.abs((v * np.float32(2) + np.float32(0.5)) % 1 - np.float32(0.5)) - np.float32(0.25)
        period = 2.0
    else:
        du, dv = ((w * np.float32(1.8)) % 1 - np.float32(0.5) for w in (u, v))
        distance = np.hypot(du, dv) - np.float32(0.28)
        period = 1.8
    share = np.clip(0.5 - distance * np.float32(scale / period), 0, 1)[:, :, None]
    return np.asarray(base + share * (mark - base), dtype=np.float32)


# Signed distances to the edge in units of the radius, negative inside; u to the right, v down.


def _circle(u: Array, v: Array) -> Array:
    distance: Array = np.hypot(u, v) - np.float32(1)
    return distance


def _box(u: Array, v: Array, half_width: float, half_height: float) -> Array:
    distance: Array = np.maximum(np.abs(u) - np.float32(half_width), np.abs(v) - np.float32(half_height))
    return distance


def _square(u: Array, v: Array) -> Array:
    return _box(u, v, 0.86, 0.86)


def _rectangle(u: Array, v: Array) -> Array:
    return _box(u, v, 1.15, 0.42)


def _triangle(u: Array, v: Array) -> Array:
    slope = np.abs(u) * np.float32(0.866) - v * np.float32(0.5)
    distance: Array = np.maximum(slope - np.float32(0.5), v - np.float32(0.75)) - np.float32(0.05)
    return distance


def _star(u: Array, v: Array) -> Array:
    """Five points: the polar angle folded into one tenth of the turn, then the edge's half-plane."""
    distance = np.hypot(u, v) / np.float32(1.15)
    fifth = np.float32(2 * math.pi / 5)
    folded = np.abs((np.arctan2(u, -v) + fifth / 2) % fifth - fifth / 2)
    inner = 0.42
    tip, notch = (1.0, 0.0), (inner * math.cos(math.pi / 5), inner * math.sin(math.pi / 5))
    normal = (tip[1] - notch[1], notch[0] - tip[0])
    length = -math.hypot(*normal)
    x, y = distance * np.cos(folded), distance * np.sin(folded)
    edge = ((x - np.float32(tip[0])) * np.float32(normal[0] / length)) + y * np.float32(normal[1] / length)
    return np.asarray(edge * np.float32(1.15), dtype=np.float32)


def _heart(u: Array, v: Array) -> Array:
    """Two circles on the upper sides of a square that stands on its corner."""
    w = v - np.float32(0.1)
    body = (np.abs(u) + np.abs(w)) * np.float32(0.7071) - np.float32(0.62)
    lobe = np.hypot(np.abs(u) - np.float32(0.438), w + np.float32(0.438)) - np.float32(0.62)
    distance: Array = np.minimum(body, lobe)
    return distance


def _cross(u: Array, v: Array) -> Array:
    distance: Array = np.minimum(_box(u, v, 1.0, 0.3), _box(u, v, 0.3, 1.0))
    return distance


def _ring(u: Array, v: Array) -> Array:
    distance: Array = np.abs(np.hypot(u, v) - np.float32(0.75)) - np.float32(0.25)
    return distance


def _diamond(u: Array, v: Array) -> Array:
    distance: Array = (np.abs(u) / np.float32(0.62) + np.abs(v) / np.float32(1.15) - np.float32(1)) * np.float32(0.54)
    return distance


def _crescent(u: Array, v: Array) -> Array:
    bite = np.hypot(u - np.float32(0.55), v) - np.float32(0.85)
    distance: Array = np.maximum(_circle(u, v), -bite)
    return distance


_SHAPES: dict[str, SignedDistance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
    "crescent": _crescent,
    "rectangle": _rectangle,
}

_PLAIN_BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (240, 240, 240),
    "black": (18, 18, 18),
    "grey": (128, 128, 128),
    "navy": (20, 30, 90),
    "beige": (220, 200, 160),
}


def _draw_background(scene: Scene, height: int, width: int) -> Array:
    """float32 [H, W, 3]."""
    shade = np.array(scene.shade, dtype=np.float32)
    side = min(height, width)
    # 0 to 1 across the square in the middle, so that what is seen there does not depend on the picture's format.
    y = ((np.arange(height, dtype=np.float32) + np.float32(0.5 - (height - side) / 2)) / np.float32(side))[:, None]
    x = ((np.arange(width, dtype=np.float32) + np.float32(0.5 - (width - side) / 2)) / np.float32(side))[None, :]
    if scene.background in _PLAIN_BACKGROUNDS:
        canvas = np.broadcast_to(np.array(_PLAIN_BACKGROUNDS[scene.background], dtype=np.float32), (height, width, 3))
    else:
        # Specks and blades are 1/40 of the side, so that every picture size shows the same ones.
        grain = np.random.default_rng([c + 10 for c in scene.shade]).random((64, 64), dtype=np.float32)
        cells = grain[np.floor(y * 40).astype(np.int64) % 64, np.floor(x * 40).astype(np.int64) % 64]
        canvas = _draw_pattern(scene.background, x, y, cells)
    shaded: Array = np.clip(canvas + shade, 0, 255).astype(np.float32)
    return shaded


def _draw_pattern(background: str, x: Array, y: Array, cells: Array) -> Array:
    """float32 [H, W, 3] for x [1, W] and y [H, 1] in units of the shorter side; cells [H, W] uniform noise."""
    low, high, mix = np.zeros(3), np.zeros(3), cells
    match background:
        case "meadow":
            low, high = np.array((60, 120, 30)), np.array((110, 165, 60))
        case "checkerboard":
            low, high = np.array((85, 85, 90)), np.array((200, 200, 195))
            mix = ((np.floor(x * 6) + np.floor(y * 6)) % 2).astype(np.float32)
        case "curtain":
            low, high = np.array((110, 10, 25)), np.array((190, 30, 45))
            mix = np.broadcast_to(0.5 + 0.5 * np.sin(x * np.float32(50)), cells.shape)
        case "sunset":
            low, high = np.array((90, 50, 120)), np.array((255, 160, 60))
            mix = np.broadcast_to(np.clip(y, 0, 1), cells.shape)
        case "starry":
            low, high = np.array((12, 12, 40)), np.array((235, 235, 215))
            mix = (cells > 0.96).astype(np.float32)
        case _:
            raise ValueError(f"unknown background {background!r}")
    return np.asarray(low + mix[:, :, None] * (high - low), dtype=np.float32)
