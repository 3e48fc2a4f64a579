from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pipeline.figures import cmc_curve, heat_map, p_curve

VIEWS = ["000", "090", "180"]


def test_figures_are_pictures_and_the_same_bytes_again(tmp_path: Path) -> None:
    table = np.array([[100, 50.4, np.nan], [0, 60, 70], [1, 2, 3]])
    curves = pd.DataFrame(
        {"condition": ["NM"] * 5 + ["CL"] * 5, "rank": [*range(1, 6)] * 2, "percent": range(10)}
    )
    history = pd.DataFrame({"step": [1, 2, 3], "p": [6.5, 6.501, 6.499]})
    for name in ("one", "two"):
        heat_map(tmp_path / f"{name}-map.png", table, VIEWS, "OUMVLP")
        cmc_curve(tmp_path / f"{name}-cmc.png", curves, "CASIA-E")
        p_curve(tmp_path / f"{name}-p.png", {"pretrain": history, "finetune": history[:0]})
    for kind in ("map", "cmc", "p"):
        content = (tmp_path / f"one-{kind}.png").read_bytes()
        assert content == (tmp_path / f"two-{kind}.png").read_bytes()
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 2


def test_a_heat_map_has_probe_views_down_and_gallery_views_across(tmp_path: Path) -> None:
    def brightest(table: list[list[float]]) -> tuple[float, float]:
        """Row and column, in pixels, around which the colour of 100 % lies."""
        heat_map(tmp_path / "map.png", np.array(table), VIEWS[:2], "x")
        picture = cv2.imread(str(tmp_path / "map.png"))
        assert picture is not None
        yellow = np.abs(picture.astype(int) - (37, 231, 253)).max(axis=2) < 4  # blue first
        rows, columns = np.nonzero(yellow)
        return float(np.median(rows)), float(np.median(columns))

    above, right = brightest([[0, 100], [0, 0]])
    below, left = brightest([[0, 0], [100, 0]])
    assert above + 30 < below
    assert left + 30 < right
