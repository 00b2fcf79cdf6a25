"""Where the training of the small model's focused view starts: a text tower that knows what belongs to what.

    python -m stages.synthetic.pretrain_text --output first.safetensors --work /tmp/pretrain

The small CLIP's text tower was asked only for what single frames show, so it drops the rest of a sentence: who moves
where, what comes first. The text towers of large CLIPs have read enough to keep that. Here a copy of it is taught with
heads that are thrown away: from the sentence embedding they name every pair of details that one thing has (red + left,
star + rising), and what comes first, while InfoNCE with the frozen image tower holds the embedding in its place.
Without this, the fusion network had learned nothing about places and directions after 700 steps; with it, it had after
200. The result is weights for ``tbpipe train --start``, without a fusion network. With --comparisons it also learns
which rank ("the second largest") is asked for, which no caption of the other families says.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.models import MODELS, load_model
from stages.models.tiny import MEAN, STD, TinySizes, load_small, new_tokenizer
from stages.preprocess import normalise
from stages.rerankers.fusion import FusionConfig
from stages.rerankers.token_binder import FeatureKind, TokenBinderWeights
from stages.synthetic.captions import phrase
from stages.synthetic.families import FAMILIES, RELATIVE, SAYS
from stages.synthetic.pretrain import PretrainConfig
from stages.synthetic.pretrain_data import (
    FrameCorpus,
    encode_frames,
    encode_texts,
    make_corpus,
    pool_frames,
    true_elsewhere,
)
from stages.synthetic.scenes import (
    BACKGROUNDS,
    COLOURS,
    LEVELS,
    MOTIONS,
    PLACES,
    SHAPES,
    TEXTURES,
    Statement,
    describe,
    draw_scene,
    loosen,
)

if TYPE_CHECKING:
    from open_clip.model import CLIP

_VALUES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "motion": MOTIONS,
    "place": PLACES,
    "size": ("small", "large"),
    "texture": TEXTURES,
}


@dataclass(frozen=True, slots=True)
class BindingConfig:
    """Everything that changes the weights."""

    seed: int = 7
    steps: int = 1500
    num_pairs: int = 48
    """Captions of a batch that belong to a video."""
    num_texts: int = 96
    """Captions of scenes that nobody rendered, of the families of near-duplicates."""
    learning_rate: float = 1e-3
    heads_learning_rate: float = 3e-3
    weight_decay: float = 0.02
    comparisons: bool = False
    """A third of the texts are of families whose captions are relative, and ranks are named too."""


_RANKS = tuple(rank for family in RELATIVE.values() for rank in family.ranks)


def _label_numbers() -> dict[tuple[str, str, str], int]:
    """(first detail, other kind, other detail) -> its number; first is a colour or a shape. Ranks come last."""
    names: list[tuple[str, str, str]] = [("", "background", name) for name in BACKGROUNDS]
    for kind in ("colour", "shape"):
        for first in _VALUES[kind]:
            names += [(first, other, value) for other, values in _VALUES.items() if other != kind for value in values]
            names += [(first, "order", place) for place in ("first", "second")]
    names += [("", "rank", name) for name in _RANKS]
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


_NUMBERS = _label_numbers()


def binding_labels(statement: Statement) -> Tensor:
    """Float [L] of zeros and ones: which pairs of details the statement gives to one thing, the background, ranks."""
    labels = torch.zeros(len(_NUMBERS))
    if statement.background is not None:
        labels[_NUMBERS["", "background", statement.background]] = 1
    for number, claim in enumerate(statement.claims):
        if claim.rank is not None:
            labels[_NUMBERS["", "rank", claim.rank]] = 1
        for kind in ("colour", "shape"):
            first = getattr(claim, kind)
            if first is None:
                continue
            for other in _VALUES:
                value = getattr(claim, other)
                if other != kind and value is not None:
                    labels[_NUMBERS[first, other, value]] = 1
            if statement.in_order and number < 2:
                labels[_NUMBERS[first, "order", ("first", "second")[number]]] = 1
    return labels


def learn_to_bind(
    model: CLIP,
    tokenizer: Any,
    corpus: FrameCorpus,
    config: BindingConfig,
    on_step: Callable[[int, dict[str, float]], object],
) -> None:
    """Train the text tower of ``model`` in place; its image tower and its temperature stay as they are."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng([config.seed, 6])
    pooled = _pooled(model, corpus)
    tower = [p for name, p in model.named_parameters() if not name.startswith("visual.") and name != "logit_scale"]
    num_labels = len(_NUMBERS) if config.comparisons else len(_NUMBERS) - len(_RANKS)
    heads = nn.Linear(pooled.shape[1], num_labels)
    optimiser = torch.optim.AdamW(
        [
            {"params": tower, "peak": config.learning_rate},
            {"params": list(heads.parameters()), "peak": config.heads_learning_rate},
        ],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.98),
    )
    scale = model.logit_scale.detach().exp()
    for step in range(config.steps):
        factor = min(1.0, (step + 1) / 50) * (0.03 + 0.97 * (1 + math.cos(math.pi * step / config.steps)) / 2)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        rows = rng.choice(len(corpus.videos), config.num_pairs, replace=False)
        paired = [_say(corpus.videos[row].statement, rng) for row in rows]
        num_compared = config.num_texts // 3 if config.comparisons else 0
        statements = paired + _draw_statements(rng, config.num_texts - num_compared) + _draw_ranks(rng, num_compared)
        sentences = functional.normalize(encode_texts(model, tokenizer([phrase(s, rng) for s in statements])), dim=-1)
        labels = torch.stack([binding_labels(statement)[:num_labels] for statement in statements])
        named = functional.binary_cross_entropy_with_logits(10 * heads(sentences), labels, reduction="sum")
        logits = scale * sentences[: len(paired)] @ pooled[rows].T
        logits = logits.masked_fill(true_elsewhere(paired, [corpus.videos[row].scene for row in rows]), -1e4)
        target = torch.arange(len(paired))
        broad = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        optimiser.zero_grad(set_to_none=True)
        (broad + named / len(statements)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(tower, 1.0)
        optimiser.step()
        on_step(step, {"videos": broad.item(), "bound": named.item() / len(statements)})


def _say(statement: Statement, rng: np.random.Generator) -> Statement:
    return loosen(statement, rng, float(rng.choice((0.8, 1.0))))


def _draw_statements(rng: np.random.Generator, number: int) -> list[Statement]:
    """Full descriptions of scenes of all families and of the mixed level, without the pairs kept for tests."""
    levels = [family.level for family in FAMILIES.values()]
    statements = [describe(draw_scene(rng, levels[i % len(levels)], "seen"), SAYS) for i in range(number * 3 // 4)]
    mixed = LEVELS["mixed"]
    return statements + [describe(draw_scene(rng, mixed, "seen"), mixed.says) for _ in range(number - len(statements))]


def _draw_ranks(rng: np.random.Generator, number: int) -> list[Statement]:
    """Full descriptions of single scenes of the relative families, each with a rank: nothing is compared yet."""
    found = []
    for family in (list(RELATIVE.values()) * number)[:number]:
        scene = draw_scene(rng, family.level, "seen")
        (thing,) = scene.things
        ranked = replace(scene, things=(replace(thing, rank=str(rng.choice(family.ranks))),))
        found.append(describe(ranked, family.level.says))
    return found


@torch.inference_mode()
def _pooled(model: CLIP, corpus: FrameCorpus) -> Tensor:
    """Unit-length embeddings [N, D] of all videos."""
    parts = []
    for start in range(0, len(corpus.videos), 16):
        embeddings, _ = encode_frames(model, normalise(corpus.frames[start : start + 16], MEAN, STD))
        parts.append(pool_frames(embeddings))
    return torch.cat(parts).clone()


def first_weights(model: CLIP) -> TokenBinderWeights:
    """Weights that hold this text tower and nothing else that was trained."""
    clip = load_model("tbpipe-small", device="cpu", dtype="float32", towers="text")
    settings = clip.settings()
    kind = FeatureKind(settings.name, settings.weights_sha256, settings.tokens_per_frame, "all")
    tower, tokenizer = clip.query_side()
    text = {name: model.state_dict()[name] for name in tower.module.state_dict()}
    tower.module.load_state_dict(text)
    config = FusionConfig(settings.embed_dim, settings.tokens_per_frame)
    indicators = tower.first_indicators(config.num_indicators, tokenizer.end_id, torch.Generator().manual_seed(0))
    return TokenBinderWeights(kind, config, clip.logit_scale, indicators, text, {})


def main(arguments: Sequence[str] | None = None) -> int:
    """Teach the text tower of the small model and write weights to start from."""
    parser = argparse.ArgumentParser(prog="python -m stages.synthetic.pretrain_text", description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="weights file to write, NAME.safetensors")
    parser.add_argument("--work", type=Path, required=True, help="folder for the rendered videos")
    parser.add_argument("--steps", type=int, default=BindingConfig().steps)
    parser.add_argument("--videos", type=int, default=PretrainConfig().num_videos)
    parser.add_argument("--comparisons", action="store_true", help="learn the ranks of the relative families, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder, sizes = MODELS["tbpipe-small"], TinySizes()
    model = load_small(folder, sizes)
    base = PretrainConfig(num_videos=options.videos)
    corpus = make_corpus(
        options.work / "training",
        base.seed,
        base.num_videos,
        base.level,
        base.group_size,
        base.frames_kept,
        sizes.image_size,
        base.video_format,
    )

    def log(step: int, losses: dict[str, float]) -> None:
        if step % 10 == 0:
            print(json.dumps({"step": step} | losses), file=sys.stderr, flush=True)

    tokenizer = new_tokenizer(folder, sizes.context_length)
    config = BindingConfig(steps=options.steps, comparisons=options.comparisons)
    learn_to_bind(model, tokenizer, corpus, config, log)
    first_weights(model).save(options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
