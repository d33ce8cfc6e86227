"""Cleaning a corpus: numbers about texts, rules over them, language, quality, copies, overlap with evaluations.

Every function takes a batch of texts and gives numpy arrays with one entry per text. The loops over text are in Rust,
on `num_threads` threads (None for all cores), without the interpreter; Ctrl-C ends them after a chunk of 8 MB. Results
do not depend on the number of threads. docs/cleaning.md has every definition and its source.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from glmcore import _core
from glmcore.data.duplicates import Duplicates, exact_duplicates
from glmcore.data.quality import QualityBuckets, epochs_of_buckets, quality_scores
from glmcore.data.rules import CODE_RULES, WEB_RULES, Rejections, Rule, reject_reasons, with_thresholds
from glmcore.data.semantic import semantic_duplicates
from glmcore.durable import atomic_file
from glmcore.errors import DataError

__all__ = [
    "CODE_DTYPE",
    "CODE_RULES",
    "TEXT_DTYPE",
    "WEB_RULES",
    "Decontaminator",
    "Duplicates",
    "Languages",
    "Overlaps",
    "QualityBuckets",
    "QualityClassifier",
    "Rejections",
    "Rule",
    "code_statistics",
    "detect_language",
    "epochs_of_buckets",
    "exact_duplicates",
    "exact_hashes",
    "jaccard",
    "minhash_signatures",
    "near_duplicates",
    "quality_scores",
    "reject_reasons",
    "semantic_duplicates",
    "text_statistics",
    "with_thresholds",
]

TEXT_DTYPE = np.dtype([(name, np.float64) for name in _core.TEXT_FIELDS])
"""One record of `text_statistics`."""
CODE_DTYPE = np.dtype([(name, np.float64) for name in _core.CODE_FIELDS])
"""One record of `code_statistics`."""


def text_statistics(texts: Iterable[str], num_threads: int | None = None) -> npt.NDArray[np.void]:
    """What the published filters look at in prose: a structured array of `TEXT_DTYPE`, one record per text.

    Shares are from 0 to 1, lengths in characters. A field is `statistics["mean_word_length"]`, float64 [texts].
    """
    return _core.text_statistics(_listed(texts), num_threads or 0).view(TEXT_DTYPE)[:, 0]


def code_statistics(texts: Iterable[str], num_threads: int | None = None) -> npt.NDArray[np.void]:
    """What the published filters look at in source files: a structured array of `CODE_DTYPE`, one record per text."""
    return _core.code_statistics(_listed(texts), num_threads or 0).view(CODE_DTYPE)[:, 0]


@dataclass(frozen=True)
class Languages:
    """Language and script of each text."""

    codes: npt.NDArray[np.str_]
    """ISO 639-3, such as "eng", "cmn", "deu"; "" for a text without letters."""
    scripts: npt.NDArray[np.str_]
    """Script of most letters, such as "Latin", "Cyrillic", "Mandarin"; "" for a text without letters."""
    confidence: npt.NDArray[np.float64]
    """How far the language is ahead of the next likely one, from 0 to 1; it is no probability."""


def detect_language(texts: Iterable[str], num_threads: int | None = None) -> Languages:
    """Language of each text out of 69, by script, letters and trigrams of at most 2 KiB spread over it."""
    codes, scripts, confidence = _core.detect_language(_listed(texts), num_threads or 0)
    return Languages(np.array(codes, np.str_), np.array(scripts, np.str_), confidence)


def exact_hashes(texts: Iterable[str], num_threads: int | None = None) -> npt.NDArray[np.uint64]:
    """128 bits of each text, uint64 [texts, 2], upper half first; equal for texts that differ in white space only."""
    return _core.exact_hashes(_listed(texts), num_threads or 0)


def minhash_signatures(
    texts: Iterable[str],
    num_permutations: int = 128,
    shingle: int = 5,
    seed: int = 1,
    num_threads: int | None = None,
) -> npt.NDArray[np.uint32]:
    """MinHash signature of each text, uint32 [texts, num_permutations].

    The share of equal entries of two rows estimates the Jaccard similarity of the texts' sets of shingles, with a
    standard deviation of `sqrt(J (1 - J) / num_permutations)`. Signatures of parts of a corpus can be stored and
    concatenated if they were made with the same arguments.

    Args:
        texts: Any number of texts.
        num_permutations: 1 to 4,096.
        shingle: Tokens of a shingle, 1 to 64. A token is a run of letters and numbers in lower case, or one character
            of a script without spaces between words. A text with fewer tokens is one shingle.
        seed: 64 bits.
        num_threads: None for all cores.

    Raises:
        DataError: An argument is out of range.
    """
    num_permutations, shingle = _count("num_permutations", num_permutations), _count("shingle", shingle)
    return _core.minhash(_listed(texts), num_permutations, shingle, seed, num_threads or 0)


def near_duplicates(
    signatures: npt.NDArray[np.uint32],
    threshold: float = 0.8,
    *,
    quality: npt.ArrayLike | None = None,
    ids: npt.ArrayLike | None = None,
    bands: tuple[int, int] | None = None,
    texts: Sequence[str] | None = None,
    shingle: int = 5,
    num_threads: int | None = None,
) -> Duplicates:
    """Clusters of texts that share `threshold` of their shingles, and which text of each is kept.

    A signature is cut into bands; texts that agree in a band are compared, and linked if their signatures agree in
    `threshold` of the entries, or if their texts do where these are given. Linked texts are one cluster, and the one of
    the highest quality is kept, the first among equals. The result is the same for any number of threads and, with ids,
    for any order of the texts. Memory beyond the arguments: `24 num_threads + 20` bytes per text. `signatures` may be
    a `np.memmap`.

    Args:
        signatures: What `minhash_signatures` gave, [texts, num_permutations].
        threshold: Above 0, at most 1.
        quality: Finite numbers, [texts].
        ids: Different numbers below 2^64, [texts]; they take the place of the order of the texts.
        bands: Number of bands and entries of each; None for those that compare a pair at the threshold with a
            probability of 98 %.
        texts: The texts themselves, for exact Jaccard similarity.
        shingle: Tokens of a shingle, used with `texts`.
        num_threads: None for all cores.

    Raises:
        DataError: Arrays do not pair up, or an argument is out of range.
    """
    if not isinstance(signatures, np.ndarray) or signatures.dtype != np.uint32 or signatures.ndim != 2:  # pyright: ignore[reportUnnecessaryIsInstance]  # callers need not be typed
        raise DataError("signatures must be a 2-D uint32 array, as minhash_signatures gives it")
    kept = _core.near_duplicates(
        np.ascontiguousarray(signatures),
        threshold,
        bands,
        None if quality is None else np.ascontiguousarray(quality, np.float64),
        None if ids is None else np.ascontiguousarray(ids, np.uint64),
        None if texts is None else _listed(texts),
        _count("shingle", shingle),
        num_threads or 0,
    )
    return Duplicates(kept.astype(np.int64))


def jaccard(first: str, second: str, shingle: int = 5) -> float:
    """Exact Jaccard similarity of the sets of shingles of two texts, from 0 to 1."""
    return _core.jaccard(first, second, _count("shingle", shingle))


@dataclass(frozen=True)
class Overlaps:
    """What texts share with evaluation texts."""

    share: npt.NDArray[np.float64]
    """Share of each text's units inside shared runs, from 0 to 1."""
    offsets: npt.NDArray[np.int64]
    """Where the spans of each text begin in `spans`, [texts + 1]."""
    spans: npt.NDArray[np.int64]
    """First character and end of every stretch of shared runs, [spans, 2], text after text."""

    def of_text(self, index: int) -> npt.NDArray[np.int64]:
        """The spans of one text."""
        return self.spans[self.offsets[index] : self.offsets[index + 1]]


class Decontaminator:
    """Finds runs of evaluation texts in training texts.

    Tokens are those of `minhash_signatures`: case, punctuation and white space do not count. Sources: 13 tokens, GPT-3
    (arXiv:2005.14165, appendix C); 8 tokens, Llama 3 (arXiv:2407.21783, section 5.1.4); 50 letters, GPT-4
    (arXiv:2303.08774, appendix C).
    """

    def __init__(
        self,
        eval_texts: Iterable[str],
        ngram: int = 13,
        unit: Literal["tokens", "letters"] = "tokens",
        min_units: int | None = None,
    ) -> None:
        """Index every run of `ngram` units of the evaluation texts.

        Args:
            eval_texts: Questions, answers, or both in one.
            ngram: 1 to 256.
            unit: Tokens, or letters and numbers one by one.
            min_units: A text of fewer than `ngram` units is looked for as a whole if it has at least so many, by
                default 8 of 13 in proportion; shorter ones are counted in `num_skipped`.

        Raises:
            DataError: An argument is out of range.
        """
        if unit not in ("tokens", "letters"):
            raise DataError(f"unit is {unit!r}, it must be 'tokens' or 'letters'")
        ngram = _count("ngram", ngram)
        least = max(1, ngram * 8 // 13) if min_units is None else _count("min_units", min_units)
        self._core = _core.CoreDecontaminator(_listed(eval_texts), unit == "letters", ngram, least)

    @property
    def num_skipped(self) -> int:
        """Evaluation texts that were too short to look for."""
        return self._core.num_skipped

    @property
    def num_runs(self) -> int:
        """Number of different runs that are looked for."""
        return self._core.num_runs

    def overlaps(self, texts: Iterable[str], num_threads: int | None = None) -> Overlaps:
        """What each text shares with the evaluation texts, and where."""
        return Overlaps(*self._core.overlaps(_listed(texts), num_threads or 0))

    def contaminated(
        self, texts: Iterable[str], max_share: float = 0.0, num_threads: int | None = None
    ) -> npt.NDArray[np.bool_]:
        """Whether more than `max_share` of a text lies inside shared runs, [texts]; by default one run is enough."""
        return self.overlaps(texts, num_threads).share > max_share


class QualityClassifier:
    """A linear classifier over hashed runs of tokens, as fastText is, learned from labelled texts."""

    def __init__(self, core: _core.CoreQualityClassifier) -> None:
        self._core = core

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        labels: npt.ArrayLike,
        *,
        table_bits: int = 18,
        max_run: int = 2,
        epochs: int = 5,
        learning_rate: float = 0.1,
        seed: int = 0,
        num_threads: int | None = None,
    ) -> "QualityClassifier":
        """Learn to tell texts labelled true (good) from the rest; the same arguments give the same classifier.

        Args:
            texts: Texts of both labels.
            labels: bool [texts].
            table_bits: Base-2 logarithm of the number of weights, 8 to 28; 18 is a file of 1 MiB.
            max_run: Longest run of tokens that has a weight, 1 to 5.
            epochs: Times that each text is seen.
            learning_rate: Step of AdaGrad.
            seed: Of the order of the texts.
            num_threads: None for all cores.

        Raises:
            DataError: There are texts of one label only, or an argument is out of range.
        """
        array = np.asarray(labels)
        if array.dtype != np.bool_ or array.ndim != 1:
            raise DataError(f"labels must be a 1-D bool array, got {array.ndim}-D {array.dtype}")
        table_bits, max_run, epochs = (
            _count(name, value)
            for name, value in (("table_bits", table_bits), ("max_run", max_run), ("epochs", epochs))
        )
        core = _core.CoreQualityClassifier.train(
            _listed(texts), array, table_bits, max_run, epochs, learning_rate, seed, num_threads or 0
        )
        return cls(core)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "QualityClassifier":
        """Read a classifier that `save` wrote.

        Raises:
            DataError: The file cannot be read, is another kind of file, or is damaged.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
        try:
            return cls(_core.CoreQualityClassifier.from_bytes(data))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the classifier; the file appears whole or not at all."""
        with atomic_file(Path(path)) as temporary:
            temporary.write_bytes(self._core.to_bytes())

    def scores(self, texts: Iterable[str], num_threads: int | None = None) -> npt.NDArray[np.float64]:
        """Likelihood that each text is a good one, from 0 to 1."""
        return self._core.scores(_listed(texts), num_threads or 0)


def _listed(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise DataError("texts is one string, pass a list of them")
    listed = texts if isinstance(texts, list) else list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers need not be typed
            raise DataError(f"text {index} is a {type(text).__name__}, texts must be str")
    return listed


def _count(name: str, value: Any) -> int:
    if not 0 <= value < 2**31:
        raise DataError(f"{name} is {value}, it must be from 0 to 2147483647")
    return int(value)
