"""Modules and uses between Rust files."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from glmcore.data.builders.imports.paths import ancestors, join, parent

SUFFIXES = (".rs",)
_PACKAGE_NAME = re.compile(r'^\[package\][^\[]*?^name[ \t]*=[ \t]*"([^"\n]+)"', re.MULTILINE | re.DOTALL)
_LIB_NAME = re.compile(r'^\[lib\][^\[]*?^name[ \t]*=[ \t]*"([^"\n]+)"', re.MULTILINE | re.DOTALL)
_LIB_PATH = re.compile(r'^\[lib\][^\[]*?^path[ \t]*=[ \t]*"([^"\n]+)"', re.MULTILINE | re.DOTALL)
_MOD = re.compile(
    r'^(?:[ \t]*#\[path[ \t]*=[ \t]*"(?P<path>[^"\n]+)"\]\s*)?'
    r"[ \t]*(?:pub(?:\([^)]*\))?[ \t]+)?mod[ \t]+(?P<name>\w+)[ \t]*;",
    re.MULTILINE,
)
_USE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<public>pub(?:\([^)]*\))?[ \t]+)?use[ \t]+(?P<tree>[^;]{1,2000});", re.MULTILINE
)
_COMMENT = re.compile(r"//[^\n]*")
_ENTRY_DIRECTORIES = ("src/bin", "tests", "examples", "benches")
_MAX_NAMES = 2_000
"""Names that one use may list; more is no source."""


@dataclass
class _Crate:
    """A target that has its own module tree."""

    root: str
    """File at its top."""
    directory: str
    """Where the files of its modules lie."""
    exports: dict[str, str] | None = field(default=None)
    """Files of the names that the top re-exports, found when first asked for."""


def edges(texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of a file and a file that it declares (`mod`) or uses.

    `crate`, `self`, `super` and the names of the repository's own packages are resolved along the module tree as the
    directories give it. A name that the crate's top only re-exports (`pub use error::Error`) leads to where it comes
    from, so that a crate does not become one circle.
    """
    crates = _Crates(texts)
    for path, text in texts.items():
        if path.endswith(SUFFIXES):
            for target in crates.targets(path, text):
                if target != path:
                    yield path, target


class _Crates:
    """The packages of a repository."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._packages: dict[str, _Crate | None] = {}
        self._libraries: dict[str, _Crate] = {}
        self._tops: dict[str, _Crate] = {}
        for path, text in texts.items():
            name = _PACKAGE_NAME.search(text) if path == "Cargo.toml" or path.endswith("/Cargo.toml") else None
            if name is None:
                continue  # another file, or a workspace without a package of its own
            directory = parent(path)
            given, own = _LIB_PATH.search(text), _LIB_NAME.search(text)
            for at in (given[1],) if given else ("src/lib.rs", "src/main.rs"):
                top = join(directory, at)
                if top is not None and top in texts:
                    self._packages[directory] = self._crate(top, parent(top))
                    if not top.endswith("main.rs"):
                        self._libraries[(own or name)[1].replace("-", "_")] = self._crate(top, parent(top))
                    break
            else:
                self._packages[directory] = None

    def targets(self, path: str, text: str) -> Iterator[str]:
        """Files that a file leads to."""
        crate, module = self._place(path)
        below = _join(crate.directory, module)
        for match in _MOD.finditer(text):
            given = match["path"]
            found = join(parent(path), given) if given else self._file(_join(below, [match["name"]]))
            if found is not None and found in self._texts:
                yield found
        for depth, names, _ in uses(text):
            target = self._resolve(crate, module, names, depth)
            if target is not None:
                yield target

    def _place(self, path: str) -> tuple[_Crate, list[str]]:
        """The crate of a file and its module in it."""
        if path in self._tops:
            return self._tops[path], []
        package = next((above for above in ancestors(parent(path)) if above in self._packages), "")
        inside = path[len(package) + 1 :] if package else path
        entry = next((place for place in _ENTRY_DIRECTORIES if inside.startswith(place + "/")), None)
        crate = self._packages.get(package)
        if entry is not None:
            parts = inside[len(entry) + 1 :].split("/")
            directory = _join(package, [entry, parts[0]])
            if len(parts) > 1 and directory + "/main.rs" in self._texts:
                return self._crate(directory + "/main.rs", directory), _module_of(parts[1:])
        elif crate is not None and path.startswith(crate.directory) and inside != "src/main.rs":
            depth = len(crate.directory) + 1 if crate.directory else 0
            return crate, _module_of(path[depth:].split("/"))
        return self._crate(path, parent(path)), []

    def _crate(self, root: str, directory: str) -> _Crate:
        return self._tops.setdefault(root, _Crate(root, directory))

    def _file(self, place: str) -> str | None:
        """The file of the module at a place."""
        return next((path for path in (place + ".rs", place + "/mod.rs") if path in self._texts), None)

    def _resolve(self, crate: _Crate, module: list[str], names: list[str], depth: int) -> str | None:
        """The file that a used path leads to: its longest beginning that is a module."""
        first = names[0]
        if first == "crate":
            rest, start = names[1:], []
        elif first in ("self", "super"):
            ups = sum(1 for name in names if name == "super") - depth
            rest = [name for name in names if name not in ("self", "super")]
            if ups > len(module):
                return None
            start = module[: len(module) - max(ups, 0)]
        elif first in self._libraries:
            crate, rest, start = self._libraries[first], names[1:], []
        else:
            rest, start = names, module  # a child of this module, or another crate
            if self._file(_join(crate.directory, [*module, first])) is None:
                return None
        for end in range(len(rest), 0, -1):
            found = self._file(_join(crate.directory, [*start, *rest[:end]]))
            if found is not None:
                return found
        if start:
            return self._file(_join(crate.directory, start))
        return self._exported(crate, rest[0]) if rest else crate.root

    def _exported(self, crate: _Crate, name: str) -> str:
        """The file that a name at the top of a crate comes from."""
        if crate.exports is None:
            crate.exports = {}
            for _, names, new_name in uses(self._texts[crate.root], only_public=True):
                names = names[1:] if names[0] in ("self", "crate") else names
                for end in range(len(names) - 1, 0, -1):
                    found = self._file(_join(crate.directory, names[:end]))
                    if found is not None:
                        crate.exports.setdefault(new_name, found)
                        break
        return crate.exports.get(name, crate.root)


def uses(text: str, *, only_public: bool = False) -> Iterator[tuple[int, list[str], str]]:
    """Used paths, groups taken apart: 1 if it is indented, so within an inline module, the path, and its new name."""
    for match in _USE.finditer(text):
        if only_public and not match["public"]:
            continue
        tree = "".join(_COMMENT.sub("", match["tree"]).split("\n"))
        for names, name in islice(_expand(tree), _MAX_NAMES):
            yield int(bool(match["indent"])), names, name


def _expand(tree: str) -> Iterator[tuple[list[str], str]]:
    """Paths and names of a use tree: `a::{b, c::d as e}` gives a::b, b and a::c::d, e; no recursion."""
    waiting: list[tuple[list[str], str]] = [([], tree)]
    while waiting:
        prefix, text = waiting.pop()
        head, brace, rest = text.partition("{")
        names = [name for name in (part.strip() for part in head.split("::")) if name]
        if not brace:
            last, _, alias = names[-1].partition(" as ") if names else ("", "", "")
            path = [*prefix, *names[:-1], last.strip()]
            while path and path[-1] in ("*", "self", ""):
                path.pop()
            if path:
                yield path, alias.strip() or path[-1]
            continue
        prefix = [*prefix, *names]
        if len(prefix) > 64:
            continue
        waiting += [(prefix, part) for part in reversed(_split(rest))]


def _split(text: str) -> list[str]:
    """Parts between the commas of a group, up to its closing brace."""
    parts: list[str] = []
    depth, start = 0, 0
    for at, char in enumerate(text):
        if char == "{":
            depth += 1
        elif char == "}" and depth:
            depth -= 1
        elif char == "}" or (char == "," and not depth):
            parts.append(text[start:at])
            start = at + 1
            if char == "}":
                return parts
    return [*parts, text[start:]]


def _module_of(parts: list[str]) -> list[str]:
    """Module names of a file by its path below the crate's directory."""
    *directory, name = parts
    stem = name.removesuffix(".rs")
    return directory if stem in ("mod", "lib", "main") else [*directory, stem]


def _join(directory: str, names: list[str]) -> str:
    return "/".join(part for part in (directory, *names) if part)
