"""The trajectory viewer: what a run has sampled, token by token, as one self-contained HTML page."""

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from glmcore.durable import write_file
from glmcore.errors import RunError
from glmcore.tokenizer import Tokenizer

PAGE = Path(__file__).parent / "trajectories.html"
MAX_BYTES = 8 << 20
"""Of the data in the page; the newest steps come first, and what does not fit is left out and counted."""
MAX_TOKENS = 20_000
"""Of a trajectory; of a longer one its beginning is shown, and the rest counted."""


def write_viewer(run_dir: str | Path, max_bytes: int = MAX_BYTES) -> Path:
    """Write `trajectories.html` into a run directory from the trajectories that it has kept. Gives the page's path.

    Raises:
        RunError: `run_dir` is no run, or has kept no trajectories.
    """
    path = Path(run_dir)
    if not (path / "recipe.toml").exists():
        raise RunError(f"{path} is not a run directory: it has no recipe.toml")
    files = sorted((path / "shown").glob("[0-9]*.jsonl"), reverse=True)
    if not files:
        raise RunError(f"{path} has kept no trajectories: run `glmcore rl` with rl.trajectory_log")
    tokenizer = Tokenizer.from_pretrained(str(path / "tokenizer"))
    samples, left_out = _within(files, max_bytes)
    used = sorted({token for sample in samples for token in sample["ids"]})
    data = {
        "run": path.resolve().name,
        "left_out": left_out,
        "pieces": {str(token): piece(tokenizer, token) for token in used},
        "samples": samples,
    }
    page = PAGE.read_text(encoding="utf-8").replace("{{name}}", escape(data["run"])).replace("{{data}}", _script(data))
    target = path / "trajectories.html"
    write_file(target, page)
    return target


def piece(tokenizer: Tokenizer, token: int) -> str:
    r"""The text of one token; bytes that are no whole characters are written in hexadecimal, such as `\xe4`."""
    return tokenizer.decode_bytes([token]).decode("utf-8", errors="backslashreplace")


def _within(files: Iterable[Path], max_bytes: int) -> tuple[list[dict[str, Any]], int]:
    """The newest trajectories that fit, and how many do not; groups stay whole."""
    kept: list[dict[str, Any]] = []
    size = left_out = 0
    for file in files:
        groups: dict[int, list[dict[str, Any]]] = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            sample = _shortened(json.loads(line))
            groups.setdefault(sample["group"], []).append(sample)
        for group in groups.values():
            cost = len(json.dumps(group))
            if size + cost <= max_bytes:
                size += cost
                kept += group
            else:
                left_out += len(group)
    return kept, left_out


def _shortened(sample: dict[str, Any]) -> dict[str, Any]:
    tokens = len(sample["ids"])
    if tokens <= MAX_TOKENS:
        return sample | {"hidden_tokens": 0}
    per_token = ("ids", "sampled", "logprobs", "trainer_logprobs", "staleness")
    return sample | {name: sample[name][:MAX_TOKENS] for name in per_token} | {"hidden_tokens": tokens - MAX_TOKENS}


def _script(data: dict[str, Any]) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or begin another."""
    return json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
