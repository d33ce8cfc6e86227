"""Verbs that use a checkpoint: generate, chat, quantize, convert, info."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from glmcore.cli.recipes import load_recipe
from glmcore.cli.verb import add_verb
from glmcore.errors import RequestError


def add_verbs(verbs: Any) -> None:
    """Declare them."""
    generate = add_verb(
        verbs,
        "generate",
        "continue a text, or answer a question with --chat",
        '  glmcore generate runs/nano "def main"\n  glmcore generate runs/nano --chat "What is 3 + 4?" --json',
    )
    generate.add_argument("model", type=Path, help="run directory or checkpoint directory")
    generate.add_argument("prompt", help="text to continue; - reads it from stdin")
    generate.add_argument("--chat", action="store_true", help="put the prompt as a user's turn")
    generate.add_argument("--json", action="store_true", help="print text, tokens and log-probabilities")
    _add_sampling(generate)
    generate.set_defaults(command=_generate)

    chat = add_verb(verbs, "chat", "talk to a model in the terminal", "  glmcore chat runs/nano")
    chat.add_argument("model", type=Path, help="run directory or checkpoint directory")
    _add_sampling(chat)
    chat.set_defaults(command=_chat)

    quantize = add_verb(
        verbs,
        "quantize",
        "turn a bfloat16 checkpoint into block-wise FP8, or back",
        "  glmcore quantize runs/nano/export/bf16 /tmp/nano-fp8\n"
        "  glmcore quantize GLM-4.5-Air GLM-4.5-Air-FP8 --layout compressed-tensors --threads 4\n"
        "  glmcore quantize --back GLM-4.6-FP8 GLM-4.6-BF16\n  glmcore quantize --verify GLM-4.6-FP8",
    )
    quantize.add_argument("source", type=Path, help="Hugging Face checkpoint directory")
    quantize.add_argument("target", type=Path, nargs="?", help="directory to make")
    way = quantize.add_mutually_exclusive_group()
    way.add_argument("--back", action="store_true", help="from FP8, in either layout, to bfloat16")
    way.add_argument("--verify", action="store_true", help="compare SOURCE with its checksums and make nothing")
    quantize.add_argument("--layout", choices=["fp8", "compressed-tensors"], default="fp8", help="default: fp8")
    quantize.add_argument("--block", type=int, nargs=2, default=[128, 128], metavar=("ROWS", "COLUMNS"))
    quantize.add_argument("--scales", choices=["float32", "ue8m0"], default="float32", help="ue8m0: powers of two")
    quantize.add_argument("--threads", type=int, help="tensors at a time (default: all cores)")
    quantize.set_defaults(command=_quantize, resumable=True)

    convert = add_verb(
        verbs,
        "convert",
        "write a checkpoint of a run, or a Hugging Face one, in another form",
        "  glmcore convert runs/nano /tmp/nano-bf16 --to bf16\n"
        "  glmcore convert runs/nano/checkpoints/03-00000040 /tmp/nano-fp8 --to fp8\n"
        "  glmcore convert GLM-4.6-FP8 GLM-4.6-BF16 --to bf16\n"
        "  glmcore convert /tmp/nano-bf16 runs/more --to run --recipe nano run.seed=1 --stage sft",
    )
    convert.add_argument("source", type=Path, help="run directory, checkpoint of a run, or Hugging Face directory")
    convert.add_argument("target", type=Path, help="directory to make")
    convert.add_argument("--to", choices=["bf16", "fp8", "run"], required=True, help="form of the target")
    convert.add_argument(
        "--recipe", nargs="+", metavar="RECIPE|KEY=VALUE", help="what a run is to follow, with the checkpoint's model"
    )
    convert.add_argument("--stage", metavar="NAME", help="where a run is to begin: a stage, or rl (default: the first)")
    convert.add_argument("--threads", type=int, help="tensors at a time between bf16 and fp8 (default: all cores)")
    convert.set_defaults(command=_convert, resumable=True)

    info = add_verb(
        verbs,
        "info",
        "describe a checkpoint or this installation",
        "  glmcore info\n  glmcore info runs/nano",
    )
    info.add_argument("model", type=Path, nargs="?", help="run directory or checkpoint directory")
    info.set_defaults(command=_info)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint of a run directory, or `path` itself."""
    exported = path / "export" / "bf16"
    return exported if exported.is_dir() else path


def _sampling(args: argparse.Namespace) -> Any:
    from glmcore.engine.sampling import SamplingParams

    return SamplingParams(max_tokens=args.max_tokens, temperature=args.temperature, top_p=args.top_p, seed=args.seed)


def _generate(args: argparse.Namespace) -> None:
    prompt: str = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not prompt:
        raise RequestError("the prompt is empty")
    from glmcore.chat import apply_chat_template
    from glmcore.engine.llm import LLM

    llm = LLM(find_checkpoint(args.model))
    ids: Any = prompt
    if args.chat:
        turn = [{"role": "user", "content": prompt}]
        ids = apply_chat_template(llm.tokenizer, turn, add_generation_prompt=True).ids.tolist()
    [completion] = llm.generate([ids], _sampling(args))
    print(json.dumps(vars(completion), ensure_ascii=False) if args.json else completion.text)


def _chat(args: argparse.Namespace) -> None:
    from glmcore.engine.llm import LLM

    llm = LLM(find_checkpoint(args.model))
    params = _sampling(args)
    messages: list[dict[str, Any]] = []
    print("Type a message; an empty line or Ctrl-D ends the chat.", file=sys.stderr)
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not text.strip():
            return
        messages.append({"role": "user", "content": text})
        reply = llm.chat(messages, params)
        if reply.reasoning_content:
            print(f"[thinking] {reply.reasoning_content}", file=sys.stderr)
        print(reply.content, flush=True)
        messages.append({"role": "assistant", "content": reply.content, "reasoning_content": reply.reasoning_content})


def _quantize(args: argparse.Namespace) -> None:
    from glmcore.fp8 import dequantize_checkpoint, quantize_checkpoint, verify_checkpoint

    if args.verify:
        print(f"{args.source}: {verify_checkpoint(args.source)} files are what was written")
        return
    if args.target is None:
        raise RequestError("name the directory to make")
    if args.back:
        dequantize_checkpoint(args.source, args.target, num_threads=args.threads)
        return
    quantize_checkpoint(
        args.source,
        args.target,
        (args.block[0], args.block[1]),
        layout=args.layout,
        scale_format=args.scales,
        num_threads=args.threads,
    )


def _convert(args: argparse.Namespace) -> None:
    recipe = None if args.recipe is None else load_recipe(args.recipe)
    from glmcore.convert import convert

    convert(args.source, args.target, args.to, recipe=recipe, stage=args.stage, num_threads=args.threads)


def _info(args: argparse.Namespace) -> None:
    if args.model is None:
        from glmcore import __version__
        from glmcore.rundir import describe_machine

        print(json.dumps({"glmcore": __version__, **describe_machine()}, indent=1))
        return
    import torch

    from glmcore.model.config import GlmConfig
    from glmcore.model.glm import Glm

    directory = find_checkpoint(args.model)
    config = GlmConfig.from_hf(directory / "config.json")
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Glm(config).parameters())
    print(json.dumps({"checkpoint": str(directory), "parameters": parameters, **config.model_dump()}, indent=1))
