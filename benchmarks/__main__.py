"""All benchmarks as one table, also in benchmarks/latest.json.

python -m benchmarks [--quick] [--long] [name ...]      (from the project's root)

--quick shrinks all sizes: it shows that everything runs, and its figures say nothing.
--long adds the benchmarks that take many minutes. Names choose some of all benchmarks.
What keeping a training's state costs is printed by python -m benchmarks.checkpointing.
"""

import argparse
import importlib
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.fresh_process import in_fresh_process
from benchmarks.timing import Row, machine, table

SHORT = (
    "training_step",
    "embedding",
    "normalization",
    "containers",
    "store",
    "evaluation",
    "start",
    "tracking",
    "serving",
)
LONG = ("time_to_accuracy",)
"""Modules of this package; each has ``rows(quick)``."""

LATEST = Path(__file__).resolve().parent / "latest.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join((*SHORT, *LONG)))
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--long", action="store_true", help=f"also {', '.join(LONG)}")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - {*SHORT, *LONG})
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join((*SHORT, *LONG))}")
    names = chosen.names or (SHORT + LONG if chosen.long else SHORT)

    # all at once, so that what cannot be imported is known before the first hour is over
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    about = {**machine(), "quick": chosen.quick}
    rows: list[Row] = []
    for name, module in modules.items():
        print(f"benchmark {name}", flush=True)
        # what a benchmark has freed stays with its process, and made the next one's plain version
        # three times as fast: the published way of assembling a batch is mostly page faults
        rows += in_fresh_process(module.rows, chosen.quick)
        content = {"machine": about, "rows": [asdict(row) for row in rows]}
        LATEST.write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
