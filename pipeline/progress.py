"""Progress of long work: a bar on a terminal, a plain line every ten seconds where piped."""

import os
import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_EVERY_S = 10.0


class Progress:
    """Counts work done; as a context manager, so that the last line always appears.

    ``label`` starts each line, ``unit`` names what is counted, ``total`` is how much there is,
    ``done`` how much of it an earlier process did. ``shown=False`` says nothing.
    """

    def __init__(
        self, label: str, total: int, unit: str, done: int = 0, shown: bool = True
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = self._before = done
        self._shown = shown
        self._note = ""
        self._started_at = self._line_at = time.monotonic()
        self._bar: tqdm | None = None  # type: ignore[type-arg]
        # a terminal that tells no width, as in some containers, would show an empty bar
        if shown and sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns:
            # no bar, which would take the room of the note
            self._bar = tqdm(
                total=total,
                desc=label,
                unit=f" {unit}",
                initial=done,
                dynamic_ncols=True,
                bar_format="{desc}: {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}{postfix}]",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._shown:
            self._print_line()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """``amount`` more is done; ``note`` is shown behind rate and time left."""
        self._done += amount
        self._note = note or self._note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
        elif self._shown and time.monotonic() - self._line_at >= LINE_EVERY_S:
            self._print_line()

    def _print_line(self) -> None:
        self._line_at = time.monotonic()
        elapsed_s = self._line_at - self._started_at
        rate = (self._done - self._before) / elapsed_s if elapsed_s > 0 else 0.0
        share = 100 * self._done // self._total if self._total else 100  # 100 when all is done
        if self._done == self._total:
            when = f"{tqdm.format_interval(elapsed_s)} in all"
        else:
            left = tqdm.format_interval((self._total - self._done) / rate) if rate > 0 else "?"
            when = f"{left} left"
        note = f", {self._note}" if self._note else ""
        sys.stderr.write(
            f"{self._label}: {self._done}/{self._total} {self._unit} ({share} %), "
            f"{rate:.1f}/s, {when}{note}\n"
        )
        sys.stderr.flush()
