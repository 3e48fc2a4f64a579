import re

import pytest

from pipeline import progress
from pipeline.progress import Progress

LINE = re.compile(r"reading: (\d+)/(\d+) frames \((\d+) %\), [\d.]+/s, \d+ s left(.*)")


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


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("reading", 2, "frames") as shown:
        shown.advance(2, note="p 6.5")
    error = capsys.readouterr().err
    assert "\r" in error
    assert "2/2" in error
    assert "p 6.5" in error


def test_what_an_earlier_process_did_counts_as_done_but_not_for_the_rate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("reading", 1000, "frames", done=900):
        pass
    with Progress("reading", 1000, "frames", done=600) as shown:
        shown.advance(100)
    idle, busy = capsys.readouterr().err.splitlines()
    assert idle == "reading: 900/1000 frames (90 %), 0.0/s, 0 s left"
    assert busy.startswith("reading: 700/1000 frames (70 %), ")


def test_a_bar_starts_where_an_earlier_process_left_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("reading", 8, "frames", done=6) as shown:
        shown.advance(1)
    error = capsys.readouterr().err
    assert "6/8" in error
    assert "7/8" in error


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_not_shown_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with Progress("reading", 2, "frames", shown=False) as shown:
        shown.advance(2, note="loss 0.1")
    assert capsys.readouterr() == ("", "")
