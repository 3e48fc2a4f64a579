"""Problems that the user can mend, and how a stage reports them."""

import errno
import os
import re
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from pipeline.stopping import stopped_with_starter


class PipelineError(Exception):
    """What was expected, what came, where, and what to do. Shown without a traceback."""


class Stopped(Exception):
    """A signal or the end of DVC stopped the work; what is done is kept."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's ``main``; a PipelineError becomes one screen of text and exit status 1.

    Of several processes the first one prints the error whole, the others its first line. What a
    disk, a file's rights or the memory forbid becomes a line, Stopped and Ctrl-C one and their exit
    status. Whoever reads the output, as `head` does, may stop to.

    A stage ends, as at a SIGTERM, with the DVC that started it: the next one starts it anew.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started it
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the end
    if callable(signal.getsignal(signal.SIGINT)):  # not ignored, as under nohup
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the imports are over
    try:
        with stopped_with_starter():
            main()
        sys.stdout.flush()
    except PipelineError as error:
        sys.stdout.flush()
        number = os.environ.get("RANK", "0")  # among the processes that torchrun started
        first_line = str(error).partition("\n")[0]
        text = f"\nerror: {error}" if number == "0" else f"error in process {number}: {first_line}"
        sys.stderr.write(f"{text}\n")
        sys.exit(1)
    except BrokenPipeError:
        if not _read_enough():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError as error:
        place = traceback.extract_tb(error.__traceback__)[-1].name
        sys.stderr.write(f"\nerror: no memory is left in {place}: {error or 'not said for what'}\n")
        sys.exit(1)
    except OSError as error:
        code, words = _cause(error)
        what = {
            errno.ENOSPC: "the disk is full: {}; free some room and start again",
            errno.EDQUOT: "the disk is full: {}; free some room and start again",
            errno.EROFS: "this cannot be written, for the file system is read-only: {}",
            errno.EACCES: "a file or folder is closed to this user: {}",
            errno.EPERM: "a file or folder is closed to this user: {}",
        }.get(code)
        if what is None:
            raise
        sys.stderr.write(f"\nerror: {what.format(words)}\n")
        sys.exit(1)
    except Stopped as stopped:
        sys.stdout.flush()
        sys.stderr.write(f"\nstopped: {stopped}\n")
        sys.exit(stopped.exit_status)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        sys.exit(130)


def _read_enough() -> bool:
    """Whether whoever read standard output has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


def _cause(error: OSError) -> tuple[int, str]:
    """Number and words; of a folder that could not be copied, those of its first file."""
    if not isinstance(error, shutil.Error) or not isinstance(error.args[0], list):
        return error.errno or 0, str(error)
    _, target, words = error.args[0][0]
    number = re.match(r"\[Errno (\d+)\]", words)
    return int(number[1]) if number else 0, f"{words}: {target}"


def listing(items: list[str], limit: int = 10) -> str:
    """At most ``limit`` items, one a line and indented; what is left over is counted."""
    lines = [f"  {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  ... and {len(items) - limit} more")
    return "\n".join(lines)
