"""Tokenizing speed beside every installed peer, interleaved in one run, ids compared.

Megabytes (10^6 bytes of UTF-8) a second of CPU time, one thread. Each implementation lives in a process of its own and
only one works at a time. `fresh` is text the process has not seen (after a warm-up on other text), `repeated` the same
text again, `cold` the first text of the process.

  python benches/tokenizer.py
  python benches/tokenizer.py --corpus en=docs/ --corpus c=linux/kernel --rounds 5 --json result.json
"""

import argparse
import importlib.util
import json
import multiprocessing
import statistics
import sysconfig
from collections import defaultdict
from pathlib import Path
from typing import Any

import vocabularies
from tokenizer_peers import MODULES, PEERS, serve

ADVERSARIAL = 1 << 20


class Worker:
    """A peer's process."""

    def __init__(self, name: str, place: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, place, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.loaded = self.connection.recv()

    def ask(self, kind: str, data: Any = None) -> Any:
        """Send a request and wait for its answer."""
        self.connection.send((kind, data))
        return self.connection.recv()

    def stop(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join(5)
        self.process.kill()


def read_corpus(place: Path, limit: int) -> list[str]:
    """Documents of a JSON list, a text file or a directory."""
    if place.suffix == ".json":
        documents = json.loads(place.read_text(encoding="utf-8"))
    else:
        files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
        documents = []
        for file in files:
            try:
                documents.append(file.read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                continue
            if sum(map(len, documents)) > limit:
                break
    size, taken = 0, []
    for document in documents:
        if size >= limit:
            break
        taken.append(document)
        size += len(document.encode())
    return taken


def size_of(texts: list[str]) -> int:
    """Bytes of UTF-8."""
    return sum(len(text.encode()) for text in texts)


def speed_rows(workers: dict[str, Worker], name: str, documents: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Speeds of each peer on one corpus, and whether all give the same ids."""
    parts = [documents[place :: rounds + 1] for place in range(rounds + 1)]
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    equal = dict.fromkeys(workers, True)
    for number, part in enumerate(parts):
        answers = {}
        lists = [text[:100_000] for text in part[: max(1, len(part) // 4)]]
        for peer, worker in workers.items():
            fresh = worker.ask("docs", part)
            if isinstance(fresh, str):
                equal[peer] = False
                continue
            answers[peer] = fresh[1]
            if number == 0:
                continue
            seconds[peer, "fresh"].append(size_of(part) / fresh[0] / 1e6)
            seconds[peer, "repeated"].append(size_of(part) / worker.ask("docs", part)[0] / 1e6)
            spent = worker.ask("list", lists)
            if spent:
                seconds[peer, "to list"].append(size_of(lists) / spent / 1e6)
        for peer, digest in answers.items():
            equal[peer] &= digest == answers["glmcore"]
    columns = ("fresh", "repeated", "to list")
    rows = {}
    for peer in workers:
        row: dict[str, Any] = {c: statistics.median(seconds[peer, c]) for c in columns if seconds[peer, c]}
        rows[peer] = row | {"same ids": equal[peer]}
    return rows


def adversarial_cases(seed: int) -> dict[str, str]:
    """Texts of 1 MiB on which tokenizers have been slow; what is random in them depends on the seed.

    So does the length of a run, by a few characters: a cache of words does not know it from another draw.
    """
    import random

    rng = random.Random(seed)
    length = ADVERSARIAL + 16 * seed
    cjk = [chr(code) for code in range(0x4E00, 0x9FA5)]
    common = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
    letters = "abcdefghijklmnopqrstuvwxyz"
    every = [chr(code) for code in range(1, 0x11_0000) if not 0xD800 <= code < 0xE000]
    base64 = letters + letters.upper() + "0123456789+/"

    def fill(alphabet: Any, width: int = 1) -> str:
        return "".join(rng.choices(alphabet, k=ADVERSARIAL // width))

    return {
        "run of a": "a" * length,
        "run of blanks": " " * length,
        "run of =": "=" * length,
        "run of newlines": "\n" * length,
        "run of 0": "0" * length,
        "run of a CJK character": "中" * (length // 3),
        "run of an emoji": "🙂" * (length // 4),
        "abab": "ab" * (length // 2),
        "random letters": fill(letters),
        "random bytes as Latin-1": fill([chr(code) for code in range(256)], 2),
        "common CJK": fill(common, 3),
        "random CJK": fill(cjk, 3),
        "base64": fill(base64),
        "hexadecimal": fill("0123456789abcdef"),
        "random emoji": fill([chr(code) for code in range(0x1F300, 0x1F600)], 4),
        "random Unicode": fill(every, 4),
        "random punctuation": fill('!"#$%&()*+,-./:;<=>?@[]^_{|}~'),
        "random white space": fill(" \t\n\r\u00a0\u3000"),
    }


def adversarial_rows(workers: dict[str, Worker], rounds: int) -> dict[str, dict[str, Any]]:
    """Speed at 1 MiB of each peer by case, that of glmcore at 64 KiB, and the ratio of the two.

    Every text is a new draw, so that no round knows the words of another.
    """
    for worker in workers.values():
        worker.ask("docs", ["first words"])
    speeds: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for number in range(rounds):
        short = adversarial_cases(2 * number + 1)
        for case, text in adversarial_cases(2 * number).items():
            answers: dict[str, Any] = {peer: worker.ask("docs", [text]) for peer, worker in workers.items()}
            for peer, answer in answers.items():
                same = not isinstance(answer, str) and answer[1] == answers["glmcore"][1]
                failed = "error" if isinstance(answer, str) else "wrong"
                speeds[case, peer].append(size_of([text]) / float(answer[0]) / 1e6 if same else failed)
            piece = len(text) // 16
            many = [short[case][piece * place : piece * (place + 1)] for place in range(16)]
            spent = workers["glmcore"].ask("docs", many)[0]
            speeds[case, "glmcore 64 KiB"].append(size_of(many) / spent / 1e6)
    rows: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for (case, column), values in speeds.items():
        failures = [value for value in values if isinstance(value, str)]
        rows[case][column] = failures[0] if failures else statistics.median(values)
    for row in rows.values():
        row["1 MiB / 64 KiB"] = row["glmcore"] / row["glmcore 64 KiB"]
    return rows


def other_rows(workers: dict[str, Worker], documents: list[str], place: str) -> dict[str, dict[str, Any]]:
    """Decoding, loading and memory."""
    from glmcore import Tokenizer

    tokenizer = Tokenizer.from_file(place)
    documents = [document for document in documents if document][:500]
    ids = [tokenizer.encode(document) for document in documents]
    rows: dict[str, dict[str, Any]] = {peer: {} for peer in workers}
    for peer, worker in workers.items():
        for kind in ("decode_list", "decode_array"):
            times = [worker.ask(kind, ids) for _ in range(3)]
            if times[0] and not isinstance(times[0], str):
                rows[peer][kind.replace("_", " ")] = size_of(documents) / min(times) / 1e6
        rows[peer] |= worker.loaded | {"rss after all, MB": worker.ask("memory")}
    return rows


def cold_rows(names: list[str], place: str, documents: list[str]) -> dict[str, float]:
    """Speed on the first 40 MB that a process sees."""
    speeds: dict[str, float] = {}
    for name in names:
        worker = Worker(name, place)
        answer = worker.ask("docs", documents)
        if not isinstance(answer, str):
            speeds[name] = size_of(documents) / answer[0] / 1e6
        worker.stop()
    return speeds


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print a Markdown table."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print(f"\n{title}\n\n| | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 1))
    for name, row in rows.items():
        cells = [row.get(column, "-") for column in columns]
        print(f"| {name} | " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--corpus", action="append", default=[], metavar="NAME=PLACE", help="JSON list, file or directory"
    )
    parser.add_argument("--vocabulary", default="glm4", choices=list(vocabularies.PACKAGES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=16, help="taken of each corpus")
    parser.add_argument("--peer", action="append", help="only these (default: all installed)")
    parser.add_argument("--only", action="append", choices=["speed", "adversarial", "other", "cold"])
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    args = parser.parse_args()
    place = str(vocabularies.tokenizer_json(args.vocabulary))
    corpora = dict(corpus.split("=", 1) for corpus in args.corpus) or {"py": sysconfig.get_paths()["stdlib"]}
    texts = {name: read_corpus(Path(path), args.megabytes * 1_000_000) for name, path in corpora.items()}
    names = [name for name in PEERS if importlib.util.find_spec(MODULES[name])]
    names = [name for name in names if name == "glmcore" or not args.peer or name in args.peer]
    wanted = args.only or ["speed", "adversarial", "other", "cold"]
    results: dict[str, Any] = {}
    if "cold" in wanted:
        last = list(texts)[-1]
        results["cold"] = {last: cold_rows(names, place, read_corpus(Path(corpora[last]), 40_000_000))}
        show("First 40 MB of a process, MB/s", results["cold"])
    workers = {name: Worker(name, place) for name in names}
    workers = {name: worker for name, worker in workers.items() if not isinstance(worker.loaded, str)}
    if "speed" in wanted:
        for name, documents in texts.items():
            results[name] = speed_rows(workers, name, documents, args.rounds)
            show(f"{name}, MB/s", results[name])
            for column in ("fresh", "repeated", "to list"):
                others = [row[column] for peer, row in results[name].items() if peer != "glmcore" and column in row]
                if others:
                    print(f"{column}: {results[name]['glmcore'][column] / max(others):.2f}x the best peer")
    if "other" in wanted:
        results["other"] = other_rows(workers, next(reversed(texts.values())), place)
        show("Decoding (MB/s), loading, memory", results["other"])
    if "adversarial" in wanted:
        results["adversarial"] = adversarial_rows(workers, args.rounds)
        show("Worst cases of 1 MiB, MB/s", results["adversarial"])
    for worker in workers.values():
        worker.stop()
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
