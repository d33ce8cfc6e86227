"""Versions of weights on disk, each a whole checkpoint, for engines that load from there."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from glmcore.durable import atomic_directory, remove_directory, write_file
from glmcore.errors import CheckpointError, SyncError
from glmcore.fp8.bucket import Bucket, Piece, WeightDigests
from glmcore.fp8.checkpoint import CHECKSUMS, INDEX, checksum_lines, sha256
from glmcore.fp8.layout import SCALE_SUFFIX, Quantization, describe
from glmcore.fp8.quantize import dequantize_blocks
from glmcore.fp8.receiver import Sequence
from glmcore.tensor_stream import TensorWriter, num_bytes
from glmcore.tensors import open_tensors

POLICY = "policy.json"
"""In each version: `policy_version` and `weights_checksum`."""


class WeightDirectory:
    """A directory of checkpoints `weight_v000012`; each appears whole, under its name, or not at all."""

    def __init__(
        self, root: str | Path, config: Mapping[str, Any], *, files: str | Path | None = None, keep: int = 2
    ) -> None:
        """Open or make the directory.

        Args:
            root: Where the versions go.
            config: What config.json holds, without `quantization_config`.
            files: Checkpoint whose other files (tokenizer, generation_config.json) go into every version.
            keep: Versions that stay; an engine that loads one should be done before so many more are written.
        """
        if keep < 1:
            raise CheckpointError(f"keep must be at least 1, got {keep}")
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self.keep = keep
        self._config = dict(config)
        self._files = [] if files is None else [file for file in Path(files).iterdir() if _is_copied(file)]

    def path(self, version: int) -> Path:
        """The checkpoint of a version, there or not."""
        return self.root / f"weight_v{version:06d}"

    def versions(self) -> list[int]:
        """Versions that are there, whole, oldest first."""
        names = (re.fullmatch(r"weight_v(\d{6,})", path.name) for path in self.root.iterdir() if path.is_dir())
        return sorted(int(name[1]) for name in names if name)

    def update_weights(self, version: int, buckets: Iterable[Bucket]) -> str:
        """Write a version, then remove all but the newest `keep`.

        Args:
            version: Policy version of the weights, above those that are there; writing the newest again, as a resumed
                trainer does, is allowed where it is the same.
            buckets: `WeightPublisher.publish` of that version, or what `WeightBroadcast` receives.

        Returns:
            `weights_checksum` of the weights, read back from the disk.

        Raises:
            SyncError: The update is not complete, damaged or older than what is there.
            CheckpointError: The directory cannot be written, for want of space for example.
        """
        newest = max(self.versions(), default=-1)
        if version < newest:
            raise SyncError(f"version {version} came, {self.root} holds version {newest}")
        try:
            for left in self.root.glob(".weight_v*.tmp"):  # by a killed call
                shutil.rmtree(left)
            checksum = self._write(version, buckets)
            for old in self.versions()[: -self.keep]:
                remove_directory(self.path(old))
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path(version)}: {error.strerror}") from None
        return checksum

    def _write(self, version: int, buckets: Iterable[Bucket]) -> str:
        target, sequence = self.path(version), Sequence(version)
        if target.exists():
            return self._compare(version, buckets)
        with atomic_directory(target) as temporary, ThreadPoolExecutor(1) as hashing:
            files = _Files(temporary, hashing)
            for bucket in buckets:
                sequence.check(bucket)
                files.add(bucket)
            last = sequence.finish()
            for file in self._files:
                shutil.copyfile(file, temporary / file.name)
            quantization = Quantization("fp8", last.block)
            config = self._config
            if files.has_codes:
                config = config | {"quantization_config": describe(quantization, files.kept, last.scale_format)}
            write_file(temporary / "config.json", json.dumps(config, indent=2) + "\n")
            policy = {"policy_version": version, "weights_checksum": last.weights_checksum}
            write_file(temporary / POLICY, json.dumps(policy) + "\n")
            digests = files.close()
            others = [file for file in temporary.iterdir() if file.name not in digests]
            digests |= {file.name: sha256(file) for file in others}
            write_file(temporary / CHECKSUMS, checksum_lines(digests))
            held = checkpoint_checksum(temporary)
            if held != last.weights_checksum:
                raise SyncError(f"{target} holds weights with the checksum {held}, sent were {last.weights_checksum}")
        return held

    def _compare(self, version: int, buckets: Iterable[Bucket]) -> str:
        sent = None
        for bucket in buckets:
            sent = bucket.weights_checksum
        held = checkpoint_checksum(self.path(version))
        if sent != held:
            raise SyncError(f"{self.path(version)} exists and holds other weights")
        return held


class _Files:
    """safetensors files of a version: one a bucket, and one for each tensor that is larger than a bucket."""

    def __init__(self, directory: Path, hashing: ThreadPoolExecutor) -> None:
        self.kept: list[str] = []
        """Modules with a weight that is not quantised."""
        self.has_codes = False
        self._directory = directory
        self._hashing = hashing
        self._tensors: list[dict[str, int]] = []
        """Bytes of the tensors of each file."""
        self._digests: list[Future[str]] = []
        self._cut: dict[str, tuple[int, TensorWriter]] = {}
        """Number and writer of each file with a tensor that has not all come."""

    def add(self, bucket: Bucket) -> None:
        """Write what a bucket holds."""
        whole = [piece for piece in bucket.pieces if piece.is_whole]
        if whole:
            number, writer = self._open(whole)
            for piece in whole:
                writer.write(piece.name, bucket.tensor(piece))
            self._end(number, writer)
        for piece in bucket.pieces:
            if not piece.is_whole:
                self._write_part(piece, bucket)

    def close(self) -> dict[str, str]:
        """Give the files their names and write the index; gives their SHA-256 by name."""
        count = len(self._tensors)
        digests: dict[str, str] = {}
        weight_map: dict[str, str] = {}
        for number, (tensors, digest) in enumerate(zip(self._tensors, self._digests, strict=True)):
            name = f"model-{number + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
            digests[name] = digest.result()
            self._file(number).rename(self._directory / name)
            weight_map |= dict.fromkeys(tensors, name)
        if count > 1:
            total = sum(size for tensors in self._tensors for size in tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_file(self._directory / INDEX, json.dumps(index, indent=2) + "\n")
        return digests

    def _file(self, number: int) -> Path:
        return self._directory / f"{number}.part"

    def _open(self, pieces: list[Piece]) -> tuple[int, TensorWriter]:
        for piece in pieces:
            self.has_codes |= piece.dtype == "F8_E4M3"
            if piece.dtype == "BF16" and piece.name.endswith(".weight") and len(piece.shape) == 2:
                self.kept.append(piece.name.removesuffix(".weight"))
        number = len(self._tensors)
        self._tensors.append({piece.name: num_bytes(piece.dtype, list(piece.shape)) for piece in pieces})
        self._digests.append(Future())
        return number, TensorWriter(self._file(number), {p.name: (p.dtype, list(p.shape)) for p in pieces})

    def _write_part(self, piece: Piece, bucket: Bucket) -> None:
        if piece.name not in self._cut:
            self._cut[piece.name] = self._open([piece])
        writer = self._cut[piece.name][1]
        writer.write_part(
            piece.name, bucket.tensor(piece), piece.rows[0] * num_bytes(piece.dtype, list(piece.shape[1:]))
        )
        if piece.rows[1] == piece.shape[0]:
            self._end(*self._cut.pop(piece.name))

    def _end(self, number: int, writer: TensorWriter) -> None:
        """Close a file; it is read for its checksum while the next is made, and while it is in the page cache."""
        writer.__exit__()
        self._digests[number] = self._hashing.submit(sha256, self._file(number))


def checkpoint_checksum(directory: Path) -> str:
    """`weights_checksum` of an FP8 or bfloat16 checkpoint: of the values that an engine has once it has loaded it.

    Raises:
        CheckpointError: A file is missing or cut short.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    block = tuple(config.get("quantization_config", {}).get("weight_block_size", (128, 128)))
    scales: dict[str, Any] = {}
    waiting: dict[str, Any] = {}
    digests = WeightDigests()
    suffix = SCALE_SUFFIX["fp8"]

    def add(name: str, codes: Any, scale: Any) -> None:
        digests.add(name, dequantize_blocks(codes, scale, block, torch.bfloat16))

    for path in sorted(directory.glob("*.safetensors")):
        with open_tensors(path) as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensor = file.get_tensor(name)
                if name.endswith(suffix):
                    weight = name.removesuffix(suffix)
                    if weight in waiting:
                        add(weight, waiting.pop(weight), tensor)
                    else:
                        scales[weight] = tensor
                elif tensor.dtype != torch.float8_e4m3fn:
                    digests.add(name, tensor)
                elif name in scales:
                    add(name, tensor, scales.pop(name))
                else:
                    waiting[name] = tensor
    if waiting or scales:
        raise CheckpointError(f"{directory}: tensor {min({*waiting, *scales})!r} has no scales, or no codes")
    return digests.total()


def _is_copied(file: Path) -> bool:
    return (
        file.is_file() and file.suffix != ".safetensors" and file.name not in ("config.json", INDEX, CHECKSUMS, POLICY)
    )
