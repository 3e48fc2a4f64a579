"""The report on a release as one page that needs no network and no scripts, and as JSON."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.description import Grid, printable, sample
from pipeline.description_figures import DPI, length_histogram, missing_map, strip
from pipeline.files import write_bytes, write_json
from pipeline.silhouette_store import SilhouetteStore

SHEET, FRAMES = 12, 12
"""Sequences on the sheet, and frames shown of each."""

TEMPLATE = "description_page.html"


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG, the width in CSS pixels that it is meant for, and what it shows, in words."""

    png: bytes
    width: int
    height: int
    words: str

    @property
    def uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


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
    # names come out of archives that others made: every value is escaped, in text and in attributes
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "share": _share}
    return environment.get_template(TEMPLATE).render(
        described,
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
    return _picture(missing_map(grid), printable(words), scale=DPI / 96)


def _histogram(described: dict[str, Any]) -> Picture:
    lengths = described["lengths"]
    words = (
        f"Histogram of sequence lengths: {lengths['fewest']} to {lengths['most']} frames, "
        f"half of the sequences have at most {lengths['median']:g}"
    )
    return _picture(length_histogram(described["length_histogram"]), words, scale=DPI / 96)


def _sheet(store: SilhouetteStore) -> list[tuple[str, Picture]]:
    strips = []
    for number in sample(store.index, SHEET):
        row: pd.Series[Any] = store.index.iloc[number]
        silhouettes = store.read(number)
        apart = np.linspace(0, len(silhouettes) - 1, min(FRAMES, len(silhouettes)))
        frames = silhouettes[apart.round().astype(int)]
        key = printable(
            f"{row['split']}: subject {row['subject']}, sequence {row['sequence']}, "
            f"view {row['view']}"
        )
        words = f"{len(frames)} of the {len(silhouettes)} silhouettes of {key}"
        strips.append(
            (f"{key}; {len(frames)} of {len(silhouettes)} frames", _picture(strip(frames), words))
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


def _picture(png: bytes, words: str, scale: float = 1) -> Picture:
    width, height = (int.from_bytes(png[i : i + 4]) for i in (16, 20))  # of PNG's first chunk
    return Picture(png, round(width / scale), round(height / scale), words)


def _number(value: int) -> str:
    """10 307, with narrow spaces that do not break."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _share(part: int, whole: int) -> str:
    """In %, where 0 and 100 are said only of nothing and of everything."""
    if part in (0, whole):
        return "100 %" if part else "0 %"
    percent = 100 * part / whole
    if percent < 0.1:
        return "less than 0.1 %"
    return "more than 99.9 %" if percent > 99.9 else f"{percent:.1f} %"
