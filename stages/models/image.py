"""Image towers: pixels -> [CLS] and patches in the joint space.

Each tower turns normalised pixels [B, 3, S, S] into tokens [B, P, D]: row 0 is the model's own image embedding (what
open_clip's encode_image gives), rows 1.. are the patches. A patch's embedding is what the model's own head makes of
that patch alone: ``ln_post`` and ``proj`` in CLIP; with attention pooling, the pool with this patch as its only key.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from index_store.errors import UsageError
from stages.models.architecture import CLIP_VIP, WORKING_KINDS, Architecture
from stages.models.clip_vip import ClipVipTower
from stages.models.quick_gelu import QuickGelu
from stages.models.token_shift import run_blocks


class ImageTower(Protocol):
    """What turns pixels into tokens."""

    tokens_per_frame: int
    """P, 1 + patches."""
    module: nn.Module
    """Where the weights are; its state dict has the keys under ``visual.`` of a weight file."""

    def tokens(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] -> tokens [B, P, D]."""
        ...


class VideoTower(ImageTower, Protocol):
    """An image tower in which a frame's tokens depend on the other frames of its video."""

    def video_tokens(self, pixels: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Normalised pixels [V, F, 3, S, S] -> tokens [V, F, P, D]; frame_mask bool [V, F], True = real frame.

        Real frames do not depend on padding, unless without a mask. ``tokens`` takes each frame for a video of its own.
        """
        ...


def sees_videos(tower: ImageTower) -> TypeGuard[VideoTower]:
    """Whether frames must come to the tower by videos."""
    return hasattr(tower, "video_tokens")


def build(architecture: Architecture) -> ImageTower:
    """The image tower of ``architecture``, its weights not yet filled in. Raises UsageError for one without tokens."""
    if architecture.video_kind == CLIP_VIP:
        return ClipVipTower(architecture)
    from open_clip.model import CLIPVisionCfg, _build_vision_tower
    from open_clip.transformer import VisionTransformer

    vision = CLIPVisionCfg(**{**architecture.vision, "timm_model_pretrained": False, "patch_dropout": 0.0})
    module = _build_vision_tower(architecture.embed_dim, vision, architecture.quick_gelu)
    _replace_quick_gelu(module)
    if isinstance(module, VisionTransformer):
        return ShiftedImageTower(module) if architecture.token_shift else ClipImageTower(module)
    if architecture.token_shift:
        raise UsageError(f"model {architecture.name} has an image tower without CLIP's blocks; no token shift fits it")
    trunk = getattr(module, "trunk", None)
    if hasattr(trunk, "num_prefix_tokens") and hasattr(trunk, "fc_norm"):
        return TimmImageTower(module)
    if hasattr(trunk, "forward_features") and hasattr(getattr(trunk, "head", None), "fc"):
        return FeatureMapTower(module)
    kind = type(trunk or module).__name__
    raise UsageError(f"model {architecture.name} has an image tower ({kind}) without usable tokens; {WORKING_KINDS}")


def _replace_quick_gelu(module: nn.Module) -> None:
    """Put ours, which gives the same bits and takes less memory, in the place of open_clip's."""
    from open_clip.transformer import QuickGELU

    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, QuickGELU):
                setattr(part, name, QuickGelu())


def tokens_per_frame(architecture: Architecture) -> int:
    """P, 1 + patches; told without open_clip for the towers whose settings say it."""
    vision = architecture.vision
    if vision.get("timm_model_name") or vision.get("attentional_pool") or architecture.video_kind:
        with torch.device("meta"):
            return build(architecture).tokens_per_frame
    patch = vision.get("patch_size", 16)
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return 1 + (architecture.image_size // int(height)) * (architecture.image_size // int(width))


class ClipImageTower:
    """open_clip's own VisionTransformer: CLIP, CLIPA, CoCa."""

    def __init__(self, module: Any) -> None:
        self.module = module
        num_patches = module.grid_size[0] * module.grid_size[1]
        self.tokens_per_frame = 1 + num_patches if module.attn_pool is None else module.attn_pool.query.shape[0]

    def tokens(self, pixels: Tensor) -> Tensor:
        """``ln_post`` and ``proj`` on every token; CoCa's tokens are its pooling queries, only they fit ``proj``."""
        return self._projected(self.module.transformer(self.module._embeds(pixels)))

    def _projected(self, hidden: Tensor) -> Tensor:
        tower = self.module
        normalised = tower.ln_post(hidden if tower.attn_pool is None else tower.attn_pool(hidden))
        if tower.pool_type != "tok":
            pooled = tower._pool(hidden)[0]
            normalised = torch.cat([pooled[:, None], normalised[:, 1:]], dim=1)
        tokens: Tensor = normalised @ tower.proj
        return tokens


class ShiftedImageTower(ClipImageTower):
    """The same with TS2-Net's token shift in the last blocks: patches look at the frames before and after."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        if module.attn_pool is not None or module.pool_type != "tok":
            raise UsageError("the token shift fits towers that end in their [CLS]; this one pools its tokens")

    def tokens(self, pixels: Tensor) -> Tensor:
        """Each frame as a video of its own."""
        return self.video_tokens(pixels[:, None])[:, 0]

    def video_tokens(self, pixels: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """``ln_post`` and ``proj`` on every token, [V, F, P, D]; see ``VideoTower``."""
        num_frames = pixels.shape[1]
        hidden = self.module._embeds(pixels.flatten(0, 1))
        hidden = run_blocks(self.module.transformer, hidden, num_frames, frame_mask)
        tokens = self._projected(hidden)
        return tokens.view(-1, num_frames, *tokens.shape[1:])


class TimmImageTower:
    """timm's VisionTransformer and Eva: SigLIP, PE-Core, EVA, MobileCLIP-B, ViTamin."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.trunk = module.trunk
        self.tokens_per_frame = 1 + int(self.trunk.patch_embed.num_patches)

    def tokens(self, pixels: Tensor) -> Tensor:
        """The trunk's and the adapter's head, on the pooled sequence and on every patch."""
        hidden = self.trunk.forward_features(pixels)
        pooled = self.module.head(self.trunk.forward_head(hidden))
        patches = hidden[:, self.trunk.num_prefix_tokens :]
        if getattr(self.trunk, "attn_pool", None) is not None:
            patches = _pool_each(self.trunk.attn_pool, patches)
        patches = self.module.head(self.trunk.head(self.trunk.fc_norm(patches)))
        return torch.cat([pooled[:, None], patches], dim=1)


class FeatureMapTower:
    """timm towers that end in a feature map: MobileCLIP-S (FastViT), Swin. Its positions are the patches."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.trunk = module.trunk
        self.is_channels_last = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"
        reduction = int(self.trunk.feature_info[-1]["reduction"])
        height, width = module.image_size
        self.tokens_per_frame = 1 + -(-height // reduction) * -(-width // reduction)

    def tokens(self, pixels: Tensor) -> Tensor:
        """The trunk's and the adapter's head, on the average and on every position."""
        hidden = self.trunk.forward_features(pixels)
        pooled = self.module.head(self.trunk.forward_head(hidden))
        positions = hidden.flatten(1, 2) if self.is_channels_last else hidden.flatten(2).transpose(1, 2)
        patches = self.module.head(self.trunk.head.fc(positions))
        return torch.cat([pooled[:, None], patches], dim=1)


def _pool_each(pool: Any, patches: Tensor) -> Tensor:
    """Timm's attention pool with every patch [B, patches, width] as its only key: the softmax over one key is 1."""
    width = patches.shape[-1]
    bias = None if pool.kv.bias is None else pool.kv.bias[width:]
    values: Tensor = pool.proj(functional.linear(patches, pool.kv.weight[width:], bias))
    return values if pool.mlp is None else values + pool.mlp(pool.norm(values))
