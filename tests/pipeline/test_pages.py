from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline import pages
from pipeline.pages import drawing, picture, render
from pipeline.pictures import png_of, strip

BAD = "<img src=x onerror=alert(1)>\"'&"


def test_a_picture_knows_its_size_on_a_page() -> None:
    frames = np.zeros((3, 64, 44), np.uint8)
    shown = picture(strip(frames, gap=2), "three")
    assert (shown.width, shown.height) == (136, 64)
    assert shown.uri.startswith("data:image/png;base64,")
    drawn = drawing(png_of(Figure(figsize=(5, 2))), "figure")
    assert (drawn.width, drawn.height) == (5 * 96, 2 * 96)
    pixels = cv2.imdecode(np.frombuffer(drawn.png, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    assert pixels.shape[1] == 2 * drawn.width  # sharp on paper and on phones


def test_every_value_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.html").write_text('<p title="{{ name }}">{{ name }}</p>', encoding="utf-8")
    monkeypatch.setattr(pages, "TEMPLATES", tmp_path)
    assert render("page.html", name=BAD) == (
        '<p title="&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;">'
        "&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;</p>"
    )


def test_numbers_and_shares_are_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.html").write_text("{{ n | number }}, {{ n | share(whole) }}", "utf-8")
    monkeypatch.setattr(pages, "TEMPLATES", tmp_path)

    def shown(n: int, whole: int) -> str:
        return render("page.html", n=n, whole=whole).replace("\N{NARROW NO-BREAK SPACE}", " ")

    assert shown(10_307, 20_614) == "10 307, 50.0 %"
    assert shown(0, 5) == "0, 0 %"
    assert shown(1, 10_000) == "1, less than 0.1 %"
    assert shown(9_999, 10_000) == "9 999, more than 99.9 %"
    assert shown(7, 7) == "7, 100 %"
