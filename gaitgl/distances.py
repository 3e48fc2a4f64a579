"""Distances between embeddings, a block of probes at a time: no matrix of all pairs anywhere."""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Distance = Literal["euclidean", "strip_euclidean", "cosine"]
Embeddings = Tensor | NDArray[Any]
Blocks = Iterator[tuple[slice, NDArray[np.float32]]]
"""Of some probes (a slice of all of them) the distances to the whole gallery, [b, m] on the CPU;
whoever receives a block may write into it."""

BLOCK_BYTES = 32 * 2**20
TILE = 1024
"""Gallery entries that a CPU works on at once, so that their distances stay in its cache: each
strip goes over them several times, and the product alone gains a quarter."""
LARGEST = 1e15
"""Squares of larger numbers, summed over an embedding, could pass float32's range."""
COPIED_BYTES = 16 * 2**20
"""Of embeddings, what is checked and laid out at once, so that there is one copy, not two."""


def distance_blocks(
    embeddings: Embeddings,
    probe_rows: NDArray[np.int64],
    gallery_rows: NDArray[np.int64],
    distance: Distance,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Distances from probes to the gallery, a few probes at a time.

    Args:
        embeddings: [n, c, strips]; distances are computed in float32 where they lie.
        probe_rows [p], gallery_rows [m]: row numbers.
        distance: "euclidean" of the flattened vectors (the paper); "strip_euclidean", the mean of
            the strips' Euclidean distances (OpenGait); or "cosine", the Euclidean distance of the
            flattened vectors scaled to length 1, which ranks as 1 - cosine does.
        block_bytes: size of a block of distances in bytes, and of its probes' embeddings, at least
            one probe's; working memory is about three times that, and one float32 copy of the
            gallery.

    Yields:
        (rows, distances): a slice of `probe_rows`, and float32 [b, m] on the CPU.

    Raises:
        ValueError: the distance is unknown, or a value is NaN or beyond LARGEST.
    """
    gallery = _take(embeddings, gallery_rows, distance)  # [s, m, k]; s = 1 if flattened
    # Distances stay as they are when everything is moved to the gallery's centre, and the
    # subtraction |a|^2 + |b|^2 - 2ab then cancels fewer digits: a distance below some thousandth of
    # how far its entries lie from the centre is still a rough one.
    centre = gallery.mean(dim=1, keepdim=True)  # [s, 1, k]
    gallery -= centre
    gallery_squared = torch.einsum("smk,smk->sm", gallery, gallery)  # [s, m]
    numbers = gallery.shape[0] * gallery.shape[2]
    step = max(1, block_bytes // (4 * max(len(gallery_rows), numbers)))
    tile = TILE if gallery.device.type == "cpu" else len(gallery_rows)
    for start in range(0, len(probe_rows), step):
        rows = slice(start, min(start + step, len(probe_rows)))
        probes = _take(embeddings, probe_rows[rows], distance) - centre  # [s, b, k]
        probes_squared = torch.einsum("sbk,sbk->sb", probes, probes)  # [s, b]
        total = torch.zeros(probes.shape[1], gallery.shape[1], device=probes.device)  # [b, m]
        for first in range(0, len(gallery_rows), tile):
            columns = slice(first, first + tile)
            _add_distances(
                probes,
                probes_squared,
                gallery[:, columns],
                gallery_squared[:, columns],
                total[:, columns],
            )
        yield rows, total.div_(len(gallery)).cpu().numpy()


def pair_distances(
    embeddings: Embeddings,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    distance: Distance,
    block_bytes: int = BLOCK_BYTES,
) -> NDArray[np.float32]:
    """Distances of single pairs of rows: row numbers [q], [q] -> [q].

    From the differences themselves, so that they differ from `distance_blocks`' in the last digits;
    arguments and errors as there.
    """
    result = np.empty(len(first), np.float32)
    step = max(1, block_bytes // (8 * embeddings.shape[1] * embeddings.shape[2]))
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        apart = _take(embeddings, first[part], distance) - _take(
            embeddings, second[part], distance
        )  # [s, b, k]
        result[part] = torch.linalg.vector_norm(apart, dim=2).mean(dim=0).cpu().numpy()
    return result


def _add_distances(
    a: Tensor, a_squared: Tensor, b: Tensor, b_squared: Tensor, total: Tensor
) -> None:
    """Add each strip's distances: [s, n, k], [s, n], [s, m, k], [s, m] into total [n, m]."""
    strip = torch.empty(total.shape, device=total.device)  # [n, m], used again for each strip
    for x, x2, y, y2 in zip(a, a_squared, b, b_squared, strict=True):
        torch.add(x2[:, None], y2, out=strip)
        total += strip.addmm_(x, y.mT, alpha=-2).clamp_(min=0).sqrt_()


def _take(embeddings: Embeddings, rows: NDArray[np.int64], distance: Distance) -> Tensor:
    """A fresh float32 copy of some rows, laid out for the distance: [s, len(rows), k]."""
    if distance not in get_args(Distance):
        raise ValueError(f"distance: expected one of {get_args(Distance)}, got {distance!r}")
    _, c, strips = embeddings.shape
    by_strip = distance == "strip_euclidean"
    taken = torch.empty(
        (strips, len(rows), c) if by_strip else (1, len(rows), c * strips),
        device=embeddings.device if isinstance(embeddings, Tensor) else "cpu",
    )
    usable = np.ones(len(rows), np.bool_)
    step = max(1, COPIED_BYTES // (4 * c * strips))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        if isinstance(embeddings, Tensor):
            numbers = torch.as_tensor(rows[part], device=embeddings.device)
            chosen = embeddings.detach()[numbers].float()
        else:
            chosen = torch.from_numpy(np.asarray(embeddings[rows[part]], np.float32))
        low, high = chosen.flatten(1).aminmax(dim=1)  # [b] each; NaN stays NaN
        usable[part] = ((low >= -LARGEST) & (high <= LARGEST)).cpu().numpy()
        if by_strip:
            taken[:, part] = chosen.permute(2, 0, 1)  # [b, c, strips] -> [strips, b, c]
        else:
            flat = chosen.flatten(1)  # [b, c * strips]
            if distance == "cosine":
                # to a largest number of 1 first: normalize leaves lengths below 1e-12 as they are
                largest = torch.maximum(-low, high)[:, None].clamp(min=1e-30)
                flat = F.normalize(flat / largest, dim=1)
            taken[0, part] = flat
    if not usable.all():
        bad = rows[~usable]
        raise ValueError(
            f"embeddings: {len(bad)} of the {len(rows)} rows looked at hold NaN or numbers beyond "
            f"{LARGEST:.0e} (first: row {bad[0]}); the network that made them has diverged"
        )
    return taken
