"""One pass over the distances from probes to a gallery: device, memory and progress of it."""

from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from gaitgl.distances import BLOCK_BYTES, Blocks, Distance, distance_blocks
from gaitgl.reranking import reranked_blocks
from gaitgl.retrieval import (
    CrossView,
    CrossViewPass,
    FirstMatch,
    FirstMatchPass,
    Pairs,
    compared_pairs,
    right_and_wrong,
)
from gaitgl.verification import Verification, VerificationPass
from pipeline.errors import PipelineError
from pipeline.memory import is_exhausted
from pipeline.progress import Progress
from pipeline.protocols import Protocol, named
from pipeline.submission import Nearest

Embeddings = npt.NDArray[np.float32]


class Reranking(NamedTuple):
    """Numbers of `gaitgl.reranking.reranked_blocks`."""

    k1: int
    k2: int
    original_share: float


@dataclass(frozen=True)
class Method:
    """Which distances, and in how much memory."""

    distance: Distance = "euclidean"
    block_bytes: int = BLOCK_BYTES
    reranking: Reranking | None = None
    """k-reciprocal re-ranking's k1, k2 and share of the distance itself; None: not re-ranked."""

    shown: bool = True
    """Whether progress is printed."""


@dataclass(frozen=True)
class Compared:
    """What one pass gives."""

    first: FirstMatch
    """Each view as a gallery."""

    cross: CrossView
    """All views as one gallery."""

    verification: Verification
    """All pairs of a probe and a gallery entry, but for those of one subject at one view."""

    impostors: npt.NDArray[np.int32]
    """[S, K]: those of each probe subject, sorted, in steps of rising distance."""

    @property
    def impostor_pairs(self) -> int:
        return int(self.verification.impostors[-1]) if len(self.verification.impostors) else 0

    def genuine_far(self) -> npt.NDArray[np.float64]:
        """For each genuine pair of each probe, the share of impostor pairs that are accepted where
        it is: [p, R], NaN where a probe has fewer."""
        found = self.verification
        distances = found.genuine_distances
        if not len(found.thresholds):  # nor is there any pair
            return np.full(distances.shape, np.nan)
        threshold = np.searchsorted(found.thresholds, np.nan_to_num(distances))
        far = found.impostors[threshold] / max(self.impostor_pairs, 1)
        return np.where(np.isnan(distances), np.nan, far)


def compare(
    keys: pd.DataFrame,
    embeddings: Embeddings | Tensor,
    protocol: Protocol,
    condition: str,
    method: Method,
) -> Compared:
    """Compare the probes of one condition with the gallery.

    ``keys`` are those of ``embeddings`` [n, c, strips]; views that the protocol excludes are not
    among them.
    """
    pairs = _pairs(keys, embeddings, protocol, condition)
    first, cross = FirstMatchPass(pairs), CrossViewPass(pairs)
    verification = VerificationPass(pairs, "drop_genuine")
    blocks = _blocks(embeddings, pairs, method, f"{protocol.title}, {condition}")
    for block in right_and_wrong(pairs, blocks):
        first.add(block)
        cross.add(block)
        verification.add(block)
    return Compared(
        first.result(),
        cross.result(),
        verification.result(),
        verification.impostors_by_subject(),
    )


def first_match(
    keys: pd.DataFrame,
    embeddings: Embeddings | Tensor,
    protocol: Protocol,
    condition: str,
    method: Method,
) -> FirstMatch:
    """Of ``compare``, what each view's gallery tells, and nothing else."""
    pairs = _pairs(keys, embeddings, protocol, condition)
    first = FirstMatchPass(pairs)
    blocks = _blocks(embeddings, pairs, method, f"{protocol.title}, {condition}")
    for block in right_and_wrong(pairs, blocks):
        first.add(block)
    return first.result()


def nearest(
    keys: pd.DataFrame, embeddings: Embeddings | Tensor, protocol: Protocol, method: Method
) -> Nearest:
    """The nearest gallery entry of each probe of all conditions, whoever it is.

    Of several that are equally near, the first by view, subject and row.
    """
    pairs = _pairs(keys, embeddings, protocol, None)
    columns = np.empty(len(pairs.probes), np.int64)
    distances = np.empty(len(pairs.probes), np.float32)
    for rows, block in _blocks(embeddings, pairs, method, protocol.title):
        columns[rows] = block.argmin(axis=1)
        distances[rows] = block.min(axis=1)
    subjects = keys["subject"].to_numpy()
    return Nearest(
        subjects[pairs.probes].tolist(),
        subjects[pairs.gallery[columns]].tolist(),
        distances.tolist(),
    )


def placed(embeddings: Embeddings, device: torch.device) -> Embeddings | Tensor:
    """Embeddings where distances are computed: on a GPU if they fit, else on the CPU."""
    if device.type == "cpu":
        return embeddings
    free, _ = torch.cuda.mem_get_info(device)
    if 3 * embeddings.nbytes > free:  # all of them are copied for re-ranking, and rearranged
        print(
            f"{embeddings.nbytes / 2**30:.1f} GiB of embeddings need three times that on "
            f"{device}, which has {free / 2**30:.1f} GiB free: distances are computed on the CPU"
        )
        return embeddings
    writable = np.array(embeddings)  # a memory map is not, and torch warns
    return torch.from_numpy(writable).to(device)


def _pairs(
    keys: pd.DataFrame, embeddings: Embeddings | Tensor, protocol: Protocol, condition: str | None
) -> Pairs:
    probes = protocol.all_probes if condition is None else protocol.probes[condition]
    sequences = keys["sequence"]
    try:
        return compared_pairs(
            embeddings,
            keys["subject"].to_numpy(str),
            sequences.to_numpy(str),
            keys["view"].to_numpy(str),
            named(protocol.gallery, sequences),
            named(probes, sequences),
        )
    except ValueError as error:
        raise PipelineError(
            f"{protocol.name}, {condition or 'all'}: cannot compare: {error}"
        ) from None


def _blocks(embeddings: Embeddings | Tensor, pairs: Pairs, method: Method, label: str) -> Blocks:
    """All blocks of distances, with a progress bar in probes; PipelineError where memory ends."""
    try:
        yield from _distances(embeddings, pairs, method, label)
    except RuntimeError as error:
        if not is_exhausted(error):
            raise
        raise PipelineError(
            f"out of memory while comparing {label}: lower runtime.distance_block_mib "
            f"({method.block_bytes / 2**20:g} now), or set runtime.device to cpu"
        ) from None


def _distances(embeddings: Embeddings | Tensor, pairs: Pairs, method: Method, label: str) -> Blocks:
    what = embeddings, pairs.probes, pairs.gallery, method.distance, method.block_bytes
    if method.reranking is None:
        yield from _counted(distance_blocks(*what), len(pairs.probes), label, method.shown)
        return
    rows = len(pairs.probes) + len(pairs.gallery)
    with Progress(f"neighbours of {label}", rows, "sequences", shown=method.shown) as progress:
        blocks = reranked_blocks(*what, *method.reranking, on_block=progress.advance)
        first = next(blocks)  # all of the neighbours are found by then
    yield from _counted(chain([first], blocks), len(pairs.probes), label, method.shown)


def _counted(blocks: Blocks, probes: int, label: str, shown: bool) -> Blocks:
    with Progress(f"comparing {label}", probes, "probes", shown=shown) as progress:
        for rows, block in blocks:
            yield rows, block
            progress.advance(rows.stop - rows.start)
