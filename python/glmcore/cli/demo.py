"""Demonstrations: `glmcore demo search`."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from glmcore.cli.verb import add_verb
from glmcore.errors import RequestError


def add_verbs(verbs: Any) -> None:
    """Declare them."""
    demo = add_verb(verbs, "demo", "show what the model does as an agent", "  glmcore demo search --help")
    shows = demo.add_subparsers(required=True, metavar="DEMO")
    search = add_verb(
        shows,
        "search",
        "answer a question from your own documents: the model searches them turn by turn and cites what it found",
        '  glmcore demo search "How is a run resumed?" docs README.md --url http://127.0.0.1:8000/v1\n'
        '  glmcore demo search "What is packed?" docs --model runs/nano --json',
    )
    search.add_argument("question")
    search.add_argument("documents", nargs="+", type=Path, help="files, or folders of them")
    which = search.add_mutually_exclusive_group(required=True)
    which.add_argument("--url", help="OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    which.add_argument("--model", type=Path, help="run directory or checkpoint directory, run in this process")
    search.add_argument("--name", help="the model's name at the server (default: the first that it lists)")
    search.add_argument("--key-variable", default="OPENAI_API_KEY", help="environment variable with the API key")
    search.add_argument("--max-turns", type=_positive, default=8, help="most answers of the model (default: 8)")
    search.add_argument("--max-tokens", type=_positive, default=2048, help="most tokens of each (default: 2048)")
    search.add_argument("--json", action="store_true", help="print answer, sources and steps as JSON")
    search.set_defaults(command=_search)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _search(args: argparse.Namespace) -> None:
    from glmcore.demo.passages import read_passages
    from glmcore.demo.search import Step, search

    if not args.question.strip():
        raise RequestError("the question is empty")
    passages = read_passages(args.documents)
    print(f"{len(passages)} passages", file=sys.stderr)

    def tell(step: Step) -> None:
        print(f"{step.tool} {json.dumps(step.arguments, ensure_ascii=False)}", file=sys.stderr)

    finding = search(_model(args), passages, args.question, max_turns=args.max_turns, on_step=tell)
    if args.json:
        sources = [{"number": source.number, "source": source.source} for source in finding.sources]
        steps = [vars(step) for step in finding.steps]
        print(
            json.dumps(
                {"answer": finding.answer, "sources": sources, "steps": steps, "num_turns": finding.num_turns},
                ensure_ascii=False,
            )
        )
        return
    print(finding.answer)
    for source in finding.sources:
        print(f"[{source.number}] {source.source}")


def _model(args: argparse.Namespace) -> Any:
    from glmcore.cli.models import find_checkpoint
    from glmcore.demo.models import LocalModel, ServerModel

    if args.url:
        key = os.environ.get(args.key_variable)
        return ServerModel(args.url, args.name, api_key=key, max_tokens=args.max_tokens)
    return LocalModel(find_checkpoint(args.model), max_tokens=args.max_tokens)
