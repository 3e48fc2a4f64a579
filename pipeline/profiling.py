"""A trace of a few training steps, to be opened in https://ui.perfetto.dev."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED, TRACED = 3, 3
"""Steps left out, since the first ones are slower; and steps in the trace."""


@contextmanager
def profiled(path: Path | None) -> Iterator[Callable[[], None]]:
    """Trace steps of the block to ``path`` (.json.gz); the block calls what it gets after each.

    None: no trace, and nothing is called.
    """
    if path is None:
        yield lambda: None
        return

    written = False

    def write(trace: profile) -> None:
        nonlocal written
        written = True
        path.parent.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(path))
        print(f"trace of {TRACED} steps: {path}; open it in https://ui.perfetto.dev")

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(wait=SKIPPED - 1, warmup=1, active=TRACED, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
    if not written:
        print(f"no trace: it takes {SKIPPED + TRACED} steps, and fewer were left to do")
