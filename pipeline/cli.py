"""The command line: parse, call a job, print. The one place where errors become exit codes.

Only click is imported here; everything heavy waits until a command runs, so that ``tbpipe --help`` answers at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from index_store.errors import TbpipeError
from pipeline import __version__

Command = TypeVar("Command", bound=Callable[..., Any])

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class _Bytes(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """A number of bytes: 1500000, 512M, 2GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        size = int(float(match[1]) * _SIZES[match[2].upper()]) if match else 0
        if size < 1:
            self.fail(f"{value!r} is no size; write a number of bytes such as 512M or 2GiB", param, ctx)
        return size


class _Part(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """i/n: part i of n."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"(\d+)/(\d+)", value) if isinstance(value, str) else None
        if match is None or not 0 <= int(match[1]) <= int(match[2]) or int(match[2]) == 0:
            self.fail(f"{value!r} is no part; write i/n with i from 0 or 1 up to n, such as 1/4", param, ctx)
        return int(match[1]), int(match[2])


class _Keep(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """all, cls, or a number of patches."""

    name = "all|cls|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in ("all", "cls") and not re.fullmatch(r"[1-9]\d*", str(value)):
            self.fail(f"{value!r} is neither all, cls nor a number of patches above 0", param, ctx)
        return str(value)


class _Group(click.Group):
    """Turns errors into one line on stderr and their exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            self._run(*args, **kwargs)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _run(self, *args: Any, **kwargs: Any) -> NoReturn:
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Abort:
            _leave("interrupted; everything finished before is committed", 130)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except TbpipeError as error:
            _leave(str(error), error.exit_code)
        except KeyboardInterrupt:
            _leave("interrupted; everything finished before is committed", 130)
        except _TerminatedError:
            _leave("terminated; everything finished before is committed", 143)
        except BrokenPipeError:  # the reader of our stdout has gone: nobody to talk to
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except Exception as error:
            if os.environ.get("TBPIPE_DEBUG"):
                raise
            name = type(error).__name__
            _leave(
                f"a bug in tbpipe: {name}: {error}; the store is intact. TBPIPE_DEBUG=1 shows where; please report it",
                1,
            )
        sys.exit(code if isinstance(code, int) else 0)


class _TerminatedError(BaseException):
    """SIGTERM: unwinds, so that temporary files are removed."""


def _terminate(signal_number: int, frame: object) -> NoReturn:
    raise _TerminatedError


def _leave(message: str, code: int) -> NoReturn:
    from pipeline.report import printable

    click.echo(f"tbpipe: {printable(message)}", err=True)
    sys.exit(code)


_store = click.option(
    "--store", "store", required=True, type=click.Path(path_type=Path), help="Directory of the store."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
_quiet = click.option("--quiet", is_flag=True, help="No progress bar.")
_device = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
_lock_timeout = click.option(
    "--lock-timeout",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds to wait for another writer.",
)
_pretrained_now = click.option(
    "--pretrained", default=None, help="The weight file, where it has moved since the store was made."
)
_method = click.option(
    "--method", default="eercf", show_default=True, help="Reranker of the focused view: eercf, or broad for none."
)
_top_k = click.option(
    "--top-k", type=click.IntRange(min=1), default=50, show_default=True, help="Candidates of the broad view (K)."
)
_memory = click.option(
    "--memory", type=_Bytes(), default="512M", show_default=True, help="Bytes of candidate tokens held at once."
)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "TBPIPE", "max_content_width": 100},
)
@click.version_option(__version__, prog_name="tbpipe")
def main() -> None:
    """Offline text-video retrieval: compute once what does not depend on a query, then answer in two stages.

    \b
    tbpipe extract videos/ --store store
    tbpipe index --store store
    tbpipe search --store store "a dog catches a frisbee"
    tbpipe rerank --store store --queries queries.jsonl --output run.trec

    Each option can also be set in the environment: TBPIPE_EXTRACT_DEVICE=cpu.

    \b
    Exit codes: 0 done; 1 a bug; 2 wrong use; 3 done, but some inputs were newly quarantined; 10 store or
    index missing; 11 another writer; 12 made with other settings; 13 damage; 14 disk full; 16 a component
    is missing; 17 bad input file; 18 store not writable; 130/143 stopped by a signal, committed.
    """


@main.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE...")
@_store
@click.option("--model", default=None, help="open_clip model, local-dir:PATH or tbpipe-small.  [default: ViT-B-32]")
@click.option("--pretrained", default=None, help="Weights: an open_clip tag or a file.  [default: openai]")
@click.option(
    "--sampling",
    type=click.Choice(["uniform", "fps", "keyframe"]),
    default=None,
    help="How frames are chosen.  [default: uniform]",
)
@click.option(
    "--frames", type=click.IntRange(1, 4096), default=None, help="Frames kept of a video, at most.  [default: 12]"
)
@click.option(
    "--fps",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="Frames a second, with --sampling fps.  [default: 1]",
)
@click.option(
    "--token-dtype",
    type=click.Choice(["float16", "int8"]),
    default=None,
    help="How tokens are kept.  [default: float16]",
)
@click.option(
    "--keep-tokens",
    type=_Keep(),
    default=None,
    help="Tokens of a frame: all, cls, or cls and the N best patches.  [default: all]",
)
@_device
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Precision of the model.",
)
@click.option(
    "--decoder",
    type=click.Choice(["auto", "decord", "pyav", "torchcodec"]),
    default="auto",
    show_default=True,
    help="Video decoder.",
)
@click.option("--workers", type=click.IntRange(min=1), default=None, help="Decoder processes.  [default: one per core]")
@click.option(
    "--batch-frames",
    type=click.IntRange(1, 65536),
    default=None,
    help="Frames per model batch.  [default: 32 on CPU, 256 on GPU]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds a video may take to decode.",
)
@click.option("--decode-memory", type=_Bytes(), default="2G", show_default=True, help="Memory of one decoder process.")
@click.option(
    "--commit-bytes",
    type=_Bytes(),
    default="128M",
    show_default=True,
    help="Size of a shard: at most this is lost to a kill.",
)
@click.option(
    "--shard", "part", type=_Part(), default=None, help="Only part i of n, chosen by key (i from 0 or from 1)."
)
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Only the first N videos that are not done.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, with bytes and time, and change nothing.")
@_lock_timeout
@_json
@_quiet
def extract(as_json: bool, **options: Any) -> None:
    """Compute the features of videos into a store; what is done is not done again.

    SOURCE is a folder, a video, or a CSV, TSV or JSONL manifest with a column 'path' (and 'key').

    \b
    Example:
      tbpipe extract videos/ --store store --frames 12
      tbpipe extract list.csv --store store --pretrained weights.safetensors --dry-run
    """
    from pipeline import report
    from pipeline.jobs.extract import ExtractJob, estimate
    from pipeline.jobs.extract import extract as run

    if options["dry_run"]:
        report.show_estimate(estimate(ExtractJob(**options)), as_json)
        return
    result = run(ExtractJob(**options))
    report.show_extract(result, as_json)
    if result.interrupted_by:
        raise result.interrupted_by
    if result.report.quarantined or result.report.problems:
        sys.exit(3)


@main.command()
@_store
@click.option("--factory", default="Flat", show_default=True, help="FAISS index factory string; Flat is exact.")
@click.option(
    "--parameters", default="", help="FAISS search parameters such as nprobe=16.  [default: recall@50 of 0.95 or more]"
)
@_lock_timeout
@_json
def index(store: Path, as_json: bool, **options: Any) -> None:
    """Build the FAISS inner-product index over all videos, and publish it as a whole.

    \b
    Example:
      tbpipe index --store store
      tbpipe index --store store --factory IVF4096,SQfp16
    """
    from pipeline import report
    from pipeline.jobs import upkeep

    report.show_index(upkeep.index(store, **options), as_json)


@main.command()
@_store
@click.option(
    "--queries",
    required=True,
    type=click.Path(path_type=Path),
    help="BEIR .jsonl, .tsv (id, text), .csv with a header, .txt (a text a line), or - for JSONL on stdin.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help=".trec, .run, .jsonl or .parquet; - is TREC on stdout.",
)
@_method
@_top_k
@_memory
@_device
@_pretrained_now
@click.option("--tag", default=None, help="Name of the run in TREC output.  [default: the method]")
@_json
@_quiet
def rerank(as_json: bool, **options: Any) -> None:
    """Answer a file of text queries: recall K candidates each, then re-order them together.

    \b
    Example:
      tbpipe rerank --store store --queries queries.jsonl --output run.trec
    """
    from pipeline import report
    from pipeline.jobs.rerank import RerankJob
    from pipeline.jobs.rerank import rerank as run

    report.show_rerank(run(RerankJob(**options)), as_json)


@main.command()
@click.argument("text")
@_store
@click.option("--num", type=click.IntRange(min=1), default=10, show_default=True, help="Hits to print.")
@_method
@_top_k
@_memory
@_device
@_pretrained_now
@_json
def search(as_json: bool, **options: Any) -> None:
    """Print the videos that answer TEXT best: key, score and best moment.

    \b
    Example:
      tbpipe search --store store "a red car turns left"
    """
    from pipeline import report
    from pipeline.jobs.rerank import SearchJob
    from pipeline.jobs.rerank import search as run

    report.show_search(run(SearchJob(**options)), as_json)


@main.command()
@_store
@_json
def info(store: Path, as_json: bool) -> None:
    """Show what a store holds: videos by state, bytes, model, fingerprint, index generations.

    \b
    Example:
      tbpipe info --store store --json
    """
    from pipeline import report
    from pipeline.jobs import upkeep

    report.show_info(upkeep.info(store), as_json)


@main.command()
@_store
@click.option("--retry", is_flag=True, help="Let the next extract try them again.")
@click.option("--key", "keys", multiple=True, help="Only this video; may be given more than once.")
@_lock_timeout
@_json
def quarantine(store: Path, retry: bool, keys: tuple[str, ...], lock_timeout: float, as_json: bool) -> None:
    """List the videos that could not be used, each with its reason, or release them for another try.

    \b
    Example:
      tbpipe quarantine --store store
      tbpipe quarantine --store store --retry --key bad/clip.mp4
    """
    from pipeline import report
    from pipeline.jobs import upkeep

    if retry:
        report.show_requeued(upkeep.requeue(store, keys, lock_timeout), as_json)
    else:
        report.show_quarantine(upkeep.quarantined(store, keys), as_json)


@main.command()
@click.option(
    "--seed", type=int, default=None, help="Seed of the rendered videos.  [default: one that training never saw]"
)
@click.option("--videos", type=click.IntRange(2, 100_000), default=None, help="Number of videos to render.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=None,
    help="Keep videos and store here.  [default: a temporary folder]",
)
@_device
@_json
@_quiet
def demo(as_json: bool, **options: Any) -> None:
    """Render captioned videos, then extract, index and rerank them with the small model that ships with tbpipe.

    \b
    Example:
      tbpipe demo
      tbpipe demo --seed 7 --videos 500 --json
    """
    from pipeline import report
    from pipeline.demo import run_demo

    report.show_demo(run_demo(**options), as_json)
