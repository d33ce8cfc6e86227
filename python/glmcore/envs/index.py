"""Full-text search over documents of one's own: BM25, by SQLite's FTS5, in memory."""

import re
import sqlite3
import threading
from collections.abc import Iterable

from glmcore.errors import DataError

_WORD = re.compile(r"\w+")


class SearchIndex:
    """Documents that can be searched, from any thread.

    Args:
        documents: Title and text of each.

    Raises:
        DataError: There is none, or this Python's SQLite has no full-text search.
    """

    def __init__(self, documents: Iterable[tuple[str, str]]) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        try:
            self._database.execute("CREATE VIRTUAL TABLE page USING fts5(title, text)")
        except sqlite3.OperationalError as error:
            raise DataError(f"SQLite of this Python cannot search texts: {error}") from None
        self._database.executemany("INSERT INTO page VALUES (?, ?)", documents)
        if not self._database.execute("SELECT count(*) FROM page").fetchone()[0]:
            raise DataError("there are no documents to search")

    def search(self, query: str, count: int) -> list[tuple[str, str]]:
        """The documents that fit best, by BM25 over title and text; any word may match.

        Args:
            query: Plain words; operators of the engine have no meaning.
            count: Documents at most.
        """
        words = _WORD.findall(query)[:64]
        if not words:
            return []
        wanted = " OR ".join(f'"{word}"' for word in words)
        with self._lock:
            found = self._database.execute(
                "SELECT title, text FROM page WHERE page MATCH ? ORDER BY bm25(page), rowid LIMIT ?", (wanted, count)
            )
            return [(str(title), str(text)) for title, text in found]

    def close(self) -> None:
        """Forget the documents."""
        with self._lock:
            self._database.close()
