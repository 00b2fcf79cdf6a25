"""One pass over stored tokens gives what the network gives list by list, to the last bit the same in any batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.rerankers import sweep
from stages.rerankers.fusion import FusionConfig, FusionNetwork, VideoTokens
from stages.rerankers.sweep import StoredTokens, score_lists
from tests.stages.test_fusion import CONFIG, FRAMES, TOKENS, WIDTH, drawn_places, trained

NUM_VIDEOS, NUM_TEXTS, NUM_CANDIDATES = 9, 7, 6


def stored(dtype: torch.dtype = torch.float16, seed: int = 0) -> StoredTokens:
    """Videos of 1 to F frames; tokens of other frames are not zero."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(FRAMES) < torch.randint(1, FRAMES + 1, (NUM_VIDEOS, 1), generator=generator)
    raw = 30 * torch.randn(NUM_VIDEOS, FRAMES, TOKENS, WIDTH, generator=generator)
    return StoredTokens(raw.round().clamp(-127, 127).to(dtype), mask)


def lists(num: int, among: int, seed: int = 1) -> NDArray[np.int64]:
    """int64 [num, N]: row 0 of ``among`` in every list, so that many look at it; a few places are empty."""
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.append(0, 1 + rng.permutation(among - 1)[: NUM_CANDIDATES - 1]) for _ in range(num)])
    drawn[1, 4:] = -1
    return drawn


def one_by_one(
    network: FusionNetwork,
    indicators: Tensor,
    videos: StoredTokens,
    texts_of: NDArray[np.int64],
    videos_of: NDArray[np.int64],
    broad: Tensor,
) -> Tensor:
    """``score_lists`` by the network itself, which training uses."""
    seen = videos_of.clip(min=0)
    places = None if videos.places is None else videos.places[seen]
    tokens = VideoTokens.of(videos.tokens[seen], videos.frame_mask[seen], places)
    is_candidate = torch.from_numpy((texts_of >= 0) & (videos_of >= 0))
    found: Tensor = network(indicators[texts_of.clip(min=0)], tokens, broad, is_candidate)
    return found


def asked(seed: int = 2) -> Tensor:
    return torch.randn(NUM_TEXTS, 3, WIDTH, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, num_blocks=3, num_places=0),
        replace(CONFIG, is_listwise=False),
        replace(CONFIG, head="positional", num_candidates=4, num_blocks=2),
    ],
)
@pytest.mark.parametrize(("dtype", "is_placed"), [(torch.float16, False), (torch.int8, False), (torch.int8, True)])
def test_it_gives_the_numbers_of_the_network(
    config: FusionConfig, is_turned: bool, dtype: torch.dtype, is_placed: bool
) -> None:
    videos, indicators = stored(dtype), asked()
    if is_placed:  # P of nine tokens are kept; a network without places does not mind
        config = replace(config, num_places=9 if config.num_places else 0)
        videos = replace(videos, places=drawn_places(NUM_VIDEOS))
    network = trained(config)
    if is_turned:
        texts_of, videos_of = lists(NUM_VIDEOS, NUM_TEXTS), np.arange(NUM_VIDEOS)[:, None]
    else:
        texts_of, videos_of = np.arange(NUM_TEXTS)[:, None], lists(NUM_TEXTS, NUM_VIDEOS)
    broad = torch.rand(max(len(texts_of), len(videos_of)), NUM_CANDIDATES)
    found = score_lists(network, indicators, videos, texts_of, videos_of, broad)
    expected = one_by_one(network, indicators, videos, texts_of, videos_of, broad)
    assert found.std() > 1e-3
    assert (found[1, 4:] == 0).all()
    assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
def test_all_tokens_in_their_places_score_as_all_tokens() -> None:
    network, videos = trained(), stored()
    every = replace(videos, places=torch.arange(TOKENS).expand(NUM_VIDEOS, FRAMES, -1))
    mixed = replace(videos, places=every.places.flip(-1))
    own, videos_of = np.arange(NUM_TEXTS)[:, None], lists(NUM_TEXTS, NUM_VIDEOS)
    for score in (score_lists, one_by_one):
        broad = torch.rand(videos_of.shape)
        expected = score(network, asked(), videos, own, videos_of, broad)
        assert torch.allclose(score(network, asked(), every, own, videos_of, broad), expected, atol=1e-6)
        assert not torch.allclose(score(network, asked(), mixed, own, videos_of, broad), expected, atol=1e-3)


@pytest.mark.parametrize(("num_threads", "num_places"), [(1, 3), pytest.param(2, 3, marks=pytest.mark.slow), (2, 5)])
def test_a_list_is_scored_to_the_same_bits_in_any_batch(
    num_threads: int, num_places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    is_placed = num_places != 3
    width = 64 if is_placed else 512
    network = FusionNetwork(FusionConfig(width, num_places, num_blocks=2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    places = torch.randint(0, num_places, (40, 4, 3)) if is_placed else None
    videos = StoredTokens(torch.randn(40, 4, 3, width).half(), torch.ones(40, 4, dtype=torch.bool), places)
    indicators, broad = torch.randn(30, 3, width), torch.rand(30, 7)
    rng = np.random.default_rng(0)
    videos_of = np.stack([np.append(rng.permutation(2)[:1], 2 + rng.permutation(38)[:6]) for _ in range(30)])
    own = np.arange(30)[:, None]
    before = torch.get_num_threads()
    with torch.inference_mode():
        together = score_lists(network, indicators, videos, own, videos_of, broad)
        torch.set_num_threads(num_threads)
        try:
            for rows in (slice(3, 4), slice(0, 29)):
                alone = score_lists(network, indicators, videos, own[rows], videos_of[rows], broad[rows])
                assert torch.equal(alone, together[rows])
            monkeypatch.setitem(sweep._BLOCK_BYTES, "cpu", 3 * videos.tokens[0].numel() * 4)  # three videos at a time
            assert torch.equal(score_lists(network, indicators, videos, own, videos_of, broad), together)
        finally:
            torch.set_num_threads(before)
    assert together.std() > 1e-3


@torch.no_grad()
def test_the_length_of_a_token_changes_nothing_and_no_token_is_too_short() -> None:
    network, indicators = trained(), asked()
    videos = stored(torch.float32)
    videos.tokens[2] = 0  # an image tower gives no such token; a damaged file may
    own, videos_of = np.arange(NUM_TEXTS)[:, None], lists(NUM_TEXTS, NUM_VIDEOS)
    broad = torch.rand(videos_of.shape)
    found = score_lists(network, indicators, videos, own, videos_of, broad)
    longer = StoredTokens(videos.tokens * torch.rand(NUM_VIDEOS, FRAMES, TOKENS, 1).add(0.1), videos.frame_mask)
    assert found.isfinite().all()
    assert torch.allclose(score_lists(network, indicators, longer, own, videos_of, broad), found, atol=1e-5)


@torch.no_grad()
def test_an_untrained_network_changes_nothing_at_all() -> None:
    own, videos_of = np.arange(NUM_TEXTS)[:, None], lists(NUM_TEXTS, NUM_VIDEOS)
    delta = score_lists(FusionNetwork(CONFIG), asked(), stored(), own, videos_of, torch.rand(videos_of.shape))
    assert (delta == 0).all()


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_float16_products_stay_close() -> None:
    network, own, videos_of = trained(), np.arange(NUM_TEXTS)[:, None], lists(NUM_TEXTS, NUM_VIDEOS)
    broad = torch.rand(videos_of.shape)
    for dtype, places in ((torch.float16, None), (torch.int8, None), (torch.int8, drawn_places(NUM_VIDEOS))):
        videos = replace(stored(dtype), places=None if places is None else places.clamp(max=TOKENS - 1))
        expected = score_lists(network.cpu(), asked(), videos, own, videos_of, broad)
        there = StoredTokens(
            videos.tokens.cuda(), videos.frame_mask.cuda(), None if places is None else videos.places.cuda()
        )
        found = score_lists(network.cuda(), asked().cuda(), there, own, videos_of, broad.cuda())
        assert (found.cpu() - expected).abs().max() < 1e-2 * expected.std()
