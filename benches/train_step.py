"""A training step of our model beside `transformers`' Glm4MoeForCausalLM, on the CPU.

Forward pass, loss, backward pass and AdamW (PyTorch's fused one on both sides), the same sizes, the same tokens, MTP off.
The peer runs its fastest settings: `set_experts_implementation("grouped_mm")`, sdpa attention, eager or compiled whole;
ours runs eager or with compiled blocks. Two kinds of batches: rows of one document each, and rows that many documents of
log-normal lengths share. Of the second kind the peer gets the faster of its two ways, by padding (a row for each
document) or packed with position ids, each listed. Contenders run in turn in one process, every step on new tokens.
On one thread, time is that of the processor, which other programs distort less than the clock; on more it is the clock's.
Losses are compared first.

    python benches/train_step.py
    python benches/train_step.py --models reference --dtypes float32 --no-compile
    python benches/train_step.py --threads 1 2 --rounds 7 --json > train_step.json
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from packing import show

from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.layout import DocumentLayout
from glmcore.train.config import OptimizerConfig
from glmcore.train.loss import IGNORED, linear_cross_entropy
from glmcore.train.optim import Optimizer

COMMON: dict[str, Any] = {"vocab_size": 8192, "first_k_dense_replace": 1, "rope_theta": 10_000.0, "num_experts_per_tok": 2}
MODELS: dict[str, dict[str, Any]] = {
    "nano": {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "n_routed_experts": 16, "moe_intermediate_size": 64,
    },
    "reference": {
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 32, "n_routed_experts": 16, "moe_intermediate_size": 192,
    },
    "wide": {
        "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 64, "n_routed_experts": 16, "moe_intermediate_size": 384,
    },
}  # fmt: skip
"""Of the nano recipe; 18M parameters; 39M parameters."""
ROWS, LENGTH = 4, 512
NUM_BATCHES = 6
LEARNING_RATE = 1e-4


@dataclass
class Batch:
    """Documents one after another."""

    ids: torch.Tensor
    lengths: list[int]

    @property
    def positions(self) -> torch.Tensor:
        """Places of the tokens in their documents, [T]."""
        return torch.cat([torch.arange(length) for length in self.lengths])

    @property
    def labels(self) -> torch.Tensor:
        """The token after each, `IGNORED` at the end of a document, [T]."""
        labels = self.ids.roll(-1)
        labels[torch.tensor(self.lengths).cumsum(0) - 1] = IGNORED
        return labels


def batches(kind: str) -> list[Batch]:
    """Different tokens, and for packed rows different lengths, in each."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(NUM_BATCHES):
        lengths = []
        for _ in range(ROWS):
            left = LENGTH
            while left:
                wanted = LENGTH if kind == "whole" else int(generator.lognormal(4.0, 1.0)) + 2
                length = left if left - wanted < 2 else wanted
                lengths.append(length)
                left -= length
        # A skewed distribution, as words have: the routers see something of text's repetition.
        ids = (8192 * generator.random(ROWS * LENGTH) ** 3).astype(np.int64)
        made.append(Batch(torch.from_numpy(ids), lengths))
    return made


Step = Callable[[Batch], float]


def ours(config: dict[str, Any], dtype: torch.dtype, *, compiled: bool = False, muon: bool = False, mtp: bool = False) -> Step:
    """Our step."""
    model = Glm(GlmConfig(**COMMON, **config, num_nextn_predict_layers=int(mtp))).init_weights(0).to(dtype)
    adam = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    optimizer = Optimizer(model, OptimizerConfig()) if muon else None
    if compiled:
        model.compile_blocks()

    def step(batch: Batch) -> float:
        layout = DocumentLayout.from_cu_seqlens(np.concatenate(([0], np.cumsum(batch.lengths))))
        labels = batch.labels
        output = model(batch.ids, batch.positions, layout, with_mtp=mtp)
        head = model.lm_head.weight
        loss = total = linear_cross_entropy(output.hidden, head, labels) / int((labels != IGNORED).sum())
        if output.mtp_hidden is not None:
            total = loss + 0.3 * linear_cross_entropy(output.mtp_hidden, head, labels.roll(-1)) / len(labels)
        total.backward()
        if optimizer is not None:
            optimizer.step(LEARNING_RATE)
        else:
            adam.step()
            adam.zero_grad()
        return float(loss.detach())

    return step


def theirs(config: dict[str, Any], dtype: torch.dtype, way: str, *, compiled: bool = False) -> Step:
    """The peer's step; `way` is `whole`, `packed` or `padded`."""
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    fields = {**COMMON, **config, "use_qk_norm": True, "attention_bias": True, "norm_topk_prob": True}
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**fields, attn_implementation="sdpa")).to(dtype)
    mine = Glm(GlmConfig(**COMMON, **config, num_nextn_predict_layers=0)).init_weights(0)
    model.load_state_dict({name: value.to(dtype) for name, value in mine.state_dict().items()}, strict=False)
    model.set_experts_implementation("grouped_mm")
    model.train()
    adam = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    if compiled:
        model.compile()

    def step(batch: Batch) -> float:
        loss = model(**arguments(batch, way), use_cache=False).loss
        loss.backward()
        adam.step()
        adam.zero_grad()
        return float(loss.detach())

    return step


def arguments(batch: Batch, way: str) -> dict[str, torch.Tensor]:
    """What the peer is called with. It shifts labels itself, so each document's first one is ignored."""
    labels = batch.ids.clone()
    labels[torch.tensor(batch.lengths).cumsum(0) - torch.tensor(batch.lengths)] = IGNORED
    if way == "whole":
        return {"input_ids": batch.ids.view(ROWS, LENGTH), "labels": labels.view(ROWS, LENGTH)}
    if way == "packed":
        shape = (ROWS, LENGTH)
        return {"input_ids": batch.ids.view(shape), "labels": labels.view(shape), "position_ids": batch.positions.view(shape)}
    documents = batch.ids.split(batch.lengths)
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(list(documents), batch_first=True),
        "labels": pad(list(labels.split(batch.lengths)), batch_first=True, padding_value=IGNORED),
        "attention_mask": pad([torch.ones_like(ids) for ids in documents], batch_first=True),
    }


def contenders(config: dict[str, Any], dtype: torch.dtype, kind: str, *, compile_too: bool) -> dict[str, Step]:
    """What is measured, by name."""
    steps: dict[str, Step] = {"glmcore": ours(config, dtype)}
    ways = ["whole"] if kind == "whole" else ["packed", "padded"]
    for way in ways:
        steps[f"transformers, {way}"] = theirs(config, dtype, way)
    if compile_too:
        steps["glmcore, compiled blocks"] = ours(config, dtype, compiled=True)
        if kind == "whole":  # rows of ever new lengths would be compiled again and again
            steps["transformers, whole, compiled"] = theirs(config, dtype, "whole", compiled=True)
    steps["glmcore, Muon"] = ours(config, dtype, muon=True)
    steps["glmcore, with MTP"] = ours(config, dtype, mtp=True)
    return steps


def measure(steps: dict[str, Step], data: list[Batch], rounds: int) -> dict[str, float]:
    """Median seconds of a step, contenders in turn."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for warm_up in range(2):
        losses = {name: step(data[warm_up]) for name, step in steps.items()}
        first = losses["glmcore"]
        if warm_up == 0 and any(abs(loss - first) > 0.02 * first for name, loss in losses.items() if "MTP" not in name):
            raise SystemExit(f"the losses differ: {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name, step in steps.items():
            gc.collect()
            started = clock()
            step(data[turn % len(data)])
            seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--data", nargs="+", choices=["whole", "packed"], default=["whole", "packed"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    tables: dict[str, list[dict[str, Any]]] = {}
    for threads in args.threads:
        torch.set_num_threads(threads)
        for model in args.models:
            for dtype in args.dtypes:
                for kind in args.data:
                    title = f"{model}, {dtype}, {kind} rows, {threads} thread{'s' * (threads > 1)}"
                    print(f"measuring {title}", file=sys.stderr)
                    torch._dynamo.reset()
                    steps = contenders(MODELS[model], getattr(torch, dtype), kind, compile_too=args.compile)
                    medians = measure(steps, batches(kind), args.rounds)
                    tables[title] = [
                        {"": name, "ms a step": 1e3 * median, "tokens/s": ROWS * LENGTH / median,
                         "times glmcore": median / medians["glmcore"]}
                        for name, median in medians.items()
                    ]  # fmt: skip
                    if not args.json:
                        show(title, tables[title])
    if args.json:
        print(json.dumps({"torch": torch.__version__, "tables": tables}, indent=1))


if __name__ == "__main__":
    main()
