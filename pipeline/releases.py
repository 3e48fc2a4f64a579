"""The layouts in which the owners of OUMVLP and CASIA-E hand out silhouettes.

A layout is a pattern on the path of a frame. Paths may have any folders before it, so that a
release that was extracted one level deeper is still found.
"""

import os
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.archives import (
    Caps,
    DamagedArchiveError,
    Member,
    WrongPasswordError,
    archive_containers,
    is_archive,
    is_packed,
    list_members,
    printable,
)
from pipeline.errors import PipelineError
from pipeline.settings import Dataset

LAYOUTS: dict[Dataset, dict[str, re.Pattern[str]]] = {
    "oumvlp": {
        "release (Silhouette_<view>-<sequence>/<subject>/<frame>.png)": re.compile(
            r"(?:^|/)Silhouette_(?P<view>\d{3})-(?P<sequence>\d{2})/(?P<subject>\d{5})/"
            r"[^/]+\.(?i:png)$"
        ),
        "rearranged (<subject>/<sequence>/<view>/<frame>.png)": re.compile(
            r"(?:^|/)(?P<subject>\d{5})/(?P<sequence>\d{2})/(?P<view>\d{3})/[^/]+\.(?i:png)$"
        ),
    },
    "casia_e": {
        "release (<subject>/<H|L>/<scene>/<nm|bg|cl>/<view>/<number>/<frame>.jpg)": re.compile(
            r"(?:^|/)(?P<subject>\d{3,4})/(?P<height>[HL])/(?P<scene>scene[123]|scene3_s)/"
            r"(?P<condition>nm|bg|cl)/(?P<view>\d{3})/(?P<number>\d+)/[^/]+\.(?i:jpe?g)$"
        ),
    },
}

PASSWORD_VARIABLES: dict[Dataset, str] = {
    "oumvlp": "OUMVLP_PASSWORD",
    "casia_e": "CASIA_E_PASSWORD",
}


@dataclass(frozen=True, slots=True)
class Found:
    """One sequence as it lies in the release; frames in the order in which they were taken."""

    subject: str
    sequence: str
    view: str
    container: str
    folder: str
    frames: list[str]
    bytes: int

    @property
    def key(self) -> tuple[str, str, str]:
        return self.subject, self.sequence, self.view


@dataclass(frozen=True, slots=True)
class Refusal:
    """Frames that go no further; ``frames`` counts them, 0 where their number is unknown."""

    container: str
    member: str
    reason: str
    detail: str = ""
    frames: int = 1
    subject: str = ""
    sequence: str = ""
    view: str = ""


@dataclass(slots=True)
class Scan:
    """What one container holds: sequences found, members refused, frames seen."""

    found: list[Found] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    seen: int = 0
    layouts: set[str] = field(default_factory=set)


def password(dataset: Dataset) -> str | None:
    """The archives' password from the environment; None where it is not set."""
    return os.environ.get(PASSWORD_VARIABLES[dataset]) or None


def password_advice(dataset: Dataset) -> str:
    """What to do about archives that the password does not open."""
    return (
        f"The password is read from the environment variable {PASSWORD_VARIABLES[dataset]}. If it "
        "is the right one, the archives are damaged: download them again."
    )


def containers(dataset: Dataset, root: Path) -> tuple[list[str], list[Refusal]]:
    """Everything below ``root`` that may hold frames, sorted, and files that cannot.

    Raises PipelineError where there is nothing, or an archive's table of contents is unreadable.
    """
    check_root(dataset, root)
    where = f"data.{dataset}.root = {root}"
    found: list[str] = []
    refused: list[Refusal] = []
    broken: list[str] = []
    for folder, below, files in os.walk(root):
        below.sort()
        relative = Path(folder).relative_to(root).as_posix()
        refused += [
            Refusal(printable(relative), printable(name), "a link to a folder")
            for name in below
            if os.path.islink(os.path.join(folder, name))
        ]
        loose = 0
        for name in sorted(files):
            path = name if relative == "." else f"{relative}/{name}"
            if is_archive(name) and path != printable(path):
                reason = "a name that is not text (UTF-8)"
                refused.append(Refusal(printable(relative), printable(name), reason))
            elif is_archive(name):
                try:
                    inner, others = archive_containers(root, path, password(dataset))
                except DamagedArchiveError as error:
                    broken.append(str(error))
                    continue
                found += inner
                refused += [Refusal(path, m.name, m.refusal) for m in others]
                if not inner and not others:
                    refused.append(Refusal(path, "", "the archive is empty", frames=0))
            else:
                loose += 1
        if loose and relative == printable(relative):
            found.append(relative)
        elif loose:
            reason = "a folder's name that is not text (UTF-8)"
            refused.append(Refusal(printable(relative), "", reason, frames=loose))
    if broken:
        raise PipelineError(
            f"{where}: {len(broken)} archive(s) cannot be opened:\n"
            + "\n".join(f"  {line}" for line in broken)
            + "\nDownload them again, or compare their checksums with the owners'."
        )
    if not found and not refused:
        raise PipelineError(f"{where}: no archive and no frame below it.\n{_looked_for(dataset)}")
    return found, refused


def check_root(dataset: Dataset, root: Path) -> None:
    """PipelineError unless ``root`` is a folder."""
    if not root.is_dir():
        what = "a file" if root.exists() else "missing"
        raise PipelineError(
            f"data.{dataset}.root = {root}: expected the folder that holds the release of "
            f"{dataset}, but it is {what}; write the right path into params.yaml."
        )


def scan(dataset: Dataset, root: Path, container: str, caps: Caps | None = None) -> Scan:
    """List one container and sort its members into sequences and refusals.

    Raises WrongPasswordError, and DamagedArchiveError for a 7z, whose list is all or nothing. A tar
    damaged becomes refusals: what was listed before stays, but for the sequence that is cut off.
    """
    result = Scan()
    folders: dict[tuple[str, str, str, str], list[Member]] = defaultdict(list)
    last: tuple[str, str, str, str] | None = None
    archive = is_packed(container)
    seen_names: set[str] = set()
    try:
        for member in list_members(root, container, password(dataset), caps):
            if not archive and is_archive(member.name):
                continue  # a container of its own
            result.seen += 1
            path = member.name if archive else f"{container}/{member.name}"
            reason = member.refusal
            if not reason and member.name in seen_names:
                reason = "a second member of the same name"
            seen_names.add(member.name)
            match = None if reason else _match(dataset, path)
            if match is None:
                result.refused.append(
                    Refusal(container, member.name, reason or "not a frame's name")
                )
                continue
            layout, (subject, sequence, view) = match
            result.layouts.add(layout)
            last = (subject, sequence, view, path.rpartition("/")[0])
            folders[last].append(member)
    except DamagedArchiveError as error:
        if container.lower().endswith(".7z") or isinstance(error, WrongPasswordError):
            raise
        result.refused.append(
            Refusal(container, "", "the archive is damaged", error.reason, frames=0)
        )
        # where only a checksum over all of it fails, none can be trusted
        lost = list(folders) if error.suspect else [last] if last is not None else []
        for key in lost:
            cut = folders.pop(key)
            result.refused.append(
                Refusal(container, key[3], "cut off by the damage", "", len(cut), *key[:3])
            )
    if not result.seen and not result.refused:
        result.refused.append(Refusal(container, "", "the archive is empty", frames=0))
    for (subject, sequence, view, folder), members in folders.items():
        members.sort(key=lambda member: _natural(member.name))
        result.found.append(
            Found(
                subject,
                sequence,
                view,
                container,
                folder,
                # thousands of names stand in millions of places: one object each
                [sys.intern(member.name.rpartition("/")[2]) for member in members],
                sum(member.bytes for member in members),
            )
        )
    return result


def member_name(container: str, folder: str, frame: str) -> str:
    """The name under which ``pipeline.archives`` knows a frame of the catalogue."""
    return f"{folder}/{frame}" if is_packed(container) else frame


def split_of(dataset: Dataset, subject: str, split: str) -> str:
    """``train``, ``val`` or ``test``; ``split`` is ``data.<dataset>.split``."""
    number = int(subject)
    if dataset == "oumvlp":
        # odd ids up to 10305 train; even ones and 10307 are the test
        return "train" if number % 2 and number <= 10305 else "test"
    if split == "opengait":
        return "train" if number <= 200 else "test"
    return "train" if number <= 500 else "val" if number <= 614 else "test"


def nothing_found(dataset: Dataset, root: Path, refused: list[Refusal]) -> PipelineError:
    """The error for a root that holds files, but no frame of the dataset."""
    examples = "\n".join(
        f"  {r.container}: {r.member or '(whole archive)'}: {r.reason} {r.detail}".rstrip()
        for r in refused[:5]
    )
    return PipelineError(
        f"data.{dataset}.root = {root}: no sequence of {dataset} in it.\n"
        f"{_looked_for(dataset)}\nFound instead:\n{examples}"
    )


def _looked_for(dataset: Dataset) -> str:
    forms = "\n".join(f"  {layout}" for layout in LAYOUTS[dataset])
    kinds = "7z archives" if dataset == "oumvlp" else "zips of one tar a subject"
    return f"Looked for {kinds}, or those extracted, with paths like\n{forms}"


def _match(dataset: Dataset, path: str) -> tuple[str, tuple[str, str, str]] | None:
    for layout, pattern in LAYOUTS[dataset].items():
        if match := pattern.search(path):
            part = match.groupdict()
            if dataset == "casia_e":
                sequence = "-".join(
                    (part["height"], part["scene"], part["condition"], part["number"])
                )
            else:
                sequence = part["sequence"]
            return layout, (part["subject"], sequence, part["view"])
    return None


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key under which 2.jpg comes before 10.jpg."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
