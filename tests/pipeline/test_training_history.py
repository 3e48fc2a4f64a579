import math
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.training_history import HISTORY, Step, read_history, write_history

STEPS = [Step(1, 0.2, 1.0, 0.5, 0.01, 1e-4, 6.5), Step(9, 1 / 3, 0.5, 0.7, 0.02, 1e-5, math.nan)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_history(tmp_path / HISTORY, STEPS)
    return tmp_path / HISTORY


def test_what_is_written_is_read_to_the_last_digit(path: Path) -> None:
    history = read_history(path, 9)
    assert history["step"].tolist() == [1, 9]
    assert history["loss"].tolist() == [0.2, 1 / 3]
    assert history["p"].iloc[0] == 6.5
    assert math.isnan(history["p"].iloc[1])
    assert len(read_history(path)) == 2


def test_a_training_of_no_step_has_an_empty_history(path: Path) -> None:
    write_history(path, [])
    assert read_history(path, 0).empty


@pytest.mark.parametrize("content", ["", "step,loss\n1,0.2\n", "\0\xff", "step"])
def test_what_is_no_history_is_told(path: Path, content: str) -> None:
    path.write_text(content, encoding="latin-1")
    with pytest.raises(PipelineError, match=r"history.csv.*`dvc repro` brings it back"):
        read_history(path)


def test_a_history_that_ends_early_is_told(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(PipelineError, match=r"up to step 9, got .* up to 1"):
        read_history(path, 9)
    path.unlink()
    with pytest.raises(PipelineError, match="missing"):
        read_history(path, 9)
