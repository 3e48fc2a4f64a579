import json

import pytest

from benchmarks.timing import Row, Timing, compared, interleaved, machine, number, table


def test_works_run_in_turn_after_their_warm_ups() -> None:
    ran: list[str] = []
    works = {"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}
    timings = interleaved(works, repeats=3, warmups=2)
    assert "".join(ran) == "abab" + "ababab"
    assert list(timings) == ["a", "b"]
    for timing in timings.values():
        assert timing.runs == len(timing.each_s) == 3
        assert timing.fastest_s <= timing.median_s <= timing.slowest_s


def test_a_row_is_rates_and_the_spread_of_the_ratios_of_neighbours() -> None:
    row = compared("w", "frames/s", Timing.of([4, 8, 4]), Timing.of([2, 2, 1]), 20, "2×")
    assert (row.plain, row.ours, row.ratio) == (5, 10, 2)
    assert row.spread == "2.00 to 4.00× in 3 runs"


def test_works_timed_apart_give_the_spread_of_ours() -> None:
    row = compared("w", "frames/s", Timing(4, 4, 4, 1), Timing(2, 1, 4, 3), 20, "2×")
    assert row.spread == "5.00 to 20.0 frames/s in 3 runs"


def test_the_table_has_a_line_a_row_and_a_dash_for_what_is_not_measured() -> None:
    rows = [Row("start", "s", None, 3.14159, None, "≤ 5 s", "3 to 4", "a|b")]
    assert table(rows).splitlines()[2:] == ["| start | s | – | 3.14 | – | ≤ 5 s | 3 to 4 | a\\|b |"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (12345, "12 300"), (123.4, "123"), (1.234, "1.23"), (0.00123, "0.00123")],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_the_machine_is_said_without_its_name() -> None:
    said = machine()
    assert {"cpu", "cores", "threads", "gpu", "torch", "numpy", "date"} <= said.keys()
    assert all(said.values())
    assert "/" not in json.dumps({key: said[key] for key in ("torch", "numpy", "python")})
