"""A picture of the walkers: `python -m synthetic.contact_sheet docs/images/walkers.png`.

Silhouettes at one scale, as rendered: people × views, one stride, conditions × cameras.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from synthetic.render import Frame
from synthetic.settings import Settings, read_settings
from synthetic.walks import render_sequence

Picture = NDArray[np.uint8]  # [height, width, 3], blue, green, red

LABEL, TILE, GAP, COLUMNS = 130, 105, 3, 8  # pixels; tiles are square
PAPER, TILE_PAPER = (255, 255, 255), (244, 241, 238)
INK, TEXT, FAINT_TEXT = (92, 62, 38), (60, 50, 45), (140, 130, 125)
PEOPLE = ("00001", "00002", "00003", "00004")
VIEWS = ("000", "030", "060", "090", "180", "210", "240", "270")
CASIA_E_VIEWS = ("000", "030", "060", "090")
CONDITIONS = {"nm": "nm, normal", "bg": "bg, with a bag", "cl": "cl, in a coat"}


def contact_sheet(settings: Settings) -> Picture:
    """The sheet, uint8 [height, width, 3]; needs OUMVLP's 8 views and scene2 of CASIA-E."""
    rows = [_title("OUMVLP walkers: people and views", [f"{view}°" for view in VIEWS])]
    for subject in PEOPLE:
        tiles = [
            _tile(_widest(render_sequence(settings, "oumvlp", subject, "00", view)))
            for view in VIEWS
        ]
        rows.append(_row(f"subject {subject}", tiles))
    stride = render_sequence(settings, "oumvlp", PEOPLE[1], "00", "090")[: 2 * COLUMNS : 2]
    rows.append(_title("One walk, every second frame", [str(2 * i + 1) for i in range(COLUMNS)]))
    rows.append(_row(f"subject {PEOPLE[1]}", [_tile(frame) for frame in stride]))
    columns = [f"{camera} {view}°" for camera in "HL" for view in CASIA_E_VIEWS]
    rows.append(_title("CASIA-E walkers: conditions, high and low camera", columns))
    for condition, label in CONDITIONS.items():
        tiles = [
            _tile(_widest(render_sequence(settings, "casia_e", "615", take, view)))
            for take in (f"{camera}-scene2-{condition}-1" for camera in "HL")
            for view in CASIA_E_VIEWS
        ]
        rows.append(_row(label, tiles))
    return np.vstack(rows)


def _widest(frames: list[Frame]) -> Frame:
    """The frame with the widest figure: mid-step."""
    return max(frames, key=lambda frame: cv2.boundingRect(frame)[2])


def _tile(frame: Frame) -> Picture:
    """A square part of a frame around the figure, shrunk to TILE."""
    side = 195  # pixels: a tall person near the camera just fits
    x, y, width, height = cv2.boundingRect(frame)
    left, top = x + width // 2 - side // 2, y + height // 2 - side // 2
    part = np.zeros((side, side), np.uint8)
    rows = slice(max(top, 0), min(top + side, frame.shape[0]))
    columns = slice(max(left, 0), min(left + side, frame.shape[1]))
    part[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = frame[
        rows, columns
    ]
    share = cv2.resize(part, (TILE, TILE), interpolation=cv2.INTER_AREA)[..., None] / 255.0
    return np.asarray(np.rint(share * INK + (1 - share) * TILE_PAPER), np.uint8)


def _row(label: str, tiles: list[Picture]) -> Picture:
    row = _empty(TILE + GAP)
    for i, tile in enumerate(tiles):
        left = LABEL + i * (TILE + GAP)
        row[:TILE, left : left + TILE] = tile
    _write(row, label, (8, TILE // 2 + 5), TEXT, 15)
    return row


def _title(title: str, columns: list[str]) -> Picture:
    row = _empty(58)
    _write(row, title, (8, 26), TEXT, 19)
    for i, text in enumerate(columns):
        _write(row, text, (LABEL + i * (TILE + GAP) + 4, 50), FAINT_TEXT, 14)
    return row


def _empty(height: int) -> Picture:
    return np.full((height, LABEL + COLUMNS * (TILE + GAP), 3), PAPER, np.uint8)


def _write(
    picture: Picture, text: str, place: tuple[int, int], colour: tuple[int, int, int], size: int
) -> None:
    cv2.putText(picture, text, place, colour, cv2.FontFace("sans"), size, 450)


def main() -> None:
    """Write the sheet to the path given on the command line."""
    parser = argparse.ArgumentParser(prog="python -m synthetic.contact_sheet", description=__doc__)
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--params", type=Path, default=Path(__file__).with_name("params.yaml"))
    options = parser.parse_args()
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(options.picture), contact_sheet(read_settings(options.params)))


if __name__ == "__main__":
    main()
