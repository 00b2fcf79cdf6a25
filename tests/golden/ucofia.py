"""UCoFiA: the three copies of its code, gradients, and the Sinkhorn-Knopp biases of its evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.normalise import DenseBlock, sinkhorn_biases
from stages.official_metrics import family_metrics, tied_places
from stages.rerankers.base import QueryBatch
from stages.rerankers.ucofia import TERMS, UcofiaHead, UcofiaVideos
from stages.rerankers.words import SentenceAndWords
from stages.training.losses import contrastive
from tests.golden.check import EXACT, FEATURES, GRADIENTS, LOGITS, Arrays, Tolerance
from tests.golden.features import head_state, tensor

_SELECTOR = "visual_token_selector."


def outputs(arrays: Arrays) -> dict[str, Any]:
    """Everything that the file holds."""
    found: dict[str, Any] = {}
    with torch.no_grad():
        for name, predictor in (("train_model", "w"), ("eval_t2v", "w_t2v"), ("eval_v2t", "w")):
            head = _head(arrays, predictor).train(name == "train_model")
            found |= {f"out.{name}.{key}": value for key, value in _evaluated(arrays, head).items()}
    found |= {f"out.train_model.{key}": value for key, value in _trained(arrays, _head(arrays, "w")).items()}
    return found | _biases(arrays)


def _head(arrays: Arrays, predictor: str) -> UcofiaHead:
    state = {name: value for name, value in head_state(arrays).items() if not name.startswith(_SELECTOR)}
    state |= {name: value for name, value in head_state(arrays, predictor).items() if name.startswith(_SELECTOR)}
    return UcofiaHead.of_state(state, int(arrays["cfg.H"]), official=True)


def _given(arrays: Arrays, prefix: str) -> dict[str, Tensor]:
    names = ("text", "words", "word_mask", "frames", "frame_mask", "tokens", "noise")
    return {name: tensor(arrays, f"{prefix}.{name}") for name in names}


def _prepared(head: UcofiaHead, given: dict[str, Tensor], selected: Tensor) -> tuple[SentenceAndWords, UcofiaVideos]:
    texts = head.texts(QueryBatch(given["text"], given["words"], given["word_mask"] > 0))
    return texts, head.of_selected(given["frames"], selected, given["frame_mask"] > 0)


def _evaluated(arrays: Arrays, head: UcofiaHead) -> dict[str, Tensor]:
    given = _given(arrays, "in")
    selector = head.visual_token_selector
    selections = {
        "": selector(given["tokens"], None, given["noise"], float(arrays["cfg.sigma"])),
        "hard_": selector(given["tokens"]),
    }
    found = {
        "selector_scores": selector.scores(given["tokens"]).flatten(0, 1),
        "selected": selections[""].flatten(1, 2),
        "selected_hard": selections["hard_"].flatten(1, 2),
    }
    for kind, selected in selections.items():
        texts, videos = _prepared(head, given, selected)
        names = {"video_sentence": "video_sentence", "frame_sentence": "frame_sentence", "patch_word": "pixel_word"}
        found |= {f"{kind}{names[term]}": head.term(term, texts, videos) for term in TERMS}
        found[f"{kind}logits"] = head.score(texts[None], videos).T
    return found


def _trained(arrays: Arrays, head: UcofiaHead) -> dict[str, Any]:
    given = _given(arrays, "train_in")
    leaves = {name: given[name].requires_grad_() for name in ("text", "words", "frames", "tokens")}
    selected = head.visual_token_selector(given["tokens"], None, given["noise"], float(arrays["cfg.sigma"]))
    texts, videos = _prepared(head, given, selected)
    logits = head.score(texts[None], videos).T
    loss = contrastive(logits)
    loss.backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    gradients |= {name: weight.grad for name, weight in head.named_parameters()}
    gradients["text"] = leaves["text"].grad[:, None]  # type: ignore[index]
    return {
        "train_loss": loss,
        "train_selected": selected.flatten(1, 2),
        "train_logits": logits,
        **{f"train_grad.{name}": value for name, value in gradients.items()},
    }


def _biases(arrays: Arrays) -> dict[str, Any]:
    found: dict[str, Any] = {}
    grains = range(1, 1 + len(TERMS))
    for grain in grains:
        bank = arrays[f"sk_in.t2v.train_text_x_test_video_{grain}"]
        rows, columns = _of_bank(bank)
        found |= {f"out.sk.t2v.text_bias_{grain}": rows, f"out.sk.t2v.video_bias_{grain}": columns}
        for name in arrays:
            head, iterations, count = name.partition(f"video_bias_{grain}_iters")
            if iterations:
                found[head + iterations + count] = _of_bank(bank, int(count))[1]
    for direction in ("t2v", "v2t"):
        banks = [arrays[f"sk_in.eval_{direction}.train_{grain}"] for grain in grains]
        tests = [arrays[f"sk_in.eval_{direction}.test_{grain}"] for grain in grains]
        if direction == "v2t":
            banks, tests = [bank.T for bank in banks], [test.T for test in tests]
        final = np.mean([test + _of_bank(bank)[1] for test, bank in zip(tests, banks, strict=True)], axis=0)
        places = tied_places(final)
        measured = {**family_metrics(places), "cols": places}
        found |= {f"out.sk.eval_{direction}.metric.{name}": value for name, value in measured.items()}
        found[f"out.sk.eval_{direction}.final_sim"] = final if direction == "t2v" else final.T
    return found


def _of_bank(bank: NDArray[Any], iterations: int = 4) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return sinkhorn_biases(lambda: [DenseBlock(bank)], bank.shape[1], iterations=iterations)


def tolerance_of(name: str) -> Tolerance | None:
    """That of the kind of number."""
    if ".metric." in name:
        return EXACT
    if "_grad." in name:
        return GRADIENTS
    return FEATURES if any(kind in name for kind in ("selected", "scores", "loss", "_bias")) else LOGITS
