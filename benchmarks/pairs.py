"""Focused view: CPU seconds of a (query, video) pair against the formulas written down plainly, on the same features.

Plainly means as the papers' code has it: one tensor of all texts and all videos, padding computed like anything else.
Where that would not fit into memory, a few texts at a time. Both sides start from the same float32 features of T texts
and V videos in memory, and what does not depend on the query is part of both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.measure import Ratio, best_of, cpu_seconds
from stages.rerankers import make_reranker
from stages.rerankers.base import CandidateBatch, QueryBatch, Reranker
from stages.rerankers.ucofia import UcofiaHead, UcofiaReranker
from stages.rerankers.xclip import XClipHead, XClipReranker

REPETITIONS = 5
FRAMES, PATCHES, WORDS, WIDTH = 12, 49, 32, 512
FEWEST_WORDS, MOST_WORDS = 10, 14
"""Of a caption of ordinary length, start and end of text with it."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """T texts and V videos; videos are full, texts are padded to W words."""

    queries: QueryBatch
    tokens: Tensor
    """float32 [V, F, P + 1, D], row 0 the frame embedding."""

    def some(self, num_texts: int, num_videos: int) -> Features:
        """The first of them."""
        return Features(self.queries[:num_texts], self.tokens[:num_videos])

    @staticmethod
    def drawn(num_texts: int, num_videos: int) -> Features:
        """Correlated as CLIP's are: cosines of text and frame around 0.3, of patches around 0.2, tokens 10 long."""
        generator = torch.Generator().manual_seed(0)
        common = torch.randn(WIDTH, generator=generator)
        tokens = torch.randn(num_videos, FRAMES, PATCHES + 1, WIDTH, generator=generator) + common / 2
        words = torch.randn(num_texts, WORDS, WIDTH, generator=generator) + common / 2
        number = torch.randint(FEWEST_WORDS, MOST_WORDS + 1, (num_texts, 1), generator=generator)
        mask = torch.arange(WORDS) < number
        words = (10 * words).masked_fill(~mask.unsqueeze(-1), 0.0)
        sentence = words[torch.arange(num_texts), number.squeeze(1) - 1]
        return Features(QueryBatch(sentence, words, mask), (0.4 * tokens).half().float())


@dataclass(frozen=True, slots=True)
class Method:
    """What is compared."""

    name: str
    """As ``make_reranker`` takes it, unless ``reranker`` is given."""
    plain: Callable[[Features], Tensor]
    """The formulas, [T, V]."""
    limit: float
    """How many times faster we must be."""
    num_texts: int
    num_videos: int
    """Enough that neither side's time is mostly what it does once."""
    columns: int
    """Tokens of a video that each word, or with EERCF each sentence, meets in a product of length D."""
    reranker: Callable[[], Reranker] | None = None
    """Makes ours; None: ``make_reranker`` does."""


def run(methods: Sequence[Method] | None = None, repetitions: int = REPETITIONS) -> Iterator[Ratio]:
    """One ratio for each method, on one thread. Raises AssertionError where the scores differ."""
    methods = METHODS if methods is None else methods
    features = Features.drawn(max(method.num_texts for method in methods), max(m.num_videos for m in methods))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for method in methods:
            yield measure(method, features.some(method.num_texts, method.num_videos), repetitions)
    finally:
        torch.set_num_threads(before)


def measure(method: Method, features: Features, repetitions: int) -> Ratio:
    """Plain seconds / our seconds."""
    reranker = make_reranker(method.name) if method.reranker is None else method.reranker()
    candidates = _everything(features)
    queries = features.queries
    torch.testing.assert_close(reranker.rank(queries, candidates), method.plain(features), atol=1e-4, rtol=1e-4)
    rows = queries.sentence if method.name == "eercf" else queries.words[queries.word_mask]
    columns = features.tokens.flatten(0, 2)[: len(features.tokens) * method.columns].T
    ours, plain, products = best_of(
        repetitions,
        lambda: reranker.rank(queries, candidates),
        lambda: method.plain(features),
        lambda: rows @ columns,
        clock=cpu_seconds,
    )
    num_pairs = candidates.index.numel()
    detail = (
        f"{1e6 * ours / num_pairs:.1f} us a pair, plain {1e6 * plain / num_pairs:.1f} us, the products that no exact "
        f"scoring avoids {1e6 * products / num_pairs:.1f} us alone, {num_pairs} pairs"
    )
    return Ratio(f"{method.name}, plain / ours", plain / ours, method.limit, at_most=False, detail=detail)


def _everything(features: Features) -> CandidateBatch:
    """Every video is a candidate of every text, stored as float16."""
    num_texts, num_videos = len(features.queries), len(features.tokens)
    index = torch.arange(num_videos).repeat(num_texts, 1)
    mask = torch.ones(num_videos, FRAMES, dtype=torch.bool)
    return CandidateBatch(features.tokens.half(), None, mask, index, torch.zeros(num_texts, num_videos))


# -- the formulas -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def plain_eercf(features: Features) -> Tensor:
    """All five levels, as the authors' evaluation computes them, some texts at a time; then the final combination."""
    texts = _unit(features.queries.sentence)
    frames, patches = _unit(features.tokens[:, :, 0]), _unit(features.tokens[:, :, 1:].flatten(1, 2))
    pooled = _unit(frames.mean(1))
    parts = []
    for start in range(0, len(texts), 8):
        part = texts[start : start + 8]
        of_frames = torch.einsum("td,vfd->tvf", part, frames)
        of_patches = torch.einsum("td,vpd->tvp", part, patches)
        frame_gate, patch_gate = (of_frames / 0.1).softmax(-1), (of_patches / 0.01).softmax(-1)
        gathered = _unit((frame_gate.unsqueeze(-1) * frames).sum(2))
        found = _unit((patch_gate.unsqueeze(-1) * patches).sum(2))
        frame_strong = (gathered * part.unsqueeze(1)).sum(-1)
        patch_strong = (found * part.unsqueeze(1)).sum(-1)
        frame_weak = ((of_frames / 0.01).softmax(-1) * of_frames).sum(-1)
        patch_weak = (patch_gate * of_patches).sum(-1)
        scores = 0.8 * frame_weak + 0.2 * frame_strong + 0.2 * patch_weak + 0.5 * part @ pooled.T
        parts.append(scores + 0.0 * patch_strong)
    return torch.cat(parts)


@functools.cache
def xclip_head() -> XClipHead:
    """X-CLIP with matrices of weights, near the identity that training starts from."""
    return _changed(XClipHead(WIDTH, num_words=WORDS, num_frames=FRAMES))


def plain_xclip(features: Features) -> Tensor:
    """X-CLIP's formulas with identities."""
    return _plain_xclip(features, dict(XClipHead(WIDTH, num_words=WORDS, num_frames=FRAMES).named_parameters()), 1.0)


def plain_xclip_matrices(features: Features) -> Tensor:
    """X-CLIP's formulas with matrices of weights."""
    weights = dict(xclip_head().named_parameters())
    return _plain_xclip(features, weights, weights["logit_scale"].exp().item())


@torch.inference_mode()
def _plain_xclip(features: Features, weights: Mapping[str, Tensor], scale: float) -> Tensor:
    """The four similarities over full tensors [T, V, W, F]; padding is computed, and left out of each softmax."""
    text, words = _unit(features.queries.sentence), _unit(features.queries.words)
    mask = features.queries.word_mask
    frames = _unit(features.tokens[:, :, 0])
    video = _unit(frames.mean(1))

    def aggregate(x: Tensor, name: str, mask: Tensor | None = None) -> Tensor:
        logits = x / 0.01 if mask is None else (x / 0.01).masked_fill(~mask, -torch.inf)
        aggregated: Tensor = logits.softmax(-1) @ weights[name]
        return (aggregated * x if mask is None else (aggregated * x).masked_fill(~mask, 0.0)).sum(-1)

    video_sentence = text @ weights["global_mat_weight"] @ video.T
    video_word = aggregate(torch.einsum("twd,vd->tvw", words, video), "word_logit_weight", mask[:, None])
    sentence_frame = aggregate(torch.einsum("td,vfd->tvf", text, frames), "frame_logit_weight")
    local = torch.einsum("twd,vfd->tvwf", words @ weights["local_mat_weight"], frames)
    by_frame = aggregate(local.transpose(2, 3), "word_mat_weight", mask[:, None, None])
    by_word = aggregate(local, "frame_mat_weight")
    words_last = aggregate(by_word, "word_mat_weight2", mask[:, None])
    frame_word = (aggregate(by_frame, "frame_mat_weight2") + words_last) / 2
    return scale * (video_sentence + video_word + sentence_frame + frame_word) / 4


@functools.cache
def ucofia_head() -> UcofiaHead:
    """UCoFiA with matrices of weights, near the identity that training starts from."""
    return _changed(UcofiaHead(WIDTH, num_words=WORDS, num_frames=FRAMES))


def plain_ucofia(features: Features) -> Tensor:
    """UCoFiA's formulas without weights: patches of unit length, identities."""
    return _plain_ucofia(features, None)


def plain_ucofia_matrices(features: Features) -> Tensor:
    """UCoFiA's formulas with matrices of weights."""
    return _plain_ucofia(features, dict(ucofia_head().named_parameters()))


@torch.inference_mode()
def _plain_ucofia(features: Features, weights: dict[str, Tensor] | None) -> Tensor:
    """The three similarities over full tensors [T, V, W, 4 F], as for X-CLIP; the three best patches of each frame."""
    text, words = _unit(features.queries.sentence), _unit(features.queries.words)
    mask = features.queries.word_mask
    frames, patches = _unit(features.tokens[:, :, 0]), features.tokens[:, :, 1:]
    video = _unit(frames.mean(1))
    best = (_unit(patches) * frames.unsqueeze(2)).sum(-1).topk(3).indices.sort(-1).values
    selected = patches.gather(2, best.unsqueeze(-1).expand(-1, -1, -1, WIDTH))
    tokens = torch.cat([features.tokens[:, :, :1], selected], 2).flatten(1, 2)
    tokens = _unit(tokens) if weights is None else tokens

    def times(x: Tensor, name: str) -> Tensor:
        return x if weights is None else x @ weights[name]

    def sharpened(x: Tensor, mask: Tensor | None) -> Tensor:
        return (x / 0.01 if mask is None else (x / 0.01).masked_fill(~mask, -torch.inf)).softmax(-1)

    def aggregate(x: Tensor, name: str, mask: Tensor | None = None) -> Tensor:
        return (sharpened(times(sharpened(x, mask), name), mask) * x).sum(-1)

    scale = torch.ones(()) if weights is None else weights["logit_scale"].exp()
    video_sentence = scale * times(text, "global_mat_weight") @ times(video, "global_mat_weight_1").T
    frame_sentence = scale * aggregate(torch.einsum("td,vfd->tvf", text, frames), "frame_logit_weight")
    left, right = times(words, "local_mat_weight"), times(tokens, "local_mat_weight1")
    local = torch.einsum("twd,vpd->tvwp", left, right)
    by_patch = aggregate(local.transpose(2, 3), "word_mat_weight", mask[:, None, None])
    by_word = aggregate(local, "pixel_mat_weight")
    words_first = aggregate(by_patch, "pixel_mat_weight2")
    patch_word = (words_first + aggregate(by_word, "word_mat_weight2", mask[:, None])) / 2
    return (video_sentence + frame_sentence + patch_word) / 3


_H = TypeVar("_H", bound=nn.Module)


def _changed(head: _H) -> _H:
    """A head with every weight a little off from where training starts."""
    generator = torch.Generator().manual_seed(1)
    for parameter in head.eval().requires_grad_(requires_grad=False).parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return head


def _unit(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.clamp_min(1e-12)


METHODS = (
    Method("eercf", plain_eercf, 10.0, 16, 64, FRAMES * (PATCHES + 1)),
    Method("x-clip", plain_xclip, 3.0, 64, 128, FRAMES + 1),
    Method("x-clip with matrices", plain_xclip_matrices, 3.0, 64, 128, FRAMES + 1, lambda: XClipReranker(xclip_head())),
    Method("ucofia", plain_ucofia, 3.0, 128, 32, 4 * FRAMES),
    Method(
        "ucofia with matrices", plain_ucofia_matrices, 3.0, 128, 32, 4 * FRAMES, lambda: UcofiaReranker(ucofia_head())
    ),
)
"""One line adds a method."""
