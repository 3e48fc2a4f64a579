"""Each benchmark, and each measurement of memory, has a process that has held nothing else before.

Memory is measured on Linux only: /proc says what getrusage does not. Its maximum is handed on to
child processes, and counts the start of the process.
"""

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

CAN_MEASURE = sys.platform.startswith("linux")


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``function`` returns in a new interpreter."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def anonymous_bytes() -> int:
    """Memory resident now, without pages of mapped files: those can go at any time."""
    return _status_bytes("RssAnon")


def peak_bytes() -> int:
    """Memory resident at the peak since the process began, pages of mapped files included."""
    return _status_bytes("VmHWM")


def peak_growth_bytes(work: Callable[[], object]) -> int:
    """By how much the memory resident at the peak of ``work`` exceeds that before it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = peak_bytes()
    work()
    return peak_bytes() - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.removesuffix("kB"))
    raise LookupError(f"this kernel's /proc/self/status has no {field}")
