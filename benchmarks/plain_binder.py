"""TokenBinder's focused view written plainly: every token of every candidate is projected to a key and a value.

An attention of ordinary form, H heads of width D / H, over tokens of unit length, for ``benchmarks.rerank``.
``folded`` makes the network of ``stages.rerankers.fusion`` that is the same function.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import torch
from torch import Tensor
from torch.nn.functional import normalize

from index_store.snapshot import Snapshot
from stages.rerankers.fusion import EquivariantHead, FusionConfig, FusionNetwork, Gathering, interpolation, moments_of

HEADS = 4
_GAIN, _GATHERED, _ASKED = 10.0, 10.0, 20.0
"""As in ``stages.rerankers.fusion``."""


class H5Reader:
    """Reads videos with h5py, one after the other, from files that stay open."""

    def __init__(self, snapshot: Snapshot, directory: Path) -> None:
        self._snapshot = snapshot
        self._files = {shard.id: h5py.File(directory / "shards" / shard.name, "r") for shard in snapshot.shards()}

    def read(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Tokens float32 [K, F, P, D] and masks bool [K, F]."""
        places = self._snapshot.locations(ids)
        tokens = [torch.from_numpy(self._files[shard]["tokens"][row]) for shard, row in places]
        masks = [torch.from_numpy(self._files[shard]["frame_mask"][row]) for shard, row in places]
        return torch.stack(tokens).float(), torch.stack(masks)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


@dataclass(frozen=True, slots=True, eq=False)
class PlainBinder:
    """Projections of an attention, [H, D / H, D] each, and a network that has everything else."""

    query: Tensor
    key: Tensor
    asks: Tensor
    """Of what is compared with the values that were found."""
    value: Tensor
    network: FusionNetwork

    @staticmethod
    def drawn(width: int, num_places: int, seed: int = 0) -> PlainBinder:
        """Random weights near the identity, and last layers that are not zero, as after training."""
        torch.manual_seed(seed)
        network = FusionNetwork(FusionConfig(width=width, num_places=num_places, num_heads=HEADS)).eval()
        parts = torch.eye(width).view(HEADS, width // HEADS, width)
        query, key, asks, value = (parts + 0.03 * torch.randn(parts.shape) for _ in range(4))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.02)
            last = list(network.head.parameters())[-2]  # the weights of its last layer
            last.normal_()
        return PlainBinder(query, key, asks, value, folded(network, query, key, asks, value))

    @torch.inference_mode()
    def delta(self, indicators: Tensor, tokens: Tensor, mask: Tensor, broad: Tensor) -> Tensor:
        """Delta [K] of one query: indicators [M - 1, D], tokens float32 [K, F, P, D], mask [K, F], logits broad [K]."""
        block, head = self.network.blocks[0], self.network.head
        assert isinstance(block, Gathering)
        assert isinstance(head, EquivariantHead)
        num_videos, _, num_places, width = tokens.shape
        flat = normalize(tokens, dim=-1).flatten(1, 2)  # [K, L, D]
        moments = moments_of(mask)
        times = (interpolation(moments) @ block.time)[:, :, None]
        where = (times + block.places(num_places)).flatten(1, 2)
        asked = normalize(indicators, dim=-1)

        keys = (flat @ self.key.flatten(0, 1).T).view(num_videos, -1, HEADS, width // HEADS)
        queries = torch.einsum("hed,md->mhe", self.query, asked)
        logits = block.sharpness.exp() * torch.einsum("mhe,klhe->kmhl", queries, keys)
        logits += _GAIN * torch.einsum("hed,md,kle->kmhl", block.when, asked, where)
        logits += block.slope[:, None] * (moments - 0.5).repeat_interleave(num_places, dim=1)[:, None, None]
        real = mask.repeat_interleave(num_places, dim=1)
        logits = logits.masked_fill(~real[:, None, None], -torch.inf)
        evidence = logits.logsumexp(dim=-1) - real.sum(dim=1).log()[:, None, None]  # [K, M - 1, H]
        weights = logits.softmax(dim=-1)

        values = ((flat + where) @ self.value.flatten(0, 1).T).view(num_videos, -1, HEADS, width // HEADS)
        small = (flat + where) @ head.value.weight.T
        found = torch.einsum("kmhl,klhe->kmhe", weights, values)
        gathered = torch.einsum("kmhl,klv->kmhv", weights, small)
        found, gathered = found - found.mean(dim=0), gathered - gathered.mean(dim=0)
        fit = (found * torch.einsum("hed,md->mhe", self.asks, asked)).sum(dim=-1)

        features = [
            (_GATHERED * gathered + head.value.bias).flatten(1),
            0.1 * evidence.flatten(1),
            5 * fit.flatten(1),
            0.2 * evidence.log_softmax(dim=0).flatten(1),
            0.2 * (broad - broad.max())[:, None],
        ]
        hidden = head.enter(torch.cat(features, dim=1)) + head.asked(_ASKED * asked.flatten())
        is_candidate = torch.ones(1, num_videos, dtype=torch.bool)
        hidden = head.compare(hidden[None], is_candidate, True)[0]
        delta: Tensor = head.leave(hidden).squeeze(-1)
        return delta

    def operations(self, num_tokens: int) -> int:
        """Of the projections of one candidate's tokens: what the folded form leaves out."""
        width = self.query.shape[2]
        return 2 * 2 * num_tokens * width * width


def folded(network: FusionNetwork, query: Tensor, key: Tensor, asks: Tensor, value: Tensor) -> FusionNetwork:
    """``network`` with W_r = W_k^T W_q and U_r = W_v^T W_a of each head."""
    block, head = network.blocks[0], network.head
    assert isinstance(block, Gathering)
    assert isinstance(head, EquivariantHead)
    with torch.no_grad():
        block.ask.copy_(key.transpose(1, 2) @ query)
        head.match.copy_(value.transpose(1, 2) @ asks)
    return network.requires_grad_(requires_grad=False)
