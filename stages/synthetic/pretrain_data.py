"""What making the small CLIP is trained on: rendered videos, decoded; and what both of its parts compute with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from index_store.settings import ModelSettings, SamplingSettings
from stages.models.tiny import MEAN, STD
from stages.preprocess import Preprocessor
from stages.synthetic.render import CaptionedVideo, VideoFormat, render_corpus
from stages.synthetic.scenes import BACKGROUNDS, COLOURS, SHAPES, Combinations, Detail, Scene, Statement, holds
from stages.video import decode

if TYPE_CHECKING:
    from open_clip.model import CLIP


LOOKS: tuple[Detail, ...] = ("colour", "shape", "background", "texture", "swap")
"""Details that single frames show; a mean of frame embeddings cannot tell the rest, so it is not asked to."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameCorpus:
    """Rendered videos and their decoded frames."""

    videos: list[CaptionedVideo]
    frames: Tensor
    """uint8 [N, F, 3, S, S], preprocessed but for the normalisation."""


def make_corpus(
    directory: Path,
    seed: int,
    num_videos: int,
    level: str,
    group_size: int,
    num_frames: int,
    size: int,
    video_format: VideoFormat,
) -> FrameCorpus:
    """Render, encode and decode a corpus, ``num_frames`` of each video at the midpoints of equal segments.

    One in groups (``group_size`` above 1) is for training, and holds none of the pairs kept for tests.
    """
    combinations: Combinations = "seen" if group_size > 1 else "any"
    videos = render_corpus(directory, seed, num_videos, level, combinations, group_size, LOOKS, video_format)
    preprocess, sampling = Preprocessor(_image_settings(size)), SamplingSettings("uniform", num_frames)
    frames = torch.empty(num_videos, num_frames, 3, size, size, dtype=torch.uint8)
    for i, video in enumerate(videos):
        frames[i] = preprocess(torch.from_numpy(decode(video.path, sampling).frames))
    return FrameCorpus(videos, frames)


def _image_settings(size: int) -> ModelSettings:
    """Those of the shipped config, as far as the preprocessor looks at them."""
    return ModelSettings("tbpipe-small", "", "", 1, 1, size, MEAN, STD, "bicubic", "shortest", "float32")


def augment(frames: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 [B, F, 3, S, S] -> float, 0..255: three in four videos zoomed and shifted a little, all varied in light."""
    batch, num_frames, _, size, _ = frames.shape

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    moved = (torch.rand(batch, generator=generator) < 0.75).float()
    zoom = 1 + moved * (draw(0.88, 1.1) - 1)
    grid = torch.zeros(batch, 2, 3)
    grid[:, 0, 0], grid[:, 1, 1] = zoom, zoom
    grid[:, 0, 2], grid[:, 1, 2] = moved * draw(-0.1, 0.1), moved * draw(-0.1, 0.1)
    sampling = functional.affine_grid(grid, [batch, 3 * num_frames, size, size], align_corners=False)
    pixels = frames.float().reshape(batch, 3 * num_frames, size, size)
    pixels = functional.grid_sample(pixels, sampling, mode="bilinear", padding_mode="border", align_corners=False)
    contrast, light = draw(0.85, 1.15).view(-1, 1, 1, 1), draw(-20, 20).view(-1, 1, 1, 1)
    pixels = (pixels - 128) * contrast + 128 + light
    pixels = pixels + 5 * torch.randn(pixels.shape, generator=generator)
    return pixels.clamp(0, 255).view(frames.shape)


def attribute_labels(scene: Scene) -> Tensor:
    """Float [L] of zeros and ones: which colour-shape pairs, colours and shapes are there, and the background."""
    pairs, colours, shapes = torch.zeros(len(COLOURS), len(SHAPES)), torch.zeros(len(COLOURS)), torch.zeros(len(SHAPES))
    for thing in scene.things:
        colour, shape = list(COLOURS).index(thing.colour), SHAPES.index(thing.shape)
        pairs[colour, shape] = colours[colour] = shapes[shape] = 1
    background = torch.tensor([float(name == scene.background) for name in BACKGROUNDS])
    return torch.cat([pairs.flatten(), colours, shapes, background])


def encode_frames(model: CLIP, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised float [B, F, 3, S, S] -> raw frame embeddings [B, F, D], patch tokens [B, F, P, D]."""
    batch, num_frames = pixels.shape[:2]
    visual: Any = model.visual
    visual.output_tokens = True
    embeddings, patches = visual(pixels.flatten(0, 1))
    patches = patches @ visual.proj
    return embeddings.view(batch, num_frames, -1), patches.view(batch, num_frames, patches.shape[1], -1)


def encode_texts(model: CLIP, tokens: Tensor) -> Tensor:
    """int64 [T, W] -> raw sentence embeddings [T, D]. The mask is causal: nothing after the longest is computed."""
    length = int((tokens != 0).sum(dim=1).max())
    tokens = tokens[:, :length]
    words: Any = model
    hidden = words.token_embedding(tokens) + words.positional_embedding[:length]
    hidden = words.ln_final(words.transformer(hidden, attn_mask=words.attn_mask[:length, :length]))
    sentences: Tensor = hidden[torch.arange(len(tokens)), tokens.argmax(dim=1)] @ words.text_projection
    return sentences


def pool_frames(embeddings: Tensor) -> Tensor:
    """The video's embedding [B, D]: the normalised mean of unit-length frame embeddings [B, F, D]."""
    return functional.normalize(functional.normalize(embeddings, dim=-1).mean(dim=1), dim=-1)


def gated_patches(sentences: Tensor, patches: Tensor, temperature: float) -> Tensor:
    """EERCF's weak patch score [T, V]: sum over the patches of softmax(q / temperature) q, q = t . p.

    sentences [T, D] unit length; patches [V, F, P, D] raw.
    """
    tokens = functional.normalize(patches, dim=-1).flatten(1, 2)
    fit = torch.einsum("td,vnd->tvn", sentences, tokens)
    return ((fit / temperature).softmax(dim=-1) * fit).sum(dim=-1)


def true_elsewhere(statements: Sequence[Statement], scenes: Sequence[Scene]) -> Tensor:
    """Bool [B, B], True where text i is true of video j by accident; False on the diagonal."""
    batch = len(scenes)
    table = [[i != j and holds(statements[i], scenes[j]) for j in range(batch)] for i in range(batch)]
    return torch.tensor(table)
