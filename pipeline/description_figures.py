"""The pictures of the report on a release, as PNG bytes; the same data gives the same bytes."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.description import Grid
from pipeline.names import label
from pipeline.pictures import png_of

NONE_MISSING = "#dfe8e2"

SMALL_LINE, SMALL_LETTER = 0.12, 0.065
"""Inches that a line, and a letter, of the smallest labels take."""


def missing_map(grid: Grid, most_rows: int = 80) -> bytes:
    """Share of subjects without silhouettes, one column for each sequence and view.

    A row is one subject, or as many neighbours as it takes to stay within ``most_rows``.
    """
    subjects, n_sequences, n_views = grid.kept.shape
    missing, starts = binned_shares(~grid.kept.reshape(subjects, -1), most_rows)
    columns = n_sequences * n_views
    width = float(np.clip(2.5 + 0.17 * columns, 5, 12))
    height = float(np.clip(1.6 + 0.05 * len(starts), 2.6, 5))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    # the smallest share above none must stand out from none
    colours = mpl.colormaps["YlOrRd"].with_extremes(under=NONE_MISSING)
    norm = PowerNorm(0.35, vmin=1e-9, vmax=1)
    # sharp cells, as long as each has a pixel
    drawn = "nearest" if columns <= 1000 else "auto"
    image = axes.imshow(missing, aspect="auto", cmap=colours, norm=norm, interpolation=drawn)
    if columns <= 100:
        axes.vlines(np.arange(1, columns) - 0.5, -0.5, len(starts) - 0.5, "white", linewidth=0.5)
    axes.vlines(
        np.arange(1, n_sequences) * n_views - 0.5, -0.5, len(starts) - 0.5, "black", linewidth=0.7
    )
    _name_columns(axes, grid, (width - 1.5) / columns)
    rows = np.unique(np.linspace(0, len(starts) - 1, 7).astype(int))
    axes.set_yticks(
        rows, [label(grid.subjects[starts[row]]) for row in rows], fontsize=8, parse_math=False
    )
    each = round(subjects / len(starts))
    axes.set_ylabel("subject" if each == 1 else f"subjects, about {each} a row")
    bar = figure.colorbar(image, ax=axes, extend="min", ticks=[0.01, 0.1, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    bar.ax.minorticks_off()
    bar.set_label("missing (grey: none)")
    return png_of(figure)


def _name_columns(axes: Axes, grid: Grid, column_width: float) -> None:
    """Views below the columns and sequences above, as long as they can be read.

    ``column_width`` in inches.
    """
    n_sequences, n_views = len(grid.sequences), len(grid.views)
    axes.set_xlabel(f"{n_views} views of each of {n_sequences} sequences")
    small: dict[str, Any] = {"fontsize": 7, "parse_math": False}
    axes.set_xticks([])
    if column_width >= SMALL_LINE:
        views = [label(view) for view in grid.views] * n_sequences
        axes.set_xticks(range(len(views)), views, rotation=90, **small)
    if column_width * n_views >= SMALL_LINE:
        sequences = [label(name) for name in grid.sequences]
        fits = max(map(len, sequences)) * SMALL_LETTER < column_width * n_views
        above = axes.secondary_xaxis("top")
        above.tick_params(length=0)
        middles = (np.arange(n_sequences) + 0.5) * n_views - 0.5
        above.set_xticks(middles, sequences, rotation=0 if fits else 90, **small)


def binned_shares(
    cells: npt.NDArray[np.bool_], most_rows: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Means over neighbouring rows of ``bool [n, columns]``, at most ``most_rows`` of them.

    Returns ``[rows, columns]`` and the first of the n that each row holds.
    """
    n = len(cells)
    edges = np.linspace(0, n, min(n, most_rows) + 1).astype(np.int64)
    starts = edges[:-1]
    sums = np.add.reduceat(cells, starts, axis=0, dtype=np.int64)
    return sums / np.diff(edges)[:, None], starts


def length_histogram(bars: Sequence[dict[str, int]]) -> bytes:
    """Bars as pipeline.description counts them: first and last length, sequences."""
    figure = Figure(figsize=(4.8, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.bar(
        [bar["first"] - 0.5 for bar in bars],
        [bar["sequences"] for bar in bars],
        width=[bar["last"] - bar["first"] + 1 for bar in bars],
        align="edge",
        color="#3b6e8f",
        edgecolor="white",
        linewidth=0.5,
    )
    axes.set(xlabel="frames kept", ylabel="sequences")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    return png_of(figure)
