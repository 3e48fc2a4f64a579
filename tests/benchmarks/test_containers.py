"""What the containers' benchmark writes: the same frames in each, and as many tasks as it says."""

from itertools import repeat
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks.containers import ARCHIVES, CONTAINERS, PASSWORD, Container, write_release
from pipeline import shard_plan
from pipeline.archives import may_be_split
from pipeline.ingestion import ingest

by_name = pytest.mark.parametrize("container", CONTAINERS, ids=lambda c: c.name)


@by_name
def test_every_container_is_a_release_with_a_task_for_each_archive(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUMVLP_PASSWORD", PASSWORD)
    frames = write_release(tmp_path / "release", container, [3] * ARCHIVES, 2, repeat(b"x"))
    sequences, *_ = ingest(container.dataset, tmp_path / "release", "published", workers=0)
    assert (len(sequences), sequences["n_frames"].sum()) == (3 * ARCHIVES, frames)
    with patch.object(shard_plan, "SHARD_FRAMES", frames // ARCHIVES):
        plan = shard_plan.plan_shards(sequences)
    tasks = shard_plan.plan_tasks(plan, may_be_split)
    assert [task.frames for task in tasks] == [frames // ARCHIVES] * ARCHIVES


@by_name
def test_walks_of_one_archive_have_folders_of_their_own(container: Container) -> None:
    for archive in range(ARCHIVES):
        _, folders = container.place(archive, 812)
        assert len(set(folders)) == 812
