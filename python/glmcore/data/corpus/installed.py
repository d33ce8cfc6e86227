"""The Python installation as a corpus: source files, whole packages, documentation.

Every machine that runs this has real code and real prose on its disk: the standard library and the installed packages.
"""

import ast
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from glmcore.data.documents import Document

MAX_FILE_BYTES = 200_000
"""Larger files are tables and generated code."""
MAX_PACKAGE_BYTES = 600_000
"""Larger packages are represented by their first files."""
MAX_LINE_CHARS = 500
"""Longer lines are data or minified code."""
MAX_REPOSITORY_CHARS = 24_000
"""A package's files are cut into documents of about this size: several thousand tokens."""
_LICENCE = re.compile(r"^(licen[cs]e|copying|notice|authors|contributors)", re.IGNORECASE)
_SKIPPED_PARTS = {
    "test",
    "tests",
    "testing",
    "idle_test",
    "lib2to3",
    "__pycache__",
    "_vendor",
    "node_modules",
    "site-packages",
}
_SKIPPED_PACKAGES = {"torch", "nvidia", "triton", "pip", "setuptools", "glmcore", "cuda"}


@dataclass(frozen=True)
class SourceFile:
    """A readable source file."""

    package: str
    path: str
    """Path below the directory that holds the package."""
    text: str


Packages = dict[str, list[SourceFile]]
"""Source files by package."""


def collect_code_files(packages: Packages, max_bytes: int) -> Iterator[Document]:
    """One document a file, packages in turn, up to `max_bytes` of text."""
    size = 0
    for file in _in_turn(packages):
        if size >= max_bytes:
            return
        size += len(file.text.encode())
        yield Document(id=file.path, source="code", text=file.text)


def collect_repositories(packages: Packages, max_bytes: int) -> Iterator[Document]:
    """Files of one package together, each after those that it imports, in documents for long context."""
    size = 0
    for package, files in packages.items():
        for number, text in enumerate(_joined(_dependency_order(files))):
            if size >= max_bytes:
                return
            size += len(text.encode())
            yield Document(id=f"{package}#{number}", source="repository", text=text)


def collect_prose(packages: Packages, max_bytes: int) -> Iterator[Document]:
    """Package descriptions, language topics and docstrings, up to `max_bytes` of text."""
    size = 0
    for document in _prose(packages):
        if size >= max_bytes:
            return
        size += len((document.text or "").encode())
        yield document


def _prose(packages: Packages) -> Iterator[Document]:
    from pydoc_data import topics

    for name, text in sorted(topics.topics.items()):
        yield Document(id=f"topics/{name}", source="prose", text=text.strip())
    for distribution in sorted(metadata.distributions(), key=lambda found: found.metadata["Name"] or ""):
        description = distribution.metadata.get_payload()  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(description, str) and len(description) > 200:
            name = distribution.metadata["Name"]
            yield Document(id=f"description/{name}", source="prose", text=description.strip()[:MAX_REPOSITORY_CHARS])
    for file in _in_turn(packages):
        text = docstrings(file.text)
        if len(text) > 400:
            yield Document(id=f"docstrings/{file.path}", source="prose", text=text)


def docstrings(source: str) -> str:
    """Docstrings of a module and of what it defines, each under its name; empty if there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    parts: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) > 60:
                heading = "" if isinstance(node, ast.Module) else f"{node.name}\n"
                parts.append(heading + text)
    return "\n\n".join(parts)


def read_packages() -> Packages:
    """Source files of the standard library, then of each installed package, by name, up to a size for each."""
    packages: Packages = {}
    sizes: dict[str, int] = {}
    for root in (Path(os.__file__).parent, Path(sysconfig.get_paths()["purelib"])):
        for path in _python_files(root):
            relative = path.relative_to(root)
            package = relative.parts[0] if len(relative.parts) > 1 else "python"
            if _is_skipped(relative) or sizes.get(package, 0) > MAX_PACKAGE_BYTES:
                continue
            text = _read(path)
            if text is not None:
                sizes[package] = sizes.get(package, 0) + len(text)
                packages.setdefault(package, []).append(SourceFile(package, str(relative), text))
    return packages


def _python_files(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in _SKIPPED_PACKAGES | _SKIPPED_PARTS)
        yield from (Path(directory) / name for name in sorted(files) if name.endswith(".py"))


def _is_skipped(relative: Path) -> bool:
    return bool(_LICENCE.match(relative.name)) or "-" in relative.parts[0] or relative.name.startswith("test_")


def _read(path: Path) -> str | None:
    """Text of a file worth reading, else None."""
    try:
        if not 200 < path.stat().st_size < MAX_FILE_BYTES:
            return None
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if max(map(len, text.splitlines()), default=0) > MAX_LINE_CHARS:
        return None
    return text


def _in_turn(packages: Packages) -> Iterator[SourceFile]:
    """The first file of every package, then the second of every package, and so on."""
    waiting = [iter(files) for files in packages.values()]
    while waiting:
        going = []
        for files in waiting:
            file = next(files, None)
            if file is not None:
                yield file
                going.append(files)
        waiting = going


def _dependency_order(files: list[SourceFile]) -> list[SourceFile]:
    """Files so that each follows those of the same package that it imports, where imports make no circle."""
    by_module = {_module(file): file for file in files}
    ordered: list[SourceFile] = []
    seen: set[str] = set()

    def visit(module: str, depth: int) -> None:
        if module in seen or depth > 50:
            return
        seen.add(module)
        for imported in _imports(by_module[module].text, module):
            if imported in by_module:
                visit(imported, depth + 1)
        ordered.append(by_module[module])

    for module in by_module:
        visit(module, 0)
    return ordered


def _module(file: SourceFile) -> str:
    return ".".join(Path(file.path).with_suffix("").parts).removesuffix(".__init__")


_IMPORT = re.compile(r"^(?:from (?P<dots>\.*)(?P<base>[\w.]*) import|import (?P<plain>[\w.]+))", re.MULTILINE)


def _imports(text: str, module: str) -> list[str]:
    """Modules that `text` imports at its top level, relative ones resolved against `module`."""
    found: list[str] = []
    for match in _IMPORT.finditer(text):
        if match["plain"]:
            found.append(match["plain"])
        else:
            parents = module.split(".")[: -len(match["dots"])] if match["dots"] else []
            found.append(".".join([*parents, match["base"]]).strip("."))
    return found


def _joined(files: list[SourceFile]) -> Iterator[str]:
    """Files one after the other, each under its path, in texts of bounded size."""
    parts: list[str] = []
    size = 0
    for file in files:
        for start in range(0, len(file.text), MAX_REPOSITORY_CHARS):
            piece = f"# file: {file.path}\n{file.text[start : start + MAX_REPOSITORY_CHARS]}\n"
            if parts and size + len(piece) > MAX_REPOSITORY_CHARS:
                yield "".join(parts)
                parts, size = [], 0
            parts.append(piece)
            size += len(piece)
    if parts:
        yield "".join(parts)
