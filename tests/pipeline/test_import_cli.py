"""A released checkpoint, from the command line to answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from index_store.store import Store
from stages.models import load_model
from stages.rerankers import CandidateBatch, QueryBatch
from stages.rerankers.xclip import XClipHead, XClipReranker
from tests.pipeline.conftest import Outcome, Run
from tests.stages.checkpoints import FRAMES, LAYERS, POSITIONS, QUICK_TINY, WORDS, tiny_checkpoint
from tests.stages.model_files import reference_model, save_folder, save_state
from tests.stages.test_import_weights import Evil


def refused(done: Outcome, code: int, *parts: str) -> None:
    assert done.code == code, (done.out, done.err)
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert [part for part in parts if part not in done.err] == []


def test_what_cannot_be_imported_is_one_line_and_code_17(run: Run, tmp_path: Path) -> None:
    path, output = tmp_path / "pytorch_model.bin.4", tmp_path / "out.safetensors"
    command = ("import-weights", path, "--output", output, "--model", "ViT-B-32-quickgelu", "--from")
    refused(run(*command, "xclip"), 17, str(path), "No such file")
    torch.save(tiny_checkpoint("ucofia"), path)
    refused(run(*command, "xclip"), 17, "is a checkpoint of UCoFiA, not of X-CLIP", "--from ucofia")
    refused(run(*command, "ucofia"), 17, "no tensor clip.visual.transformer.resblocks.2.", "240 of 302")
    path.write_bytes(path.read_bytes()[:-500])
    refused(run(*command, "ucofia"), 17, str(path), "cannot be read as plain tensors")
    torch.save({"clip.x": Evil(tmp_path / "made")}, path)
    refused(run(*command, "ucofia"), 17, str(path), "nothing else is ever unpickled")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_weights_beside_the_folder_of_their_model_are_refused(clips: Path, run: Run, tmp_path: Path) -> None:
    """A store remembers the weight file; the configuration must be found from there."""
    folder = save_folder(tmp_path / "model", reference_model(), QUICK_TINY)
    elsewhere = save_state(reference_model().state_dict(), tmp_path / "elsewhere.safetensors")
    done = run("extract", clips, "--store", tmp_path / "s", "--model", f"local-dir:{folder}", "--pretrained", elsewhere)
    refused(done, 2, str(elsewhere), str(folder), "put the file into that folder")
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("source", "method"), [("xclip", "x-clip"), ("ucofia", "ucofia")])
def test_a_checkpoint_answers_queries(clips: Path, run: Run, tmp_path: Path, source: str, method: str) -> None:
    folder = save_folder(tmp_path / "model", reference_model(seed=99), QUICK_TINY)
    torch.save(tiny_checkpoint(source), tmp_path / "pytorch_model.bin.4")
    clip, head, store = folder / "mine.safetensors", folder / "mine.head.safetensors", tmp_path / "store"
    command = ("import-weights", "--from", source, tmp_path / "pytorch_model.bin.4", "--output", clip)
    refused(run(*command), 2, "unknown size", "--model")
    done = run(*command, "--model", f"local-dir:{folder}", "--json")
    assert done.code == 0, done.err
    assert done.json["files"]["method"] == method
    assert done.json["files"]["head"] == str(head)
    model = done.json["files"]["model"]
    assert f"--model {model} --pretrained {clip}" in done.json["next_commands"][0]
    assert f"--weights {head}" in done.json["next_commands"][2]

    made = ("--model", model, "--pretrained", clip, "--frames", FRAMES, "--device", "cpu", "--dtype", "float32")
    assert run("extract", clips, "--store", store, *made).code == 0
    assert run("index", "--store", store).code == 0
    queries = clips.parent / "queries.jsonl"
    output = tmp_path / "run.jsonl"
    answer = ("rerank", "--store", store, "--queries", queries, "--output", output, "--json")
    done = run(*answer, "--weights", head)
    assert (done.code, done.json["method"]) == (0, method), done.err
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 36
    if source == "xclip":
        texts = [json.loads(line)["text"] for line in queries.read_text().splitlines()]
        expected = scores_set_directly(store, texts)
        asked = [json.loads(line)["_id"] for line in queries.read_text().splitlines()]
        for row in rows:
            assert row["focused_score"] == pytest.approx(expected[asked.index(row["query_id"])][row["key"]], rel=1e-6)

    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(f'{{"key": "{path.name}", "caption": "a red circle"}}\n' for path in clips.iterdir()))
    done = run("evaluate", "--store", store, "--captions", captions, "--weights", head, "--json")
    assert (done.code, done.json["method"]) == (0, method), done.err

    refused(run(*answer, "--weights", head, "--method", "broad"), 2, "--method broad takes no --weights")
    refused(run(*answer, "--weights", head, "--method", "eercf"), 2, f"has weights of {method}")
    refused(run(*answer, "--weights", clip), 17, "holds no weights for reranking")
    other = tmp_path / "other"
    assert run("extract", clips, "--store", other, "--model", "tbpipe-small", "--device", "cpu").code == 0
    assert run("index", "--store", other).code == 0
    done = run("rerank", "--store", other, "--queries", queries, "--output", output, "--weights", head)
    refused(done, 12, "weights_sha256")


def scores_set_directly(store: Path, texts: list[str]) -> list[dict[str, float]]:
    """X-CLIP's scores of every video, its head made from the checkpoint's own numbers."""
    state = tiny_checkpoint("xclip")
    head = XClipHead(
        QUICK_TINY["embed_dim"], LAYERS, num_positions=POSITIONS, num_words=WORDS, num_frames=FRAMES
    ).requires_grad_(False)
    head.load_state_dict(
        {"logit_scale": state["clip.logit_scale"], **{n: state[n] for n in head.state_dict() if n in state}}
    )
    opened = Store.open(store)
    pinned = opened.settings.model
    model = load_model(pinned.name, pinned.pretrained, "cpu", towers="text")
    with opened.snapshot() as snapshot:
        records = sorted(snapshot.videos(), key=lambda record: record.key)
        tokens = snapshot.read_tokens([record.id for record in records])
        videos = CandidateBatch(
            torch.from_numpy(tokens.tokens),
            None,
            torch.from_numpy(tokens.frame_mask),
            torch.arange(len(records)).expand(len(texts), -1),
            torch.zeros(len(texts), len(records)),
        )
        found = XClipReranker(head).rank(QueryBatch.of(model.encode_texts(texts)), videos)
    return [dict(zip((record.key for record in records), row, strict=True)) for row in found.tolist()]
