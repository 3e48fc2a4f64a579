from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import check
from pipeline.devices import lacks_bfloat16
from pipeline.errors import PipelineError

Project = Callable[..., Path]


def test_good_settings_and_roots_pass(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project())
    check.main()


def test_walkers_need_not_be_there_yet(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    roots: dict[str, Any] = {
        f"data.{dataset}.root": f"synthetic/release/{dataset}" for dataset in ("oumvlp", "casia_e")
    }
    monkeypatch.chdir(project(roots))
    check.main()


def test_all_wrong_roots_are_named_at_once(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project({"data.oumvlp.root": "/nowhere", "data.casia_e.root": "raw/absent"}))
    with pytest.raises(PipelineError) as raised:
        check.main()
    assert "data.oumvlp.root = /nowhere" in str(raised.value)
    assert "data.casia_e.root = raw/absent" in str(raised.value)


def test_wrong_settings_are_named_before_roots(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project({"finetune.lr_drops": [900]}))
    with pytest.raises(PipelineError, match=r"finetune\.lr_drops\[0\]: 900 is past"):
        check.main()


def test_roots_where_only_the_pipeline_writes_are_named(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = {"data.oumvlp.root": "data/oumvlp", "data.casia_e.root": "synthetic/release/casia"}
    monkeypatch.chdir(project(roots))
    with pytest.raises(PipelineError) as raised:
        check.main()
    assert "data.oumvlp.root = data/oumvlp: data/ holds what the stages make" in str(raised.value)
    assert "only in synthetic/release/oumvlp, synthetic/release/casia_e" in str(raised.value)


def test_names_that_no_folder_can_have_are_named(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project({"data.oumvlp.root": "x" * 300, "data.casia_e.root": "~/data"}))
    with pytest.raises(PipelineError) as raised:
        check.main()
    assert "out of reach (File name too long)" in str(raised.value)
    assert "missing (~ is not replaced here)" in str(raised.value)


def test_a_project_where_mlflow_cannot_work_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project(name="50%"))
    with pytest.raises(PipelineError, match="path holds a %"):
        check.main()


def test_a_precision_that_trainings_will_refuse_draws_a_warning(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project({"finetune.precision": "bfloat16"}))
    check.main()
    lack = lacks_bfloat16(torch.device("cpu"))
    said = capsys.readouterr().out
    assert said == (
        f"warning: finetune.precision is bfloat16, but {lack}: finetune will stop there\n"
        if lack
        else ""
    )
