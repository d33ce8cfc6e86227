"""What drawing a batch of tokens costs, beside the head of the model; masks of constraints; drafts by the MTP layer.

Drawing is timed on scores like a language model's (a few likely tokens, a long tail), beside the straightforward way: a
full sort and a cumulative sum in float64 for every row. The head is the product that gives the scores, for a hidden
size of 128, which is small: a real model's step takes longer. One thread, interleaved, medians of CPU time.

    python benches/sampling.py
    python benches/sampling.py --tokenizer tokenizer.json --checkpoint runs/nano/export/bf16 --json
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
from torch import Tensor

from glmcore.engine.config import EngineConfig
from glmcore.engine.constrain import json_schema, tool_calls
from glmcore.engine.engine import Engine
from glmcore.engine.guide import Grammars, allowed_tokens
from glmcore.engine.sampler import Sampler
from glmcore.engine.sampling import SamplingParams
from glmcore.model.glm import Glm
from glmcore.tokenizer import Tokenizer

REPEATS = 9
HIDDEN = 128
BATCHES = ((256, 8_192), (16, 151_552))
REQUESTS: dict[str, dict[str, Any]] = {
    "default": {},
    "temperature 0": {"temperature": 0.0},
    "temperature 0.7": {"temperature": 0.7},
    "top_p 0.95": {"top_p": 0.95},
    "top_k 20": {"top_k": 20},
    "min_p 0.05": {"min_p": 0.05},
    "repetition 1.1": {"repetition_penalty": 1.1},
    "5 top log-probs": {"top_logprobs": 5},
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "address": {"type": "object", "properties": {"street": {"type": "string"}, "zip": {"type": "string"}}},
        "active": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "address", "active"],
}
REPLY = (
    '\n{"name": "Ada Lovelace of London", "age": 36, "tags": ["first programmer", "mathematics"], '
    '"address": {"street": "St James Square", "zip": "12345"}, "active": true}'
)
CALL = (
    "I will look it up at once.\n<tool_call>person\n<arg_key>name</arg_key>\n<arg_value>Ada Lovelace</arg_value>\n"
    "<arg_key>age</arg_key>\n<arg_value>36</arg_value>\n<arg_key>tags</arg_key>\n<arg_value>"
)


def milliseconds(*functions: Callable[[], object]) -> list[float]:
    """Median CPU time of each function, interleaved."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS):
        for function, taken in zip(functions, times, strict=True):
            started = time.process_time()
            function()
            taken.append(1e3 * (time.process_time() - started))
    return [statistics.median(taken) for taken in times]


def sorted_draw(logits: Tensor, uniform: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Every row sorted and summed, without a shortcut."""
    logprobs = (logits / (params.temperature or 1.0)).log_softmax(-1)
    ordered, ids = logprobs.double().exp().sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill((before >= params.top_p) | (ordered < params.min_p * ordered[:, :1]), 0)
    if params.top_k:
        ordered[:, params.top_k :] = 0
    cumulative = ordered.cumsum(-1)
    place = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    tokens = ids.gather(1, place.clamp(max=logits.shape[1] - 1))
    return tokens, logprobs.gather(1, tokens)


def drawing() -> list[dict[str, Any]]:
    """Time of a batch."""
    table = []
    for rows, vocab_size in BATCHES:
        scores = torch.randn(rows, vocab_size).abs().square() * 2
        hidden, head = torch.randn(rows, HIDDEN), torch.randn(vocab_size, HIDDEN)
        uniform = torch.rand(rows, dtype=torch.float64)
        for name, fields in REQUESTS.items():
            sampler = Sampler(vocab_size)
            params = SamplingParams(**fields)
            slots = [sampler.admit(SamplingParams(seed=seed, **fields), range(300)) for seed in range(rows)]
            copy, ours, plain, product = milliseconds(
                scores.clone,
                lambda sampler=sampler, slots=slots, scores=scores: sampler.draw(scores.clone(), slots),
                lambda scores=scores, uniform=uniform, params=params: sorted_draw(scores, uniform, params),
                lambda hidden=hidden, head=head: hidden @ head.T,
            )
            row = {"rows x vocabulary": f"{rows} x {vocab_size:,}", "request": name, "ms": ours - copy}
            table.append(row | {"sort, ms": plain, "head, ms": product, "part of the head": (ours - copy) / product})
    return table


def masks(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Time of compiling, and of the masks along a reply."""
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    grammars.compile(json_schema({"type": "null"}))  # what is done once for a tokenizer
    tools = [{"name": "person", "parameters": PERSON}]
    table = []
    for name, constraint, reply in (("schema", json_schema(PERSON), REPLY), ("tools, auto", tool_calls(tools), CALL)):
        started = time.process_time()
        grammars.compile(constraint)
        compiling = 1e3 * (time.process_time() - started)
        for rows in (1, 16):
            guides = [grammars.start(constraint, [tokenizer.token_to_id("<|user|>")]) for _ in range(rows)]
            times = []
            for token in tokenizer.encode(reply, special="parse"):
                started = time.process_time()
                allowed = allowed_tokens(guides, grammars)
                times.append(1e6 * (time.process_time() - started) / rows)
                assert allowed[:, token].all()
                for guide in guides:
                    guide.consume(token)
            row = {"constraint": name, "vocabulary": tokenizer.vocab_size, "compile, ms": compiling, "rows": rows}
            table.append(
                row | {"mask a row, us": statistics.median(times), "99 %, us": float(np.percentile(times, 99))}
            )
    return table


def drafts(checkpoint: str) -> list[dict[str, Any]]:
    """Speed of a checkpoint with and without drafts, and how many stay."""
    model, tokenizer = Glm.from_pretrained(checkpoint, dtype=torch.float32), Tokenizer.from_pretrained(checkpoint)
    source = tokenizer.encode(open(__file__, encoding="utf-8").read())  # noqa: PTH123, SIM115
    table = []
    for temperature in (0.0, 1.0):
        for rows in (1, 16):
            prompts = [source[start : start + 100] for start in range(0, 60 * rows, 60)]
            speed: dict[int, list[float]] = {0: [], 1: [], 2: []}
            kept = {}
            for _ in range(3):
                for count, taken in speed.items():
                    engine = Engine(model, [1], config=EngineConfig(num_draft_tokens=count))
                    params = [
                        SamplingParams(max_tokens=64, temperature=temperature, seed=i, ignore_eos=True)
                        for i in range(rows)
                    ]
                    started = time.process_time()
                    engine.generate(prompts, params)
                    taken.append(64 * rows / (time.process_time() - started))
                    stats = engine.stats()
                    kept[count] = stats.kept_drafts / max(stats.drafts, 1)
            plain = statistics.median(speed[0])
            for count, taken in speed.items():
                row = {"temperature": temperature, "sequences": rows, "drafts": count, "kept": kept[count]}
                table.append(
                    row | {"tokens/s": statistics.median(taken), "beside none": statistics.median(taken) / plain}
                )
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", help="a tokenizer.json with GLM's special tokens, for the masks")
    parser.add_argument("--checkpoint", help="a directory with an MTP layer, for the drafts")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tables = {"Drawing a batch": drawing()}
    if args.tokenizer:
        tables["Masks of constraints"] = masks(Tokenizer.from_file(args.tokenizer))
    if args.checkpoint:
        tables["Drafts by the MTP layer"] = drafts(args.checkpoint)
    if args.json:
        print(json.dumps(tables))
        return
    for title, table in tables.items():
        show(title, table)


if __name__ == "__main__":
    main()
