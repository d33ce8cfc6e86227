"""Parts put together into documents of bounded length."""

from collections.abc import Callable, Iterable, Iterator

Measure = Callable[[str], int]
"""Length of a text, such as its characters (`len`) or tokens; of two texts joined at most about the sum."""


def file_block(path: str, text: str) -> str:
    """A file under its path, as documents hold it."""
    return f"# file: {path}\n{text}\n"


def join_parts(parts: Iterable[str], max_length: int, measure: Measure) -> Iterator[str]:
    """Parts one after the other, in texts of at most `max_length` where no single part is longer."""
    texts: list[str] = []
    size = 0
    for part in parts:
        length = measure(part)
        if texts and size + length > max_length:
            yield "".join(texts)
            texts, size = [], 0
        texts.append(part)
        size += length
    if texts:
        yield "".join(texts)


def cut_text(text: str, max_length: int, measure: Measure) -> list[str]:
    """Pieces of a text, each of `max_length` or less, cut at the line end nearest to their middle, if there is one."""
    if len(text) < 2 or measure(text) <= max_length:
        return [text]
    middle = len(text) // 2
    after = text.find("\n", middle, len(text) - 1) + 1
    before = text.rfind("\n", 0, middle) + 1
    ends = [end for end in (before, after) if 0 < end < len(text)]
    end = min(ends, key=lambda end: abs(end - middle), default=middle)
    return [piece for half in (text[:end], text[end:]) for piece in cut_text(half, max_length, measure)]
