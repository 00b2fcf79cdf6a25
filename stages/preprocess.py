"""Frames of a video -> square pixels for the image tower, as open_clip's own PIL transform makes them.

The result stays uint8: that is what PIL's resize gives too, it is a quarter of the bytes to upload, and the scaling to
the model's mean and deviation is cheapest on the compute device (``normalise``).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from index_store.errors import UsageError
from index_store.settings import ModelSettings

RESIZE_MODES = ("shortest", "longest", "squash")

MAX_ASPECT_RATIO = 8
"""Frames longer than this many times their width are cropped first: 12 frames of 2 x 1024 would grow to 925 MB."""


class Preprocessor:
    """uint8 frames [n, H, W, 3] -> uint8 pixels [n, 3, S, S] on the same device; one size of frame a call."""

    def __init__(self, settings: ModelSettings) -> None:
        if settings.resize_mode not in RESIZE_MODES:
            known = ", ".join(RESIZE_MODES)
            raise UsageError(f"resize mode {settings.resize_mode!r} is unknown; expected one of {known}")
        self.size = settings.image_size
        self.resize_mode = settings.resize_mode
        self.interpolation = "bilinear" if settings.interpolation == "bilinear" else "bicubic"

    def __call__(self, frames: Tensor) -> Tensor:
        """Resize and crop; upright RGB frames in, contiguous RGB planes out."""
        pixels = frames.permute(0, 3, 1, 2)
        height, width = self._resized(*pixels.shape[2:])
        if self.resize_mode == "shortest" and max(height, width) > MAX_ASPECT_RATIO * self.size:
            pixels, (height, width) = _crop_long_side(pixels, height, width)
        if (height, width) != tuple(pixels.shape[2:]):
            if pixels.is_cpu:
                pixels = functional.interpolate(pixels, (height, width), mode=self.interpolation, antialias=True)
            else:
                pixels = resize_in_float(pixels, height, width, self.interpolation)
        return _centre(pixels, self.size).contiguous()

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        size = self.size
        if self.resize_mode == "squash":
            return size, size
        if self.resize_mode == "longest":
            ratio = max(height, width) / size
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        short, long = sorted((height, width))
        longer = int(size * long / short)
        return (size, longer) if height <= width else (longer, size)


def resize_in_float(pixels: Tensor, height: int, width: int, mode: str) -> Tensor:
    """What ``interpolate`` makes of uint8 pixels [n, 3, H, W] on a CPU, nearly, where it takes no uint8: on a GPU.

    As PIL does it: first along the width, then along the height, cut off at 0 and 255 and rounded after each. In one
    pass, bicubic overshoots at edges would be up to 22 levels off; so under 1 % of the values are a level off.
    """
    # float in one step with the change to planes, which the kernel needs
    resized = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    for size in ((pixels.shape[2], width), (height, width)):
        if size != tuple(resized.shape[2:]):
            resized = functional.interpolate(resized, size, mode=mode, antialias=True)
            resized = resized.add_(0.5).floor_().clamp_(0, 255)  # a half goes up, as there
    return resized.to(torch.uint8)


def _crop_long_side(pixels: Tensor, height: int, width: int) -> tuple[Tensor, tuple[int, int]]:
    """The middle of pixels [n, 3, H, W] and its share of the resized height and width.

    The middle must stay the middle to the pixel, so both lengths shrink by an even number of pixels, and the resized
    one by a multiple of four (a half pixel is then rounded the same way). That costs at most 2 / 1792 of the scale.
    """
    is_wide = width > height
    dim, resized, short = (3, width, height) if is_wide else (2, height, width)
    length = pixels.shape[dim]
    kept = max(1, MAX_ASPECT_RATIO * pixels.shape[5 - dim])
    kept += (length - kept) % 2
    kept_resized = resized - 4 * round((resized - resized * kept / length) / 4)
    middle = pixels.narrow(dim, (length - kept) // 2, kept)
    return middle, (short, kept_resized) if is_wide else (kept_resized, short)


def normalise(pixels: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """uint8 pixels [B, 3, S, S] -> float32 (pixel / 255 - mean) / std."""
    scale, offset = _scale_and_offset(mean, std, pixels.device)
    return pixels.float().mul_(scale[:, None, None]).sub_(offset[:, None, None])


@functools.cache
def _scale_and_offset(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Float32 [3] each; pixels * scale - offset are normalised.

    Kept, because a GPU that is handed numbers from plain memory makes its caller wait until all work before is done.
    """
    with torch.inference_mode(False):  # they may be used in training later
        scale = torch.tensor([1 / (255 * deviation) for deviation in std], device=device)
        offset = torch.tensor([middle / deviation for middle, deviation in zip(mean, std, strict=True)], device=device)
    return scale, offset


def _centre(pixels: Tensor, size: int) -> Tensor:
    """The middle ``size`` x ``size`` of pixels [n, 3, H, W]; a side that is too short is filled up with zeros."""
    height, width = pixels.shape[2:]
    missing_height, missing_width = max(0, size - height), max(0, size - width)
    if missing_height or missing_width:
        left, top = missing_width // 2, missing_height // 2
        pixels = functional.pad(pixels, (left, missing_width - left, top, missing_height - top))
        height, width = pixels.shape[2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[:, :, top : top + size, left : left + size]
