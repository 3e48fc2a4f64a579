"""The whole pipeline under the real DVC and MLflow, on a cast of a few walkers.

The tests of this file share one project and run in order: each changes one setting of what the
one before it left.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from benchmarks.mlflow_servers import Server
from pipeline.embedding_file import read_embeddings
from pipeline.silhouette_store import SilhouetteStore
from tests.small_project import Project, small_pipeline

WALKERS = {"synthetic/dvc.yaml:walkers_oumvlp", "synthetic/dvc.yaml:walkers_casia_e"}
CASIA_E = {f"{stage}@casia_e" for stage in ("embed", "evaluate")} | {"finetune"}
OUMVLP = {f"{stage}@oumvlp" for stage in ("embed", "evaluate")} | {"pretrain"}
NORMALIZE = {"normalize@oumvlp", "normalize@casia_e"}
INGEST = {"ingest@oumvlp", "ingest@casia_e"}
DESCRIBE = {"describe@oumvlp", "describe@casia_e"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small_pipeline(tmp_path_factory.mktemp("project"))


def test_the_first_run_makes_everything(project: Project) -> None:
    done = project.run("dvc", "repro")
    for stage in WALKERS | INGEST | NORMALIZE | DESCRIBE | OUMVLP | CASIA_E:
        assert f"Running stage '{stage}'" in done.stdout
    shutil.copytree(project.folder / "synthetic/release/oumvlp", project.folder.parent / "release")
    for title in ("OUMVLP", "CASIA-E, release split 500/114/400"):
        for protocol in ("view_pairs", "all_views"):
            assert f"\n{title}, {protocol}: " in done.stdout
    assert "\n3 unseen subjects, 2 views" in done.stdout
    assert "reports/casia_e/index.html" in done.stdout
    assert re.search(r"frames in \d+ = frames kept \d+ \+ refused \d+", done.stdout)
    parts = {"NM", "BG", "CL", "all_views", "p", "protocols", "notes"}
    assert set(project.metrics("casia_e")) == parts
    commit = project.run("git", "rev-parse", "HEAD").stdout.strip()
    for dataset, conditions, trainings in (
        ("oumvlp", ["all"], ["pretrain"]),
        ("casia_e", ["nm", "bg", "cl"], ["pretrain", "finetune"]),
    ):
        report = project.folder / "reports" / dataset
        assert {path.name for path in report.iterdir() if path.name != ".gitignore"} == {
            *("ingest.html", "ingest.json", "index.html", "metrics.json", "tables", "figures")
        }
        assert {path.stem for path in (report / "figures").iterdir()} == {
            *("cmc", "all_views_cmc", "all_views_det", "embeddings"),
            *(f"rank1_{condition}" for condition in conditions),
            *(f"{curve}_{stage}" for curve in ("loss", "p") for stage in trainings),
        }
        page = (report / "index.html").read_text(encoding="utf-8")
        assert commit in page
        assert str(project.folder) not in page
        table = pd.read_csv(report / f"tables/rank1_{conditions[0]}.csv", dtype={"probe view": str})
        assert list(table["probe view"]) == ["000", "090"]
        assert 0 <= project.metrics(dataset).get("rank1", 0) <= 100
    assert set(project.metrics("casia_e")["p"]) == {"pretrain", "finetune"}


def test_mlflow_holds_a_run_for_each_stage_with_its_curves(project: Project) -> None:
    client = project.mlflow()
    runs = {(r.data.tags["stage"], r.data.tags["dataset"]): r for r in project.mlflow_runs()}
    assert set(runs) == {
        ("pretrain", "oumvlp"),
        ("finetune", "casia_e"),
        ("evaluate", "oumvlp"),
        ("evaluate", "casia_e"),
    }
    commit = project.run("git", "rev-parse", "HEAD").stdout.strip()
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.source.git.commit"] == commit
        assert run.data.params["model.channels"] == "[2, 2, 4, 4, 4, 4]"
        assert len(run.data.params) == len(_settings(project))
    pretrain, finetune = runs["pretrain", "oumvlp"], runs["finetune", "casia_e"]
    assert pretrain.data.tags["dvc_stage"] == "pretrain"
    assert finetune.data.tags["upstream_pretrain_run_id"] == pretrain.info.run_id
    evaluated = runs["evaluate", "casia_e"]
    assert evaluated.data.tags["upstream_finetune_run_id"] == finetune.info.run_id
    for run in (pretrain, finetune):
        for name in ("p", "loss", "active_share", "lr", "sequences_per_s"):
            history = client.get_metric_history(run.info.run_id, name)
            assert [point.step for point in history] == [1, 2, 3], name
        names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert {"checkpoint.safetensors", "history.csv"} <= names
    p = [point.value for point in client.get_metric_history(pretrain.info.run_id, "p")]
    assert p[-1] != 6.5
    assert p[-1] == pytest.approx(pretrain.data.metrics["final_p"])
    # one row answers which settings gave which result
    assert evaluated.data.metrics["NM_rank1"] == project.metrics("casia_e")["NM"]["rank1"]
    assert evaluated.data.metrics["p_pretrain"] == pytest.approx(p[-1], abs=1e-6)
    assert "p_finetune" in evaluated.data.metrics
    shown = {artifact.path for artifact in client.list_artifacts(evaluated.info.run_id)}
    assert {"index.html", "figures", "tables", "metrics.json"} <= shown


def test_each_training_is_a_version_and_the_evaluated_one_is_promoted(project: Project) -> None:
    versions = {v.tags["stage"]: v for v in project.mlflow().search_model_versions()}
    aliases = project.mlflow().get_registered_model("gaitgl").aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {
        "pretrained": int(versions["pretrain"].version),
        "finetuned": int(versions["finetune"].version),
    }
    told = project.run("python", "-m", "pipeline.promote").stdout
    silhouettes = SilhouetteStore(project.folder / "data/casia_e/silhouettes").digest()
    shown = [f"    silhouettes {silhouettes[:12]}", "    distance euclidean"]
    assert "\n".join(shown) in told
    conditions = [project.metrics("casia_e")[name]["rank1"] for name in ("NM", "BG", "CL")]
    assert f"{np.mean(conditions):6.2f} %  finetune" in told
    champion = project.mlflow().get_model_version_by_alias("gaitgl", "champion")
    assert champion.run_id == versions["finetune"].run_id


def _settings(project: Project) -> list[str]:
    tree = yaml.safe_load((project.folder / "params.yaml").read_text(encoding="utf-8"))

    def count(node: Any) -> list[str]:
        if not isinstance(node, dict):
            return [""]
        return [leaf for value in node.values() for leaf in count(value)]

    return count(tree)


def test_embeddings_are_those_of_the_test_subjects(project: Project) -> None:
    for dataset in ("oumvlp", "casia_e"):
        store = SilhouetteStore(project.folder / "data" / dataset / "silhouettes")
        keys, embeddings, metadata = read_embeddings(
            project.folder / "embeddings" / f"{dataset}.arrow"
        )
        test = store.index[store.index["split"] == "test"]
        assert keys["subject"].tolist() == test["subject"].tolist()
        assert embeddings.shape == (len(test), 4, 64)
        assert np.isfinite(embeddings).all()
        assert metadata["stage"] == ("pretrain" if dataset == "oumvlp" else "finetune")


def test_a_second_run_runs_nothing(project: Project) -> None:
    assert project.repro() == set()
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", "first results")


def test_a_clone_that_dvc_restored_everything_in_has_the_same_runs_and_a_champion(
    project: Project,
) -> None:
    clone = Project(project.folder.parent / "clone")
    project.run("git", "clone", "-q", ".", str(clone.folder))
    clone.run("dvc", "cache", "dir", "--local", str(project.folder / ".dvc" / "cache"))
    assert clone.repro() == set()
    assert clone.mlflow_runs() == []
    for _ in range(2):
        clone.run("python", "-m", "pipeline.restored")
        assert len(clone.mlflow_runs()) == 4
    own, restored = (
        {(run.data.tags["stage"], run.data.tags["dataset"]): run for run in place.mlflow_runs()}
        for place in (project, clone)
    )
    assert restored.keys() == own.keys()
    measured = ("sequences_per_s", "waiting_share", "duration_s", "system/")
    for key, run in restored.items():
        assert run.data.tags["restored"] == "true"
        assert run.data.params == own[key].data.params
        made, known = (
            {n: v for n, v in one.data.metrics.items() if not n.startswith(measured)}
            for one in (own[key], run)
        )
        assert known == made
        for tag in ("output_digest", "data_fingerprint"):
            assert run.data.tags[tag] == own[key].data.tags[tag]
        (data,) = run.inputs.dataset_inputs
        assert data.to_dictionary() == own[key].inputs.dataset_inputs[0].to_dictionary()
    pretrain, finetune = restored["pretrain", "oumvlp"], restored["finetune", "casia_e"]
    for stage, run in (("pretrain", pretrain), ("finetune", finetune)):
        losses = clone.mlflow().get_metric_history(run.info.run_id, "loss")
        assert [point.step for point in losses] == [1, 2, 3]
        names = {artifact.path for artifact in clone.mlflow().list_artifacts(run.info.run_id)}
        assert {"checkpoint.safetensors", "history.csv"} <= names
        row = restored["evaluate", "casia_e"]
        assert row.data.tags[f"upstream_{stage}_run_id"] == run.info.run_id
    assert finetune.data.tags["upstream_pretrain_run_id"] == pretrain.info.run_id
    clone.run("python", "-m", "pipeline.promote")
    champion = clone.mlflow().get_model_version_by_alias("gaitgl", "champion")
    assert champion.run_id == finetune.info.run_id
    assert champion.tags["checkpoint"] == finetune.data.tags["output_digest"]


@pytest.mark.parametrize(
    ("change", "reruns"),
    [
        ({"runtime__workers": 0, "runtime__log_every": 2, "runtime__experiment": "x"}, set()),
        ({"evaluate__distance": "cosine"}, {"evaluate@oumvlp", "evaluate@casia_e"}),
        ({"finetune__lr": 0.00123}, CASIA_E),
        ({"pretrain__margin": 0.3, "model__gem_p": 5.0, "seed": 1}, OUMVLP | CASIA_E),
        ({"normalize__min_frames": 5}, NORMALIZE | DESCRIBE | OUMVLP | CASIA_E),
        (
            {"data__casia_e__split": "opengait"},
            {"ingest@casia_e", "normalize@casia_e", "describe@casia_e"} | CASIA_E,
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_reruns_what(project: Project, change: dict[str, Any], reruns: set[str]) -> None:
    for leaf, value in change.items():
        project.change(**{leaf: value})
        # each leaf alone makes the first of these stages due; running them all once will do
        due = {name for name in project.due() if name in reruns}
        assert bool(due) == bool(reruns), leaf
    assert project.repro() == reruns


def test_plots_of_two_revisions_are_shown_together(project: Project) -> None:
    shown = project.run("dvc", "plots", "diff", "HEAD", "--json", "-o", "plots").stdout
    plots = json.loads(shown)["data"]
    for name in ("CMC on OUMVLP", "CMC on CASIA-E", "DET on OUMVLP", "DET on CASIA-E", "loss"):
        (plot,) = plots[name]
        assert plot["revisions"] == ["workspace", "HEAD"]
        points = plot["content"]["data"]["values"]
        assert {point["rev"] for point in points} == {"workspace", "HEAD"}
        if name.endswith("CASIA-E"):
            assert {point["condition"] for point in points} == {"NM", "BG", "CL"}
    for picture in ("rank1_nm", "embeddings", "p_finetune"):
        found = plots[f"reports/casia_e/figures/{picture}.png"]
        assert [plot["revisions"] for plot in found] == [["workspace"], ["HEAD"]]
        assert all(Path(plot["url"]).is_file() for plot in found)


def _rows(project: Project, dataset: str = "casia_e") -> list[Run]:
    """The evaluations of a dataset: rows of the table that answer with which settings it was."""
    tags = {"stage": "evaluate", "dataset": dataset}
    return [run for run in project.mlflow_runs() if tags.items() <= run.data.tags.items()]


def _changed(before: Run, after: Run) -> set[str]:
    names = before.data.params.keys() | after.data.params.keys()
    return {n for n in names if before.data.params.get(n) != after.data.params.get(n)}


def test_rows_differ_in_what_was_changed_and_share_what_was_not_run_again(
    project: Project,
) -> None:
    first, cosine, tuned, pretrained, *_ = _rows(project)
    assert _changed(first, cosine) == {
        "evaluate.distance",
        "runtime.workers",
        "runtime.log_every",
        "runtime.experiment",
    }
    assert _changed(cosine, tuned) == {"finetune.lr"}
    assert _changed(tuned, pretrained) == {"pretrain.margin", "model.gem_p", "seed"}
    finetune, pretrain = "upstream_finetune_run_id", "upstream_pretrain_run_id"
    for name, same in ((finetune, (first, cosine)), (pretrain, (first, cosine, tuned))):
        assert len({row.data.tags[name] for row in same}) == 1
    assert cosine.data.tags[finetune] != tuned.data.tags[finetune]
    assert tuned.data.tags[pretrain] != pretrained.data.tags[pretrain]
    for row in (first, cosine, tuned, pretrained):
        for stage in ("pretrain", "finetune"):
            training = project.mlflow().get_run(row.data.tags[f"upstream_{stage}_run_id"])
            assert training.data.metrics["final_p"] == pytest.approx(
                row.data.metrics[f"p_{stage}"], abs=1e-6
            )
            duration_s = training.data.metrics["duration_s"]
            assert row.data.metrics[f"duration_s_{stage}"] == duration_s
            assert f"/runs/{training.info.run_id})" in row.data.tags["mlflow.note.content"]
        assert row.data.metrics["duration_s"] > 0
        assert row.data.tags["data_fingerprint"] == training.data.tags["data_fingerprint"]
        (data,) = row.inputs.dataset_inputs
        assert (data.dataset.name, data.tags[0].value) == ("casia_e", "evaluation")


def test_an_earlier_setting_is_restored_without_a_run(project: Project) -> None:
    project.change(data__casia_e__split="release")
    assert project.repro() == set()


def test_what_dvc_restored_has_its_row_once(project: Project) -> None:
    before = _rows(project)
    own = before[-2]  # the last one was under the other split
    assert own.data.params["data.casia_e.split"] == "release"
    project.mlflow().delete_tag(own.info.run_id, "output_digest")  # as if made somewhere else
    for _ in range(2):
        project.run("python", "-m", "pipeline.restored")
        assert len(_rows(project)) == len(before) + 1
    new = _rows(project)[-1]
    assert new.data.tags["restored"] == "true"
    assert "restored" not in own.data.tags
    assert new.data.params == own.data.params
    assert {**new.data.metrics, "duration_s": own.data.metrics["duration_s"]} == own.data.metrics
    linked = {"upstream_finetune_run_id", "upstream_pretrain_run_id", "data_fingerprint"}
    assert {n: new.data.tags[n] for n in linked} == {n: own.data.tags[n] for n in linked}


def test_queued_experiments_have_named_rows_in_the_projects_store(project: Project) -> None:
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", "as it is")
    before = {run.info.run_id for run in project.mlflow_runs()}
    for name, change in (
        ("tuned", "finetune.lr=0.002"),
        ("as-before", "data.casia_e.split=opengait"),
    ):
        project.run("dvc", "exp", "run", "--queue", "-n", name, "-S", change)
    project.run("dvc", "exp", "run", "--run-all")
    ran = [run for run in project.mlflow_runs() if run.info.run_id not in before]
    assert {(run.info.run_name, run.data.tags["dvc_exp"]) for run in ran} == {
        ("finetune-casia_e (tuned)", "tuned"),
        ("evaluate-casia_e (tuned)", "tuned"),
    }
    training, row = ran
    assert training.info.status == row.info.status == "FINISHED"
    assert row.data.params["finetune.lr"] == "0.002"
    assert row.data.tags["upstream_finetune_run_id"] == training.info.run_id
    assert row.data.tags["upstream_pretrain_run_id"] in before
    for run in ran:
        assert project.mlflow().list_artifacts(run.info.run_id)
        assert run.info.artifact_uri.startswith((project.folder / "mlartifacts").as_uri())

    project.run("python", "-m", "pipeline.restored")  # the other one ran nothing
    *_, restored = _rows(project)
    assert restored.info.run_name == "evaluate-casia_e (as-before)"
    assert restored.data.tags["restored"] == "true"
    assert restored.data.params["data.casia_e.split"] == "opengait"
    (made,) = [
        run
        for run in _rows(project)
        if run.data.params["data.casia_e.split"] == "opengait" and run.info.run_id in before
    ]
    assert restored.data.metrics["NM_rank1"] == made.data.metrics["NM_rank1"]
    name = "upstream_finetune_run_id"
    assert restored.data.tags[name] == made.data.tags[name]
    rows = len(_rows(project))
    project.run("dvc", "exp", "rename", "tuned", "slower")
    project.run("python", "-m", "pipeline.restored")
    assert len(_rows(project)) == rows  # it has its row, under its first name
    # a name that is used again, for a result that no run tells of
    project.run("dvc", "exp", "remove", "slower")
    project.run("dvc", "exp", "rename", "as-before", "tuned")
    project.mlflow().set_tag(restored.info.run_id, "output_digest", "of another")
    for _ in range(2):
        project.run("python", "-m", "pipeline.restored")
        assert len(_rows(project)) == rows + 1
    assert _rows(project)[-1].info.run_name == "evaluate-casia_e (tuned)"


@pytest.fixture
def raw(project: Project, tmp_path: Path) -> Path:
    """The release of the OUMVLP walkers at another place, to be changed by a test."""
    home = tmp_path / "home" / "jane-doe"
    return Path(shutil.copytree(project.folder.parent / "release", home / "oumvlp"))


@pytest.fixture
def server(migrated_database: Path, tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(migrated_database, folder / "mlflow.db")
    started = Server(folder)
    started.start()
    yield started
    started.kill()


def test_data_elsewhere_reruns_the_dataset_and_neither_place_nor_secrets_are_written_down(
    project: Project, raw: Path, server: Server
) -> None:
    (raw / "Silhouette_090-00.7z").unlink()  # so that something changes
    project.change(data__oumvlp__root=str(raw))
    shutil.rmtree(project.folder / "synthetic/release/oumvlp")
    secrets = {
        "OUMVLP_PASSWORD": "open-sesame-1",
        "CASIA_E_PASSWORD": "open-sesame-2",
        "MLFLOW_TRACKING_TOKEN": "open-sesame-3",
    }
    address = server.uri.replace("://", "://jane-doe:open-sesame-4@")
    done = project.run("dvc", "repro", MLFLOW_TRACKING_URI=address, **secrets)
    ran = set(re.findall(r"^Running stage '([^']+)'", done.stdout, re.MULTILINE))
    assert ran == {"ingest@oumvlp", "normalize@oumvlp", "describe@oumvlp"} | OUMVLP | CASIA_E
    client = MlflowClient(server.uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(ids)
    assert len(runs) == 4
    assert {run.data.params["data.oumvlp.root"] for run in runs} == {"oumvlp"}
    assert "open-sesame" not in done.stdout + done.stderr

    names = ("dvc.lock", "data", "embeddings", "mlartifacts", "mlflow.db", "models", "reports")
    places = [project.folder / name for name in (*names, "runs")] + [raw.parents[2] / "server"]
    files = [f for place in places for f in (place, *place.rglob("*")) if f.is_file()]
    assert len(files) > 50
    for file in files:
        content = file.read_bytes()
        assert b"open-sesame" not in content, file
        if file.name != "dvc.lock":
            assert b"jane-doe" not in content, file
    # DVC notes where its inputs lie; a link below the project hides that, see the README
    lock = yaml.safe_load((project.folder / "dvc.lock").read_text(encoding="utf-8"))
    told = {leaf for leaf in _leaves(lock) if "jane-doe" in leaf[1]}
    assert told == {(key, str(raw)) for key in ("path", "root", "data.oumvlp.root")}


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The innermost key and the text of every value."""
    if isinstance(tree, dict):
        for inner, value in tree.items():
            yield from _leaves(value, inner)
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value, key)
    else:
        yield key, str(tree)


def test_a_link_below_the_project_keeps_an_absolute_path_out_of_the_lock(
    project: Project, raw: Path
) -> None:
    link = project.folder / "raw" / "oumvlp"
    link.parent.mkdir()
    link.symlink_to(raw)
    project.change(data__oumvlp__root="raw/oumvlp")
    project.run("dvc", "repro", "normalize@oumvlp")
    lock = (project.folder / "dvc.lock").read_text(encoding="utf-8")
    assert "path: raw/oumvlp" in lock
    assert "jane-doe" not in lock


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"finetune__stepz": 3}, ["finetune.stepz", "unknown key", "finetune.steps"]),
        ({"finetune__stepz": "", "pretrain__lr": "fast"}, ["pretrain.lr"]),
        ({"data__oumvlp__root": "nowhere"}, ["data.oumvlp.root = nowhere", "missing"]),
    ],
)
def test_bad_settings_are_told_before_anything_runs(
    project: Project, change: dict[str, Any], words: list[str]
) -> None:
    before = (project.folder / "params.yaml").read_text(encoding="utf-8")
    try:
        project.change(**change)
        done = project.run("python", "-m", "pipeline.check", check=False)
    finally:
        (project.folder / "params.yaml").write_text(before, encoding="utf-8")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert len(done.stderr.splitlines()) < 25


def _spoil_test_galleries(folder: Path) -> None:
    for path in folder.glob("Silhouette_*-01.7z"):
        path.unlink()


def _truncate(folder: Path) -> None:
    path = folder / "Silhouette_000-00.7z"
    path.write_bytes(path.read_bytes()[:-500])


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_spoil_test_galleries, ["gallery", "01"]),
        (_truncate, ["Silhouette_000-00.7z", "Download"]),
        (_empty, ["data.oumvlp.root", "Looked for", "no file"]),
    ],
)
def test_bad_releases_stop_repro_with_one_screen(
    project: Project, raw: Path, spoil: Callable[[Path], None], words: list[str]
) -> None:
    before = (project.folder / "params.yaml").read_text(encoding="utf-8")
    spoil(raw)
    project.change(data__oumvlp__root=str(raw))
    try:
        done = project.run("dvc", "repro", check=False)
    finally:
        (project.folder / "params.yaml").write_text(before, encoding="utf-8")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
