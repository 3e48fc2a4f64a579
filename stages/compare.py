"""Is a change more than other test subjects would explain? Two reports on the same probes, figure
by figure. No stage of dvc.yaml.

python -m stages.compare A B [--json]

A and B: folders like reports/casia_e, or their tables/probes.parquet.
"""

import argparse
from pathlib import Path

from pipeline.comparison import compare, json_of, text_of
from pipeline.errors import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.compare", description=__doc__)
    parser.add_argument("a", type=Path, metavar="A")
    parser.add_argument("b", type=Path, metavar="B")
    parser.add_argument("--json", action="store_true", help="for programs, instead of a table")
    given = parser.parse_args()
    changes = compare(given.a, given.b)
    print(json_of(changes) if given.json else text_of(changes))


if __name__ == "__main__":
    run_stage(main)
