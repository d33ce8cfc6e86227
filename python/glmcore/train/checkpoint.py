"""Checkpoints that resume a run to the bit: weights, optimiser state and the place in the recipe."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from glmcore.durable import atomic_directory, remove_directory, write_file
from glmcore.errors import CheckpointError
from glmcore.tensors import read_tensors, write_tensors
from glmcore.train.optim import Optimizer


@dataclass(frozen=True, order=True)
class Progress:
    """How far a run is."""

    stage_index: int
    """Position of the stage in the recipe; the RL stage comes after the training stages."""
    step: int
    """Finished steps of that stage."""


class CheckpointStore:
    """Checkpoints of one run, in `directory/STAGE-STEP`."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self.keep = keep

    def latest(self) -> tuple[Progress, Path] | None:
        """The checkpoint that is furthest in the recipe."""
        found = [(Progress(*map(int, path.name.split("-"))), path) for path in self.directory.glob("[0-9]*-[0-9]*")]
        return max(found, default=None)

    def save(self, progress: Progress, model: nn.Module, optimizer: Optimizer) -> Path:
        """Write a checkpoint, then remove all but the newest `keep`. Nothing is half-written at any moment."""
        path = self.directory / f"{progress.stage_index:02d}-{progress.step:08d}"
        if path.exists():
            return path
        self.directory.mkdir(parents=True, exist_ok=True)
        with atomic_directory(path) as temporary:
            weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            write_tensors(temporary / "model.safetensors", weights)
            write_tensors(temporary / "optimizer.safetensors", optimizer.state_tensors())
            write_file(temporary / "progress.json", json.dumps(asdict(progress)))
        for old in sorted(self.directory.glob("[0-9]*-[0-9]*"))[: -self.keep]:
            remove_directory(old)
        return path

    @staticmethod
    def load(path: Path, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Restore the weights and, if given, the optimiser.

        Raises:
            CheckpointError: A file is missing or cut short, or a tensor is missing, extra or misshapen.
        """
        weights = read_tensors(path / "model.safetensors")
        own = model.state_dict()
        for name in sorted(set(own) | set(weights)):
            if name not in weights or name not in own:
                raise CheckpointError(f"{path}/model.safetensors: tensor {name!r} is {_fault(name, weights)}")
            if weights[name].shape != own[name].shape:
                raise CheckpointError(
                    f"{path}/model.safetensors: tensor {name!r} has shape {list(weights[name].shape)}, "
                    f"the recipe's model has {list(own[name].shape)}"
                )
        model.load_state_dict(weights)
        if optimizer is not None:
            optimizer.load_state_tensors(read_tensors(path / "optimizer.safetensors"))


def _fault(name: str, weights: dict[str, torch.Tensor]) -> str:
    return "not part of the recipe's model" if name in weights else "missing"
