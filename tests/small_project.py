"""Copies of the project, for tests that run the real DVC or real stages in them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parent.parent


class Project:
    """A copy of the project with small settings, under git and DVC of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self, *command: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment() | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def start(self, *command: str, log: Path, **environment: str) -> "subprocess.Popen[bytes]":
        """A process of its own session, so that no signal reaches the tests themselves."""
        with log.open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment() | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "DVC"))}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        environment["DVC_SITE_CACHE_DIR"] = str(self.folder / "site-cache")
        environment.setdefault("OMP_NUM_THREADS", "1")
        return environment

    def repro(self) -> set[str]:
        """The stages whose commands ran."""
        done = self.run("dvc", "repro")
        return set(re.findall(r"^Running stage '([^']+)'", done.stdout, re.MULTILINE))

    def due(self) -> set[str]:
        """The stages whose own inputs have changed since they ran."""
        status: dict[str, Any] = json.loads(self.run("dvc", "status", "--json").stdout)
        return set(status)

    def change(self, **leaves: Any) -> None:
        """Change leaves of params.yaml, named with __ for the dot."""
        self.edit("params.yaml", leaves)

    def edit(self, file: str, leaves: dict[str, Any]) -> None:
        path = self.folder / file
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key, value in leaves.items():
            *sections, leaf = key.split("__")
            section = tree
            for name in sections:
                section = section[name]
            section[leaf] = value
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")

    def metrics(self, dataset: str) -> dict[str, Any]:
        path = self.folder / "reports" / dataset / "metrics.json"
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return metrics

    def mlflow_runs(self) -> list[Run]:
        """All runs of all experiments, in the order in which they began."""
        client = self.mlflow()
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(ids, order_by=["attributes.start_time ASC"]))

    def mlflow(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")


def copy_project(folder: Path) -> Project:
    """The project's files, without tests and without what DVC remembers."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).exists() and not name.startswith(("tests/", "docs/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    (folder / "synthetic/dvc.lock").unlink(missing_ok=True)
    return Project(folder)
