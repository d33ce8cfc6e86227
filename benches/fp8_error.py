"""How exact block-wise FP8 is: layers and logits of a trained nano model against those of its bfloat16 weights.

All arithmetic is float32, so that what is seen is the formats': weights in 128x128 blocks, and activations of quantised
layers in 1x128 groups, each with float32 or power-of-two (UE8M0) scales. Embeddings, head, norms and routers stay.

    python benches/fp8_error.py                    # trains a small model first, a minute or two
    python benches/fp8_error.py runs/nano/export/bf16 --json
"""

import argparse
import contextlib
import copy
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import glmcore.model.moe as moe
from glmcore import Glm, Tokenizer
from glmcore.fp8 import WeightPublisher, WeightReceiver, dequantize_blocks, quantize_groups
from glmcore.fp8.layout import is_quantized
from glmcore.model.layout import DocumentLayout
from glmcore.model.weights import hf_views
from glmcore.recipe import RECIPES, Recipe

GROUP = 128
TRAINING = """
[run]
dir = "{dir}"
num_threads = 1
[corpus]
prose_bytes = 600_000
code_bytes = 600_000
repository_bytes = 60_000
git_bytes = 5_000
problems = {{ chain_sum = 500 }}
[tokenizer]
training_bytes = 1_000_000
[[train.stages]]
name = "general"
kind = "pretrain"
mixture = {{ prose = 1.0, code = 1.0 }}
sequence_length = 256
packing = "concat"
rope_theta = 10_000.0
num_tokens = {tokens}
batch_tokens = 2_048
"""
"""The nano recipe with less of everything and one stage."""


def trained(directory: Path, steps: int) -> Path:
    """A checkpoint of the nano model after some steps."""
    from glmcore.data.prepare import prepare
    from glmcore.rl.stage import load_policy
    from glmcore.rundir import open_run
    from glmcore.train.stages import train_stages

    file = directory / "less.toml"
    file.write_text(TRAINING.format(dir=directory / "run", tokens=2_048 * steps))
    with open_run(Recipe.load([RECIPES / "nano.toml", file])) as run:
        prepare(run)
        train_stages(run)
        load_policy(run)[0].save_pretrained(run.export / "bf16")
        Tokenizer.from_pretrained(str(run.tokenizer)).save(str(run.export / "bf16"))
        return run.export / "bf16"


def groups(x: Tensor, scale_format: Any) -> Tensor:
    """Activations as an FP8 product sees them."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    if not flat.numel():
        return x
    q, scale = quantize_groups(flat, GROUP, scale_format)
    return dequantize_blocks(q, scale, (1, GROUP), torch.float32).view(x.shape)


@contextlib.contextmanager
def quantized_activations(model: Glm, scale_format: str | None) -> Iterator[None]:
    """Round what goes into every quantised layer; nothing without a format."""
    if scale_format is None:
        yield
        return
    plain = moe.grouped_linear
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: (groups(inputs[0], scale_format),))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and is_quantized(f"{name}.weight")
    ]
    moe.grouped_linear = lambda rows, weight, ends: plain(groups(rows, scale_format), weight, ends)
    try:
        yield
    finally:
        moe.grouped_linear = plain
        for hook in hooks:
            hook.remove()


def kind_of(name: str, module: nn.Module) -> str | None:
    """The row of the table that a module counts to."""
    if isinstance(module, moe.Experts):
        return "routed experts, both products"
    if not (isinstance(module, nn.Linear) and is_quantized(f"{name}.weight")):
        return None
    if ".self_attn." in name:
        return "attention o" if name.endswith("o_proj") else "attention q, k, v"
    return "shared experts" if ".shared_experts." in name else "dense feed-forward"


def with_fp8_weights(model: Glm, scale_format: Any) -> Glm:
    """A copy that holds what an FP8 checkpoint does."""
    held = copy.deepcopy(model)
    receiver = WeightReceiver(hf_views(held.state_dict()), 0)
    for bucket in WeightPublisher(scale_format=scale_format).publish(0, model.state_dict()):
        receiver.load(bucket)
    receiver.finish()
    return held


def logits(model: Glm, ids: Tensor, length: int) -> Tensor:
    """Scores of rows of `length` tokens."""
    rows = len(ids) // length
    layout = DocumentLayout.from_cu_seqlens(np.arange(rows + 1, dtype=np.int32) * length)
    return model.logits(model(ids, torch.arange(length).repeat(rows), layout).hidden)


def relative(got: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of what is expected."""
    return float((got - expected).norm() / expected.norm())


@torch.no_grad()
def measure(model: Glm, ids: Tensor, length: int) -> dict[str, dict[str, float]]:
    """Figures of each variant."""
    seen: dict[str, tuple[Any, Tensor]] = {}

    def remember(name: str) -> Callable[..., None]:
        return lambda _, inputs, output: seen.__setitem__(name, (inputs, output))

    hooks = [m.register_forward_hook(remember(name)) for name, m in model.named_modules() if kind_of(name, m)]
    expected = logits(model, ids, length).log_softmax(-1)
    for hook in hooks:
        hook.remove()

    def figures(variant: Glm, activations: str | None) -> dict[str, float]:
        errors: dict[str, list[float]] = defaultdict(list)
        with quantized_activations(variant, activations):
            for name, module in variant.named_modules():
                kind = kind_of(name, module)
                if kind and name in seen:
                    inputs, output = seen[name]
                    errors[kind].append(relative(module(*inputs), output))
            got = logits(variant, ids, length).log_softmax(-1)
        kl = (expected.exp() * (expected - got)).sum(-1)
        return {f"{kind}, relative error": float(np.mean(values)) for kind, values in errors.items()} | {
            "KL of the next token, nats, mean": float(kl.mean()),
            "KL of the next token, nats, 99th percentile": float(kl.quantile(0.99)),
            "same most likely token": float((got.argmax(-1) == expected.argmax(-1)).float().mean()),
        }

    told = {}
    for scale_format in ("float32", "ue8m0"):
        fp8 = with_fp8_weights(model, scale_format)
        told[f"weights, {scale_format}"] = figures(fp8, None)
        told[f"weights and activations, {scale_format}"] = figures(fp8, scale_format)
    return told


def text_ids(directory: Path, count: int, vocab_size: int) -> Tensor:
    """Tokens of a module of the standard library."""
    text = Path(argparse.__file__).read_text(encoding="utf-8")
    ids = Tokenizer.from_pretrained(str(directory)).encode(text)
    assert max(ids) < vocab_size
    return torch.tensor(ids[:count])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", help="Glm4Moe checkpoint with tokenizer (default: train one)"
    )
    parser.add_argument("--steps", type=int, default=60, help="of the training")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.checkpoint or trained(Path(scratch), args.steps)
        model = Glm.from_pretrained(directory, dtype=torch.float32)
        ids = text_ids(directory, args.rows * args.length, model.config.vocab_size)
        ids = ids[: len(ids) // args.length * args.length]
        loss = torch.nn.functional.cross_entropy(logits(model, ids, args.length)[:-1].detach(), ids[1:])
        told = measure(model, ids, args.length)
    if args.json:
        print(json.dumps({"tokens": len(ids), "loss": float(loss), "variants": told}, indent=1))
        return
    print(f"{len(ids)} tokens, cross-entropy {float(loss):.2f} nats with bfloat16 weights\n")
    print("| | " + " | ".join(told) + " |\n|" + " --- |" * (len(told) + 1))
    for row in next(iter(told.values())):
        cells = (f"{v[row]:.1%}" if "same" in row or "relative" in row else f"{v[row]:.1e}" for v in told.values())
        print(f"| {row} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
