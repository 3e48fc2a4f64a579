"""The silhouette store against one pickle a sequence: bytes, training batches, resident memory.

python -m benchmarks store [--quick]     (from the project's root; writes to a temporary folder)

Bytes: all shards and the index against all pickles of uint8 [t, 64, 64], as files report their
sizes. Batches: 32 subjects x 8 sequences x 30 frames, the same draws for both; files are warm in
the page cache. Ours ends with uint8 in a tensor (the division happens on the device), plain with
float64 in an array, as published. Memory: what reading every sequence adds to what a fresh process
has resident beyond mapped files once the store is open (RssAnon; Linux only).

The store is data/oumvlp/silhouettes where the pipeline has made it, else a few rendered walks.
"""

import gc
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks import plain_data
from benchmarks.fresh_process import CAN_MEASURE, anonymous_bytes, in_fresh_process
from benchmarks.timing import Row, compared, interleaved
from benchmarks.walkers import write_walks
from pipeline.batches import TrainingBatches
from pipeline.processes import worker_count
from pipeline.silhouette_store import INDEX, SilhouetteStore
from pipeline.tables import KEY, write_table

PIPELINES = Path("data/oumvlp/silhouettes")
SUBJECTS, SEQUENCES, CLIP_FRAMES = 32, 8, 30
COPIES = 4
MIB = 2**20


def rows(quick: bool) -> list[Row]:
    """Bytes, batches with 0 and all threads, and memory for a store of one and of four times."""
    with tempfile.TemporaryDirectory() as temporary:
        store, what = _open_store(Path(temporary) / "store", quick)
        pickles = write_pickles(store, Path(temporary) / "pickles")
        return [
            _bytes(store, pickles, what),
            *_batches(store, pickles, what, quick),
            *_memory(store, Path(temporary) / "copies"),
        ]


def write_pickles(store: SilhouetteStore, folder: Path) -> dict[plain_data.Key, Path]:
    """The published form of a store: the columns that were cut are zeros again."""
    paths = {}
    for number, key in enumerate(store.index[KEY].itertuples(index=False, name=None)):
        border = ((0, 0), (0, 0), (plain_data.CUT, plain_data.CUT))
        silhouettes = np.pad(store.read(number), border)
        paths[key] = plain_data.write_pickle(folder, key, silhouettes)
    return paths


def plain_draws(
    store: SilhouetteStore, batches: TrainingBatches, step: int, clip_frames: int
) -> tuple[list[plain_data.Key], NDArray[np.int64]]:
    """What ``batches`` draws in a step: keys [n], and frame numbers int [n, clip_frames]."""
    drawn = batches.sequences(step)
    lengths = drawn.merge(store.index, on=KEY, how="left")["n_frames"].to_numpy()
    clip = drawn["first_frame"].to_numpy()[:, None] + np.arange(clip_frames)
    keys = list(drawn[KEY].itertuples(index=False, name=None))
    return keys, clip % lengths[:, None]  # shorter sequences start over


def _open_store(folder: Path, quick: bool) -> tuple[SilhouetteStore, str]:
    if (PIPELINES / "index.parquet").exists():
        store = SilhouetteStore(PIPELINES)
        what = str(PIPELINES)
    else:
        views = ["000", "090"] if quick else ["000", "030", "060", "090"]
        store = write_walks(folder, SUBJECTS, views)
        what = "walks rendered on the spot"
    lengths = store.index["n_frames"]
    return store, f"{what}, {len(lengths)} sequences of {lengths.mean():.1f} frames"


def _bytes(store: SilhouetteStore, pickles: dict[plain_data.Key, Path], what: str) -> Row:
    frames = int(store.index["n_frames"].sum())
    shards = sorted(set(store.index["shard"]))
    ours = sum((store.folder / name).stat().st_size for name in [*shards, "index.parquet"]) / frames
    plain = sum(path.stat().st_size for path in pickles.values()) / frames
    return Row(
        "silhouette store, size",
        "bytes/frame",
        plain,
        ours,
        plain / ours,
        "≥ 14×",
        "exact",
        f"{what}; index included",
    )


def _batches(
    store: SilhouetteStore, pickles: dict[plain_data.Key, Path], what: str, quick: bool
) -> list[Row]:
    steps = 2 if quick else 8
    batches = TrainingBatches(store, SUBJECTS, SEQUENCES, CLIP_FRAMES, seed=0)
    draws = [plain_draws(store, batches, step, CLIP_FRAMES) for step in range(1, steps + 1)]

    def plain() -> None:
        for keys, frames in draws:
            plain_data.training_batch([pickles[key] for key in keys], frames)

    def ours(threads: int) -> None:
        for _ in batches.ahead(1, steps, threads):
            pass

    timings = interleaved(
        {"plain": plain, "alone": lambda: ours(0), "threads": lambda: ours(worker_count(-1))},
        repeats=3 if quick else 7,
    )
    work = f"training batch {SUBJECTS}×{SEQUENCES}×{CLIP_FRAMES}"
    note = f"plain in one thread; {what}; {steps} batches a run, page cache warm"
    return [
        compared(
            f"{work}, 0 threads",
            "batches/s",
            timings["plain"],
            timings["alone"],
            steps,
            "≥ 25×",
            note,
        ),
        compared(
            f"{work}, {worker_count(-1)} threads",
            "batches/s",
            timings["plain"],
            timings["threads"],
            steps,
            "≥ 25×",
            note,
        ),
    ]


def _memory(store: SilhouetteStore, folder: Path) -> list[Row]:
    """One row for the store itself, one for ``COPIES`` of it under other subjects' names."""
    if not CAN_MEASURE:
        return []
    folder.mkdir()
    _multiply(store, folder)
    small = in_fresh_process(resident_after_reading, store.folder)
    large = in_fresh_process(resident_after_reading, folder)
    how = "anonymous pages of a fresh process (RssAnon) that reading adds, all of"
    return [
        Row(
            f"silhouette store read whole, {times}× the sequences",
            "MiB",
            None,
            resident / MIB,
            None,
            target,
            "1 run",
            f"{how} {count} sequences, {mapped / MIB:.0f} MiB of shards; their keys, which stay in "
            f"memory, take {keys / count:.0f} bytes a sequence",
        )
        for times, target, (resident, keys, count, mapped) in (
            (1, "", small),
            (COPIES, f"{small[0] / MIB:.0f} MiB, as for 1×", large),
        )
    ]


def _multiply(store: SilhouetteStore, folder: Path) -> None:
    indexes = []
    for copy in range(COPIES):
        names = {name: f"copy-{copy}-{name}" for name in sorted(set(store.index["shard"]))}
        for name, new in names.items():
            shutil.copyfile(store.folder / name, folder / new)
        indexes.append(
            store.index.assign(
                subject=f"{copy}-" + store.index["subject"], shard=store.index["shard"].map(names)
            )
        )
    index = pd.concat(indexes).sort_values(KEY, ignore_index=True)
    write_table(folder / "index.parquet", index, INDEX)


def resident_after_reading(folder: Path) -> tuple[int, int, int, int]:
    """Bytes that reading a whole store adds, bytes of its keys, sequences, bytes of shards.

    For `in_fresh_process`.
    """
    store = SilhouetteStore(folder)
    keys = int(store.index.memory_usage(deep=True).sum())
    store.read(0)
    before = anonymous_bytes()
    for number in range(len(store.index)):
        store.read(number)
    gc.collect()
    mapped = sum((folder / name).stat().st_size for name in set(store.index["shard"]))
    return anonymous_bytes() - before, keys, len(store.index), mapped
