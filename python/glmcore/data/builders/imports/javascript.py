"""Imports between JavaScript and TypeScript files."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from glmcore.data.builders.imports.paths import ancestors, join, parent

SUFFIXES = (".js", ".jsx", ".ts", ".tsx", ".mjs", ".cjs", ".mts", ".cts", ".vue", ".svelte")
_ENDINGS = (".ts", ".tsx", ".d.ts", ".mts", ".cts", ".js", ".jsx", ".mjs", ".cjs", ".vue", ".svelte", ".json")
_AS_SOURCE = {".js": (".ts", ".tsx"), ".jsx": (".tsx",), ".mjs": (".mts",), ".cjs": (".cts",)}
_CONDITIONS = ("source", "types", "import", "module", "browser", "node", "require", "default")
_BUILT = frozenset({"dist", "build", "lib", "out", "esm", "cjs", "es"})
"""Directories that hold what is built from `src`."""
_MAX_EXTENDS = 8
_IMPORT = re.compile(
    r"""(?:^|[;}\n])[ \t]*(?:import[ \t]*|(?:import|export)\b[^'"`;()=]{0,1000}?\bfrom\s*)"""
    r"""['"](?P<static>[^'"\n]+)['"]"""
    r"""|(?<![\w.$])require[ \t]*\([ \t]*['"](?P<required>[^'"\n]+)['"][ \t]*\)""",
)
_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
_TRAILING_COMMA = re.compile(r'"(?:\\.|[^"\\\n])*"|,(?=\s*[}\]])')


def edges(texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of a file and a file that it imports, re-exports from or requires; `import()` is for later and not counted.

    Relative names are tried with the usual endings, as directories with an index file, and with TypeScript's endings in
    the place of JavaScript's. Others go through `paths` and `baseUrl` of the nearest tsconfig.json or jsconfig.json,
    then through `imports`, `exports`, `main` and the like of the repository's own packages; an entry that lies in a
    directory of built files is looked for in `src`.
    """
    files = _Files(texts)
    for path, text in texts.items():
        if path.endswith(SUFFIXES):
            for match in _IMPORT.finditer(text):
                target = files.resolve(path, match["static"] or match["required"])
                if target is not None and target != path:
                    yield path, target


class _Files:
    """What names lead to within a repository."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._manifests: dict[str, dict[str, Any]] = {}
        self._packages: dict[str, str] = {}
        self._configs: dict[str, list[tuple[str, list[str]]] | None] = {}
        for path in sorted(texts):
            if path.rpartition("/")[2] == "package.json":
                manifest = _object(texts[path])
                self._manifests[parent(path)] = manifest
                if isinstance(manifest.get("name"), str):
                    self._packages.setdefault(manifest["name"], parent(path))

    def resolve(self, path: str, name: str) -> str | None:
        """The file that `name` in the file at `path` leads to."""
        directory = parent(path)
        name = name.split("?", 1)[0]
        if name.startswith((".", "/")):
            return self._file(join(directory, name.lstrip("/") if name.startswith("/") else name))
        if name.startswith("#"):
            return self._from_imports(directory, name)
        for pattern, places in self._aliases(directory):
            rest = _fit(pattern, name)
            if rest is not None:
                for place in places:
                    found = self._file(join("", place.replace("*", rest)))
                    if found is not None:
                        return found
        return self._from_package(name)

    def _file(self, path: str | None) -> str | None:
        """The file at a path that may lack its ending or name a directory."""
        if path is None:
            return None
        if path in self._texts:
            return path
        stem, dot, ending = path.rpartition(".")
        for other in _AS_SOURCE.get(dot + ending, ()):
            if stem + other in self._texts:
                return stem + other
        for end in _ENDINGS:
            if path and path + end in self._texts:
                return path + end
        if path in self._manifests:
            found = self._entry(path)
            if found is not None:
                return found
        inside = path + "/index" if path else "index"
        return next((inside + end for end in _ENDINGS if inside + end in self._texts), None)

    def _from_package(self, name: str) -> str | None:
        """A file of one of the repository's own packages."""
        parts = name.split("/")
        size = 2 if name.startswith("@") else 1
        package, rest = "/".join(parts[:size]), "/".join(parts[size:])
        if package not in self._packages:
            return None
        directory = self._packages[package]
        if not rest:
            return self._file(directory)
        exported = self._manifests[directory].get("exports")
        if isinstance(exported, dict):
            for target in _targets(exported, "./" + rest):
                found = self._built(directory, target)
                if found is not None:
                    return found
        return self._built(directory, rest) or self._file(join(directory, "src/" + rest))

    def _entry(self, directory: str) -> str | None:
        """The file that a package is imported by."""
        manifest = self._manifests[directory]
        exported = manifest.get("exports")
        wanted: list[str] = []
        if exported is not None:
            is_map = isinstance(exported, dict) and any(key.startswith(".") for key in exported)
            wanted += _targets(exported if is_map else {".": exported}, ".")
        wanted += [manifest[key] for key in ("source", "types", "module", "main") if isinstance(manifest.get(key), str)]
        for target in [*wanted, "src/index", "index"]:
            if target.strip("./"):
                found = self._built(directory, target)
                if found is not None:
                    return found
        return None

    def _built(self, directory: str, target: str) -> str | None:
        """A package's file, or the source that it is probably built from."""
        place = join(directory, target)
        if place is None or place == directory:
            return None
        if place in self._manifests:
            return None  # a package within the package: its own name leads there
        found = self._file(place)
        parts = [part for part in target.split("/") if part not in (".", "")]
        if found is not None or not parts or parts[0] not in _BUILT:
            return found
        rest = [part for part in parts[1:] if part not in _BUILT]
        stem = "/".join(rest).removesuffix(".d.ts")
        for end in (".js", ".mjs", ".cjs"):
            stem = stem.removesuffix(end)
        return self._file(join(directory, "src/" + stem)) if stem else None

    def _from_imports(self, directory: str, name: str) -> str | None:
        """A private name of the nearest package (`imports` of its package.json)."""
        for above in ancestors(directory):
            if above in self._manifests:
                for target in _targets(self._manifests[above].get("imports"), name):
                    found = self._built(above, target)
                    if found is not None:
                        return found
                return None
        return None

    def _aliases(self, directory: str) -> list[tuple[str, list[str]]]:
        """Patterns of the nearest tsconfig.json or jsconfig.json, each with places from the root, best first."""
        if directory not in self._configs:
            self._configs[directory] = found = None
            for file in ("tsconfig.json", "jsconfig.json"):
                path = f"{directory}/{file}" if directory else file
                if path in self._texts:
                    found = self._read_config(path, _MAX_EXTENDS)
                    break
            if found is None and directory:
                found = self._aliases(parent(directory))
            self._configs[directory] = found or []
        return self._configs[directory] or []

    def _read_config(self, path: str, depth: int) -> list[tuple[str, list[str]]]:
        config = _object(self._texts[path])
        options = config.get("compilerOptions")
        options = options if isinstance(options, dict) else {}
        base = options.get("baseUrl")
        root = join(parent(path), base) if isinstance(base, str) else parent(path)
        paths = options.get("paths")
        aliases: list[tuple[str, list[str]]] = []
        if isinstance(paths, dict) and root is not None:
            for pattern, places in paths.items():
                listed = places if isinstance(places, list) else []
                known = [join(root, place) for place in listed if isinstance(place, str)]
                aliases.append((pattern, [place for place in known if place is not None]))
        aliases.sort(key=lambda alias: (-len(alias[0].partition("*")[0]), alias[0]))
        if isinstance(base, str) and root is not None:
            aliases.append(("*", [root + "/*" if root else "*"]))
        extended = config.get("extends")
        for name in extended if isinstance(extended, list) else [extended]:
            if not aliases and depth and isinstance(name, str) and name.startswith("."):
                target = join(parent(path), name)
                found = next((at for at in (target, f"{target}.json") if at in self._texts), None)
                if found is not None:
                    aliases = self._read_config(found, depth - 1)
        return aliases


def _object(text: str) -> dict[str, Any]:
    """A JSON object that may have comments and trailing commas; empty where it is none."""

    def without(match: re.Match[str]) -> str:
        return match[0] if match[0].startswith('"') else ""

    try:
        value = json.loads(_TRAILING_COMMA.sub(without, _COMMENT.sub(without, text)))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _fit(pattern: str, name: str) -> str | None:
    """What stands for the star of a pattern, or None where it does not fit."""
    before, star, after = pattern.partition("*")
    if not star:
        return "" if name == pattern else None
    if len(name) >= len(before) + len(after) and name.startswith(before) and name.endswith(after):
        return name[len(before) : len(name) - len(after)]
    return None


def _targets(table: Any, name: str) -> list[str]:
    """Places that an `exports` or `imports` table gives for a name, the most wanted condition first."""
    if not isinstance(table, dict):
        return []
    patterns = sorted((key for key in table if isinstance(key, str)), key=lambda key: (key != name, -len(key), key))
    for pattern in patterns:
        rest = _fit(pattern, name)
        if rest is not None:
            return [place.replace("*", rest) for place in _conditions(table[pattern], 8)]
    return []


def _conditions(value: Any, depth: int) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not depth:
        return []
    if isinstance(value, list):
        return [place for item in value for place in _conditions(item, depth - 1)]
    if isinstance(value, dict):
        return [place for key in _CONDITIONS if key in value for place in _conditions(value[key], depth - 1)]
    return []
