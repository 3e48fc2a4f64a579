"""Anybody's silhouettes: three folders name subject, sequence and view.

``dataset.yaml`` in the root may say who is trained on and who is compared with whom; without it
the first half of the subjects trains, and the first sequence is the gallery.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from pipeline.errors import PipelineError
from pipeline.layouts.layout import FRAME, Key, Layout
from pipeline.protocols import RESERVED, in_view_pairs_and_all_views, named
from pipeline.releases import DESCRIPTION
from pipeline.settings import Section, explain, read_yaml

Names = Annotated[list[str], Field(min_length=1)]


class Description(Section):
    """What dataset.yaml may hold."""

    train: list[str] | None = None
    """Subjects, or ranges of them ("001-050"); left out: whoever is in no other list."""

    val: list[str] | None = None

    test: list[str] | None = None
    """Left out: whoever is in no other list."""

    gallery: Names | None = None
    """Names of sequences; nm-* stands for all that begin with nm-."""

    probes: Annotated[dict[str, Names], Field(min_length=1)] | None = None
    """Names of sequences under each condition that is to have a table of its own."""


class Generic(Layout):
    name = "generic"
    form = "<subject>/<sequence>/<view>/<frame>.(png|jpg|jpeg|bmp), any names"
    pattern = re.compile(
        r"(?:^|/)(?P<subject>[^/.][^/]*)/(?P<sequence>[^/.][^/]*)/(?P<view>[^/.][^/]*)/"
        rf"{FRAME}\.(?i:png|jpe?g|bmp)$"
    )
    expected: Mapping[str, int] = {}

    def __init__(self, root: Path, keys: Collection[Key], split: str) -> None:
        path = root / DESCRIPTION
        described = path.is_file()
        description = _read(path) if described else Description()
        subjects = sorted({subject for subject, _, _ in keys})
        self._split, problems = _divide(description, subjects)
        tested = sorted({s for subject, s, _ in keys if self._split.get(subject) == "test"})
        gallery, probes, more = _compare(description, tested)
        if problems or more:
            lines = "\n".join(f"  {problem}" for problem in problems + more)
            raise PipelineError(f"{path} has {len(problems + more)} problem(s):\n{lines}")
        self.split_words = f"{DESCRIPTION}: " if described else f"no {DESCRIPTION}, so "
        self.split_words += ", ".join(
            f"{part}: {_few(s for s in subjects if self._split[s] == part)}"
            for part in ("train", "val", "test")
            if part in self._split.values()
        )
        both = in_view_pairs_and_all_views(
            title="own data",
            gallery=tuple(gallery),
            probes={condition: tuple(names) for condition, names in probes.items()},
            gallery_words=_few(gallery),
            probe_words="; ".join(f"{c}: {_few(names)}" for c, names in probes.items()),
        )
        views = {view for subject, _, view in keys if self._split[subject] == "test"}
        # seen from one side only, nobody is left once a subject's own view is excluded
        self.protocols = both if len(views) > 1 else both[:1]

    def split(self, subject: str, sequence: str) -> str:
        return self._split[subject]


def _read(path: Path) -> Description:
    tree = read_yaml(path)
    try:
        return Description.model_validate(tree)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            hint = "; write it in quotes" if item["type"] == "string_type" else ""
            lines.append(f"  {explain(item, Description)}{hint}")
        text = "\n".join(lines)
        raise PipelineError(f"{path} has {len(lines)} problem(s):\n{text}") from None


def _divide(description: Description, subjects: list[str]) -> tuple[dict[str, str], list[str]]:
    """``train``, ``val`` or ``test`` of each subject, and what is wrong with the description."""
    split: dict[str, str] = {}
    problems = []
    for part in ("train", "val", "test"):
        for i, entry in enumerate(getattr(description, part) or []):
            meant = _meant(entry, subjects)
            if not meant:
                problems.append(f"{part}[{i}]: no subject here is called {entry!r}")
            twice = [subject for subject in meant if split.get(subject, part) != part]
            if twice:
                other = split[twice[0]]
                problems.append(f"{part}[{i}]: {entry!r} names subjects of {other}: {_few(twice)}")
            split = dict.fromkeys(meant, part) | split
    rest = [subject for subject in subjects if subject not in split]
    if description.train is None and description.test is None:
        half = len(rest) // 2
        split |= dict.fromkeys(rest[:half], "train") | dict.fromkeys(rest[half:], "test")
    elif description.train is None:
        split |= dict.fromkeys(rest, "train")
    elif description.test is None:
        split |= dict.fromkeys(rest, "test")
    elif rest:
        problems.append(
            f"train, val, test: {len(rest)} subject(s) are in none of them: {_few(rest)}"
        )
    return split, problems


def _meant(entry: str, subjects: list[str]) -> list[str]:
    """The subjects that an entry names: one, or a range of numbers, written alike."""
    if entry in subjects:
        return [entry]
    ends = re.fullmatch(r"([0-9]+)-([0-9]+)", entry)
    if ends is None:
        return []
    first, last = ends.groups()
    digits = len(first) if len(first) == len(last) else None
    return [
        subject
        for subject in subjects
        if re.fullmatch("[0-9]+", subject)
        and int(first) <= int(subject) <= int(last)
        and (len(subject) == digits if digits else str(int(subject)) == subject)
    ]


def _compare(
    description: Description, tested: list[str]
) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Gallery, probes, and what is wrong; ``tested``: the test subjects' sequences, sorted."""
    gallery, probes = description.gallery, description.probes
    if gallery is None and probes is None:
        return tested[:1], {"all": tested[1:]}, []
    if gallery is None or probes is None:
        return [], {}, ["gallery, probes: write both, or neither"]
    problems = []
    lists = {"gallery": gallery, **{f"probes.{name}": list_ for name, list_ in probes.items()}}
    for key, names in lists.items():
        for i, name in enumerate(names):
            if not named([name], tested):
                problems.append(f"{key}[{i}]: no test subject has a sequence called {name!r}")
        both = set(named(names, tested)) & set(named(gallery, tested))
        if key != "gallery" and both:
            problems.append(f"{key}: in the gallery, too: {_few(sorted(both))}")
    files: dict[str, str] = {}
    for condition in probes:  # it becomes part of the names of tables and figures
        if not re.fullmatch(r"[A-Za-z0-9_-]+", condition):
            problems.append(f"probes.{condition}: letters, digits, - and _ only, please")
        elif condition in RESERVED:
            problems.append(f"probes.{condition}: the report calls something else so")
        elif condition == "all" and len(probes) > 1:
            problems.append("probes.all: what the only condition may be called, not one of several")
        elif (other := files.setdefault(condition.lower(), condition)) != condition:
            problems.append(f"probes.{condition}: differs from {other} in capitals only")
    return gallery, probes, problems


def _few(names: Iterable[str]) -> str:
    """Names for people: all of a few, the ends of many."""
    names = list(names)
    if len(names) > 8:
        return f"{', '.join(names[:3])} ... {names[-1]} ({len(names)})"
    return ", ".join(names) or "none"
