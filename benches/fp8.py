"""Quantising bfloat16 weights in 128x128 blocks beside PyTorch (eager, compiled), torchao, ml_dtypes and a plain copy.

All on as many threads as asked for, interleaved in one run; codes and scales are compared first. Rates count the bytes
read and written, and `of copy` is the share of the rate at which this machine copies the same tensor.

    python benches/fp8.py
    python benches/fp8.py --threads 2 --json
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

BLOCK = 128
WARM_UPS = 5
"""Calls until a tensor of 32 MiB has come back to a large third-level cache."""


def milliseconds(call: Callable[[], object]) -> float:
    """Time of a call after some others of its kind: it finds its own tensors in the caches, not another contender's."""
    for _ in range(WARM_UPS):
        call()
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def eager(w: Any) -> tuple[Any, Any]:
    """The same arithmetic in PyTorch, for sides that 128 divides."""
    import torch

    rows, columns = w.shape
    blocks = w.float().view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    amax = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(min=1e-10)
    scale = amax / torch.full_like(amax, 448.0)
    q = (blocks / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return q.view(rows, columns), scale.squeeze(3).squeeze(1)


def with_torchao(w: Any) -> tuple[Any, Any]:
    """Torchao's own primitives, which choose the scale in another order of operations."""
    import torch
    from torchao.quantization.quant_primitives import _choose_scale_float8, _quantize_affine_float8

    scale = _choose_scale_float8(w, [BLOCK, BLOCK], torch.float8_e4m3fn)
    return _quantize_affine_float8(w, scale, torch.float8_e4m3fn), scale


def with_ml_dtypes(w: Any) -> tuple[Any, Any]:
    """Numpy with the float8 type of ml_dtypes."""
    import ml_dtypes
    import numpy as np

    rows, columns = w.shape
    blocks = w.float().numpy().reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scale = np.maximum(np.abs(blocks).max(axis=(1, 3), keepdims=True), np.float32(1e-10)) / np.float32(448)
    q = np.clip(blocks / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return q.reshape(rows, columns).view(np.uint8), scale[:, 0, :, 0]


def contenders(w: Any) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    import torch

    from glmcore.fp8 import dequantize_blocks, quantize_blocks

    out = q, scale = quantize_blocks(w)
    target = torch.empty_like(w)
    expected_q, expected_scale = eager(w)
    assert torch.equal(q.view(torch.uint8), expected_q.view(torch.uint8))
    assert torch.equal(scale, expected_scale)
    calls: dict[str, Callable[[], object]] = {
        "glmcore": lambda: quantize_blocks(w, out=out),
        "glmcore, new arrays": lambda: quantize_blocks(w),
        "glmcore back": lambda: dequantize_blocks(q, scale, out=target),
        "copy": lambda: target.copy_(w),
        "torch eager": lambda: eager(w),
    }
    try:
        compiled = torch.compile(eager)
        compiled(w)
        calls["torch.compile"] = lambda: compiled(w)
    except Exception as error:  # a machine without a C++ compiler
        print(f"torch.compile is left out: {type(error).__name__}", file=sys.stderr)
    if importlib.util.find_spec("torchao"):
        calls["torchao"] = lambda: with_torchao(w)
    if importlib.util.find_spec("ml_dtypes"):
        assert (with_ml_dtypes(w)[0] == q.view(torch.uint8).numpy()).all()
        calls["ml_dtypes"] = lambda: with_ml_dtypes(w)
    return calls


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    told = []
    for size in args.sizes:
        w = torch.randn(size, size, dtype=torch.bfloat16)
        calls = contenders(w)
        rounds = [{name: milliseconds(call) for name, call in calls.items()} for _ in range(args.rounds)]
        medians = {name: statistics.median(times[name] for times in rounds) for name in calls}
        rate = {name: size * size * (4 if name == "copy" else 3) / 1e6 / ms for name, ms in medians.items()}
        told += [
            {"size": size, "name": name, "ms": ms, "gb_s": rate[name], "of_copy": rate[name] / rate["copy"],
             "times_glmcore": ms / medians["glmcore"]}
            for name, ms in medians.items()
        ]  # fmt: skip
        if not args.json:
            print(f"{size}x{size}, {args.threads} threads{'ms':>15}{'GB/s':>9}{'of copy':>9}{'times glmcore':>15}")
            for row in told[-len(calls) :]:
                print(
                    f"  {row['name']:<24}{row['ms']:>10.3f}{row['gb_s']:>9.1f}{row['of_copy']:>9.2f}"
                    f"{row['times_glmcore']:>15.1f}"
                )
    if args.json:
        print(json.dumps({"threads": args.threads, "torch": torch.__version__, "rows": told}, indent=1))


if __name__ == "__main__":
    main()
