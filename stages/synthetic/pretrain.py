"""Train the small CLIP that ships with the project, on captioned videos that the project renders and encodes itself.

    python -m stages.synthetic.pretrain --output stages/models/small --work /tmp/pretrain

made the shipped weights: with the defaults, seed 7, in about half an hour on one 2.5 GHz core (6 minutes of it to
render, encode and decode 5,000 videos). It renders the corpora, decodes them, trains, and after every
``--evaluate-every`` steps writes the best weights so far to ``--output``; Ctrl-C keeps them. Log: WORK/log.jsonl, one
object per line; progress on stderr. The same seed, sizes and number of threads on the same machine give the same
weights.

What is learned: the normalised mean of the unit-length frame embeddings (the broad view) and a text-gated mean of the
patch tokens of all frames (EERCF's gate, so that single tokens mean something in the joint space) are each matched with
the captions by InfoNCE. Batches are made of groups of videos that differ in one detail; captions leave details out, and
a video of which a caption happens to be true is not counted as a negative.
Linear heads that name colours, shapes and background are trained with it for a while and thrown away: a run without
them, in batches of 64, stood still between steps 100 and 260 (R@1 6 %), where runs with them in batches of 128 rose.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stages.models.bpe import learn_merges
from stages.models.tiny import (
    MEAN,
    STD,
    TinySizes,
    new_model,
    new_tokenizer,
    save_tokenizer,
    save_weights,
)
from stages.preprocess import normalise
from stages.synthetic.captions import phrase
from stages.synthetic.pretrain_data import (
    FrameCorpus,
    attribute_labels,
    augment,
    encode_frames,
    encode_texts,
    gated_patches,
    make_corpus,
    pool_frames,
    true_elsewhere,
)
from stages.synthetic.render import VideoFormat
from stages.synthetic.scenes import (
    BACKGROUNDS,
    COLOURS,
    LEVELS,
    SHAPES,
    Scene,
    Statement,
    describe,
    draw_scene,
    loosen,
)

if TYPE_CHECKING:
    from open_clip.model import CLIP


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """Everything that changes the weights. N videos, B of them in a batch, F frames kept of each."""

    seed: int = 7
    num_videos: int = 4800
    num_validation: int = 200
    level: str = "mixed"
    group_size: int = 4
    batch_groups: int = 32
    frames_kept: int = 8
    """Decoded of each video, at the midpoints of equal segments."""
    frames_used: int = 2
    """Drawn of these in each of the last 30 % of the steps; one in the steps before, which are twice as fast."""
    steps: int = 700
    warmup_steps: int = 60
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    token_weight: float = 0.5
    """Of the loss on text-gated patch tokens."""
    heads_weight: float = 0.5
    """Of the throw-away heads at the start; falls to zero over the first 60 % of the steps."""
    gate_temperature: float = 0.05
    average_decay: float = 0.99
    """Of the running mean of the weights that is evaluated and shipped."""
    num_merges: int = 400
    vocabulary_captions: int = 1500
    """Of each level, from which the merges are learned."""
    video_format: VideoFormat = field(default_factory=VideoFormat)
    threads: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError where the videos do not fill one batch or the frames cannot be shared out."""
        if self.num_videos < self.batch_groups * self.group_size:
            raise ValueError(f"{self.num_videos} videos do not fill a batch of {self.batch_groups * self.group_size}")
        if self.frames_kept < self.frames_used or min(self.steps, self.frames_used) < 1:
            raise ValueError(f"{self.steps} steps with {self.frames_used} of {self.frames_kept} frames cannot be run")


def learn_vocabulary(config: PretrainConfig) -> list[tuple[str, str]]:
    """BPE merges from captions of scenes that are drawn but not rendered."""
    rng = np.random.default_rng([config.seed, 2])
    texts = []
    for level in LEVELS.values():
        scenes = [draw_scene(rng, level) for _ in range(config.vocabulary_captions)]
        texts += [phrase(loosen(describe(scene, level.says), rng), rng) for scene in scenes]
    return learn_merges(texts, config.num_merges)


# ---- training -------------------------------------------------------------------------------------------------------


def contrast(logits: Tensor, ignored: Tensor) -> Tensor:
    """InfoNCE of [T, V] logits, mean of both directions; the diagonal is right, ``ignored`` pairs do not count."""
    logits = logits.masked_fill(ignored, -1e4)
    target = torch.arange(len(logits))
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


class Trainer:
    """The model, its vocabulary, the throw-away heads, the optimiser and the running mean of the weights."""

    def __init__(self, config: PretrainConfig, sizes: TinySizes, directory: Path) -> None:
        """Make an untrained model; ``directory`` is for the file of its vocabulary."""
        torch.manual_seed(config.seed)
        self.config, self.sizes = config, sizes
        self.merges = learn_vocabulary(config)
        save_tokenizer(directory, sizes, self.merges)
        self.tokenizer = new_tokenizer(directory, sizes.context_length)
        self.model = new_model(sizes, len(self.merges))
        num_labels = len(COLOURS) * len(SHAPES) + len(COLOURS) + len(SHAPES) + len(BACKGROUNDS)
        self.heads = nn.Linear(sizes.embed_dim, num_labels)
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        decayed = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-8)
        self.average = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.rng = np.random.default_rng([config.seed, 3])
        self.generator = torch.Generator().manual_seed(config.seed)

    def step(self, number: int, corpus: FrameCorpus, rows: NDArray[np.int64]) -> dict[str, float]:
        """One update on the videos ``rows`` of the corpus; returns the parts of the loss."""
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(number, config)
        statements, texts = self._say(corpus, rows)
        scenes = [corpus.videos[i].scene for i in rows]
        frames_used = 1 if number < 0.7 * config.steps else config.frames_used
        frames = self._draw_frames(corpus, rows, frames_used)
        embeddings, patches = encode_frames(self.model, normalise(augment(frames, self.generator), MEAN, STD))
        sentences = functional.normalize(encode_texts(self.model, self.tokenizer(texts)), dim=-1)
        scale = self.model.logit_scale.exp()
        ignored = true_elsewhere(statements, scenes)
        videos = contrast(scale * sentences @ pool_frames(embeddings).T, ignored)
        tokens = contrast(scale * gated_patches(sentences, patches, config.gate_temperature), ignored)
        heads = self._name_attributes(embeddings, scenes)
        heads_weight = config.heads_weight * max(0.0, 1 - number / (0.6 * config.steps))
        self._update(videos + config.token_weight * tokens + heads_weight * heads, number)
        return {"videos": videos.item(), "tokens": tokens.item(), "heads": heads.item(), "scale": scale.item()}

    def _name_attributes(self, embeddings: Tensor, scenes: Sequence[Scene]) -> Tensor:
        """Loss of the heads: cross-entropy summed over the labels, mean over the videos; embeddings [B, F, D]."""
        labels = torch.stack([attribute_labels(scene) for scene in scenes])
        named = self.heads(functional.normalize(embeddings, dim=-1).mean(dim=1) * 10)
        return functional.binary_cross_entropy_with_logits(named, labels, reduction="sum") / len(scenes)

    def save(self, directory: Path) -> None:
        """Write the three files of the model, with the running mean of its weights."""
        save_tokenizer(directory, self.sizes, self.merges)
        save_weights(directory, self.average)

    def _say(self, corpus: FrameCorpus, rows: NDArray[np.int64]) -> tuple[list[Statement], list[str]]:
        """A new caption of each video, with details left out."""
        says = LEVELS[self.config.level].says
        keeps = self.rng.choice((0.55, 0.8, 1.0), size=len(rows))
        statements = [
            loosen(describe(corpus.videos[i].scene, says), self.rng, keep) for i, keep in zip(rows, keeps, strict=True)
        ]
        return statements, [phrase(statement, self.rng) for statement in statements]

    def _draw_frames(self, corpus: FrameCorpus, rows: NDArray[np.int64], frames_used: int) -> Tensor:
        """uint8 [B, frames_used, 3, S, S]: of each video one frame from each equal part of it."""
        part = self.config.frames_kept // frames_used
        chosen = self.rng.integers(part, size=(len(rows), frames_used)) + np.arange(frames_used) * part
        return corpus.frames[torch.from_numpy(rows)[:, None], torch.from_numpy(chosen)]

    def _update(self, loss: Tensor, number: int) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        decay = min(self.config.average_decay, (1 + number) / (10 + number))
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
            for name, tensor in self.model.state_dict().items():
                self.average[name].lerp_(tensor, 1 - decay)


def learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then half a cosine down to 2 %."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def draw_batches(config: PretrainConfig, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Rows of whole groups, every group once per round, without end."""
    num_groups = config.num_videos // config.group_size
    while True:
        order = rng.permutation(num_groups)
        for start in range(0, num_groups - config.batch_groups + 1, config.batch_groups):
            groups = order[start : start + config.batch_groups]
            yield (groups[:, None] * config.group_size + np.arange(config.group_size)).ravel()


# ---- evaluation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recall:
    """Share of the captions, in percent, whose video comes first or among the first five."""

    at_1: float
    at_5: float


def recall(scores: Tensor) -> Recall:
    """Of [T, V] scores with the right answers on the diagonal; a tie counts against the right answer."""
    right = scores.diagonal()[:, None]
    ranks = (scores >= right).sum(dim=1)
    return Recall(100 * (ranks <= 1).float().mean().item(), 100 * (ranks <= 5).float().mean().item())


@torch.inference_mode()
def evaluate(model: CLIP, tokenizer: Any, corpus: FrameCorpus) -> tuple[Recall, Recall]:
    """Text-to-video recall of the pooled embedding, and of EERCF's two-stage score over all videos."""
    embeddings, patches = [], []
    for start in range(0, len(corpus.videos), 32):
        pixels = normalise(corpus.frames[start : start + 32], MEAN, STD)
        some_embeddings, some_patches = encode_frames(model, pixels)
        embeddings.append(some_embeddings)
        patches.append(some_patches)
    frames, tokens = torch.cat(embeddings), torch.cat(patches)
    sentences = functional.normalize(encode_texts(model, tokenizer([video.caption for video in corpus.videos])), dim=-1)
    broad = sentences @ pool_frames(frames).T
    return recall(broad), recall(eercf_scores(sentences, frames, tokens))


def eercf_scores(sentences: Tensor, frames: Tensor, patches: Tensor) -> Tensor:
    """EERCF with no trained head [T, V]: 0.8 frame weak + 0.2 frame strong + 0.2 patch weak + 0.5 sentence-video."""
    unit = functional.normalize(frames, dim=-1)
    fit = torch.einsum("td,vfd->tvf", sentences, unit)
    frame_weak = ((fit / 0.01).softmax(dim=-1) * fit).sum(dim=-1)
    gathered = functional.normalize(torch.einsum("tvf,vfd->tvd", (fit / 0.1).softmax(dim=-1), unit), dim=-1)
    frame_strong = torch.einsum("td,tvd->tv", sentences, gathered)
    patch_weak = gated_patches(sentences, patches, 0.01)
    return 0.8 * frame_weak + 0.2 * frame_strong + 0.2 * patch_weak + 0.5 * sentences @ pool_frames(frames).T


# ---- command --------------------------------------------------------------------------------------------------------


def pretrain(
    output: Path, work: Path, config: PretrainConfig, sizes: TinySizes, evaluate_every: int = 100
) -> tuple[Recall, Recall]:
    """Train, and keep the three files of the best model so far in ``output``.

    Returns its broad and its EERCF recall on held-out videos.
    """
    torch.set_num_threads(config.threads)
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    trainer = Trainer(config, sizes, work)
    sizing = (config.frames_kept, sizes.image_size, config.video_format)
    validation = make_corpus(
        work / "validation", 1_000_000 + config.seed, config.num_validation, config.level, 1, *sizing
    )
    corpus = make_corpus(work / "training", config.seed, config.num_videos, config.level, config.group_size, *sizing)
    judge = new_model(sizes, len(trainer.merges))
    best = (Recall(0.0, 0.0), Recall(0.0, 0.0))
    with (work / "log.jsonl").open("w", encoding="utf-8") as log:
        _write_log(log, {"config": asdict(config), "sizes": asdict(sizes), "seconds": time.monotonic() - started})
        for number, rows in zip(range(config.steps), draw_batches(config, trainer.rng), strict=False):
            losses = trainer.step(number, corpus, rows)
            _write_log(log, {"step": number, "seconds": round(time.monotonic() - started, 1)} | losses)
            if (number + 1) % evaluate_every == 0 or number + 1 == config.steps:
                judge.load_state_dict(trainer.average)
                broad, focused = evaluate(judge.eval(), trainer.tokenizer, validation)
                _write_log(log, {"step": number, "broad": asdict(broad), "eercf": asdict(focused)})
                if broad.at_1 + focused.at_1 >= best[0].at_1 + best[1].at_1:
                    best = (broad, focused)
                    trainer.save(output)
    return best


def _write_log(log: Any, record: dict[str, Any]) -> None:
    line = json.dumps(record)
    log.write(line + "\n")
    log.flush()
    if "step" not in record or record["step"] % 10 == 0 or "broad" in record:
        print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.synthetic.pretrain", description="Train the small CLIP that ships with the project."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the three files of the model")
    parser.add_argument("--work", type=Path, required=True, help="folder for the rendered videos and log.jsonl")
    defaults = PretrainConfig()
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--videos", type=int, default=defaults.num_videos, help="training videos to render")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument("--evaluate-every", type=int, default=100, metavar="STEPS")
    options = parser.parse_args(arguments)
    try:
        config = PretrainConfig(options.seed, options.videos, steps=options.steps, threads=options.threads)
    except ValueError as error:
        parser.error(str(error))
    try:
        broad, focused = pretrain(options.output, options.work, config, TinySizes(), options.evaluate_every)
    except KeyboardInterrupt:
        print(f"stopped; the best weights so far, if any were evaluated, are in {options.output}", file=sys.stderr)
        return 130
    print(json.dumps({"broad": asdict(broad), "eercf": asdict(focused)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
