"""Which sequence goes into which shard, and which shards one task makes.

Both follow from the catalogue alone, so that the bytes of a store depend neither on the number of
workers nor on kills. The plan is a file beside the shards (``plan.arrow``, one row per sequence):
a task is a range of its rows, and whoever runs it, on whatever machine, reads only those.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.files import new_file
from pipeline.tables import KEY

SHARD_FRAMES = 8_000
"""About as many frames are put into a shard. Smaller containers are put together until they have as
many; a larger one is cut."""

FILE = "plan.arrow"
PLAN = pa.schema(
    [
        ("shard", pa.int32()),
        ("container", pa.string()),
        ("container_bytes", pa.int64()),  # of the file it lies in, as it was when planned
        ("folder", pa.string()),
        ("subject", pa.string()),
        ("sequence", pa.string()),
        ("view", pa.string()),
        ("split", pa.string()),
        ("frames", pa.list_(pa.string())),
        ("n_frames", pa.int32()),
    ]
)

_BATCH_ROWS = 2**16


@dataclass(frozen=True, slots=True)
class Task:
    """What one worker reads in one go: rows ``first`` to before ``last`` of the plan.

    They make the shards ``shards``; ``frames`` counts their frames, ``done`` those in shards that
    an earlier start has finished.
    """

    first: int
    last: int
    shards: tuple[int, ...]
    frames: int
    done: int = 0


def plan_shards(sequences: pd.DataFrame) -> pd.DataFrame:
    """The catalogue's rows in the plan's order, with their shards' numbers.

    A container's sequences are taken in the order of their folders, in which archives are packed as
    a rule: so their shards are finished one after another while it is read.
    """
    rows = sequences.sort_values(["container", "folder", *KEY], ignore_index=True)
    frames = rows["n_frames"].to_numpy(np.int64)
    shard = np.empty(len(rows), np.int64)
    number, pool, pool_frames = 0, list[slice](), 0
    for part in _runs(rows["container"]):
        in_part = int(frames[part].sum())
        if in_part < SHARD_FRAMES:
            pool.append(part)
            pool_frames += in_part
            if pool_frames >= SHARD_FRAMES:
                for small in pool:
                    shard[small] = number
                number, pool, pool_frames = number + 1, [], 0
        else:
            before = np.cumsum(frames[part]) - frames[part]
            piece = before * (in_part // SHARD_FRAMES) // in_part
            # a sequence longer than a shard leaves a piece out: numbers stay without gaps
            shard[part] = number + np.unique(piece, return_inverse=True)[1]
            number = int(shard[part][-1]) + 1
    for small in pool:
        shard[small] = number
    return rows.assign(shard=shard).sort_values("shard", kind="stable", ignore_index=True)


def plan_tasks(plan: pd.DataFrame, may_be_split: Callable[[str], bool]) -> list[Task]:
    """The tasks that read everything, in the plan's order.

    A container that has to be read from its beginning is one task however many shards it fills;
    of one that ``may_be_split`` each shard is a task.
    """
    frames, shard = plan["n_frames"].to_numpy(), plan["shard"].to_numpy()
    containers: list[str] = plan["container"].tolist()
    tasks: list[Task] = []
    first = 0
    for last in [*(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(plan)]:
        container = containers[last - 1]
        goes_on = last < len(plan) and containers[last] == container
        if not goes_on or may_be_split(container):
            shards = tuple(np.unique(shard[first:last]).tolist())
            tasks.append(Task(first, last, shards, int(frames[first:last].sum())))
            first = last
    return tasks


def write_plan(path: Path, plan: pd.DataFrame) -> None:
    """Write PLAN's columns, to be read by ``read_plan``."""
    table = pa.Table.from_pandas(plan[PLAN.names], PLAN, preserve_index=False)
    with (
        new_file(path) as beside,
        pa.OSFile(str(beside), "wb") as sink,
        pa.ipc.new_file(sink, PLAN) as writer,
    ):
        writer.write_table(table, _BATCH_ROWS)


def read_plan(path: Path, task: Task) -> pa.Table:
    """The rows of a task, memory-mapped: no other takes memory."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError) as error:
        raise PipelineError(
            f"{path} cannot be read: {error}. On a cluster the project's folder must lie on "
            "storage that all its machines share, under the same path."
        ) from None
    return reader.read_all().slice(task.first, task.last - task.first)


def _runs(column: pd.Series) -> Iterator[slice]:
    """Ranges of equal values."""
    codes = pd.factorize(column)[0]
    bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    yield from (slice(a, b) for a, b in pairwise(bounds) if b > a)
