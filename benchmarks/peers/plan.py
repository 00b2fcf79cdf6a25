"""The peers, and how large the comparisons are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["extraction", "search", "reranking"]

FRAMES_PER_SECOND, SECONDS, FRAMES = 30, 10.0, 12
EVERY = round(FRAMES_PER_SECOND * SECONDS) // FRAMES
"""Every 25th frame from the first: clip-video-encode can choose frames in no other way."""


@dataclass(frozen=True, slots=True)
class ExtractionScale:
    """How much is extracted; results at another scale are not mixed with these."""

    clips: int = 24
    few: int = 8
    """Start-up is what a run over these costs beside its clips; both counts fill whole batches of 32 frames."""
    threads: int = 1
    corpus: str = ""
    """SHA-256 over the clips."""
    weights: str = ""
    """SHA-256 of the file."""


@dataclass(frozen=True, slots=True)
class SearchScale:
    """How much is searched."""

    vectors: int = 200_000
    queries: int = 100
    neighbours: int = 50
    width: int = 512
    threads: int = 1


@dataclass(frozen=True, slots=True)
class RerankingScale:
    """How much is reranked: ViT-B/32's 12 frames x 50 tokens of each video."""

    videos: int = 500
    queries: int = 50
    candidates: int = 50
    words: int = 32
    """Of a query."""
    tokens: int = 600
    """Of a video."""
    width: int = 512
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to do a part of the work."""

    name: str
    kind: Kind
    title: str
    """In the tables."""
    program: str
    """In ``programs/``."""
    packages: tuple[str, ...] = ()
    """Installed into its environment, with what they need."""
    packages_alone: tuple[str, ...] = ()
    """Installed before those without what they need: torch is lent, and some versions that they name have no wheel for
    this Python."""
    borrows: bool = True
    """Whether its environment sees the packages of this one behind its own."""
    shown: tuple[str, ...] = ()
    """Packages whose versions the report tells."""
    environment: str = ""
    """Name of its folder; peers with the same packages share one."""
    options: tuple[tuple[str, str | bool], ...] = ()
    """More for its program."""
    needs_bfloat16: bool = False
    """Whether it is run only where the processor multiplies bfloat16 itself."""
    obstacle: str = ""
    """Why it cannot be installed anywhere by a package index; empty for the others."""
    note: str = ""
    """What a reader of the numbers must know."""


OURS = {"extraction": "tbpipe", "search": "tbpipe-search", "reranking": "tbpipe-rerank"}
"""Measured in every run of a kind: the others are compared with it."""

_OPEN_CLIP = "open_clip_torch>=2.32,<3"

_PEERS = (
    Peer("tbpipe", "extraction", "tbpipe extract", "tbpipe_extract.py", shown=("torch", "open_clip_torch")),
    Peer(
        "decode-alone",
        "extraction",
        "bound: decord alone",
        "decode_alone.py",
        shown=("decord",),
        note="the same frames decoded and thrown away",
    ),
    Peer(
        "model-alone",
        "extraction",
        "bound: image tower alone",
        "model_alone.py",
        shown=("torch", "open_clip_torch"),
        note="the same number of frames, already normalised, in batches of 32",
    ),
    Peer(
        "plain-script",
        "extraction",
        "decord + open_clip script",
        "plain_script.py",
        shown=("decord", "open_clip_torch"),
        note="what one writes in an afternoon: one process, no resume, frame embeddings only",
    ),
    Peer(
        "plain-script-bfloat16",
        "extraction",
        "the same in bfloat16",
        "plain_script.py",
        shown=("decord", "open_clip_torch"),
        options=(("bfloat16", True),),
        needs_bfloat16=True,
    ),
    Peer(
        "ray-data",
        "extraction",
        "the same in Ray Data",
        "ray_data_script.py",
        packages=("ray[data]==2.60.0",),
        shown=("ray", "decord", "open_clip_torch"),
        environment="ray-data",
        note="Ray's own processes are counted",
    ),
    Peer(
        "clip-video-encode",
        "extraction",
        "clip-video-encode",
        "with_clip_video_encode.py",
        packages_alone=("clip-video-encode==1.3.0", "video2numpy==2.3.0", _OPEN_CLIP, "webdataset==0.2.111"),
        packages=(
            "numpy<2",
            "opencv-python-headless",
            "fire==0.4.0",
            "setuptools<81",
            "fsspec",
            "pyarrow<20",
            "pandas<2.4",
            "braceexpand",
            "youtube-dl",
            "tqdm",
            "requests",
        ),
        shown=("clip-video-encode", "video2numpy", "open_clip_torch"),
        environment="clip-video-encode",
        note="it gives the tower blue for red (its decoder's order): with these swapped its embeddings are ours; "
        "run with a newer pyarrow, webdataset and torch than it names, which have no wheel for Python 3.11",
    ),
    Peer(
        "clip-retrieval",
        "extraction",
        "decord to JPEG + clip-retrieval",
        "with_clip_retrieval.py",
        packages_alone=(
            "clip-retrieval==2.45.0",
            "all_clip==1.3.0",
            _OPEN_CLIP,
            "clip-anytorch<3",
            "multilingual-clip<2",
            "sentence-transformers<3",
            "img2dataset<2",
        ),
        packages=(
            "autofaiss==2.18.0",
            "webdataset<0.3",
            "fire<0.6",
            "flask<4",
            "flask_restful",
            "flask_cors",
            "wandb",
            "prometheus-client<1",
            "pyarrow<16",
            "transformers<5",
            "numpy<2",
            "scipy",
            "scikit-learn",
            "setuptools<81",
            "albumentations",
            "opencv-python-headless",
            "ftfy",
            "h5py",
        ),
        shown=("clip-retrieval", "all_clip", "open_clip_torch"),
        environment="clip-retrieval",
        note="it reads pictures, so a video becomes JPEG files (quality 95) first",
    ),
    Peer(
        "video_features",
        "extraction",
        "video_features",
        "",
        obstacle="it is no package: its authors publish a repository and a conda environment only",
    ),
    Peer("tbpipe-search", "search", "tbpipe (FAISS Flat)", "tbpipe_search.py", shown=("faiss-gpu", "faiss-cpu")),
    Peer("numpy-product", "search", "NumPy product", "numpy_product.py", shown=("numpy",)),
    Peer(
        "faiss-flat",
        "search",
        "FAISS Flat as shipped",
        "faiss_flat.py",
        shown=("faiss-gpu", "faiss-cpu"),
    ),
    Peer(
        "autofaiss-flat",
        "search",
        "autofaiss, told to be exact",
        "with_autofaiss.py",
        packages=("autofaiss==2.18.0", "pyarrow<20"),
        borrows=False,
        shown=("autofaiss", "faiss-cpu"),
        environment="autofaiss",
        options=(("index_key", "Flat"),),
    ),
    Peer(
        "autofaiss",
        "search",
        "autofaiss, its own choice",
        "with_autofaiss.py",
        packages=("autofaiss==2.18.0", "pyarrow<20"),
        borrows=False,
        shown=("autofaiss", "faiss-cpu"),
        environment="autofaiss",
        note="approximate",
    ),
    Peer("tbpipe-rerank", "reranking", "tbpipe rerank", "tbpipe_rerank.py", shown=("torch", "h5py")),
    Peer(
        "pylate",
        "reranking",
        "hloc's reads + PyLate's rerank",
        "with_pylate.py",
        packages_alone=("pylate==1.6.0", "sentence-transformers==5.3.0", "accelerate"),
        packages=("transformers<=5.3.0", "datasets", "ujson"),
        shown=("pylate", "torch", "h5py"),
        environment="pylate",
        note="one HDF5 group for each video, the file opened for each read, as hloc keeps features",
    ),
)
PEERS = {peer.name: peer for peer in _PEERS}
