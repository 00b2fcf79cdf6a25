"""The state of a training run, kept so that it goes on bit for bit as if it had never stopped."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from index_store.atomic import replacing
from index_store.errors import InputError, UsageError

if TYPE_CHECKING:
    from stages.training.trainer import Trainer

FORMAT = "tbpipe-training-state-1"


def save_state(path: Path, trainer: Trainer) -> None:
    """Write everything that the coming steps depend on, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {f"model.{name}": value for name, value in trainer.module.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in trainer.best.items()}
    for number, moments in trainer.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    description = {
        "config": asdict(trainer.config),
        "kind": asdict(trainer.objective.kind),
        "num_videos": len(trainer.corpus),
        "finetune": trainer.objective.reads_frames,
        "step": trainer.step,
        "best_step": trainer.best_step,
        "first_validation": trainer.first_validation and asdict(trainer.first_validation),
        "best_validation": trainer.best_validation and asdict(trainer.best_validation),
    }
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    with replacing(path) as temporary:
        save_file(kept, temporary, metadata={"format": FORMAT, "training": json.dumps(description)})


def load_state(path: Path, trainer: Trainer) -> None:
    """Put a trainer where another one left off. Raises InputError for another file, UsageError for another run's."""
    from safetensors import SafetensorError, safe_open

    from stages.training.trainer import Validation

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as the state of a training run: {error}") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is not the state of a training run; remove it or choose another --output")
    described: dict[str, Any] = json.loads(metadata["training"])
    present: dict[str, Any] = {
        "config": asdict(trainer.config),
        "kind": asdict(trainer.objective.kind),
        "num_videos": len(trainer.corpus),
        "finetune": trainer.objective.reads_frames,
    }
    differing = [name for name, value in present.items() if described.get(name) != value]
    if differing:
        changed = [key for key, value in present["config"].items() if described["config"].get(key) != value]
        what = ", ".join(changed) if "config" in differing else " and ".join(differing)
        raise UsageError(
            f"{path} is the state of a run with another {what}; give --restart to begin anew, or the options it had"
        )
    trainer.module.load_state_dict(
        {name.removeprefix("model."): t for name, t in tensors.items() if name[:6] == "model."}
    )
    trainer.best = {name.removeprefix("best."): t for name, t in tensors.items() if name.startswith("best.")}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, number, key = name.split(".")
            moments.setdefault(int(number), {})[key] = tensor
    trainer.optimiser.load_state_dict({**trainer.optimiser.state_dict(), "state": moments})
    trainer.step, trainer.best_step = described["step"], described["best_step"]
    first, best = described["first_validation"], described["best_validation"]
    trainer.first_validation = Validation(**first) if first else None
    trainer.best_validation = Validation(**best) if best else None
