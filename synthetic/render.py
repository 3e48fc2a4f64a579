"""Pictures of a body: camera, projection, drawing, and what segmentation does wrong."""

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from synthetic.body import Body
from synthetic.people import Array
from synthetic.settings import Faults

Frame = NDArray[np.uint8]

DIRECTIONS = 20  # corners of the polygon that stands for a hull's outline
SUBPIXEL_BITS = 4  # OpenCV draws in fixed point
MARGIN = 4  # pixels around the figure that faults may reach
WANDER_MARGIN = 64  # pixels by which the random fields exceed a picture


def project(
    body: Body, azimuth: float, distance: float, elevation: float, focal_length: float
) -> tuple[Array, Array]:
    """A body's balls as ellipses in the picture.

    The camera looks at a point 0.9 m above the middle of the walk.

    Args:
        body: t moments, b balls.
        azimuth: degrees from the walking direction to the camera, seen from above, to the left:
            0 walks towards the camera, 90 shows the left side, 180 walks away.
        distance: camera to the middle of the walk over ground, metres.
        elevation: camera above ground, metres.
        focal_length: pixels.

    Returns:
        centres float [t, b, 2] (x right, y down, pixels from the picture's middle) and axes float
        [t, b, 2, 3]: the three half-axes as vectors in the picture.
    """
    angle = np.radians(azimuth)
    camera = np.array([distance * np.cos(angle), distance * np.sin(angle), elevation])
    ahead = np.array([0, 0, 0.9]) - camera
    ahead /= np.linalg.norm(ahead)
    right = np.array([-np.sin(angle), np.cos(angle), 0.0])
    down = np.cross(ahead, right)
    rows = np.stack([right, down])  # [2, 3]
    offset = body.centres - camera
    scale = focal_length / (offset @ ahead)  # [t, b] pixels a metre
    return offset @ rows.T * scale[..., None], rows @ body.axes * scale[..., None, None]


def outlines(centres: Array, axes: Array, parts: NDArray[np.int64]) -> Array:
    """Convex polygons around groups of ellipses, float [t, parts, DIRECTIONS, 2], pixels.

    A convex hull's outermost point in a direction is the outermost of its ellipses' own.
    """
    turn = np.arange(DIRECTIONS) * (2 * np.pi / DIRECTIONS)
    directions = np.stack([np.cos(turn), np.sin(turn)], axis=-1)  # [k, 2]
    gradient = directions @ axes  # [t, b, k, 3]
    length = np.linalg.norm(gradient, axis=-1, keepdims=True)
    outermost = gradient / length @ axes.swapaxes(-1, -2) + centres[:, :, None]  # [t, b, k, 2]
    extent = (outermost * directions).sum(axis=-1)  # [t, b, k]
    member = extent[:, parts].argmax(axis=2)  # [t, parts, k]
    winner = parts[np.arange(len(parts))[:, None], member]  # [t, parts, k]
    moment = np.arange(len(centres))[:, None, None]
    polygons: Array = outermost[moment, winner, np.arange(DIRECTIONS)]
    return polygons


def draw(
    body: Body,
    azimuth: float,
    distance: float,
    elevation: float,
    focal_length: float,
    size: tuple[int, int],
) -> tuple[list[Frame], Array]:
    """Flawless silhouettes.

    Args:
        body, azimuth, distance, elevation, focal_length: see `project`.
        size: (height, width), pixels.

    Returns:
        frames, each uint8 [height, width] of 0 and 255, and the places float [t, limb ends, 2] of
        the body's limb ends (x, y, pixels).
    """
    height, width = size
    middle = np.array([width / 2, height / 2])
    centres, axes = project(body, azimuth, distance, elevation, focal_length)
    centres = centres + middle
    corners = np.rint(outlines(centres, axes, body.parts) * (1 << SUBPIXEL_BITS)).astype(np.int32)
    frames = []
    for polygons in corners:
        frame = np.zeros(size, np.uint8)
        for polygon in polygons:
            cv2.fillConvexPoly(frame, polygon, 255, cv2.LINE_8, SUBPIXEL_BITS)
        frames.append(frame)
    return frames, centres[:, body.limb_ends]


def spoil(
    frames: list[Frame], limb_ends: Array, faults: Faults, rng: np.random.Generator
) -> list[Frame]:
    """Silhouettes as a segmentation would hand them out; the shapes stay.

    Args:
        frames: uint8 [H, W] each, 0 and 255.
        limb_ends: float [t, k, 2], pixels, where a piece may be lost.
        faults: what goes wrong, how much.
        rng: what goes wrong, where.
    """
    lost = _lost_pieces(limb_ends, faults.lost_pieces, rng)
    return [
        _blank(frame, rng)
        if rng.random() < faults.blank_frames
        else _frayed(frame, lost[i], faults, rng)
        for i, frame in enumerate(frames)
    ]


def _lost_pieces(
    limb_ends: Array, share: float, rng: np.random.Generator
) -> list[tuple[int, int, int] | None]:
    """For each frame the disc (x, y, radius) that is lost, or None."""
    lost: list[tuple[int, int, int] | None] = [None] * len(limb_ends)
    if rng.random() < share:
        limb = int(rng.integers(limb_ends.shape[1]))
        start, duration = int(rng.integers(len(limb_ends))), int(rng.integers(2, 6))
        radius = int(rng.integers(5, 10))
        for i in range(start, min(start + duration, len(lost))):
            x, y = np.rint(limb_ends[i, limb]).astype(int)
            lost[i] = (int(x), int(y), radius)
    return lost


def _frayed(
    frame: Frame, lost: tuple[int, int, int] | None, faults: Faults, rng: np.random.Generator
) -> Frame:
    """One silhouette with a piece lost, holes and a ragged outline."""
    x, y, width, height = cv2.boundingRect(frame)
    left, top = max(x - MARGIN, 0), max(y - MARGIN, 0)
    part = frame[top : y + height + MARGIN, left : x + width + MARGIN].copy()
    if lost is not None:
        cv2.circle(part, (lost[0] - left, lost[1] - top), lost[2], 0, cv2.FILLED)
    for _ in range(rng.poisson(faults.holes)):
        centre = (int(rng.integers(part.shape[1])), int(rng.integers(part.shape[0])))
        half_axes = (int(rng.integers(1, 5)), int(rng.integers(1, 5)))
        cv2.ellipse(part, centre, half_axes, float(rng.integers(180)), 0, 360, 0, cv2.FILLED)
    # The outline wanders: each pixel is fetched from a place nearby.
    wander_x, wander_y = _wander(frame.shape[0], frame.shape[1])
    row, column = rng.integers(WANDER_MARGIN, size=2)
    rows, columns = slice(row, row + part.shape[0]), slice(column, column + part.shape[1])
    grid_x, grid_y = _grid(frame.shape[0], frame.shape[1])
    spoilt = np.zeros_like(frame)
    spoilt[top : top + part.shape[0], left : left + part.shape[1]] = cv2.remap(
        part,
        grid_x[: part.shape[0], : part.shape[1]] + faults.raggedness * wander_x[rows, columns],
        grid_y[: part.shape[0], : part.shape[1]] + faults.raggedness * wander_y[rows, columns],
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
    )
    return spoilt


@cache
def _grid(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Column and row of each pixel, float32 [height, width] each."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return columns, rows


@cache
def _wander(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two smooth random fields of variance 1, float32 [height, width] + WANDER_MARGIN each.

    The same in every process: which part of them a frame uses is what differs.
    """
    rng = np.random.default_rng(0)
    size = (height + WANDER_MARGIN, width + WANDER_MARGIN)
    fields = [
        cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), 2.5) for _ in "xy"
    ]
    x, y = (field / field.std() for field in fields)
    return x, y


def _blank(frame: Frame, rng: np.random.Generator) -> Frame:
    """A frame in which nothing was found but a speck of a few pixels."""
    blank = np.zeros_like(frame)
    row, column = int(rng.integers(frame.shape[0] - 3)), int(rng.integers(frame.shape[1] - 3))
    blank[row : row + 3, column : column + 3] = 255
    return blank
