import math
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.training_history import HISTORY, Step, read_history, write_history

STEPS = [Step(1, 0.2, 1.0, 0.5, 0.01, 1e-4, 6.5), Step(9, 1 / 3, 0.5, 0.7, 0.02, 1e-5, 6.25)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_history(tmp_path / HISTORY, STEPS)
    return tmp_path / HISTORY


def test_what_is_written_is_read_to_the_last_digit(path: Path) -> None:
    history = read_history(path, 9)
    assert history["step"].tolist() == [1, 9]
    assert history["loss"].tolist() == [0.2, 1 / 3]
    assert history["p"].tolist() == [6.5, 6.25]
    assert len(read_history(path)) == 2


def test_pooling_without_p_has_none(path: Path) -> None:
    write_history(path, [replace(step, p=math.nan) for step in STEPS])
    assert read_history(path, 9)["p"].isna().all()


def test_a_training_of_no_step_has_an_empty_history(path: Path) -> None:
    write_history(path, [])
    assert read_history(path, 0).empty


@pytest.mark.parametrize("content", ["", "step,loss\n1,0.2\n", "\0\xff", "step"])
def test_what_is_no_history_is_told(path: Path, content: str) -> None:
    path.write_text(content, encoding="latin-1")
    with pytest.raises(PipelineError, match=r"history.csv.*`dvc repro` brings it back"):
        read_history(path)


@pytest.mark.parametrize("row", ["x,1,1,1,1,1,1", "2,one,1,1,1,1,1", ",1,1,1,1,1,1"])
def test_a_row_that_holds_no_numbers_is_told(path: Path, row: str) -> None:
    path.write_text(f"{path.read_text()}{row}\n")
    with pytest.raises(PipelineError, match=r"history.csv.* cannot be read"):
        read_history(path)


def test_wherever_the_last_row_is_cut_it_is_told(path: Path) -> None:
    text = path.read_text()
    whole = len(text.rstrip().rpartition("\n")[0]) + 1
    for end in range(whole, len(text)):
        path.write_text(text[:end])
        with pytest.raises(PipelineError, match="`dvc repro` brings it back"):
            read_history(path, 9)


def test_a_history_that_ends_early_is_told(path: Path) -> None:
    write_history(path, STEPS[:1])
    with pytest.raises(PipelineError, match="expected 9 steps, got 1"):
        read_history(path, 9)
    path.unlink()
    with pytest.raises(PipelineError, match="missing"):
        read_history(path, 9)
