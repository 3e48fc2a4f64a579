"""The real stages on tiny data, from a release to its report, and what stops them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.checkpoints import save_checkpoint
from pipeline.embedding_file import read_embeddings, write_embeddings
from pipeline.errors import PipelineError
from pipeline.files import sha256
from pipeline.settings import Dataset, Settings
from pipeline.silhouette_store import SilhouetteStore
from pipeline.submission import check
from pipeline.training_history import HISTORY, Step, write_history
from stages import embed, evaluate, ingest, normalize
from tests.pipeline.trainings import runs

STAGES = {"ingest": ingest, "normalize": normalize, "embed": embed, "evaluate": evaluate}

Run = Callable[[str, Dataset], None]


@pytest.fixture
def run(tracking_store: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("ingest", "casia_e")`` runs a stage in the current folder."""

    def stage(name: str, dataset: Dataset) -> None:
        monkeypatch.setattr(sys, "argv", [name, dataset])
        STAGES[name].main()  # type: ignore[attr-defined]

    return stage


def _train(dataset: Dataset, stage: str) -> None:
    """Weights and a history as a training would leave them."""
    torch.manual_seed(0)
    config = GaitGLConfig(channels=(2, 2, 4, 4, 4, 4))
    settings = Settings.load()
    info = {
        "dataset": dataset,
        "seed": 0,
        "silhouettes": SilhouetteStore(Path("data", dataset, "silhouettes")).digest(),
        "training": (settings.finetune if stage == "finetune" else settings.pretrain).model_dump(),
        "upstream": [],
    }
    folder = Path("models", stage)
    folder.mkdir(parents=True)
    save_checkpoint(folder / "checkpoint.safetensors", GaitGL(config), info)
    last = info["training"]["steps"]
    steps = [Step(step, 0.2, 0.5, 0.3, 0.1, 1e-4, p) for step, p in ((1, 6.5), (last, 6.4))]
    write_history(folder / HISTORY, steps)


def _figure(seed: int) -> bytes:
    """A frame: somebody of a width and height of their own stands in it."""
    rng = np.random.default_rng(seed)
    grey = np.zeros((96, 72), np.uint8)
    axes = int(rng.integers(8, 16)), int(rng.integers(30, 44))
    cv2.ellipse(grey, (36, 48), axes, int(rng.integers(0, 20)), 0, 360, 255, -1)
    return cv2.imencode(".jpg", grey)[1].tobytes()


@pytest.fixture
def competition(
    project: Callable[..., Path],
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A project with embeddings of a competition's data: the probes 00001 to 00004 look like the
    people of the gallery, 00005 has too few frames and 00006 none."""
    root = tmp_path / "hid"
    walks = {"train/001/aa": 1, "train/002/bb": 2}
    walks |= {f"test_gallery/{500 + i}/g{i}": 10 + i for i in (1, 2, 3, 4)}
    walks |= {f"test_probe/{i:05}": 10 + i for i in (1, 2, 3, 4)}
    files = {f"{w}/{i:03}.jpg": _figure(seed) for w, seed in walks.items() for i in range(4)}
    for name, content in {**files, "test_probe/00005/001.jpg": _figure(9)}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "test_probe/00006").mkdir()
    folder = project({"data.casia_e.root": str(root), "normalize.min_foreground": 100})
    monkeypatch.chdir(folder)
    run("ingest", "casia_e")
    run("normalize", "casia_e")
    _train("casia_e", "finetune")
    run("embed", "casia_e")
    return folder


def test_a_competition_ends_in_a_submission(
    competition: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("evaluate", "casia_e")
    path = competition / "reports/casia_e/tables/submission.csv"
    assert path.read_text() == (
        "videoID,label\n00001,501\n00002,502\n00003,503\n00004,504\n00005,501\n00006,501\n"
    )
    assert check(path, competition / "data/casia_e/catalogue", "videoID,label", False) == 6
    said = capsys.readouterr().out
    assert "submission: 6 probes in reports/casia_e/tables/submission.csv" in said
    assert "2 of 6 probes have no embedding" in said
    metrics = json.loads((competition / "reports/casia_e/metrics.json").read_text())
    page = (competition / "reports/casia_e/index.html").read_text("utf-8")
    for made_from in ("embeddings/casia_e.arrow", "data/casia_e/catalogue/protocol.json"):
        assert sha256(competition / made_from) in page
    assert metrics["submission"] == {"probes": 6, "nearest": 4, "no_frames": 2}


def test_the_years_columns_and_unknown_people_are_settings(
    competition: Path, run: Run, change_leaf: Callable[[Path, str, object], None]
) -> None:
    params = competition / "params.yaml"
    change_leaf(params, "evaluate.submission.columns", "videoID,subjectID")
    change_leaf(params, "evaluate.submission.unknown_above", 1e-12)
    change_leaf(params, "evaluate.reranking.method", "k_reciprocal")
    run("evaluate", "casia_e")
    lines = (competition / "reports/casia_e/tables/submission.csv").read_text().splitlines()
    assert lines[0] == "videoID,subjectID"
    assert lines[5:] == ["00005,-1", "00006,-1"]


def test_the_row_shows_what_the_checkpoint_was_trained_with(
    competition: Path, run: Run, change_leaf: Callable[[Path, str, object], None]
) -> None:
    params = competition / "params.yaml"  # its finetune and seed were those of the checkpoint
    trained_lr = Settings.load().finetune.lr
    for key, value in (("finetune.lr", 0.5), ("seed", 7), ("evaluate.distance", "cosine")):
        change_leaf(params, key, value)  # and only evaluate runs: `dvc repro -s`
    run("evaluate", "casia_e")
    [row] = runs()
    assert row.data.params["finetune.lr"] == str(trained_lr)
    assert row.data.params["seed"] == "0"
    assert row.data.params["model.channels"] == "[2, 2, 4, 4, 4, 4]"
    assert row.data.params["evaluate.distance"] == "cosine"


def test_a_protocol_that_the_data_does_not_offer_is_told(
    competition: Path, run: Run, change_leaf: Callable[[Path, str, object], None]
) -> None:
    change_leaf(competition / "params.yaml", "evaluate.protocols.casia_e", ["view_pairs"])
    with pytest.raises(PipelineError, match="HID has no protocol called view_pairs; it offers hid"):
        run("evaluate", "casia_e")
    assert not (competition / "reports").exists()


def test_bad_input_is_told_before_anything_is_written(competition: Path, run: Run) -> None:
    path = competition / "embeddings/casia_e.arrow"
    keys, embeddings, made_by = read_embeddings(path)
    spoilt = embeddings.copy()
    spoilt[2] = np.nan
    keys.loc[5, "subject"] = "00077"
    about = {k: v for k, v in made_by.items() if k in ("stage", "trained_by", "checkpoint")}
    write_embeddings(path, keys, spoilt, about)
    before = sorted(competition.rglob("*"))
    with pytest.raises(PipelineError) as raised:
        run("evaluate", "casia_e")
    told = str(raised.value)
    assert told.startswith("casia_e: embeddings, catalogue and protocols do not belong together")
    assert "1 embedding(s) of 8 hold NaN or numbers beyond 1e+15:\n  row 2: " in told
    assert "1 embedding(s) of 8 are none of the 9 test sequences catalogued" in told
    assert "row 5: 00077 " in told
    assert "1 sequence(s) that are compared have silhouettes, but no embedding" in told
    assert sorted(competition.rglob("*")) == before


def test_walkers_are_evaluated_by_both_protocols(
    project: Callable[..., Path],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    change_leaf: Callable[[Path, str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = project()
    monkeypatch.chdir(folder)
    for stage in ("ingest", "normalize"):
        run(stage, "oumvlp")
    _train("oumvlp", "pretrain")
    run("embed", "oumvlp")
    run("evaluate", "oumvlp")
    report = folder / "reports/oumvlp"
    metrics = json.loads((report / "metrics.json").read_text())
    assert 0 <= metrics["rank1"] <= 100
    assert "rank1_low" not in metrics  # of four subjects there is no interval
    assert {"map", "minp", "eer"} <= set(metrics["all_views"])
    said = capsys.readouterr().out
    assert "OUMVLP, view_pairs: Each view is a gallery" in said
    assert "OUMVLP, all_views: All views are one gallery" in said
    first = {path: path.read_bytes() for path in sorted((report / "tables").iterdir())}
    run("evaluate", "oumvlp")
    assert {path: path.read_bytes() for path in sorted((report / "tables").iterdir())} == first
    change_leaf(folder / "params.yaml", "evaluate.protocols.oumvlp", ["all_views"])
    run("evaluate", "oumvlp")
    metrics = json.loads((report / "metrics.json").read_text())
    assert set(metrics["protocols"]) == {"all_views"}
    assert "map" in metrics  # the first is the headline
