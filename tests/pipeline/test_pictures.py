import cv2
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.figure import Figure

from pipeline.pictures import evenly, png_of, strip


def _pixels(png: bytes) -> npt.NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    return np.asarray(picture, np.uint8)


def test_a_strip_holds_its_frames_side_by_side() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 44), dtype=np.uint8)
    pixels = _pixels(strip(frames, gap=2))
    assert pixels.shape == (64, 3 * 44 + 2 * 2)
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(pixels[:, i * 46 : i * 46 + 44], frame)
    assert _pixels(strip(frames[:1])).shape == (64, 44)


@pytest.mark.parametrize(
    ("n", "count", "chosen"),
    [(9, 3, [0, 4, 8]), (10, 4, [0, 3, 6, 9]), (2, 5, [0, 1]), (1, 5, [0]), (7, 1, [0])],
)
def test_frames_are_spread_from_the_first_to_the_last(
    n: int, count: int, chosen: list[int]
) -> None:
    frames = np.arange(n, dtype=np.uint8)[:, None, None]
    assert evenly(frames, count).ravel().tolist() == chosen


def test_a_figure_is_the_same_bytes_again_and_names_no_version() -> None:
    def draw() -> bytes:
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([1, 2, 3])
        return png_of(figure)

    assert draw() == draw()
    assert b"atplotlib" not in draw()
    assert _pixels(draw()).shape == (192, 384)
