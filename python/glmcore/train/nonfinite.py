"""The end of a run whose loss or gradient is not a number any more."""

import json
import math
from dataclasses import asdict
from pathlib import Path

from glmcore.data.prefetch import Rows
from glmcore.durable import write_file
from glmcore.errors import RunError

FILE = "nonfinite.json"


def stop_unless_finite(
    run_dir: Path, stage: str, step: int, rows: Rows, numbers: range, figures: dict[str, float], *, writes: bool
) -> None:
    """Return if all figures of a step are finite; else say which data it was, and stop.

    The weights are those before the step: the optimiser does not move for a gradient that is not finite.

    Args:
        run_dir: Where `nonfinite.json` is written: stage, step, figures, and the documents of each row.
        stage: Name of the stage.
        step: Number of the step.
        rows: Rows of the stage.
        numbers: Which of them the step had, on all ranks.
        figures: Figures of the step, such as its loss.
        writes: Whether this process writes the file.

    Raises:
        RunError: A figure is not finite.
    """
    bad = [f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value)]
    if not bad:
        return
    file = run_dir / FILE
    if writes:
        told = {
            "stage": stage,
            "step": step,
            **{name: value if math.isfinite(value) else str(value) for name, value in figures.items()},
            "rows": [{"row": row, "documents": [asdict(piece) for piece in rows.contents(row)]} for row in numbers],
        }
        write_file(file, json.dumps(told, indent=1) + "\n")
    raise RunError(
        f"step {step} of stage {stage}: {' and '.join(bad)}; its rows and documents are in {file}, and "
        "the last checkpoint is from before it"
    )
