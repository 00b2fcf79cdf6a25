"""``tbpipe refresh`` as a whole: what becomes of videos that come, change, move, go and return."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from index_store.records import VideoRecord
from index_store.store import Store
from tests.pipeline.conftest import SMALL, Run


def records(store: Path) -> dict[str, VideoRecord]:
    """Every video ever seen, by key."""
    with Store.open(store).snapshot() as snapshot:
        return {record.key: record for record in snapshot.videos()}


def pooled(store: Path, *keys: str) -> np.ndarray:
    with Store.open(store).snapshot() as snapshot:
        found = {record.key: record.id for record in snapshot.videos()}
        return np.concatenate([vectors for _, vectors in snapshot.read_pooled([found[key] for key in keys])])


@pytest.fixture
def videos(clips: Path, tmp_path: Path) -> Path:
    """Six videos that may be changed."""
    return shutil.copytree(clips, tmp_path / "videos")


@pytest.mark.slow
def test_a_store_follows_its_source(videos: Path, run: Run, tmp_path: Path) -> None:
    store, metrics = tmp_path / "store", tmp_path / "tbpipe.prom"
    first = run("refresh", "--store", store, "--source", videos, *SMALL, "--json", "--metrics-file", metrics)
    assert first.code == 0, first.err
    assert first.json["extracted"]["ok"] == 6
    assert first.json["index"] == {"generation": "00000001", "updated": True}
    assert 'tbpipe_videos{status="ok"} 6' in metrics.read_text()
    before = records(store)

    again = run("refresh", "--store", store, "--json").json
    assert (again["unchanged"], again["extracted"], again["index"]["updated"]) == (6, None, False)

    names = sorted(path.name for path in videos.iterdir())
    shutil.copy(videos / names[0], videos / "copy.mp4")
    (videos / "below").mkdir()
    (videos / names[1]).rename(videos / "below" / "moved.mp4")
    (videos / names[2]).unlink()
    (videos / names[3]).write_bytes((videos / names[4]).read_bytes() + b"more")
    dry = run("refresh", "--store", store, "--dry-run", "--json").json
    assert (dry["new"], dry["changed"]) == (["copy.mp4"], [names[3]])
    assert dry["moved"] == [{"from": names[1], "to": "below/moved.mp4"}]
    assert dry["removed"] == [names[2]]
    assert records(store) == before

    done = run("refresh", "--store", store, "--json")
    assert done.code == 0, done.err
    assert (done.json["extracted"]["ok"], done.json["extracted"]["shared"]) == (1, 1)
    assert done.json["videos"] == {"ok": 6, "partial": 0, "quarantined": 0, "removed": 2}
    after = records(store)
    assert after[names[2]].status == after[names[1]].status == "removed"
    moved = after["below/moved.mp4"]
    assert (moved.shard, moved.row) == (before[names[1]].shard, before[names[1]].row)
    assert {key: record.id for key, record in before.items()}.items() <= {key: r.id for key, r in after.items()}.items()
    np.testing.assert_array_equal(pooled(store, names[3]), pooled(store, names[4]))
    hits = run("search", "--store", store, "a red circle", "--num", 10, "--json").json["hits"]
    assert {hit["key"] for hit in hits} == {"copy.mp4", "below/moved.mp4", names[0], *names[3:]}

    (videos / "below" / "moved.mp4").rename(videos / names[1])
    back = run("refresh", "--store", store, "--json").json
    assert back["moved"] == [{"from": "below/moved.mp4", "to": names[1]}]
    assert records(store)[names[1]].id == before[names[1]].id


@pytest.mark.slow
def test_an_unmounted_source_and_a_mistake_stop_before_anything_is_lost(
    videos: Path, finished_store: Path, run: Run, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    assert run("refresh", "--store", store, "--source", videos, *SMALL).code == 0
    before = records(store)
    videos.rename(tmp_path / "elsewhere")
    gone = run("refresh", "--store", store, "--log-format", "json", "--allow-empty", "--max-deletes", "100%")
    assert gone.code == 15
    assert [json.loads(line)["event"] for line in gone.err.splitlines()] == ["planned", "failed"]
    videos.mkdir()
    empty = run("refresh", "--store", store, "--max-deletes", "100%")
    assert (empty.code, "mount it" in empty.err) == (15, True)
    assert run("refresh", "--store", store, "--dry-run").code == 15
    for path in sorted((tmp_path / "elsewhere").iterdir())[:2]:
        path.rename(videos / path.name)
    many = run("refresh", "--store", store)
    assert (many.code, "--max-deletes 4" in many.err) == (15, True)
    assert records(store) == before
    done = run("refresh", "--store", store, "--max-deletes", 4, "--json")
    assert (done.code, len(done.json["removed"]), done.json["unchanged"]) == (0, 4, 2)


def test_what_cannot_be_asked_is_said_in_one_line(finished_store: Path, run: Run, tmp_path: Path) -> None:
    none = run("refresh", "--store", tmp_path / "none")
    assert (none.code, "--source" in none.err) == (10, True)
    no_sources = run("refresh", "--store", finished_store)
    assert (no_sources.code, "[refresh]" in no_sources.err) == (17, True)
    typo = run("refresh", "--store", finished_store, "--source", tmp_path / "gone", "--dry-run")
    assert (typo.code, "does not exist" in typo.err) == (17, True)
    assert run("refresh", "--store", finished_store, "--max-deletes", "many").code == 2
    with Store.open(finished_store).writer():
        locked = run("refresh", "--store", finished_store, "--source", tmp_path)
    assert (locked.code, str(os.getpid()) in locked.err) == (11, True)
