"""The figures of a report, as PNG bytes; the same data gives the same bytes."""

import math
from collections.abc import Sequence
from itertools import cycle
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.embedding_map import EmbeddingMap
from pipeline.names import label
from pipeline.pictures import png_of

Table = npt.NDArray[np.float64]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
"""Told apart by colour-blind readers too (Okabe and Ito), and in grey by the lines' styles."""

LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")

NUMBERED_VIEWS = 26
"""Up to so many views, each cell of a heat map holds its number."""

PLOT = (4.8, 3.6)
"""Width and height of a plot in inches: small enough to be read on a phone."""

_SUBJECT_COLOURS = (*COLOURS[:6], "#b22222", "#8c6d31", "#000000", "#7570b3")
_PROBIT = NormalDist().inv_cdf
DET_TICKS = (0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 80, 95, 99)


def heat_map(table: Table, views: Sequence[str], title: str) -> bytes:
    """Rank-1 in % for each pair of views; rows are probe views, columns gallery views."""
    n = len(views)
    cell = 0.42 if n <= 16 else 7 / n
    names = 0.08 * max(len(label(view)) for view in views)
    size = float(np.clip(cell * n, 1.6, 10)) + 0.7 + names
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table, vmin=0, vmax=100, cmap="viridis")
    drawn = [label(view) for view in views]
    step = max(1, n // 40)
    small = 9 if n <= 16 else 7
    axes.set_xticks(range(0, n, step), drawn[::step], rotation=90, fontsize=small, parse_math=False)
    axes.set_yticks(range(0, n, step), drawn[::step], fontsize=small, parse_math=False)
    axes.set(xlabel="gallery view", ylabel="probe view")
    _title(axes, title)
    if n <= NUMBERED_VIEWS:
        for row, column in np.ndindex(table.shape):
            value = table[row, column]
            text = "–" if np.isnan(value) else f"{value:.0f}"
            # viridis is light enough for black from 44 on: a contrast of 4.5 on either side
            colour = "black" if np.isnan(value) or value >= 44 else "white"
            size_of_text = 9 if n <= 16 else 6
            axes.text(column, row, text, ha="center", va="center", color=colour, size=size_of_text)
    figure.colorbar(image, ax=axes, label="rank-1 (%)", shrink=0.85)
    return png_of(figure)


def cmc_curves(curves: pd.DataFrame, title: str) -> bytes:
    """One line per condition; columns: condition, rank, percent."""
    figure = Figure(figsize=PLOT, layout="constrained")
    axes = figure.subplots()
    last = int(curves["rank"].max())
    for (condition, rows), colour, line in zip(
        curves.groupby("condition", sort=False), cycle(COLOURS), cycle(LINES)
    ):
        axes.plot(
            rows["rank"],
            rows["percent"],
            marker="o",
            markersize=3,
            markevery=max(1, last // 20),  # so that they do not cover the line
            color=colour,
            linestyle=line,
            label=label(str(condition)),
            clip_on=False,  # a marker at 100 % is drawn whole
        )
    axes.set(xlabel="rank", ylabel="identified within rank (%)")
    _title(axes, title)
    axes.set_ylim(max(0, axes.get_ylim()[0]), 100)
    axes.set_xlim(left=0.5)
    ticks = MaxNLocator(8, steps=[1, 2, 2.5, 5, 10], integer=True).tick_values(1, last)
    axes.set_xticks([1, *(tick for tick in ticks if 1 < tick <= last)])
    _plain(axes)
    _legend(axes, curves["condition"].nunique(), "lower right")
    return png_of(figure)


def det_curves(curves: pd.DataFrame, title: str) -> bytes:
    """One line per condition; columns: condition, far, frr (0 to 1).

    Both axes are stretched so that normally distributed distances give straight lines (Martin et
    al., "The DET curve in assessment of detection task performance", 1997). They go down to the
    smallest rate that the data has, but not below 0.01 %, where smaller ones lie, too; and a little
    further to a tick for none.
    """
    rates = curves[["far", "frr"]]
    smallest = rates.where(rates > 0).min().fillna(0.01).clip(DET_TICKS[0] / 100, 0.01)
    none = smallest / 4
    figure = Figure(figsize=(PLOT[0], 4.5), layout="constrained")
    axes = figure.subplots()
    for (condition, rows), colour, line in zip(
        curves.groupby("condition", sort=False), cycle(COLOURS), cycle(LINES)
    ):
        far, frr = (
            rows[rate]
            .clip(smallest[rate], DET_TICKS[-1] / 100)
            .mask(rows[rate] == 0, none[rate])
            .map(_PROBIT)
            for rate in ("far", "frr")
        )
        axes.plot(
            far,
            frr,
            color=colour,
            linestyle=line,
            label=label(str(condition)),
        )
    ends = [_PROBIT(DET_TICKS[i] / 100) for i in (0, -1)]
    axes.plot(ends, ends, color="0.6", linewidth=0.8, zorder=0)
    axes.annotate(
        "equal errors",
        (_PROBIT(0.3), _PROBIT(0.3)),
        xytext=(4, -10),
        textcoords="offset points",
        color="0.45",
        fontsize=8,
    )
    for axis, rate in ((axes.xaxis, "far"), (axes.yaxis, "frr")):
        ticks = [tick for tick in DET_TICKS if tick / 100 >= smallest[rate]]
        places = [_PROBIT(share) for share in (none[rate], *(tick / 100 for tick in ticks))]
        axis.set_ticks(places, ["0", *(f"{tick:g}" for tick in ticks)], fontsize=8)
        axis.set_view_interval(places[0] - 0.05, places[-1], ignore=True)
    axes.set(xlabel="falsely accepted impostors (%)", ylabel="falsely rejected (%)")
    _title(axes, title)
    _plain(axes)
    _legend(axes, curves["condition"].nunique(), "lower left")
    return png_of(figure)


def loss_curve(history: pd.DataFrame, title: str) -> bytes:
    """Loss and share of active triplets; columns: step, loss, active_share.

    The loss of each step, and over it the mean of the twentieth part of the training around it.
    """
    figure = Figure(figsize=PLOT, layout="constrained")
    axes = figure.subplots()
    pale: dict[str, Any] = {"color": COLOURS[0], "alpha": 0.3, "linewidth": 0.8}
    raw = axes.plot(history["step"], history["loss"], label="loss of a step", **pale)
    mean = _smooth(history["loss"])
    smooth = axes.plot(history["step"], mean, color=COLOURS[0], label="its running mean")
    axes.set(xlabel="step", ylabel="loss")
    axes.set_ylim(bottom=0)
    _title(axes, title)
    _plain(axes)
    right = axes.twinx()
    share = right.plot(
        history["step"],
        100 * _smooth(history["active_share"]),
        color=COLOURS[1],
        linestyle="--",
        label="active triplets",
    )
    right.set_ylabel("active triplets (%)")
    right.set_ylim(0, 101)
    right.spines["top"].set_visible(False)
    right.legend(handles=[*raw, *smooth, *share], loc="upper right", fontsize=8)
    return png_of(figure)


def p_curve(history: pd.DataFrame, title: str) -> bytes:
    """GeM's p; columns: step, p."""
    figure = Figure(figsize=PLOT, layout="constrained")
    axes = figure.subplots()
    axes.plot(history["step"], history["p"], color=COLOURS[2])
    axes.set(xlabel="step", ylabel="p (Eq. 8)")
    axes.ticklabel_format(axis="y", useOffset=False)
    _title(axes, title)
    _plain(axes)
    return png_of(figure)


def embedding_map(plane: EmbeddingMap) -> bytes:
    """Its points with a colour for each subject and a marker for each role; behind them, in grey,
    the others."""
    points, others, roles = plane.points, plane.others, plane.roles
    colours = dict(zip(dict.fromkeys(plane.subjects), cycle(_SUBJECT_COLOURS), strict=False))
    markers = dict(zip(dict.fromkeys(roles), cycle(MARKERS), strict=False))
    who = [
        Line2D([], [], linestyle="", marker="o", color=colour, label=f"subject {label(subject)}")
        for subject, colour in colours.items()
    ]
    how = [
        Line2D([], [], linestyle="", marker=marker, color="0.3", label=label(role))
        for role, marker in markers.items()
    ]
    rest = [Line2D([], [], linestyle="", marker=".", color="0.75", label=plane.others_name)]
    handles = [*how, *who, *(rest if len(others) else [])]
    # below the plot, for beside it a phone has no room; a letter is about 0.067 inches wide
    longest = max(len(str(handle.get_label())) for handle in handles)
    across = int(np.clip(PLOT[0] / (0.067 * longest + 0.4), 1, 4))
    down = math.ceil(len(handles) / across)
    figure = Figure(figsize=(PLOT[0], PLOT[1] + 0.2 * down), layout="constrained")
    axes = figure.subplots()
    axes.scatter(others[:, 0], others[:, 1], s=5, color="0.85", linewidths=0, zorder=0)
    for role, marker in markers.items():
        rows = [i for i, name in enumerate(roles) if name == role]
        axes.scatter(
            points[rows, 0],
            points[rows, 1],
            s=26,
            c=[colours[plane.subjects[i]] for i in rows],
            marker=marker,
            edgecolors="white",
            linewidths=0.4,
        )
    axes.set(xlabel=plane.axes[0], ylabel=plane.axes[1])
    axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=across, fontsize=8, handlelength=1
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return png_of(figure)


def _smooth(values: "pd.Series[float]") -> "pd.Series[float]":
    return values.rolling(max(1, len(values) // 20), center=True, min_periods=1).mean()


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11, parse_math=False)


def _legend(axes: Axes, entries: int, place: Literal["lower right", "lower left"]) -> None:
    """None for a single line, whose name the title says."""
    if entries > 1:
        for text in axes.legend(loc=place).get_texts():
            text.set_parse_math(False)
