"""What was computed and how: the settings that are pinned in ``tbpipe.toml`` when a store is made."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import tomli_w

from index_store.atomic import write_bytes
from index_store.errors import FingerprintError, InputError, StoreError, StoreMissingError, UsageError
from index_store.layout import FORMAT_VERSION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # only there before Python 3.11

ComputeDtype = Literal["float32", "bfloat16", "float16"]
SamplingMode = Literal["uniform", "fps", "keyframe"]
TokenDtype = Literal["float16", "int8"]

_NOT_IN_FINGERPRINT = {"model.pretrained"}
"""Names the weights for people; ``model.weights_sha256`` is what counts."""
_LATER = {"tokens.places"}
"""Settings that earlier stores lack: left out of the fingerprint where they are None, which is as it was before."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The image-text model and how frames are prepared for it."""

    name: str
    """Name of the architecture, as ``--model`` takes it."""
    pretrained: str
    """Tag or absolute file path the weights came from; for information, not in the fingerprint."""
    weights_sha256: str
    """SHA-256 of the weights file, hex."""
    embed_dim: int
    """D, the width of the joint space."""
    tokens_per_frame: int
    """What the tower gives for one frame: 1 embedding + its patches, before any are dropped."""
    image_size: int
    """Side of the square that the tower sees, pixels."""
    mean: tuple[float, float, float]
    """Per RGB channel, on the scale 0..1."""
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str
    compute_dtype: ComputeDtype

    def __post_init__(self) -> None:
        """Raise UsageError for a value out of range."""
        for field in ("embed_dim", "tokens_per_frame", "image_size"):
            _expect_positive(f"model.{field}", getattr(self, field))
        _expect_choice("model.compute_dtype", self.compute_dtype, get_args(ComputeDtype))
        for field in ("mean", "std"):
            channels = tuple(float(value) for value in getattr(self, field))
            if len(channels) != 3:
                raise UsageError(f"model.{field} is {channels}, expected three numbers, for R, G and B")
            object.__setattr__(self, field, channels)  # 1 and 1.0 are one setting, so they must give one fingerprint


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Which frames of a video are looked at."""

    mode: SamplingMode
    frames: int
    """F, the number of frames kept of a video; shorter ones are padded and masked."""
    fps: float | None = None
    """Frames a second, only with mode ``fps``."""

    def __post_init__(self) -> None:
        """Raise UsageError for a value out of range or an fps that the mode does not use."""
        _expect_choice("sampling.mode", self.mode, get_args(SamplingMode))
        _expect_positive("sampling.frames", self.frames)
        if (self.mode == "fps") != (self.fps is not None):
            raise UsageError(f"sampling.fps is {self.fps} with mode {self.mode!r}; give it with mode 'fps' only")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise UsageError(f"sampling.fps is {self.fps}, expected a positive number of frames a second")
        if self.fps is not None:
            object.__setattr__(self, "fps", float(self.fps))  # 1 and 1.0 are one setting


@dataclass(frozen=True, slots=True)
class KeepRule:
    """What ``tokens.keep`` says. Nothing else takes that text apart."""

    name: Literal["all", "cls", "closest", "distinct"]
    num_patches: int = 0
    """N, of a frame; 0 with ``all`` and ``cls``."""

    @staticmethod
    def read(text: str) -> KeepRule | None:
        """``all``, ``cls``, ``N`` (the closest), ``distinct:N``; None for any other text."""
        if text == "all":
            return KeepRule("all")
        if text == "cls":
            return KeepRule("cls")
        found = re.fullmatch(r"(distinct:)?([1-9][0-9]{0,8})", text)
        return KeepRule("distinct" if found[1] else "closest", int(found[2])) if found else None


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """How much of every frame is kept, and how exactly."""

    dtype: TokenDtype
    keep: str
    """``all``, ``cls`` (the frame embedding alone), or with it N patches of a frame.

    ``N``: the patches closest to the frame embedding. ``distinct:N``: those farthest from the mean patch of the frame.
    """
    places: Literal[True] | None = None
    """True, only with N: the store says which patch each token is. None with N: it does not, as earlier stores."""

    def __post_init__(self) -> None:
        """Raise UsageError for an unknown dtype or keep rule, and for places that need not be stored."""
        _expect_choice("tokens.dtype", self.dtype, get_args(TokenDtype))
        if KeepRule.read(self.keep) is None:
            raise UsageError(
                f"tokens.keep is {self.keep!r}, expected 'all', 'cls' or a number of patches a frame: '12' (those "
                "closest to the frame embedding) or 'distinct:12' (those farthest from the mean patch)"
            )
        if self.places not in (None, True) or (self.places and not self.keeps_some):
            raise UsageError(
                f"tokens.places is {self.places!r} with keep {self.keep!r}; give it as true, with a number of patches"
            )

    @staticmethod
    def new(dtype: TokenDtype, keep: str) -> TokenSettings:
        """Those of a new store: it says which patch a token is, where that must be said."""
        settings = TokenSettings(dtype, keep)
        return replace(settings, places=True) if settings.keeps_some else settings

    @property
    def rule(self) -> KeepRule:
        """What ``keep`` says."""
        rule = KeepRule.read(self.keep)
        assert rule is not None
        return rule

    @property
    def keeps_some(self) -> bool:
        """Whether it is some patches that are kept, not all and not none."""
        return self.rule.num_patches > 0

    @property
    def knows_places(self) -> bool:
        """Whether it is known which patch of its frame each token is."""
        return self.keep == "all" or self.places is True

    def kept_tokens(self, tokens_per_frame: int) -> int:
        """P, the tokens stored for a frame of which the tower gives ``tokens_per_frame``."""
        return tokens_per_frame if self.keep == "all" else 1 + self.rule.num_patches


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Everything that changes the numbers in a store."""

    model: ModelSettings
    sampling: SamplingSettings
    tokens: TokenSettings
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Raise UsageError when more patches are to be kept than the tower gives."""
        if self.num_tokens > self.model.tokens_per_frame:
            raise UsageError(
                f"tokens.keep is {self.tokens.keep}, but {self.model.name} gives {self.model.tokens_per_frame - 1} "
                "patches a frame; give a smaller number or 'all'"
            )

    @property
    def num_frames(self) -> int:
        """F, frames a video, padded."""
        return self.sampling.frames

    @property
    def num_tokens(self) -> int:
        """P, tokens a frame: the frame embedding and the kept patches."""
        return self.tokens.kept_tokens(self.model.tokens_per_frame)

    @property
    def embed_dim(self) -> int:
        """D, width of a token."""
        return self.model.embed_dim

    @property
    def token_shape(self) -> tuple[int, int, int]:
        """(F, P, D), one video's tokens."""
        return (self.num_frames, self.num_tokens, self.embed_dim)

    @property
    def place_bytes(self) -> int:
        """Bytes of the number that says which patch a token is, where that is stored."""
        return 1 if self.model.tokens_per_frame <= 256 else 2

    @property
    def bytes_per_video(self) -> int:
        """Bytes of one video in a shard."""
        frames, tokens, width = self.token_shape
        stored_tokens = frames * tokens * (width + 4 if self.tokens.dtype == "int8" else 2 * width)
        if self.tokens.places:
            stored_tokens += frames * tokens * self.place_bytes
        mask_and_timestamps = frames * (1 + 8)
        return stored_tokens + mask_and_timestamps + frames * width * 2 + width * 4

    @property
    def canonical_json(self) -> str:
        """Everything that changes the numbers as one line of ASCII: flat, keys sorted, no spaces."""
        values = {
            name: value
            for name, value in _flatten(self)
            if name not in _NOT_IN_FINGERPRINT and not (name in _LATER and value is None)
        }
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @property
    def section_json(self) -> str:
        """What ``tbpipe.toml`` says under [store] but the fingerprint, as one line of JSON."""
        return json.dumps(_without_none(dataclasses.asdict(self)), sort_keys=True, separators=(",", ":"))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of ``canonical_json``, 64 hex digits."""
        return hashlib.sha256(self.canonical_json.encode()).hexdigest()

    def differences(self, other: StoreSettings) -> list[str]:
        """What makes the fingerprints differ, such as ``model.name: ViT-B-32 here, ViT-B-16 asked``."""
        return [
            f"{name}: {here} here, {asked} asked"
            for (name, here), (_, asked) in zip(_flatten(self), _flatten(other), strict=True)
            if here != asked and name not in _NOT_IN_FINGERPRINT
        ]

    def require_same(self, other: StoreSettings, where: Path) -> None:
        """Raise FingerprintError, naming the differences, if ``other`` is not what the store at ``where`` has."""
        if self.fingerprint != other.fingerprint:
            raise FingerprintError(
                f"{where} was made with other settings ({'; '.join(self.differences(other))}); "
                "ask for the store's own settings, or use another store directory"
            )


def read_settings(path: Path) -> StoreSettings:
    """The ``[store]`` section of a ``tbpipe.toml``; other sections are not looked at.

    Raises StoreMissingError where there is no such file or section, StoreError for another format version, an unknown
    or missing key or a bad value, FingerprintError when the section was edited after the store was made.
    """
    document = read_toml(path)
    if "store" not in document:
        raise _no_store(path)
    section = dict(document["store"])
    version = section.get("format_version")
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{path.parent} has store format {version}, this tbpipe reads format {FORMAT_VERSION}; "
            "use the tbpipe that made it, or extract into a new directory"
        )
    pinned = section.pop("fingerprint", None)
    try:
        settings = _parse_store(section)
    except UsageError as error:
        raise StoreError(f"{path}: {error}; [store] is pinned when a store is made, restore it from a copy") from error
    if settings.fingerprint != pinned:
        raise FingerprintError(
            f"{path}: [store] was changed after the store was made (fingerprint {pinned} there, {settings.fingerprint} "
            "computed); put the old values back, or extract into a new directory"
        )
    return settings


def settings_of(section_json: str) -> StoreSettings | None:
    """The settings that ``section_json`` gave; None for anything else, and for those of another format."""
    try:
        settings = _parse_store(json.loads(section_json))
    except (ValueError, TypeError, UsageError):
        return None
    return settings if settings.format_version == FORMAT_VERSION else None


def restore_settings(path: Path, settings: StoreSettings) -> Path | None:
    """Write ``[store]`` anew. What else the file says stays, without comments; the old file is kept beside it.

    Returns where the old file is; None when there was none.
    """
    others: dict[str, Any] = {}
    kept = None
    if path.exists():
        with contextlib.suppress(StoreError, InputError):
            others = {name: value for name, value in read_toml(path).items() if name != "store"}
        kept = path.with_name(f"{path.name}.damaged")
        write_bytes(kept, path.read_bytes())
    _write_behind(tomli_w.dumps(others), path, settings)
    return kept


def write_settings(path: Path, settings: StoreSettings) -> None:
    """Pin ``settings`` as the ``[store]`` section of ``path``; what else the file says stays as it is, comments too.

    Raises StoreError when there is a ``[store]`` section already.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text and "store" in read_toml(path):
        raise StoreError(f"{path} already has a [store] section, and it is pinned")
    _write_behind(text, path, settings)


def _write_behind(text: str, path: Path, settings: StoreSettings) -> None:
    """Give ``path`` this text and a ``[store]`` section behind it."""
    section = {"fingerprint": settings.fingerprint, **_without_none(dataclasses.asdict(settings))}
    separator = "\n\n" if text else ""
    comment = "# Pinned when the store was made: other settings need another store.\n"
    write_bytes(path, (text.rstrip("\n") + separator + comment + tomli_w.dumps({"store": section})).encode())


def has_store_section(path: Path) -> bool:
    """Whether a ``tbpipe.toml`` exists and pins a store."""
    return path.exists() and "store" in read_toml(path)


def _no_store(path: Path) -> StoreMissingError:
    return StoreMissingError(f"no store in {path.parent}; 'tbpipe extract SOURCE --store {path.parent}' makes one")


def read_toml(path: Path) -> dict[str, Any]:
    """Everything that a ``tbpipe.toml`` says. Raises StoreMissingError, StoreError, InputError."""
    try:
        with path.open("rb") as file:
            document: dict[str, Any] = tomllib.load(file)
            return document
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _no_store(path) from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error


_Settings = TypeVar("_Settings", ModelSettings, SamplingSettings, TokenSettings)


def _parse_store(section: dict[str, Any]) -> StoreSettings:
    known = [field.name for field in dataclasses.fields(StoreSettings)]
    expect_keys("store", section, known, required=set(known))
    return StoreSettings(
        model=_parse_table(ModelSettings, "store.model", section["model"]),
        sampling=_parse_table(SamplingSettings, "store.sampling", section["sampling"]),
        tokens=_parse_table(TokenSettings, "store.tokens", section["tokens"]),
        format_version=section["format_version"],
    )


def _parse_table(kind: type[_Settings], where: str, table: object) -> _Settings:
    if not isinstance(table, dict):
        raise UsageError(f"{where} is {table!r}, expected a table")
    fields = dataclasses.fields(kind)
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    expect_keys(where, table, [field.name for field in fields], required)
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    for field in fields:
        if field.type == "str" and not isinstance(values.get(field.name), str):
            raise UsageError(f"{where}.{field.name} is {values.get(field.name)!r}, expected a text")
    return kind(**values)


def expect_keys(where: str, table: dict[str, Any], known: list[str], required: set[str]) -> None:
    """Raise UsageError for a key that is not known, naming the nearest, and for a required one that is missing."""
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise UsageError(f"{where}.{name} is not known, the nearest key is {near!r}")
    for name in known:
        if name in required and name not in table:
            raise UsageError(f"{where}.{name} is missing")


def _expect_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def _expect_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} is {value!r}, expected a whole number above 0")


def _flatten(settings: StoreSettings) -> list[tuple[str, object]]:
    """("model.name", value) for every setting, in the order of the fields."""
    flat: list[tuple[str, object]] = []
    for name, value in dataclasses.asdict(settings).items():
        nested = value.items() if isinstance(value, dict) else None
        flat += [(name, value)] if nested is None else [(f"{name}.{key}", inner) for key, inner in nested]
    return flat


def _without_none(value: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: a setting that is None is left out."""
    given = {key: inner for key, inner in value.items() if inner is not None}
    return {key: _without_none(inner) if isinstance(inner, dict) else inner for key, inner in given.items()}
