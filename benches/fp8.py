"""Quantising a bfloat16 weight beside eager PyTorch and a plain copy, interleaved in one run, one thread each."""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ["RAYON_NUM_THREADS"] = "1"

import torch

from glmcore.fp8 import quantize_blocks


def milliseconds(call: Callable[[], object]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def eager(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same arithmetic in PyTorch, for sides that 128 divides."""
    rows, columns = w.shape
    blocks = w.float().view(rows // 128, 128, columns // 128, 128)
    amax = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(min=1e-10)
    scale = amax / torch.full_like(amax, 448.0)
    q = (blocks / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return q.view(rows, columns), scale.squeeze(3).squeeze(1)


def main() -> None:
    """Print a line for each size: times and the ratio to PyTorch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'matrix':>11}  {'glmcore ms':>10}  {'eager ms':>9}  {'copy ms':>8}  eager / glmcore")
    for size in (512, 2048, 4096):
        w = torch.randn(size, size, dtype=torch.bfloat16)
        target = torch.empty_like(w)
        q, scale = quantize_blocks(w)
        expected_q, expected_scale = eager(w)
        assert torch.equal(q.view(torch.uint8), expected_q.view(torch.uint8))
        assert torch.equal(scale, expected_scale)
        calls = (lambda w=w: quantize_blocks(w), lambda w=w: eager(w), lambda w=w, t=target: t.copy_(w))
        rounds = [[milliseconds(call) for call in calls] for _ in range(args.rounds)]
        own, peer, copy = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{size:>5}x{size:<5}  {own:>10.2f}  {peer:>9.2f}  {copy:>8.2f}  {peer / own:.1f}x")


if __name__ == "__main__":
    main()
