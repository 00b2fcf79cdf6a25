"""The processes that train together, as torchrun starts them: each computes a part of every step, all hold the same.

torch's DistributedDataParallel is not used: it expects one forward and one backward a step, and would send gradients
after the first of the many backward passes over parts that bound the memory here. They are added up once, at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from index_store.errors import InterruptedRunError, UsageError


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all; one alone unless torchrun started more."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """True = this process writes and prints."""
        return self.rank == 0

    def part(self, number: int) -> slice:
        """Which of ``number`` things are this process's: parts follow each other and differ by one at most."""
        return slice(self.rank * number // self.size, (self.rank + 1) * number // self.size)

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place, the same bits in each.

        Raises InterruptedRunError where another process is gone.
        """
        if self.size > 1:
            try:
                torch.distributed.all_reduce(tensor)
            except RuntimeError as error:
                raise _gone(error) from error
        return tensor

    def together(self, rows: Tensor, part: slice, number: int) -> Tensor:
        """All rows [number, ...] of which this process has ``part``; no gradient goes through. Parts may be uneven."""
        if self.size == 1:
            return rows.detach()
        whole = rows.new_zeros(number, *rows.shape[1:])
        whole[part] = rows.detach()
        return self.add_up(whole)

    def add_up_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give every parameter the sum of its gradients over all processes; one that none has stays without."""
        if self.size == 1:
            return
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        has_gradient = torch.tensor([float(parameter.grad is not None) for parameter in learning])
        counts = self.add_up(has_gradient.to(learning[0].device)).tolist()
        learning = [parameter for parameter, count in zip(learning, counts, strict=True) if count]
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in learning]
        total = self.add_up(torch.cat([part.flatten() for part in parts]))  # one message in place of hundreds
        sizes = [part.numel() for part in parts]
        for parameter, part in zip(learning, torch.split(total, sizes), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def any(self, is_true: bool, device: torch.device) -> bool:
        """Whether it is true in any process."""
        return bool(self.add_up(torch.tensor(float(is_true), device=device)) > 0) if self.size > 1 else is_true

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            try:
                torch.distributed.barrier()
            except RuntimeError as error:
                raise _gone(error) from error


@contextmanager
def join_ranks(device: str) -> Iterator[tuple[Ranks, str]]:
    """This process among those that torchrun started, and its device of the kind that ``device`` names.

    nccl on GPUs, one for each process of a machine; gloo on CPUs. Raises UsageError where torchrun's variables are
    incomplete or a machine has fewer GPUs than processes.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield Ranks(), device
        return
    is_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    rank, local_rank = _number("RANK"), _number("LOCAL_RANK")
    if is_cuda and local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"process {local_rank} of this machine has no GPU of its own, {torch.cuda.device_count()} are usable here; "
            "give torchrun at most so many as --nproc-per-node, or --device cpu"
        )
    if is_cuda:
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group("nccl" if is_cuda else "gloo")
    try:
        yield Ranks(rank, size), f"cuda:{local_rank}" if is_cuda else "cpu"
    finally:
        torch.distributed.destroy_process_group()


def _gone(error: RuntimeError) -> InterruptedRunError:
    what = str(error).strip().splitlines()[0]
    return InterruptedRunError(f"another process of this training ended, its own message says why ({what})")


def _number(name: str, default: int | None = None) -> int:
    """A variable that torchrun sets. Raises UsageError where it is missing or no number."""
    value = os.environ.get(name, "" if default is None else str(default))
    if not value.isdecimal():
        raise UsageError(f"{name} is {value!r} in the environment, expected a number; let torchrun set it")
    return int(value)
