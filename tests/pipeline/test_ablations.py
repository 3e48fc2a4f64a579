"""What the ablations compare, what their figures are read from, and the command itself."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.ablations import BASELINE, CLAIMS, VARIANTS, common_changes, fetched, outcome
from pipeline.distance_pass import Method
from pipeline.errors import PipelineError
from pipeline.evaluation import evaluate
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.probe_table import write_probes
from pipeline.settings import Settings
from pipeline.training_history import HISTORY, Step, write_history
from tests.pipeline.walks import walks
from tests.small_project import ROOT, Project, small_pipeline


def test_every_variant_is_a_valid_and_different_setting(tmp_path: Path, change_leaf: Any) -> None:
    seen = []
    for variant in VARIANTS:
        params = tmp_path / f"{variant.name}.yaml"
        params.write_bytes((ROOT / "params.yaml").read_bytes())
        for key, value in (BASELINE | variant.settings).items():
            change_leaf(params, key, value)
        settings = Settings.load(params)
        GaitGL(GaitGLConfig(**settings.model.model_dump()))
        assert settings.flat() not in seen
        seen.append(settings.flat())
        assert variant.settings.keys() <= BASELINE.keys()


def test_the_baseline_is_the_network_of_params_yaml() -> None:
    settings = Settings.load(ROOT / "params.yaml").flat()
    assert {key: settings[key] for key in BASELINE} == BASELINE


def test_claims_are_about_variants_and_each_variant_has_one() -> None:
    named = {name for claim in CLAIMS for name in (claim.better, claim.worse)}
    assert named == {variant.name for variant in VARIANTS}


def settings_with(**changes: Any) -> Settings:
    settings = Settings.load(ROOT / "params.yaml")
    return settings.model_copy(
        update={
            name: getattr(settings, name).model_copy(update=section)
            if isinstance(section, dict)
            else section
            for name, section in changes.items()
        }
    )


def test_what_all_experiments_have_otherwise_is_named() -> None:
    shorter = {"steps": 9, "lr_drops": [4]}
    used = [
        settings_with(pretrain=shorter, seed=1),
        settings_with(pretrain=shorter, model={"branches": "local"}, runtime={"workers": 3}),
    ]
    expected = {"pretrain.steps": 9, "pretrain.lr_drops": "[4]"}
    assert common_changes(settings_with(), used) == expected
    used.append(settings_with(pretrain={"steps": 8, "lr_drops": [4]}))
    with pytest.raises(PipelineError, match=r"different settings:\n  pretrain\.steps: 8, 9\n"):
        common_changes(settings_with(), used)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The files of an experiment, as DVC hands them out."""
    casia_e = CasiaERelease(Path(), [], "release").protocols
    for dataset, protocols in (("oumvlp", OumvlpRelease.protocols), ("casia_e", casia_e)):
        keys, embeddings = walks(protocols[0].gallery + protocols[0].all_probes)
        results = evaluate(keys, embeddings, protocols, Method(shown=False), 20).results
        (tmp_path / dataset).mkdir()
        write_probes(tmp_path / dataset / "probes.parquet", [result.probes for result in results])
    for stage, p in (("pretrain", 6.4), ("finetune", math.nan)):
        (tmp_path / stage).mkdir()
        write_history(tmp_path / stage / HISTORY, [Step(2, 0.2, 0.5, 0.3, 0.1, 1e-4, p)])
    return tmp_path


def test_an_outcome_holds_the_headline_protocols_rank1(finished: Path) -> None:
    found = outcome(finished, {"pretrain": 3.0, "finetune": 4.0, "evaluate": 9.0})
    assert list(found.rank1) == ["OUMVLP", "CASIA-E NM", "CASIA-E BG", "CASIA-E CL"]
    protocol = OumvlpRelease.protocols[0]
    keys, embeddings = walks(protocol.gallery + protocol.all_probes)
    (result,) = evaluate(keys, embeddings, [protocol], Method(shown=False), 20).results
    by_view = result.rank1["all"]
    expected = np.mean([by_view[i, j] for i in range(3) for j in range(3) if i != j])
    assert found.rank1["OUMVLP"].value == pytest.approx(expected)
    assert found.rank1["OUMVLP"].draws is not None
    assert found.final_p == {"pretrain": 6.4}
    assert found.seconds == 7.0
    assert math.isnan(outcome(finished, {"finetune": 4.0}).seconds)


def test_what_is_fetched_twice_leaves_dvcs_cache_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    files = {
        "reports/oumvlp/tables/probes.parquet": "o",
        "reports/casia_e/tables/probes.parquet": "c",
        "models/pretrain/history.csv": "p",
        "models/finetune/history.csv": "f",
        "params.yaml": "seed: 0",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    project.run("git", "init", "-q")
    project.run("dvc", "init", "-q")
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc/config")  # links instead of copies
    project.run("dvc", "add", "-q", "reports", "models")
    project.run("git", "add", "-A")
    identity = ("-c", "user.name=walker", "-c", "user.email=walker@example.com")
    project.run("git", *identity, "commit", "-q", "-m", "results")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        folder = fetched("HEAD")
        assert (folder / "oumvlp/probes.parquet").read_text(encoding="utf-8") == "o"
        assert (folder / "finetune/history.csv").read_text(encoding="utf-8") == "f"
        assert (folder / "params.yaml").read_text(encoding="utf-8") == "seed: 0"
    cached = [path for path in (tmp_path / ".dvc/cache").rglob("*") if path.is_file()]
    assert {"o", "c", "p", "f"} <= {path.read_text(encoding="utf-8") for path in cached}


SOME = ("baseline", "p-1", "scratch")
SOME_OF_THEM = f"""
from pipeline import ablations
ablations.VARIANTS = tuple(v for v in ablations.VARIANTS if v.name in {SOME})
ablations.main()
"""


@pytest.mark.soak
def test_one_command_queues_trains_and_writes_the_page(tmp_path: Path) -> None:
    project = small_pipeline(tmp_path / "project")
    command = ("python", "-c", SOME_OF_THEM, "--seeds", "1", "-S", "pretrain.steps=4")
    done = project.run(*command)
    assert "3 of 3 experiments" in done.stdout
    page = (project.folder / "docs/ablations.md").read_text(encoding="utf-8")
    assert "-S pretrain.steps=4" in page
    assert re.search(r"\| `p-1` \| 0 \|.*\| 1\.00 → 1\.00 \|", page)
    for variant in VARIANTS:
        if variant.name not in SOME:
            continue
        fetched_params = project.folder / f"runs/ablations/ablation-{variant.name}-0/params.yaml"
        params = yaml.safe_load(fetched_params.read_text(encoding="utf-8"))
        for key, value in (BASELINE | variant.settings | {"pretrain.steps": 4}).items():
            section, _, leaf = key.partition(".")
            assert params[section][leaf] == value, (variant.name, key)
    # the fine-tuning from scratch is another one, and the baseline's pretraining is restored
    log = project.run("dvc", "queue", "logs", "ablation-scratch-0").stdout
    assert "Stage 'pretrain' is cached" in log
    assert "Running stage 'finetune'" in log

    project.run(*command)
    log = project.run("dvc", "queue", "logs", "ablation-baseline-0").stdout
    assert "Running stage" not in log
    assert (project.folder / "docs/ablations.md").read_text(encoding="utf-8") == page
