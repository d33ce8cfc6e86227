"""Imports between the packages of Go modules."""

import re
from collections.abc import Iterator, Mapping

from glmcore.data.builders.imports.paths import ancestors, parent

SUFFIXES = (".go",)
_MODULE = re.compile(r'^module[ \t]+"?([^\s"]+)', re.MULTILINE)
_BLOCK = re.compile(r'^import[ \t]*(?:\(([^)]{0,8000})\)|(?:[\w.]+[ \t]+)?"([^"\n]+)")', re.MULTILINE)
_SPEC = re.compile(r'^[ \t]*(?:[\w.]+[ \t]+)?"([^"\n]+)"', re.MULTILINE)
_DECLARATION = re.compile(r"^(?:func|type|var|const)\b", re.MULTILINE)


def edges(texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of a file and what it imports.

    A package is a directory: it stands between as the name `go:directory`, which needs all of the package's files
    except for its tests. Packages are found by the module paths of the repository's go.mod files.
    """
    modules = {
        parent(path): match[1] for path, text in texts.items() if _is_module(path) and (match := _MODULE.search(text))
    }
    by_path = {module: directory for directory, module in sorted(modules.items(), reverse=True)}
    packages: set[str] = set()
    files = [path for path in texts if path.endswith(SUFFIXES)]
    for path in files:
        if not path.endswith("_test.go"):
            directory = parent(path)
            packages.add(directory)
            yield f"go:{directory}", path
    for path in files:
        directory = parent(path)
        if path.endswith("_test.go") and directory in packages:
            yield path, f"go:{directory}"
        for imported in _imports(texts[path]):
            target = _directory(imported, by_path)
            if target in packages and target != directory:
                yield path, f"go:{target}"


def _is_module(path: str) -> bool:
    return path == "go.mod" or path.endswith("/go.mod")


def _imports(text: str) -> Iterator[str]:
    declaration = _DECLARATION.search(text)
    head = text[: declaration.start()] if declaration else text  # imports come first
    for match in _BLOCK.finditer(head):
        if match[2]:
            yield match[2]
        else:
            yield from _SPEC.findall(match[1])


def _directory(imported: str, modules: Mapping[str, str]) -> str | None:
    """Directory of an imported package: the module with the longest fitting path, and the rest below it."""
    for prefix in ancestors(imported):
        if prefix in modules:
            return "/".join(part for part in (modules[prefix], imported[len(prefix) + 1 :]) if part)
    return None
