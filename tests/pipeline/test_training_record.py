from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.checkpoints import save_checkpoint
from pipeline.errors import PipelineError
from pipeline.files import sha256
from pipeline.silhouette_store import Silhouettes, SilhouetteStore
from pipeline.training_history import HISTORY, Step, write_history
from pipeline.training_record import TrainingRecord, training_records

CONFIG = GaitGLConfig(channels=(2, 2, 4, 4, 4, 4))
SETTINGS = {"subjects_per_batch": 3, "sequences_per_subject": 2}


@pytest.fixture
def store(
    tmp_path: Path,
    write_store: Callable[..., SilhouetteStore],
    noise: Callable[[int, int], Silhouettes],
) -> SilhouetteStore:
    rows = [
        (f"{subject}", "00", view, "train" if subject < 3 else "test", noise(subject, 5))
        for subject in range(5)
        for view in ("000", "090")
    ]
    return write_store(tmp_path / "data" / "oumvlp" / "silhouettes", rows)


@pytest.fixture
def write(tmp_path: Path, store: SilhouetteStore) -> Callable[..., None]:
    def written(p: list[float], silhouettes: str | None = None, kept_out: int = 0) -> None:
        torch.manual_seed(0)
        info: dict[str, Any] = {
            "stage": "pretrain",
            "dataset": "oumvlp",
            "training": {**SETTINGS, "steps": len(p), "validation_subjects": kept_out},
            "seed": 3,
            "silhouettes": silhouettes or store.digest(),
            "upstream": {},
        }
        folder = tmp_path / "models" / "pretrain"
        save_checkpoint(folder / "checkpoint.safetensors", GaitGL(CONFIG), info)
        steps = [Step(1 + i, 0.2, 0.5, 0.3, 0.1, 1e-4, x) for i, x in enumerate(p)]
        write_history(folder / HISTORY, steps)

    return written


def _record(folder: Path, **made_by: str) -> TrainingRecord:
    """What is read of the only training below ``folder``."""
    checkpoint = sha256(folder / "models" / "pretrain" / "checkpoint.safetensors")
    made_by = {"trained_by": "pretrain", "checkpoint": checkpoint, **made_by}
    (record,) = training_records(folder / "models", folder / "data", made_by)
    return record


def test_a_record_says_what_was_trained_on_what(write: Callable[..., None], tmp_path: Path) -> None:
    write([6.5, 6.25])
    record = _record(tmp_path)
    assert (record.stage, record.dataset, record.seed, record.starts_from) == (
        "pretrain",
        "oumvlp",
        3,
        (),
    )
    assert (record.subjects, record.sequences) == (3, 6)
    assert record.clips == 2 * 3 * 2
    assert record.final_p == 6.25
    assert record.weights == sum(w.numel() for w in GaitGL(CONFIG).state_dict().values())
    assert record.architecture["channels"] == CONFIG.channels
    assert len(record.checkpoint) == len(record.silhouettes) == 64


def test_who_is_kept_out_to_validate_on_is_not_counted(
    write: Callable[..., None], tmp_path: Path
) -> None:
    write([6.5], kept_out=2)
    record = _record(tmp_path)
    assert (record.subjects, record.sequences) == (1, 2)


@pytest.mark.parametrize("p", [[], [float("nan")]])
def test_without_steps_or_gem_there_is_no_final_p(
    write: Callable[..., None], tmp_path: Path, p: list[float]
) -> None:
    write(p)
    record = _record(tmp_path)
    assert record.final_p is None


def test_other_silhouettes_than_those_trained_on_are_told(
    write: Callable[..., None], tmp_path: Path
) -> None:
    write([6.5], silhouettes="0" * 64)
    with pytest.raises(PipelineError, match=r"trained on other silhouettes than .*index\.parquet"):
        _record(tmp_path)


def test_embeddings_of_another_checkpoint_are_told(
    write: Callable[..., None], tmp_path: Path
) -> None:
    write([6.5])
    with pytest.raises(PipelineError, match=r"another checkpoint than that of .*pretrain"):
        _record(tmp_path, checkpoint="0" * 64)
