"""`quantize_checkpoint` of a random checkpoint of some GB beside a plain copy of the same files, in one run.

Each step runs in a process of its own, so that its peak memory is its own. The page cache is warm for all; every step
ends with fsync. Rates count bytes read and written; `SHA-256` is what the checksums alone take, one thread.

    python benches/fp8_checkpoint.py --gigabytes 4 --threads 2
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDE = 4096
"""Rows and columns of a matrix: 32 MiB in bfloat16."""
MATRICES_PER_FILE = 24


def write_source(directory: Path, gigabytes: float) -> None:
    """A checkpoint of random bfloat16 matrices, some of them kept in high precision."""
    import torch
    from safetensors.torch import save_file

    names = ["self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "eh_proj"]
    count = max(round(gigabytes * 1e9 / (2 * SIDE * SIDE)), 1)
    weight_map = {}
    base = torch.randn(SIDE, SIDE, dtype=torch.bfloat16)
    for first in range(0, count, MATRICES_PER_FILE):
        tensors = {
            f"model.layers.{i // len(names)}.{names[i % len(names)]}.weight": base.roll(i)
            for i in range(first, min(first + MATRICES_PER_FILE, count))
        }
        file = f"model-{first // MATRICES_PER_FILE + 1:05d}.safetensors"
        save_file(tensors, directory / file)
        weight_map |= dict.fromkeys(tensors, file)
    (directory / "config.json").write_text('{"model_type": "glm4_moe"}')
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def copy(source: Path, target: Path) -> None:
    """A plain copy, on the disk."""
    target.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, target / file.name)
        with (target / file.name).open("rb") as copied:
            os.fsync(copied.fileno())


def run_step(step: str, source: Path, target: Path, threads: int) -> None:
    """One step, in this process; prints its figures."""
    import torch  # noqa: F401 (not a part of the time)

    from glmcore.fp8 import dequantize_checkpoint, quantize_checkpoint

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    if step == "copy":
        copy(source, target)
    elif step == "quantise":
        quantize_checkpoint(source, target, progress=False, num_threads=threads)
    elif step == "dequantise":
        dequantize_checkpoint(source, target, progress=False, num_threads=threads)
    else:
        for file in source.iterdir():
            with file.open("rb") as stream:
                hashlib.file_digest(stream, "sha256")
    seconds = time.perf_counter() - started
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_mb": own / 1e3, "before_mb": before / 1e3}))


def size(directory: Path) -> int:
    """Bytes of the files."""
    return sum(file.stat().st_size for file in directory.iterdir())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where to work (default: the temporary directory)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        run_step(args.step[0], Path(args.step[1]), Path(args.step[2]), args.threads)
        return
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=args.directory) as scratch:
        bf16, fp8, back, copied = (Path(scratch) / name for name in ("bf16", "fp8", "back", "copied"))
        bf16.mkdir()
        write_source(bf16, args.gigabytes)
        for _ in range(args.rounds):
            steps = (("copy", bf16, copied), ("quantise", bf16, fp8), ("dequantise", fp8, back), ("SHA-256", fp8, fp8))
            for directory in (fp8, back, copied):
                shutil.rmtree(directory, ignore_errors=True)
            for step, source, target in steps:
                command = [sys.executable, __file__, "--threads", str(args.threads)]
                environment = os.environ | {"RAYON_NUM_THREADS": "1"}  # a thread a tensor
                done = subprocess.run(
                    [*command, "--step", step, source, target], env=environment, check=True, capture_output=True
                )
                told = json.loads(done.stdout)
                told["gb"] = (size(source) + (size(target) if target != source else 0)) / 1e9
                best = rows.setdefault(step, told)
                if told["seconds"] < best["seconds"]:
                    rows[step] = told
                if step == "copy":
                    shutil.rmtree(copied)
    for row in rows.values():
        row["gb_s"] = row["gb"] / row["seconds"]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{args.gigabytes} GB, {args.threads} threads, best of {args.rounds}\n")
    print("| | s | GB read and written | GB/s | of copy | peak memory, MB | of it before the work |\n|" + " --- |" * 7)
    for step, row in rows.items():
        print(
            f"| {step} | {row['seconds']:.1f} | {row['gb']:.1f} | {row['gb_s']:.2f} | "
            f"{row['gb_s'] / rows['copy']['gb_s']:.2f} | {row['peak_mb']:,.0f} | {row['before_mb']:,.0f} |"
        )


if __name__ == "__main__":
    main()
