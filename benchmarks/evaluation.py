"""Rank tables and average precision against the published way; memory of a whole evaluation.

python -m benchmarks evaluation [--quick]     (from the project's root)

2 000 subjects x 14 views x 2 sequences, 128 x 64 numbers each (1.8 GB; --quick: 200 subjects).
Rank tables: some rows of the 14 x 14 table, the same for both: both work through the probes of
those views against the galleries of all; the whole table's time is that, scaled. Average precision:
both get the same distances (made up; the right ones tend to be small) for some probes against all
galleries. Memory: growth of a fresh process' peak (VmHWM) over the embeddings it holds; Linux only.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import plain_data
from benchmarks.fresh_process import CAN_MEASURE, in_fresh_process, peak_growth_bytes
from benchmarks.timing import Row, compared, interleaved
from gaitgl import retrieval
from gaitgl.distances import BLOCK_BYTES, Distance
from gaitgl.verification import VerificationPass

VIEWS = [f"{angle:03}" for angle in (*range(0, 91, 15), *range(180, 271, 15))]
CHANNELS, STRIPS = 128, 64
MIB = 2**20

Array = NDArray[Any]


def rows(quick: bool) -> list[Row]:
    """Rank tables flattened and per strip, average precision, peak memory."""
    subjects = 200 if quick else 2_000
    return [*_rank_tables(subjects, quick), *_average_precision(subjects, quick), *_memory(quick)]


def _identities(subjects: int) -> tuple[NDArray[np.int64], Array, Array]:
    """Numbers of the subjects, sequences and views of each row, sorted by subject."""
    subject, view, sequence = np.meshgrid(range(subjects), VIEWS, ["00", "01"], indexing="ij")
    return subject.ravel().astype(np.int64), sequence.ravel(), view.ravel()


def _embeddings(subject: NDArray[np.int64], channels: int, strips: int) -> NDArray[np.float32]:
    """float32 [n, channels, strips]: somebody's own numbers, and as much noise again.

    Filled in place, so that a process' peak is not that of making them.
    """
    random = np.random.default_rng(0)
    embeddings = np.empty((len(subject), channels, strips), np.float32)
    for row, number in enumerate(subject):
        if row == 0 or number != subject[row - 1]:
            own = random.standard_normal((channels, strips), np.float32)
        random.standard_normal(out=embeddings[row], dtype=np.float32)
        embeddings[row] += own
    return embeddings


def _rank_tables(subjects: int, quick: bool) -> list[Row]:
    subject, sequence, view = _identities(subjects)
    names = np.array([f"{number:05}" for number in subject])
    embeddings = _embeddings(subject, CHANNELS, STRIPS)
    found = []
    for work, distance, rows_timed, target in (
        ("rank table, flattened", "euclidean", 4, "≥ 3×"),
        ("rank table, per strip", "strip_euclidean", 2, "≥ 2.5×"),
    ):
        chosen = VIEWS[: 2 if quick else rows_timed]
        used = (sequence == "01") | np.isin(view, chosen)
        some = np.where(used, sequence, "unused")  # our probes are those of the chosen views
        works = {
            "plain": partial(
                plain_data.rank_tables,
                embeddings,
                subject,
                sequence,
                view,
                per_strip=distance == "strip_euclidean",
                probe_views=chosen,
            ),
            "ours": partial(
                retrieval.rank_by_view,
                embeddings,
                names,
                some,
                view,
                ranks=(1,),
                distance=distance,
            ),
        }
        timings = interleaved(works, repeats=3, warmups=0 if not quick else 1)
        whole = {name: len(VIEWS) / len(chosen) * t.median_s for name, t in timings.items()}
        found.append(
            compared(
                work,
                "probes/s",
                timings["plain"],
                timings["ours"],
                len(chosen) * subjects,
                target,
                f"{subjects} subjects; timed: {len(chosen)} of 14 probe views; the whole table, "
                f"scaled: {whole['plain']:.1f} s plain, {whole['ours']:.1f} s ours; "
                f"{torch.get_num_threads()} threads",
            )
        )
    return found


def _average_precision(subjects: int, quick: bool) -> list[Row]:
    subject, sequence, view = _identities(subjects)
    names = np.array([f"{number:05}" for number in subject])
    every_probe = np.flatnonzero(sequence == "00")
    probes = every_probe[:: len(every_probe) // (140 if quick else 2_100)]
    used = (sequence == "01") | np.isin(np.arange(len(subject)), probes)
    some = np.where(used, sequence, "unused")
    no_embeddings = np.empty((len(subject), 1, 1), np.float32)
    gallery = retrieval.compared_pairs(no_embeddings, names, some, view).gallery
    random = np.random.default_rng(0)
    # whole numbers, each once a row, the right ones a tenth: nothing wrong ties with anything right
    distances = np.tile(np.arange(len(gallery), dtype=np.float32), (len(probes), 1))
    random.permuted(distances, axis=1, out=distances)
    right = subject[probes, None] == subject[gallery]
    distances[right] = np.floor(distances[right] / 10) + 0.5
    step = max(1, BLOCK_BYTES // (4 * len(gallery)))

    def blocks() -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Copies, since who receives a block may write into it."""
        for start in range(0, len(probes), step):
            block = slice(start, min(start + step, len(probes)))
            yield block, distances[block].copy()

    def ours() -> NDArray[np.float64]:
        pairs = retrieval.compared_pairs(no_embeddings, names, some, view)
        cross = retrieval.CrossViewPass(pairs)
        for block in retrieval.right_and_wrong(pairs, blocks()):
            cross.add(block)
        return cross.result().average_precision

    def plain(divide_in_numpy: bool) -> NDArray[np.float64]:
        ids = subject[probes], view[probes], subject[gallery], view[gallery]
        return plain_data.cross_view(distances, *ids, divide_in_numpy)[1]

    np.testing.assert_allclose(ours(), plain(True), rtol=1e-9)
    timings = interleaved(
        {"plain": lambda: plain(False), "lean": lambda: plain(True), "ours": ours},
        repeats=3,
    )
    note = (
        f"{len(probes)} of {len(every_probe)} probes, gallery of {len(gallery)}, distances given; "
        f"the whole, scaled: {timings['plain'].median_s * len(every_probe) / len(probes):.1f} s "
        f"plain, {timings['ours'].median_s * len(every_probe) / len(probes):.1f} s ours"
    )
    work = "second protocol's mAP, given distances"
    return [
        compared(work, "probes/s", timings["plain"], timings["ours"], len(probes), "≥ 50×", note),
        compared(
            f"{work}, plain divides in NumPy",
            "probes/s",
            timings["lean"],
            timings["ours"],
            len(probes),
            "",
            "as above, but plain's division by the rank, which OpenGait does in the interpreter, "
            "is NumPy's",
        ),
    ]


def _memory(quick: bool) -> list[Row]:
    """All probes on short embeddings, where the blocks are all there is; then on the real ones."""
    if not CAN_MEASURE:
        return []
    subjects = 200 if quick else 2_000
    count = subjects * len(VIEWS)
    matrix = 4 * count**2
    found = []
    for block_bytes in (BLOCK_BYTES // 4, BLOCK_BYTES, 4 * BLOCK_BYTES):
        growth = in_fresh_process(peak_growth, subjects, 16, 4, block_bytes, len(VIEWS))
        found.append(
            _memory_row(
                f"peak memory of an evaluation, blocks of {block_bytes // MIB} MiB",
                growth,
                "bounded by the blocks",
                f"{subjects} subjects, 64 numbers each; the matrix of all distances would be "
                f"{matrix / MIB:.0f} MiB",
            )
        )
    gallery = 4 * count * CHANNELS * STRIPS
    for distance in get_args(Distance):
        growth = in_fresh_process(peak_growth, subjects, CHANNELS, STRIPS, BLOCK_BYTES, 1, distance)
        found.append(
            _memory_row(
                f"peak memory of an evaluation, 8 192 numbers, {distance}",
                growth,
                "one copy of the gallery, and blocks",
                f"{subjects} subjects, 1 probe view; blocks of {BLOCK_BYTES // MIB} MiB; the "
                f"float32 copy of the gallery is {gallery / MIB:.0f} MiB of it",
            )
        )
    return found


def _memory_row(work: str, growth: int, target: str, note: str) -> Row:
    how = "over the embeddings, VmHWM of a fresh process"
    return Row(work, "MiB", None, growth / MIB, None, target, "1 run", f"{how}; {note}")


def peak_growth(
    subjects: int,
    channels: int,
    strips: int,
    block_bytes: int,
    probe_views: int,
    distance: Distance = "euclidean",
) -> int:
    """Bytes by which an evaluation raises the peak of this process. For `in_fresh_process`.

    Rank tables, mAP and verification from one pass.
    """
    subject, sequence, view = _identities(subjects)
    names = np.array([f"{number:05}" for number in subject])
    embeddings = _embeddings(subject, channels, strips)
    used = (sequence == "01") | np.isin(view, VIEWS[:probe_views])
    some = np.where(used, sequence, "unused")

    def evaluate(rows: NDArray[np.bool_] | slice) -> None:
        ids = names[rows], some[rows], view[rows]
        pairs = retrieval.compared_pairs(embeddings[rows], *ids)
        passes = (
            retrieval.FirstMatchPass(pairs),
            retrieval.CrossViewPass(pairs),
            VerificationPass(pairs, "drop"),
        )
        blocks = retrieval.distance_blocks(
            embeddings[rows], pairs.probes, pairs.gallery, distance, block_bytes
        )
        for block in retrieval.right_and_wrong(pairs, blocks):
            for each in passes:
                each.add(block)
        for each in passes:
            each.result()

    evaluate(subject < 2)  # the libraries' own buffers come with the first call
    return peak_growth_bytes(lambda: evaluate(slice(None)))
