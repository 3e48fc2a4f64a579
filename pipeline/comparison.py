"""Two reports on the same probes: which figures changed, and whether other test subjects would
explain it."""

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import PipelineError, listing
from pipeline.estimates import FEWEST_SUBJECTS, MATCHED, Estimate, Figure, figures
from pipeline.probe_table import Probes, read_probes
from pipeline.tables import KEY

PLACE = Path("tables", "probes.parquet")
"""Below a report's folder."""


@dataclass(frozen=True)
class Change:
    """A figure of two reports, in %."""

    protocol: str
    condition: str
    figure: str
    before: float
    after: float
    difference: Estimate
    """``after`` less ``before``, with the interval of their paired bootstrap over subjects."""

    @property
    def verdict(self) -> str:
        """Whether 0 is in its interval, in words. Of training noise that says nothing."""
        none = math.isnan(self.difference.low)
        if self.before == self.after and (none or self.difference.low == self.difference.high == 0):
            return "no change"
        if none:
            return "no interval"
        if self.difference.low > 0 or self.difference.high < 0:
            return "more than other subjects explain"
        return "other subjects may explain it"


def compare(before: Path, after: Path) -> list[Change]:
    """Changes of every figure that both reports have; of both conventions for probes without a
    counterpart, the first only where they are alike in both reports.

    ``before`` and ``after`` are reports' folders, or their tables of probes. PipelineError where
    the protocols that both have differ in conditions, probes or galleries.
    """
    one, other = _shared(_read(before), _read(after))
    _check(before, after, one, other)
    changes = []
    for first, second in zip(one, other, strict=True):
        for condition in first.table["condition"].unique():
            figures_before = figures(first, condition)
            figures_after = figures(_in_order_of(first, second), condition)
            changes += [
                Change(
                    first.protocol.name,
                    condition,
                    name,
                    figure.value,
                    figures_after[name].value,
                    figure.change_to(figures_after[name]),
                )
                for name, figure in figures_before.items()
                if name in figures_after
                and not all(
                    _matched_anyway(name, found) for found in (figures_before, figures_after)
                )
            ]
    return changes


def text_of(changes: list[Change]) -> str:
    """Changes as a table for people, and a sentence on how to read it."""
    rows = [
        {
            "protocol": change.protocol,
            "condition": change.condition,
            "figure": change.figure,
            "A %": f"{change.before:.2f}",
            "B %": f"{change.after:.2f}",
            "B - A": f"{change.difference.value:+.2f}",
            "95 % interval": _between(change.difference),
            "": change.verdict,
        }
        for change in changes
    ]
    return (
        f"{pd.DataFrame(rows).to_string(index=False)}\n"
        "Interval: of the difference, had other subjects walked as probes (paired bootstrap, 1000\n"
        f"draws; there is none of fewer than {FEWEST_SUBJECTS} subjects). It leaves out 0 by\n"
        "chance for one in twenty figures that did not change, and says nothing of training:\n"
        "another seed may move figures as much."
    )


def json_of(changes: list[Change]) -> str:
    tree: list[dict[str, Any]] = [
        {
            "protocol": change.protocol,
            "condition": change.condition,
            "figure": change.figure,
            "a": _number(change.before),
            "b": _number(change.after),
            "difference": _number(change.difference.value),
            "low": _number(change.difference.low),
            "high": _number(change.difference.high),
            "verdict": change.verdict,
        }
        for change in changes
    ]
    return json.dumps(tree, indent=2)


def _shared(one: list[Probes], other: list[Probes]) -> tuple[list[Probes], list[Probes]]:
    """What both reports have of their protocols, in the order of the first; all, if nothing."""
    names = [[probes.protocol.name for probes in report] for report in (one, other)]
    both = [name for name in names[0] if name in names[1]]
    if not both:
        return one, other
    if alone := sorted({*names[0]} ^ {*names[1]}):
        sys.stderr.write(f"not compared, in one report only: {', '.join(alone)}\n")
    by_name = [{probes.protocol.name: probes for probes in report} for report in (one, other)]
    first, second = ([report[name] for name in both] for report in by_name)
    return first, second


def _read(path: Path) -> list[Probes]:
    if not path.exists():
        raise PipelineError(f"{path} is missing: name a report's folder, reports/casia_e say")
    if path.is_file() and path.suffix != PLACE.suffix:
        raise PipelineError(
            f"{path} is no report: name its folder, reports/casia_e say, or {PLACE}"
        )
    table = path if path.is_file() else path / PLACE
    if (path / "tables" / "submission.csv").exists():
        raise PipelineError(
            f"{path} is the report of a competition: nobody here knows who walks in its probes, so "
            "that it has no figures to compare. Its submission.csv is what the organizers score."
        )
    try:
        return read_probes(table)
    except PipelineError as error:
        if not table.exists():
            raise
        raise PipelineError(
            f"{error}\nIf it is a copy that was kept, and another commit's code made it: make it "
            "again with this one, or compare with that one."
        ) from None


def _matched_anyway(name: str, found: dict[str, Figure]) -> bool:
    """Whether a figure of matched probes alone is that of all."""
    if not name.endswith(MATCHED):
        return False
    return found[name].value == found[name.removesuffix(MATCHED)].value


def _check(before: Path, after: Path, one: list[Probes], other: list[Probes]) -> None:
    """PipelineError unless both hold the same probes, compared in the same way with the same
    gallery."""
    problems = []
    protocols = [[probes.protocol for probes in report] for report in (one, other)]
    if protocols[0] != protocols[1]:
        said = [", ".join(f"{p.name} of {p.title}" for p in report) for report in protocols]
        also = "" if said[0] != said[1] else ", whose gallery, probes or views differ"
        problems.append(f"protocols: {said[0]} in A, {said[1]} in B{also}")
    views = [[probes.views for probes in report] for report in (one, other)]
    if views[0] != views[1] and not problems:
        problems.append(f"views: {views[0]} in A, {views[1]} in B")
    if not problems:
        problems += [
            f"{first.protocol.name}: the gallery of {first.gallery.entries} entries in A is "
            f"another than that of {second.gallery.entries} in B. Make both reports with the same "
            "catalogue and silhouettes."
            for first, second in zip(one, other, strict=True)
            if first.gallery != second.gallery
        ]
    for (name, first), (_, second) in zip(_named(one), _named(other), strict=False):
        gone, new = (sorted(a - b) for a, b in ((first, second), (second, first)))
        for keys, here, there in ((gone, "A", "B"), (new, "B", "A")):
            if keys:
                names = [" ".join(key) for key in keys]
                problems.append(
                    f"{name}: {len(keys)} of {len(first if here == 'A' else second)} probes are in "
                    f"{here} alone, not in {there}:\n{listing(names, 5)}"
                )
    if problems:
        text = "\n".join(problems)
        raise PipelineError(
            f"A = {before}, B = {after}: only reports on the same probes and gallery can be "
            f"compared.\n{text}"
        )


def _named(report: list[Probes]) -> list[tuple[str, set[tuple[str, ...]]]]:
    """Name of each protocol, and its probes with their condition."""
    return [
        (
            probes.protocol.name,
            set(probes.table[["condition", *KEY]].itertuples(index=False, name=None)),
        )
        for probes in report
    ]


def _in_order_of(first: Probes, second: Probes) -> Probes:
    """The second one's rows in the order of the first one's."""
    names = ["condition", *KEY]
    table = first.table[names].merge(second.table, "left", names, validate="one_to_one")
    return replace(second, table=table)


def _between(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return "-"
    return f"{estimate.low:+.2f} to {estimate.high:+.2f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
