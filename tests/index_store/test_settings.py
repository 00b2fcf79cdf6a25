from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from index_store.errors import FingerprintError, InputError, StoreError, StoreMissingError, UsageError
from index_store.features import dataset_specs
from index_store.settings import (
    SamplingSettings,
    StoreSettings,
    TokenSettings,
    read_settings,
    write_settings,
)
from tests.index_store.samples import INT8_SETTINGS, PLACED_SETTINGS, SETTINGS

CANONICAL = (
    '{"format_version":1,"model.compute_dtype":"float32","model.embed_dim":8,"model.image_size":32,'
    '"model.interpolation":"bicubic","model.mean":[0.5,0.5,0.5],"model.name":"tiny","model.resize_mode":"shortest",'
    '"model.std":[0.25,0.25,0.25],"model.tokens_per_frame":5,"model.weights_sha256":"' + "0" * 64 + '",'
    '"sampling.fps":null,"sampling.frames":3,"sampling.mode":"uniform","tokens.dtype":"float16","tokens.keep":"all"}'
)

CHANGES: list[tuple[str, str, Any]] = [
    ("model", "name", "other"),
    ("model", "weights_sha256", "1" * 64),
    ("model", "embed_dim", 16),
    ("model", "tokens_per_frame", 6),
    ("model", "image_size", 64),
    ("model", "mean", (0.5, 0.5, 0.25)),
    ("model", "std", (0.5, 0.25, 0.25)),
    ("model", "interpolation", "bilinear"),
    ("model", "resize_mode", "squash"),
    ("model", "compute_dtype", "bfloat16"),
    ("sampling", "mode", "keyframe"),
    ("sampling", "frames", 4),
    ("tokens", "dtype", "int8"),
    ("tokens", "keep", "cls"),
    ("tokens", "keep", "2"),
    ("tokens", "keep", "distinct:2"),
]


def changed(part: str, field: str, value: Any) -> StoreSettings:
    new: StoreSettings = replace(SETTINGS, **{part: replace(getattr(SETTINGS, part), **{field: value})})
    return new


def test_the_fingerprint_is_the_hash_of_the_documented_text() -> None:
    assert SETTINGS.canonical_json == CANONICAL
    assert SETTINGS.fingerprint == hashlib.sha256(CANONICAL.encode()).hexdigest()


@pytest.mark.parametrize(("part", "field", "value"), CHANGES)
def test_whatever_changes_the_numbers_changes_the_fingerprint(part: str, field: str, value: Any) -> None:
    other = changed(part, field, value)
    assert other.fingerprint != SETTINGS.fingerprint
    here = getattr(getattr(SETTINGS, part), field)
    assert SETTINGS.differences(other) == [f"{part}.{field}: {here} here, {value} asked"]
    with pytest.raises(FingerprintError, match=f"{part}.{field}"):
        SETTINGS.require_same(other, Path("store"))


def test_every_field_is_tried_above() -> None:
    fields = {
        (part, field.name)
        for part in ("model", "sampling", "tokens")
        for field in dataclasses.fields(getattr(SETTINGS, part))
    }
    not_tried = {("model", "pretrained"), ("sampling", "fps"), ("tokens", "places")}
    assert fields - {(part, field) for part, field, _ in CHANGES} == not_tried


def test_a_store_that_says_which_patches_it_keeps_differs_from_one_that_does_not() -> None:
    assert '"tokens.places":true' in PLACED_SETTINGS.canonical_json
    assert "places" not in INT8_SETTINGS.canonical_json  # as fingerprints were before there was this setting
    assert "places" not in INT8_SETTINGS.section_json
    assert INT8_SETTINGS.differences(PLACED_SETTINGS) == ["tokens.places: None here, True asked"]
    with pytest.raises(FingerprintError, match=r"tokens\.places: True here, None asked"):
        PLACED_SETTINGS.require_same(INT8_SETTINGS, Path("store"))


def test_stores_of_another_rule_are_other_stores() -> None:
    distinct = replace(PLACED_SETTINGS, tokens=TokenSettings.new("int8", "distinct:2"))
    assert '"tokens.keep":"distinct:2","tokens.places":true' in distinct.canonical_json
    assert distinct.bytes_per_video == PLACED_SETTINGS.bytes_per_video
    with pytest.raises(FingerprintError, match=r"\(tokens\.keep: 2 here, distinct:2 asked\)"):
        PLACED_SETTINGS.require_same(distinct, Path("store"))


@pytest.mark.parametrize(("keep", "places"), [("all", None), ("cls", None), ("3", True), ("distinct:3", True)])
def test_a_new_store_says_which_patches_it_keeps(keep: str, places: bool | None) -> None:
    assert TokenSettings.new("int8", keep) == TokenSettings("int8", keep, places)  # type: ignore[arg-type]
    assert TokenSettings("int8", keep).knows_places == (keep == "all")
    assert TokenSettings.new("int8", keep).knows_places == (keep != "cls")


def test_a_place_takes_a_byte_or_two() -> None:
    for tokens_per_frame, dtype, size in ((256, "|u1", 1), (257, "<u2", 2)):
        settings = replace(PLACED_SETTINGS, model=replace(SETTINGS.model, tokens_per_frame=tokens_per_frame))
        assert next(spec.dtype for spec in dataset_specs(settings) if spec.name == "token_places") == dtype
        plain = replace(settings, tokens=INT8_SETTINGS.tokens)
        assert settings.bytes_per_video - plain.bytes_per_video == 3 * 3 * size


def test_the_name_of_the_weights_does_not_matter() -> None:
    other = changed("model", "pretrained", "/somewhere/else.safetensors")
    assert other.fingerprint == SETTINGS.fingerprint
    assert SETTINGS.differences(other) == []
    SETTINGS.require_same(other, Path("store"))


def test_whole_numbers_and_their_floats_are_one_setting() -> None:
    one = replace(SETTINGS, sampling=SamplingSettings("fps", 3, fps=1))
    assert one.fingerprint == replace(SETTINGS, sampling=SamplingSettings("fps", 3, fps=1.0)).fingerprint
    assert changed("model", "mean", (1, 0, 0)).fingerprint == changed("model", "mean", (1.0, 0.0, 0.0)).fingerprint


@pytest.mark.parametrize(("keep", "kept"), [("all", 50), ("cls", 1), ("7", 8), ("49", 50), ("distinct:7", 8)])
def test_kept_tokens(keep: str, kept: int) -> None:
    assert TokenSettings("float16", keep).kept_tokens(50) == kept


@pytest.mark.parametrize("settings", [SETTINGS, INT8_SETTINGS, PLACED_SETTINGS])
def test_bytes_per_video_are_those_of_the_datasets(settings: StoreSettings) -> None:
    assert settings.bytes_per_video == sum(spec.row_bytes for spec in dataset_specs(settings))


def test_bytes_per_video_in_numbers() -> None:
    # F=3 frames of P=5 tokens of D=8: tokens, mask + timestamps, frame embeddings, pooled
    assert SETTINGS.bytes_per_video == 3 * 5 * 8 * 2 + 3 * (1 + 8) + 3 * 8 * 2 + 8 * 4


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("model", "embed_dim", 0, "embed_dim is 0"),
        ("model", "compute_dtype", "float64", "expected one of float32, bfloat16, float16"),
        ("model", "mean", (0.5,), "for R, G and B"),
        ("sampling", "mode", "random", "expected one of uniform, fps, keyframe"),
        ("sampling", "frames", -1, "frames is -1"),
        ("sampling", "fps", 2.0, "only"),
        ("sampling", "mode", "fps", "with mode 'fps' only"),
        ("tokens", "dtype", "float32", "expected one of float16, int8"),
        ("tokens", "keep", "0", "'cls' or a number"),
        ("tokens", "keep", "some", "'cls' or a number"),
        *(
            ("tokens", "keep", f"distinct{rest}", "or 'distinct:12'")
            for rest in ("", ":", ":0", ":x", ":-1", ": 2", ":2 ")
        ),
        ("tokens", "keep", "1" * 5000, "expected 'all'"),
        ("tokens", "keep", "5", "tiny gives 4 patches"),
        ("tokens", "keep", "distinct:5", "keep is distinct:5, but tiny gives 4 patches"),
        ("tokens", "places", True, "places is True with keep 'all'"),
        ("tokens", "places", False, "places is False"),
    ],
)
def test_bad_values_are_refused(part: str, field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        changed(part, field, value)


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_fps_is_refused(fps: float) -> None:
    with pytest.raises(UsageError, match="positive number"):
        SamplingSettings("fps", 3, fps=fps)


@pytest.mark.parametrize(
    "settings",
    [
        *(SETTINGS, INT8_SETTINGS, PLACED_SETTINGS),
        replace(SETTINGS, tokens=TokenSettings.new("int8", "distinct:2")),
        replace(SETTINGS, sampling=SamplingSettings("fps", 3, fps=0.5)),
    ],
)
def test_settings_come_back_from_the_file(tmp_path: Path, settings: StoreSettings) -> None:
    write_settings(tmp_path / "tbpipe.toml", settings)
    assert read_settings(tmp_path / "tbpipe.toml") == settings


def test_other_sections_and_comments_stay(tmp_path: Path) -> None:
    path = tmp_path / "tbpipe.toml"
    path.write_text('# mine\n[refresh]\nsources = ["/videos"]  # all of them\n')
    write_settings(path, SETTINGS)
    assert path.read_text().startswith('# mine\n[refresh]\nsources = ["/videos"]  # all of them\n\n')
    assert read_settings(path) == SETTINGS


def test_pinned_settings_are_not_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "tbpipe.toml"
    write_settings(path, SETTINGS)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="pinned"):
        write_settings(path, INT8_SETTINGS)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("frames = 3", "frames = 4", FingerprintError, "was changed after the store was made"),
        ("frames = 3", "frame = 3", StoreError, r"store.sampling.frame is not known, the nearest key is 'frames'"),
        ("frames = 3\n", "", StoreError, "store.sampling.frames is missing"),
        ("frames = 3", "frames = 'x'", StoreError, "sampling.frames is 'x'"),
        ('name = "tiny"', "name = 1", StoreError, "store.model.name is 1, expected a text"),
        ("format_version = 1", "format_version = 2", StoreError, "store format 2, this tbpipe reads format 1"),
        ("[store.tokens]", "[store.tokens", InputError, "is not TOML"),
        ("[store", "[shop", StoreMissingError, "no store in"),
    ],
)
def test_a_changed_file_is_refused(tmp_path: Path, old: str, new: str, error: type[Exception], message: str) -> None:
    path = tmp_path / "tbpipe.toml"
    write_settings(path, SETTINGS)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(error, match=message):
        read_settings(path)


def test_no_file_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreMissingError, match="tbpipe extract"):
        read_settings(tmp_path / "tbpipe.toml")
