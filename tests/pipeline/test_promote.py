import os
import sys
from pathlib import Path

import pytest
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from pipeline import promote
from pipeline.errors import PipelineError
from pipeline.registry import NAME


class Lab:
    """A store with versions of the model and evaluations, made by hand."""

    def __init__(self) -> None:
        self.client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
        self.experiment = self.client.create_experiment("gaits")
        self._clock = 1_700_000_000_000

    def trained(self, checkpoint: str) -> int:
        """A version; the next one is newer."""
        if not self.client.search_registered_models(f"name = '{NAME}'"):
            self.client.create_registered_model(NAME)
        tags = {"stage": "finetune", "checkpoint": checkpoint, "trained_ms": str(self._tick())}
        version = self.client.create_model_version(NAME, "file:///nowhere", tags=tags)
        return int(version.version)

    def evaluated(
        self,
        checkpoint: str,
        metrics: dict[str, float],
        data: str = "d1",
        distance: str = "euclidean",
        dataset: str = "casia_e",
        status: str = "FINISHED",
        **params: str,
    ) -> None:
        tags = {
            "stage": "evaluate",
            "dataset": dataset,
            "upstream_finetune_digest": checkpoint,
            "data_fingerprint": data,
        }
        run_id = self.client.create_run(self.experiment, self._tick(), tags).info.run_id
        found = [Metric(name, value, 0, 0) for name, value in metrics.items()]
        settings = {"evaluate.distance": distance, **params}
        self.client.log_batch(run_id, found, [Param(*setting) for setting in settings.items()])
        self.client.set_terminated(run_id, status)

    def _tick(self) -> int:
        self._clock += 60_000
        return self._clock

    def promote(self, *arguments: str) -> None:
        sys.argv = ["promote", *arguments]
        promote.main()

    def champion(self) -> int | None:
        version = self.client.get_registered_model(NAME).aliases.get("champion")
        return None if version is None else int(version)

    def order(self) -> list[int]:
        return [candidate.version for candidate in promote.standing(self.client).candidates]


@pytest.fixture
def lab(tracking_store: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(sys, "argv", [])
    return Lab()


def test_the_best_is_shown_and_promoted(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    for checkpoint, rank1 in (("a", 60.0), ("b", 75.5), ("c", 70.0)):
        lab.trained(checkpoint)
        lab.evaluated(checkpoint, {"headline_rank1": rank1, "rank5": 99.0})
    lab.promote("--dry")
    assert lab.champion() is None
    assert "'champion' would go to version 2; nothing was changed" in capsys.readouterr().out
    lab.promote()
    assert lab.champion() == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == ["    silhouettes d1", "    distance euclidean"]
    assert [line.split()[1:3] for line in lines[4:7]] == [
        ["2", "75.50"],
        ["3", "70.00"],
        ["1", "60.00"],
    ]
    assert lines[-1] == "'champion' is version 2 now: models:/gaitgl@champion"
    lab.promote()
    assert "version 2 has the alias 'champion' already" in capsys.readouterr().out


def test_equal_versions_stand_in_the_order_in_which_they_came(lab: Lab) -> None:
    for checkpoint in ("a", "b", "b", "c"):
        lab.trained(checkpoint)
    for checkpoint in ("c", "b", "a"):
        lab.evaluated(checkpoint, {"headline_rank1": 50.0})
    assert lab.order() == [1, 2, 3, 4]


def test_only_what_was_evaluated_like_the_newest_is_compared(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    for checkpoint in ("a", "b", "c", "d", "e", "f"):
        lab.trained(checkpoint)
    lab.evaluated("a", {"headline_rank1": 99.0}, data="other")
    lab.evaluated("b", {"headline_rank1": 98.0}, distance="cosine")
    lab.evaluated("c", {"headline_rank1": 97.0}, dataset="oumvlp")
    lab.evaluated("d", {"headline_rank1": 96.0}, status="FAILED")
    lab.evaluated("e", {"headline_rank1": 40.0})
    lab.evaluated("e", {"headline_rank1": 50.0})  # evaluated again: the newest counts
    lab.evaluated("f", {"headline_rank1": 45.0})
    lab.evaluated("unregistered", {"headline_rank1": 100.0}, data="another")
    lab.evaluated("f", {"loss": 1.0}, data="without rank-1")
    assert lab.order() == [5, 6]
    lab.client.set_registered_model_alias(NAME, "champion", "1")
    lab.promote()
    assert lab.champion() == 5
    told = "version 1, the champion now, was not evaluated like that and cannot be compared"
    assert told in capsys.readouterr().out


def test_settings_that_do_not_change_the_headline_exclude_nobody(lab: Lab) -> None:
    for checkpoint in ("a", "b"):
        lab.trained(checkpoint)
    for checkpoint, rank1, value in (("a", 70.0, "1"), ("b", 60.0, "2")):
        names = ("evaluate.protocols.oumvlp", "evaluate.cmc_ranks", "evaluate.submission.columns")
        lab.evaluated(checkpoint, {"headline_rank1": rank1}, **dict.fromkeys(names, value))
    assert lab.order() == [1, 2]
    lab.evaluated("b", {"headline_rank1": 60.0}, **{"evaluate.protocols.casia_e": "other"})
    assert lab.order() == [2]


def test_evaluations_in_the_bin_are_told(lab: Lab) -> None:
    lab.trained("a")
    lab.evaluated("a", {"headline_rank1": 50.0})
    lab.client.delete_experiment(lab.experiment)
    with pytest.raises(PipelineError, match="evaluations on casia_e were deleted in MLflow"):
        lab.promote()
    lab.client.restore_experiment(lab.experiment)
    assert lab.order() == [1]


def test_what_is_missing_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PipelineError, match=r"no model 'gaitgl' is registered: .*make repro"):
        lab.promote()
    lab.trained("a")
    with pytest.raises(PipelineError, match="no version of 'gaitgl' has an evaluation on casia_e"):
        lab.promote()
    with pytest.raises(SystemExit) as stopped:
        lab.promote("--dray")
    assert stopped.value.code == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(PipelineError, match="does not answer") as raised:
        lab.promote()
    assert "secret" not in str(raised.value)
