"""A GLM checkpoint that answers as scripted: its weights are written by hand instead of learned.

Nothing of the server is replaced. The checkpoint is of the ordinary layout, one layer deep, and the ordinary tokenizer,
engine, parser and server run it. A reply is cut into pieces, each a token of its own, so that a token tells which one
follows it, and the head holds that table. Which reply begins depends on what the prompt holds: an attention head for each
rule looks for the token of that rule (such as `<|observation|>`, which stands there once a tool has answered).

Legend: V vocabulary, D hidden size: a channel for each token that the script knows, one for all others, one a rule.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.tokenizer import Tokenizer, train_tokenizer

HEAD_DIM = 8
"""Of it the leading half is rotated; scores use the first channel that is not."""
SCORE = 30.0
"""Score of the token that a head looks for; others have 0. Among 65,536 tokens it still gets 1 - e**(11 - 30) of the
weight."""
FOLLOWS, BEGINS, RULE = 100.0, 10.0, 5.0
"""Logits, before the scale of the last norm: the next piece of a reply; the first piece of the first reply; and what a
rule adds to the first piece of its reply, times its number."""
PIECE = 9
"""Characters of a piece, or a few more to make it the only one of its kind."""
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Reply:
    """What the model says, and when."""

    content: str
    thinking: str = ""
    call: str = ""
    """A tool call as the model writes it, see `tool_call`."""
    when: str = ""
    """Token that the prompt must hold; replies that come later in the script win. The first has none."""

    @property
    def end(self) -> str:
        return "<|observation|>" if self.call else "<|user|>"


def tool_call(name: str, **arguments: str) -> str:
    """A call in the format of GLM-4.6."""
    written = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in arguments.items())
    return f"\n<tool_call>{name}\n{written}</tool_call>"


def write_scripted_model(directory: Path, script: Sequence[Reply], context: int = 4096) -> Path:
    """Write a checkpoint that answers as `script` says, with or without thinking, at any temperature up to 1."""
    thoughts, contents = _cut(script)
    beside = directory.with_name(f"{directory.name}-tokenizer")
    tokenizer = _write_tokenizer(beside, [piece for part in (*thoughts, *contents) for piece in part])
    ids = [[tokenizer.token_to_id(piece) for piece in part] for part in (*thoughts, *contents)]
    thought_ids, content_ids = ids[: len(script)], ids[len(script) :]
    watched = [tokenizer.token_to_id(reply.when) for reply in script[1:]]
    thinks, thinks_not = (tokenizer.token_to_id(token) for token in ("<|assistant|>", "</think>"))
    known = sorted({thinks, thinks_not, *watched, *(token for part in ids for token in part)})
    channel = {token: number for number, token in enumerate(known)}
    config = GlmConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=math.ceil((len(known) + 1 + len(watched)) / 16) * 16,
        intermediate_size=16,
        num_hidden_layers=1,
        first_k_dense_replace=1,
        num_attention_heads=max(len(watched), 1),
        num_key_value_heads=max(len(watched), 1),
        head_dim=HEAD_DIM,
        use_qk_norm=False,
        n_routed_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        num_nextn_predict_layers=0,
        max_position_embeddings=context,
        eos_token_id=[tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|user|>", "<|observation|>")],
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
    )
    with torch.no_grad():
        model = Glm(config)
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        table = model.get_parameter("model.embed_tokens.weight")
        table[:, len(known)] = 1.0
        for token, number in channel.items():
            table[token] = torch.eye(config.hidden_size)[number]
        _look_for(model, [channel[token] for token in watched], len(known) + 1)
        head = model.get_parameter("lm_head.weight")
        for number, reply in enumerate(script):
            end = tokenizer.token_to_id(reply.end)
            chain = [*thought_ids[number], *content_ids[number], end]
            for token, follower in pairwise(chain):
                head[follower, channel[token]] = FOLLOWS
            for start, first in ((thinks, chain[0]), (thinks_not, content_ids[number][0])):
                head[first, channel[start]] = BEGINS - (1.0 if number else 0.0)
                if number:
                    head[first, len(known) + number] = RULE * number
    model.save_pretrained(directory)
    for file in beside.iterdir():
        file.rename(directory / file.name)
    return directory


def _look_for(model: Glm, channels: Sequence[int], flags: int) -> None:
    """Head h attends to the tokens of channel h wherever they are, and sets flag h."""
    width = math.sqrt(model.config.hidden_size)  # the norm makes a lone 1 this large
    layer = "model.layers.0.self_attn"
    query, key, value, out = (
        model.get_parameter(f"{layer}.{name}")
        for name in ("q_proj.bias", "k_proj.weight", "v_proj.weight", "o_proj.weight")
    )
    for number, channel in enumerate(channels):
        row = number * HEAD_DIM + HEAD_DIM // 2
        query[row] = SCORE * math.sqrt(HEAD_DIM)
        key[row, channel] = 1.0 / width
        value[row, channel] = 1.0 / width
        out[flags + number, row] = 1.0


def _cut(script: Sequence[Reply]) -> tuple[list[list[str]], list[list[str]]]:
    """Thinking and content of each reply in pieces, no two of them equal."""
    seen: set[str] = set()
    thoughts = [_pieces(f"\n<think>{reply.thinking}</think>", seen) for reply in script]
    contents = [_pieces(f"\n{reply.content}{reply.call}", seen) for reply in script]
    return thoughts, contents


def _pieces(text: str, seen: set[str]) -> list[str]:
    pieces: list[str] = []
    while text:
        length = PIECE
        while text[:length] in seen and length < len(text):
            length += 1
        if text[:length] in seen:
            if not pieces:
                raise ValueError(f"{text!r} stands twice in the script")
            text = pieces.pop() + text
            seen.add(text)
            return [*pieces, text]
        pieces.append(text[:length])
        seen.add(pieces[-1])
        text = text[length:]
    return pieces


def _write_tokenizer(directory: Path, pieces: Sequence[str]) -> Tokenizer:
    """A tokenizer learned from this project's own text, with the pieces as further tokens that are not special."""
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    train_tokenizer(texts, vocab_size=1200, progress=False).save(directory)
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    first = 1 + max(token["id"] for token in content["added_tokens"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content["added_tokens"] += [{"id": first + i, "content": piece, **flags} for i, piece in enumerate(pieces)]
    file.write_text(json.dumps(content), encoding="utf-8")
    return Tokenizer.from_pretrained(directory)
