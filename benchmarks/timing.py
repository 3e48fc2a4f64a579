"""How the benchmarks time: works in turn, their medians, and one row of the table for each."""

import contextlib
import io
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Wall times of one work."""

    median_s: float
    fastest_s: float
    slowest_s: float
    runs: int
    each_s: tuple[float, ...] = field(default=(), repr=False)
    """All times in the order they were taken; the i-th of two works timed together were
    neighbours."""

    @classmethod
    def of(cls, each_s: list[float]) -> "Timing":
        return cls(statistics.median(each_s), min(each_s), max(each_s), len(each_s), tuple(each_s))


def interleaved(
    works: Mapping[str, Callable[[], object]], repeats: int, warmups: int = 1
) -> dict[str, Timing]:
    """Time the works in turn (a, b, a, b ...), so that a noisy machine hits all alike.

    Each is first run ``warmups`` times untimed. A work on a GPU must wait for the GPU itself.
    """
    for _ in range(warmups):
        for work in works.values():
            work()
    each_s: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            each_s[name].append(seconds(work))
    return {name: Timing.of(times_s) for name, times_s in each_s.items()}


def seconds(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """For the block, what this process prints goes nowhere."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    unit: str
    """Of ``plain`` and ``ours``."""
    plain: float | None
    ours: float
    ratio: float | None
    """How many times better ours is than plain."""
    target: str
    spread: str
    note: str


def compared(
    work: str, unit: str, plain: Timing, ours: Timing, amount: float, target: str, note: str = ""
) -> Row:
    """A row of rates: ``amount`` (of what ``unit`` counts a second) by each median.

    The spread is that of the ratios of neighbouring runs where both were timed together, else that
    of ours.
    """
    if plain.each_s and len(plain.each_s) == len(ours.each_s):
        ratios = [a / b for a, b in zip(plain.each_s, ours.each_s, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}× in {len(ratios)} runs"
    else:
        rates = amount / ours.slowest_s, amount / ours.fastest_s
        spread = f"{number(rates[0])} to {number(rates[1])} {unit} in {ours.runs} runs"
    return Row(
        work,
        unit,
        amount / plain.median_s,
        amount / ours.median_s,
        plain.median_s / ours.median_s,
        target,
        spread,
        note,
    )


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| work | unit | plain | ours | ratio | target | spread | note |",
        "|---|---|--:|--:|--:|---|---|---|",
    ]
    for row in rows:
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}×"
        plain = "–" if row.plain is None else number(row.plain)
        cells = [row.work, row.unit, plain, number(row.ours), ratio]
        cells += [row.target, row.spread, row.note]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that count: 12 300, 123, 1.23, 0.00123."""
    if value == 0 or abs(value) >= 100:
        rounded = float(f"{value:.3g}") if abs(value) >= 1000 else value
        return f"{rounded:,.0f}".replace(",", " ")
    return f"{value:#.3g}"


def machine() -> dict[str, str]:
    """What the figures depend on; neither the machine's name nor its paths."""
    import torch  # not above: a benchmark's worker processes load this file, and need no torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0)) if _LINUX else os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "date": date.today().isoformat(),
    }


_LINUX = platform.system() == "Linux"


def _cpu_model() -> str:
    if _LINUX:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
