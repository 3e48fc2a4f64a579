import os
import re
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from pipeline import progress
from pipeline.progress import Progress

LINE = re.compile(
    r"reading: (\d+)/(\d+) frames \((\d+) %\), [\d.]+/s, (?:\d\d:)+\d\d (?:left|in all)(.*)"
)


def test_where_piped_a_plain_last_line_has_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", 5, "frames") as shown:
        for _ in range(4):
            shown.advance(note="loss 0.1")
        shown.advance()
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    matched = LINE.fullmatch(line)
    assert matched
    assert matched.groups() == ("5", "5", "100", ", loss 0.1")
    assert " in all, loss" in line


def test_lines_come_on_the_way_once_it_is_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with Progress("reading", 30, "frames") as shown:
        shown.advance(10)
        shown.advance(5)
    lines = [LINE.fullmatch(line) for line in capsys.readouterr().err.splitlines()]
    assert [line and line.group(1, 3) for line in lines] == [
        ("10", "33"),
        ("15", "50"),
        ("15", "50"),
    ]


def test_all_is_done_only_when_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", 250_000, "frames", done=249_999):
        pass
    with Progress("reading", 30, "frames", done=20) as shown:
        shown.advance(3)
    almost, some = capsys.readouterr().err.splitlines()
    assert "(99 %)" in almost
    assert some.endswith(" left")


def test_the_last_line_appears_after_an_error_too(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with Progress("reading", 4, "frames") as shown:
            shown.advance()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert "reading: 1/4 frames (25 %)" in capsys.readouterr().err


def test_nothing_to_do_is_all_done(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", 0, "frames"):
        pass
    assert "reading: 0/0 frames (100 %)" in capsys.readouterr().err


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Callable[[], str]]]:
    """``shown = terminal(columns)`` puts a real terminal behind stderr; ``shown()`` reads it."""
    opened: list[int] = []

    def make(columns: int) -> Callable[[], str]:
        reading, writing = os.openpty()
        opened.append(reading)
        termios.tcsetwinsize(writing, (40, columns))
        stderr = os.fdopen(writing, "w", encoding="utf-8")
        monkeypatch.setattr("sys.stderr", stderr)

        def shown() -> str:
            stderr.close()
            parts = []
            with suppress(OSError):  # how a terminal says that nobody writes any more
                while part := os.read(reading, 4096):
                    parts.append(part)
            return b"".join(parts).decode()

        return shown

    yield make
    for descriptor in opened:
        os.close(descriptor)


def test_a_terminal_gets_a_bar(terminal: Callable[[int], Callable[[], str]]) -> None:
    shown = terminal(120)
    with Progress("reading", 2, "frames") as progress:
        progress.advance(2, note="p 6.5")
    text = shown()
    assert "\r" in text
    assert "2/2" in text
    assert "p 6.5" in text


def test_a_terminal_without_a_width_gets_lines(
    terminal: Callable[[int], Callable[[], str]],
) -> None:
    shown = terminal(0)
    with Progress("reading", 2, "frames") as progress:
        progress.advance(2)
    assert "reading: 2/2 frames (100 %)" in shown()


def test_what_an_earlier_process_did_counts_as_done_but_not_for_the_rate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("reading", 1000, "frames", done=900):
        pass
    with Progress("reading", 1000, "frames", done=600) as shown:
        shown.advance(100)
    idle, busy = capsys.readouterr().err.splitlines()
    assert idle == "reading: 900/1000 frames (90 %), 0.0/s, ? left"
    assert busy.startswith("reading: 700/1000 frames (70 %), ")


def test_a_bar_starts_where_an_earlier_process_left_it(
    terminal: Callable[[int], Callable[[], str]],
) -> None:
    shown = terminal(120)
    with Progress("reading", 8, "frames", done=6) as progress:
        progress.advance(1)
    text = shown()
    assert "6/8" in text
    assert "7/8" in text


@pytest.mark.parametrize("columns", [0, 120])
def test_what_is_not_shown_says_nothing(
    terminal: Callable[[int], Callable[[], str]], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    shown = terminal(columns)
    with Progress("reading", 2, "frames", shown=False) as silent:
        silent.advance(2, note="loss 0.1")
    sys.stderr.write("end")
    assert shown() == "end"
