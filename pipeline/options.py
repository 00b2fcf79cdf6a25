"""What several commands are told the same way: values that click does not know, and shared options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from index_store.refresh_settings import DeleteLimit

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Bytes(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """A number of bytes: 1500000, 512M, 2GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The size in bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        size = int(float(match[1]) * _SIZES[match[2].upper()]) if match else 0
        if size < 1:
            self.fail(f"{value!r} is no size; write a number of bytes such as 512M or 2GiB", param, ctx)
        return size


class Part(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """i/n: part i of n."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """(i, n)."""
        match = re.fullmatch(r"(\d+)/(\d+)", value) if isinstance(value, str) else None
        if match is None or not 0 <= int(match[1]) <= int(match[2]) or int(match[2]) == 0:
            self.fail(f"{value!r} is no part; write i/n with i from 0 or 1 up to n, such as 1/4", param, ctx)
        return int(match[1]), int(match[2])


class Keep(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """all, cls, or a number of patches and which."""

    name = "all|cls|N|distinct:N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value itself, checked."""
        from index_store.settings import KeepRule

        if KeepRule.read(str(value)) is None:
            self.fail(
                f"{value!r} is neither all, cls nor a number of patches above 0, such as 12 or distinct:12", param, ctx
            )
        return str(value)


class Device(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """auto, cpu, cuda or cuda:N; where several can share the work, also a list of them."""

    name = "device"

    def __init__(self, may_be_several: bool) -> None:
        self._may_be_several = may_be_several

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value itself, checked for its form; whether there is such a device is seen later."""
        if value == "auto" or re.fullmatch(r"cpu|cuda(:\d+)?", value):
            return str(value)
        if not re.fullmatch(r"(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))+", value):
            self.fail(f"{value!r} is no device; use auto, cpu, cuda or cuda:N", param, ctx)
        if not self._may_be_several:
            self.fail(f"{value!r} are several devices; this command computes on one", param, ctx)
        return str(value)


class MaxDeletes(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """How many videos may be removed: 20, or 5%."""

    name = "N|N%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DeleteLimit:
        """The limit."""
        from index_store.errors import UsageError
        from index_store.refresh_settings import DeleteLimit

        try:
            return value if isinstance(value, DeleteLimit) else DeleteLimit.parse(value)
        except UsageError:
            self.fail(f"{value!r} is neither a number of videos such as 20 nor a share such as 5%", param, ctx)


store_option = click.option(
    "--store", "store", required=True, type=click.Path(path_type=Path), help="Directory of the store."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress bar.")
device_option = click.option(
    "--device", type=Device(False), default="auto", show_default=True, help="Where to compute: auto, cpu, cuda, cuda:1."
)
devices_option = click.option(
    "--device",
    type=Device(True),
    default="auto",
    show_default=True,
    help="Where to compute: auto, cpu, cuda (videos on all GPUs alike), cuda:1, cuda:0,cuda:2.",
)
lock_timeout_option = click.option(
    "--lock-timeout",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds to wait for another writer.",
)
pretrained_now_option = click.option(
    "--pretrained", default=None, help="The weight file, where it has moved since the store was made."
)
method_option = click.option(
    "--method",
    default=None,
    help="Reranker of the focused view: eercf, clip4clip, x-clip, ts2-net, token-binder ..., or broad for none.  "
    "[default: what --weights are for, else eercf]",
)
weights_option = click.option(
    "--weights",
    type=click.Path(path_type=Path),
    default=None,
    help="What 'tbpipe train' wrote, or NAME.head.safetensors of 'tbpipe import-weights'.",
)
official_option = click.option(
    "--official",
    is_flag=True,
    help="Compute as the authors' released code does, padding and all, to compare with its numbers.",
)
top_k_option = click.option(
    "--top-k", type=click.IntRange(min=1), default=50, show_default=True, help="Candidates of the broad view (K)."
)
memory_option = click.option(
    "--memory", type=Bytes(), default="512M", show_default=True, help="Bytes of candidate tokens held at once."
)
dataset_option = click.option(
    "--dataset",
    default=None,
    help="In place of --captions: a benchmark, one of msrvtt-1ka, msrvtt-7k, msrvtt-full, didemo, activitynet, vatex, "
    "msvd, lsmdc.",
)
annotations_option = click.option(
    "--annotations", type=click.Path(path_type=Path), default=None, help="Folder with its annotation files."
)
normalise_option = click.option(
    "--normalise",
    type=click.Choice(["sinkhorn", "dual-softmax", "qb-norm"]),
    default=None,
    help="Take out of the scores how near an answer comes to every query.",
)
bank_option = click.option(
    "--bank",
    type=click.Path(path_type=Path),
    default=None,
    help="Captions or queries to learn that from, not those asked: sinkhorn and qb-norm need them.  [default for "
    "dual-softmax: the queries themselves; for the others with --dataset: a training caption of each video]",
)
split_option = click.option(
    "--split", default="", help="Only the captions whose field 'split' says this; of a benchmark, the split."
)
