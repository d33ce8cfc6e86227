"""An optimiser step beside PyTorch's own optimisers, on the parameters of a small GLM.

`torch.optim.Muon` takes matrices one by one, so the peer gets every expert's projections as parameters of their own. It
orthogonalises in bfloat16; ours is shown in both types. AdamW's peer is `torch.optim.AdamW(fused=True)` after
`clip_grad_norm_(foreach=True)`; ours clips too. One thread, interleaved, medians of CPU time.

    python benches/optimizer.py
    python benches/optimizer.py --json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from packing import show
from torch import nn

from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.train.config import OptimizerConfig
from glmcore.train.muon import is_muon_parameter
from glmcore.train.optim import Optimizer

SIZES = {"64 x 128 experts": (128, 64), "128 x 256 experts": (256, 128), "256 x 512 experts": (512, 256)}
REPEATS = 9


def model_of(hidden: int, width: int) -> Glm:
    """Four layers, 16 experts in three of them and in the MTP layer."""
    config = GlmConfig(
        vocab_size=8192,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=4,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        n_routed_experts=16,
        num_experts_per_tok=2,
        moe_intermediate_size=width,
        max_position_embeddings=128,
        eos_token_id=[1],
        pad_token_id=1,
    )
    return Glm(config).init_weights(0)


def ours(hidden: int, width: int, config: OptimizerConfig) -> Callable[[], float]:
    """CPU seconds of a step of `Optimizer`."""
    model = model_of(hidden, width)
    optimizer = Optimizer(model, config)
    gradients = [torch.randn_like(parameter) for parameter in model.parameters()]

    def step() -> float:
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        started = time.process_time()
        optimizer.step(1e-3)
        return time.process_time() - started

    return step


def peer(hidden: int, width: int, *, muon: bool) -> Callable[[], float]:
    """CPU seconds of the same with PyTorch's optimisers."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model_of(hidden, width).named_parameters():
        if muon and is_muon_parameter(name, parameter):
            parts = 2 if name.endswith("gate_up_proj") else 1
            stack = parameter.detach().reshape(-1, parameter.shape[-2] // parts, parameter.shape[-1])
            matrices += [nn.Parameter(matrix.clone()) for matrix in stack]
        else:
            rest.append(parameter)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, fused=True, weight_decay=0.1)]
    if muon:
        optimizers.append(torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw"))
    parameters = matrices + rest
    gradients = [torch.randn_like(parameter) for parameter in parameters]

    def step() -> float:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        started = time.process_time()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        for optimizer in optimizers:
            optimizer.step()
        return time.process_time() - started

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (hidden, width) in SIZES.items():
        steps = {
            "AdamW": ours(hidden, width, OptimizerConfig(matrices="adamw")),
            "torch AdamW": peer(hidden, width, muon=False),
            "Muon float32": ours(hidden, width, OptimizerConfig()),
            "Muon bfloat16": ours(hidden, width, OptimizerConfig(newton_schulz="bfloat16")),
            "torch Muon bfloat16": peer(hidden, width, muon=True),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in steps}
        for repeat in range(REPEATS + 1):
            for kind, step in steps.items():
                taken = step()
                if repeat:
                    seconds[kind].append(taken)
        million = sum(parameter.numel() for parameter in model_of(hidden, width).parameters()) / 1e6
        medians = {kind: round(statistics.median(values) * 1e3, 1) for kind, values in seconds.items()}
        rows.append({"model": name, "M parameters": round(million, 1), **{f"{k}, ms": v for k, v in medians.items()}})
    if arguments.json:
        print(json.dumps(rows))
    else:
        show("CPU time of an optimiser step, one thread", rows)


if __name__ == "__main__":
    main()
