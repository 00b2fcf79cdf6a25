"""CLIP-ViP's image tower (Xue et al., ICLR 2023): the frames of a video encoded together through video proxy tokens.

M proxy tokens look at every patch of every frame; a patch looks at the proxies and at the patches of its own frame. So
what one frame says reaches the others through the proxies, and the cost grows with the number of frames, not with its
square. The first proxy, read out as CLIP reads out [CLS], is the embedding of the video.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.models.architecture import Architecture
from stages.models.quick_gelu import quick_gelu


class ClipVip(nn.Module):
    """Pixels of whole videos -> hidden states. L patches a frame, C channels; parameters named as OpenAI's."""

    def __init__(self, vision: Mapping[str, Any], embed_dim: int) -> None:
        super().__init__()
        width, patch_size = int(vision["width"]), int(vision["patch_size"])
        heads = width // int(vision.get("head_width", 64))
        mlp_width = int(width * float(vision.get("mlp_ratio", 4.0)))
        self.num_proxies = int(vision["num_proxies"])
        self.num_patches = (int(vision["image_size"]) // patch_size) ** 2
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.added_cls = nn.Parameter(torch.randn(self.num_proxies - 1, width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(1 + self.num_patches, width))
        self.temporal_embedding = nn.Parameter(torch.zeros(1, int(vision["temporal_size"]), width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = _Transformer(int(vision["layers"]), width, heads, mlp_width, self.num_proxies)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))

    def embed(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, T, 3, S, S] -> [B, M + T L, C]: proxies, patches of frame 1, of frame 2, ...

        A table of times for another number of frames is interpolated linearly, half-pixel centres.
        """
        num_videos, num_frames = pixels.shape[:2]
        patches = self.conv1(pixels.flatten(0, 1)).flatten(2).transpose(1, 2)
        times = functional.interpolate(self.temporal_embedding.transpose(1, 2), size=num_frames, mode="linear")
        patches = patches.reshape(num_videos, num_frames, *patches.shape[1:]) + times.transpose(1, 2).unsqueeze(2)
        patches = patches + self.positional_embedding[1:]
        proxies = torch.cat([self.class_embedding[None], self.added_cls]) + self.positional_embedding[0]
        return torch.cat([proxies.expand(num_videos, -1, -1).to(patches.dtype), patches.flatten(1, 2)], dim=1)

    def hidden_states(self, pixels: Tensor) -> Iterator[Tensor]:
        """What goes into the first block and what comes out of each, [B, M + T L, C]."""
        hidden = self.ln_pre(self.embed(pixels))
        yield hidden
        for block in self.transformer.resblocks:
            hidden = block(hidden, pixels.shape[1])
            yield hidden

    def forward(self, pixels: Tensor) -> Tensor:
        """What comes out of the last block, [B, M + T L, C]."""
        hidden = pixels
        for state in self.hidden_states(pixels):
            hidden = state
        return hidden

    def read_out(self, hidden: Tensor) -> Tensor:
        """[..., C] -> [..., D], into the joint space."""
        projected: Tensor = self.ln_post(hidden) @ self.proj
        return projected


class _Transformer(nn.Module):
    """The blocks under the name that OpenAI gave them."""

    def __init__(self, layers: int, width: int, heads: int, mlp_width: int, num_proxies: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([_Block(width, heads, mlp_width, num_proxies) for _ in range(layers)])


class _Block(nn.Module):
    """A pre-norm block of CLIP whose attention goes as the head of this file says."""

    def __init__(self, width: int, heads: int, mlp_width: int, num_proxies: int) -> None:
        super().__init__()
        self.num_proxies = num_proxies
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        parts = [("c_fc", nn.Linear(width, mlp_width)), ("c_proj", nn.Linear(mlp_width, width))]
        self.mlp = nn.ModuleDict(OrderedDict(parts))

    def forward(self, hidden: Tensor, num_frames: int) -> Tensor:
        """[B, M + T L, C] -> the same shape."""
        hidden = hidden + self._attend(self.ln_1(hidden), num_frames)
        inner = self.mlp["c_fc"](self.ln_2(hidden))
        result: Tensor = hidden + self.mlp["c_proj"](quick_gelu(inner))
        return result

    def _attend(self, hidden: Tensor, num_frames: int) -> Tensor:
        """Two attentions: the proxies over everything; the patches of a frame over the proxies and themselves."""
        num_videos, length, _ = hidden.shape
        mixed = functional.linear(hidden, self.attn.in_proj_weight, self.attn.in_proj_bias)
        mixed = mixed.view(num_videos, length, 3, self.attn.num_heads, -1)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)  # each [B, heads, M + T L, C / heads]
        proxies = functional.scaled_dot_product_attention(query[:, :, : self.num_proxies], key, value)
        frames = functional.scaled_dot_product_attention(
            self._by_frame(query, num_frames),
            self._with_proxies(key, num_frames),
            self._with_proxies(value, num_frames),
        )
        found = torch.cat([proxies, frames.transpose(1, 2).flatten(2, 3)], dim=2)
        attended: Tensor = self.attn.out_proj(found.transpose(1, 2).flatten(2))
        return attended

    def _by_frame(self, each: Tensor, num_frames: int) -> Tensor:
        """The patches of [B, heads, M + T L, d] as [B, T, heads, L, d]."""
        patches = each[:, :, self.num_proxies :]
        num_videos, heads, _, width = patches.shape
        return patches.reshape(num_videos, heads, num_frames, -1, width).transpose(1, 2)

    def _with_proxies(self, each: Tensor, num_frames: int) -> Tensor:
        """The proxies and the patches of each frame, [B, T, heads, M + L, d]."""
        proxies = each[:, None, :, : self.num_proxies].expand(-1, num_frames, -1, -1, -1)
        return torch.cat([proxies, self._by_frame(each, num_frames)], dim=3)


class ClipVipTower:
    """Whole videos -> tokens as a store keeps them: row 0 of every frame is the video, the others are its patches."""

    def __init__(self, architecture: Architecture) -> None:
        self.module: Any = ClipVip(architecture.vision, architecture.embed_dim)
        self.tokens_per_frame = 1 + self.module.num_patches

    def tokens(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] -> [B, 1 + L, D], each frame as a video of its own."""
        return self.video_tokens(pixels[:, None])[:, 0]

    def video_tokens(self, pixels: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Normalised pixels [V, F, 3, S, S] -> [V, F, 1 + L, D]; frame_mask bool [V, F], True first, = real frame.

        The tower knows no padding: a video with fewer frames repeats them evenly until there are F, as the authors do.
        The first proxy is the video's embedding and stands in row 0 of each frame, so that the mean over the frames is
        it again. Patches are read out as the proxy is; the authors use the proxy only.
        """
        num_videos, num_frames = pixels.shape[:2]
        if frame_mask is None:
            frame_mask = torch.ones(num_videos, num_frames, dtype=torch.bool, device=pixels.device)
        places, firsts = spread(frame_mask)
        row = torch.arange(num_videos, device=pixels.device)[:, None]
        tokens = self.module.read_out(self.module(pixels[row, places]))
        video = tokens[:, None, :1].expand(-1, num_frames, -1, -1)
        patches = tokens[:, self.module.num_proxies :].reshape(num_videos, num_frames, -1, tokens.shape[-1])
        return torch.cat([video, patches[row, firsts]], dim=2)


def spread(frame_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which frame of a video stands at each of F places, and where each frame stands first: int64 [V, F], twice.

    frame_mask bool [V, F], True first, = real frame. Of n frames, place i has number i (n - 1) / (F - 1), rounded down.
    """
    num_frames = frame_mask.shape[1]
    place = torch.arange(num_frames, device=frame_mask.device)
    last = frame_mask.sum(dim=1, keepdim=True).clamp_min(1) - 1
    places = place * last // max(1, num_frames - 1)
    return places, torch.searchsorted(places, torch.minimum(place, last))
