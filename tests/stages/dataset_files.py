"""Small annotation files of every benchmark, laid out as their authors lay them out, with traps of the real ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

VIDEOS: dict[str, tuple[str, ...]] = {
    "msrvtt": ("video7010", "video7020", "video0", "video1"),
    "didemo": ("1@N0_2_a.mov", "1@N0_3_b.", "2@N0_4_c.3g2"),
    "activitynet": ("v_-aBc", "v_v_d"),
    "vatex": ("-abc_def-12_000248_000258", "Bfyp0C02sko_000000_000010"),
    "msvd": ("-4wsuPCjDBc_5_15", "_x_1_2"),
    "lsmdc": ("1004_Juno_01.17.27.130-01.17.47.087", "1012_Unbreakable_00.05.16.065-00.05.21.941"),
}
"""What the test splits below name (of MSR-VTT: two of the test, two of the training split)."""


def write(path: Path, content: Any) -> None:
    """Text as it is, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def write_annotations(root: Path) -> Path:
    """All of them, a subfolder for each benchmark; returns ``root``."""
    for make in (_msrvtt, _didemo, _activitynet, _vatex, _msvd, _lsmdc):
        make(root / make.__name__[1:])
    return root


def _msrvtt(folder: Path) -> None:
    test_1, test_2, train_1, train_2 = VIDEOS["msrvtt"]
    write(
        folder / "MSRVTT_JSFUSION_test.csv",
        f'key,vid_key,video_id,sentence\nret0,msr1,{test_1},a man sings\nret1,msr2,{test_2},"a cat, asleep"\n',
    )
    write(folder / "MSRVTT_train.9k.csv", f"video_id\n{train_1}\n{train_2}\n{test_2}9\n")
    write(folder / "MSRVTT_train.7k.csv", f"video_id\n{train_2}\n")
    splits = {test_1: "test", test_2: "test", train_1: "train", train_2: "train", "video6513": "validate"}
    videos = [{"video_id": name, "split": split, "id": at} for at, (name, split) in enumerate(splits.items())]
    said = [(name, f"{name} {word}") for word in ("one", "two") for name in splits]  # not next to each other
    sentences = [{"caption": text, "video_id": name, "sen_id": at} for at, (name, text) in enumerate(said)]
    write(folder / "MSRVTT_data.json", {"info": {}, "videos": videos, "sentences": sentences})


def _didemo(folder: Path) -> None:
    first, second, third = VIDEOS["didemo"]
    said = [(first, " a dog runs. "), (second, "zoom out"), (first, "it jumps"), (third, "x"), ("9@N9_other.mov", "y")]
    records = [
        {"annotation_id": at, "description": text, "video": name, "times": [[0, 0]], "num_segments": 6}
        for at, (name, text) in enumerate(said)
    ]
    for split in ("train", "val", "test"):
        write(folder / f"{split}_data.json", records)
        write(folder / f"{split}_list.txt", f"{first}\n{second}\n{third}\n")


def _activitynet(folder: Path) -> None:
    first, second = VIDEOS["activitynet"]
    content = {
        first: {"duration": 9.5, "timestamps": [[0, 1], [2, 3]], "sentences": ["A man runs.", "  He stops."]},
        second: {"duration": 3.0, "timestamps": [[0, 1]], "sentences": ["Snow falls."]},
    }
    for split in ("train", "val_1"):
        write(folder / f"{split}.json", content)
        write(folder / f"{split}_list.txt", f"{first}\n{second}\n")
    write(folder / "val_2.json", {name[2:]: value for name, value in content.items()})


def _vatex(folder: Path) -> None:
    first, second = VIDEOS["vatex"]
    official = [{"videoID": first, "enCap": ["a b", "c d"], "chCap": ["甲"]}]
    write(folder / "vatex_validation_v1.0.json", official)
    lines = [{"vid_name": name, "clip_id": 1, "descs": [{"desc": "e f", "desc_id": 1}]} for name in (first, second)]
    write(folder / "vatex_en_c_val_release.jsonl", "\n".join(map(json.dumps, lines)))
    for split in ("train", "val", "test", "test1k5_sec"):
        write(folder / f"{split}_list.txt", f"{first}\n{second}\n")


def _msvd(folder: Path) -> None:
    first, second = VIDEOS["msvd"]
    captions = {first: [["a", "boy"], ["a", "dog"]], second: [["rain"]], "other_1_2": [["no"]]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol=2))
    for split in ("train", "val", "test"):
        write(folder / f"{split}_list.txt", f"{first}\n{second}\n")
    write(folder / "youtube_mapping.txt", f"{first} vid1\n{second} vid2\n")


def _lsmdc(folder: Path) -> None:
    first, second = VIDEOS["lsmdc"]
    times = "\t".join(["00.00.01.000"] * 4)
    table = f'{first}\t{times}\tSOMEONE says "no.\n{second}\t{times}\tShe leaves.\n'
    for name in ("LSMDC16_annos_training.csv", "LSMDC16_challenge_1000_publictect.csv"):
        write(folder / name, table)


Texts = dict[str, list[str]]
"""Name of a video -> its captions."""


def write_benchmark(folder: Path, dataset: str, train: Texts, test: Texts) -> None:
    """The files of one benchmark that ``tbpipe train`` and ``evaluate`` read, with these videos in them."""
    splits = {"train": train, ("val_1" if dataset == "activitynet" else "test"): test}
    every = {**train, **test}
    if dataset == "msrvtt-1ka":
        rows = [f'{at},{at},{name},"{texts[0]}"' for at, (name, texts) in enumerate(test.items())]
        write(folder / "MSRVTT_JSFUSION_test.csv", "\n".join(["key,vid_key,video_id,sentence", *rows]))
        write(folder / "MSRVTT_train.9k.csv", "\n".join(["video_id", *train]))
        videos = [{"video_id": name, "split": "train" if name in train else "test"} for name in every]
        sentences = [{"video_id": name, "caption": text} for name, texts in every.items() for text in texts]
        write(folder / "MSRVTT_data.json", {"videos": videos, "sentences": sentences})
        return
    for split, texts in splits.items():
        write(folder / f"{split}_list.txt", "\n".join(texts))
        if dataset == "didemo":
            records = [{"video": name, "description": text} for name, said in texts.items() for text in said]
            write(folder / f"{split}_data.json", records)
        if dataset == "activitynet":
            write(folder / f"{split}.json", {name: {"sentences": said} for name, said in texts.items()})
        if dataset == "vatex":
            official = [{"videoID": name, "enCap": said, "chCap": []} for name, said in texts.items()]
            write(folder / f"vatex_{'training' if split == 'train' else 'validation'}_v1.0.json", official)
        if dataset == "lsmdc":
            file = "LSMDC16_annos_training" if split == "train" else "LSMDC16_challenge_1000_publictect"
            write(folder / f"{file}.csv", "\n".join(f"{name}\t\t\t\t\t{said[0]}" for name, said in texts.items()))
    if dataset == "msvd":
        tokens = {name: [text.split() for text in texts] for name, texts in every.items()}
        (folder / "raw-captions.pkl").write_bytes(pickle.dumps(tokens, protocol=2))
