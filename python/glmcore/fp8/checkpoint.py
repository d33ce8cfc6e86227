"""Whole checkpoints to block-wise FP8 and back: streamed, resumable, with checksums."""

import hashlib
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from glmcore.durable import fsync, resumable_directory, write_file
from glmcore.errors import CheckpointError
from glmcore.fp8.layout import Layout, Quantization, describe, is_quantized, read_quantization
from glmcore.fp8.quantize import ScaleFormat, dequantize_blocks, quantize_blocks, scales_shape
from glmcore.progress import ProgressBar, say
from glmcore.progress import progress as show_progress
from glmcore.tensor_stream import TensorWriter, num_bytes
from glmcore.tensors import open_tensors

INDEX = "model.safetensors.index.json"
CHECKSUMS = "SHA256SUMS"
"""Written into every converted checkpoint; `sha256sum --check` reads it too."""
_HIGH_PRECISION = ("F32", "F16", "BF16")

_Tensors = dict[str, tuple[str, list[int]]]
"""Type and shape of each tensor."""
_Plan = Callable[[Any, str], tuple[_Tensors, Callable[[], dict[str, Any]]]]
"""For a tensor of an open file: what is written in its place, and the work that makes it."""


def quantize_checkpoint(
    src_dir: str | Path,
    dst_dir: str | Path,
    block: tuple[int, int] = (128, 128),
    progress: bool = True,
    *,
    layout: Layout = "fp8",
    scale_format: ScaleFormat = "float32",
    num_threads: int | None = None,
) -> None:
    """Write a block-FP8 copy of a Hugging Face checkpoint in the memory of one tensor a thread.

    Every quantised `X.weight` gets its scales beside it; config.json gets a `quantization_config`, the directory a
    SHA256SUMS; other files are copied. The directory appears whole or not at all. Called again after it was killed, it
    goes on behind the last whole file.

    Args:
        src_dir: Checkpoint with config.json and safetensors, single or with an index.
        dst_dir: Directory to make; its parent must exist.
        block: Rows and columns of a block.
        progress: Show a progress bar, and at the end sizes, time and peak memory.
        layout: `fp8` (`X.weight_scale_inv`) as transformers, vLLM and SGLang read it; or `compressed-tensors`
            (`X.weight_scale`).
        scale_format: `ue8m0` rounds scales up to powers of two.
        num_threads: Tensors at a time; None for all cores.

    Raises:
        CheckpointError: A file is missing or cut short, the target exists, or a weight is not finite.
    """
    source = Path(src_dir)
    config = read_json(source / "config.json")
    if "quantization_config" in config:
        raise CheckpointError(f"{source} is quantised already")
    quantization = Quantization(layout, block)
    kept: list[str] = []

    def plan(file: Any, name: str) -> tuple[_Tensors, Callable[[], dict[str, Any]]]:
        dtype, shape = _type_and_shape(file, name)
        if not is_quantized(name):
            if name.endswith(".weight") and len(shape) == 2:
                kept.append(name.removesuffix(".weight"))
            return {name: (dtype, shape)}, lambda: {name: file.get_tensor(name)}
        if dtype not in _HIGH_PRECISION or len(shape) != 2:
            raise CheckpointError(f"tensor {name!r} is {dtype} {shape}, expected a matrix of floats")
        scale = name + quantization.suffix

        def work() -> dict[str, Any]:
            try:
                q, scales = quantize_blocks(file.get_tensor(name), block=block, scale_format=scale_format)
            except ValueError as error:
                raise CheckpointError(f"tensor {name!r}: {error}") from None
            return {name: q, scale: scales}

        return {name: ("F8_E4M3", shape), scale: ("F32", list(scales_shape(tuple(shape), block)))}, work

    def final_config() -> dict[str, Any]:
        return config | {"quantization_config": describe(quantization, kept, scale_format)}

    task = {"task": "quantize", "block": list(block), "layout": layout, "scale_format": scale_format}
    _convert(source, Path(dst_dir), task, plan, final_config, num_threads, progress)


def dequantize_checkpoint(
    src_dir: str | Path, dst_dir: str | Path, progress: bool = True, *, num_threads: int | None = None
) -> None:
    """Write a bfloat16 copy of an FP8 checkpoint, block-wise or row-wise, in either layout; else as the inverse.

    Raises:
        CheckpointError: A file is missing or cut short, the target exists, or scales do not fit their weight.
    """
    source = Path(src_dir)
    config = read_json(source / "config.json")
    quantization = read_quantization(config)
    if quantization is None:
        raise CheckpointError(f"{source} is not quantised")
    suffix = quantization.suffix

    def plan(file: Any, name: str) -> tuple[_Tensors, Callable[[], dict[str, Any]]]:
        dtype, shape = _type_and_shape(file, name)
        if name.endswith(f".weight{suffix}"):
            return {}, dict
        if dtype != "F8_E4M3":
            return {name: (dtype, shape)}, lambda: {name: file.get_tensor(name)}

        def work() -> dict[str, Any]:
            import torch

            q = file.get_tensor(name)
            try:
                scale = file.get_tensor(name + suffix).float()
                return {name: dequantize_blocks(q, scale, quantization.block_of(q.shape), torch.bfloat16)}
            except Exception as error:  # safetensors has its own kind of error for a missing tensor
                raise CheckpointError(f"tensor {name!r}: {error}") from None

        return {name: ("BF16", shape)}, work

    def final_config() -> dict[str, Any]:
        return {key: value for key, value in config.items() if key != "quantization_config"}

    _convert(source, Path(dst_dir), {"task": "dequantize"}, plan, final_config, num_threads, progress)


def verify_checkpoint(directory: str | Path) -> int:
    """Compare every file with the checkpoint's SHA256SUMS; gives their number.

    Raises:
        CheckpointError: There are no checksums, a file is missing, or one has changed; it is named.
    """
    directory = Path(directory)
    try:
        lines = (directory / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        told = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {directory / CHECKSUMS}: {error}") from None
    for name, digest in told.items():
        file = directory / name
        if not file.is_file():
            raise CheckpointError(f"{file}: file is missing")
        if sha256(file) != digest:
            raise CheckpointError(f"{file}: is not what was written: its checksum differs")
    return len(told)


def _convert(
    source: Path,
    target: Path,
    task: dict[str, Any],
    plan: _Plan,
    final_config: Callable[[], dict[str, Any]],
    num_threads: int | None,
    progress: bool,
) -> None:
    """Convert file by file into a directory that appears when it is whole."""
    if target.exists():
        raise CheckpointError(f"{target} exists already")
    if not target.absolute().parent.is_dir():
        raise CheckpointError(f"{target.absolute().parent} does not exist")
    files = sorted(source.glob("*.safetensors"))
    _check_complete(source, files)
    stamps = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    note = task | {"source": str(source.absolute()), "files": stamps}
    started = time.perf_counter()
    try:
        with (
            resumable_directory(target, note) as temporary,
            show_progress(
                task["task"], unit="bytes", total=sum(size for size, _ in stamps.values()), shown=progress
            ) as bar,
            ThreadPoolExecutor(num_threads or os.cpu_count()) as threads,
        ):
            total = _convert_files(source, files, temporary, plan, final_config, threads, bar)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}") from None
    if progress:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kB on Linux
        took = time.perf_counter() - started
        say(f"{target}: {total / 1e9:.2f} GB in {len(files)} files, {took:.1f} s, peak memory {peak:,.0f} MB")


def _convert_files(
    source: Path,
    files: list[Path],
    temporary: Path,
    plan: _Plan,
    final_config: Callable[[], dict[str, Any]],
    threads: ThreadPoolExecutor,
    bar: ProgressBar,
) -> int:
    """Fill the directory; gives the bytes of its tensors."""
    weight_map: dict[str, str] = {}
    digests: dict[str, Future[str]] = {}
    total = 0
    for file in files:
        written, size = _convert_file(file, temporary / file.name, plan, threads, bar)
        # Tensors are written in any order, SHA-256 wants bytes in one: so a file is read again, at once, while it is
        # in the page cache, and by one thread while the others convert the next.
        digests[file.name] = threads.submit(sha256, temporary / file.name)
        weight_map |= dict.fromkeys(written, file.name)
        total += size
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name not in (INDEX, CHECKSUMS):
            shutil.copyfile(file, temporary / file.name)
    write_file(temporary / "config.json", json.dumps(final_config(), indent=2) + "\n")
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_file(temporary / INDEX, json.dumps(index, indent=2) + "\n")
    for file in temporary.iterdir():
        if file.is_file() and not file.name.startswith(".") and file.name not in (CHECKSUMS, *digests):
            digests[file.name] = threads.submit(sha256, file)
    lines = checksum_lines({name: digest.result() for name, digest in digests.items()})
    write_file(temporary / CHECKSUMS, lines)
    return total


def _convert_file(
    source: Path, target: Path, plan: _Plan, threads: ThreadPoolExecutor, bar: ProgressBar
) -> tuple[list[str], int]:
    """Names and bytes of the tensors of a converted file; one that is there already is left as it is."""
    with open_tensors(source) as file:
        names = list(file.keys())
        plans = [plan(file, name) for name in names]
        layout: _Tensors = {}
        for written, _ in plans:
            layout |= written
        size = sum(num_bytes(*tensor) for tensor in layout.values())
        if target.exists():
            bar.skip(source.stat().st_size)
            return list(layout), size

        partial = target.with_name(f".{target.name}.part")
        with TensorWriter(partial, layout) as writer:

            def convert(name: str, work: Callable[[], dict[str, Any]]) -> int:
                for written, tensor in work().items():
                    writer.write(written, tensor.contiguous())
                return num_bytes(*_type_and_shape(file, name))

            try:
                for done in threads.map(convert, names, [work for _, work in plans]):
                    bar.advance(done)
            except CheckpointError as error:
                raise CheckpointError(f"{source}: {error}") from None
        fsync(partial)
        partial.replace(target)
        return list(layout), size


def _type_and_shape(file: Any, name: str) -> tuple[str, list[int]]:
    part = file.get_slice(name)
    return part.get_dtype(), list(part.get_shape())


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_lines(digests: dict[str, str]) -> str:
    """What a SHA256SUMS file holds of files by name."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def _check_complete(source: Path, files: list[Path]) -> None:
    if not files:
        raise CheckpointError(f"{source} has no safetensors file")
    index = source / INDEX
    if index.exists():
        named: dict[str, str] = read_json(index).get("weight_map", {})
        for name, file in named.items():
            if not (source / file).is_file():
                raise CheckpointError(f"{source / file}: file is missing, the index has tensor {name!r} in it")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: The file cannot be read or holds something else.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise CheckpointError(f"{path}: not a JSON object") from None
