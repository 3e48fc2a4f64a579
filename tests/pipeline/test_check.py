from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pipeline import check
from pipeline.catalogue import SEQUENCES
from pipeline.devices import lacks_bfloat16
from pipeline.errors import PipelineError
from pipeline.settings import Dataset
from pipeline.tables import write_table

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


@pytest.mark.parametrize(
    ("oumvlp", "casia_e", "told"),
    [
        ("/nowhere", "raw/absent", ("oumvlp.root = /nowhere", "casia_e.root = raw/absent")),
        (
            "data/oumvlp",
            "synthetic/release/casia",
            (
                "data.oumvlp.root = data/oumvlp: data/ holds what the stages make",
                "only in synthetic/release/oumvlp, synthetic/release/casia_e",
            ),
        ),
        (
            "x" * 300,
            "~/data",
            ("out of reach (File name too long)", "missing (~ is not replaced here)"),
        ),
    ],
    ids=["absent", "of the pipeline", "no name"],
)
def test_all_wrong_roots_are_named_at_once(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    oumvlp: str,
    casia_e: str,
    told: tuple[str, str],
) -> None:
    monkeypatch.chdir(project({"data.oumvlp.root": oumvlp, "data.casia_e.root": casia_e}))
    with pytest.raises(PipelineError) as raised:
        check.main()
    for line in told:
        assert line in str(raised.value)


def test_wrong_settings_are_named_before_roots(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project({"finetune.lr_drops": [900]}))
    with pytest.raises(PipelineError, match=r"finetune\.lr_drops\[0\]: 900 is past"):
        check.main()


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


def test_too_few_subjects_draw_a_warning_once_they_are_known(
    project: Project,
    catalogues: dict[Dataset, pd.DataFrame],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """6 + 1 subjects of CASIA-E: with three kept out, one is the validation split's own."""
    settings = {"finetune.validation_subjects": 3, "finetune.subjects_per_batch": 5}
    monkeypatch.chdir(project(settings))
    catalogue = Path("data/casia_e/catalogue")
    made = Path("data").absolute()
    catalogue.mkdir(parents=True)
    check.main()
    assert capsys.readouterr().out == ""
    (catalogue / "sequences.parquet").write_bytes(b"torn")
    check.main()
    assert capsys.readouterr().out == ""
    write_table(catalogue / "sequences.parquet", catalogues["casia_e"], SEQUENCES)
    check.main()
    said = capsys.readouterr().out
    assert said.startswith("warning: finetune.subjects_per_batch is 5, but data/casia_e/catalogue")
    assert "has 4 subjects to train on (2 more are kept out" in said
    monkeypatch.chdir(project({**settings, "finetune.subjects_per_batch": 4}, "enough"))
    Path("data").symlink_to(made)
    check.main()
    assert capsys.readouterr().out == ""
