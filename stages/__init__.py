"""One thin script per stage of dvc.yaml: read settings, call, write."""

import signal
import sys
from types import FrameType


def _interrupted(number: int, frame: FrameType | None) -> None:
    sys.stderr.write("\ninterrupted\n")
    sys.exit(130)


# While a stage is imported, which takes seconds, Ctrl-C would print a library's traceback.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)
