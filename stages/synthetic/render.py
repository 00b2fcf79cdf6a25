"""Captioned videos that the project draws itself, as real H.264 files: data for training, tests, the demo and the
benchmark.

``encode_video`` writes frames to an mp4 file, ``render_corpus`` makes a folder of rendered files with their captions,
``render_families`` the fine-grained benchmarks, ``render_demo`` the demo's corpus with queries and judgements.
Everything follows from the seed, to the byte. What can happen is in ``scenes.py``, how it looks in
``drawing.py``, how it is said in ``captions.py``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from stages.synthetic.captions import phrase
from stages.synthetic.drawing import Pixels, draw_frames
from stages.synthetic.families import FAMILIES, GROUP_SIZE, KNOWN, describe_families, draw_family_scenes
from stages.synthetic.scenes import (
    LEVELS,
    Attribute,
    Combinations,
    Detail,
    Level,
    Scene,
    Statement,
    change,
    count_wrong,
    describe,
    draw_scene,
    loosen,
    vary,
)


@dataclass(frozen=True, slots=True)
class VideoFormat:
    """How large, how fast and how well encoded the rendered videos are."""

    width: int = 128
    """Pixels; even, as 4:2:0 chroma needs."""
    height: int = 128
    frames_per_second: int = 10
    seconds: float = 2.4
    crf: int = 20
    """x264's constant rate factor: lower is better and larger."""

    def __post_init__(self) -> None:
        """Refuse what the encoder or the renderer cannot do."""
        if self.width % 2 or self.height % 2 or min(self.width, self.height) < 16:
            raise ValueError(f"a picture of {self.width}x{self.height} pixels: both sides must be even and at least 16")
        if self.frames_per_second < 1 or self.num_frames < 1:
            raise ValueError(f"{self.seconds} s at {self.frames_per_second} frames a second is no frame at all")

    @property
    def num_frames(self) -> int:
        """Frames in each video."""
        return round(self.seconds * self.frames_per_second)


@dataclass(frozen=True, slots=True)
class CaptionedVideo:
    """One rendered file and what can be said about it."""

    key: str
    """Path relative to the corpus's folder of videos, POSIX."""
    path: Path
    caption: str
    scene: Scene
    statement: Statement
    """What ``caption`` says."""
    group: int
    """Videos of one group differ from its first in one detail each."""


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """One query of the demo with every right answer."""

    id: str
    text: str
    relevant_keys: tuple[str, ...]
    is_hard: bool
    """True when another video differs from the right one in one detail only."""


def encode_video(path: Path, frames: Iterable[Pixels], video_format: VideoFormat) -> None:
    """Write uint8 [H, W, 3] RGB frames to an H.264 mp4 file; the same frames give the same bytes."""
    import av

    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(video_format.frames_per_second))
        stream.width, stream.height, stream.pix_fmt = video_format.width, video_format.height, "yuv420p"
        # With x264's macroblock tree the same small pictures gave up to 8 different files in 20 runs, without it one.
        stream.options = {"preset": "veryfast", "crf": str(video_format.crf), "threads": "1", "x264-params": "mbtree=0"}
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def render_scene(path: Path, scene: Scene, video_format: VideoFormat) -> None:
    """Draw the scene and write it to ``path``, whose folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = draw_frames(scene, video_format.num_frames, video_format.height, video_format.width)
    encode_video(path, frames, video_format)


def draw_scenes(
    seed: int,
    num_videos: int,
    level: Level,
    combinations: Combinations = "any",
    group_size: int = 1,
    details: Iterable[Detail] | None = None,
) -> list[Scene]:
    """Scenes of a corpus; a caption that says everything the level lets it say is true of one scene only.

    In each group of ``group_size`` the first scene is new and the others differ from it in one of ``details`` (all that
    the level has). Raises ValueError when the level has not that many different scenes.
    """
    rng = np.random.default_rng([seed, num_videos, group_size])
    scenes: list[Scene] = []
    stated: set[Statement] = set()
    for _ in range(100 * num_videos + 1000):
        place = len(scenes) % group_size
        if place == 0:
            scene = draw_scene(rng, level, combinations)
        else:
            scene = vary(scenes[-place], rng, level, combinations, details)
        statement = describe(scene, level.says)
        if statement not in stated:
            stated.add(statement)
            scenes.append(scene)
        if len(scenes) == num_videos:
            return scenes
    raise ValueError(f"this level has no {num_videos} videos that captions can tell apart; ask for fewer")


def render_corpus(
    directory: Path,
    seed: int,
    num_videos: int,
    level: str = "mixed",
    combinations: Combinations = "any",
    group_size: int = 1,
    details: Iterable[Detail] | None = None,
    video_format: VideoFormat | None = None,
) -> list[CaptionedVideo]:
    """Render ``num_videos`` files into ``directory``/videos, their captions into captions.jsonl, queries.jsonl and
    qrels.tsv (BEIR).

    Every caption is a query, its video the right answer. ``directory`` is made if need be; files of those names are
    replaced.
    """
    scenes = draw_scenes(seed, num_videos, LEVELS[level], combinations, group_size, details)
    statements = [describe(scene, LEVELS[level].says) for scene in scenes]
    videos = caption_scenes(directory, seed, scenes, statements, group_size)
    for video in videos:
        render_scene(video.path, video.scene, video_format or VideoFormat())
    write_captions(directory, videos)
    write_queries(directory, [JudgedQuery(f"q{i:05d}", v.caption, (v.key,), False) for i, v in enumerate(videos)])
    return videos


def render_families(
    directory: Path,
    seed: int,
    num_videos: int,
    families: Sequence[str] = tuple(FAMILIES),
    combinations: Combinations = "any",
    captions_each: int = 1,
    on_video: Callable[[int], object] = lambda count: None,
) -> list[CaptionedVideo]:
    """Render the fine-grained benchmark: groups of near-duplicates, see ``families.py`` and what it imports.

    Files as render_corpus. captions.jsonl holds ``captions_each`` paraphrases of what can be said of each video; the
    first one is its query.
    """
    scenes = draw_family_scenes(seed, num_videos, families, combinations)
    videos = caption_scenes(directory, seed, scenes, describe_families(scenes, families), GROUP_SIZE)
    for video in videos:
        render_scene(video.path, video.scene, VideoFormat())
        on_video(1)
    rng = np.random.default_rng([seed, 7])
    paraphrases = [replace(v, caption=phrase(v.statement, rng)) for v in videos for _ in range(captions_each - 1)]
    write_captions(directory, sorted([*videos, *paraphrases], key=lambda video: video.key))
    write_queries(directory, [JudgedQuery(f"q{i:05d}", v.caption, (v.key,), False) for i, v in enumerate(videos)])
    return videos


def caption_scenes(
    directory: Path, seed: int, scenes: Sequence[Scene], statements: Sequence[Statement], group_size: int = 1
) -> list[CaptionedVideo]:
    """Give each scene a file name in ``directory``/videos and a caption that says its statement."""
    rng = np.random.default_rng([seed, 1])
    videos = []
    for i, (scene, statement) in enumerate(zip(scenes, statements, strict=True)):
        key = f"clip_{i:05d}.mp4"
        path = directory / "videos" / key
        videos.append(CaptionedVideo(key, path, phrase(statement, rng), scene, statement, i // group_size))
    return videos


def write_captions(directory: Path, videos: list[CaptionedVideo]) -> None:
    """captions.jsonl: one object a line with ``key`` and ``caption``."""
    lines = [json.dumps({"key": video.key, "caption": video.caption}) + "\n" for video in videos]
    (directory / "captions.jsonl").write_text("".join(lines), encoding="utf-8")


def write_queries(directory: Path, queries: list[JudgedQuery]) -> None:
    """queries.jsonl and qrels.tsv as BEIR has them."""
    lines = [json.dumps({"_id": query.id, "text": query.text}) + "\n" for query in queries]
    (directory / "queries.jsonl").write_text("".join(lines), encoding="utf-8")
    rows = [f"{query.id}\t{key}\t1\n" for query in queries for key in query.relevant_keys]
    (directory / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8")


# ---- the demo -------------------------------------------------------------------------------------------------------

DEMO_SEED = 90210
_PLAIN_SAYS: frozenset[Attribute] = frozenset({"colour", "shape", "background"})
_TWINS: tuple[tuple[str, Detail], ...] = (
    ("pair", "swap"),
    ("order", "order"),
    ("motion", "direction"),
    ("pair", "swap"),
)
"""Level of a hard query's video, and the detail in which its twin differs."""


def render_demo(
    directory: Path,
    seed: int = DEMO_SEED,
    num_videos: int = 56,
    num_queries: int = 12,
    video_format: VideoFormat | None = None,
) -> tuple[list[CaptionedVideo], list[JudgedQuery]]:
    """Render the demo's corpus into ``directory``/videos, with captions.jsonl, queries.jsonl and qrels.tsv.

    Of each query exactly one video is right. The first ``num_queries`` say what single frames show, and of every other
    video at least two of their details are wrong; four hard ones ("hard1" ...) follow, each with a twin of the right
    video that differs in one detail. Raises ValueError for too small a corpus.
    """
    rng = np.random.default_rng([seed, 4])
    scenes, targets = _demo_scenes(rng, seed, num_videos)
    statements = [describe(scene, LEVELS["mixed"].says) for scene in scenes]
    videos = caption_scenes(directory, seed, scenes, statements)
    queries = _plain_queries(rng, videos[2 * len(targets) :], videos, num_queries)
    for i, target in enumerate(targets):
        queries.append(JudgedQuery(f"hard{i + 1}", videos[target].caption, (videos[target].key,), True))
    # File names must not give away which videos belong together.
    names = [videos[i].key for i in rng.permutation(len(videos))]
    renamed = {video.key: name for video, name in zip(videos, names, strict=True)}
    videos = sorted(
        (replace(v, key=renamed[v.key], path=v.path.with_name(renamed[v.key])) for v in videos), key=lambda v: v.key
    )
    queries = [replace(query, relevant_keys=tuple(renamed[key] for key in query.relevant_keys)) for query in queries]
    for video in videos:
        render_scene(video.path, video.scene, video_format or VideoFormat())
    write_captions(directory, videos)
    write_queries(directory, queries)
    return videos, queries


def _demo_scenes(rng: np.random.Generator, seed: int, num_videos: int) -> tuple[list[Scene], list[int]]:
    """All scenes, pairs of twins first, and the positions of the right one of each pair."""
    if num_videos < 2 * len(_TWINS) + 1:
        raise ValueError(f"a demo of {num_videos} videos is too small; ask for at least {2 * len(_TWINS) + 1}")
    scenes: list[Scene] = []
    for level, detail in _TWINS:
        twins: tuple[Scene, ...] = ()
        while len(twins) < 2 or twins[0] == twins[1]:
            scene = draw_scene(rng, LEVELS[level])
            twins = (scene, change(scene, detail, rng))
        scenes += twins
    targets = list(range(0, len(scenes), 2))
    others = draw_scenes(seed, num_videos, LEVELS["mixed"])
    full = {describe(scene, LEVELS["mixed"].says) for scene in scenes}
    scenes += [scene for scene in others if describe(scene, LEVELS["mixed"].says) not in full]
    return scenes[:num_videos], targets


def _plain_queries(
    rng: np.random.Generator, pool: list[CaptionedVideo], videos: list[CaptionedVideo], num_queries: int
) -> list[JudgedQuery]:
    """Queries about colour, shape and background, each with one video of ``pool`` for its answer.

    Of any other video at least two details of the query are wrong.
    """
    queries: list[JudgedQuery] = []
    for i in rng.permutation(len(pool)):
        statement = loosen(describe(pool[i].scene, _PLAIN_SAYS), rng, keep=0.8)
        close = [video.key for video in videos if count_wrong(statement, video.scene) < 2]
        if close == [pool[i].key]:
            queries.append(JudgedQuery(f"q{len(queries) + 1:02d}", phrase(statement, rng), (close[0],), False))
        if len(queries) == num_queries:
            return queries
    raise ValueError(
        f"only {len(queries)} of {num_queries} unambiguous queries were found among {len(videos)} videos; ask for fewer"
    )


# ---- command --------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Render the fine-grained benchmark into a folder."""
    parser = argparse.ArgumentParser(prog="python -m stages.synthetic.render", description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for videos/, captions.jsonl, queries.jsonl")
    parser.add_argument("--seed", type=int, default=DEMO_SEED)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument(
        "--families", default=",".join(FAMILIES), help=f"some of {', '.join(KNOWN)}; default %(default)s"
    )
    parser.add_argument("--split", choices=("train", "test", "any"), default="any", help="colour-shape pairs to use")
    parser.add_argument("--captions", type=int, default=1, help="captions of each video")
    options = parser.parse_args(arguments)
    families = options.families.split(",")
    unknown = [family for family in families if family not in KNOWN]
    if unknown or options.videos < 1 or options.captions < 1:
        parser.error(f"no family {unknown[0]}; known: {', '.join(KNOWN)}" if unknown else "videos and captions: >= 1")
    combinations: dict[str, Combinations] = {"train": "seen", "test": "unseen", "any": "any"}
    try:
        render_families(
            options.output, options.seed, options.videos, families, combinations[options.split], options.captions
        )
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
