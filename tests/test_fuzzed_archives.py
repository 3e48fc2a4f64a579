"""Damaged archives of every kind: no crash, no hang, no sequence changed or lost in silence."""

from collections import Counter
from pathlib import Path

import pytest

from tests.child_processes import child, python
from tests.fuzzing import KINDS

START = """
import sys
from pathlib import Path
from tests.fuzzing import serve
serve(Path(sys.argv[1]))
"""


def damage(folder: Path, seeds: range) -> tuple["Counter[str]", list[str]]:
    """Answers counted, and faults; one process for all, until one of them ends it."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    pending = [(kind, seed) for kind in KINDS for seed in seeds]
    while pending:
        with child(*python(START, str(folder))) as process:
            while pending:
                kind, seed = pending.pop(0)
                answer = process.ask(f"{kind} {seed}")
                if answer.startswith("FAULT") or not answer:
                    faults.append(answer or f"{kind} {seed}: ended, or took too long")
                counts[answer if not answer.startswith("FAULT") else "FAULT"] += 1
                if not answer:
                    break
    return counts, faults


def test_damage_stops_or_is_refused_and_changes_nothing_else(tmp_path: Path) -> None:
    counts, faults = damage(tmp_path, range(12))
    assert not faults, "\n".join(faults)
    assert counts.total() == 12 * len(KINDS) >= 150
    assert counts["refused"] > 20
    assert counts["stopped"] > 20


@pytest.mark.soak
def test_damage_of_every_kind(tmp_path: Path) -> None:
    counts, faults = damage(tmp_path, range(1000, 1200))
    print(dict(counts))
    assert not faults, "\n".join(faults)
    assert counts.total() == 200 * len(KINDS) >= 2000
