from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pipeline import figures
from pipeline.embedding_map import EmbeddingMap, Points
from pipeline.figures import (
    COLOURS,
    cmc_curves,
    det_curves,
    embedding_map,
    heat_map,
    loss_curve,
    p_curve,
)

VIEWS = ["000", "090", "180"]

CMC = pd.DataFrame(
    {
        "condition": ["NM"] * 5 + ["CL"] * 5,
        "rank": [*range(1, 6)] * 2,
        "percent": np.arange(10) * 10.0,
    }
)
DET = pd.DataFrame(
    {"condition": "all", "far": np.geomspace(1e-4, 1, 9), "frr": np.linspace(0.6, 0, 9)}
)
HISTORY = pd.DataFrame(
    {"step": [1, 2, 3], "loss": [0.3, 0.2, 0.25], "active_share": [1, 0.5, 0.2], "p": [6.5, 6.4, 6]}
)
POINTS = np.array([[0, 0], [1, 1], [-1, 2.0]])


def _pixels(png: bytes) -> npt.NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return np.asarray(picture, np.uint8)[:, :, ::-1]  # red first


def _where(pixels: npt.NDArray[np.uint8], colour: str) -> tuple[float, float, int]:
    """Row and column around which a colour lies, and how many pixels have it."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    rows, columns = np.nonzero(np.abs(pixels.astype(int) - rgb).max(axis=2) < 8)
    return (
        (float(np.median(rows)), float(np.median(columns)), len(rows)) if len(rows) else (0, 0, 0)
    )


def _mapped(subjects: list[str], roles: list[str], others: Points) -> bytes:
    """POINTS of these subjects on a plane."""
    return embedding_map(EmbeddingMap(POINTS, subjects, roles, others, "others", ("1", "2")))


DRAWN: dict[str, Callable[[], bytes]] = {
    "heat map": lambda: heat_map(
        np.array([[100, 50.4, np.nan], [0, 60, 70], [1, 2, 3]]), VIEWS, "OUMVLP"
    ),
    "cmc": lambda: cmc_curves(CMC, "CASIA-E"),
    "det": lambda: det_curves(DET, "OUMVLP"),
    "loss": lambda: loss_curve(HISTORY, "pretrain"),
    "p": lambda: p_curve(HISTORY, "pretrain"),
    "map": lambda: _mapped(["a", "a", "b"], ["x", "y", "x"], POINTS),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_pictures_and_the_same_bytes_again(name: str) -> None:
    png = DRAWN[name]()
    assert png == DRAWN[name]()
    assert len(np.unique(_pixels(png).reshape(-1, 3), axis=0)) > 10


def test_a_heat_map_has_probe_views_down_and_gallery_views_across() -> None:
    def brightest(table: list[list[float]]) -> tuple[float, float]:
        """Row and column, in pixels, around which the colour of 100 % lies, colour bar left out."""
        pixels = _pixels(heat_map(np.array(table, float), VIEWS[:2], "x"))
        row, column, _ = _where(pixels[:, : pixels.shape[1] * 3 // 4], "#fde725")
        return row, column

    above, right = brightest([[0, 100], [0, 0]])
    below, left = brightest([[0, 0], [100, 0]])
    assert above + 30 < below
    assert left + 30 < right


@pytest.mark.parametrize("n", [1, 26, 90])
def test_a_heat_map_stays_of_a_size_to_be_read(n: int) -> None:
    table = np.random.default_rng(0).uniform(0, 100, (n, n))
    png = heat_map(table, [f"camera {i}" for i in range(n)], "own data")
    height, width = _pixels(png).shape[:2]
    assert 300 < height <= width <= 2_300
    assert len(png) < 600_000


def test_curves_lie_where_their_values_are() -> None:
    low, high = CMC.assign(percent=20.0), CMC.assign(percent=90.0)
    nobody = CMC.assign(percent=0.0, condition="x")  # both axes from 0 to 100
    rows = [
        _where(_pixels(cmc_curves(pd.concat([nobody, c]), "")), COLOURS[1])[0] for c in (low, high)
    ]
    assert rows[0] > rows[1] + 200


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (5, [1, 2, 3, 4, 5]),
        (20, [1, 5, 10, 15, 20]),
        (200, [1, 25, 50, 75, 100, 125, 150, 175, 200]),
    ],
)
@pytest.mark.parametrize("lowest", [0, 60, 99.5, 100])
def test_a_cmc_has_few_whole_ranks_and_no_more_than_all_identified(
    ranks: int, expected: list[int], lowest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "png_of", drawn.append)
    percent = np.linspace(lowest, 100, ranks)
    rank = range(1, ranks + 1)
    cmc_curves(pd.DataFrame({"condition": "all", "rank": rank, "percent": percent}), "")
    (axes,) = drawn[0].axes
    assert axes.get_xticks().tolist() == expected
    low, high = axes.get_ylim()
    assert 0 <= low <= lowest
    assert high == 100
    assert low < high


def test_a_det_curve_lies_within_its_axes_and_none_has_a_tick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "png_of", drawn.append)
    far, frr = [0.0, 2e-6, 1e-3, 0.02, 0.5, 1.0], [1.0, 0.99, 0.97, 0.2, 0.004, 0.0]
    det_curves(pd.DataFrame({"condition": "all", "far": far, "frr": frr}), "")
    (axes,) = drawn[0].axes
    curve = axes.get_lines()[0]
    for axis, values in ((axes.xaxis, curve.get_xdata()), (axes.yaxis, curve.get_ydata())):
        low, high = axis.get_view_interval()
        assert low <= min(values) < max(values) <= high
        assert axis.get_ticklabels()[0].get_text() == "0"
        assert axis.get_ticklocs()[0] == pytest.approx(min(values))
        assert axis.get_ticklabels()[-1].get_text() == "99"
    assert curve.get_xdata()[1] == pytest.approx(axes.get_xticks()[1])  # 0.01 %, not none


def test_a_det_curve_without_errors_lies_at_the_bottom() -> None:
    perfect = pd.DataFrame({"condition": "all", "far": [0.0, 1.0], "frr": [0.0, 0.0]})
    pixels = _pixels(det_curves(perfect, ""))
    row, _, count = _where(pixels, COLOURS[0])
    assert count > 500
    assert row > 0.6 * len(pixels)


def test_subjects_have_colours_and_the_others_none() -> None:
    alone = _pixels(_mapped(["a", "a", "b"], ["x"] * 3, POINTS[:0]))
    among = _pixels(_mapped(["a", "a", "b"], ["x"] * 3, POINTS[[0] * 5] + 1.5))
    for pixels in (alone, among):
        assert _where(pixels, COLOURS[0])[2] > _where(pixels, COLOURS[1])[2] > 50
        assert _where(pixels, COLOURS[2])[2] == 0
    assert _where(among, "#d9d9d9")[2] > _where(alone, "#d9d9d9")[2]


@pytest.mark.parametrize("name", ["$\\frac{{${}", "步{}", "\udcff{}", "x" * 500 + "{}"])
@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are_whatever_they_hold(name: str) -> None:
    names = [name.format(i) for i in range(3)]
    for png in (
        heat_map(np.zeros((3, 3)), names, "x"),
        _mapped(names, ["gallery"] * 3, POINTS),
    ):
        height, width = _pixels(png).shape[:2]
        assert max(height, width) < 1_500
