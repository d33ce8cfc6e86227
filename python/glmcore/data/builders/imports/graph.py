"""The import graph of a repository's files."""

from collections.abc import Mapping

from glmcore.data.builders.imports import c, golang, javascript, python, rust
from glmcore.data.builders.order import dependency_order

LANGUAGES = (python, javascript, rust, golang, c)


def import_graph(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """For each file, what it imports: files, or names that stand for several files and are keys too.

    Args:
        texts: Text of each file, by its path in the repository, parts joined by `/`.
    """
    graph: dict[str, dict[str, None]] = {path: {} for path in sorted(texts)}
    for language in LANGUAGES:
        for path, target in language.edges(texts):
            graph.setdefault(path, {})[target] = None
    for targets in list(graph.values()):
        for target in targets:
            graph.setdefault(target, {})
    return {path: list(targets) for path, targets in graph.items()}


def order_files(texts: Mapping[str, str]) -> list[str]:
    """Paths of the files, each after those that it imports.

    Files that import each other in a circle stay together; whatever imports leave open is in the order of the paths.
    """
    graph = import_graph(texts)
    names = sorted(graph)
    number = {name: at for at, name in enumerate(names)}
    needs = [[number[target] for target in graph[name]] for name in names]
    return [names[at] for at in dependency_order(needs) if names[at] in texts]
