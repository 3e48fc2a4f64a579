"""What a training reports of its steps, and the file that keeps it: history.csv."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from pipeline.errors import PipelineError

HISTORY = "history.csv"


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step reports."""

    step: int
    """Counted from 1."""
    loss: float
    active_share: float
    """Triplets with a loss above zero, of all triplets of all strips; 0 to 1."""
    mean_distance: float
    """Mean distance between two embeddings of the batch."""
    grad_norm: float
    """Euclidean norm of the gradient of all weights."""
    lr: float
    p: float
    """GeM's exponent after the step (Eq. 8); NaN where pooling has none."""


def write_history(path: Path, history: list[Step]) -> None:
    """A row a step, columns as in `Step`."""
    table = pd.DataFrame([asdict(step) for step in history], columns=list(Step.__slots__))
    table.to_csv(path, index=False, lineterminator="\n")


def read_history(path: Path, steps: int | None = None) -> pd.DataFrame:
    """history.csv of a training of ``steps``, where that is known: a row a step that was noted.

    PipelineError where it is not whole.
    """
    columns = [field.name for field in fields(Step)]
    try:
        history = pd.read_csv(path)
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing: `dvc repro` makes it") from None
    except ValueError as error:  # of pandas, and of text that is not UTF-8
        raise PipelineError(f"{path} cannot be read: {error}. `dvc repro` brings it back") from None
    last = int(history["step"].iloc[-1]) if "step" in history and len(history) else 0
    if list(history) != columns or last != (last if steps is None else steps):
        raise PipelineError(
            f"{path}: expected columns {', '.join(columns)} up to step {steps}, got "
            f"{', '.join(map(str, history))} up to {last}. `dvc repro` brings it back"
        )
    return history
