"""What a training run was told: one dataclass, presets by name, recipes from TOML files."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from index_store.errors import InputError, UsageError
from stages.rerankers.fusion import Head
from stages.training.losses import Contrast
from stages.training.optimisers import OptimiserName, ScheduleName

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # only there before Python 3.11

Precision = Literal["auto", "float32", "bfloat16"]
"""Of the matrix products in training; auto: bfloat16 on a GPU, float32 elsewhere."""

EpochOf = Literal["videos", "captions"]
"""What an epoch goes through: each video once, with a caption at random; or as many pairs as there are captions."""

Method = Literal["token-binder", "clip4clip", "clip4clip-tight", "x-clip", "ts2-net", "ucofia", "eercf"]
"""What is trained; all but the first are heads that score pairs."""

Temporal = Literal["transformer", "lstm", "none"]
"""What goes over a head's frames in their order; lstm for clip4clip only (its seqLSTM; none is its meanP)."""

_CHOICES: dict[str, Any] = {
    "method": Method,
    "temporal": Temporal,
    "precision": Precision,
    "optimiser": OptimiserName,
    "schedule": ScheduleName,
    "epoch_of": EpochOf,
    "contrast": Contrast,
}
"""Fields of TrainConfig that are one of several words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that changes the weights. Defaults: TokenBinder's recipe for MSR-VTT.

    Some fields are TokenBinder's alone: num_indicators, num_blocks, num_heads, head, is_listwise, gumbel,
    image_learning_rate, v2t, focused, micro_lists, micro_frames. Some are those of heads that score pairs: temporal,
    num_layers, num_words, num_draws, micro_videos.
    """

    method: Method = "token-binder"
    num_indicators: int = 4
    """M."""
    num_candidates: int = 10
    """K: length of the lists that are trained on, and of those that a validation re-orders."""
    num_blocks: int = 1
    num_heads: int = 4
    head: Head = "equivariant"
    is_listwise: bool = True
    """False: the same network scores every candidate alone."""
    gumbel: float = 0.0
    """Size of the Gumbel noise on the attention's logits; 1 is the Gumbel-Softmax's own."""
    temporal: Temporal = "transformer"
    num_layers: int = 4
    """Of the temporal transformer, which starts as the first layers of CLIP's text transformer where sizes fit."""
    num_words: int = 32
    """W of the matrices of weights over words; later words of a longer text are weighed as at the start of training."""
    num_draws: int = 500
    """Draws of the noise on the choice of patches (ts2-net, ucofia)."""
    epochs: float = 5.0
    epoch_of: EpochOf = "videos"
    batch_size: int = 128
    learning_rate: float = 1e-4
    """Of the focused view and the indicators, or of the head."""
    text_learning_rate: float = 1e-6
    """Of the text tower; 0 keeps it as it is. With a head: of its logit scale too, and not of the embeddings."""
    image_learning_rate: float = 1e-6
    """Of the image tower, where it learns too."""
    optimiser: OptimiserName = "adamw"
    """Those of the published systems are exactly theirs, with their rule of what decays."""
    weight_decay: float = 0.2
    schedule: ScheduleName = "cosine"
    """Of the learning rate after its rise; those of the published systems are exactly theirs."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    neighbours: int = 3
    """To every video drawn for a batch, so many of its nearest neighbours are added: hard negatives for its caption."""
    pool: int = 0
    """Videos that a step's candidates are recalled from, 0 for all: as many as there will be in use, where the training
    videos are more. Among more than that, a group of near-duplicates is rarely recalled whole."""
    pool_run: int = 1
    """So many videos that follow each other enter the pool together: what a caption compares is there, as in use."""
    contrast: Contrast = "mean"
    """Loss of the broad view, or of a head's scores; those of the published systems are exactly theirs.

    EERCF has a loss of its own. A contrast is over the whole batch: no gradient is gathered over several batches.
    """
    v2t: bool = True
    """Train both directions."""
    focused: bool = True
    """False: the broad view learns alone and Delta stays 0, for comparison."""
    micro_lists: int = 32
    """Candidate lists that are scored at once; changes memory and speed, not the gradient."""
    micro_videos: int = 16
    """Videos whose pairs with all texts of the batch a head scores at once; changes memory and speed, not the gradient.

    EERCF's loss takes the batch at once all the same.
    """
    micro_frames: int = 64
    """Frames that pass the image tower at once where it learns; changes memory and speed, not the gradient."""
    precision: Precision = "auto"
    """Weights, normalisations, softmax and losses are float32 in each of them."""
    seed: int = 0
    validation: float = 0.1
    """Share of the videos that are kept from training, to choose the best weights."""
    validation_run: int = 1
    """So many videos that follow each other stay on one side: clips of one film, groups of near-duplicates."""
    evaluate_every: int = 200
    """Steps."""
    patience: int = 5
    """Evaluations without a better one after which training ends."""

    def __post_init__(self) -> None:
        """Raise UsageError for what cannot be trained."""
        if self.num_indicators < 2 or self.num_candidates < 2 or self.batch_size < 2:
            sizes = f"M = {self.num_indicators}, K = {self.num_candidates}, batch size = {self.batch_size}"
            raise UsageError(f"{sizes}: each must be at least 2")
        if self.temporal == "lstm" and self.method != "clip4clip":
            raise UsageError(f"temporal = 'lstm' is clip4clip's, not that of {self.method}")
        if min(self.num_layers, self.num_words - 1, self.num_draws - 1, self.micro_videos - 1) < 0:
            sizes = f"num_layers = {self.num_layers}, num_words = {self.num_words}, num_draws = {self.num_draws}"
            raise UsageError(f"{sizes}, micro_videos = {self.micro_videos}: expected 0 layers or more, 1 of the others")
        if min(self.validation_run, self.pool_run) < 1 or self.pool < 0:
            found = f"validation_run = {self.validation_run}, pool_run = {self.pool_run}, pool = {self.pool}"
            raise UsageError(f"{found}: expected 1 video or more, 1 or more, and 0 or more")
        if not 0 < self.epochs < float("inf") or not 0 <= self.validation < 1:
            raise UsageError(f"epochs = {self.epochs} must be above 0, validation = {self.validation} within [0, 1)")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in get_args(known):
                raise UsageError(f"{name} = {getattr(self, name)!r}, expected one of {', '.join(get_args(known))}")


def _published(method: Method, batch_size: int, epochs: float = 5.0) -> TrainConfig:
    """The recipe that the CLIP4Clip family shares for MSR-VTT: every caption once an epoch, no hard negatives."""
    return TrainConfig(
        method=method,
        num_candidates=50,
        epochs=epochs,
        epoch_of="captions",
        batch_size=batch_size,
        learning_rate=1e-4,
        text_learning_rate=1e-7,
        optimiser="bertadam",
        weight_decay=0.2,
        schedule="bert-cosine",
        warmup=0.1,
        neighbours=0,
    )


PRESETS: dict[str, TrainConfig] = {
    "tokenbinder": TrainConfig(),
    "clip4clip": _published("clip4clip", 128),
    "clip4clip-tight": _published("clip4clip-tight", 128),
    "x-clip": _published("x-clip", 300),
    "ts2-net": _published("ts2-net", 128),
    "ucofia": _published("ucofia", 128, epochs=15.0),
    "eercf": _published("eercf", 240),
    "small": TrainConfig(
        epochs=10,
        batch_size=48,
        learning_rate=2e-3,
        text_learning_rate=2e-4,
        image_learning_rate=2e-4,
        weight_decay=0.05,
        micro_lists=48,
        micro_videos=48,
    ),
}
"""small: for the small model that ships with the project, on a CPU; the others: those of the papers, by their name.

The published programs keep CLIP in float16 without a float32 copy, where 1e-7 moves the weights further than it says;
around float32 weights a text_learning_rate of about 1e-6 comes nearer to that.
"""


def choose(preset: str | None, recipe: Path | None, options: dict[str, Any]) -> TrainConfig:
    """A preset, then the ``[train]`` table of a TOML file, then single options; the later ones go before.

    No preset: that of the method which the options or the recipe name. Raises InputError, UsageError.
    """
    table = {} if recipe is None else _table(recipe)
    method = options.get("method", table.get("method", "token-binder"))
    if preset is None:
        preset = method if method in PRESETS else "tokenbinder"
    config = with_options(PRESETS[preset], table, str(recipe))
    return with_options(config, options, "the command line")


def read_recipe(path: Path, base: TrainConfig) -> TrainConfig:
    """``base`` with what the ``[train]`` table of a TOML file says. Raises InputError naming what is wrong."""
    return with_options(base, _table(path), str(path))


def _table(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text("utf-8")).get("train", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read as a TOML recipe: {error}") from error
    return table


def with_options(base: TrainConfig, options: dict[str, Any], source: str) -> TrainConfig:
    """``base`` with other values for some fields. Raises InputError for an unknown field or a value of another type."""
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    for name, value in options.items():
        if name not in fields:
            raise InputError(f"{source} sets {name!r}, which no recipe has; known: {', '.join(sorted(fields))}")
        wanted = type(getattr(PRESETS["tokenbinder"], name))  # in ``base`` a whole number may stand for a float
        fits = isinstance(value, (int, float) if wanted is float else wanted) and (wanted is bool) == isinstance(
            value, bool
        )
        if not fits:
            raise InputError(f"{source} sets {name} = {value!r}, expected {wanted.__name__}")
    return replace(base, **options)
