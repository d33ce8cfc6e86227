"""Checkpoints that resume a run to the bit: weights, optimiser, random numbers and the place in the recipe.

They are written by `torch.distributed.checkpoint` while training goes on, and read by any number of ranks in any
layout. See docs/checkpoints.md for the format and for what a kill, a damaged file or a full disk leads to.
"""

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from glmcore.durable import fsync, remove_directory
from glmcore.errors import CheckpointError
from glmcore.progress import say
from glmcore.train import random_state
from glmcore.train.config import CheckpointConfig
from glmcore.train.manifest import Manifest
from glmcore.train.optim import Optimizer
from glmcore.train.storage import (
    DTYPES,
    Reader,
    Writer,
    load_alone,
    load_planner,
    save_alone,
    save_planner,
    sha256,
)

_PATTERN = "[0-9]*-[0-9]*"


@dataclass(frozen=True, order=True)
class Progress:
    """How far a run is."""

    stage_index: int
    """Position of the stage in the recipe; the RL stage comes after the training stages."""
    step: int
    """Finished steps of that stage."""


class Saved(NamedTuple):
    """A whole checkpoint."""

    progress: Progress
    path: Path
    extra: dict[str, Any]
    """The state of the loop that was saved with it."""


class CheckpointStore:
    """Checkpoints of one run, in `directory/STAGE-STEP`.

    All ranks of the default process group must construct theirs and make the same calls; `directory` must be the same
    for all of them.
    """

    def __init__(self, directory: Path, config: CheckpointConfig) -> None:
        self.directory = directory
        self.config = config
        self._rank, self._num_ranks = 0, 1
        self._group: dist.ProcessGroup | None = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._rank, self._num_ranks = dist.get_rank(), dist.get_world_size()
            # Of its own, since it is used from another thread beside the training's.
            made = dist.new_group(backend="gloo")
            assert isinstance(made, dist.ProcessGroup)
            self._group = made
        on_gpu = torch.cuda.is_available()
        # Memory for the copy is kept from one checkpoint to the next.
        self._stager = DefaultStager(StagingOptions(on_gpu, False, False, on_gpu))
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[Progress, Future[Any]] | None = None
        self._newest: Progress | None = None

    def latest(self) -> Saved | None:
        """The checkpoint that is furthest in the recipe and whole; None if there is none at all.

        Every file is read once, each rank its share, and compared with its checksum. A damaged checkpoint is named on
        stderr and the one before it is taken.

        Raises:
            CheckpointError: There are checkpoints and all are damaged.
        """
        paths = self._agree(sorted(self.directory.glob(_PATTERN), reverse=True))
        for path in paths:
            fault, manifest = self._examine(path)
            if fault is None and manifest is not None:
                self._newest = Progress(**manifest.progress)
                return Saved(self._newest, path, manifest.extra)
            if self._rank == 0:
                say(f"checkpoint {path} is damaged and not used: {fault}")
        if paths:
            raise CheckpointError(f"no checkpoint in {self.directory} is whole: remove it to begin anew")
        return None

    def save(
        self, progress: Progress, model: nn.Module, optimizer: Optimizer, extra: Mapping[str, Any] | None = None
    ) -> None:
        """Begin to write a checkpoint, from a copy; the model may change as soon as this returns.

        An earlier one that is still being written is waited for. When the files of all ranks are on the disk the
        checkpoint gets its name, and older ones go as the configuration says. What has been saved or loaded last is
        not written again.

        Args:
            progress: How far the run is; names the checkpoint.
            model: The model, or this rank's part of it.
            optimizer: Its optimiser.
            extra: State of the loop, any JSON, the same on all ranks.

        Raises:
            CheckpointError: The earlier one could not be written.
        """
        self.wait()
        if progress == self._newest:
            return
        path, temporary = self._path(progress), self._temporary(progress)
        if self._rank == 0:
            for left in self.directory.glob(".*.tmp"):  # of a run that was killed
                shutil.rmtree(left, ignore_errors=True)
        frozen = json.loads(json.dumps(dict(extra or {})))  # the loop goes on with the original
        told = Manifest({}, {}, asdict(progress), self._num_ranks, frozen)

        def publish(written: Manifest) -> None:
            self._publish(replace(told, files=written.files, tensors=written.tensors), temporary, path)

        state = {**_state(model, optimizer), **random_state.tensors(self._rank)}
        writer = Writer(temporary, publish)
        if self._group is None:
            staged = self._stager.stage(state)
            assert isinstance(staged, dict)  # since staging is not asynchronous
            future = self._thread.submit(save_alone, staged, writer)
        else:
            future = async_save(
                state,
                storage_writer=writer,
                planner=save_planner(),
                process_group=self._group,
                async_stager=self._stager,
            )
            assert isinstance(future, Future)  # since staging is not asynchronous
        self._writing = (progress, future)

    def wait(self) -> None:
        """Return when what is being written, if anything, is on the disk under its name.

        Raises:
            CheckpointError: It could not be written; earlier checkpoints are as they were.
        """
        if self._writing is None:
            return
        progress, future = self._writing
        self._writing = None
        try:
            future.result()
        except (CheckpointException, CheckpointError) as error:
            if self._rank == 0:
                shutil.rmtree(self._temporary(progress), ignore_errors=True)
            raise CheckpointError(f"{_cause(error)}; {self._newest_in_words()}") from error
        self._newest = progress

    def load(self, saved: Saved, model: nn.Module, optimizer: Optimizer) -> None:
        """Restore weights, optimiser and random numbers, on whatever ranks there are now.

        Random numbers go on where they were if there are as many ranks as there were; others begin a sequence that
        depends on what was saved and on their number.

        Raises:
            CheckpointError: A tensor is missing, extra, misshapen or of another type.
        """
        manifest = Manifest.read(saved.path)
        state = _state(model, optimizer)
        self._check_names(saved.path, manifest, state)
        _check_tensors(saved.path, manifest, state, same_type=True)
        own = random_state.names(manifest.tensors, self._rank if manifest.num_ranks == self._num_ranks else 0)
        random = {name: torch.empty(manifest.tensors[name].shape, dtype=torch.uint8) for name in own}
        _load(saved.path, manifest, {**state, **random}, self._group)
        optimizer.num_updates = int(state["optimizer.num_updates"])
        random_state.restore(random, None if manifest.num_ranks == self._num_ranks else self._rank)

    def _examine(self, path: Path) -> tuple[str | None, Manifest | None]:
        """What is wrong with a checkpoint, the same on all ranks."""
        fault, manifest = None, None
        try:
            manifest = Manifest.read(path)
            verify(path, manifest, sorted(manifest.files)[self._rank :: self._num_ranks])
        except CheckpointError as error:
            fault = str(error)
        if self._group is not None:
            faults: list[str | None] = [None] * self._num_ranks
            dist.all_gather_object(faults, fault, group=self._group)
            fault = next((other for other in faults if other is not None), None)
        return fault, manifest

    def _agree(self, paths: list[Path]) -> list[Path]:
        if self._group is not None:
            dist.broadcast_object_list(told := [paths], src=0, group=self._group)
            return told[0]
        return paths

    def _check_names(self, path: Path, manifest: Manifest, state: Mapping[str, Tensor]) -> None:
        """Whether all ranks together have every tensor of the checkpoint."""
        names = [name for name in manifest.tensors if not name.startswith(random_state.PREFIX)]
        wanted = torch.tensor([name in state for name in names], dtype=torch.uint8)
        if self._group is not None:
            dist.all_reduce(wanted, dist.ReduceOp.MAX, group=self._group)
        for name, here in zip(names, wanted.tolist(), strict=True):
            if not here:
                raise CheckpointError(f"{path}: tensor {name!r} is not part of the recipe's model")

    def _publish(self, manifest: Manifest, temporary: Path, path: Path) -> None:
        """Give a written checkpoint its name and remove what need not stay."""
        try:
            manifest.write(temporary)
            if path.exists():  # a damaged one, which was not resumed from
                remove_directory(path)
            fsync(temporary)
            temporary.rename(path)
            fsync(self.directory)
            for old in sorted(self.directory.glob(_PATTERN))[: -self.config.keep_last]:
                every = self.config.keep_every
                if every is None or int(old.name.split("-")[1]) % every:
                    remove_directory(old)
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}") from None

    def _path(self, progress: Progress) -> Path:
        return self.directory / f"{progress.stage_index:02d}-{progress.step:08d}"

    def _temporary(self, progress: Progress) -> Path:
        return self.directory / f".{self._path(progress).name}.new.tmp"

    def _newest_in_words(self) -> str:
        if self._newest is None:
            return "there is no earlier checkpoint"
        return f"the checkpoint of stage {self._newest.stage_index}, step {self._newest.step} is whole"


def load_weights(path: Path, model: nn.Module) -> None:
    """Fill a model on one process with the weights of a checkpoint, whatever ranks wrote it; their type may differ.

    Only the files of the weights are read, after their checksums have been compared.

    Raises:
        CheckpointError: A file is missing or damaged, or a tensor is missing, extra or misshapen.
    """
    state = model.state_dict()
    StoredWeights(path, state).read_into(state)


class StoredWeights:
    """The weights of a checkpoint, to be read all or one by one, on one process, whatever ranks wrote them.

    Args:
        path: The checkpoint.
        like: The state of the model, on any device.

    Raises:
        CheckpointError: A file is missing or damaged, or a tensor is missing, extra or misshapen.
    """

    def __init__(self, path: Path, like: Mapping[str, Tensor]) -> None:
        self.path = path
        self.manifest = Manifest.read(path)
        state = {f"model.{name}": tensor for name, tensor in like.items()}
        extra = {name for name in self.manifest.tensors if name.startswith("model.")} - set(state)
        if extra:
            raise CheckpointError(f"{path}: tensor {min(extra)!r} is not part of the recipe's model")
        _check_tensors(path, self.manifest, state, same_type=False)
        files = {chunk[0] for name in state for chunk in self.manifest.tensors[name].chunks}
        verify(path, self.manifest, sorted(files))

    def read_into(self, state: Mapping[str, Tensor]) -> None:
        """Fill tensors, of any type, by their names in the model's state."""
        _load(self.path, self.manifest, {f"model.{name}": tensor for name, tensor in state.items()}, None)


def verify(path: Path, manifest: Manifest, files: list[str]) -> None:
    """Compare files of a checkpoint with their checksums.

    Raises:
        CheckpointError: One is missing, cut short or changed.
    """
    for name in files:
        file, told = path / name, manifest.files[name]
        try:
            if file.stat().st_size != told.size:
                raise CheckpointError(f"{file}: has {file.stat().st_size} bytes, {told.size} were written")
            if sha256(file) != told.sha256:
                raise CheckpointError(f"{file}: is not what was written: its checksum differs")
        except FileNotFoundError:
            raise CheckpointError(f"{file}: file is missing") from None
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None


def _state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return weights | {f"optimizer.{name}": tensor for name, tensor in optimizer.state_tensors().items()}


def _check_tensors(path: Path, manifest: Manifest, state: Mapping[str, Tensor], *, same_type: bool) -> None:
    for name, tensor in sorted(state.items()):
        stored = manifest.tensors.get(name)
        if stored is None:
            raise CheckpointError(f"{path}: tensor {name!r} is missing")
        if stored.shape != list(tensor.shape):
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {stored.shape}, the recipe's model has {list(tensor.shape)}"
            )
        if same_type and DTYPES[stored.dtype] != tensor.dtype:
            raise CheckpointError(f"{path}: tensor {name!r} is {DTYPES[stored.dtype]}, the recipe's is {tensor.dtype}")


def _load(path: Path, manifest: Manifest, state: dict[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Fill tensors in place."""
    reader = Reader(path, manifest)
    if group is None:
        load_alone(state, reader)
        return
    try:
        load(state, storage_reader=reader, planner=load_planner(), process_group=group)
    except CheckpointException as error:
        raise CheckpointError(_cause(error)) from error


def _cause(error: CheckpointException | CheckpointError) -> str:
    """The failure that says something, the first rank's if there are several."""
    if isinstance(error, CheckpointError):
        return str(error)
    causes = [failure[0] for _, failure in sorted(error.failures.items())]
    return str(next((cause for cause in causes if isinstance(cause, CheckpointError)), causes[0]))
