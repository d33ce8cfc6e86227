"""Encoding speed beside Hugging Face tokenizers, interleaved in one run.

Real text: the standard library's sources, which neither has seen. Same vocabulary, one thread, ids compared.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers

from glmcore import train_tokenizer


def megabytes_per_second(encode: Callable[[str], object], texts: list[str]) -> float:
    """Speed of one pass in 10^6 bytes of UTF-8 a second of process time."""
    size = sum(len(text.encode()) for text in texts)
    started = time.process_time()
    for text in texts:
        encode(text)
    return size / 1e6 / (time.process_time() - started)


def main() -> None:
    """Print a line for each size of text: both speeds and their ratio, medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=8_192)
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    ours = train_tokenizer(texts[::2], args.vocab_size, progress=False)
    with tempfile.TemporaryDirectory() as scratch:
        ours.save(Path(scratch) / "tokenizer.json")
        theirs = tokenizers.Tokenizer.from_file(str(Path(scratch) / "tokenizer.json"))
    fresh = texts[1::2]
    print(f"{'text':>12}  {'glmcore MB/s':>13}  {'tokenizers MB/s':>15}  ratio")
    for size in (200, 5_000, 1_000_000):
        parts = [text[:size] for text in fresh]
        assert all(ours.encode(part) == theirs.encode(part).ids for part in parts)
        speeds: list[tuple[float, float]] = [
            (megabytes_per_second(ours.encode_to_numpy, parts), megabytes_per_second(theirs.encode, parts))
            for _ in range(args.rounds)
        ]
        own, peer = (statistics.median(column) for column in zip(*speeds, strict=True))
        print(f"{size:>12,}  {own:>13.1f}  {peer:>15.2f}  {own / peer:.1f}x")


if __name__ == "__main__":
    main()
