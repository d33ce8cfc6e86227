"""Includes between C, C++, CUDA and Objective-C files."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from glmcore.data.builders.imports.paths import MAX_CANDIDATES, common_depth, join, parent

_SOURCES = (".c", ".cc", ".cpp", ".cxx", ".c++", ".cu", ".m", ".mm")
_HEADERS = (".h", ".hh", ".hpp", ".hxx", ".h++", ".cuh", ".inl", ".ipp", ".tcc", ".tpp", ".inc", ".def")
SUFFIXES = (*_SOURCES, *_HEADERS)
INCLUDE_DIRECTORIES = frozenset({"", "include", "includes", "inc", "src", "source", "lib", "headers", "public"})
"""Names of directories that compilers are usually told to look in; the empty one is the root."""
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*(?:include|import)(?:_next)?[ \t]*(?:"([^"\n]+)"|<([^>\n]+)>)', re.MULTILINE)


def edges(texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of a file and a file that it includes.

    `"x"` is looked for beside the including file, then anywhere in the repository as the end of a path, nearest first;
    `<x>` only below directories of the usual names (`INCLUDE_DIRECTORIES`), since most are the system's.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in sorted(texts):
        if path.endswith(SUFFIXES):
            by_name[path.rpartition("/")[2]].append(path)
    for path, text in texts.items():
        if not path.endswith(SUFFIXES):
            continue
        directory = parent(path)
        for match in _INCLUDE.finditer(text):
            quoted, angled = match[1], match[2]
            target = join(directory, quoted) if quoted else None
            if target not in texts:
                wanted = quoted or angled
                target = _nearest(by_name[wanted.rpartition("/")[2]], wanted, directory, anywhere=bool(quoted))
            if target is not None and target != path:
                yield path, target


def _nearest(candidates: list[str], wanted: str, directory: str, *, anywhere: bool) -> str | None:
    """The candidate that ends with `wanted` whose place shares most with `directory`."""
    here = directory.split("/")
    best: tuple[int, int, str] | None = None
    for path in candidates[:MAX_CANDIDATES]:
        if path != wanted and not path.endswith("/" + wanted):
            continue
        root = path[: -len(wanted)].rstrip("/")
        if anywhere or root.rpartition("/")[2] in INCLUDE_DIRECTORIES:
            rank = (-common_depth(root.split("/"), here), root.count("/"), path)
            best = rank if best is None else min(best, rank)
    return None if best is None else best[2]
