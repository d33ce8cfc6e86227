"""Speed of every cleaning function, near duplicates beside peers and exact similarity, accuracy of languages.

Megabytes (10^6 bytes of UTF-8) a second of CPU time, one thread, texts given as Python strings. Near duplicates are
searched in random texts with edited copies whose exact Jaccard similarity is computed for every pair; `datasketch` and
`rensa` take part if they are installed.

  python benches/cleaning.py
  python benches/cleaning.py --corpus en=texts.json --languages languages.json

A corpus is a JSON list of texts; languages are a JSON object of lists of texts by ISO 639-3 code.
"""

import argparse
import importlib.util
import itertools
import json
import os
import re
import sysconfig
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # of rensa

import numpy as np

from glmcore.data.cleaning import (
    Decontaminator,
    QualityClassifier,
    code_statistics,
    detect_language,
    exact_hashes,
    minhash_signatures,
    near_duplicates,
    quality_scores,
    reject_reasons,
    text_statistics,
)

SHINGLE, PERMUTATIONS, THRESHOLD = 5, 128, 0.8
ROUNDS = 3


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """The least CPU time of some calls, and what the last gave."""
    best, result = float("inf"), None
    for _ in range(ROUNDS):
        started = time.process_time()
        result = call()
        best = min(best, time.process_time() - started)
    return best, result


def megabytes(texts: Iterable[str]) -> float:
    """Size of texts."""
    return sum(len(text.encode()) for text in texts) / 1e6


def speeds(name: str, texts: list[str]) -> None:
    """One line for each function."""
    size = megabytes(texts)
    print(f"\n{name}: {len(texts):,} texts, {size:.1f} MB")
    signatures = minhash_signatures(texts)
    classifier = QualityClassifier.train(texts[:200], np.arange(min(200, len(texts))) % 2 == 0)
    evaluation = Decontaminator(texts[:: max(1, len(texts) // 200)])
    statistics = text_statistics(texts)
    calls: dict[str, Callable[[], Any]] = {
        "text_statistics": lambda: text_statistics(texts, 1),
        "code_statistics": lambda: code_statistics(texts, 1),
        "rules and quality_scores": lambda: (
            reject_reasons(statistics, languages=np.full(len(texts), "eng")),
            quality_scores(statistics),
        ),
        "detect_language": lambda: detect_language(texts, 1),
        "classifier scores": lambda: classifier.scores(texts, 1),
        "exact_hashes": lambda: exact_hashes(texts, 1),
        f"minhash_signatures, {PERMUTATIONS}": lambda: minhash_signatures(texts, PERMUTATIONS, num_threads=1),
        "near_duplicates": lambda: near_duplicates(signatures, num_threads=1),
        "signatures and near_duplicates": lambda: near_duplicates(
            minhash_signatures(texts, num_threads=1), num_threads=1
        ),
        f"Decontaminator, {evaluation.num_runs:,} runs": lambda: evaluation.overlaps(texts, 1),
    }
    for call, work in calls.items():
        seconds, _ = cpu_seconds(work)
        print(f"  {call:<34} {size / seconds:10.1f} MB/s", flush=True)


def edited_texts(num_families: int, seed: int = 0) -> list[str]:
    """Texts of random words, 40 to 400, and three copies of each with 0 to 8 % of the words replaced."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(num_families):
        words = rng.zipf(1.3, rng.integers(40, 400)) % 50_000
        texts.append(words)
        for rate in rng.uniform(0, 0.08, 3):
            replaced = rng.random(len(words)) < rate
            texts.append(np.where(replaced, rng.integers(0, 50_000, len(words)), words))
    return [" ".join(f"w{word:x}" for word in words) for words in texts]


def shingles(text: str) -> list[str]:
    """Runs of words, as the peers take them."""
    words = re.findall(r"\w+", text.lower())
    return [" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))]


def clusters(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Cluster of each text, by pairs."""
    parent = list(range(count))

    def root(text: int) -> int:
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for a, b in pairs:
        parent[root(a)] = root(b)
    return [root(text) for text in range(count)]


def exact_pairs(texts: list[str]) -> list[tuple[int, int]]:
    """Every pair at least as similar as the threshold, by sets of shingles."""
    sets = [set(shingles(text)) for text in texts]
    holders: defaultdict[str, list[int]] = defaultdict(list)
    common: Counter[tuple[int, int]] = Counter()
    for text, own in enumerate(sets):
        for shingle in own:
            common.update((other, text) for other in holders[shingle])
            holders[shingle].append(text)
    union = {(a, b): len(sets[a]) + len(sets[b]) - both for (a, b), both in common.items()}
    return [pair for pair, both in common.items() if both >= THRESHOLD * union[pair]]


def by_glmcore(texts: list[str]) -> list[int]:
    """Clusters of copies."""
    return near_duplicates(
        minhash_signatures(texts, PERMUTATIONS, SHINGLE, num_threads=1), THRESHOLD, num_threads=1
    ).kept_in_place_of.tolist()


def by_glmcore_exactly(texts: list[str]) -> list[int]:
    """Clusters of copies, compared by their texts."""
    signatures = minhash_signatures(texts, PERMUTATIONS, SHINGLE, num_threads=1)
    return near_duplicates(signatures, THRESHOLD, texts=texts, shingle=SHINGLE, num_threads=1).kept_in_place_of.tolist()


def by_datasketch(texts: list[str]) -> list[int]:
    """Clusters of candidates whose signatures agree."""
    import datasketch

    sets = [[shingle.encode() for shingle in shingles(text)] for text in texts]
    hashes = datasketch.MinHash.bulk(sets, num_perm=PERMUTATIONS)
    index = datasketch.MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    pairs = []
    for text, own in enumerate(hashes):
        pairs.extend((text, other) for other in index.query(own) if own.jaccard(hashes[other]) >= THRESHOLD)
        index.insert(text, own)
    return clusters(len(texts), pairs)


def by_rensa(texts: list[str]) -> list[int]:
    """Clusters of candidates whose signatures agree."""
    import rensa

    hashes = rensa.RMinHash.from_token_sets([shingles(text) for text in texts], PERMUTATIONS, 42)
    index = rensa.RMinHashLSH(THRESHOLD, PERMUTATIONS, 16)
    index.insert_many(hashes)
    found = index.query_all(hashes)
    pairs = ((text, other) for text, others in enumerate(found) for other in others if other < text)
    return clusters(len(texts), (pair for pair in pairs if hashes[pair[0]].jaccard(hashes[pair[1]]) >= THRESHOLD))


def copies_beside_peers(num_families: int) -> None:
    """Recall, precision and speed of each implementation."""
    texts = edited_texts(num_families)
    exact = exact_pairs(texts)
    truth = clusters(len(texts), exact)
    size = megabytes(texts)
    print(
        f"\nnear duplicates: {len(texts):,} texts, {size:.1f} MB, {len(exact):,} pairs of exact Jaccard >= {THRESHOLD}"
    )
    print(f"  {'':<34} {'MB/s':>8} {'recall':>8} {'precision':>10}   of pairs in one cluster")
    ways = {"glmcore": by_glmcore, "glmcore, texts compared": by_glmcore_exactly}
    peers = {"datasketch": by_datasketch, "rensa": by_rensa}
    ways |= {name: way for name, way in peers.items() if importlib.util.find_spec(name)}
    for name, way in ways.items():
        seconds, found = cpu_seconds(lambda: way(texts))  # noqa: B023  # called at once
        wanted, got = pairs_within(truth), pairs_within(found)
        recall, precision = len(wanted & got) / len(wanted), len(wanted & got) / max(1, len(got))
        print(f"  {name:<34} {size / seconds:8.1f} {recall:8.4f} {precision:10.4f}", flush=True)
    seconds, _ = cpu_seconds(lambda: [shingles(text) for text in texts])
    print(f"  {'(shingles in Python, for the peers)':<34} {size / seconds:8.1f}")


def pairs_within(cluster_of: list[int]) -> set[tuple[int, int]]:
    """All pairs of texts of one cluster."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for text, cluster in enumerate(cluster_of):
        members[cluster].append(text)
    return {pair for texts in members.values() for pair in itertools.combinations(texts, 2)}


def language_accuracy(labelled: dict[str, list[str]]) -> None:
    """Share of texts whose language is found, at three lengths."""
    lengths = (100, 300, 2000)
    print("\nlanguages: share found at " + ", ".join(f"{length} characters" for length in lengths))
    totals = np.zeros((len(lengths), 2))
    for code, texts in labelled.items():
        middles = [[text[len(text) // 2 :][:length] for text in texts] for length in lengths]
        found = [detect_language(middle).codes for middle in middles]
        shares = [(codes == code).mean() for codes in found]
        others = Counter(other for other in found[-1].tolist() if other != code).most_common(2)
        print(f"  {code}  {len(texts):>5}  " + "  ".join(f"{share:6.3f}" for share in shares) + f"  {others or ''}")
        totals += [[share * len(texts), len(texts)] for share in shares]
    print("  all         " + "  ".join(f"{right / count:6.3f}" for right, count in totals))


def source_files() -> list[str]:
    """The standard library."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    return [file.read_text(encoding="utf-8", errors="replace") for file in files if "site-packages" not in file.parts]


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="append", default=[], metavar="NAME=FILE.json")
    parser.add_argument("--languages", type=Path, metavar="FILE.json")
    parser.add_argument("--families", type=int, default=2000, help="texts with three copies each")
    args = parser.parse_args()
    speeds("standard library", source_files())
    for corpus in args.corpus:
        name, _, place = corpus.partition("=")
        speeds(name, json.loads(Path(place).read_text(encoding="utf-8")))
    copies_beside_peers(args.families)
    if args.languages:
        language_accuracy(json.loads(args.languages.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
