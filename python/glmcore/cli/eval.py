"""The verb `eval`: a model against problems that programs verify, and one evaluation against another."""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmcore.cli.verb import add_verb
from glmcore.errors import RequestError

if TYPE_CHECKING:
    from glmcore.eval.models import Sampling, ServerModel
    from glmcore.eval.problems import EvalProblem
    from glmcore.eval.runner import RunOptions
    from glmcore.eval.summary import Row

COMPARE = "compare"


def add_verbs(verbs: Any) -> None:
    """Declare it."""
    parser = add_verb(
        verbs,
        "eval",
        "measure a model on verifiable problems, or compare two such measurements",
        "  glmcore eval runs/nano --suite reasoning-gym:chain_sum,gcd --samples 4\n"
        "  glmcore eval http://127.0.0.1:8000 --suite humaneval --suite math:aime.jsonl --samples 8 --out evals/a\n"
        "  glmcore eval compare evals/a evals/b",
    )
    parser.add_argument("model", metavar="DIR|URL|compare", help="run, checkpoint or OpenAI-compatible server")
    parser.add_argument("runs", nargs="*", type=Path, metavar="A B", help="for compare: two directories of evaluations")
    parser.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="SUITE",
        help="reasoning-gym:TASK,... or humaneval or math:FILE, choice:FILE, code:FILE (JSON lines); may be repeated",
    )
    parser.add_argument("--out", type=Path, help="directory of the evaluation (default: made of model and suites)")
    parser.add_argument("--limit", type=int, help="most problems of a suite or generator (generators: 100)")
    parser.add_argument("--samples", type=int, default=1, help="answers to each problem (default: 1)")
    parser.add_argument("--max-tokens", type=int, default=2_048)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--no-thinking", action="store_true", help="ask for answers without thinking")
    parser.add_argument("--seed", type=int, default=0, help="of problems and draws (default: 0)")
    parser.add_argument("--concurrency", type=int, default=32, help="answers under way at a time (default: 32)")
    parser.add_argument("--timeout", type=float, default=1_800.0, help="seconds for one answer (default: 1800)")
    parser.add_argument("--name", help="the model's name at a server (default: the first it lists)")
    parser.add_argument("--sandbox", choices=["bubblewrap", "subprocess"], default="bubblewrap", help="for programs")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(command=_eval, resumable=True)


def _eval(args: argparse.Namespace) -> None:
    if args.model == COMPARE:
        _compare(args)
        return
    if args.runs:
        raise RequestError("one model at a time: name it, then --suite; to compare evaluations say: eval compare A B")
    if not args.suite:
        raise RequestError("name what to measure with --suite, such as --suite reasoning-gym:chain_sum")
    for name in ("samples", "concurrency", "max_tokens", "timeout", "limit"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise RequestError(f"--{name.replace('_', '-')} must be above 0")
    from glmcore.envs.sandbox.config import SandboxConfig
    from glmcore.eval.models import Sampling
    from glmcore.eval.problems import load_suites
    from glmcore.eval.records import read_settings
    from glmcore.eval.runner import RunOptions, write_summary
    from glmcore.eval.summary import markdown

    problems = load_suites(args.suite, limit=args.limit, seed=args.seed)
    sampling = Sampling(args.max_tokens, args.temperature, args.top_p, not args.no_thinking)
    options = RunOptions(args.concurrency, args.timeout, SandboxConfig(kind=args.sandbox))
    directory = args.out or Path("evals") / _slug("-".join([args.model, *args.suite]))
    rows = _measure(args, problems, directory, sampling, options)
    told = write_summary(directory, read_settings(directory), rows)
    print(
        json.dumps(told, indent=1, ensure_ascii=False) if args.json else markdown(rows), end="\n" if args.json else ""
    )
    print(f"answers and figures: {directory}", file=sys.stderr)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.")[:120]


def _measure(
    args: argparse.Namespace,
    problems: "list[EvalProblem]",
    directory: Path,
    sampling: "Sampling",
    options: "RunOptions",
) -> "list[Row]":
    import asyncio

    from glmcore.eval.models import EngineModel, ServerModel
    from glmcore.eval.runner import evaluate

    async def run(model: "EngineModel | ServerModel") -> "list[Row]":
        try:
            if isinstance(model, ServerModel):
                await model.find()
            return await evaluate(
                model,
                problems,
                args.suite,
                directory,
                num_samples=args.samples,
                seed=args.seed,
                sampling=sampling,
                options=options,
            )
        finally:
            await model.close()

    if re.match(r"https?://", args.model):
        return asyncio.run(run(ServerModel(args.model, args.name, os.environ.get("OPENAI_API_KEY"), args.timeout)))
    from glmcore.cli.models import find_checkpoint
    from glmcore.engine.llm import LLM
    from glmcore.engine.service import EngineService

    llm = LLM(find_checkpoint(Path(args.model)))

    async def run_here() -> "list[Row]":
        service = EngineService(llm.engine)
        try:
            return await run(EngineModel(service, llm.tokenizer, str(Path(args.model).absolute())))
        finally:
            await service.close()

    return asyncio.run(run_here())


def _compare(args: argparse.Namespace) -> None:
    if len(args.runs) != 2:
        raise RequestError(f"eval compare takes two directories of evaluations, not {len(args.runs)}")
    from glmcore.eval.compare import compare, markdown

    rows = compare(*args.runs)
    print(json.dumps([row.to_dict() for row in rows], indent=1) if args.json else markdown(rows).rstrip())
