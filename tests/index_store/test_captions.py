from __future__ import annotations

import json
from pathlib import Path

import pytest

from index_store.captions import Caption, match_captions, read_captions
from index_store.errors import InputError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.jsonl", '{"key": "a.mp4", "caption": "a dog runs"}\n\n{"video_id": "b", "captions": ["a", " b "]}\n'),
        ("c.jsonl", '{"video": "a.mp4", "text": "a dog runs"}\r\n{"video": "b", "sentence": ["a", "b"], "more": 1}'),
        ("c.csv", "video_id,caption\na.mp4, a dog runs\nb,a\nb,b\n"),
        ("c.csv", 'key,vid_key,video_id,sentence\nret0,msr0,a.mp4,"a dog runs"\nret1,msr1,b,a\nret2,msr1,b,b\n'),
        ("c.tsv", "\ufeffvideo\ttext\na.mp4\ta dog runs\nb\ta\nb\tb\n"),
        ("c.json", '{\n"a.mp4": "a dog runs",\n"b": ["a", "b"]\n}'),
    ],
)
def test_every_format_gives_the_same_captions(tmp_path: Path, name: str, text: str) -> None:
    assert read_captions(write(tmp_path, name, text)) == [
        Caption("1", "a.mp4", "a dog runs"),
        Caption("2", "b", "a"),
        Caption("3", "b", "b"),
    ]


def test_split_keeps_its_captions_only(tmp_path: Path) -> None:
    path = write(tmp_path, "c.csv", "key,caption,split\na,one,train\nb,two,test\nc,three,train\n")
    assert [caption.key for caption in read_captions(path, "train")] == ["a", "c"]
    with pytest.raises(InputError, match="no caption of the split 'dev'; it names 'test', 'train'"):
        read_captions(path, "dev")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.jsonl", '{"key": "a", "caption": "x"}\n{"key": "b"}', "line 2.*expected a video and what it shows"),
        ("c.jsonl", '{"key": "a", "caption": 3}', "line 1"),
        ("c.jsonl", '{"key": "a", "caption": []}', "line 1: found an empty caption"),
        ("c.jsonl", '{"key": " ", "caption": "x"}', "line 1: found an empty video key"),
        ("c.jsonl", '{"key": "a", "caption": "x"', "line 1.*expected a JSON object"),
        ("c.jsonl", "[" * 100_000, "line 1.*expected a JSON object"),
        ("c.jsonl", '{"key": "a", "caption": "\\ud800"}', "half a character"),
        ("c.jsonl", "\n", "holds no caption"),
        ("c.json", '[{"a": 1}]', "expected one object"),
        ("c.json", '{"a": 7}', "expected a video and what it shows"),
        ("c.csv", "name,caption\na,b\n", "line 1: found the columns 'name', 'caption', expected a header"),
        ("c.csv", "key,caption\na,b,c\n", "line 2: found 3 columns, expected 2"),
        ("c.csv", 'key,caption\na,"b\n', "broken CSV record"),
        ("c.pkl", "x", r"suffix '\.pkl'; captions are read from .jsonl"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_captions(write(tmp_path, name, text))


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none\.jsonl"):
        read_captions(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("a/one.mp4", "a/one.mp4"),
        ("one.mp4", "a/one.mp4"),
        ("elsewhere/one.mp4", "a/one.mp4"),
        ("one", "a/one.mp4"),
        ("one.avi", "a/one.mp4"),
        ("1004_Juno_01.17.27.130-01.17.47.087", "1004_Juno_01.17.27.130-01.17.47.087.avi"),
    ],
)
def test_a_caption_finds_its_video_by_key_name_or_stem(said: str, key: str) -> None:
    keys = ["a/one.mp4", "a/two.mp4", "1004_Juno_01.17.27.130-01.17.47.087.avi", "1004_Juno_01.17.27.130.avi"]
    caption = Caption("1", said, "a dog")
    matched = match_captions([caption], keys)
    assert matched.found == [(caption, key)]
    assert matched.left_out() == ()


def test_what_has_no_video_or_several_is_said() -> None:
    captions = [Caption(str(at), key, "x") for at, key in enumerate(["one", "b/one.mp4", "six", "six", "seven.mp4"])]
    matched = match_captions(captions, ["a/one.mp4", "b/one.mp4"])
    assert matched.found == [(captions[1], "b/one.mp4")]
    assert list(matched.unknown) == captions[2:]
    assert matched.left_out() == (
        "3 of 5 captions are about 2 videos without features in the store (first: six) and were left out",
        "1 of 5 captions fit several videos (first: one is a/one.mp4 or b/one.mp4), left out",
    )


def test_the_rendered_captions_are_read(tmp_path: Path) -> None:
    lines = [json.dumps({"key": f"clip_{at:05d}.mp4", "caption": f"caption {at}"}) for at in range(3)]
    captions = read_captions(write(tmp_path, "captions.jsonl", "\n".join(lines)))
    assert match_captions(captions, [f"clip_{at:05d}.mp4" for at in range(3)]).unknown == []
