from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import check
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
