"""Block-wise FP8 on a GPU: quantising beside PyTorch (eager, compiled), a Triton kernel and the card's own copy.

All in one run, on CUDA events, with the second-level cache flushed before each call; the median of 20. Rates count
bytes read and written. Codes and scales are compared with the CPU's first. Without a card it says so and ends.

    python benches/fp8_gpu.py
    python benches/fp8_gpu.py --json
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

from fp8 import BLOCK, eager

REPEATS = 20
FLUSH_BYTES = 512 << 20
"""More than any second-level cache."""
SIZES = [(1024, 4096), (4096, 8192), (8192, 16384)]
MANY = [(5120, 1536)] * 480 + [(12288, 5120)] * 16
"""About 4.8e9 values in 496 matrices of the shapes of GLM-4.6: experts and attention."""
PRODUCTS = [(16, 5120, 12288), (256, 5120, 12288), (4096, 5120, 12288)]
"""Rows, and columns and depth of the weight."""


def milliseconds(call: Callable[[], object], flush: Any) -> float:
    """Median time of a call on the GPU."""
    import torch

    for _ in range(3):
        call()
    times = []
    for _ in range(REPEATS):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def triton_quantizer() -> Callable[[Any], tuple[Any, Any]] | None:
    """A program for each block, as published Triton kernels have it (DeepSeek-V3, slime); None without Triton."""
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return None
    import torch

    @triton.jit
    def quantize(x_ptr, q_ptr, s_ptr, M, N, SIDE: tl.constexpr):  # noqa: N803
        row, column = tl.program_id(0), tl.program_id(1)
        rows = row * SIDE + tl.arange(0, SIDE)
        columns = column * SIDE + tl.arange(0, SIDE)
        places = rows[:, None] * N + columns[None, :]
        inside = (rows[:, None] < M) & (columns[None, :] < N)
        x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
        scale = tl.maximum(tl.max(tl.abs(x)), 1e-10) / 448.0
        tl.store(q_ptr + places, (x / scale).to(q_ptr.dtype.element_ty), mask=inside)
        tl.store(s_ptr + row * tl.num_programs(1) + column, scale)

    def call(w: Any) -> tuple[Any, Any]:
        rows, columns = w.shape
        q = torch.empty_like(w, dtype=torch.float8_e4m3fn)
        scale = w.new_empty(-(-rows // BLOCK), -(-columns // BLOCK), dtype=torch.float32)
        quantize[scale.shape](w, q, scale, rows, columns, SIDE=BLOCK)
        return q, scale

    return call


def bench_quantize(shape: tuple[int, int], flush: Any) -> dict[str, Any]:
    """Rates in GB/s for one matrix."""
    import torch

    from glmcore.fp8 import ops, quantize_blocks

    w = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    contenders: dict[str, Callable[[Any], Any]] = {
        "glmcore": lambda w: ops.quantize_blocks(w, BLOCK, BLOCK, 1e-10, False),
        "torch eager": eager,
        "torch.compile": torch.compile(eager),
    }
    triton = triton_quantizer()
    if triton:
        contenders["triton"] = triton
    expected_q, expected_scale = quantize_blocks(w.cpu())
    result: dict[str, Any] = {"shape": list(shape), "differing_codes": {}, "GB_per_s": {}}
    target = torch.empty_like(w)
    result["GB_per_s"]["copy"] = 2 * w.nbytes / milliseconds(lambda: target.copy_(w), flush) / 1e6
    for name, call in contenders.items():
        q, scale = call(w)[:2]
        different = (q.view(torch.uint8).cpu() != expected_q.view(torch.uint8)).sum()
        result["differing_codes"][name] = int(different) + int((scale.cpu() != expected_scale).sum())
        num_bytes = w.nbytes + q.nbytes + scale.nbytes
        result["GB_per_s"][name] = num_bytes / milliseconds(lambda call=call: call(w), flush) / 1e6
    return result


def bench_many(flush: Any) -> dict[str, Any]:
    """Milliseconds for the weights of a model: one launch, a call a weight, and the copy of as many bytes."""
    import torch

    from glmcore.fp8 import ops, quantize_many

    weights = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in MANY]
    out = [tuple(ops.quantize_blocks(w, BLOCK, BLOCK, 1e-10, False)[:2]) for w in weights]
    out = [(q.view(torch.float8_e4m3fn), scale) for q, scale in out]
    moved = sum(w.nbytes + q.nbytes for w, (q, _) in zip(weights, out, strict=True))
    half = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(half)

    def one_by_one() -> None:
        for w in weights:
            ops.quantize_blocks(w, BLOCK, BLOCK, 1e-10, False)

    return {
        "values": sum(w.numel() for w in weights),
        "ms": {
            "copy of as many bytes": milliseconds(lambda: other.copy_(half), flush),
            "quantize_many": milliseconds(lambda: quantize_many(weights, out, check=False), flush),
            "a call a weight": milliseconds(one_by_one, flush),
        },
    }


def bench_products(size: tuple[int, int, int], flush: Any) -> dict[str, Any]:
    """Milliseconds of a layer: our kernel, PyTorch's block product where there is one, and bfloat16."""
    import torch

    from glmcore.fp8 import cuda, ops, torch_products

    rows, columns, depth = size
    x = torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(columns, depth, device="cuda", dtype=torch.bfloat16)
    q, scale, _ = ops.quantize_blocks(w, BLOCK, BLOCK, 1e-10, False)

    def ours() -> Any:
        a, a_scale, _ = cuda.quantize_groups(x, BLOCK, 1e-4, False, False)
        return cuda.multiply_blocks(a, a_scale, q, scale, None, torch.bfloat16)

    times = {"own kernel": milliseconds(ours, flush), "bfloat16": milliseconds(lambda: x @ w.t(), flush)}
    if torch_products.fits(x, w):
        times["torch block product"] = milliseconds(lambda: ops.fp8_linear(x, q, scale), flush)
    return {"rows, columns, depth": list(size), "ms": times}


def main() -> int:
    """Run all of it; 0 also where there is no card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    from glmcore import kernels

    if not kernels.is_available():
        print("benches/fp8_gpu.py: no NVIDIA GPU with cuda.core here, nothing is measured", file=sys.stderr)
        return 0
    import torch

    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "quantize": [bench_quantize(shape, flush) for shape in SIZES],
        "many": bench_many(flush),
        "products": [bench_products(size, flush) for size in PRODUCTS],
    }
    if args.json:
        print(json.dumps(report))
        return 0
    print(f"{report['device']}, torch {report['torch']}")
    for part in report["quantize"]:
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in part["GB_per_s"].items())
        print(f"quantise {part['shape']}, GB/s: {rates}; codes and scales that differ: {part['differing_codes']}")
    for part in (report["many"], *report["products"]):
        times = ", ".join(f"{name} {time:.3f}" for name, time in part["ms"].items())
        print(f"{next(iter(part.items()))}, ms: {times}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
