"""A training step on rollouts that share their prompt, as trees and one by one.

Forward pass, cross-entropy of the answers and backward pass of a small model in float32 on one thread, both ways
interleaved, medians of `--repeats`. Losses are compared first.

    python benches/prefixes.py
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from packing import show

from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.layout import DocumentLayout
from glmcore.model.tree import TreeLayout
from glmcore.prefixes import share_prefixes
from glmcore.ragged import Ragged
from glmcore.train.loss import IGNORED, linear_cross_entropy
from glmcore.train.tree import tree_cross_entropy

CONFIG = GlmConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=128,
)


def ways(group: int, prompt: int, answer: int) -> tuple[dict[str, Callable[[], float]], int, int]:
    """A step both ways, and the tokens that each runs."""
    torch.set_num_threads(1)
    model = Glm(CONFIG).init_weights(0)
    generator = np.random.default_rng(0)
    first = generator.integers(0, CONFIG.vocab_size, prompt)
    rows = [np.concatenate((first, generator.integers(0, CONFIG.vocab_size, answer))) for _ in range(group)]
    flat = np.concatenate(rows).astype(np.int32)
    offsets = np.arange(group + 1, dtype=np.int64) * (prompt + answer)
    in_row = np.arange(prompt + answer)
    learned = np.tile(in_row >= prompt, group)
    labels = np.where(np.roll(learned, -1), np.roll(flat, -1), IGNORED)
    labels[offsets[1:] - 1] = IGNORED
    positions = torch.from_numpy(np.tile(in_row, group))

    def apart() -> float:
        model.zero_grad()
        layout = DocumentLayout.from_cu_seqlens(offsets)
        output = model(torch.from_numpy(flat).long(), positions, layout)
        loss = linear_cross_entropy(output.hidden, model.lm_head.weight, torch.from_numpy(labels).long())
        loss.backward()
        return float(loss.detach())

    forest = share_prefixes(Ragged(flat, offsets))

    def shared() -> float:
        model.zero_grad()
        forest = share_prefixes(Ragged(flat, offsets))
        layout = TreeLayout.from_forest(forest)
        ids = torch.from_numpy(forest.input_ids).long()
        output = model(ids, torch.from_numpy(forest.position_ids).long(), layout)
        weights = torch.from_numpy(forest.sum_over_samples(learned)).float()
        loss = tree_cross_entropy(output.hidden, model.lm_head.weight, ids, layout, weights)
        loss.backward()
        return float(loss.detach())

    return {"apart": apart, "shared": shared}, len(flat), len(forest.input_ids)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    table: list[dict[str, Any]] = []
    for group, prompt, answer in ((8, 256, 256), (8, 1024, 128), (16, 512, 64)):
        calls, tokens_apart, tokens_shared = ways(group, prompt, answer)
        losses = {name: call() for name, call in calls.items()}
        if abs(losses["apart"] / losses["shared"] - 1) > 1e-5:
            raise SystemExit(f"the losses differ: {losses}")
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(args.repeats):
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
        apart, shared = (statistics.median(seconds[name]) for name in ("apart", "shared"))
        table.append(
            {
                "samples": group,
                "prompt + answer": f"{prompt} + {answer}",
                "tokens apart": tokens_apart,
                "tokens shared": tokens_shared,
                "ms apart": 1e3 * apart,
                "ms shared": 1e3 * shared,
                "times as fast": apart / shared,
                "times fewer tokens": tokens_apart / tokens_shared,
            }
        )
    if args.json:
        print(json.dumps({"Shared prefixes": table}, indent=1))
    else:
        show("A training step on rollouts of one prompt", table)


if __name__ == "__main__":
    main()
