"""Pages that need no network and no scripts: one file, with its pictures inside."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.pictures import DPI

TEMPLATES = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG, the size in CSS pixels that it is meant for, and what it shows, in words."""

    png: bytes
    width: int
    height: int
    words: str

    @property
    def uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def picture(png: bytes, words: str, scale: float = 1) -> Picture:
    """A PNG of which ``scale`` pixels make one of the page."""
    width, height = (int.from_bytes(png[i : i + 4]) for i in (16, 20))  # of PNG's first chunk
    return Picture(png, round(width / scale), round(height / scale), words)


def drawing(png: bytes, words: str) -> Picture:
    """A figure at the size at which matplotlib was told to draw it."""
    return picture(png, words, scale=DPI / 96)


def render(template: str, **values: Any) -> str:
    """A page's HTML, from a template of this folder.

    Names come out of archives that others made: every value is escaped, in text and in attributes.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "share": _share}
    return environment.get_template(template).render(values)


def number(value: int) -> str:
    """10 307, with narrow spaces that do not break."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _share(part: int, whole: int) -> str:
    """In %, where 0 and 100 are said only of nothing and of everything."""
    if part in (0, whole):
        return "100 %" if part else "0 %"
    percent = 100 * part / whole
    if percent < 0.1:
        return "less than 0.1 %"
    return "more than 99.9 %" if percent > 99.9 else f"{percent:.1f} %"
