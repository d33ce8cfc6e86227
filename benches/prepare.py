"""From JSON lines to shards, straight and by the whole preparation, beside the tokenizer alone, in one interleaved run.

Run `python benches/prepare.py [--tokenizer PATH] [--megabytes N]`. The tokenizer's own rate is that of
`Tokenizer.encode_batch`, freshly loaded, on the same texts in memory, on as many threads as there are workers. Rates
are by processor seconds of all processes, their start included, which other work on the machine disturbs least, and by
the clock; the best of the rounds.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from glmcore import Tokenizer, train_tokenizer
from glmcore.data import prepare
from glmcore.data.json_lines import tokenize_json_lines
from glmcore.data.shards import ShardWriter
from glmcore.recipe import DataRecipe

CHARS = 4_000
"""Length of a document at most: pages of the web are some 3,000 to 5,000 characters."""
CLEANINGS = {
    "as it is": 'exact_duplicates = "keep"',
    "without copies": 'exact_duplicates = "drop"',
    "without near copies": "near_duplicates = 0.8",
    "rules for code, near copies": 'rules = "code"\nnear_duplicates = 0.8',
}


def source_texts(num_bytes: int) -> Iterator[str]:
    """Stretches of installed Python sources."""
    for folder in ("/usr/lib/python3", *(str(path) for path in Path(os.__file__).parents[:1])):
        for file in sorted(Path(folder).rglob("*.py")):
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            for start in range(0, len(text), CHARS):
                if num_bytes <= 0:
                    return
                num_bytes -= CHARS
                yield text[start : start + CHARS] + "\n#"


def write_recipe(folder: Path, name: str, cleaning: str, threads: int, tokenizer: Path) -> DataRecipe:
    """A recipe with one source."""
    file = folder / f"{name}.toml"
    file.write_text(
        f'[run]\ndir = "{folder}/run"\nnum_threads = {threads}\n[tokenizer]\npath = "{tokenizer}"\n[data]\n'
        f'part_bytes = {16 << 20}\n[[data.sources]]\nname = "bench"\npaths = ["{folder}/bench.jsonl"]\n'
        f"[data.sources.cleaning]\n{cleaning}\n"
    )
    return DataRecipe.load([file])


def tokenize(folder: Path, tokenizer: Tokenizer, threads: int) -> None:
    """The lines straight to a shard."""
    (folder / "run").mkdir()
    with ShardWriter(folder / "run/bench.tokens", tokenizer.vocab_size) as writer:
        tokenize_json_lines([folder / "bench.jsonl"], writer, tokenizer, num_threads=threads)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Processor and clock seconds of a call, its progress not shown."""
    started, used = time.perf_counter(), processor_seconds()
    with contextlib.redirect_stderr(io.StringIO()):
        work()
    return processor_seconds() - used, time.perf_counter() - started


def processor_seconds() -> float:
    """Of this process and those that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json or its directory; default: one learned here")
    parser.add_argument("--megabytes", type=int, default=100, help="text to prepare (default: 100)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="glmcore-prepare-"))
    try:
        texts = list(source_texts(args.megabytes * 1_000_000))
        size = sum(len(text.encode()) for text in texts)
        with (folder / "bench.jsonl").open("w") as file:
            for number, text in enumerate(texts):
                file.write(json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n")
        if args.tokenizer is None:
            train_tokenizer(texts[:2_000], 16_384, progress=False).save(folder / "tokenizer")
        path = args.tokenizer or folder / "tokenizer"
        load = Tokenizer.from_pretrained if path.is_dir() else Tokenizer.from_file
        recipes = {name: write_recipe(folder, name, rule, args.threads, path) for name, rule in CLEANINGS.items()}
        best: dict[str, tuple[float, float]] = {}
        for _ in range(args.rounds):
            fresh = [load(path) for _ in range(2)]
            runs = {
                "encode_batch alone": lambda t=fresh[0]: t.encode_batch(texts, num_threads=args.threads),
                "tokenize_json_lines": lambda t=fresh[1]: tokenize(folder, t, args.threads),
            }
            runs |= {name: lambda recipe=recipe: prepare.run(recipe) for name, recipe in recipes.items()}
            for name, work in runs.items():
                shutil.rmtree(folder / "run", ignore_errors=True)
                best[name] = min(best.get(name, (float("inf"), 0.0)), timed(work))
    finally:
        shutil.rmtree(folder)
    print(f"{size / 1e6:.0f} MB in {len(texts):,} documents, {args.threads} threads, best of {args.rounds}")
    for name, (processor, clock) in best.items():
        ratio = best["encode_batch alone"][0] / processor
        print(
            f"{name:<28} {size / processor / 1e6:6.1f} MB/s and {len(texts) / processor:7,.0f} documents/s of a core, "
            f"{ratio:4.2f}x; by the clock {size / clock / 1e6:6.1f} MB/s"
        )


if __name__ == "__main__":
    main()
