import cv2
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.description import Grid
from pipeline.description_figures import (
    NONE_MISSING,
    binned_shares,
    length_histogram,
    missing_map,
)

BARS = [{"first": n, "last": n, "sequences": n} for n in range(20, 30)]


def _grid(kept: npt.NDArray[np.bool_], names: str = "{:02}") -> Grid:
    subjects, sequences, views = ([names.format(i) for i in range(n)] for n in kept.shape)
    return Grid("train", subjects, sequences, views, kept, kept)


def _pixels(png: bytes) -> npt.NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return np.asarray(picture, np.uint8)[:, :, ::-1]  # red first


def _near(pixels: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    near: npt.NDArray[np.bool_] = (np.abs(pixels.astype(int) - colour) < 6).all(axis=2)
    return near


def _box(pixels: npt.NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the cells: where there is grey or the darkest red."""
    grey = (int(NONE_MISSING[1:3], 16), int(NONE_MISSING[3:5], 16), int(NONE_MISSING[5:], 16))
    wide = np.flatnonzero(_near(pixels, grey).sum(axis=1) > 50)
    tall = np.flatnonzero(_near(pixels, grey).sum(axis=0) > 50)
    return wide[0], wide[-1], tall[0], tall[-1]


def test_shares_are_means_over_neighbours() -> None:
    cells = np.random.default_rng(0).random((103, 7)) < 0.4
    for most in (1, 10, 80, 103, 500):
        shares, starts = binned_shares(cells, most)
        assert len(shares) == len(starts) == min(most, 103)
        ends = [*starts[1:], 103]
        for share, first, end in zip(shares, starts, ends, strict=True):
            assert end > first
            np.testing.assert_allclose(share, cells[first:end].mean(axis=0))


def test_a_hole_is_drawn_where_it_is() -> None:
    kept = np.ones((20, 2, 4), np.bool_)
    kept[5, 1, 2] = False
    pixels = _pixels(missing_map(_grid(kept)))
    top, bottom, left, right = _box(pixels)
    rows, columns = np.nonzero(_near(pixels, (128, 0, 38))[top:bottom, left:right])
    assert np.median(rows) / (bottom - top) == pytest.approx(5.5 / 20, abs=0.02)
    assert np.median(columns) / (right - left) == pytest.approx(6.5 / 8, abs=0.02)


def test_one_missing_of_thousands_is_seen() -> None:
    kept = np.ones((5_153, 2, 14), np.bool_)
    complete = _pixels(missing_map(_grid(kept)))
    kept[3_000, 0, 3] = False
    top, bottom, left, right = _box(complete)
    changed = (_pixels(missing_map(_grid(kept))) != complete).any(axis=2)[top:bottom, left:right]
    rows, columns = np.nonzero(changed)
    assert len(rows) > 50
    assert np.median(rows) / (bottom - top) == pytest.approx(3_000 / 5_153, abs=0.02)
    assert np.median(columns) / (right - left) == pytest.approx(3.5 / 28, abs=0.02)


@pytest.mark.parametrize("shape", [(1, 1, 1), (10_307, 2, 14), (10_000, 48, 14), (3, 40, 60)])
def test_pictures_stay_of_a_size_to_be_read(shape: tuple[int, int, int]) -> None:
    kept = np.random.default_rng(0).random(shape) < 0.98
    png = missing_map(_grid(kept))
    height, width = _pixels(png).shape[:2]
    assert 400 < width <= 12 * 192
    assert 400 < height <= 5 * 192
    assert len(png) < 700_000


def test_the_same_data_gives_the_same_bytes() -> None:
    kept = np.random.default_rng(0).random((90, 2, 4)) < 0.9
    assert missing_map(_grid(kept)) == missing_map(_grid(kept.copy()))
    assert length_histogram(BARS) == length_histogram(list(BARS))
    for png in (missing_map(_grid(kept)), length_histogram(BARS)):
        assert b"atplotlib" not in png


@pytest.mark.parametrize("names", ["${}", "$\\frac{{${}", "步{}", "\udcff{}", "x" * 500 + "{}"])
@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are_whatever_they_hold(names: str) -> None:
    kept = np.ones((3, 2, 2), np.bool_)
    kept[0, 0, 0] = False
    height, width = _pixels(missing_map(_grid(kept, names))).shape[:2]
    assert (height, width) < (900, 1_000)


def test_bars_are_as_high_as_their_counts() -> None:
    bars = [{"first": 10, "last": 19, "sequences": 50}, {"first": 20, "last": 29, "sequences": 100}]
    blue = _near(_pixels(length_histogram(bars)), (59, 110, 143))
    heights = blue.sum(axis=0)
    low, high = np.unique(heights[heights > 20])[[0, -1]]
    assert high / low == pytest.approx(2, rel=0.03)
    assert (heights == low).sum() == pytest.approx((heights == high).sum(), rel=0.05)
