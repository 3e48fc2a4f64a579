"""From a picture file's bytes to grey levels; what cannot become a silhouette is refused."""

import struct

import cv2
import numpy as np
import numpy.typing as npt
from kornia_rs.io import decode_image_png_u8

Frame = npt.NDArray[np.uint8]

PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
"""Signature of a PNG, and the length and the name of its first chunk."""
GREY_8_BIT = bytes([8, 0, 0, 0, 0])
"""The end of that chunk, behind width and height: 8 bits, grey, and not interlaced."""
BRIGHT = 64
"""Grey level (of 255) that bodies reach and backgrounds do not."""


class RefusedFrameError(Exception):
    """A frame that cannot become a silhouette; its text is the reason."""


def decode(content: bytes, max_pixels: int = 2**26) -> Frame:
    """An encoded picture of any depth and colour as ``uint8 [H, W]`` grey levels.

    Raises RefusedFrameError for what is no picture, for more than ``max_pixels`` (of an 8-bit grey
    PNG, and past 2**26 of any, they are not even decoded), and where the background is bright.
    """
    picture = _grey_png(content, max_pixels)
    if picture is None:
        picture = _any_picture(content)
    if picture.size > max_pixels:
        raise RefusedFrameError("more pixels than ingest.max_pixels")
    if _has_no_background(picture):
        raise RefusedFrameError("no background: inverted, or a silhouette in the alpha channel?")
    return picture


def _has_no_background(picture: Frame) -> bool:
    """Whether no pixel is black, or most of the edges are bright: people touch those at most.

    The first row nearly always tells; looking at every pixel takes as long as summing them.
    """
    if picture[0].min() > 0 and picture.min() > 0:
        return True
    return _mostly_bright(picture[0]) and _mostly_bright(_border(picture))


def _border(picture: Frame) -> Frame:
    """Its four edges: people touch them, the background fills them."""
    return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])


def _mostly_bright(pixels: Frame) -> bool:
    return 2 * int(np.count_nonzero(pixels >= BRIGHT)) > pixels.size


def _grey_png(content: bytes, max_pixels: int) -> Frame | None:
    """What releases hold as a rule, several times as fast as OpenCV; None for everything else."""
    if not content.startswith(PNG_START) or content[24:29] != GREY_8_BIT:
        return None
    width, height = struct.unpack(">II", content[16:24])
    if width * height > max_pixels:
        raise RefusedFrameError("more pixels than ingest.max_pixels")
    try:
        picture: Frame = decode_image_png_u8(content, (height, width), "mono")  # [H, W, 1]
    except Exception as error:
        if type(error) is not Exception:
            raise  # not of the picture: the library raises no narrower one for what it cannot read
        return None  # see what OpenCV says
    return picture[:, :, 0]


def _any_picture(content: bytes) -> Frame:
    picture = None
    try:
        if content:
            picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error as error:
        if "IMAGE_PIXELS" in str(error):
            raise RefusedFrameError("more pixels than ingest.max_pixels") from None
    if picture is None:
        raise RefusedFrameError("not a picture")
    return np.asarray(picture, np.uint8)
