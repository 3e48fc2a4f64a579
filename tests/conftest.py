"""Tiny releases written by the real walkers, and what the first two stages make of them."""

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import py7zr
import pytest
import yaml

from pipeline import mlflow_store
from pipeline.ingestion import ingest
from pipeline.normalizing import normalize
from pipeline.settings import DATASETS, Dataset
from pipeline.silhouette_store import SilhouetteStore
from synthetic.release import write_casia_e, write_oumvlp
from synthetic.settings import Settings as WalkerSettings

ROOT = Path(__file__).resolve().parent.parent

# what a shell starts in the background ignores Ctrl-C, and so would the processes that tests start
# and signal
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        _default = signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, _default)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole pipelines first, then what lies beside this file: a file runs in one process, and the
    long ones must not come last."""
    order = {"stages": 0, "tests": 1}
    items.sort(key=lambda item: order.get(item.path.parent.name, 2))


VIEWS = ["000", "060", "090"]
MIN_FOREGROUND, MIN_FRAMES = 10_000, 3

SMALL: dict[str, Any] = {
    "normalize.min_frames": MIN_FRAMES,
    "model.channels": [2, 2, 4, 4, 4, 4],
    "runtime.device": "cpu",
    "runtime.workers": 0,
    "runtime.log_every": 1,
    **{
        f"{stage}.{leaf}": value
        for stage in ("pretrain", "finetune")
        for leaf, value in {
            "subjects_per_batch": 3,
            "sequences_per_subject": 2,
            "clip_frames": 4,
            "steps": 3,
            "warmup_steps": 1,
            "lr_drops": [2],
            "precision": "float32",
        }.items()
    },
}


@pytest.fixture(scope="session")
def walker_settings() -> WalkerSettings:
    """6 + 4 subjects of OUMVLP and 6 + 1 + 4 of CASIA-E, 3 views, 6 to 8 frames."""
    tree = yaml.safe_load((ROOT / "synthetic" / "params.yaml").read_text(encoding="utf-8"))
    tree["oumvlp"] |= {
        "training_subjects": 6,
        "test_subjects": 4,
        "views": VIEWS,
        "missing_share": 0.05,
    }
    tree["casia_e"] |= {
        "training_subjects": 6,
        "validation_subjects": 1,
        "test_subjects": 4,
        "views": VIEWS,
    }
    for dataset in DATASETS:
        tree[dataset]["recording"] |= {"fewest_frames": 6, "most_frames": 8}
    return WalkerSettings.model_validate(tree)


@pytest.fixture(scope="session")
def release_roots(
    walker_settings: WalkerSettings, tmp_path_factory: pytest.TempPathFactory
) -> dict[Dataset, Path]:
    """The walkers as their datasets' owners would hand them out; do not write there."""
    folder = tmp_path_factory.mktemp("releases")
    write_oumvlp(walker_settings, folder / "oumvlp", workers=1)
    write_casia_e(walker_settings, folder / "casia_e", workers=1)
    return {dataset: folder / dataset for dataset in DATASETS}


@pytest.fixture(scope="session")
def catalogues(release_roots: dict[Dataset, Path]) -> dict[Dataset, pd.DataFrame]:
    """The sequences of each tiny release; do not write into them."""
    return {
        dataset: ingest(dataset, release_roots[dataset], "release", workers=0)[0]
        for dataset in DATASETS
    }


@pytest.fixture(scope="session")
def stores(
    release_roots: dict[Dataset, Path],
    catalogues: dict[Dataset, pd.DataFrame],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[Dataset, SilhouetteStore]:
    """The silhouettes of each tiny release; do not write there."""
    opened = {}
    for dataset in DATASETS:
        folder = tmp_path_factory.mktemp(f"silhouettes-{dataset}")
        normalize(
            dataset,
            release_roots[dataset],
            catalogues[dataset],
            folder,
            MIN_FOREGROUND,
            MIN_FRAMES,
            workers=0,
        )
        opened[dataset] = SilhouetteStore(folder)
    return opened


@pytest.fixture(scope="session")
def slow_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with OUMVLP in the real pictures' size and, so that normalizing takes seconds, in 16
    bits, for which there is no fast decoder: three archives of 40 sequences of 5 frames. Do not
    write there."""
    root = tmp_path_factory.mktemp("slow") / "oumvlp"
    root.mkdir()
    pictures = []
    for shift in range(5):
        frame = np.zeros((980, 1280), np.uint8)
        cv2.ellipse(frame, (600 + 9 * shift, 500), (120, 400), shift, 0, 360, 255, -1)
        pictures.append(cv2.imencode(".png", frame.astype(np.uint16) * 257)[1].tobytes())
    for folder in ("Silhouette_000-00", "Silhouette_000-01", "Silhouette_090-00"):
        stored = [{"id": py7zr.FILTER_COPY}]
        with py7zr.SevenZipFile(root / f"{folder}.7z", "w", filters=stored) as archive:
            for subject in range(1, 41):
                for number, picture in enumerate(pictures):
                    archive.writestr(picture, f"{folder}/{subject:05}/{number:04}.png")
    return root


@pytest.fixture
def change_leaf() -> Callable[[Path, str, Any], None]:
    """``change_leaf(params_file, "finetune.steps", 5)`` rewrites one leaf of a settings file."""

    def change(path: Path, key: str, value: Any) -> None:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        *sections, leaf = key.split(".")
        section = tree
        for name in sections:
            section = section[name]
        section[leaf] = value
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")

    return change


@pytest.fixture
def project(
    tmp_path: Path,
    release_roots: dict[Dataset, Path],
    change_leaf: Callable[[Path, str, Any], None],
) -> Callable[..., Path]:
    """``project({"finetune.steps": 5})`` makes a folder with a small params.yaml and names it."""

    def make(changes: dict[str, Any] | None = None, name: str = "project") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        params = folder / "params.yaml"
        shutil.copy(ROOT / "params.yaml", params)
        roots = {f"data.{dataset}.root": str(root) for dataset, root in release_roots.items()}
        for key, value in {**SMALL, **roots, **(changes or {})}.items():
            change_leaf(params, key, value)
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that nobody trained, as finetune would write it; do not write there."""
    import torch

    from gaitgl.model import GaitGL, GaitGLConfig
    from pipeline.checkpoints import save_checkpoint

    torch.manual_seed(0)
    config = GaitGLConfig(channels=(2, 3, 4, 4, 4, 5))
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.safetensors"
    info = {"stage": "finetune", "dataset": "casia_e", "fingerprint": "f1"}
    save_checkpoint(path, GaitGL(config), info)
    return path


@pytest.fixture(scope="session")
def model_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as MLflow's model; do not write there."""
    from pipeline.model_folder import write_model

    folder = tmp_path_factory.mktemp("mlflow-model") / "model"
    write_model(folder, checkpoint)
    return folder


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes seconds, a copy takes none."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking_store(
    migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An MLflow store of the test's own, at the root of a git repository with one commit.

    The folder returned holds ``mlflow.db``, ``mlartifacts/`` and ``runs/run_ids.json``.
    """
    folder = tmp_path / "tracked"
    folder.mkdir()
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)
    shutil.copy(migrated_database, folder / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.setattr(mlflow_store, "ROOT", folder)
    monkeypatch.setattr(mlflow_store, "CODE", folder)
    monkeypatch.setattr(mlflow_store, "RUN_IDS", folder / "runs" / "run_ids.json")
    return folder
