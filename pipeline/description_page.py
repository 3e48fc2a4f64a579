"""The report on a release as one page that needs no network and no scripts, and as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.description import Grid, sample
from pipeline.description_figures import length_histogram, missing_map
from pipeline.files import write_bytes, write_json
from pipeline.names import printable
from pipeline.pages import Picture, drawing, picture, render
from pipeline.pictures import evenly, strip
from pipeline.silhouette_store import SilhouetteStore

SHEET, FRAMES = 12, 12
"""Sequences on the sheet, and frames shown of each."""

TEMPLATE = "description_page.html"


def write_description(
    folder: Path, described: dict[str, Any], grids: Sequence[Grid], store: SilhouetteStore
) -> None:
    """Write ``ingest.html`` and ``ingest.json`` into ``folder``; same inputs, same bytes.

    ``described`` and ``grids``: what pipeline.description makes of the dataset. Of ``store`` only
    the sequences on the sheet are read.
    """
    maps = {grid.split: _map(grid) for grid in grids if not grid.kept.all()}
    text = page(described, maps, _histogram(described), _sheet(store))
    write_bytes(folder / "ingest.html", text.encode())
    write_json(folder / "ingest.json", described)
    print(f"{described['dataset']}: {folder / 'ingest.html'} shows what was found and kept")


def page(
    described: dict[str, Any],
    maps: dict[str, Picture],
    lengths: Picture,
    sheet: list[tuple[str, Picture]],
) -> str:
    """The page's HTML. ``maps``: one for each grid with a hole; ``sheet``: caption, strip."""
    return render(
        TEMPLATE,
        **described,
        title=described["dataset"].upper().replace("_", "-"),
        maps=maps,
        counts={grid["split"]: _counts(grid) for grid in described["combinations"]},
        length_picture=lengths,
        sheet=sheet,
    )


def _map(grid: Grid) -> Picture:
    missing = int((~grid.kept).sum())
    words = (
        f"Map of {len(grid.subjects)} {grid.split} subjects against {len(grid.sequences)} "
        f"sequences of {len(grid.views)} views; {missing} of {grid.kept.size} combinations have "
        "no silhouettes"
    )
    return drawing(missing_map(grid), printable(words))


def _histogram(described: dict[str, Any]) -> Picture:
    lengths = described["lengths"]
    words = (
        f"Histogram of sequence lengths: {lengths['fewest']} to {lengths['most']} frames, "
        f"half of the sequences have at most {lengths['median']:g}"
    )
    return drawing(length_histogram(described["length_histogram"]), words)


def _sheet(store: SilhouetteStore) -> list[tuple[str, Picture]]:
    strips = []
    for number in sample(store.index, SHEET):
        row: pd.Series[Any] = store.index.iloc[number]
        silhouettes = store.read(number)
        frames = evenly(silhouettes, FRAMES)
        key = printable(
            f"{row['split']}: subject {row['subject']}, sequence {row['sequence']}, "
            f"view {row['view']}"
        )
        words = f"{len(frames)} of the {len(silhouettes)} silhouettes of {key}"
        strips.append(
            (f"{key}; {len(frames)} of {len(silhouettes)} frames", picture(strip(frames), words))
        )
    return strips


def _counts(grid: dict[str, Any]) -> dict[str, Any]:
    """Table of missing and refused, the longer of sequences and views going down."""
    cells = np.stack([grid["missing"], grid["refused"]], axis=2)  # [sequences, views, 2]
    down, across = "sequence", "view"
    if len(grid["views"]) > len(grid["sequences"]):
        down, across, cells = across, down, cells.transpose(1, 0, 2)
    return {
        "down": down,
        "across": across,
        "head": grid[f"{across}s"],
        "rows": list(zip(grid[f"{down}s"], cells.tolist(), strict=True)),
    }
