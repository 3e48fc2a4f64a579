"""Where the embeddings of a few subjects lie, on a plane."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.protocols import Protocol, named

SUBJECTS = 10
"""Subjects that get a colour."""

POINTS = 400
"""At most so many points of them together, and as many of all others, behind them in grey."""

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EmbeddingMap:
    """A plane through embeddings that a protocol compares."""

    points: Points
    """[n, 2]"""

    subjects: list[str]
    roles: list[str]
    """Of each point: ``gallery``, or the condition of the probe."""

    others: Points
    """[m, 2]: without a colour."""

    others_name: str
    """Whose those are: ``other subjects``, or ``probes`` where nobody knows who walks in them."""

    axes: tuple[str, str]


def embedding_map(
    keys: pd.DataFrame, embeddings: npt.NDArray[np.float32], protocol: Protocol
) -> EmbeddingMap:
    """``keys`` (subject, sequence, view) of ``embeddings`` [n, c, strips].

    The plane of the two principal components of what is drawn. The subjects are spread evenly over
    the sorted ones, the same every time. Where probes have no labels, only the gallery's are
    subjects, and the probes are the others.
    """
    roles = _roles(keys, protocol)
    compared = (roles != "") & ~keys["view"].isin(protocol.excluded_views)  # [n]
    known = compared & (protocol.labelled | (roles == "gallery"))
    subjects = sorted(set(keys["subject"][known]))
    chosen = [subjects[i] for i in _spread(len(subjects), SUBJECTS)]
    coloured = known & keys["subject"].isin(chosen)
    grey = compared & ~(coloured if protocol.labelled else known)
    rows, others = (_thinned(np.flatnonzero(mask)) for mask in (coloured, grey))
    drawn = np.concatenate([rows, others])
    flat = embeddings[drawn].reshape(len(drawn), -1).astype(np.float64)  # [n + m, c · strips]
    points, shares = principal_components(flat)
    return EmbeddingMap(
        points[: len(rows)],
        keys["subject"].iloc[rows].tolist(),
        roles.iloc[rows].tolist(),
        points[len(rows) :],
        "other subjects" if protocol.labelled else "probes",
        (_axis("first", shares[0]), _axis("second", shares[1])),
    )


def principal_components(vectors: Points) -> tuple[Points, npt.NDArray[np.float64]]:
    """Coordinates [n, 2] of vectors [n, d] along the two directions of greatest variance, and their
    shares [2] of all variance.

    Of the two ends of a direction, the one with the furthest point is the positive one.
    """
    centred = vectors - vectors.mean(axis=0)
    # n is far below d: the eigenvectors of the n x n products do
    values, eigenvectors = np.linalg.eigh(centred @ centred.T)  # ascending
    values, eigenvectors = values[::-1].clip(0), eigenvectors[:, ::-1]
    points = np.zeros((len(vectors), 2))
    shares = np.zeros(2)
    n = min(2, len(vectors))
    points[:, :n] = eigenvectors[:, :n] * np.sqrt(values[:n])
    furthest = points[np.abs(points).argmax(axis=0), [0, 1]]
    points *= np.where(furthest < 0, -1, 1)
    if values.sum() > 0:
        shares[:n] = values[:n] / values.sum()
    return points, shares


def _roles(keys: pd.DataFrame, protocol: Protocol) -> "pd.Series[str]":
    """Gallery, or the condition of a probe; empty for what is neither."""
    roles = pd.Series("", keys.index)
    for role, names in {**protocol.probes, "gallery": protocol.gallery}.items():
        if role == "all":  # the name of the only condition
            role = "probe"
        roles[keys["sequence"].isin(named(names, keys["sequence"]))] = role
    return roles


def _thinned(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return rows[_spread(len(rows), POINTS)]


def _spread(n: int, count: int) -> npt.NDArray[np.int64]:
    """Up to ``count`` of n, evenly spread."""
    return np.linspace(0, max(0, n - 1), min(n, count)).round().astype(np.int64)


def _axis(name: str, share: float) -> str:
    return f"{name} component ({100 * share:.0f} % of the variance)"
