"""Ranking by words: Okapi BM25.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), equation 3.15, with the
inverse document frequency of Lucene, which is never negative.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

K1, B = 1.2, 0.75
"""How soon more of a word stops counting, and how much the length of a text counts."""
_WORD = re.compile(r"[^\W\u2e80-\u9fff\uac00-\ud7af]+|[\u2e80-\u9fff\uac00-\ud7af]")


def words(text: str) -> list[str]:
    """Words in lower case; each character of Chinese, Japanese and Korean is one."""
    return _WORD.findall(text.lower())


class Bm25:
    """An index of texts.

    Args:
        texts: What is searched.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(words(text)) for text in texts]
        self._lengths = [sum(count.values()) for count in counts]
        self._mean_length = sum(self._lengths) / max(len(texts), 1) or 1.0
        self._postings: dict[str, list[tuple[int, int]]] = {}
        for number, count in enumerate(counts):
            for word, times in count.items():
                self._postings.setdefault(word, []).append((number, times))

    def search(self, query: str, limit: int) -> list[tuple[int, float]]:
        """The texts with the highest scores, best first, equal ones in their order; none that has no word of the query.

        Returns:
            Number of the text, from 0, and its score.
        """
        scores: dict[int, float] = {}
        for word in dict.fromkeys(words(query)):
            found = self._postings.get(word, [])
            rarity = math.log1p((len(self._lengths) - len(found) + 0.5) / (len(found) + 0.5))
            for number, times in found:
                length = 1 - B + B * self._lengths[number] / self._mean_length
                score = rarity * times * (K1 + 1) / (times + K1 * length)
                scores[number] = scores.get(number, 0.0) + score
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:limit]
