"""Verbs for data: data prepare, tokenize, inspect, stats."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmcore.cli.verb import add_verb
from glmcore.errors import ConfigError

if TYPE_CHECKING:
    from glmcore.data.inspection import Shown

_LENGTHS = ("p0", "p10", "p50", "p90", "p99", "p100", "mean")


def add_verbs(verbs: Any) -> None:
    """Declare them."""
    data = add_verb(
        verbs,
        "data",
        "prepare the data of a recipe, and look at what was prepared",
        "  glmcore data prepare nano run.dir=runs/mine\n  glmcore data inspect runs/mine --show 3\n"
        "  glmcore data stats runs/mine",
    )
    actions = data.add_subparsers(required=True, metavar="ACTION")
    prepare = add_verb(
        actions,
        "prepare",
        "read the sources, make the tokenizer, write token shards",
        "  glmcore data prepare nano run.dir=runs/mine corpus.problems.chain_sum=2000\n"
        "  glmcore data prepare my_data.toml\n  glmcore data prepare my_data.toml --engine ray",
    )
    prepare.add_argument("settings", nargs="+", metavar="RECIPE|KEY=VALUE")
    prepare.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    prepare.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="who does the work: this machine, or a Ray cluster"
    )
    prepare.set_defaults(command=_prepare, resumable=True)

    tokenize = add_verb(
        actions,
        "tokenize",
        "turn JSON lines into one token file, a document a line, without cleaning",
        "  glmcore data tokenize web-*.jsonl --tokenizer runs/nano/tokenizer --output web.tokens\n"
        "  glmcore data tokenize web.jsonl --tokenizer tokenizer.json --output web --megatron --field content",
    )
    tokenize.add_argument("files", nargs="+", type=Path, help="JSON objects, one a line")
    tokenize.add_argument("--tokenizer", type=Path, required=True, help="directory, tokenizer.json or .glmtok")
    tokenize.add_argument(
        "--output", type=Path, required=True, metavar="PATH", help="shard to write, or Megatron prefix"
    )
    tokenize.add_argument("--megatron", action="store_true", help="write PATH.bin and PATH.idx")
    tokenize.add_argument("--field", default="text", help="key of the text (default: text)")
    tokenize.add_argument("--threads", type=int, help="default: all cores")
    tokenize.add_argument("--json", action="store_true", help="print what was written as a JSON object")
    tokenize.set_defaults(command=_tokenize)

    inspect = add_verb(
        actions,
        "inspect",
        "show documents of prepared data as they are learned",
        "  glmcore data inspect runs/mine --show 3 --source web\n  glmcore data inspect runs/mine --verify --show 0\n"
        "  glmcore data inspect runs/mine/shards/web.tokens --json | jq .segments",
    )
    inspect.add_argument("path", type=Path, help="run directory, directory of shards, or a shard")
    inspect.add_argument("--show", type=int, default=3, metavar="N", help="documents of each source (default: 3)")
    inspect.add_argument("--source", metavar="NAME", help="only this source")
    inspect.add_argument("--max-chars", type=int, default=2_000, help="of a document at most (default: 2,000)")
    inspect.add_argument("--tokenizer", type=Path, help="default: the one that lies beside the shards")
    inspect.add_argument("--verify", action="store_true", help="read everything and compare it with the checksums")
    inspect.add_argument("--json", action="store_true", help="print a JSON object for each document")
    inspect.set_defaults(command=_inspect)

    stats = add_verb(
        actions,
        "stats",
        "count what prepared data holds: documents, tokens, lengths, rejects, duplicates",
        "  glmcore data stats runs/mine\n  glmcore data stats runs/mine --json | jq .sources[0].lengths",
    )
    stats.add_argument("path", type=Path, help="run directory or directory of shards")
    stats.add_argument("--source", metavar="NAME", help="only this source")
    stats.add_argument("--json", action="store_true", help="print everything as one JSON object")
    stats.set_defaults(command=_stats)


def _prepare(args: argparse.Namespace) -> None:
    from glmcore.recipe import find_recipe, load_data_recipe

    files = [setting for setting in args.settings if "=" not in setting]
    overrides = [setting for setting in args.settings if "=" in setting]
    if not files:
        raise ConfigError("no recipe given: name a TOML file or a packaged recipe such as nano")
    recipe = load_data_recipe([find_recipe(file) for file in files], overrides)
    if args.dry_run:
        import tomli_w

        print(tomli_w.dumps(recipe.model_dump(exclude_none=True)), end="")
        return
    from glmcore.data import prepare

    prepare.run(recipe, engine=args.engine, recheck=True)


def _tokenize(args: argparse.Namespace) -> None:
    from glmcore.data.json_lines import tokenize_json_lines
    from glmcore.data.megatron import MegatronWriter
    from glmcore.data.shards import ShardWriter
    from glmcore.progress import progress
    from glmcore.tokenizer import Tokenizer

    tokenizer = Tokenizer.open(args.tokenizer)
    writer_of = MegatronWriter if args.megatron else ShardWriter
    total = sum(path.stat().st_size for path in args.files if path.is_file())
    with progress("tokenize", total=total, unit="bytes") as bar, writer_of(args.output, tokenizer.vocab_size) as writer:
        done = tokenize_json_lines(
            args.files, writer, tokenizer, field=args.field, num_threads=args.threads, on_bytes=bar.advance
        )
    if args.json:
        print(json.dumps({"output": str(args.output), **vars(done)}))
    else:
        print(f"{args.output}: {done.num_documents:,} documents, {done.num_tokens:,} tokens", file=sys.stderr)


def _inspect(args: argparse.Namespace) -> None:
    from glmcore.data.inspection import Prepared
    from glmcore.tokenizer import Tokenizer

    found = Prepared.open(args.path).of_source(args.source)
    if args.verify:
        print(f"{found.verify()} shards are what was written", file=sys.stderr)
    if args.show < 1:
        return
    tokenizer = found.tokenizer() if args.tokenizer is None else Tokenizer.open(args.tokenizer)
    for document in found.show(args.show, tokenizer):
        if args.json:
            segments = [{"learned": learned, "text": text} for learned, text in document.segments]
            print(json.dumps({**vars(document), "segments": segments}, ensure_ascii=False))
        else:
            _print_document(document, args.max_chars)


def _print_document(document: "Shown", max_chars: int) -> None:
    bucket = "" if document.bucket is None else f", bucket {document.bucket}"
    print(
        f"== {document.file}, document {document.document}: source {document.source}{bucket}, "
        f"quality {document.quality:.3g}, {document.num_tokens:,} tokens, {document.num_learned:,} learned"
    )
    room = max_chars
    for learned, text in document.segments:
        shown = text[:room]
        room -= len(shown)
        for line in shown.splitlines() or [""]:
            print(f"{'+' if learned else '.'} {line}")
        if len(shown) < len(text) or not room:
            left = sum(len(text) for _, text in document.segments) - max_chars
            print(f"  ... {left:,} more characters")
            break


def _stats(args: argparse.Namespace) -> None:
    from glmcore.data.inspection import Prepared

    found = Prepared.open(args.path).of_source(args.source)
    told = found.statistics()
    if args.json:
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return
    sources = told["sources"]
    _print_table(
        ["source", "documents", "tokens", "text MB", "tokens/byte", "records", "rejected", "left out"],
        [
            [
                source["name"],
                f"{source['documents']:,}",
                f"{source['tokens']:,}",
                f"{source['text_bytes'] / 1e6:.2f}",
                f"{source['tokens_per_byte']:.3f}",
                f"{source['records']:,}",
                f"{sum(source['rejected'].values()):,}",
                f"{sum(source['dropped'].values()):,}",
            ]
            for source in sources
        ],
    )
    _print_table(
        ["tokens of a document", *_LENGTHS],
        [[source["name"], *(f"{source['lengths'][key]:,.0f}" for key in _LENGTHS)] for source in sources],
    )
    _print_table(
        ["quality bucket", "epochs", "documents", "tokens"],
        [
            [f"{source['name']}.{b['bucket']}", f"{b['epochs']:g}", f"{b['documents']:,}", f"{b['tokens']:,}"]
            for source in sources
            for b in source["buckets"]
            if b["bucket"] is not None
        ],
    )
    _print_table(
        ["not in the shards", "reason", "records"],
        [
            [source["name"], reason, f"{count:,}"]
            for source in sources
            for kind in ("rejected", "dropped")
            for reason, count in source[kind].items()
        ],
    )


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    """Columns, the first to the left and numbers to the right; nothing without rows."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, ["-" * width for width in widths], *rows]:
        print(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )
    print()
