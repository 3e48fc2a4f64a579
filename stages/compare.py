"""Is a change more than other test subjects would explain? Two reports on the same probes, figure
by figure. No stage of dvc.yaml.

    cp -r reports/casia_e /tmp/before       and, after a change and `make repro`:
    python -m stages.compare /tmp/before reports/casia_e
"""

import argparse
from pathlib import Path

from pipeline.comparison import compare, json_of, text_of
from pipeline.errors import run_stage


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    name = "python -m stages.compare"
    parser = argparse.ArgumentParser(name, description=__doc__, formatter_class=style)
    parser.add_argument("a", type=Path, metavar="A", help="a folder like reports/casia_e")
    parser.add_argument("b", type=Path, metavar="B", help="another, or its tables/probes.parquet")
    parser.add_argument("--json", action="store_true", help="for programs, instead of a table")
    given = parser.parse_args()
    changes = compare(given.a, given.b)
    print(json_of(changes) if given.json else text_of(changes))


if __name__ == "__main__":
    run_stage(main)
