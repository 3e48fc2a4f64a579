"""What a training reports of its steps, and the file that keeps it: history.csv."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
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
    types = {name: np.int64 if name == "step" else np.float64 for name in columns}
    try:
        history = pd.read_csv(path, dtype=types)
        ended = path.read_bytes().endswith(b"\n")
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing: `dvc repro` makes it") from None
    except ValueError as error:  # of pandas, and of text that is not UTF-8
        raise PipelineError(f"{path} cannot be read: {error}. `dvc repro` brings it back") from None
    last = int(history["step"].max()) if list(history) == columns and len(history) else 0
    wrong = ""
    if list(history) != columns:
        wrong = f"expected columns {', '.join(columns)}, got {', '.join(map(str, history))}"
    elif not ended or history.drop(columns="p").isna().any(axis=None):
        wrong = "its last row is cut off"
    elif history["p"].isna().nunique() > 1:
        wrong = "p stands in some rows and not in others"
    elif steps not in (None, last):
        wrong = f"expected {steps} steps, got {last}"
    if wrong:
        raise PipelineError(f"{path}: {wrong}. `dvc repro` brings it back")
    return history
