"""``tbpipe doctor``: tries what tbpipe needs on this machine and in a store, and names the remedy for what fails.

Nothing is written but a clip in a temporary folder. A check that fails does not end the others.
"""

from __future__ import annotations

import importlib
import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np

from index_store.errors import ComponentMissingError, TbpipeError
from index_store.settings import SamplingSettings

State = Literal["ok", "note", "failed"]

_REINSTALL = "install it again: pip install --force-reinstall tbpipe"
_FAISS_CPU = "search on the CPU: pip uninstall faiss-gpu; pip install faiss-cpu"
_FAISS_GPU = "for search on the GPU: pip uninstall faiss-cpu; pip install faiss-gpu, built for this GPU"
_NEEDED = {
    "numpy": "numpy",
    "h5py": "h5py",
    "safetensors": "safetensors",
    "xxhash": "xxhash",
    "torch": "torch",
    "torchvision": "torchvision",
    "open_clip": "open_clip_torch",
    "faiss": "faiss-gpu faiss-cpu",
    "av": "av",
}
"""Module -> the packages that have it."""
_EXTRAS = {
    "pyarrow": ("parquet", "rankings as Parquet"),
    "transformers": ("siglip", "text queries with SigLIP models"),
    "torchcodec": ("nvdec", "decoding on an NVIDIA GPU"),
    "matplotlib": ("plot", "train --plot"),
}
_FEWEST_FILES = 512
_SIDE = 64


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found."""

    name: str
    state: State
    """note: works, but there is something to know."""
    found: str
    remedy: str = ""
    exit_code: int = 0
    """Of the error that this leads to; 0 unless failed."""


class TroubleError(Exception):
    """A check found something; says what, and what to do."""

    def __init__(self, found: str, remedy: str, exit_code: int = 1, state: State = "failed") -> None:
        super().__init__(found)
        self.found, self.remedy, self.exit_code, self.state = found, remedy, exit_code, state


def doctor(store: Path | None) -> Iterator[Check]:
    """Run ``tbpipe doctor``: every check, one after the other."""
    yield attempt("python", _python)
    yield attempt("packages", _packages)
    yield attempt("extras", _extras)
    yield attempt("open files", _open_files)
    yield attempt("decoders", _decoders)
    yield attempt("GPU", _gpu)
    yield attempt("FAISS", _faiss)
    yield attempt("model", _model)
    if store is not None:
        from pipeline.jobs.doctor_store import check_store

        yield from check_store(store)


def attempt(name: str, check: Callable[[], str]) -> Check:
    """The result of a check, which says what it found or raises."""
    try:
        return Check(name, "ok", check())
    except TroubleError as trouble:
        code = trouble.exit_code if trouble.state == "failed" else 0
        return Check(name, trouble.state, trouble.found, trouble.remedy, code)
    except TbpipeError as error:
        return Check(name, "failed", str(error), "", error.exit_code)
    except Exception as error:  # whatever a broken library raises is what this command is to tell
        return Check(name, "failed", f"{type(error).__name__}: {error}", _REINSTALL, ComponentMissingError.exit_code)


def _python() -> str:
    return f"{platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _packages() -> str:
    found, broken = [f"SQLite {importlib.import_module('sqlite3').sqlite_version}"], []
    for module, packages in _NEEDED.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # an import may fail in any way: a missing library, a wrong CPU
            broken.append(f"{module} ({type(error).__name__}: {error})")
        else:
            found.append(f"{module} {_version(packages)}")
    if broken:
        raise TroubleError(f"cannot be imported: {'; '.join(broken)}", _REINSTALL, ComponentMissingError.exit_code)
    return ", ".join(found)


def _version(packages: str) -> str:
    for package in packages.split():
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def _extras() -> str:
    missing = []
    for module, (extra, purpose) in _EXTRAS.items():
        try:
            importlib.import_module(module)
        except Exception:  # as above; it is only optional
            missing.append(f"tbpipe[{extra}] for {purpose}")
    return f"not installed, and only needed for what is named: {'; '.join(missing)}" if missing else "all installed"


def _open_files() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < _FEWEST_FILES:
        raise TroubleError(f"at most {limit} at once", f"raise the limit: ulimit -n {_FEWEST_FILES}")
    return "no limit" if limit == resource.RLIM_INFINITY else f"at most {limit} at once"


def _decoders() -> str:
    """Encode a clip, decode it with every decoder, and compare."""
    from stages.decoders import load_decoder
    from stages.synthetic.render import VideoFormat, encode_video
    from stages.video import DECODERS, decode

    grey = [np.full((_SIDE, _SIDE, 3), 16 * number, np.uint8) for number in range(10)]
    versions, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        encode_video(path, grey, VideoFormat(width=_SIDE, height=_SIDE, seconds=1.0))
        for name in DECODERS:
            try:
                version = load_decoder(name).version()
                batch = decode(path, SamplingSettings("uniform", 2), (name,))
            except Exception as error:  # as above
                failed.append(f"{name} ({type(error).__name__}: {error})")
                continue
            if batch.decoder == version and batch.frames.shape == (2, _SIDE, _SIDE, 3):
                versions.append(version)
            else:
                failed.append(f"{name} ({batch.note or batch.frames.shape})")
    if not versions:
        raise TroubleError(f"no decoder works: {'; '.join(failed)}", _REINSTALL, ComponentMissingError.exit_code)
    if failed:
        remedy = "pip install decord, or decord2 where there is none; without it more CPU time goes into decoding"
        raise TroubleError(f"{', '.join(versions)} works; {'; '.join(failed)} does not", remedy, state="note")
    return f"{', '.join(versions)} decode a test clip"


def _gpu() -> str:
    import torch

    from stages.decoders.torchcodec import missing_reason
    from stages.models.clip import choose_devices

    if not torch.cuda.is_available():
        if Path("/dev/nvidia0").exists():
            remedy = "update the NVIDIA driver, or install the torch build for it (pytorch.org)"
            raise TroubleError("there is one, and torch cannot use it", remedy, state="note")
        return "none: everything runs on the CPU"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    total = torch.ones(64, 64, device="cuda").matmul(torch.ones(64, 64, device="cuda")).sum().item()
    if total != 64.0**3:
        raise TroubleError(f"{names[0]} multiplies wrong", "use --device cpu, and test the card")
    alike = choose_devices("cuda")
    if len(alike) < len(names):
        names.append(f"--device cuda takes the {len(alike)} like the first one, others give other bits")
    reason = missing_reason()
    return f"{', '.join(names)}; {'frames are decoded on the CPU: ' + reason if reason else 'decodes frames, too'}"


def _faiss() -> str:
    import torch

    from index_store.vectors import VectorIndex

    vectors = np.random.default_rng(0).standard_normal((256, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = VectorIndex.build(lambda: [(np.arange(256), vectors)], 256, 16)
    if (index.search(vectors, 1).ids[:, 0] != np.arange(256)).any():
        raise TroubleError("vectors do not find themselves", _REINSTALL, ComponentMissingError.exit_code)
    found = "finds 256 of 256 vectors on the CPU"
    return f"{found}; {_faiss_on_gpus()}" if torch.cuda.is_available() else found


def _faiss_on_gpus() -> str:
    """In a child process: where the CUDA libraries of torch and FAISS do not get on, it crashes."""
    from pipeline.jobs.gpu_trial import try_gpus, versions

    trial = try_gpus()
    if trial.crash:
        remedy = f"{_FAISS_CPU}; until then --device cpu"
        found = f"beside torch on the GPU it {trial.crash} ({versions()})"
        raise TroubleError(found, remedy, ComponentMissingError.exit_code)
    if trial.faiss_reason:
        raise TroubleError(f"searches on the CPU: {trial.faiss_reason} ({versions()})", _FAISS_GPU, state="note")
    return f"on {trial.num_gpus} GPU{'s' * (trial.num_gpus > 1)} the same, beside torch ({versions()})"


def _model() -> str:
    """The model that ships with tbpipe, both towers."""
    import torch

    from stages.models import load_model

    model = load_model("tbpipe-small", device="cpu")
    size = model.architecture.image_size
    with torch.inference_mode():
        frames = model.encode_frames(torch.zeros(2, 3, size, size, dtype=torch.uint8))
    if not torch.isfinite(frames).all():
        raise TroubleError("it gives numbers that are none", _REINSTALL)
    return f"tbpipe-small gives {frames.shape[1]} tokens of width {frames.shape[2]} for a frame"


def free_bytes(directory: Path) -> int:
    """On the disk of a directory."""
    return shutil.disk_usage(directory).free
