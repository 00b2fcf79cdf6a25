"""The extract stage on frames that are in memory; with real files it is tested through the command."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from index_store.records import VideoFile, VideoOutcome
from index_store.settings import SamplingSettings, StoreSettings, TokenSettings
from index_store.store import Store
from stages.decode_pool import DecodeResult, DecodeTask
from stages.errors import DecodeError
from stages.extract import ExtractOptions, ExtractReport, extract
from stages.models import load_model
from stages.models.clip import ClipModel
from stages.preprocess import Preprocessor
from stages.video import FrameBatch
from tests.stages.model_files import TINY, reference_model, save_folder

NUM_VIDEOS = 9
CPU = torch.device("cpu")


class InMemory:
    """Videos of 1 to 5 frames; the fourth is no video and the sixth has the content of the third."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def map(self, tasks: Iterable[DecodeTask]) -> Iterator[DecodeResult]:
        for number, task in enumerate(tasks):
            time.sleep(self._seconds)
            content = 2 if number == 5 else number
            result = DecodeResult(task, f"{content:064x}", 1, 0, number)
            if number == 3:
                result.error = DecodeError("not_a_video", "")
            else:
                frames = np.random.default_rng(content).integers(0, 256, (1 + content % 5, 40, 36, 3), np.uint8)
                times = np.arange(len(frames), dtype=np.float64)
                result.frames = FrameBatch(frames, times, 5.0, "memory", "", is_partial=False)
            yield result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_folder(folder, reference_model(), TINY)
    return load_model(f"local-dir:{folder}", device="cpu", dtype="float32", towers="image")


def run(
    model: ClipModel,
    store: Path,
    num_devices: int = 1,
    stop_after: int = NUM_VIDEOS,
    seconds: float = 0.0,
    batch_frames: int = 4,
) -> tuple[ExtractReport, list[VideoOutcome]]:
    settings = StoreSettings(model.settings(), SamplingSettings("uniform", 5), TokenSettings("float16", "all"))
    files = [VideoFile(f"{number}.mp4", Path(f"/{number}.mp4"), 1, 0, number) for number in range(NUM_VIDEOS)]
    told: list[VideoOutcome] = []
    with Store.create(store, settings).writer() as writer:
        report = extract(
            [(file, DecodeTask(file.path)) for file in files],
            InMemory(seconds),
            model,
            Preprocessor(settings.model),
            settings,
            writer,
            ExtractOptions(batch_frames, commit_videos=4),
            told.append,
            lambda: len(told) >= stop_after,
            devices=[CPU] * num_devices,
        )
    return report, told


def test_any_number_of_devices_writes_the_same_shards_in_the_same_order(model: ClipModel, tmp_path: Path) -> None:
    reports = {number: run(model, tmp_path / f"{number}", number) for number in (1, 3)}
    written = {
        number: [path.read_bytes() for path in sorted((tmp_path / f"{number}" / "shards").iterdir())]
        for number in reports
    }
    assert len(written[1]) == 3
    assert written[1] == written[3]
    for report, told in reports.values():
        assert [outcome.file.key for outcome in told] == [f"{number}.mp4" for number in range(NUM_VIDEOS)]
        assert (report.ok, report.quarantined, report.shared, report.interrupted) == (7, 1, 1, False)


@pytest.mark.parametrize("num_devices", [1, 3])
def test_a_stop_commits_what_the_devices_have_been_given(model: ClipModel, tmp_path: Path, num_devices: int) -> None:
    report, told = run(model, tmp_path / "store", num_devices, stop_after=2, batch_frames=1)
    assert report.interrupted
    assert 2 <= report.finished == len(told) < NUM_VIDEOS
    with Store.open(tmp_path / "store").snapshot() as snapshot:
        assert [record.key for record in snapshot.videos()] == [outcome.file.key for outcome in told]


def test_the_report_says_how_long_frames_and_the_model_were_waited_for(model: ClipModel, tmp_path: Path) -> None:
    report, _ = run(model, tmp_path / "store", seconds=0.02)
    assert report.seconds_for_frames >= 0.8 * NUM_VIDEOS * 0.02 - report.seconds_for_tokens
    assert report.seconds_for_tokens > 0
