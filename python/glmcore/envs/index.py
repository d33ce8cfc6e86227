"""Full-text search over texts of one's own: Okapi BM25, by SQLite's FTS5, in memory.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), equation 3.15. SQLite
counts a word that is in at least half of all texts as almost nothing instead of less than nothing.
"""

import re
import sqlite3
import threading
import weakref
from collections.abc import Iterable

from glmcore.errors import DataError

MAX_QUERY_WORDS = 64
_WORD = re.compile(r"[^\W_\u2e80-\u9fff\uac00-\ud7af]+|[\u2e80-\u9fff\uac00-\ud7af]")


def words(text: str) -> list[str]:
    """Words in lower case; each character of Chinese, Japanese and Korean is one."""
    return _WORD.findall(text.lower())


class SearchIndex:
    """Texts that can be searched, from any thread.

    Args:
        texts: What is searched; they are not kept.

    Raises:
        DataError: There is none, or this Python's SQLite has no full-text search.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._close = weakref.finalize(self, self._database.close)
        try:
            self._database.execute(
                "CREATE VIRTUAL TABLE page USING fts5(words, content='', tokenize='unicode61 remove_diacritics 0')"
            )
        except sqlite3.OperationalError as error:
            raise DataError(f"SQLite of this Python cannot search texts: {error}") from None
        added = self._database.executemany(
            "INSERT INTO page (words) VALUES (?)", ((" ".join(words(t)),) for t in texts)
        )
        if added.rowcount <= 0:
            raise DataError("there are no documents to search")

    def search(self, query: str, limit: int) -> list[tuple[int, float]]:
        """The texts with the highest scores, best first, equal ones in their order; none that has no word of the query.

        Args:
            query: Any text, of which the first 64 different words count; operators of SQLite have no meaning.
            limit: Texts at most.

        Returns:
            Number of the text, from 0, and its score, above 0.
        """
        wanted = " OR ".join(f'"{word}"' for word in list(dict.fromkeys(words(query)))[:MAX_QUERY_WORDS])
        if not wanted:
            return []
        with self._lock:
            found = self._database.execute(
                "SELECT rowid - 1, -bm25(page) FROM page WHERE page MATCH ? ORDER BY bm25(page), rowid LIMIT ?",
                (wanted, limit),
            )
            return [(int(number), float(score)) for number, score in found]

    def close(self) -> None:
        """Forget the texts."""
        with self._lock:
            self._close()
