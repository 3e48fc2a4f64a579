"""The stage as DVC starts it, on what the first two stages made of the tiny releases."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from pipeline.catalogue import Release, read_refusals, refusal_table, write_catalogue
from pipeline.settings import DATASETS, Dataset
from pipeline.silhouette_store import SilhouetteStore

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_stage_writes_page_and_numbers_twice_alike(
    dataset: Dataset,
    catalogues: dict[Dataset, pd.DataFrame],
    stores: dict[Dataset, SilhouetteStore],
    tmp_path: Path,
) -> None:
    data, report = tmp_path / "data" / dataset, tmp_path / "reports" / dataset
    (data / "catalogue").mkdir(parents=True)
    sequences, store = catalogues[dataset], stores[dataset]
    release = Release("release", 1, int(sequences["n_frames"].sum()), {})
    write_catalogue(data / "catalogue", sequences, refusal_table(dataset, []), release)
    shutil.copytree(store.folder, data / "silhouettes")
    written = []
    for _ in range(2):
        command = [sys.executable, "-m", "stages.describe", dataset]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "random"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert f"reports/{dataset}/ingest.html" in done.stdout
        written.append([(report / name).read_bytes() for name in ("ingest.html", "ingest.json")])
    assert written[0] == written[1]
    numbers = json.loads(written[0][1])
    assert numbers["found"]["sequences"] == len(sequences)
    assert numbers["found"]["frames"] == sequences["n_frames"].sum()
    assert numbers["found"]["frames_kept"] == store.index["n_frames"].sum()
    assert numbers["refused"]["normalize"]["rows"] == len(read_refusals(store.folder))
    assert all(account["holds"] for account in numbers["accounting"].values())
    assert {path.name for path in report.iterdir()} == {"ingest.html", "ingest.json"}


def test_what_is_missing_is_told_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.describe", "oumvlp"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "sequences.parquet is missing: `dvc repro` makes it" in done.stderr
    assert "Traceback" not in done.stderr
