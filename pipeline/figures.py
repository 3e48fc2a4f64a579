"""The pictures of a report, as PNG files; the same data gives the same bytes."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Table = npt.NDArray[np.float64]


def heat_map(path: Path, table: Table, views: list[str], title: str) -> None:
    """Rank-1 in % for each pair of views; rows are probe views, columns gallery views."""
    size = 2.2 + 0.55 * len(views)
    figure, axes = plt.subplots(figsize=(size + 0.8, size), layout="constrained")
    image = axes.imshow(table, vmin=0, vmax=100, cmap="viridis")
    axes.set_xticks(range(len(views)), views, rotation=45)
    axes.set_yticks(range(len(views)), views)
    axes.set(xlabel="gallery view (degrees)", ylabel="probe view (degrees)", title=title)
    for row, column in np.ndindex(table.shape):
        value = table[row, column]
        text = "–" if np.isnan(value) else f"{value:.0f}"
        colour = "white" if not value >= 60 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, ax=axes, label="rank-1 (%)", shrink=0.85)
    _save(figure, path)


def cmc_curve(path: Path, curves: pd.DataFrame, title: str) -> None:
    """One line per condition; columns: condition, rank, percent."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for condition, rows in curves.groupby("condition", sort=False):
        axes.plot(rows["rank"], rows["percent"], marker="o", markersize=3, label=str(condition))
    axes.set(xlabel="rank", ylabel="identified within rank (%)", title=title)
    axes.set_ylim(top=101)
    axes.set_xlim(left=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    _save(figure, path)


def p_curve(path: Path, histories: dict[str, pd.DataFrame]) -> None:
    """GeM's p against the step, one panel per training stage, in the order given."""
    figure, panels = plt.subplots(
        1, len(histories), figsize=(4.2 * len(histories), 3.4), layout="constrained", squeeze=False
    )
    for axes, (stage, history) in zip(panels[0], histories.items(), strict=True):
        axes.plot(history["step"], history["p"])
        axes.set(xlabel="step", ylabel="p (Eq. 8)", title=f"GeM's p: {stage}")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    # without matplotlib's version in the file, bytes depend on the data alone
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
