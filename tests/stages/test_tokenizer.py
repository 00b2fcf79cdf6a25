from __future__ import annotations

from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from index_store.errors import ComponentMissingError
from stages.models import MODELS
from stages.models.architecture import from_folder, resolve
from stages.models.text import word_mask
from stages.models.tokenizer import build
from tests.stages.model_files import reference_model, save_folder

TEXTS = ["a photo of a dog", "", "Ünïcode 🙂 &amp; \n\t new lines", "! ! !", "word " * 100]


def test_default_tokenizer_is_open_clips() -> None:
    tokenizer = build(resolve("ViT-B-32", "", MODELS))
    assert torch.equal(tokenizer(TEXTS), SimpleTokenizer()(TEXTS))
    assert tokenizer.context_length == 77


def test_a_folder_brings_its_own_merges(tmp_path: Path) -> None:
    tokenizer = build(from_folder("local-dir", save_folder(tmp_path / "tiny", reference_model())))
    ids = tokenizer(["dog", "cat"])
    start, end = 512 + 3, 512 + 4  # 256 bytes, 256 bytes that end a word, 3 merges
    assert ids.shape == (2, 20)
    assert ids[0, :4].tolist() == [start, 512 + 1, end, 0]  # "do g</w>" is the second merge
    assert ids[1, :5].tolist() == [start, 512 + 2, 256 + ord("t") - ord("!"), end, 0]  # "c a" is the third
    assert tokenizer.end_id == end


def test_word_mask_runs_from_start_to_end_of_text() -> None:
    tokenizer = build(resolve("ViT-B-32", "", MODELS))
    ids = tokenizer(TEXTS)
    mask = word_mask(ids, tokenizer.end_id)
    assert mask[:, 0].all()
    assert mask.sum(dim=1).tolist()[:2] == [7, 2]
    assert mask[3].sum() == 5  # "!" has id 0, as padding has
    assert mask[4].all()  # cut at 77
    assert (ids[torch.arange(len(TEXTS)), mask.sum(dim=1) - 1] == tokenizer.end_id).all()
    assert (mask.long().diff(dim=1) <= 0).all()


def test_a_row_without_end_is_all_words() -> None:
    assert word_mask(torch.tensor([[5, 6, 7]]), 9).tolist() == [[True, True, True]]


def test_missing_vocabulary_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ComponentMissingError, match=r"pip install transformers|fetch it once with network access"):
        build(resolve("ViT-B-16-SigLIP2", "", MODELS))
