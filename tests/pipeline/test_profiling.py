import gzip
import json
from pathlib import Path

import pytest
import torch

from pipeline.profiling import SKIPPED, TRACED, profiled


def step() -> None:
    torch.nn.functional.conv2d(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3))


def test_a_trace_holds_the_convolutions_of_the_steps_after_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "traces" / "pretrain.json.gz"
    with profiled(path) as traced:
        for done in range(1, SKIPPED + TRACED + 4):
            step()
            traced()
            assert path.exists() == (done >= SKIPPED + TRACED)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    names = [event["name"] for event in events if "name" in event]
    assert names.count("aten::conv2d") == TRACED
    assert f"trace of {TRACED} steps: {path}; open it in" in capsys.readouterr().out


def test_without_a_path_nothing_is_traced(capsys: pytest.CaptureFixture[str]) -> None:
    with profiled(None) as traced:
        for _ in range(SKIPPED + TRACED):
            traced()
        assert not torch.autograd.profiler._is_profiler_enabled
    assert capsys.readouterr().out == ""


def test_too_few_steps_for_a_trace_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pretrain.json.gz"
    with profiled(path) as traced:
        for _ in range(SKIPPED - 1):
            step()
            traced()
    assert not path.exists()
    assert f"no trace: it takes {SKIPPED + TRACED} steps" in capsys.readouterr().out
