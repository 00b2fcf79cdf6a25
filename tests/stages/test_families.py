from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stages.synthetic.drawing import draw_frames
from stages.synthetic.families import FAMILIES, GROUP_SIZE, SAYS, draw_family_scenes, family_of, reorder, turn
from stages.synthetic.render import main, render_families
from stages.synthetic.scenes import Scene, describe, holds, is_unseen


def groups(family: str, number: int = 6, seed: int = 3) -> list[list[Scene]]:
    scenes = draw_family_scenes(seed, number * GROUP_SIZE, [family])
    return [scenes[at : at + GROUP_SIZE] for at in range(0, len(scenes), GROUP_SIZE)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_videos_of_a_group_show_the_same_and_differ_in_what_captions_say(family: str) -> None:
    for group in groups(family):
        assert len({scene.background for scene in group}) == 1
        assert len({tuple(sorted(thing.shape for thing in scene.things)) for scene in group}) == 1
        assert len({tuple(sorted(thing.colour for thing in scene.things)) for scene in group}) == 1
        for at, scene in enumerate(group):
            statement = describe(scene, SAYS)
            assert [holds(statement, other) for other in group] == [other is group[at] for other in group]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["direction", "order", "duet", "parade"])
def test_a_mean_over_frames_hardly_holds_what_sets_them_apart(family: str) -> None:
    """Backwards in time, or the other one first: the mean picture stays nearly as it was."""

    def mean_picture(scene: Scene) -> np.ndarray:  # type: ignore[type-arg]
        return np.mean([frame.astype(float) for frame in draw_frames(scene, 12, 64, 64)], axis=0)

    for group in groups(family, number=3):
        scene = group[0]
        other = reorder(scene) if family in ("order", "parade") else turn(scene, 0)
        frames = [frame.astype(float) for frame in draw_frames(scene, 12, 64, 64)]
        mean_change = np.abs(mean_picture(scene) - mean_picture(other)).mean()
        changed = [frame.astype(float) for frame in draw_frames(other, 12, 64, 64)]
        assert np.mean([np.abs(one - two).mean() for one, two in zip(frames, changed, strict=True)]) > 2 * mean_change


def test_the_same_seed_gives_the_same_scenes_and_each_description_fits_one() -> None:
    scenes = draw_family_scenes(1, 240)
    assert scenes == draw_family_scenes(1, 240)
    assert scenes != draw_family_scenes(2, 240)
    statements = Counter(describe(scene, SAYS) for scene in scenes)
    assert set(statements.values()) == {1}
    assert Counter(family_of(at) for at in range(240)) == dict.fromkeys(FAMILIES, 40)


@pytest.mark.slow
def test_training_never_sees_the_pairs_of_the_test_split() -> None:
    seen = [thing for scene in draw_family_scenes(1, 480, combinations="seen") for thing in scene.things]
    assert not any(is_unseen(thing.colour, thing.shape) for thing in seen)
    unseen = draw_family_scenes(1, 480, combinations="unseen")
    for at in range(0, 480, GROUP_SIZE):
        things = [thing for scene in unseen[at : at + GROUP_SIZE] for thing in scene.things]
        assert any(is_unseen(thing.colour, thing.shape) for thing in things)


@pytest.mark.slow
def test_more_videos_than_a_family_has_are_refused() -> None:
    with pytest.raises(ValueError, match="ask for fewer"):
        draw_family_scenes(1, 3_000, ["direction"], "seen")


def test_the_benchmark_is_written_with_captions_and_judged_queries(tmp_path: Path) -> None:
    done: list[int] = []
    videos = render_families(tmp_path, 4, 8, ["place"], "unseen", captions_each=3, on_video=done.append)
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert Counter(line["key"] for line in lines) == {video.key: 3 for video in videos}
    queries = [json.loads(line)["text"] for line in (tmp_path / "queries.jsonl").read_text().splitlines()]
    assert queries == [video.caption for video in videos]
    assert {line["caption"] for line in lines} >= set(queries)
    assert sum(done) == 8
    assert all(video.path.stat().st_size for video in videos)


def test_the_command_renders_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seed", "2", "--videos", "4", "--families", "order", "--split", "train"]
    assert main(["--output", str(tmp_path), *options]) == 0
    assert len(list((tmp_path / "videos").iterdir())) == 4
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--families", "nothing"])
    assert "no family nothing" in capsys.readouterr().err
