import numpy as np
import pandas as pd
import pytest

from pipeline.held_out import held_out


def index_of(**splits: list[str]) -> pd.DataFrame:
    """An index of two sequences of each subject, in no order."""
    rows = [(subject, split) for split, subjects in splits.items() for subject in subjects]
    return pd.DataFrame(rows * 2, columns=["subject", "split"]).sample(frac=1, random_state=0)


def test_validation_takes_the_val_split_first_then_training_subjects_evenly() -> None:
    training = [f"{number:03}" for number in range(1, 12)]
    index = index_of(train=training, val=["102", "101", "103"], test=["200", "201"])
    assert held_out(index, 0) == []
    assert held_out(index, 2) == ["101", "102"]
    assert held_out(index, 3) == ["101", "102", "103"]
    assert held_out(index, 4) == ["101", "102", "103", "001"]
    assert held_out(index, 6) == ["101", "102", "103", "001", "006", "011"]
    assert held_out(index, 14) == ["101", "102", "103", *training]
    assert held_out(index, 99) == ["101", "102", "103", *training]


@pytest.mark.parametrize("n", [2, 3, 7, 50])
def test_as_many_subjects_are_held_out_as_asked(n: int) -> None:
    training = [f"{number:03}" for number in range(n)]
    index = index_of(train=training, test=["900"])
    for subjects in range(1, n + 1):
        numbers = [int(subject) for subject in held_out(index, subjects)]
        assert len(set(numbers)) == subjects
        gaps = np.diff(numbers)
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
        assert subjects == 1 or (numbers[0], numbers[-1]) == (0, n - 1)
