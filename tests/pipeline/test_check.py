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
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.protocols import write_protocols
from pipeline.settings import TRAINED_BY, Dataset
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
        (".", "..", ("root = .: this project lies in it", "root = ..: this project lies in it")),
        (
            "x" * 300,
            "~/data",
            ("out of reach (File name too long)", "missing (~ is not replaced here)"),
        ),
    ],
    ids=["absent", "of the pipeline", "around it", "no name"],
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


def test_a_root_by_way_of_a_link_to_the_project_is_in_the_project(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "project")
    monkeypatch.chdir(
        project({"data.oumvlp.root": str(link / "data"), "data.casia_e.root": str(link)})
    )
    with pytest.raises(PipelineError) as raised:
        check.main()
    assert "link/data: data/ holds what the stages make" in str(raised.value)
    assert "link: this project lies in it" in str(raised.value)


@pytest.mark.parametrize("folder", ["models", "data/oumvlp"])
def test_results_on_another_disk_by_way_of_a_link_are_told(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str
) -> None:
    monkeypatch.chdir(project())
    check.main()
    Path(folder).parent.mkdir(exist_ok=True)
    (tmp_path / "disk").mkdir()
    Path(folder).symlink_to(tmp_path / "disk")
    with pytest.raises(PipelineError, match=f"^{folder} is a link out of the project"):
        check.main()


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


@pytest.mark.parametrize(
    ("dataset", "kept_out", "batch", "told"),
    [
        ("casia_e", 3, 4, ""),
        ("casia_e", 3, 5, "has 4 subjects to train on (2 more are kept out"),  # the third is val's
        ("oumvlp", 0, 7, "has 6 subjects to train on (0 more are kept out"),
        ("oumvlp", 99, 2, "has 0 subjects to train on (6 more are kept out"),
    ],
)
def test_too_few_subjects_draw_a_warning_once_they_are_known(
    project: Project,
    catalogues: dict[Dataset, pd.DataFrame],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dataset: Dataset,
    kept_out: int,
    batch: int,
    told: str,
) -> None:
    """Both have 6 training subjects, CASIA-E one to validate on as well."""
    stage = TRAINED_BY[dataset]
    settings = {f"{stage}.validation_subjects": kept_out, f"{stage}.subjects_per_batch": batch}
    monkeypatch.chdir(project(settings))
    catalogue = Path("data", dataset, "catalogue")
    catalogue.mkdir(parents=True)
    check.main()
    (catalogue / "sequences.parquet").write_bytes(b"torn")
    check.main()
    assert capsys.readouterr().out == ""
    write_table(catalogue / "sequences.parquet", catalogues[dataset], SEQUENCES)
    check.main()
    said = capsys.readouterr().out
    begin = f"warning: {stage}.subjects_per_batch is {batch}, but {catalogue} "
    assert said.startswith(f"{begin}{told}" if told else "")
    assert bool(said) == bool(told)


def test_a_protocol_that_the_data_does_not_have_draws_a_warning_once_it_is_known(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project({"evaluate.protocols.oumvlp": ["hid"]}))
    catalogue = Path("data/oumvlp/catalogue")
    catalogue.mkdir(parents=True)
    check.main()
    assert capsys.readouterr().out == ""
    write_protocols(catalogue, OumvlpRelease.protocols)
    check.main()
    said = capsys.readouterr().out
    assert said.startswith("warning: evaluate.protocols.oumvlp: OUMVLP has no protocol called hid")
    assert said.count("warning") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_draws_one_warning(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project({"runtime.device": "cuda", "pretrain.precision": "bfloat16"}))
    check.main()
    said = capsys.readouterr().out
    assert said.startswith("warning: runtime.device is cuda, but torch finds no GPU here")
    assert said.count("warning") == 1
