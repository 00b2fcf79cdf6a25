from __future__ import annotations

from pathlib import Path

import pytest

from index_store.errors import InputError
from index_store.refresh_settings import (
    DEFAULT_DELETE_LIMIT,
    DeleteLimit,
    StandingQueries,
    read_refresh_settings,
    remember_sources,
)

TABLE = """
[refresh]
sources = ["videos", "/data/more"]
max_deletes = "2.5%"

[[refresh.queries]]
file = "queries.jsonl"
output = "/runs/night.trec"
top_k = 20
"""


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "tbpipe.toml").write_text(TABLE)
    found = read_refresh_settings(tmp_path / "tbpipe.toml")
    assert found.sources == (tmp_path / "videos", Path("/data/more"))
    assert found.max_deletes == DeleteLimit(percent=2.5)
    assert found.queries == (StandingQueries(tmp_path / "queries.jsonl", Path("/runs/night.trec"), top_k=20),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[refresh]\nsource = []", "refresh.source is not known, the nearest key is 'sources'"),
        ('[refresh]\nsources = "videos"', "refresh.sources is 'videos', expected a list"),
        ("[refresh]\nsources = [3]", "refresh.sources is 3, expected a text"),
        ("[refresh]\nmax_deletes = true", "max_deletes is True"),
        ('[refresh]\nmax_deletes = "200%"', "max_deletes is '200%'"),
        ('[[refresh.queries]]\nfile = "q"', "refresh.queries.output is missing"),
        ('[[refresh.queries]]\nfile = "q"\noutput = "o"\ntop_k = 0', "top_k is 0"),
        ("refresh = 1", "refresh is 1, expected a table"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tbpipe.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_refresh_settings(tmp_path / "tbpipe.toml")


@pytest.mark.parametrize(
    ("limit", "num_videos", "allowed"),
    [
        (DEFAULT_DELETE_LIMIT, 1, 0),
        (DEFAULT_DELETE_LIMIT, 6, 3),
        (DEFAULT_DELETE_LIMIT, 30, 5),
        (DEFAULT_DELETE_LIMIT, 1000, 100),
        (DeleteLimit.parse("20"), 10, 20),
        (DeleteLimit.parse("5%"), 30, 1),
        (DeleteLimit.parse("0"), 30, 0),
        (DeleteLimit.parse("100 %"), 30, 30),
    ],
)
def test_how_many_may_go(limit: DeleteLimit, num_videos: int, allowed: int) -> None:
    assert limit.allowed(num_videos) == allowed


def test_sources_are_remembered_once(tmp_path: Path) -> None:
    path = tmp_path / "tbpipe.toml"
    path.write_text("# mine\n")
    assert remember_sources(path, (Path("/a b"), Path('/"c"')))
    assert not remember_sources(path, (Path("/d"),))
    assert path.read_text().startswith("# mine\n")
    assert read_refresh_settings(path).sources == (Path("/a b"), Path('/"c"'))
