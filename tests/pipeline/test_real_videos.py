"""The main job on real files with a ViT-B/32, and on hostile ones, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.corpus import random_weights
from index_store.records import VideoRecord
from index_store.store import Store
from tests.pipeline.conftest import SMALL, Run

pytestmark = pytest.mark.slow

UNUSABLE = {
    "absurd_dimensions_raw_100000.avi",
    "audio_only.mp4",
    "concat_script_as_video.mp4",
    "gif_canvas_65535.gif",
    "real_no_decodable_frame.mp4",
    "real_zero_empty_stsc.mp4",
    "text_renamed.mp4",
    "truncated_no_moov.mp4",
    "valid_header_garbage_payload.mp4",
    "zero_bytes.mp4",
    "zero_frames.mp4",
}
"""Of ``bad``: files of which no decoder gives a frame."""
DAMAGED = {"bit_flips.mp4", "cut_mid_mdat.mp4", "real_corrupted_missing_pps.mp4"}
"""Of ``bad``: files that give some frames and then an error."""
TECHNICAL_UNUSABLE = {"audio_only_ac3.mkv", "audio_only_two_aac.mp4"}
GIFS_IN_CORPUS = {"cricket_match", "flamenco_stage", "fruit_conveyor", "newtons_cradle", "pigs_polka", "store_aisle"}
MPEG4_AND_AVI_IN_CORPUS = {"man_dog_snow", "night_crossing", "space_needle", "woman_drinking_cup"}
# cockatoo is 4:4:4, which decord decodes to noise from a later key frame on
BY_PYAV_IN_CORPUS = GIFS_IN_CORPUS | MPEG4_AND_AVI_IN_CORPUS | {"cockatoo"}
QUICK = ("carphone.mp4", "cat_sofa.mp4", "newtons_cradle.gif", "potted_plant_window.mp4")
ON_CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("weights") / "vit_b_32.safetensors")


@pytest.fixture(scope="module")
def corpus(assets: Path, weights: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One frame of every clip, and not 12: most of the time goes into decoding."""
    store = tmp_path_factory.mktemp("corpus") / "store"
    done = run(
        "extract", assets / "videos", "--store", store, "--pretrained", weights, *ON_CPU, "--frames", 1, "--json"
    )
    assert done.code == 0, done.err
    assert done.json["ok"] == 59
    return store


@pytest.fixture(scope="module")
def few(assets: Path, weights: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames of clips that are quickly decoded."""
    store = tmp_path_factory.mktemp("few") / "store"
    clips = [assets / "videos" / name for name in QUICK]
    done = run("extract", *clips, "--store", store, "--pretrained", weights, *ON_CPU, "--frames", 4)
    assert done.code == 0, done.err
    return store


@pytest.fixture(scope="module")
def hostile(assets: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("hostile") / "store"
    sources = (assets / "videos_tech", assets / "bad")
    done = run("extract", *sources, "--store", store, *SMALL)
    assert done.code == 3, done.err
    return store


def records(store: Path) -> dict[str, VideoRecord]:
    with Store.open(store).snapshot() as snapshot:
        return {record.key: record for record in snapshot.videos()}


def test_all_real_clips_are_ok_each_by_the_decoder_that_has_to_do_it(corpus: Path) -> None:
    found = records(corpus)
    assert {record.status for record in found.values()} == {"ok"}
    fallen_back = {key for key, record in found.items() if record.decoder.startswith("pyav")}
    assert {Path(key).stem for key in fallen_back} == BY_PYAV_IN_CORPUS
    assert all(found[key].decoder_note.startswith("decord") for key in fallen_back)
    assert sum(key.endswith(".gif") for key in fallen_back) == 6


def test_every_hostile_file_is_in_the_state_its_description_says(assets: Path, hostile: Path) -> None:
    found = records(hostile)
    quarantined = {key for key, record in found.items() if record.status == "quarantined"}
    assert quarantined == UNUSABLE | TECHNICAL_UNUSABLE
    assert all(found[key].reason_code for key in quarantined)
    assert {key for key, record in found.items() if record.status == "partial"} >= DAMAGED
    names = {path.name for folder in ("videos_tech", "bad") for path in (assets / folder).iterdir() if path.is_file()}
    assert names - {"README.md"} <= set(found)


def test_odd_names_survive_the_way_to_the_results(assets: Path, hostile: Path, run: Run, tmp_path: Path) -> None:
    assert run("index", "--store", hostile).code == 0
    (tmp_path / "q.txt").write_text("someone juggles a ball\n")
    output = tmp_path / "run.jsonl"
    done = run("rerank", "--store", hostile, "--queries", tmp_path / "q.txt", "--output", output, "--top-k", 500)
    assert done.code == 0, done.err
    keys = {json.loads(line)["key"] for line in output.read_text("utf-8").splitlines()}
    names = {f"names/{path.name}" for path in (assets / "bad" / "names").iterdir()}
    assert names
    assert names <= keys


def test_re_encodings_of_one_clip_are_nearly_equal_and_other_clips_are_not(hostile: Path) -> None:
    with Store.open(hostile).snapshot() as snapshot:
        keys = {record.id: record.key for record in snapshot.videos(["ok"])}
        pooled = {
            keys[video]: row
            for ids, rows in snapshot.read_pooled(list(keys))
            for video, row in zip(ids, rows, strict=True)
        }
    shortened = ("1fps", "1frame", "2frame", "3frame")
    derived = [key for key in pooled if key.startswith("derived") and not any(part in key for part in shortened)]
    others = [key for key in pooled if not key.startswith(("derived", "names/"))]
    mean = np.mean([pooled[key] for key in others], axis=0)
    centred = {key: (row - mean) / np.linalg.norm(row - mean) for key, row in pooled.items()}
    source = centred["derived_h264.mp4"]
    assert len(derived) == 20
    assert {key for key in derived if centred[key] @ source < 0.95} == set()
    assert np.median([centred[key] @ source for key in others]) < 0.5


def test_embeddings_agree_with_an_independent_path(corpus: Path, few: Path, weights: Path) -> None:
    """In the precision that this machine chooses; in the others: tests/stages/test_models.py."""
    for store, num_videos, num_frames in ((corpus, 59, 1), (few, len(QUICK), 4)):
        cosines = {}
        with Store.open(store).snapshot() as snapshot:
            for record in list(snapshot.videos()):
                frames = snapshot.read_frame_embeddings([record.id])
                ((_, pooled),) = snapshot.read_pooled([record.id])
                times = frames.timestamps_seconds[0][frames.frame_mask[0]]
                assert len(times) == num_frames
                cosines[record.key] = float(pooled[0] @ independent_embedding(record.path, times, weights))
        assert len(cosines) == num_videos
        assert {key: cosine for key, cosine in cosines.items() if not cosine >= 0.999} == {}


def independent_embedding(path: Path, times: NDArray[np.float64], weights: Path) -> NDArray[np.float32]:
    """Frames decoded one after the other up to the last wanted, open_clip's own transform and towers in float32."""
    model, preprocess = open_clip_model(weights)
    pictures: list[torch.Tensor] = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert stream is not None
        start = None
        for frame in container.decode(stream):  # type: ignore[attr-defined]
            start = frame.pts if start is None else start
            if abs(float((frame.pts - start) * stream.time_base) - times[len(pictures)]) < 1e-3:
                pictures.append(preprocess(Image.fromarray(frame.to_ndarray(format="rgb24"))))
            if len(pictures) == len(times):
                break
    assert len(pictures) == len(times), path
    with torch.inference_mode():
        frames = torch.nn.functional.normalize(model.encode_image(torch.stack(pictures)), dim=-1)
        pooled: NDArray[np.float32] = torch.nn.functional.normalize(frames.mean(dim=0), dim=-1).numpy()
    return pooled


_loaded: dict[Path, Any] = {}


def open_clip_model(weights: Path) -> Any:
    import open_clip

    if weights not in _loaded:
        model, _, preprocess = open_clip.create_model_and_transforms(
            "ViT-B-32", pretrained=str(weights), weights_only=True
        )
        _loaded[weights] = (model.eval(), preprocess)
    return _loaded[weights]
