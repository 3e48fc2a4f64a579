"""Stage evaluate as a process of its own."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.embedding_file import write_embeddings
from pipeline.layouts.hid import Hid
from pipeline.protocols import write_protocol
from tests.child_processes import environment, python


def test_probes_without_labels_are_told_before_anything_is_written(
    project: Callable[..., Path],
) -> None:
    folder = project()
    catalogue = folder / "data" / "casia_e" / "catalogue"
    catalogue.mkdir(parents=True)
    write_protocol(catalogue, Hid.protocol)
    keys = pd.DataFrame(
        [("casia_e", "501", "gallery-ab", "any"), ("casia_e", "00001", "probe", "any")],
        columns=["dataset", "subject", "sequence", "view"],
    )
    made_by = {"stage": "finetune", "trained_by": "finetune", "checkpoint": "", "silhouettes": ""}
    embeddings = np.zeros((2, 4, 64), np.float32)
    write_embeddings(folder / "embeddings" / "casia_e.arrow", keys, embeddings, made_by)
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        python("from stages import evaluate; evaluate.run_stage(evaluate.main)", "casia_e"),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "error: HID: nobody knows who walks in the probes (test_probe)" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(folder.rglob("*")) == before
