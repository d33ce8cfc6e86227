"""The files of a checkpoint, as `torch.distributed.checkpoint` writes and reads them.

Every rank writes a safetensors file for each kind of state, with the parts of tensors that it holds; `manifest.json`
says which part lies where and what each file's SHA-256 is. There is no pickle. The manifest is written last, into a
directory that gets its name only then: what has a name is whole.
"""

import dataclasses
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from glmcore.durable import fsync
from glmcore.errors import CheckpointError
from glmcore.tensor_stream import TensorReader, TensorWriter
from glmcore.train.manifest import Chunk, File, Manifest, StoredTensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types by the names that safetensors has for them."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class _Stored:
    """Where an item went, told to the first rank."""

    file: str
    key: str
    size: int
    sha256: str


class Writer(StorageWriter):
    """Writes one checkpoint.

    Args:
        directory: Where to write it first.
        publish: Called on the first rank, with the manifest of what all ranks have written, when it is on the disk.
    """

    def __init__(self, directory: Path, publish: Callable[[Manifest], None]) -> None:
        self.directory = directory
        self.publish = publish

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between two checkpoints."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Make the directory, before the other ranks write to it."""
        if is_coordinator:
            try:
                self.directory.mkdir(parents=True)
            except OSError as error:
                raise CheckpointError(f"cannot make {self.directory}: {error.strerror}") from None

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Give every rank its number."""
        return [dataclasses.replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files and bring them to the disk.

        Raises:
            CheckpointError: They cannot be written, for want of space for example.
        """
        by_kind: dict[str, list[WriteItem]] = defaultdict(list)
        for item in plan.items:
            by_kind["model" if item.index.fqn.startswith("model.") else "training"].append(item)
        results: list[WriteResult] = []
        for kind, items in sorted(by_kind.items()):
            results += self._write_file(f"{kind}-{plan.storage_data:05d}.safetensors", items, planner)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Publish what all ranks have written; the first rank's part."""
        stored = {result.index: result for of_rank in results for result in of_rank}
        files: dict[str, File] = {}
        tensors: dict[str, StoredTensor] = {}
        for name, told in metadata.state_dict_metadata.items():
            if not isinstance(told, TensorStorageMetadata):
                raise CheckpointError(f"{name!r} is not a tensor")
            chunks: list[Chunk] = []
            for chunk in told.chunks:
                place: _Stored = stored[MetadataIndex(name, chunk.offsets)].storage_data
                files[place.file] = File(size=place.size, sha256=place.sha256)
                chunks.append((place.file, place.key, list(chunk.offsets), list(chunk.sizes)))
            tensors[name] = StoredTensor(dtype=_NAMES[told.properties.dtype], shape=list(told.size), chunks=chunks)
        self.publish(Manifest(files=dict(sorted(files.items())), tensors=dict(sorted(tensors.items()))))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any path will do."""
        return True

    def _write_file(self, file: str, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        path = self.directory / file
        tensors: dict[str, Tensor] = {}
        for item in items:
            tensor = planner.resolve_data(item)
            if not isinstance(tensor, Tensor):
                raise CheckpointError(f"{item.index.fqn!r} is not a tensor")
            tensors[_key(item)] = tensor.detach().cpu().contiguous()
        layout = {key: (_NAMES[tensor.dtype], list(tensor.shape)) for key, tensor in tensors.items()}
        with TensorWriter(path, layout) as writer:
            for key, tensor in tensors.items():
                writer.write(key, tensor)
        try:
            fsync(path)
            digest, size = sha256(path), path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}") from None
        return [
            WriteResult(item.index, tensors[_key(item)].nbytes, _Stored(file, _key(item), size, digest))
            for item in items
        ]


class Reader(StorageReader):
    """Reads parts of the tensors of one checkpoint, as the ranks of now need them, whatever ranks wrote it."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between two loads."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The manifest in the words of DCP."""
        tensors = {
            name: TensorStorageMetadata(
                TensorProperties(dtype=DTYPES[stored.dtype]),
                torch.Size(stored.shape),
                [
                    ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
                    for _, _, offsets, sizes in stored.chunks
                ],
            )
            for name, stored in self.manifest.tensors.items()
        }
        places = {
            MetadataIndex(name, offsets): (file, key)
            for name, stored in self.manifest.tensors.items()
            for file, key, offsets, _ in stored.chunks
        }
        return Metadata(tensors, storage_data=places)  # type: ignore[arg-type]

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Keep the places of the parts."""
        self._places: dict[MetadataIndex, tuple[str, str]] = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are: every rank reads for itself."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what is asked for, file by file.

        Raises:
            CheckpointError: A file is missing, cut short or damaged.
        """
        by_file: dict[str, list[Any]] = defaultdict(list)
        for item in plan.items:
            by_file[self._places[item.storage_index][0]].append(item)
        for file, items in sorted(by_file.items()):
            with TensorReader(self.directory / file) as reader:
                for item in items:
                    target = planner.resolve_tensor(item).detach()
                    part = _read_part(reader, self._places[item.storage_index][1], item.storage_offsets, item.lengths)
                    target.copy_(part)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any path will do."""
        return True


def save_planner() -> DefaultSavePlanner:
    """Which rank writes what: of parts that several hold, each is written by one, evenly."""
    return DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)


def load_planner() -> DefaultLoadPlanner:
    """Which parts a rank reads: those that overlap with its own."""
    return DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)


def save_alone(state: dict[str, Tensor], writer: Writer) -> None:
    """What DCP's `save` does, on one process: there it warns that it has nobody to speak with."""
    planner = save_planner()
    writer.set_up_storage_writer(is_coordinator=True)
    planner.set_up_planner(state, is_coordinator=True)
    [plan], metadata = planner.create_global_plan([planner.create_local_plan()])
    plan = planner.finish_plan(writer.prepare_global_plan([plan])[0])
    writer.finish(metadata, [writer.write_data(plan, planner).wait()])


def load_alone(state: dict[str, Tensor], reader: Reader) -> None:
    """What DCP's `load` does, on one process; see `save_alone`."""
    planner, metadata = load_planner(), reader.read_metadata()
    planner.set_up_planner(state, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    plan = planner.finish_plan(planner.create_global_plan([planner.create_local_plan()])[0])
    reader.read_data(plan, planner).wait()


def sha256(path: Path) -> str:
    """Digest of a file, read 8 MiB at a time."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 23):
            digest.update(block)
    return digest.hexdigest()


def _key(item: WriteItem) -> str:
    """Name in a file: the tensor's own without its kind, and where the part begins if it is not the whole."""
    name = item.index.fqn.removeprefix("model.")
    told = item.tensor_data
    if told is None or told.chunk.sizes == told.size:
        return name
    return f"{name}@{'.'.join(map(str, told.chunk.offsets))}"


def _read_part(reader: TensorReader, key: str, start: torch.Size, size: torch.Size) -> Tensor:
    """A rectangular part of a stored tensor; the rows around it are read with it."""
    place = reader.places[key]
    dtype = DTYPES[place.dtype]
    if not place.shape:
        whole = torch.empty((), dtype=dtype)
        reader.read(key, whole)
        return whole
    rows = torch.empty(size[0], *place.shape[1:], dtype=dtype)
    if rows.numel():
        reader.read(key, rows, first_byte=start[0] * rows[0].nbytes)
    return rows[(slice(None), *(slice(s, s + n) for s, n in zip(start[1:], size[1:], strict=True)))]
