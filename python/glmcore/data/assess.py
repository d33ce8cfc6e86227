"""Cleaning of one source: which of its documents are left out, and how good the others are."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from glmcore.data.cleaning import (
    CODE_RULES,
    WEB_RULES,
    Decontaminator,
    QualityClassifier,
    Rule,
    code_statistics,
    detect_language,
    quality_scores,
    reject_reasons,
    text_statistics,
    with_thresholds,
)
from glmcore.data.config import CleaningConfig
from glmcore.data.convert import read_records
from glmcore.data.readers.record import Limits, Piece, Rejects
from glmcore.errors import ConfigError, DataError


class Assessed(NamedTuple):
    """What cleaning says of a batch of texts."""

    reasons: list[tuple[str, str] | None]
    """Why each is left out, a word and a line; None for one that stays."""
    quality: npt.NDArray[np.float64] | None
    """Quality of each, None where it stays as it was given."""


def assess(
    texts: Sequence[str], rule: CleaningConfig, evaluations: tuple[Piece, ...], limits: Limits, num_threads: int
) -> Assessed:
    """Apply the cleaning of a source to texts.

    Raises:
        DataError: Evaluation texts or a classifier cannot be read.
        ConfigError: There is no rule of that name.
    """
    reasons: list[tuple[str, str] | None] = [None] * len(texts)
    listed = list(texts)
    web = rule.rules == "web" or rule.quality == "statistics"
    statistics = text_statistics(listed, num_threads) if web else None
    codes: npt.NDArray[np.str_] | None = None
    if rule.languages or rule.rules == "web":
        codes = detect_language(listed, num_threads).codes
    if rule.languages and codes is not None:
        for i in np.flatnonzero(~np.isin(codes, rule.languages)).tolist():
            reasons[i] = ("language", f"language {str(codes[i]) or 'unknown'!r}")
    if rule.rules != "none":
        of_rules = (
            statistics if rule.rules == "web" and statistics is not None else code_statistics(listed, num_threads)
        )
        rejected = reject_reasons(of_rules, _rules(rule), codes)
        for i in np.flatnonzero(~rejected.keep).tolist():
            if reasons[i] is None:
                reasons[i] = (rejected.rules[rejected.rule[i]].name, rejected.reason(i) or "")
    if evaluations:
        decontaminator = _decontaminator(evaluations, rule.evaluation_run, limits)
        for i in np.flatnonzero(decontaminator.contaminated(listed, num_threads=num_threads)).tolist():
            if reasons[i] is None:
                reasons[i] = ("contaminated", f"shares a run of {rule.evaluation_run} words with an evaluation text")
    quality = None
    if rule.quality == "statistics" and statistics is not None:
        quality = quality_scores(statistics)
    elif rule.classifier is not None:
        quality = _classifier(rule.classifier, Path(rule.classifier).stat().st_mtime_ns).scores(listed, num_threads)
    return Assessed(reasons, quality)


def _rules(rule: CleaningConfig) -> tuple[Rule, ...]:
    changes = {
        name: None if change == "off" else (change.minimum, change.maximum) for name, change in rule.thresholds.items()
    }
    try:
        return with_thresholds(WEB_RULES if rule.rules == "web" else CODE_RULES, changes)
    except DataError as error:
        raise ConfigError(f"cleaning.thresholds: {error}") from None


@lru_cache(maxsize=2)
def _decontaminator(pieces: tuple[Piece, ...], run: int, limits: Limits) -> Decontaminator:
    """An index of all text fields of the evaluation files, made once in each process."""
    texts: list[str] = []
    with Rejects(Path("/dev/null"), stop=True) as rejects:
        for piece in pieces:
            for record in read_records(piece, None, limits, partial(rejects.add, piece.name)):
                texts += [value for value in record.fields.values() if isinstance(value, str)]
    return Decontaminator(texts, run)


@lru_cache(maxsize=2)
def _classifier(path: str, modified_ns: int) -> QualityClassifier:
    del modified_ns  # only makes a changed file another entry of the cache
    return QualityClassifier.load(path)
