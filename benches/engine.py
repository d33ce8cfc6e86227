"""Generation beside transformers, from the same weights: decoded tokens per second of CPU time, interleaved.

Models have random weights and no stop token; both sides decode greedily, float32, one thread. transformers runs
`generate` with its dynamic cache under every implementation of attention and experts that it has; the fastest counts.
Whole calls of two lengths are timed, and the difference counts: reading the prompt is left out on both sides.

    python benches/engine.py --repeats 5
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

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


def transformers_models(directory: Path) -> dict[str, torch.nn.Module]:
    """The model under each implementation of its attention and experts."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    models = {}
    for attention in ("sdpa", "eager"):
        for experts in ("eager", "batched_mm", "grouped_mm"):
            models[f"{attention}, {experts}"] = transformers.Glm4MoeForCausalLM.from_pretrained(
                directory, dtype=torch.float32, attn_implementation=attention, experts_implementation=experts
            ).eval()
    return models


def seconds(call) -> float:
    """CPU time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def per_second(generate, batch: int) -> float:
    """Tokens per second of CPU time, from the difference of two lengths."""
    short, long = (seconds(lambda length=length: generate(length)) for length in LENGTHS)
    return batch * (LENGTHS[1] - LENGTHS[0]) / (long - short)


def compare(name: str, batch: int, repeats: int) -> None:
    """One line of the table."""
    model = Glm(GlmConfig(**MODELS[name])).init_weights(seed=0)
    prompts = torch.randint(2, 8192, (batch, PROMPT), generator=torch.Generator().manual_seed(batch))
    engine = Engine(model, [])

    def ours(length: int) -> None:
        params = SamplingParams(max_tokens=length, temperature=0.0)
        engine.generate(prompts.tolist(), [params] * batch)

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "m")
        peers = transformers_models(Path(folder) / "m")

    def theirs(peer: torch.nn.Module, length: int) -> None:
        mask = torch.ones_like(prompts)
        peer.generate(prompts, attention_mask=mask, max_new_tokens=length, min_new_tokens=length, do_sample=False)

    generators = {"glmcore": ours} | {key: lambda n, peer=peer: theirs(peer, n) for key, peer in peers.items()}
    rates = {key: [] for key in generators}
    for repeat in range(repeats + 1):
        for key, generate in generators.items():
            rate = per_second(generate, batch)
            if repeat:  # the first is for warming up
                rates[key].append(rate)
    median = {key: statistics.median(values) for key, values in rates.items()}
    own = median.pop("glmcore")
    best = max(median, key=median.__getitem__)
    print(f"| {name} | {batch} | {own:,.0f} | {median[best]:,.0f} ({best}) | {own / median[best]:.1f} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | batch | glmcore tokens/s | transformers tokens/s | ratio |\n| --- | --- | --- | --- | --- |")
    for name in MODELS:
        for batch in args.batches:
            compare(name, batch, args.repeats)


if __name__ == "__main__":
    main()
