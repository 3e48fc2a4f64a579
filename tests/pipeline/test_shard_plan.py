from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import shard_plan
from pipeline.errors import PipelineError
from pipeline.shard_plan import SHARD_FRAMES, Task, plan_shards, plan_tasks, read_plan, write_plan

Rows = dict[str, list[int]]


def catalogue(containers: Rows) -> pd.DataFrame:
    """One row for each number of frames, by container."""
    rows = [
        {
            "subject": f"{number:05}",
            "sequence": "00",
            "view": "090",
            "split": "train",
            "container": container,
            "folder": f"Silhouette/{number:05}",
            "frames": [f"{n}.png" for n in range(min(n_frames, 3))],
            "n_frames": n_frames,
        }
        for container, lengths in containers.items()
        for number, n_frames in enumerate(lengths)
    ]
    return pd.DataFrame(rows)


def never(container: str) -> bool:
    return False


def always(container: str) -> bool:
    return True


def shards_of(plan: pd.DataFrame) -> dict[str, list[int]]:
    return {
        str(name): sorted(set(part["shard"].tolist())) for name, part in plan.groupby("container")
    }


def test_small_containers_are_put_together_and_a_large_one_is_cut() -> None:
    containers = {
        "a": [3000, 1000],
        "b": [25] * 1000,  # 25 000 frames
        "c": [4000],
        "d": [100],
        "e": [8000],
        "f": [200],
    }
    plan = plan_shards(catalogue(containers))
    assert shards_of(plan) == {
        "a": [3],
        "b": [0, 1, 2],
        "c": [3],
        "d": [5],
        "e": [4],
        "f": [5],
    }
    frames = plan.groupby("shard")["n_frames"].sum().tolist()
    assert frames == [8350, 8325, 8325, 8000, 8000, 300]
    folders = plan.loc[plan["container"] == "b", "folder"].tolist()
    assert folders == sorted(folders)  # read in the order in which an archive is packed


def test_a_container_that_is_read_from_its_beginning_is_one_task() -> None:
    containers = {"a": [4000], "b": [25] * 1000, "c": [4000]}
    plan = plan_shards(catalogue(containers))
    whole = plan_tasks(plan, never)
    assert [(task.shards, task.frames) for task in whole] == [((0, 1, 2), 25_000), ((3,), 8000)]
    parts = plan_tasks(plan, always)
    assert [task.shards for task in parts] == [(0,), (1,), (2,), (3,)]
    for tasks in (whole, parts):
        assert [t.first for t in tasks] == [0, *(t.last for t in tasks[:-1])]
        assert tasks[-1].last == len(plan)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text("abc/", min_size=1, max_size=4),
        st.lists(st.integers(0, 3 * SHARD_FRAMES), min_size=1, max_size=9),
        min_size=1,
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_every_sequence_is_in_one_shard_of_one_task(
    containers: Rows, random: "np.random.RandomState"
) -> None:
    rows = catalogue(containers)
    plan = plan_shards(rows)
    key = ["container", "subject"]
    shuffled = plan_shards(rows.sample(frac=1, random_state=random.randint(0, 999)))
    assert plan[[*key, "shard"]].equals(shuffled[[*key, "shard"]])
    assert sorted(map(tuple, plan[key].values)) == sorted(map(tuple, rows[key].values))
    assert sorted(set(plan["shard"])) == list(range(plan["shard"].max() + 1))
    for splits in (never, always):
        tasks = plan_tasks(plan, splits)
        assert [number for task in tasks for number in task.shards] == sorted(set(plan["shard"]))
        for task in tasks:
            part = plan.iloc[task.first : task.last]
            assert tuple(sorted(set(part["shard"]))) == task.shards
            assert part["n_frames"].sum() == task.frames
    whole = plan_tasks(plan, never)
    readers = [set(plan["container"].iloc[task.first : task.last]) for task in whole]
    assert sum(len(names) for names in readers) == len(containers)


def test_a_task_reads_its_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_plan, "_BATCH_ROWS", 3)
    plan = plan_shards(catalogue({"a": [25] * 1000})).assign(container_bytes=7)
    write_plan(tmp_path / "plan.arrow", plan)
    task = plan_tasks(plan, always)[1]
    rows = read_plan(tmp_path / "plan.arrow", task).to_pylist()
    expected = plan.iloc[task.first : task.last]
    assert [row["folder"] for row in rows] == expected["folder"].tolist()
    assert {row["shard"] for row in rows} == {1}
    assert rows[0]["frames"] == ["0.png", "1.png", "2.png"]


def spoil(path: Path) -> None:
    path.write_bytes(b"ARROW1")


@pytest.mark.parametrize("lose", [Path.unlink, spoil])
def test_a_plan_that_is_not_there_is_told(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    path = tmp_path / "plan.arrow"
    write_plan(path, plan_shards(catalogue({"a": [25]})).assign(container_bytes=7))
    lose(path)
    with pytest.raises(PipelineError, match="storage that all its machines share"):
        read_plan(path, Task(0, 1, (0,), 25))
