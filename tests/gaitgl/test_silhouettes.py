from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gaitgl.silhouettes import normalize_frame, normalize_sequence

Frame = NDArray[np.uint8]
Load = Callable[[str], dict[str, NDArray[Any]]]


def naive_normalize(frame: Frame, height: int, width: int, min_foreground: int) -> Frame | None:
    """The description in words, one pixel at a time where that is possible."""
    total = sum(int(value) for value in frame.ravel())
    if total <= min_foreground:
        return None
    rows = [y for y in range(frame.shape[0]) if any(frame[y])]
    cropped = frame[rows[0] : rows[-1] + 1]
    ratio = cropped.shape[1] / cropped.shape[0]
    if int(height * ratio) == 0:
        return None
    scaled = cv2.resize(cropped, (int(height * ratio), height), interpolation=cv2.INTER_CUBIC)
    columns = [sum(int(value) for value in scaled[:, x]) for x in range(scaled.shape[1])]
    if sum(columns) == 0:
        return None
    so_far = 0
    for centre, column in enumerate(columns):  # noqa: B007
        so_far += column
        if so_far > sum(columns) / 2:
            break
    result = np.zeros((height, width), np.uint8)
    for x in range(width):
        source = centre - width // 2 + x
        if 0 <= source < scaled.shape[1]:
            result[:, x] = scaled[:, source]
    return result


@st.composite
def pictures(draw: st.DrawFn) -> Frame:
    """A few rectangles of any grey on black; also none, at borders, one pixel wide."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    frame = np.zeros((height, width), np.uint8)
    for _ in range(draw(st.integers(0, 4))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        bottom, right = draw(st.integers(top, height)), draw(st.integers(left, width))
        frame[top : bottom + 1, left : right + 1] = draw(st.integers(1, 255))
    return frame


def test_frames_equal_the_published_preprocessing_bit_for_bit(fixture_arrays: Load) -> None:
    # OpenCV's resize is Intel IPP's here, whose last bits depend on the processor; they were AVX's
    last_bits = 0 if "AVX" in cv2.ipp.getIppVersion() else 1
    published = fixture_arrays("normalize_frames")
    for frame, expected, kept in zip(
        published["frames"], published["normalized"], published["kept"], strict=True
    ):
        wide, narrow = normalize_frame(frame, width=64), normalize_frame(frame)
        assert (wide is not None) == (narrow is not None) == kept
        if kept:
            np.testing.assert_allclose(wide.astype(int), expected, rtol=0, atol=last_bits)
            assert np.array_equal(narrow, wide[:, 10:54])


@settings(max_examples=150, deadline=None)
@given(
    frame=pictures(),
    size=st.sampled_from([(64, 44), (64, 64), (16, 11), (8, 12)]),
    min_foreground=st.sampled_from([0, 1_000, 10_000]),
)
def test_frames_equal_the_description_in_words(
    frame: Frame, size: tuple[int, int], min_foreground: int
) -> None:
    found = normalize_frame(frame, *size, min_foreground=min_foreground)
    expected = naive_normalize(frame, *size, min_foreground)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found.shape == size
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected)


def test_a_pixel_sum_of_exactly_the_minimum_is_refused() -> None:
    frame = np.zeros((100, 100), np.uint8)
    frame[10:50, 20] = 250
    assert frame.sum() == 10_000
    assert normalize_frame(frame) is None
    frame[10, 21] = 1
    assert normalize_frame(frame) is not None
    assert normalize_frame(frame, min_foreground=10_001) is None


@pytest.mark.parametrize("left", [0, 300 - 40])
def test_a_walker_at_the_picture_border_is_padded_with_zeros(left: int) -> None:
    frame = np.zeros((200, 300), np.uint8)
    frame[20:180, left : left + 40] = 255  # 160 rows to 64: 16 columns wide afterwards
    result = normalize_frame(frame)
    columns = np.flatnonzero(result.any(axis=0))
    assert len(columns) in (16, 17, 18)
    assert 22 in columns
    assert not result[:, :10].any()
    assert not result[:, 34:].any()


def test_a_sequence_says_which_frames_were_kept() -> None:
    good = np.zeros((100, 80), np.uint8)
    good[10:90, 30:50] = 255
    empty = np.zeros((50, 60), np.uint8)
    silhouettes, kept = normalize_sequence(iter([empty, good, good[:95], empty]))
    assert kept.tolist() == [False, True, True, False]
    assert silhouettes.shape == (2, 64, 44)
    assert np.array_equal(silhouettes[0], normalize_frame(good))


@pytest.mark.parametrize("frames", [[], [np.zeros((50, 60), np.uint8)]])
def test_a_sequence_may_be_left_without_frames(frames: list[Frame]) -> None:
    silhouettes, kept = normalize_sequence(frames, height=32, width=22)
    assert silhouettes.shape == (0, 32, 22)
    assert silhouettes.dtype == np.uint8
    assert kept.tolist() == [False] * len(frames)


def test_an_empty_picture_is_refused() -> None:
    assert normalize_frame(np.zeros((0, 5), np.uint8)) is None


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((4, 5, 3), np.uint8), r"uint8 array of shape \(4, 5, 3\)"),
        (np.zeros((4, 5), np.float32), r"float32 array of shape \(4, 5\)"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_frame_is_refused_with_its_kind(frame: Frame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalize_frame(frame)
