"""Imports between Python files, found by their text: files of any version of the language, also broken ones."""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping

from glmcore.data.builders.imports.paths import MAX_CANDIDATES, common_depth, parent

SUFFIXES = (".py", ".pyi", ".pyx", ".pxd")
_NAMES = r"[^\S\n]*(?P<names>\([^)]{0,4000}\)|[^\n;(\\]*(?:\\\n[^\n;(\\]*)*)"
_IMPORT = re.compile(
    r"^(?P<indent>[ \t]*)(?:from[ \t]+(?P<dots>\.*)(?P<base>[\w.]*)[ \t]*\bc?import\b" + _NAMES + r"|"
    r"c?import[ \t]+(?P<plain>[\w. \t,]+))",
    re.MULTILINE,
)
_OUTER_LINE = re.compile(r"^(?P<word>[^\s#)\]}'\"]\w*)", re.MULTILINE)
_RUN_ON_IMPORT = frozenset({"try", "except", "else", "finally", "if", "elif", "with"})


def edges(texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of a file and a file that it imports when it is imported itself.

    Imports within functions and classes do not count: they are put there to break circles. `from a import b` leads to
    `a/b.py` where that exists, else to `a/__init__.py`. A module is looked for from the directories that can be on the
    path of the importing file: those above it, and those that hold a package at their top.
    """
    modules = _Modules(texts)
    for path, text in texts.items():
        if path.endswith(SUFFIXES):
            for dots, base, names in statements(text):
                for target in modules.resolve(path, dots, base, names):
                    if target != path:
                        yield path, target


def statements(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """Import statements: number of leading dots, module, and the names that are taken from it."""
    outer: tuple[list[int], list[str]] | None = None
    for match in _IMPORT.finditer(text):
        if match["indent"]:
            if outer is None:
                lines = list(_OUTER_LINE.finditer(text))
                outer = [line.start() for line in lines], [line["word"] for line in lines]
            at = bisect_right(outer[0], match.start()) - 1
            if at < 0 or outer[1][at] not in _RUN_ON_IMPORT:
                continue
        if match["plain"]:
            for module in match["plain"].split(","):
                words = module.split()
                if words:
                    yield 0, words[0], []
        else:
            listed = re.sub(r"#[^\n]*", "", match["names"]).strip("() \t\r\n").replace("\\\n", " ")
            names = [name.split()[0] for name in listed.split(",") if name.split()]
            yield len(match["dots"]), match["base"], names


class _Modules:
    """Which file a module is."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._by_parts: dict[tuple[str, ...], list[tuple[tuple[str, ...], str]]] = defaultdict(list)
        self._packages: set[tuple[str, ...]] = set()
        paths = sorted(path for path in texts if path.endswith(SUFFIXES))
        for path in paths:
            *directory, name = path.split("/")
            if name.startswith("__init__."):
                self._packages.add(tuple(directory))
        for path in paths:
            *directory, name = path.split("/")
            stem = name.rsplit(".", 1)[0]
            parts = (*directory, stem) if stem != "__init__" else tuple(directory)
            for start in range(len(parts)):
                self._by_parts[parts[start:]].append((parts[:start], path))

    def resolve(self, path: str, dots: int, base: str, names: list[str]) -> Iterator[str]:
        """Files that a statement of `path` leads to."""
        directory = tuple(parent(path).split("/")) if "/" in path else ()
        module = tuple(part for part in base.split(".") if part)
        if dots:
            if dots - 1 > len(directory):
                return
            root = directory[: len(directory) - (dots - 1)]
            find = lambda parts: self._exact(root, parts)  # noqa: E731
        else:
            find = lambda parts: self._search(directory, parts)  # noqa: E731
        whole = False
        for name in names:
            target = find((*module, name))
            if target is not None:
                yield target
            else:
                whole = True
        if whole or not names:
            for end in range(len(module), -1 if dots else 0, -1):
                target = find(module[:end])
                if target is not None:
                    yield target
                    return
                if names:
                    return  # only `import a.b` goes on with `a`

    def _exact(self, root: tuple[str, ...], parts: tuple[str, ...]) -> str | None:
        """The module at a place below `root`."""
        found = self._by_parts.get((*root, *parts), ())
        return next((path for start, path in found if not start), None)

    def _search(self, directory: tuple[str, ...], parts: tuple[str, ...]) -> str | None:
        """The module nearest to `directory` among those that it can import."""
        best: tuple[int, int, int] | None = None
        found: str | None = None
        for order, (root, path) in enumerate(self._by_parts.get(parts, [])[:MAX_CANDIDATES]):
            if root in self._packages:
                continue
            above = directory[: len(root)] == root
            if not above and len(parts) < 2 and (*root, *parts[:1]) not in self._packages:
                continue
            rank = (-common_depth(root, directory), len(root), order)
            if best is None or rank < best:
                best, found = rank, path
        return found
