"""Trainings under the real DVC, killed by real signals: the same bytes and one run all the same."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from gaitgl.model import GaitGL
from pipeline.checkpoints import load_weights, read_checkpoint, save_checkpoint
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.protocols import write_protocols
from pipeline.settings import Dataset
from pipeline.silhouette_store import SilhouetteStore
from tests.small_project import Project, copy_project

DEADLINE_S = 120.0
STEPS = 60

REPRO = ("dvc", "repro", "--single-item", "pretrain")
TRAIN = ("python", "-m", "stages.pretrain")

Stores = dict[Dataset, SilhouetteStore]


@pytest.fixture(scope="module")
def new_project(
    stores: Stores, tmp_path_factory: pytest.TempPathFactory, migrated_database: Path
) -> Callable[..., Project]:
    """``new_project(pretrain__steps=9)``: silhouettes to train on, settings of a short run."""

    def make(**changes: object) -> Project:
        project = copy_project(tmp_path_factory.mktemp("killed"))
        layouts = {"oumvlp": OumvlpRelease, "casia_e": CasiaERelease}
        for dataset, layout in layouts.items():
            data = project.folder / "data" / dataset
            shutil.copytree(stores[dataset].folder, data / "silhouettes")
            (data / "catalogue").mkdir()
            write_protocols(data / "catalogue", layout(Path(), [], "release").protocols)
        shutil.copy(migrated_database, project.folder / "mlflow.db")
        project.change(
            model__channels=[2, 2, 4, 4, 4, 4],
            runtime__workers=1,
            runtime__device="cpu",
            runtime__log_every=1,
            runtime__checkpoint_every=4,
            pretrain__subjects_per_batch=4,
            pretrain__sequences_per_subject=2,
            pretrain__clip_frames=6,
            pretrain__steps=STEPS,
            pretrain__warmup_steps=2,
            pretrain__lr_drops=[40],
            pretrain__precision="float32",
            finetune__steps=3,
            finetune__lr_drops=[],
            finetune__warmup_steps=0,
        )
        project.change(**changes)
        project.run("git", "init", "-q")  # else DVC takes an outer repository for its own
        return project

    return make


def until(project: Project, process: "subprocess.Popen[bytes]", step: int, log: Path) -> None:
    """Return when a state of this step or a later one is on the disk, or the process has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while state_step(project) < step and process.poll() is None:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)


def state_step(project: Project) -> int:
    steps = [int(p.stem[-9:]) for p in project.folder.glob("runs/pretrain-*/step-*.safetensors")]
    return max(steps, default=0)


def trainer_of(process: "subprocess.Popen[bytes]") -> psutil.Process | None:
    """The training stage that a DVC process has started."""
    children = psutil.Process(process.pid).children(recursive=True)
    return next((p for p in children if "stages.pretrain" in p.cmdline()), None)


def result(project: Project) -> list[bytes]:
    folder = project.folder / "models" / "pretrain"
    return [(folder / name).read_bytes() for name in ("checkpoint.safetensors", "history.csv")]


def curves(project: Project) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every metric that does not measure time, in the one run there is."""
    (run,) = project.mlflow_runs()
    assert run.info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    timed = {"sequences_per_s", "waiting_share", "duration_s"}
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in set(run.data.metrics) - timed
        if not name.startswith("system/")
    }


def leftovers(project: Project) -> set[str]:
    """What is left in runs/ of trainings that are over and recorded."""
    names = {path.name for path in (project.folder / "runs").iterdir()}
    return names - {"finished", "run_ids.json", "run_ids.lock"}


@pytest.fixture(scope="module")
def whole(new_project: Callable[..., Project]) -> Project:
    """A training that nobody disturbed."""
    project = new_project()
    project.run(*REPRO)
    assert leftovers(project) == set()
    return project


def assert_same(project: Project, whole: Project) -> None:
    assert result(project) == result(whole)
    assert curves(project) == curves(whole)
    assert [step for step, _ in curves(project)["loss"]] == list(range(1, STEPS + 1))
    assert leftovers(project) == set()


def kill(process: "subprocess.Popen[bytes]", victim: str, number: int) -> None:
    trainer = trainer_of(process) if process.poll() is None else None
    if victim == "group":  # Ctrl-C in a terminal
        os.killpg(process.pid, number)
    elif victim == "trainer" and trainer is not None:
        trainer.send_signal(number)
    else:
        process.send_signal(number)


@pytest.mark.parametrize(
    "kills",
    [
        [
            ("trainer", signal.SIGKILL, 9),
            ("trainer", signal.SIGTERM, 25),
            ("dvc", signal.SIGKILL, 45),
        ],
        [("dvc", signal.SIGTERM, 5), ("group", signal.SIGINT, 30)],
    ],
    ids=["trainer and dvc", "dvc and terminal"],
)
def test_killed_trainings_end_in_the_same_bytes_and_one_run(
    new_project: Callable[..., Project],
    whole: Project,
    tmp_path: Path,
    kills: list[tuple[str, int, int]],
) -> None:
    project = new_project()
    for n, (victim, number, step) in enumerate(kills):
        log = tmp_path / f"{n}.log"
        process = project.start(*REPRO, log=log)
        until(project, process, step, log)
        kill(process, victim, number)
        assert process.wait(DEADLINE_S) != 0, log.read_text()
    done = project.run(*REPRO)
    assert "going on from step" in done.stderr
    assert_same(project, whole)


def test_a_result_is_taken_over_only_while_dvc_has_not_noted_it(
    new_project: Callable[..., Project], whole: Project
) -> None:
    project = new_project()
    project.run(*REPRO)
    (project.folder / "dvc.lock").unlink()  # as if DVC had been killed before it wrote there
    shutil.rmtree(project.folder / ".dvc" / "cache" / "runs")
    assert "its result is runs/finished/pretrain" in project.run(*REPRO).stderr
    assert_same(project, whole)
    again = project.run(*REPRO, "--force")
    assert "its result is" not in again.stderr
    assert f"pretrain: {STEPS}/{STEPS} steps" in again.stderr
    assert result(project) == result(whole)
    assert len(project.mlflow_runs()) == 2


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1])
def test_soak(
    new_project: Callable[..., Project], whole: Project, tmp_path: Path, seed: int
) -> None:
    """Kills at random steps and at random moments (imports, DVC's own work) in a row."""
    draw = random.Random(seed)
    kills = int(os.environ.get("SOAK_KILLS", "24"))
    project = new_project()
    log, survived, finished = tmp_path / "log", 0, 0
    while survived < kills:
        process = project.start(*REPRO, log=log)
        if draw.random() < 0.7:
            until(project, process, state_step(project) + draw.randint(1, 8), log)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0, 9))
        if process.poll() is not None:  # it came to its end: compare, and once more from scratch
            assert process.returncode == 0, log.read_text()
            assert_same(project, whole)
            finished += 1
            project = new_project()
            continue
        victim = draw.choice(["trainer", "trainer", "dvc", "group"])
        number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        if victim == "dvc" and number == signal.SIGINT:
            number = signal.SIGTERM  # DVC ignores it while a stage runs
        kill(process, victim, number)
        survived += process.wait(DEADLINE_S) != 0  # else the kill came when all was done
    project.run(*REPRO)
    assert_same(project, whole)
    print(f"seed {seed}: {survived} kills survived, {finished + 1} trainings ended alike")


def test_a_second_trainer_says_who_trains_already(
    new_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = new_project(pretrain__steps=100_000, pretrain__lr_drops=[])
    log = tmp_path / "first.log"
    first = project.start(*TRAIN, log=log)
    try:
        until(project, first, 4, log)
        second = project.run(*TRAIN, check=False)
        assert second.returncode == 1
        assert f"process {first.pid} on {os.uname().nodename}, since 20" in second.stderr
        assert "Traceback" not in second.stderr
        assert first.poll() is None
    finally:
        first.terminate()
    assert first.wait(DEADLINE_S) == 128 + signal.SIGTERM
    assert "stopped: pretrain after step" in log.read_text()


def losses(project: Project) -> list[float]:
    return [value for _, value in curves(project)["loss"]]


def test_one_two_and_four_processes_train_alike(
    new_project: Callable[..., Project], whole: Project
) -> None:
    settings = {
        "pretrain__steps": 20,
        "pretrain__lr_drops": [],
        "pretrain__validation_subjects": 2,
        "pretrain__validate_every": 10,
    }
    project = new_project(**settings)
    project.run(*TRAIN)
    alone = losses(project)
    validated = curves(project)["validation_rank1"]
    assert [step for step, _ in validated] == [10, 20]
    for processes in (2, 4):
        several = new_project(runtime__processes=processes, **settings)
        several.run(*TRAIN)
        assert losses(several) == pytest.approx(alone, rel=1e-5)
        assert curves(several)["validation_rank1"] == validated
        (run,) = several.mlflow_runs()
        assert run.data.tags["processes"] == str(processes)
        assert leftovers(several) == set()


def test_a_process_that_dies_takes_the_others_down_and_the_next_start_goes_on(
    new_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = new_project(runtime__processes=2)
    log = tmp_path / "log"
    for step, rank in ((5, "1"), (20, "0")):
        process = project.start(*REPRO, log=log)
        until(project, process, step, log)
        everyone = psutil.Process(process.pid).children(recursive=True)
        ranks = {p.environ()["RANK"]: p for p in everyone if "RANK" in p.environ()}
        ranks[rank].kill()
        assert process.wait(DEADLINE_S) != 0
        assert psutil.wait_procs(everyone, 60)[1] == []
        told = log.read_text()
        assert f"process {rank} of 2 was killed by SIGKILL" in told
        assert "Traceback" not in told
    done = project.run(*REPRO)
    assert "going on from step" in done.stderr
    assert [step for step, _ in curves(project)["loss"]] == list(range(1, STEPS + 1))


def test_of_several_processes_one_records_what_was_killed_after_its_result(
    new_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = new_project(runtime__processes=2)
    log = tmp_path / "log"
    process = project.start(*REPRO, log=log)
    made = project.folder / "runs" / "finished" / "pretrain" / "checkpoint.safetensors"
    deadline = time.monotonic() + DEADLINE_S
    while not made.exists():  # then a second or more goes by before all is recorded
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)
    for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    done = project.run(*REPRO)
    assert "has ended already, unnoticed by DVC" in done.stderr
    assert "warning" not in done.stderr
    assert [step for step, _ in curves(project)["loss"]] == list(range(1, STEPS + 1))
    assert len(project.mlflow().search_model_versions()) == 1
    assert leftovers(project) == set()


def test_settings_and_code_changed_meanwhile_are_not_noted_for_the_result(
    new_project: Callable[..., Project], whole: Project, tmp_path: Path
) -> None:
    project = new_project()
    log = tmp_path / "log"
    process = project.start(*REPRO, log=log)
    until(project, process, 5, log)
    changed = [project.folder / name for name in ("params.yaml", "gaitgl/losses.py")]
    before = [path.read_text() for path in changed]
    project.change(pretrain__lr=0.123)
    with changed[1].open("a") as file:
        file.write("# another loss\n")
    assert process.wait(DEADLINE_S) != 0
    told = log.read_text()
    assert "pretrain.lr was 0.0015 when it started, is 0.123 now" in told
    assert "gaitgl/losses.py is not as it was when it started" in told
    assert not (project.folder / "dvc.lock").exists()
    for path, text in zip(changed, before, strict=True):
        path.write_text(text)
    project.run(*REPRO)  # takes the result over
    assert_same(project, whole)


def test_several_processes_stop_with_dvc_at_the_same_step(
    new_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = new_project(runtime__processes=2)
    log = tmp_path / "log"
    process = project.start(*REPRO, log=log)
    until(project, process, 5, log)
    everyone = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait(DEADLINE_S)
    assert psutil.wait_procs(everyone, 60)[1] == []
    assert f"stopped: pretrain after step {state_step(project)} by SIGTERM" in log.read_text()


def two_nodes() -> dict[str, str]:
    """What torchrun wants to know on each of two machines."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}


def test_two_machines_train_as_one_and_notice_that_they_differ(
    new_project: Callable[..., Project], whole: Project, tmp_path: Path
) -> None:
    for changes in ({}, {"seed": 1}):
        first, second = new_project(), new_project(**changes)
        torchrun = two_nodes()
        log = tmp_path / "log"
        process = second.start(*TRAIN, log=log, **torchrun, PET_NODE_RANK="1")
        done = first.run(*REPRO, check=False, **torchrun, PET_NODE_RANK="0")
        status = process.wait(DEADLINE_S)
        assert (done.returncode == 0) == (status == 0) == (not changes), log.read_text()
        assert not (second.folder / "models").exists()
        if changes:
            assert "[1] of 2 have other settings, silhouettes or code" in done.stderr
        else:
            expected = [value for _, value in curves(whole)["loss"]][:10]
            assert losses(first)[:10] == pytest.approx(expected, rel=1e-5)


def test_two_machines_embed_with_one_checkpoint_alone(
    new_project: Callable[..., Project], whole: Project, tmp_path: Path
) -> None:
    first, second = new_project(), new_project()
    for project in (first, second):
        shutil.copytree(whole.folder / "models", project.folder / "models")
    path = second.folder / "models/pretrain/checkpoint.safetensors"
    config, weights, info = read_checkpoint(path)
    model = GaitGL(config)
    load_weights(model, weights, path)
    save_checkpoint(path, model, {**info, "p": 1.0})
    embed, torchrun, log = ("python", "-m", "stages.embed", "oumvlp"), two_nodes(), tmp_path / "log"
    process = second.start(*embed, log=log, **torchrun, PET_NODE_RANK="1")
    done = first.run(*embed, check=False, **torchrun, PET_NODE_RANK="0")
    assert (done.returncode, process.wait(DEADLINE_S)) == (1, 1), log.read_text()
    assert "[1] of 2 have another checkpoint" in done.stderr
    assert not (first.folder / "embeddings" / "oumvlp.arrow").exists()


def test_embeddings_of_several_processes_are_those_of_one(
    new_project: Callable[..., Project],
) -> None:
    project = new_project(pretrain__steps=3, pretrain__lr_drops=[])
    project.run(*TRAIN)
    embeddings = project.folder / "embeddings" / "oumvlp.arrow"
    project.run("python", "-m", "stages.embed", "oumvlp")
    alone = embeddings.read_bytes()
    embeddings.unlink()
    project.change(runtime__processes=2)
    project.run("python", "-m", "stages.embed", "oumvlp")
    assert embeddings.read_bytes() == alone


def test_a_batch_that_does_not_divide_is_told_before_anything_starts(
    new_project: Callable[..., Project],
) -> None:
    project = new_project(runtime__processes=3)
    done = project.run(*TRAIN, check=False)
    assert done.returncode == 1
    assert "do not divide among 3 processes; nearest: 3 or 6 subjects, or 2 or 4" in done.stderr
    assert "Traceback" not in done.stderr
