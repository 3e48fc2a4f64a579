import io
import struct
import subprocess
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline import decoding
from pipeline.decoding import RefusedFrameError, decode
from tests.child_processes import ROOT, python
from tests.pipeline.small_release import png, walker

Encode = Callable[[np.ndarray], bytes]


def grey_levels() -> np.ndarray:
    """uint8 [90, 70]: a body with every grey level in it."""
    grey = np.zeros((90, 70), np.uint8)
    grey[10:80, 20:50] = np.random.default_rng(0).integers(0, 256, (70, 30))
    return grey


def pillow(picture: np.ndarray, mode: str = "L", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, "PNG", **options)
    return buffer.getvalue()


def palette_of_two(picture: np.ndarray) -> bytes:
    """Body and background are numbers 1 and 0 of a palette: white and black."""
    buffer = io.BytesIO()
    image = Image.fromarray((picture > 0).astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(buffer, "PNG", bits=8)
    return buffer.getvalue()


def opencv(picture: np.ndarray, *options: int) -> bytes:
    return bytes(cv2.imencode(".png", picture, options)[1].tobytes())


GREY: dict[str, Encode] = {
    **{
        f"filter {name}": lambda grey, name=name: opencv(  # type: ignore[misc]
            grey, cv2.IMWRITE_PNG_FILTER, getattr(cv2, f"IMWRITE_PNG_FILTER_{name}")
        )
        for name in ("NONE", "SUB", "UP", "AVG", "PAETH")
    },
    "stored": lambda grey: opencv(grey, cv2.IMWRITE_PNG_COMPRESSION, 0),
    "Pillow": pillow,
    "Pillow, with a transparent level": lambda grey: pillow(grey, transparency=7),
}
OTHERS: dict[str, Encode] = {
    "16 bit": lambda grey: png(grey.astype(np.uint16) * 257),
    "RGB": lambda grey: png(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)),
    "opaque RGBA": lambda grey: png(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGRA)),
    "grey and alpha": lambda grey: pillow(grey, "LA"),
    "palette": lambda grey: pillow(grey, "P"),
}


@pytest.mark.parametrize("encode", (GREY | OTHERS).values(), ids=(GREY | OTHERS).keys())
def test_pictures_of_any_depth_and_colour_are_the_same_silhouettes(encode: Encode) -> None:
    grey = grey_levels()
    np.testing.assert_array_equal(decode(encode(grey)), grey)


@pytest.mark.parametrize("encode", [palette_of_two, lambda grey: pillow(grey, "1", dither=0)])
def test_a_bit_a_pixel_is_black_and_white(encode: Encode) -> None:
    body = np.where(grey_levels() > 0, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(decode(encode(body)), body)


@pytest.mark.parametrize("encode", GREY.values(), ids=GREY.keys())
def test_what_releases_hold_is_decoded_the_fast_way(encode: Encode) -> None:
    grey = grey_levels()
    fast = decoding._grey_png(encode(grey), 2**26)
    assert fast is not None
    np.testing.assert_array_equal(fast, grey)


@pytest.mark.parametrize("encode", OTHERS.values(), ids=OTHERS.keys())
def test_all_other_pictures_are_opencvs(encode: Encode) -> None:
    assert decoding._grey_png(encode(grey_levels()), 2**26) is None


def test_no_flipped_bit_makes_another_picture() -> None:
    grey = walker(0)
    content = png(grey)
    refused = 0
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        try:
            np.testing.assert_array_equal(decode(bytes(flipped)), grey)
        except RefusedFrameError:
            refused += 1
    assert refused > 0.9 * len(content)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x89PNG\r\n\x1a\n", *(png(walker(0))[:end] for end in (24, 40, -20))]
)
def test_what_is_no_picture_is_told(content: bytes) -> None:
    with pytest.raises(RefusedFrameError, match="not a picture"):
        decode(content)


def test_a_picture_without_background_is_no_silhouette() -> None:
    grey = np.zeros((90, 70), np.uint8)
    grey[10:80, 20:50] = 255
    white = np.full_like(grey, 255)
    alpha = np.dstack([white, white, white, grey])
    behind = (np.maximum(grey, level) for level in (1, 30, 100))  # which none may be
    for picture in (white - grey, (white - grey) // 255 * 100, white - grey // 2, alpha, *behind):
        with pytest.raises(RefusedFrameError, match="no background"):
            decode(png(picture))
    np.testing.assert_array_equal(decode(png(grey[10:80, 15:55])), grey[10:80, 15:55])


def test_a_body_that_fills_the_first_row_has_a_background_below_it() -> None:
    grey = grey_levels()
    grey[0] = 255
    np.testing.assert_array_equal(decode(png(grey)), grey)


@pytest.mark.parametrize("colour", [0, 2], ids=["grey", "RGB"])
def test_too_many_pixels_are_refused_before_they_take_memory(colour: int) -> None:
    chunk = b"IHDR" + struct.pack(">II", 9_000, 9_000) + bytes([8, colour, 0, 0, 0])
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    huge += struct.pack(">I", zlib.crc32(chunk)) + png(walker(0))[33:]
    script = f"from pipeline.normalizing_task import decode; decode({huge!r})"
    # in a process of its own: OpenCV has its cap from when it was loaded
    done = subprocess.run(python(script), cwd=ROOT, capture_output=True, text=True, check=False)
    assert "RefusedFrameError: more pixels than ingest.max_pixels" in done.stderr
    for picture in (png(walker(0)), png(np.dstack([walker(0)] * 3))):
        assert decode(picture, max_pixels=8000).size == 8000
        with pytest.raises(RefusedFrameError, match=r"ingest\.max_pixels"):
            decode(picture, max_pixels=7999)


def test_jpeg_decodes_to_grey() -> None:
    frame = walker(3)
    content = cv2.imencode(".jpg", np.dstack([frame] * 3))[1].tobytes()
    assert decode(content).shape == frame.shape
    assert np.abs(decode(content).astype(int) - frame).mean() < 3
