"""The `glmcore` command: parse, build the configuration, call one function."""

import argparse
import errno
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmcore.errors import ConfigError, GlmcoreError, RequestError

if TYPE_CHECKING:
    from glmcore.recipe import Recipe

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 a glmcore error, 2 wrong usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        args.command(args)
    except GlmcoreError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print(f"\nglmcore: interrupted; {_how_to_resume(args)}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # the reader has left; nothing more can be said
        return 0
    except OSError as error:
        if error.errno in DISK_FULL:
            return _fail(f"no space left to write {error.filename or 'the run'}: free some and repeat the command")
        raise
    return 0


def entry_point() -> None:
    """The console script."""
    sys.exit(main())


def _fail(message: str) -> int:
    print(f"glmcore: error: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _how_to_resume(args: argparse.Namespace) -> str:
    if args.resumable:
        return "repeat the same command to go on from the last saved step"
    return "nothing was left half-written"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glmcore",
        description="The GLM-4.6 system, tokenizer to serving.",
        epilog="Every verb has its own --help with examples.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    parser.set_defaults(command=_version_or_help(parser), resumable=False)
    verbs = parser.add_subparsers(metavar="COMMAND")
    _add_run_verbs(verbs)
    _add_model_verbs(verbs)
    _add_tokenizer_verbs(verbs)
    return parser


def _version_or_help(parser: argparse.ArgumentParser) -> Any:
    def command(args: argparse.Namespace) -> None:
        if not args.version:
            parser.print_help(sys.stderr)
            parser.exit(2)
        from glmcore import __version__

        print(__version__)

    return command


def _verb(verbs: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    return verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_run_verbs(verbs: Any) -> None:
    quickstart = _verb(
        verbs,
        "quickstart",
        "go the whole road with a nano model: corpus, tokenizer, training, RL, export, report",
        "  glmcore quickstart\n  glmcore quickstart run.dir=runs/mine run.seed=1\n"
        "  glmcore quickstart --corpus ~/notes run.dir=runs/notes",
    )
    quickstart.add_argument("settings", nargs="*", metavar="FILE.toml|KEY=VALUE", help="recipe (default: nano)")
    quickstart.add_argument("--corpus", metavar="PATH", help="your own text, JSONL file or directory")
    quickstart.set_defaults(command=_quickstart, resumable=True)

    data = _verb(verbs, "data", "prepare the data of a recipe", "  glmcore data prepare nano run.dir=runs/mine")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    prepare = _verb(
        actions,
        "prepare",
        "collect the corpus, train the tokenizer, write token shards",
        "  glmcore data prepare nano run.dir=runs/mine corpus.problems.chain_sum=2000",
    )
    _add_settings(prepare, _prepare)
    train = _verb(verbs, "train", "run the training stages of a recipe", "  glmcore train nano run.dir=runs/mine")
    _add_settings(train, _train)
    rl = _verb(verbs, "rl", "run the RL stage of a recipe", "  glmcore rl nano run.dir=runs/mine")
    _add_settings(rl, _rl)

    report = _verb(
        verbs,
        "report",
        "write and print the report of a run",
        "  glmcore report runs/nano\n  glmcore report runs/nano --json | jq .rl",
    )
    report.add_argument("run", type=Path, help="run directory")
    form = report.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the figures as JSON")
    form.add_argument("--markdown", action="store_true", help="print the table of stations as Markdown")
    report.set_defaults(command=_report)


def _add_settings(parser: argparse.ArgumentParser, command: Any) -> None:
    parser.add_argument("settings", nargs="+", metavar="RECIPE|KEY=VALUE")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    parser.set_defaults(command=command, resumable=True)


def _add_model_verbs(verbs: Any) -> None:
    generate = _verb(
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

    chat = _verb(verbs, "chat", "talk to a model in the terminal", "  glmcore chat runs/nano")
    chat.add_argument("model", type=Path, help="run directory or checkpoint directory")
    _add_sampling(chat)
    chat.set_defaults(command=_chat)

    quantize = _verb(
        verbs,
        "quantize",
        "turn a bfloat16 checkpoint into block-wise FP8",
        "  glmcore quantize runs/nano/export/bf16 /tmp/nano-fp8",
    )
    quantize.add_argument("source", type=Path, help="Hugging Face checkpoint directory")
    quantize.add_argument("target", type=Path, help="directory to make")
    quantize.set_defaults(command=_quantize)

    info = _verb(
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


def _add_tokenizer_verbs(verbs: Any) -> None:
    tokenizer = _verb(
        verbs,
        "tokenizer",
        "train a tokenizer, encode and decode",
        "  glmcore tokenizer train corpus.txt my-tokenizer --vocab-size 8192\n"
        "  glmcore tokenizer encode runs/nano/tokenizer < corpus.txt",
    )
    actions = tokenizer.add_subparsers(required=True, metavar="ACTION")
    train = _verb(
        actions,
        "train",
        "train a tokenizer on text files",
        "  glmcore tokenizer train a.txt b.txt OUT --vocab-size 8192",
    )
    train.add_argument("files", nargs="+", type=Path, help="text files")
    train.add_argument("target", type=Path, help="directory to make")
    train.add_argument("--vocab-size", type=int, required=True)
    train.add_argument("--pattern", default="glm4", help="glm4, qwen2, cl100k, o200k, gpt2 or a regular expression")
    train.add_argument("--min-frequency", type=int, default=0, help="leave out rarer pairs")
    train.set_defaults(command=_tokenizer_train)
    for name, summary, command in (
        ("encode", "turn text on stdin into token ids, one line of them", _tokenizer_encode),
        ("decode", "turn token ids on stdin into text", _tokenizer_decode),
        ("info", "describe a tokenizer as JSON", _tokenizer_info),
    ):
        action = _verb(actions, name, summary, f"  glmcore tokenizer {name} runs/nano/tokenizer")
        action.add_argument("tokenizer", help="directory or tokenizer.json")
        action.set_defaults(command=command)


def _load_recipe(settings: list[str], default: str | None = None, extra: list[str] | None = None) -> "Recipe":
    from glmcore.recipe import Recipe, find_recipe

    files = [setting for setting in settings if "=" not in setting]
    overrides = [setting for setting in settings if "=" in setting]
    if not files:
        if default is None:
            raise ConfigError("no recipe given: name a TOML file or a packaged recipe such as nano")
        files = [default]
    return Recipe.load([find_recipe(file) for file in files], overrides + (extra or []))


def _recipe_or_print(args: argparse.Namespace) -> "Recipe | None":
    recipe = _load_recipe(args.settings)
    if not args.dry_run:
        return recipe
    import tomli_w

    print(tomli_w.dumps(recipe.model_dump(exclude_none=True)), end="")
    return None


def _quickstart(args: argparse.Namespace) -> None:
    extra = [] if args.corpus is None else [f"corpus.path={json.dumps(str(Path(args.corpus).absolute()))}"]
    recipe = _load_recipe(args.settings, default="nano", extra=extra)
    from glmcore.quickstart import quickstart

    quickstart(recipe)


def _prepare(args: argparse.Namespace) -> None:
    recipe = _recipe_or_print(args)
    if recipe:
        from glmcore.data import prepare

        prepare.run(recipe)


def _train(args: argparse.Namespace) -> None:
    recipe = _recipe_or_print(args)
    if recipe:
        from glmcore import train
        from glmcore.data import prepare

        prepare.run(recipe)
        train.run(recipe)


def _rl(args: argparse.Namespace) -> None:
    recipe = _recipe_or_print(args)
    if recipe:
        from glmcore import rl

        rl.run(recipe)


def _report(args: argparse.Namespace) -> None:
    from glmcore.report import format_table, summarize, write_report

    summary = summarize(args.run)
    page = write_report(args.run)
    if args.json:
        print(json.dumps(summary, indent=1, ensure_ascii=False))
        return
    print(format_table(summary, markdown=args.markdown))
    print(f"report: {page}", file=sys.stderr)


def _checkpoint(path: Path) -> Path:
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

    llm = LLM(_checkpoint(args.model))
    ids: Any = prompt
    if args.chat:
        turn = [{"role": "user", "content": prompt}]
        ids = apply_chat_template(llm.tokenizer, turn, add_generation_prompt=True).ids.tolist()
    [completion] = llm.generate([ids], _sampling(args))
    print(json.dumps(vars(completion), ensure_ascii=False) if args.json else completion.text)


def _chat(args: argparse.Namespace) -> None:
    from glmcore.engine.llm import LLM

    llm = LLM(_checkpoint(args.model))
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
    from glmcore.fp8 import quantize_checkpoint

    quantize_checkpoint(args.source, args.target)


def _info(args: argparse.Namespace) -> None:
    if args.model is None:
        from glmcore import __version__
        from glmcore.rundir import describe_machine

        print(json.dumps({"glmcore": __version__, **describe_machine()}, indent=1))
        return
    import torch

    from glmcore.model.config import GlmConfig
    from glmcore.model.glm import Glm

    directory = _checkpoint(args.model)
    config = GlmConfig.from_hf(directory / "config.json")
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Glm(config).parameters())
    print(json.dumps({"checkpoint": str(directory), "parameters": parameters, **config.model_dump()}, indent=1))


def _tokenizer_train(args: argparse.Namespace) -> None:
    from glmcore.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(args.files, args.vocab_size, args.pattern, min_frequency=args.min_frequency)
    tokenizer.save(args.target)


def _load_tokenizer(place: str) -> Any:
    from glmcore.tokenizer import Tokenizer

    return Tokenizer.from_pretrained(place) if Path(place).is_dir() else Tokenizer.from_file(place)


def _tokenizer_encode(args: argparse.Namespace) -> None:
    print(*_load_tokenizer(args.tokenizer).encode(sys.stdin.read()))


def _tokenizer_decode(args: argparse.Namespace) -> None:
    try:
        ids = [int(word) for word in sys.stdin.read().split()]
    except ValueError as error:
        raise RequestError(f"stdin must hold token ids: {error}") from None
    sys.stdout.write(_load_tokenizer(args.tokenizer).decode(ids))


def _tokenizer_info(args: argparse.Namespace) -> None:
    tokenizer = _load_tokenizer(args.tokenizer)
    special = [{"id": tokenizer.token_to_id(token), "token": token} for token in tokenizer.special_tokens]
    described = {"vocab_size": tokenizer.vocab_size, "patterns": tokenizer.patterns, "special_tokens": special}
    print(json.dumps(described, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    entry_point()
