from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from index_store.errors import InputError, UsageError
from pipeline.options import dataset_option
from stages.datasets import DATASETS, find_dataset
from stages.datasets.base import DescribedVideo, Split, match_videos
from stages.datasets.plain_pickle import read_plain_pickle
from tests.stages.dataset_files import VIDEOS, write, write_annotations


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_annotations(tmp_path_factory.mktemp("annotations"))


def said(split: Split) -> dict[str, tuple[str, ...]]:
    return {video.names[0]: video.captions for video in split.videos}


# -- what each reader finds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "protocol", "captions"),
    [
        (
            "msrvtt-1ka", "", "single caption",
            {"video7010": ("a man sings",), "video7020": ("a cat, asleep",)},
        ),
        (
            "msrvtt-1ka", "train", "all captions",
            {"video0": ("video0 one", "video0 two"), "video1": ("video1 one", "video1 two")},
        ),
        ("msrvtt-7k", "train", "all captions", {"video1": ("video1 one", "video1 two")}),
        (
            "msrvtt-full", "test", "all captions",
            {"video7010": ("video7010 one", "video7010 two"), "video7020": ("video7020 one", "video7020 two")},
        ),
        ("msrvtt-full", "val", "all captions", {"video6513": ("video6513 one", "video6513 two")}),
        (
            "didemo", "test", "paragraph",
            {"1@N0_2_a.mov": ("a dog runs. it jumps",), "1@N0_3_b.": ("zoom out",), "2@N0_4_c.3g2": ("x",)},
        ),
        ("activitynet", "", "paragraph", {"v_-aBc": ("A man runs. He stops.",), "v_v_d": ("Snow falls.",)}),
        ("activitynet", "val_2", "paragraph", {"v_-aBc": ("A man runs. He stops.",), "v_v_d": ("Snow falls.",)}),
        (
            "vatex", "", "all captions",
            {"-abc_def-12_000248_000258": ("a b", "c d"), "Bfyp0C02sko_000000_000010": ("e f",)},
        ),
        ("msvd", "", "all captions", {"-4wsuPCjDBc_5_15": ("a boy", "a dog"), "_x_1_2": ("rain",)}),
        (
            "lsmdc", "", "single caption",
            {
                "1004_Juno_01.17.27.130-01.17.47.087": ('SOMEONE says "no.',),
                "1012_Unbreakable_00.05.16.065-00.05.21.941": ("She leaves.",),
            },
        ),
        ("lsmdc", "train", "single caption", {"1004_Juno_01.17.27.130-01.17.47.087": ('SOMEONE says "no.',)}),
    ],
)  # fmt: skip
def test_each_protocol(
    annotations: Path, name: str, split: str, protocol: str, captions: dict[str, tuple[str, ...]]
) -> None:
    found = find_dataset(name).read(annotations, split)
    assert said(found) == captions
    assert found.protocol == protocol
    assert said(find_dataset(name).read(annotations / name.split("-")[0], split)) == captions  # or the folder itself


def test_what_the_files_lack_is_said(annotations: Path) -> None:
    (silent, number) = find_dataset("msrvtt-1ka").read(annotations, "train").remarks
    assert "1 of the 3 videos in" in silent
    assert "have no caption in" in silent
    assert "video70209" in silent
    assert "names 3 videos, msrvtt-1ka train has 9000" in number
    (clip,) = find_dataset("lsmdc").read(annotations, "train").remarks
    assert clip == "1012_Unbreakable_00.05.16.065-00.05.21.941 was left out: it is a clip of the test split"


def test_captions_may_come_in_other_files(annotations: Path, tmp_path: Path) -> None:
    first, second = VIDEOS["msvd"]
    write(tmp_path / "MSVD" / "test_list.txt", f"{first}\n{second}\n")
    write(tmp_path / "MSVD" / "captions_msvd.json", {first: ["a boy"], second: ["rain", ""]})
    assert said(find_dataset("msvd").read(tmp_path)) == {first: ("a boy",), second: ("rain",)}

    data = json.loads((annotations / "msrvtt" / "MSRVTT_data.json").read_text())
    for name, kept in (("test_videodatainfo", ("test",)), ("train_val_videodatainfo", ("train", "validate"))):
        names = [video["video_id"] for video in data["videos"] if video["split"] in kept]
        part = {kind: [item for item in data[kind] if item["video_id"] in names] for kind in ("videos", "sentences")}
        write(tmp_path / f"{name}.json", part)
    whole = find_dataset("msrvtt-full").read(annotations)
    assert said(find_dataset("msrvtt-full").read(tmp_path)) == said(whole)

    write(tmp_path / "lsmdc_mdata_test.json", {"1_A_1.2": {"text": ["He sits."], "start": [0], "end": [1]}})
    assert said(find_dataset("lsmdc").read(tmp_path)) == {"1_A_1.2": ("He sits.",)}


# -- what is wrong with a folder or a file ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("msrvtt-1ka", "msrvtt/MSRVTT_JSFUSION_test.csv", "key,sentence\na,b\n", "line 1.*header with video_id and"),
        ("msrvtt-1ka", "msrvtt/MSRVTT_JSFUSION_test.csv", "video_id,sentence\na,b,c\n", "line 2.*3 columns"),
        (
            "msrvtt-1ka",
            "msrvtt/MSRVTT_JSFUSION_test.csv",
            "video_id,sentence\na,b\na,c\n",
            "2 captions of a, expected one",
        ),
        ("msrvtt-full", "msrvtt/MSRVTT_data.json", "{", "is not JSON"),
        ("msrvtt-full", "msrvtt/MSRVTT_data.json", {"videos": []}, "expected an object with videos, sentences"),
        (
            "msrvtt-full",
            "msrvtt/MSRVTT_data.json",
            {"videos": [{"video_id": "a", "split": "test"}], "sentences": [{"video_id": "a", "caption": 3}]},
            r"sentences\[0\].*expected a list of texts",
        ),
        (
            "msrvtt-full",
            "msrvtt/MSRVTT_data.json",
            {"videos": [{"video_id": "a", "split": "train"}], "sentences": []},
            "no video of the split test; it has train",
        ),
        ("didemo", "didemo/test_data.json", {}, "holds no list"),
        ("didemo", "didemo/test_data.json", [{"video": "a.mov"}], "record 0.*video, description"),
        ("didemo", "didemo/test_list.txt", "none.mov\n", "none of the 1 videos.*has a caption"),
        ("didemo", "didemo/test_list.txt", "\n", "is empty"),
        ("activitynet", "activitynet/val_1.json", {"v_a": {"sentences": "x"}}, "v_a is 'x', expected a list"),
        ("vatex", "vatex/vatex_validation_v1.0.json", [{"videoID": "a"}], "record 0.*videoID, enCap"),
        ("vatex", "vatex/vatex_en_c_val_release.jsonl", '{"vid_name": "a"}\n', "line 1.*vid_name, descs"),
        ("msvd", "msvd/youtube_mapping.txt", "a\n", "line 1.*an id and vid<N>"),
        ("lsmdc", "lsmdc/LSMDC16_challenge_1000_publictect.csv", "a\tb\n", "line 1: found 2 columns, expected 6"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, file: str, content: Any, message: str) -> None:
    write_annotations(tmp_path)
    write(tmp_path / file, content)
    with pytest.raises(InputError, match=message) as error:
        find_dataset(name).read(tmp_path)
    assert Path(file).name in str(error.value)


def test_what_cannot_be_found_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dataset 'msrvt' is not one of msrvtt-1ka"):
        find_dataset("msrvt")
    with pytest.raises(UsageError, match="has no split 'dev', it has train, val_1, val_2"):
        find_dataset("activitynet").read(tmp_path, "dev")
    with pytest.raises(InputError, match=r"the list of the split test of msvd not found: no test_list\.txt in"):
        find_dataset("msvd").read(tmp_path)
    with pytest.raises(InputError, match="cannot read the folder"):
        find_dataset("msvd").read(tmp_path / "none")
    for name in ("test_list.txt", "captions_msvd.a.json", "captions_msvd.b.json"):
        write(tmp_path / name, "{}" if name.endswith("json") else "x\n")
    with pytest.raises(InputError, match=r"may both be the captions_msvd\.json of msvd; keep one"):
        find_dataset("msvd").read(tmp_path)


def test_the_help_names_every_benchmark() -> None:
    @dataset_option
    def command() -> None: ...

    (option,) = command.__click_params__  # type: ignore[attr-defined]
    for name in DATASETS:
        assert f" {name}" in option.help


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "names", "keys"),
    [
        ("msrvtt-1ka", VIDEOS["msrvtt"][:2], ["TestVideo/video7010.mp4", "video7020.webm"]),
        ("didemo", VIDEOS["didemo"], ["1@N0_2_a.mov", "1@N0_3_b.", "2@N0_4_c.3g2"]),
        ("didemo", VIDEOS["didemo"], ["d/1@N0_2_a.mp4", "d/1@N0_3_b.mp4", "d/2@N0_4_c.mp4"]),
        ("didemo", VIDEOS["didemo"], ["1@N0_2_a.mov.mp4", "1@N0_3_b..mp4", "2@N0_4_c"]),
        ("activitynet", VIDEOS["activitynet"], ["v_-aBc.mp4", "v_v_d.mkv"]),
        ("activitynet", VIDEOS["activitynet"], ["-aBc.mp4", "v_d.mkv"]),
        ("vatex", VIDEOS["vatex"], ["-abc_def-12_000248_000258.mp4", "Bfyp0C02sko_0_10.mp4"]),
        ("msvd", VIDEOS["msvd"], ["YouTubeClips/-4wsuPCjDBc_5_15.avi", "vid2.avi"]),
        ("lsmdc", VIDEOS["lsmdc"], [f"{name[:9]}/{name}.avi" for name in VIDEOS["lsmdc"]]),
        ("lsmdc", VIDEOS["lsmdc"], [*VIDEOS["lsmdc"]]),
    ],
)
def test_names_fit_the_files_that_people_have(
    annotations: Path, dataset: str, names: tuple[str, ...], keys: list[str]
) -> None:
    matched = match_videos(find_dataset(dataset).read(annotations), [*keys, "another.mp4"])
    assert [(video.names[0], key) for video, key in matched.found] == list(zip(names, keys, strict=True))
    assert (matched.missing, matched.ambiguous, matched.left_out()) == ((), (), ())


def test_missing_and_unclear_videos_are_named_and_counted() -> None:
    videos = tuple(DescribedVideo((name,), ("x",)) for name in ("a", "b", "c", "d", "d.mov", *"efghij"))
    split = Split("made", "test", "paragraph", videos, 12, ())
    matched = match_videos(split, ["a.mp4", "x/b.mp4", "y/b.mp4", "d.mp4", "z.mp4"])
    assert [(video.names[0], key) for video, key in matched.found] == [("a", "a.mp4")]
    assert matched.missing == ("c", *"efghij")
    assert dict(matched.ambiguous) == {"b": ("x/b.mp4", "y/b.mp4"), "d": ("d.mp4",), "d.mov": ("d.mp4",)}
    assert matched.left_out() == (
        "7 of the 11 videos of made test lack features in the store and were left out: c, e, f, g, h, and 2 more",
        "3 of the 11 videos of made test cannot be told apart in the store and were left out (first: b may be "
        "x/b.mp4 or y/b.mp4)",
    )
    assert "of 1 videos, published ones of made test of 12: they cannot be compared" in matched.comparison()


# -- the pickle -------------------------------------------------------------------------------------------------------

CAPTIONS = {"a_1_2": [["a", "boy", "a"], ["ü", "甲"]], "b": [[]], "n": [[1, -70000, 2.5, None, True, (1, 2), (3,) * 4]]}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_of_any_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(CAPTIONS, protocol=protocol))
    assert read_plain_pickle(path) == json.loads(json.dumps(CAPTIONS))


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"(dp0\nS'a_1_2'\np1\n(lp2\n(lp3\nS'a'\np4\naS'boy'\np5\naas.")
    assert read_plain_pickle(path) == {"a_1_2": [["a", "boy"]]}
    path.write_bytes(b"\x80\x02}q\x00U\x05a_1_2q\x01]q\x02]q\x03(U\x01aq\x04U\x03boyq\x05eas.")
    assert read_plain_pickle(path) == {"a_1_2": [["a", "boy"]]}


class Hostile:
    """Would make a folder, if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_something_is_refused_and_nothing_runs(tmp_path: Path, protocol: int) -> None:
    path, made = tmp_path / "raw-captions.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps({"a": [Hostile(made)]}, protocol=protocol))
    with pytest.raises(InputError, match=r"raw-captions\.pkl holds more than lists and texts \(opcode .*JSON"):
        read_plain_pickle(path)
    assert not made.exists()


def test_a_cut_or_damaged_pickle_is_an_input_error(tmp_path: Path) -> None:
    path, whole = tmp_path / "x.pkl", pickle.dumps(CAPTIONS, protocol=2)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="not a whole pickle"):
            read_plain_pickle(path)
    for place in range(len(whole)):  # whatever comes out, nothing else is raised
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            read_plain_pickle(path)
        except InputError:
            continue


@pytest.mark.slow
def test_a_pickle_of_other_things_or_of_endless_text_is_no_caption_file(tmp_path: Path) -> None:
    write(tmp_path / "test_list.txt", "a\n")
    line = ["word"] * 50
    for content, message in (
        ([1], "expected an object"),
        ({1: [["a"]]}, "expected {id"),
        ({"a": [[1]]}, "list of texts"),
    ):
        (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(InputError, match=message):
            find_dataset("msvd").read(tmp_path)
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({"a": [line] * 5000}))
    with pytest.raises(InputError, match="unfolds to more than 64 times its size"):
        find_dataset("msvd").read(tmp_path)


# -- the real files ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split", "num_videos", "num_captions"),
    [
        ("msrvtt-1ka", "test", 1000, 1000),
        ("msrvtt-1ka", "train", 210, 4200),
        ("msrvtt-full", "test", 210, 4200),
        ("didemo", "test", 1004, 1004),
        ("didemo", "val", 1065, 1065),
        ("activitynet", "val_1", 4917, 4917),
        ("activitynet", "val_2", 1000, 1000),
        ("activitynet", "train", 1501, 1501),
        ("vatex", "test", 724, 7240),
        ("vatex", "test1k5_sec", 1500, 15000),
        ("msvd", "test", 670, 27763),
        ("msvd", "train", 60, 2489),
        ("lsmdc", "test", 1000, 1000),
    ],
)
def test_the_real_files(assets: Path, name: str, split: str, num_videos: int, num_captions: int) -> None:
    found = find_dataset(name).read(assets / "annotations", split)
    assert len(found.videos) == num_videos
    assert sum(len(video.captions) for video in found.videos) == num_captions
    assert bool(found.remarks) == (num_videos in (210, 1501, 724, 60) or split == "val_2")  # those are excerpts


@pytest.mark.slow
def test_texts_of_the_real_files(assets: Path) -> None:
    def read(name: str, split: str = "") -> dict[str, tuple[str, ...]]:
        return said(find_dataset(name).read(assets / "annotations", split))

    assert len(read("msrvtt-full")["video7010"]) == 20
    paragraphs = read("activitynet")
    assert max(len(texts[0].split()) for texts in paragraphs.values()) == 332
    assert sum(len(texts[0].split()) > 64 for texts in paragraphs.values()) == 874
    assert sum(len(texts[0].split()) > 77 for texts in paragraphs.values()) == 508
    assert sum(name.endswith(".") for name in read("didemo")) == 27
    official = json.loads((assets / "annotations/msvd/captions_msvd.test_val.json").read_text())
    pickled = read_plain_pickle(assets / "annotations/msvd/raw-captions.excerpt.pkl")
    shared = set(official) & set(pickled)
    assert len(shared) > 10
    for name in shared:
        assert [" ".join(tokens) for tokens in pickled[name]] == [" ".join(text.split()) for text in official[name]]
    table = read("lsmdc")
    content = json.loads((assets / "annotations/lsmdc/lsmdc_mdata_test.json").read_text())
    assert {name: tuple(map(str.strip, value["text"])) for name, value in content.items()} == table
