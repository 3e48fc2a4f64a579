"""Eight processes that log at once, into one store: nothing is lost, nothing is there twice."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from benchmarks.mlflow_servers import free_port
from tests.servers import serving
from tests.small_project import Project, copy_project

WRITERS, STEPS, PARAMS, FILES = 8, 100, 150, 3

SCRIPT = f"""
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import mlflow.store.tracking.sqlalchemy_store  # once, instead of in each process
import mlflow.tracking

from pipeline import sender, tracking

# many small transactions instead of a large one
sender.FIRST_AFTER_S = sender.FLUSH_EVERY_S = 0.01


def write(writer, all_there):
    params = {{f"section.leaf_{{i:03d}}": f"{{writer}} {{i}}" for i in range({PARAMS})}}
    with tracking.TrackedRun("pretrain", f"data_{{writer}}", "walks", params, {{}}) as run:
        while not run.run_id:
            time.sleep(0.01)
        all_there.wait(120)
        for step in range(1, {STEPS + 1}):
            run.log(step, {{"loss": writer + 1 / step, "p": step / 8}})
            time.sleep(0.002)  # the work of a step
            if step % 10 == 0:
                run.keep()
        for number in range({FILES}):
            file = Path(f"{{writer}}-{{number}}.txt")
            file.write_text(f"{{writer}} {{number}}")
            run.artifact(file)
        run.made(f"digest {{writer}}")


fork = get_context("fork")
all_there = fork.Barrier({WRITERS})
processes = [fork.Process(target=write, args=(i, all_there)) for i in range({WRITERS})]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(any(process.exitcode for process in processes))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Project:
    """A copy of the project: its store is its own, and there is none yet."""
    return copy_project(tmp_path / "project")


def write_at_once(project: Project, **environment: str) -> None:
    done = project.run(sys.executable, "-c", SCRIPT, **environment)
    assert done.stderr == "", "no writer met any trouble"


def check_nothing_is_lost(project: Project, client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("walks")
    runs: list[Run] = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["dataset"] for run in runs) == [f"data_{i}" for i in range(WRITERS)]
    for run in runs:
        writer = int(run.data.tags["dataset"].removeprefix("data_"))
        assert run.info.status == "FINISHED"
        params = {f"section.leaf_{i:03d}": f"{writer} {i}" for i in range(PARAMS)}
        assert run.data.params == params
        for name, values in {
            "loss": [writer + 1 / step for step in range(1, STEPS + 1)],
            "p": [step / 8 for step in range(1, STEPS + 1)],
        }.items():
            history = client.get_metric_history(run.info.run_id, name)
            points = sorted((point.step, point.value) for point in history)
            assert points == list(enumerate(values, start=1))
        texts = client.list_artifacts(run.info.run_id)
        assert [file.path for file in texts] == [f"{writer}-{i}.txt" for i in range(FILES)]
        copies = project.folder / "copies"
        copies.mkdir(exist_ok=True)
        for number, file in enumerate(texts):
            copy = client.download_artifacts(run.info.run_id, file.path, str(copies))
            assert Path(copy).read_text(encoding="utf-8") == f"{writer} {number}"
    ids = json.loads((project.folder / "runs" / "run_ids.json").read_text(encoding="utf-8"))
    assert ids == {f"digest {run.data.tags['dataset'][-1]}": run.info.run_id for run in runs}
    assert not list((project.folder / "runs").glob("*/record")), "all is delivered"


def test_nothing_is_lost_in_the_default_store(folder: Project) -> None:
    """Nor while the eight make it: each of them finds none at first."""
    write_at_once(folder)
    check_nothing_is_lost(folder, MlflowClient(f"sqlite:///{folder.folder / 'mlflow.db'}"))


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of an empty database of a PostgreSQL of its own, in a temporary folder.

    Nobody but us reaches it: a socket in a folder of ours, no port. Skips where it cannot run.
    """
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra postgres)")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL here (Debian's package postgresql)")
    programs = found[-1].parent
    as_root = os.geteuid() == 0  # PostgreSQL refuses to run as root
    user: dict[str, object] = {"user": "nobody", "group": "nogroup"} if as_root else {}
    # not below tmp_path, where nobody else may look, and whose name is too long for a socket
    with tempfile.TemporaryDirectory(prefix="postgresql-") as name:
        if as_root:
            shutil.chown(name, "nobody", "nogroup")

        def run(program: str, *arguments: str) -> None:
            done = subprocess.run(
                [programs / program, *arguments],
                cwd=name,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # not a pipe: the server would keep it open
                stderr=subprocess.STDOUT,
                check=False,
                **user,  # type: ignore[call-overload]
            )
            assert done.returncode == 0, f"{program} {arguments}: {done.returncode}"

        data = f"{name}/data"
        run("initdb", "-D", data, "-U", "gaitgl", "--auth=trust", "--no-sync", "-E", "UTF8")
        options = f"-k {name} -c listen_addresses='' -c fsync=off"
        run("pg_ctl", "-D", data, "-l", f"{name}/log", "-o", options, "-w", "start")
        try:
            run("createdb", "-h", name, "-U", "gaitgl", "mlflow")
            yield f"postgresql://gaitgl@/mlflow?host={name}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


def test_nothing_is_lost_on_a_server_with_postgresql(folder: Project, tmp_path: Path) -> None:
    """The server of README's "Many writers": it makes its tables itself."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with postgresql() as database:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database]
        command += ["--artifacts-destination", str(tmp_path / "artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        log = tmp_path / "server.log"
        jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with serving(*command, url=f"{url}/health", cwd=tmp_path, log=log, **jobs):
            write_at_once(folder, MLFLOW_TRACKING_URI=url)
            check_nothing_is_lost(folder, MlflowClient(url))
        assert not (folder.folder / "mlflow.db").exists()
        assert rows(database) == {
            "runs": WRITERS,
            "metrics": WRITERS * STEPS * 2,
            "params": WRITERS * PARAMS,
        }


def rows(database: str) -> dict[str, int]:
    engine = sqlalchemy.create_engine(database)
    with engine.connect() as connection:
        counts = {
            table: connection.scalar(sqlalchemy.text(f"SELECT count(*) FROM {table}"))
            for table in ("runs", "metrics", "params")
        }
    engine.dispose()
    return counts
