from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="session")
def fixture_arrays() -> Callable[[str], dict[str, NDArray[Any]]]:
    """Load tests/data/<name>.npz: what the published implementations computed."""

    def load(name: str) -> dict[str, NDArray[Any]]:
        with np.load(DATA / f"{name}.npz", allow_pickle=False) as arrays:
            return dict(arrays)

    return load


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
