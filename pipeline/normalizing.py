"""From release archives and catalogue to the silhouette store, archive by archive.

Shards are planned from the catalogue and made by workers (pipeline.normalizing_task). Finished ones
wait in a folder of their own (pipeline.finished_shards) until all of them are there.
"""

import errno
import shutil
from collections import Counter
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import cluster, releases, shard_plan
from pipeline.archives import Caps, may_be_split
from pipeline.catalogue import REFUSALS, by_reason, refusal_table
from pipeline.errors import PipelineError, listing
from pipeline.files import fingerprint, write_json
from pipeline.finished_shards import FinishedShard, finished_shard, shards_to_do
from pipeline.normalizing_task import Job, normalize_task
from pipeline.processes import map_in_order
from pipeline.progress import Progress
from pipeline.settings import Dataset
from pipeline.shard_plan import plan_shards, plan_tasks, write_plan
from pipeline.silhouette_store import INDEX
from pipeline.tables import KEY, write_table


def normalize(
    dataset: Dataset,
    root: Path,
    sequences: pd.DataFrame,
    folder: Path,
    min_foreground: int,
    min_frames: int,
    workers: int,
    *,
    caps: Caps | None = None,
    max_refused_share: float = 1.0,
    shards: Path | None = None,
    scheduler: str = "",
    refused_before: int = 0,
) -> None:
    """Fill ``folder`` with shards, ``index.parquet``, ``refusals.parquet`` and ``counts.json``.

    The bytes depend on the release, ``min_foreground``, ``min_frames`` and ``caps`` alone: shards
    are cut from the catalogue. Those in the folder ``shards`` are finished and taken as they are:
    it must be one for the same release, catalogue, settings and code (by default it is a new one,
    removed at the end). With the address of a Dask ``scheduler`` its workers do the work instead
    of ``workers`` processes. Raises PipelineError where nothing usable is left, or more than
    ``max_refused_share`` of the frames is refused, with the ``refused_before`` by ingest.
    """
    own = folder / "shards" if shards is None else shards
    own.mkdir(parents=True, exist_ok=True)
    # only workers elsewhere have another current folder; else messages name what was written
    job = Job(dataset, root, own, min_foreground, min_frames, caps or Caps())
    if scheduler:
        job = replace(job, root=root.absolute(), shards=own.absolute())
    finished = _finish_shards(job, sequences, workers, scheduler)
    index = [
        {"dataset": dataset, "shard": shard.name, **r} for shard in finished for r in shard.rows
    ]
    # several tasks may meet the same damage of a container that they share
    refused = list(dict.fromkeys(refusal for shard in finished for refusal in shard.refused))
    table = pd.DataFrame(index, columns=INDEX.names).sort_values(KEY, ignore_index=True)
    refusals = refusal_table(dataset, refused)
    frames_in = int(sequences["n_frames"].sum())
    kept, lost = int(table["n_frames"].sum()), int(refusals["frames"].sum())
    print(
        f"{dataset}: frames in {frames_in} = frames kept {kept} + refused {lost}; "
        f"sequences in {len(sequences)}, kept {len(table)}; refusals: {by_reason(refusals)}"
    )
    check_accounts(dataset, sequences, table, refusals)
    if table.empty:
        raise PipelineError(
            f"{dataset}: no usable sequence is left of {len(sequences)}: {by_reason(refusals)}.\n"
            f"Is data.{dataset}.root right, and normalize.min_foreground = {min_foreground} "
            "below the brightness of a person in these pictures?"
        )
    seen, gone = frames_in + refused_before, lost + refused_before
    if gone > max_refused_share * seen:
        raise PipelineError(
            f"{dataset}: {gone} of {seen} frames are refused, {gone / seen:.1%}, and "
            f"normalize.max_refused_share = {max_refused_share}: {refused_before} by ingest, then "
            f"{by_reason(refusals)}.\n"
            f"Is data.{dataset}.root right and complete, and normalize.min_foreground = "
            f"{min_foreground}, min_frames = {min_frames} what you want? If so, raise "
            "normalize.max_refused_share: what is finished is taken over."
        )
    for shard in finished:
        if shard.rows:
            _link(own / shard.name, folder / shard.name)
    write_table(folder / "index.parquet", table, INDEX)
    write_table(folder / "refusals.parquet", refusals, REFUSALS)
    write_json(
        folder / "counts.json",
        {
            "frames_in": frames_in,
            "frames_kept": kept,
            "frames_refused": lost,
            "sequences_in": len(sequences),
            "sequences_kept": len(table),
            "sequences_refused": _by_split(sequences) - _by_split(table),
            "refused_by_reason": refusals.groupby("reason")["frames"].sum().to_dict(),
        },
    )
    if shards is None:
        shutil.rmtree(own)


def check_accounts(
    dataset: Dataset, sequences: pd.DataFrame, index: pd.DataFrame, refusals: pd.DataFrame
) -> None:
    """PipelineError unless frames in are frames kept + refused, in each sequence and in total."""
    accounts = pd.DataFrame(
        {
            "in": sequences.groupby(KEY)["n_frames"].sum(),
            "kept": index.groupby(KEY)["n_frames"].sum(),
            # what was refused without a key belongs to no sequence, and shows in the total
            "refused": refusals[refusals["subject"] != ""].groupby(KEY)["frames"].sum(),
        }
    ).fillna(0)
    wrong = accounts[accounts["in"] != accounts["kept"] + accounts["refused"]].astype(int)
    lines = [
        f"{'/'.join(map(str, key))}: in {row['in']}, kept {row['kept']}, refused {row['refused']}"
        for key, (_, row) in zip(wrong.index.tolist(), wrong.iterrows(), strict=True)
    ]
    frames_in, kept = int(sequences["n_frames"].sum()), int(index["n_frames"].sum())
    lost = int(refusals["frames"].sum())
    if lines or frames_in != kept + lost:
        raise PipelineError(
            f"{dataset}: frames in ({frames_in}) are not frames kept ({kept}) + refused ({lost}), "
            f"or not in each of {len(sequences)} sequences; wrong are {len(lines)}:\n"
            f"{listing(lines)}\n"
            "This is a fault of the pipeline: please report it with these lines."
        )


def release_state(root: Path, sequences: pd.DataFrame) -> str:
    """Fingerprint of name, size and time of change of every archive and folder with frames."""
    files = {releases.path_of(root, name) for name in sequences["container"].unique()}
    states = {}
    for path in sorted(files):
        state = path.stat()
        size = state.st_size if path.is_file() else 0
        states[path.relative_to(root).as_posix()] = (size, state.st_mtime_ns)
    return fingerprint(states)


def _by_split(rows: pd.DataFrame) -> "Counter[str]":
    return Counter(rows["split"])


def _finish_shards(
    job: Job, sequences: pd.DataFrame, workers: int, scheduler: str
) -> list[FinishedShard]:
    """Every shard of the plan, made by workers unless it is there already."""
    for left in job.shards.glob(".*"):
        left.unlink()  # of a worker that was killed while writing
    plan = plan_shards(sequences)
    on_disk = {name: releases.bytes_of(job.root, name) for name in plan["container"].unique()}
    write_plan(
        job.shards / shard_plan.FILE, plan.assign(container_bytes=plan["container"].map(on_disk))
    )
    frames = np.bincount(plan["shard"], plan["n_frames"]).astype(int)  # of each shard
    frames_in, n_shards = int(frames.sum()), len(frames)
    tasks = []
    for task in plan_tasks(plan, may_be_split):
        there = sorted(set(task.shards).difference(shards_to_do(job.shards, task.shards)))
        tasks.append(replace(task, done=int(frames[there].sum())))
    done = sum(task.done for task in tasks)
    if done:
        print(
            f"{job.dataset}: {done} of {frames_in} frames are in shards that an earlier "
            f"start has finished: they are taken from {job.shards}"
        )
    # the largest first: else the last of them would keep one worker busy long after all others
    todo = sorted((t for t in tasks if t.done < t.frames), key=lambda t: t.done - t.frames)
    work = partial(normalize_task, job)
    label = f"{job.dataset}: normalizing"
    with Progress(label, frames_in, "frames", done) as progress:
        results = (
            cluster.map_in_order(work, todo, scheduler, progress.advance)
            if scheduler
            else map_in_order(work, todo, workers, progress.advance)
        )
        with closing(results):
            for _ in results:
                pass
    whole = [shard for n in range(n_shards) if (shard := finished_shard(job.shards, n)) is not None]
    if len(whole) < n_shards:
        raise PipelineError(
            f"{n_shards - len(whole)} of {n_shards} shards in {job.shards} are missing or torn, "
            "though they were finished: is the disk sound? Start again to make them anew."
        )
    return whole


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system knows no such thing."""
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copyfile(source, target)
