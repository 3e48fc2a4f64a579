"""Command line: `python -m synthetic oumvlp synthetic/release/oumvlp`."""

import argparse
import os
import sys
from pathlib import Path

from synthetic.release import write_casia_e, write_oumvlp
from synthetic.settings import SettingsError, read_settings


def main(arguments: list[str] | None = None) -> int:
    """Write one dataset's walkers; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m synthetic",
        description="Render pedestrians into archives like those of OUMVLP or CASIA-E.",
    )
    parser.add_argument("dataset", choices=("oumvlp", "casia_e"))
    parser.add_argument("folder", type=Path, help="new folder for the archives")
    parser.add_argument(
        "--params",
        type=Path,
        default=Path(__file__).with_name("params.yaml"),
        help="settings file (default: the one beside this package)",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)"
    )
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    write = write_oumvlp if options.dataset == "oumvlp" else write_casia_e
    try:
        write(read_settings(options.params), options.folder, options.workers)
    except (SettingsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
