"""ClipModel: an image tower and a text tower with one joint space, on one device, in one precision."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from index_store.errors import UsageError
from index_store.settings import ComputeDtype, ModelSettings
from stages.models import MODELS, Towers, image, remembered, text, token_shift
from stages.models.architecture import FOLDER_NAME, Architecture, resolve
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer import build as build_tokenizer
from stages.models.weights import StateReader, WeightSource, fill, find_pinned, find_weights, unfilled
from stages.preprocess import normalise

DTYPES: dict[ComputeDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
NATIVE_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""/proc/cpuinfo flags of processors (x86, ARM) that multiply bfloat16 themselves; others are 4 times slower in it."""

TEXT_LENGTHS = (16, 32, 48)
"""Lengths in tokens that texts are cut to before a causal tower; longer ones run at full length."""
TEXTS_PER_BATCH = {"cpu": 8, "cuda": 64}
"""Always this many texts at once, padded with copies: a text's features must not depend on its neighbours."""


@dataclass(frozen=True, slots=True, eq=False)
class TextFeatures:
    """Features of T texts, raw (not of unit length), in the joint space."""

    sentence: Tensor
    """float32 [T, D], the model's own text embedding."""
    words: Tensor
    """float32 [T, W, D], every position from start to end of text; zero where masked. W fits the longest text."""
    word_mask: Tensor
    """bool [T, W], True = start, word or end of text."""
    indicators: Tensor | None = None
    """float32 [T, M, D], the query indicators I_1..I_M of a model that has some; I_1 is the sentence."""
    has_padding: bool = False
    """True: W is the same for all texts, and masked words are what the tower makes of padding."""


class ClipModel:
    """Frames and texts -> raw features in one joint space of width D."""

    def __init__(
        self,
        source: WeightSource,
        digest: Future[str],
        device: torch.device,
        dtype: ComputeDtype,
        logit_scale: float,
    ) -> None:
        self.architecture = source.architecture
        self.name = source.architecture.name + (token_shift.SUFFIX if source.architecture.token_shift else "")
        self.device = device
        self.dtype: ComputeDtype = dtype
        """The precision of the matrix products; the residual stream and the results are always float32."""
        self.logit_scale = logit_scale
        """Factor of the cosines before a softmax over candidates: the exponential of the stored parameter."""
        if device.type == "cuda" and dtype == "float32":
            torch.backends.cudnn.allow_tf32 = False  # as torch has it for products; convolutions would lose 13 bits
        self._source = source
        self._digest = digest
        self._image: image.ImageTower | None = None
        self._text: text.TextTower | None = None
        self._tokenizer: Tokenizer | None = None
        self._indicators: Tensor | None = None
        self._num_words: int | None = None

    def on(self, device: torch.device) -> ClipModel:
        """This model with a copy of its image tower on ``device``, without a text tower; itself where it is there."""
        if device == self.device:
            return self
        there = ClipModel(self._source, self._digest, device, self.dtype, self.logit_scale)
        there._image = copy.deepcopy(self.image_side())
        there._image.module.to(device)
        return there

    def settings(self) -> ModelSettings:
        """What must be equal for two feature sets to be comparable."""
        preprocessing = self.architecture.preprocessing
        return ModelSettings(
            name=self.name,
            pretrained=self._source.pretrained,
            weights_sha256=self._digest.result(),
            embed_dim=self.architecture.embed_dim,
            tokens_per_frame=self.tokens_per_frame,
            image_size=self.architecture.image_size,
            mean=preprocessing.mean,
            std=preprocessing.std,
            interpolation=preprocessing.interpolation,
            resize_mode=preprocessing.resize_mode,
            compute_dtype=self.dtype,
        )

    @property
    def tokens_per_frame(self) -> int:
        """P, 1 + patches; known without the image tower's weights too."""
        if self._image is not None:
            return self._image.tokens_per_frame
        return image.tokens_per_frame(self.architecture)

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S], uint8 or float and normalised -> float32 tokens [B, P, D], raw, on the model's device.

        Row 0 of P is the frame's embedding, the others are its patches. A frame's tokens are the same bits wherever it
        stands in the batch and whatever else is in there, as long as B is the same. Raises UsageError without tower.
        """
        tower = self.image_side()
        with torch.inference_mode():
            pixels = self._prepared(pixels)
            with self._precision(self.dtype):
                tokens = tower.tokens(pixels)
            return tokens.float()

    @property
    def sees_videos(self) -> bool:
        """Whether a frame's tokens depend on the other frames of its video: then ``encode_videos`` is to be used."""
        return image.sees_videos(self.image_side())

    def encode_videos(self, pixels: Tensor, frame_mask: Tensor) -> Tensor:
        """Pixels [V, F, 3, S, S] -> float32 tokens [V, F, P, D]; as ``encode_frames``, which each video is like here.

        frame_mask bool [V, F], True = real frame; the tokens of the others may be anything. Raises UsageError for a
        model that does not see videos.
        """
        tower = self.image_side()
        if not image.sees_videos(tower):
            raise UsageError(f"model {self.name} sees single frames, not videos")
        with torch.inference_mode():
            prepared = self._prepared(pixels.flatten(0, 1)).view(pixels.shape)
            with self._precision(self.dtype):
                tokens = tower.video_tokens(prepared, frame_mask.to(self.device))
            return tokens.float()

    def _prepared(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] on the model's device."""
        pixels = pixels.to(self.device, non_blocking=True)
        if pixels.dtype != torch.uint8:
            return pixels
        preprocessing = self.architecture.preprocessing
        return normalise(pixels, preprocessing.mean, preprocessing.std)

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Features of T texts; those of a text depend on nothing but the text. Raises UsageError without the tower.

        On a CPU texts run in float32 whatever the dtype: they are few, and half precision is slow on most processors.
        """
        tower, tokenizer = self.query_side()
        ids = tokenizer(texts)
        if self._num_words is not None:
            ids = text.cut(ids, self._num_words, tokenizer.end_id)
        mask = text.word_mask(ids, tokenizer.end_id)
        lengths = self._lengths_to_run(tower, mask)
        longest = max(lengths, default=1)
        width = self.architecture.embed_dim
        sentence = torch.zeros(len(ids), width, device=self.device)
        words = torch.zeros(len(ids), longest, width, device=self.device)
        number = 0 if self._indicators is None else len(self._indicators)
        indicators = torch.zeros(len(ids), number, width, device=self.device)
        with torch.inference_mode():
            for length in sorted(set(lengths)):
                rows = torch.tensor([row for row, needed in enumerate(lengths) if needed == length])
                sentence[rows], words[rows, :length], indicators[rows] = self._encode_ids(
                    tower, ids[rows, :length], mask[rows].sum(dim=1) - 1
                )
        mask = mask[:, :longest].to(self.device)
        if self._num_words is None:
            words.masked_fill_(~mask[..., None], 0)
        return TextFeatures(sentence, words, mask, indicators if number else None, self._num_words is not None)

    def query_side(self) -> tuple[text.TextTower, Tokenizer]:
        """The text tower and its tokenizer. Raises UsageError for a model that was loaded without."""
        if self._text is None or self._tokenizer is None:
            raise UsageError(f"model {self.name} was loaded without its text tower")
        return self._text, self._tokenizer

    def image_side(self) -> image.ImageTower:
        """The image tower. Raises UsageError for a model that was loaded without."""
        if self._image is None:
            raise UsageError(f"model {self.name} was loaded without its image tower")
        return self._image

    def check_can_be_found_again(self) -> None:
        """Raise UsageError for a model folder whose weights lie elsewhere: a store remembers the file only."""
        folder, path = self.architecture.folder, self._source.path
        if self.architecture.name == FOLDER_NAME and folder is not None and path.parent != folder:
            raise UsageError(
                f"the weights {path} are not in the model folder {folder}, which could not be found again "
                "later; put the file into that folder"
            )

    def check_takes_files(self) -> None:
        """Raise UsageError where this model would be another one when loaded with a weight file made from it."""
        loaded = find_weights(self.architecture, str(self._source.path)).architecture
        if self.name == FOLDER_NAME or loaded.preprocessing != self.architecture.preprocessing:
            raise UsageError(
                f"model {self.name} with the weights {self._source.pretrained} cannot be loaded from a weight file "
                "with the preprocessing that it has now; use weights that came from a file or OpenAI's"
            )

    def digest_with(self, path: Path) -> str:
        """What settings().weights_sha256 will be for this model with the weight file at ``path``."""
        return find_weights(self.architecture, str(path)).digest()

    def adopt_query_side(self, indicators: Tensor, weights: Mapping[str, Tensor], path: Path) -> None:
        """From now on texts run through a text tower with these weights, and with query indicators [M, width].

        Empty ``weights``: the tower stays as it is. ``path`` is where they came from, for messages. Raises UsageError
        for a tower that takes no indicators, InputError for weights that do not fit.
        """
        tower, _ = self.query_side()
        tower.check_takes_indicators(self.name)
        if weights:
            self.adopt_text_tower(weights, path)
        self._indicators = indicators.to(self.device)

    def adopt_text_tower(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """From now on texts run through a text tower with these weights, read from ``path``. Raises InputError."""
        tower, _ = self.query_side()
        fill(tower.module, weights, "text.", path)
        tower.module.to(self.device)

    def keep_padding(self, num_words: int) -> None:
        """From now on texts are cut to W = ``num_words`` tokens and keep what the tower makes of their padding.

        Raises UsageError for a tower without a causal mask: W would change the texts themselves.
        """
        tower, tokenizer = self.query_side()
        if not tower.may_be_cut:
            raise UsageError(f"model {self.name} has no causal text tower, which the released code was written for")
        self._num_words = min(num_words, tokenizer.context_length)

    def _lengths_to_run(self, tower: text.TextTower, mask: Tensor) -> list[int]:
        """The number of positions each text of mask [T, W] runs with: one of a few, depending on that text alone."""
        context_length = mask.shape[1]
        if not tower.may_be_cut or self._num_words is not None:
            return [context_length] * len(mask)
        choices = [length for length in TEXT_LENGTHS if length < context_length] + [context_length]
        return [next(length for length in choices if length >= needed) for needed in mask.sum(dim=1).tolist()]

    def _encode_ids(self, tower: text.TextTower, ids: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [T, W] -> sentence [T, D], words [T, W, D], indicators [T, M, D], float32, in batches of one shape."""
        size = TEXTS_PER_BATCH[self.device.type]
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, len(ids), size):
            batch, end = _fill_up(ids[start : start + size], size), _fill_up(ends[start : start + size], size)
            with self._precision(self._text_dtype):
                features = self._encode_batch(tower, batch.to(self.device), end.to(self.device))
            number = min(size, len(ids) - start)
            sentence, word, indicator = (feature[:number].float() for feature in features)
            parts.append((sentence, word, indicator))
        sentences, words, indicators = (torch.cat(part) for part in zip(*parts, strict=True))
        return sentences, words, indicators

    def _encode_batch(self, tower: text.TextTower, ids: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._indicators is None:
            sentence, words = tower.features(ids)
            return sentence, words, sentence.new_empty(len(ids), 0, sentence.shape[1])
        words, indicators = tower.features_with_indicators(ids, ends, self._indicators)
        return indicators[:, 0], words, indicators

    @property
    def _text_dtype(self) -> ComputeDtype:
        return "float32" if self.device.type == "cpu" else self.dtype

    def _precision(self, dtype: ComputeDtype) -> AbstractContextManager[object]:
        """Half-precision matrix products around a float32 residual stream; nothing at all in float32."""
        return nullcontext() if dtype == "float32" else torch.autocast(self.device.type, dtype=DTYPES[dtype])

    def add_image_tower(self, state: StateReader) -> None:
        """Build the image tower and fill it from ``state``."""
        with unfilled():
            self._image = image.build(self.architecture)
        self._place(self._image.module, state, "visual.", self.dtype)

    def add_text_tower(self, state: StateReader) -> None:
        """Build the text tower and its tokenizer and fill it from ``state``."""
        with unfilled():
            self._text = text.build(self.architecture)
        self._tokenizer = build_tokenizer(self.architecture)
        self._place(self._text.module, state, "text.", self._text_dtype)

    def _place(self, module: nn.Module, state: StateReader, prefix: str, dtype: ComputeDtype) -> None:
        fill(module, state.tower(prefix), prefix, state.path)
        module.eval().requires_grad_(False).to(self.device)
        if dtype != "float32":
            _lower(module, DTYPES[dtype])


def _fill_up(rows: Tensor, size: int) -> Tensor:
    """The same rows and copies of the last one, ``size`` in all."""
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])


def load(name: str, pretrained: str, device: str, dtype: str, towers: Towers) -> ClipModel:
    """See ``stages.models.load_model``."""
    chosen = choose_device(device)
    architecture = _shifted(resolve(name.removesuffix(token_shift.SUFFIX), pretrained, MODELS), name)
    return _load(find_weights(architecture, pretrained), None, chosen, choose_dtype(dtype, chosen), towers)


def load_text_side(pinned: ModelSettings, device: str, dtype: str) -> ClipModel:
    """See ``stages.models.load_text_side``."""
    chosen = choose_device(device)
    architecture = _shifted(
        resolve(pinned.name.removesuffix(token_shift.SUFFIX), pinned.pretrained, MODELS), pinned.name
    )
    source, digest = find_pinned(architecture, pinned)
    return _load(source, digest, chosen, choose_dtype(dtype, chosen), "text")


def _shifted(architecture: Architecture, name: str) -> Architecture:
    return replace(architecture, token_shift=name.endswith(token_shift.SUFFIX))


def _load(
    source: WeightSource, known_digest: str | None, device: torch.device, dtype: ComputeDtype, towers: Towers
) -> ClipModel:
    with ThreadPoolExecutor(1) as pool:
        # 600 MB take 1.7 s; the interpreter is free meanwhile
        digest = pool.submit(_digest, source) if known_digest is None else _done(known_digest)
        state = StateReader(source.path)
        model = ClipModel(source, digest, device, dtype, math.exp(state.scalar("logit_scale", 0.0)))
        if towers in ("both", "image"):
            model.add_image_tower(state)
        if towers in ("both", "text"):
            model.add_text_tower(state)
    return model


def _digest(source: WeightSource) -> str:
    """The SHA-256, remembered for the next time that nothing but a text tower is wanted."""
    with contextlib.suppress(OSError):
        stamps = remembered.stamps_of(source.files)
        digest = source.digest()
        remembered.remember(digest, stamps)
        return digest
    return source.digest()


def _done(digest: str) -> Future[str]:
    future: Future[str] = Future()
    future.set_result(digest)
    return future


def choose_device(device: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means here; of several the first. Raises UsageError."""
    return choose_devices(device)[0]


def choose_devices(devices: str) -> list[torch.device]:
    """The devices that "auto", "cpu", "cuda", "cuda:N" or a list such as "cuda:0,cuda:2" means here.

    "cuda" is every GPU of the kind of the first one: others would give other bits. "auto" is that, or the CPU where
    there is none. Raises UsageError, also for a list of CPUs and GPUs.
    """
    if devices == "auto":
        devices = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = [found for name in devices.split(",") for found in _devices_called(name.strip())]
    kinds = sorted({device.type for device in chosen})
    if len(kinds) > 1:
        raise UsageError(f"devices {devices} are of different kinds ({', '.join(kinds)}); use one kind at a time")
    if kinds == ["cuda"] and len(set(chosen)) < len(chosen):
        raise UsageError(f"devices {devices} name a GPU twice, which would only share it; name each once")
    return chosen


def _devices_called(name: str) -> list[torch.device]:
    """One device, or all GPUs like the first one for "cuda"."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"no device is called {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type not in TEXTS_PER_BATCH:
        raise UsageError(f"device {name} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return [torch.device("cpu")]
    number = torch.cuda.device_count()
    if (device.index or 0) >= number:
        found = f"{number} CUDA devices are usable here" if number != 1 else "1 CUDA device is usable here"
        raise UsageError(f"device {name} asked, but {found}; use --device cpu")
    if device.index is not None:
        return [device]
    kind = torch.cuda.get_device_name(0)
    return [torch.device("cuda", index) for index in range(number) if torch.cuda.get_device_name(index) == kind]


def choose_dtype(dtype: str, device: torch.device) -> ComputeDtype:
    """The precision that ``dtype`` means on ``device``; "auto" is the fastest accurate one. Raises UsageError."""
    if dtype == "auto":
        if device.type == "cuda":
            return "float16"
        return "bfloat16" if has_native_bfloat16() else "float32"
    for known in DTYPES:
        if dtype == known:
            return known
    raise UsageError(f"no precision is called {dtype!r}; use auto, {', '.join(DTYPES)}")


def has_native_bfloat16(cpu_description: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bfloat16 itself; False where the system does not tell."""
    try:
        words = cpu_description.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return not NATIVE_BFLOAT16_FLAGS.isdisjoint(words)


def _lower(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of matrix products and convolutions; norms, embeddings and scales stay float32.

    Autocast would convert them in every call: for ViT-B/32 half a gigabyte of memory traffic a batch.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.MultiheadAttention):
            for parameter in part.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
