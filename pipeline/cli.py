"""The command line: parse, call a job, print.

Only click is imported here; everything heavy waits until a command runs, so that ``tbpipe --help`` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pipeline import __version__
from pipeline.bench_cli import bench
from pipeline.group import Group
from pipeline.keep_cli import compact, doctor, repair, verify
from pipeline.options import (
    Bytes,
    Keep,
    MaxDeletes,
    Part,
    annotations_option,
    bank_option,
    dataset_option,
    device_option,
    devices_option,
    json_option,
    lock_timeout_option,
    memory_option,
    method_option,
    normalise_option,
    official_option,
    pretrained_now_option,
    quiet_option,
    split_option,
    store_option,
    top_k_option,
    weights_option,
)


@click.group(
    cls=Group,
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
    index missing; 11 another writer; 12 made with other settings; 13 damage; 14 disk full; 15 refresh would
    remove too much; 16 a component is missing; 17 bad input file; 18 store not writable; 130/143 stopped
    by a signal, committed.
    """


@main.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE...")
@store_option
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
    type=Keep(),
    default=None,
    help="Tokens of a frame: all, cls, or cls and some patches: 12 keeps the 12 closest to cls, distinct:12 the 12 "
    "farthest from the mean patch.  [default: all]",
)
@devices_option
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
@click.option("--decode-memory", type=Bytes(), default="2G", show_default=True, help="Memory of one decoder process.")
@click.option(
    "--commit-bytes",
    type=Bytes(),
    default="128M",
    show_default=True,
    help="Size of a shard: at most this is lost to a kill.",
)
@click.option(
    "--shard", "part", type=Part(), default=None, help="Only part i of n, chosen by key (i from 0 or from 1)."
)
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Only the first N videos that are not done.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, with bytes and time, and change nothing.")
@lock_timeout_option
@json_option
@quiet_option
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
@store_option
@click.option("--factory", help="FAISS index factory string.  [default: Flat, which is exact]")
@click.option("--memory", type=Bytes(), help="In place of --factory: take the most exact one that fits into it.")
@click.option(
    "--parameters", default="", help="FAISS search parameters such as nprobe=16.  [default: recall@50 of 0.95 or more]"
)
@click.option("--rebuild", is_flag=True, help="Build and train anew, whatever the index before is worth.")
@lock_timeout_option
@json_option
def index(store: Path, as_json: bool, **options: Any) -> None:
    """Build the FAISS inner-product index over all videos, and publish it as a whole.

    Where there is an index of the same factory, only what changed since is read. An exact one comes out as if built
    anew; any other keeps its training until a fifth of it has changed.

    \b
    Example:
      tbpipe index --store store
      tbpipe index --store store --factory IVF4096,SQfp16
      tbpipe index --store store --memory 8G
    """
    from pipeline import report
    from pipeline.jobs import upkeep

    report.show_index(upkeep.index(store, **options), as_json)


@main.command()
@store_option
@click.option(
    "--source",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder, video or manifest; may be given more than once.  [default: what tbpipe.toml says]",
)
@click.option("--model", default=None, help="For the first run, which makes the store: as for extract.")
@click.option("--pretrained", default=None, help="Weights, as for extract.")
@devices_option
@click.option("--workers", type=click.IntRange(min=1), default=None, help="Decoder processes.  [default: one per core]")
@click.option(
    "--commit-bytes",
    type=Bytes(),
    default="128M",
    show_default=True,
    help="Size of a shard: at most this is lost to a kill.",
)
@click.option(
    "--max-deletes",
    type=MaxDeletes(),
    default=None,
    help="Stop where more videos (N, or N% of all) would be removed.  [default: 10%, of a few videos up to half]",
)
@click.option("--allow-empty", is_flag=True, help="A source may have lost all of its videos, within --max-deletes.")
@click.option(
    "--max-minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="Begin no further video after this time; what is done is indexed, the next run goes on.",
)
@click.option("--metrics-file", type=click.Path(path_type=Path), default=None, help="Write a Prometheus textfile.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Lines on stderr for people, or one JSON object each.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, in numbers and names, and change nothing.")
@lock_timeout_option
@json_option
@click.option("--quiet", is_flag=True, help="Only warnings and errors.")
def refresh(as_json: bool, log_format: Any, **options: Any) -> None:
    """Bring a store to what its sources hold: for cron, every night.

    Looks for new, changed, moved and removed videos, extracts what is new, and publishes a new index. Where nothing has
    changed, nothing is done. The sources are those of [refresh] in tbpipe.toml; the first --source is remembered there.

    \b
    Example:
      tbpipe refresh --store store --source /data/videos
      tbpipe refresh --store store --dry-run
      tbpipe refresh --store store --max-minutes 120 --log-format json --metrics-file /var/lib/metrics/tbpipe.prom
    """
    from pipeline import refresh_report
    from pipeline.jobs.refresh import RefreshJob
    from pipeline.jobs.refresh_run import run
    from pipeline.log import Log

    job = RefreshJob(**options)
    result = run(job, Log(log_format, job.quiet))
    refresh_report.show_refresh(result, as_json, job.quiet)
    sys.exit(result.exit_code)


@main.command()
@store_option
@method_option
@weights_option
@official_option
@click.option("--verify", is_flag=True, help="Read what was prepared before, too, and compute damaged videos again.")
@device_option
@lock_timeout_option
@json_option
@quiet_option
def prepare(as_json: bool, **options: Any) -> None:
    """Compute once what a method makes of videos alone, for rerank, search and evaluate to read.

    They use it by themselves, with the same scores, and compute what is missing. A second run does new videos only.

    \b
    Example:
      tbpipe prepare --store store --method ucofia --weights ucofia.head.safetensors
    """
    from pipeline import report
    from pipeline.jobs.prepare import PrepareJob
    from pipeline.jobs.prepare import prepare as run

    report.show_prepare(run(PrepareJob(**options)), as_json)


@main.command()
@store_option
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
@method_option
@weights_option
@official_option
@normalise_option
@bank_option
@top_k_option
@memory_option
@device_option
@pretrained_now_option
@click.option("--tag", default=None, help="Name of the run in TREC output.  [default: the method]")
@json_option
@quiet_option
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
@store_option
@click.option(
    "--num", type=click.IntRange(min=1), default=10, show_default=True, help="Hits to print; K is never smaller."
)
@method_option
@weights_option
@official_option
@top_k_option
@memory_option
@device_option
@pretrained_now_option
@json_option
def search(as_json: bool, **options: Any) -> None:
    """Print the videos that answer TEXT best: key, score and best moment.

    \b
    Example:
      tbpipe search --store store "a red car turns left"
    """
    from pipeline import answer_report
    from pipeline.jobs.rerank import SearchJob
    from pipeline.jobs.rerank import search as run

    answer_report.show_search(run(SearchJob(**options)), as_json)


@main.command()
@store_option
@click.option(
    "--captions",
    type=click.Path(path_type=Path),
    default=None,
    help="JSONL, CSV or TSV with key and caption, JSON with key: captions, or - for JSONL on stdin.",
)
@split_option
@dataset_option
@annotations_option
@click.option(
    "--queries", type=click.Path(path_type=Path), default=None, help="In place of --captions: queries as for rerank."
)
@click.option("--qrels", type=click.Path(path_type=Path), default=None, help="Their judgements, BEIR or TREC.")
@click.option(
    "--direction",
    type=click.Choice(["both", "t2v", "v2t"]),
    default="both",
    show_default=True,
    help="Text to video, video to text.",
)
@click.option(
    "--method",
    default=None,
    help="Rerankers of the focused view, one or several: eercf,x-clip,ucofia.  [default: what --weights are for, else "
    "eercf]",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    multiple=True,
    help="What 'tbpipe train' or 'tbpipe import-weights' wrote; may be given more than once.",
)
@official_option
@normalise_option
@bank_option
@top_k_option
@memory_option
@device_option
@pretrained_now_option
@json_option
@quiet_option
def evaluate(as_json: bool, method: str | None, weights: tuple[Path, ...], **options: Any) -> None:
    """Measure R@1, R@5, R@10, median and mean rank of both views, from text to video and back.

    Every caption is a query for its video, and every video with captions is a query for the best of them. Of a
    benchmark, only the split's videos are searched, whatever else is in the store.

    \b
    Example:
      tbpipe evaluate --store store --captions captions.jsonl
      tbpipe evaluate --store store --queries queries.jsonl --qrels qrels.tsv --direction t2v --json
      tbpipe evaluate --store store --dataset msrvtt-1ka --annotations annotations/
      tbpipe evaluate --store store --captions captions.jsonl --method eercf,x-clip,ucofia --direction t2v
    """
    from pipeline import answer_report
    from pipeline.jobs.answering import choose_methods
    from pipeline.jobs.evaluate import EvaluateJob, compare

    answer_report.show_evaluate(compare(EvaluateJob(**options), choose_methods(method, weights)), as_json)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--output", required=True, type=click.Path(path_type=Path), help=".trec or .run; - is stdout.")
@click.option("--k", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Evens out the first places.")
@click.option("--top-k", type=click.IntRange(min=1), default=None, help="Videos kept of each query.  [default: all]")
@click.option("--tag", default="fused", show_default=True, help="Name of the run.")
@json_option
def fuse(as_json: bool, **options: Any) -> None:
    """Make one ranking of several TREC runs by reciprocal rank fusion: the sum of 1 / (k + rank).

    \b
    Example:
      tbpipe fuse eercf.trec x-clip.trec --output fused.trec
    """
    from pipeline import report
    from pipeline.jobs.fuse import FuseJob
    from pipeline.jobs.fuse import fuse as run

    report.show_fuse(run(FuseJob(**options)), as_json)


@main.command()
@store_option
@json_option
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
@store_option
@click.option("--retry", is_flag=True, help="Let the next extract try them again.")
@click.option("--key", "keys", multiple=True, help="Only this video; may be given more than once.")
@lock_timeout_option
@json_option
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
@store_option
@click.option(
    "--captions",
    type=click.Path(path_type=Path),
    default=None,
    help="JSONL, CSV or TSV with key and caption, JSON with key: captions, or - for JSONL on stdin.",
)
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="Weights file to write, NAME.safetensors."
)
@split_option
@dataset_option
@annotations_option
@click.option(
    "--method",
    type=click.Choice(["token-binder", "clip4clip", "clip4clip-tight", "x-clip", "ts2-net", "ucofia", "eercf"]),
    default=None,
    help="What to train.  [default: what preset or recipe says, else token-binder]",
)
@click.option(
    "--preset",
    type=click.Choice(["tokenbinder", "clip4clip", "clip4clip-tight", "x-clip", "ts2-net", "ucofia", "eercf", "small"]),
    default=None,
    help="A paper's settings, or those for the small model on a CPU.  [default: those of the method's paper]",
)
@click.option("--recipe", type=click.Path(path_type=Path), default=None, help="TOML file whose [train] goes before.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="One setting, such as epochs=10.")
@click.option("--start", type=click.Path(path_type=Path), default=None, help="Earlier weights to begin with.")
@click.option("--finetune", is_flag=True, help="Train the image tower too, on the frames of the videos' files.")
@click.option("--restart", is_flag=True, help="Begin anew where a stopped run would be gone on with.")
@click.option("--plot", is_flag=True, help="Draw losses and recall into NAME.png (needs matplotlib).")
@device_option
@pretrained_now_option
@json_option
@quiet_option
def train(as_json: bool, settings: tuple[str, ...], **options: Any) -> None:
    """Train a reranker, TokenBinder unless told otherwise, on the features of a store and captions of its videos.

    Run again after a stop, it goes on exactly where it was. NAME.jsonl beside the weights is its log. Several GPUs, for
    TokenBinder only: torchrun --nproc-per-node N -m pipeline train ..., the same weights up to rounding. With
    --finetune, NAME.clip.safetensors is the image-text model to extract a new store with, for which the weights are.

    
    Example:
      tbpipe train --store store --captions captions.jsonl --output binder.safetensors
      tbpipe train --store store --dataset msvd --annotations annotations/ --output binder.safetensors
      tbpipe train --store store --captions captions.jsonl --output xclip.safetensors --method x-clip
      tbpipe rerank --store store --queries q.jsonl --output run.trec --method token-binder --weights binder.safetensors
    """
    from pipeline import report
    from pipeline.jobs.train import TrainJob, parse_settings
    from pipeline.jobs.train import train as run

    result = run(TrainJob(options=parse_settings(settings), **options))
    if result is not None:
        report.show_train(result, as_json)


@main.command("import-weights")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Choice(["clip4clip", "xclip", "ts2net", "ucofia", "eercf", "clip-vip", "openai-clip"]),
    help="The code that the checkpoint was written by.",
)
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="Image-text model to write, NAME.safetensors."
)
@click.option("--model", default=None, help="Its architecture, as for extract.  [default: what its sizes say]")
@json_option
def import_weights(file: Path, source: str, output: Path, model: str | None, as_json: bool) -> None:
    """Take over a released checkpoint: FILE holds a state dict, as .bin, .pt or .safetensors.

    Writes the image-text model for 'extract --pretrained' and, for a method with a head, NAME.head.safetensors for
    'rerank --weights'. Every tensor is checked; one that is missing, of another shape or unknown is named.

    \b
    Example:
      tbpipe import-weights --from ucofia pytorch_model.bin.4 --output ucofia.safetensors
    """
    from pipeline import report
    from pipeline.jobs.import_weights import import_weights as run

    report.show_import(run(source, file, output, model), as_json)


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
@device_option
@json_option
@quiet_option
def demo(as_json: bool, **options: Any) -> None:
    """Render captioned videos, then extract, index and rerank them with the small model that ships with tbpipe.

    \b
    Example:
      tbpipe demo
      tbpipe demo --seed 7 --videos 500 --json
    """
    from pipeline import answer_report
    from pipeline.demo import run_demo

    answer_report.show_demo(run_demo(**options), as_json)


for command in (verify, repair, compact, doctor, bench):
    main.add_command(command)
