from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import normalize

from stages.rerankers.fusion import FusionConfig, FusionNetwork, VideoTokens

WIDTH, FRAMES, TOKENS = 32, 5, 4
CONFIG = FusionConfig(width=WIDTH, num_places=TOKENS, hidden=16)


def trained(config: FusionConfig = CONFIG, seed: int = 0) -> FusionNetwork:
    """A network whose last layer is no longer zero, as after training."""
    torch.manual_seed(seed)
    network = FusionNetwork(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return network


def draw(num_groups: int, num_candidates: int, seed: int = 0) -> tuple[Tensor, VideoTokens, Tensor, Tensor]:
    """Indicators, videos of 1 to F frames, broad logits, all candidates real."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(FRAMES) < torch.randint(1, FRAMES + 1, (num_groups, num_candidates, 1), generator=generator)
    raw = torch.randn(num_groups, num_candidates, FRAMES, TOKENS, WIDTH, generator=generator)
    indicators = torch.randn(num_groups, 1, 3, WIDTH, generator=generator)
    broad = 10 * torch.rand(num_groups, num_candidates, generator=generator)
    return indicators, VideoTokens.of(raw, mask), broad, torch.ones(num_groups, num_candidates, dtype=torch.bool)


def drawn_places(*videos: int, num_places: int = 9) -> Tensor:
    """Of the tokens of so many videos, uint8 [..., F, P], as stores have them: ascending."""
    drawn = torch.rand(*videos, FRAMES, num_places, generator=torch.Generator().manual_seed(5))
    return drawn.argsort(dim=-1)[..., :TOKENS].sort(dim=-1).values.to(torch.uint8)


def plain(network: FusionNetwork, indicators: Tensor, videos: VideoTokens, broad: Tensor) -> Tensor:
    """Delta [K] of one query as the equations read: indicators [M - 1, D], token by token, nothing folded."""
    (block,), head = network.blocks, network.head
    num_candidates, heads = len(broad), len(block.slope)
    tokens, mask = videos.tokens[0], videos.frame_mask[0]
    features: list[list[Tensor]] = [[] for _ in range(num_candidates)]
    values, evidences, fits, shares = ([[] for _ in range(num_candidates)] for _ in range(4))
    for indicator in normalize(indicators, dim=-1):
        for h in range(heads):
            logits: list[Tensor] = []
            places: list[Tensor] = []
            owners: list[int] = []
            for k in range(num_candidates):
                number = int(mask[k].sum())
                for f in range(number):
                    moment = (f + 0.5) / number
                    at = moment * (len(block.time) - 1)
                    low = min(int(at), len(block.time) - 2)
                    time = block.time[low] + (at - low) * (block.time[low + 1] - block.time[low])
                    for p in range(TOKENS):
                        key = block.ask[h].T @ tokens[k, f, p]
                        where = time + block.place[p if videos.places is None else int(videos.places[0, k, f, p])]
                        asks = block.sharpness.exp() * indicator @ key + 10 * (block.when[h] @ indicator) @ where
                        logits.append(asks + block.slope[h] * (moment - 0.5) - math.log(number * TOKENS))
                        places.append(tokens[k, f, p] + where)
                        owners.append(k)
            weights = torch.stack(logits).softmax(dim=0)
            gathered = []
            for k in range(num_candidates):
                own = torch.tensor([owner == k for owner in owners])
                share = weights[own].sum()
                gathered.append((weights[own, None] / share * torch.stack(places)[own]).sum(dim=0))
                evidences[k].append(0.1 * torch.stack(logits)[own].logsumexp(dim=0))
                shares[k].append(0.2 * share.log())
            for k in range(num_candidates):
                apart = gathered[k] - sum(gathered) / num_candidates
                values[k].append(head.value.weight @ (10 * apart) + head.value.bias)
                fits[k].append((head.match[h] @ indicator) @ apart)
    for k in range(num_candidates):
        lead = (broad[k] - broad.max())[None]
        parts = (torch.cat(values[k]), torch.stack(evidences[k]), 5 * torch.stack(fits[k]), torch.stack(shares[k]))
        features[k] = [torch.cat([*parts, 0.2 * lead])]
    asked = head.asked(20 * normalize(indicators, dim=-1).flatten())
    hidden = head.enter(torch.stack([feature for (feature,) in features])) + asked
    compared = compare_plainly(head.compare, hidden)
    delta: Tensor = head.leave(compared).squeeze(-1)
    return delta


def compare_plainly(layer: torch.nn.Module, hidden: Tensor) -> Tensor:
    """The same by the attention that torch brings, with the layer's weights."""
    width = hidden.shape[-1]
    attention = torch.nn.MultiheadAttention(width, 4, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(layer.mix.weight)
        attention.in_proj_bias.copy_(layer.mix.bias)
        attention.out_proj.weight.copy_(layer.output.weight)
        attention.out_proj.bias.copy_(layer.output.bias)
    normed = layer.norm(hidden)[None]
    hidden = hidden + attention(normed, normed, normed)[0][0]
    result: Tensor = hidden + layer.mlp(hidden)
    return result


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("num_candidates", "is_placed"), [(1, False), (2, False), (7, False), (2, True)])
def test_folded_projections_give_the_scores_of_the_plain_form(num_candidates: int, is_placed: bool) -> None:
    network = trained(replace(CONFIG, num_places=9)) if is_placed else trained()
    indicators, videos, broad, real = draw(1, num_candidates)
    if is_placed:
        videos = replace(videos, places=drawn_places(1, num_candidates))
    expected = plain(network, indicators[0, 0], videos, broad[0])
    found = network(indicators, videos, broad, real)[0]
    assert expected.abs().max() > 1e-3
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("head", ["equivariant", "positional"])
@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_untrained_it_leaves_the_broad_view_as_it_is(head: str, num_blocks: int) -> None:
    network = FusionNetwork(replace(CONFIG, head=head, num_blocks=num_blocks))  # type: ignore[arg-type]
    assert (network(*draw(3, 6)) == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_permuting_candidates_permutes_the_scores(num_blocks: int) -> None:
    network = trained(replace(CONFIG, num_blocks=num_blocks))
    indicators, videos, broad, real = draw(2, 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = VideoTokens(videos.tokens[:, order], videos.frame_mask[:, order])
    scores = network(indicators, videos, broad, real)
    assert scores.std() > 1e-3
    assert torch.allclose(network(indicators, permuted, broad[:, order], real), scores[:, order], atol=1e-5)


@torch.no_grad()
def test_the_other_candidates_matter_only_to_the_listwise_form() -> None:
    indicators, videos, broad, real = draw(1, 6)
    fewer = VideoTokens(videos.tokens[:, :3], videos.frame_mask[:, :3])
    for is_listwise in (True, False):
        network = trained(replace(CONFIG, is_listwise=is_listwise))
        alone = network(indicators, fewer, broad[:, :3], real[:, :3])
        together = network(indicators, videos, broad, real)[:, :3]
        assert torch.allclose(alone, together, atol=1e-5) != is_listwise
    sizes = {
        sum(p.numel() for p in FusionNetwork(replace(CONFIG, is_listwise=one)).parameters()) for one in (True, False)
    }
    assert len(sizes) == 1


@torch.no_grad()
@pytest.mark.parametrize("head", ["equivariant", "positional"])
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_padding_changes_nothing_and_no_nan_comes_out(head: str, num_blocks: int) -> None:
    network = trained(replace(CONFIG, head=head, num_blocks=num_blocks, num_candidates=6))  # type: ignore[arg-type]
    indicators, videos, broad, real = draw(2, 6)
    real[1, 4:] = False
    mask = videos.frame_mask.clone()
    mask[1, 5] = False  # not even one frame
    hidden = videos.tokens.masked_fill(~mask[..., None, None], 7.0)
    hidden[1, 4:] = 100.0
    scores = network(indicators, VideoTokens(videos.tokens, mask), broad, real)
    other = network(indicators, VideoTokens(hidden, mask), broad.masked_fill(~real, 1e4), real)
    assert scores.isfinite().all()
    assert (scores[1, 4:] == 0).all()
    assert torch.allclose(scores, other, atol=1e-5)
    longer = VideoTokens(functional.pad(hidden, (0, 0, 0, 0, 0, 3)), functional.pad(mask, (0, 3)))
    assert torch.allclose(network(indicators, longer, broad, real), scores, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("head", ["equivariant", "positional"])
@pytest.mark.parametrize("number", [1, 2, 10, 13])
def test_any_number_of_candidates_is_scored(head: str, number: int) -> None:
    network = trained(replace(CONFIG, head=head))  # type: ignore[arg-type]
    scores = network(*draw(2, number))
    assert scores.shape == (2, number)
    assert scores.isfinite().all()
    if head == "positional":
        assert (scores[:, 10:] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("head", ["equivariant", "positional"])
def test_texts_compete_for_one_video_as_videos_do_for_one_text(head: str) -> None:
    network = trained(replace(CONFIG, head=head))  # type: ignore[arg-type]
    indicators, videos, broad, real = draw(3, 6)
    texts = torch.randn(3, 6, 3, WIDTH)
    one = VideoTokens(videos.tokens[:, :1], videos.frame_mask[:, :1])
    scores = network(texts, one, broad, real)
    assert scores.shape == (3, 6)
    assert scores.std() > 1e-3
    same = network(indicators.expand(-1, 6, -1, -1), one, torch.zeros(3, 6), real)
    if head == "equivariant":
        assert torch.allclose(same, same[:, :1].expand(-1, 6), atol=1e-5)


def test_noise_is_drawn_in_training_only() -> None:
    network = trained(replace(CONFIG, gumbel=1.0))
    data = draw(1, 5)
    assert torch.equal(network(*data), network(*data))
    network.train()
    assert not torch.equal(network(*data), network(*data))


@pytest.mark.slow
def test_it_tells_first_from_last_which_a_mean_over_frames_cannot() -> None:
    """Two videos of the same frames in another order: after a moment of training it knows which one is asked for."""
    torch.manual_seed(1)
    network = FusionNetwork(replace(CONFIG, num_places=0))
    start, end = normalize(torch.randn(2, WIDTH), dim=-1)
    forwards = torch.stack([start, start, end, end])[:, None].expand(-1, TOKENS, -1)
    tokens = torch.stack([forwards, forwards.flip(0)])[None].expand(2, -1, -1, -1, -1)
    videos = VideoTokens.of(tokens, torch.ones(2, 2, 4, dtype=torch.bool))
    asked = torch.randn(2, 1, 3, WIDTH)
    broad, real = torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        functional.cross_entropy(network(asked, videos, broad, real), torch.tensor([0, 1])).backward()
        optimiser.step()
    assert network(asked, videos, broad, real).argmax(dim=1).tolist() == [0, 1]


def learn_the_second_largest(is_listwise: bool, num_steps: int = 100) -> float:
    """Share of fresh lists of four whose second largest is found, when "large" means less from list to list."""
    torch.manual_seed(3)
    network = FusionNetwork(replace(CONFIG, num_places=0, is_listwise=is_listwise))
    generator = torch.Generator().manual_seed(4)
    background, thing = normalize(torch.randn(2, WIDTH, generator=generator), dim=-1)
    asked = torch.randn(1, 1, 3, WIDTH, generator=generator).expand(64, -1, -1, -1)

    def lists() -> tuple[VideoTokens, Tensor]:
        base = 0.2 + torch.rand(64, 1, generator=generator)
        order = torch.rand(64, 4, generator=generator).argsort(dim=1)
        amounts = base + 0.2 * order
        tokens = (background + amounts[..., None] * thing)[:, :, None, None].expand(-1, -1, 2, TOKENS, -1)
        return VideoTokens.of(tokens, torch.ones(64, 4, 2, dtype=torch.bool)), order.eq(2).int().argmax(dim=1)

    broad, real = torch.zeros(64, 4), torch.ones(64, 4, dtype=torch.bool)
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(num_steps):
        videos, target = lists()
        optimiser.zero_grad()
        functional.cross_entropy(network(asked, videos, broad, real), target).backward()
        optimiser.step()
    with torch.no_grad():
        videos, target = lists()
        return float((network(asked, videos, broad, real).argmax(dim=1) == target).float().mean())


@pytest.mark.slow
def test_only_together_they_are_told_which_is_the_second_largest() -> None:
    assert learn_the_second_largest(is_listwise=True) > 0.9
    assert learn_the_second_largest(is_listwise=False) < 0.6
