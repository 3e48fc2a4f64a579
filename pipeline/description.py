"""What a release holds and what became of it, in numbers: tables in, dictionaries out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.catalogue import Release
from pipeline.names import printable
from pipeline.tables import KEY

COLUMNS = [*KEY, "split", "n_frames"]
"""What is read of the catalogue: the names of millions of frames are not needed here."""

EXAMPLES = 5
"""Refusals named for each reason."""

SHARED = 0.05
"""Share of all combinations of a split's subjects, sequences and views that must be there for its
names to mean the same for every subject. Where each walk has a name of its own (a hash), nothing
can be missing, and a table of all combinations would be as large as it is empty."""

SEED = 0

Cells = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Grid:
    """Every combination that the subjects, sequences and views of a split can make."""

    split: str
    subjects: list[str]
    sequences: list[str]
    views: list[str]
    found: Cells
    """[subjects, sequences, views]: the release holds it."""

    kept: Cells
    """[subjects, sequences, views]: and normalize made silhouettes of it."""


def grids(sequences: pd.DataFrame, index: pd.DataFrame) -> list[Grid]:
    """One grid for each split whose sequence names are shared between subjects (``SHARED``).

    ``sequences``: the catalogue, ``index``: that of the silhouettes; columns: ``COLUMNS``.
    """
    made = []
    for split in _splits(sequences):
        rows = sequences[sequences["split"] == split]
        subjects, names, views = axes = [sorted(set(rows[column])) for column in KEY]
        if len(rows) < SHARED * len(subjects) * len(names) * len(views):
            continue
        kept = _cells(index[index["split"] == split], axes)
        made.append(Grid(split, subjects, names, views, _cells(rows, axes), kept))
    return made


def _cells(rows: pd.DataFrame, axes: list[list[str]]) -> Cells:
    cells = np.zeros([len(axis) for axis in axes], np.bool_)  # [subjects, sequences, views]
    where = np.stack(
        [
            pd.Index(axis).get_indexer(pd.Index(rows[name]))
            for axis, name in zip(axes, KEY, strict=True)
        ]
    )
    known = (where >= 0).all(axis=0)  # silhouettes that no catalogue knows: the accounting tells
    cells[tuple(where[:, known])] = True
    return cells


def describe(
    dataset: str,
    sequences: pd.DataFrame,
    index: pd.DataFrame,
    refusals: Mapping[str, pd.DataFrame],
    release: Release,
    grids: Iterable[Grid],
) -> dict[str, Any]:
    """All that the report says, fit for JSON.

    ``sequences``: the catalogue, ``index``: that of the silhouettes (columns: ``COLUMNS``);
    ``refusals``: those of "ingest" and of "normalize" (columns: pipeline.catalogue.REFUSALS).
    Names that come from the release are safe to print.
    """
    described = [_combinations(grid) for grid in grids]
    return {
        "dataset": dataset,
        "layout": release.layout,
        "containers": release.containers,
        "found": _found(sequences, index),
        "splits": _by_split(sequences, index),
        "expected": _expected(release.expected, sequences),
        "accounting": _accounting(sequences, index, refusals, release.files_seen),
        "missing": {grid["split"]: grid.pop("counts") for grid in described},
        "combinations": described,
        "lengths": _spread(index["n_frames"]),
        "length_histogram": _histogram(index["n_frames"].to_numpy()),
        "refused": {
            stage: {"rows": len(table), "frames": int(table["frames"].sum())}
            for stage, table in refusals.items()
        },
        "reasons": [row for stage, table in refusals.items() for row in _reasons(stage, table)],
    }


def sample(index: pd.DataFrame, count: int) -> list[int]:
    """Numbers of up to ``count`` random sequences, the same every time.

    Splits take turns, and the views and subjects least seen so far come first.
    """
    left = np.random.default_rng(SEED).permutation(len(index))
    splits, split = _splits(index), index["split"].to_numpy()
    view, subject = (pd.factorize(index[name])[0] for name in ("view", "subject"))
    views_seen, subjects_seen = np.zeros((2, len(index)), np.int64)
    chosen: list[tuple[int, int]] = []
    for turn in range(min(count, len(index))):
        of_split = left[split[left] == splits[turn % len(splits)]]
        rows = of_split if len(of_split) else left
        number = int(rows[np.argmin(views_seen[view[rows]] + subjects_seen[subject[rows]])])
        views_seen[view[number]] += 1
        subjects_seen[subject[number]] += 1
        left = left[left != number]
        chosen.append((splits.index(split[number]), number))
    return [number for _, number in sorted(chosen)]


def _splits(rows: pd.DataFrame) -> list[str]:
    order = ["train", "val", "test"]
    return sorted(set(rows["split"]), key=lambda s: (order.index(s) if s in order else 3, s))


def _found(sequences: pd.DataFrame, index: pd.DataFrame) -> dict[str, int]:
    return {
        "subjects": sequences["subject"].nunique(),
        "sequences": len(sequences),
        "sequences_kept": len(index),
        "views": sequences["view"].nunique(),
        "frames": int(sequences["n_frames"].sum()),
        "frames_kept": int(index["n_frames"].sum()),
    }


def _by_split(sequences: pd.DataFrame, index: pd.DataFrame) -> dict[str, dict[str, Any]]:
    rows = {}
    for split in _splits(sequences):
        here = sequences[sequences["split"] == split]
        rows[split] = {
            **_found(here, index[index["split"] == split]),
            "sequences_of_a_subject": _spread(here.groupby("subject").size()),
        }
    return rows


def _spread(values: "pd.Series[int]") -> dict[str, float]:
    if values.empty:
        return {}
    return {
        "fewest": int(values.min()),
        "median": float(values.median()),
        "most": int(values.max()),
    }


def _expected(expected: Mapping[str, int], sequences: pd.DataFrame) -> dict[str, dict[str, int]]:
    """What a whole release of this layout has, beside what was found."""
    found = {"subjects": sequences["subject"].nunique()}
    for split in ("train", "val", "test"):
        here = sequences[sequences["split"] == split]
        found[f"{split}_subjects"] = here["subject"].nunique()
    found |= {"sequences": len(sequences), "views": sequences["view"].nunique()}
    return {
        name: {
            "expected": expected[name],
            "found": number,
            "difference": number - expected[name],
        }
        for name, number in found.items()
        if name in expected
    }


def _accounting(
    sequences: pd.DataFrame,
    index: pd.DataFrame,
    refusals: Mapping[str, pd.DataFrame],
    files_seen: int,
) -> dict[str, dict[str, Any]]:
    catalogued, kept = int(sequences["n_frames"].sum()), int(index["n_frames"].sum())
    not_listed = int(refusals["ingest"]["frames"].sum())
    refused = int(refusals["normalize"]["frames"].sum())
    changes = [
        sequences[[*KEY, "n_frames"]],
        index[[*KEY, "n_frames"]].assign(n_frames=-index["n_frames"]),
        # damage to an archive as a whole has no key, and refuses no frame by itself
        (lost := refusals["normalize"])
        .loc[lost["frames"] > 0, [*KEY, "frames"]]
        .assign(n_frames=lambda rows: -rows["frames"])
        .drop(columns="frames"),
    ]
    left = pd.concat(changes).groupby(KEY)["n_frames"].sum()
    return {
        "files": {
            "seen": files_seen,
            "catalogued": catalogued,
            "refused": not_listed,
            "holds": files_seen == catalogued + not_listed,
        },
        "frames": {
            "in": catalogued,
            "kept": kept,
            "refused": refused,
            "holds": catalogued == kept + refused,
        },
        "sequences": {
            "counted": len(left),
            "add_up": int((left == 0).sum()),
            "holds": bool((left == 0).all()),
        },
    }


def _combinations(grid: Grid) -> dict[str, Any]:
    missing = (~grid.found).sum(axis=0)  # [sequences, views]
    refused = (grid.found & ~grid.kept).sum(axis=0)
    return {
        "split": grid.split,
        "subjects": len(grid.subjects),
        "sequences": [printable(name) for name in grid.sequences],
        "views": [printable(name) for name in grid.views],
        "missing": missing.tolist(),
        "refused": refused.tolist(),
        "counts": {
            "combinations": grid.found.size,
            "missing": int(missing.sum()),
            "refused": int(refused.sum()),
        },
    }


def _histogram(lengths: npt.NDArray[np.int32], bars: int = 60) -> list[dict[str, int]]:
    """At most ``bars`` bars of equal width; ``last`` is included."""
    if not len(lengths):
        return []
    fewest, most = int(lengths.min()), int(lengths.max())
    width = -(-(most - fewest + 1) // bars)
    counts = np.bincount((lengths - fewest) // width)
    return [
        {"first": fewest + i * width, "last": fewest + (i + 1) * width - 1, "sequences": int(count)}
        for i, count in enumerate(counts)
    ]


def _reasons(stage: str, refusals: pd.DataFrame) -> list[dict[str, Any]]:
    """One row for each reason, most frames first; examples from all over its refusals."""
    rows = []
    for reason, table in refusals.groupby("reason"):
        apart = np.unique(np.linspace(0, len(table) - 1, min(EXAMPLES, len(table))).astype(int))
        examples = table.iloc[apart][["container", "member", "detail"]]
        rows.append(
            {
                "stage": stage,
                "reason": printable(str(reason)),
                "rows": len(table),
                "frames": int(table["frames"].sum()),
                "examples": [
                    {str(name): printable(str(text)) for name, text in row.items()}
                    for row in examples.to_dict("records")
                ],
            }
        )
    return sorted(rows, key=lambda row: (-row["frames"], row["reason"]))
