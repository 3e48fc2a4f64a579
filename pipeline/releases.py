"""What lies below a release's root: archives and folders, their sequences, and what is refused."""

import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.archives import (
    Caps,
    DamagedArchiveError,
    Member,
    TooLargeError,
    WrongPasswordError,
    archive_containers,
    escaped,
    is_archive,
    is_packed,
    list_members,
)
from pipeline.catalogue import DAMAGED, Refusal
from pipeline.errors import PipelineError, listing
from pipeline.settings import DATASETS, Dataset

DESCRIPTION = "dataset.yaml"
"""A file of this name in the root describes the data and is none of it; see docs/layouts.md."""

PASSWORD_VARIABLES = {dataset: f"{dataset.upper()}_PASSWORD" for dataset in DATASETS}


@dataclass(frozen=True, slots=True)
class Found:
    """One sequence as it lies in the release; frames in the order in which they were taken."""

    layout: str
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


@dataclass(slots=True)
class Scan:
    """What one container holds: sequences found, members refused, frames seen."""

    found: list[Found] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    seen: int = 0
    empty: list[str] = field(default_factory=list)
    """Folders inside the archive that hold nothing."""


def password(dataset: Dataset) -> str | None:
    """The archives' password from the environment; None where it is not set."""
    return os.environ.get(PASSWORD_VARIABLES[dataset]) or None


def password_advice(dataset: Dataset) -> str:
    """What to do about archives that the password does not open."""
    return (
        f"The password is read from the environment variable {PASSWORD_VARIABLES[dataset]}. If it "
        "is the right one, the archives are damaged: download them again."
    )


def containers(dataset: Dataset, root: Path) -> tuple[list[str], list[Refusal], list[str]]:
    """Everything below ``root`` that may hold frames, files that cannot, and empty folders.

    Sorted. Raises PipelineError where the root is no folder, or a folder or a zip's table of
    contents is unreadable; all of those are named.
    """
    check_root(dataset, root)
    found: list[str] = []
    refused: list[Refusal] = []
    empty: list[str] = []
    broken: list[DamagedArchiveError] = []
    unreadable: list[OSError] = []
    for folder, below, files in os.walk(root, onerror=unreadable.append):
        below.sort()
        relative = Path(folder).relative_to(root).as_posix()
        reason = "a link to a folder, which is not followed: put the folder itself there"
        refused += [
            Refusal(escaped(relative), escaped(name), reason)
            for name in below
            if os.path.islink(os.path.join(folder, name))
        ]
        loose = 0
        for name in sorted(files):
            path = name if relative == "." else f"{relative}/{name}"
            if is_archive(name):
                if path != escaped(path):
                    reason = "a name that is not text (UTF-8)"
                    refused.append(Refusal(escaped(relative), escaped(name), reason))
                    continue
                try:
                    inside, others = archive_containers(root, path)
                except DamagedArchiveError as error:
                    broken.append(error)
                    continue
                found += inside
                refused += [Refusal(path, m.name, m.refusal) for m in others]
                if not inside and not others:
                    refused.append(Refusal(path, "", "the archive is empty", frames=0))
            elif path != DESCRIPTION:
                loose += 1
        hollow = not below and not files
        if (loose or hollow) and relative != escaped(relative):
            reason = "a folder's name that is not text (UTF-8)"
            refused.append(Refusal(escaped(relative), "", reason, frames=loose))
        elif loose and is_archive(relative):
            reason = "a folder that is called like an archive: rename it"
            refused.append(Refusal(relative, "", reason, frames=loose))
        elif loose:
            found.append(relative)
        elif hollow:
            empty.append(relative)
    if unreadable:
        lines = [f"{escaped(str(error.filename))}: {error.strerror}" for error in unreadable]
        raise PipelineError(
            f"data.{dataset}.root = {root}: {len(lines)} folder(s) cannot be read:\n"
            f"{listing(lines)}\nMake them readable, or move them out of the root."
        )
    if broken:
        raise cannot_be_read(dataset, root, broken)
    return found, refused, empty


def cannot_be_read(
    dataset: Dataset, root: Path, broken: Iterable[DamagedArchiveError]
) -> PipelineError:
    """The error that names all archives which cannot be read."""
    errors = list(broken)
    advice = "Download them again, or compare their checksums with the owners'."
    if all(isinstance(error, TooLargeError) for error in errors):
        advice = "A cap of params.yaml was reached: see there, under ingest."
    if any(isinstance(error, WrongPasswordError) for error in errors):
        advice = password_advice(dataset)
    return PipelineError(
        f"data.{dataset}.root = {root}: {len(errors)} archive(s) cannot be read:\n"
        f"{listing([str(error) for error in errors])}\n{advice}"
    )


def check_root(dataset: Dataset, root: Path) -> None:
    """PipelineError unless ``root`` is a folder."""
    try:
        what = "" if root.is_dir() else "a file" if root.exists() else "missing"
    except OSError as error:  # a name too long, a folder on the way that is closed to us
        what = f"out of reach ({error.strerror})"
    if what:
        if root.parts[:1] == ("~",):
            what += " (~ is not replaced here)"
        raise PipelineError(
            f"data.{dataset}.root = {root}: expected the folder that holds the release of "
            f"{dataset}, but it is {what}; write the right path into params.yaml."
        )


def scan(
    dataset: Dataset,
    root: Path,
    container: str,
    recognize: Callable[[str], tuple[str, tuple[str, str, str]] | None],
    caps: Caps | None = None,
) -> Scan:
    """List one container and sort its members into sequences and refusals.

    ``recognize`` tells, from a frame's path, its layout and its subject, sequence and view.

    Raises WrongPasswordError, and DamagedArchiveError for a 7z, whose list is all or nothing. Other
    damage becomes refusals: what was listed before stays, but for the sequence that is cut off.
    """
    result = Scan()
    folders: dict[tuple[str, str, str, str, str], list[Member]] = defaultdict(list)
    last: tuple[str, str, str, str, str] | None = None
    packed = is_packed(container)
    seen_names: set[str] = set()
    listed_folders: list[str] = []
    try:
        for member in list_members(root, container, password(dataset), caps):
            if member.folder:
                listed_folders.append(member.name)
                continue
            if not packed and is_archive(member.name):
                continue  # a container of its own
            if container == "." and member.name == DESCRIPTION:
                continue
            result.seen += 1
            path = member.name if packed else f"{container}/{member.name}"
            reason = member.refusal
            if not reason and member.name in seen_names:
                reason = "a second member of the same name"
            seen_names.add(member.name)
            match = None if reason else recognize(path)
            if match is None:
                result.refused.append(
                    Refusal(container, member.name, reason or "not a frame's name")
                )
                continue
            layout, (subject, sequence, view) = match
            last = (layout, subject, sequence, view, path.rpartition("/")[0])
            folders[last].append(member)
    except DamagedArchiveError as error:
        if container.lower().endswith(".7z") or isinstance(error, WrongPasswordError):
            raise
        reason, cut_off = DAMAGED, "cut off by the damage"
        if isinstance(error, TooLargeError):
            reason = cut_off = "past a cap"
        result.refused.append(Refusal(container, "", reason, error.reason, frames=0))
        # where only a checksum over all of it fails, none can be trusted
        lost = list(folders) if error.suspect else [last] if last is not None else []
        for key in lost:
            cut = folders.pop(key)
            result.refused.append(Refusal(container, key[4], cut_off, "", len(cut), *key[1:4]))
    result.empty = _without_members(listed_folders, seen_names)
    if not result.seen and not result.refused:
        result.refused.append(Refusal(container, "", "the archive is empty", frames=0))
    for (layout, subject, sequence, view, folder), members in folders.items():
        members.sort(key=lambda member: _natural(member.name))
        result.found.append(
            Found(
                layout,
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


def path_of(root: Path, container: str) -> Path:
    """The archive that a container is or lies in, or the folder that it is."""
    path = root / container
    while path != root and not path.exists():
        path = path.parent  # of a tar inside a zip, or gone
    return path


def bytes_of(root: Path, container: str) -> int:
    """Size of the archive that a container is or lies in; 0 for a folder or where it is gone."""
    path = path_of(root, container)
    return path.stat().st_size if path.is_file() else 0


def _without_members(folders: list[str], members: Iterable[str]) -> list[str]:
    """Folders below which nothing lies, whether members or folders."""
    if not folders:
        return []
    parents = {name.rpartition("/")[0] for name in [*members, *folders]}
    above = set()
    for folder in parents:
        while folder and folder not in above:
            above.add(folder)
            folder = folder.rpartition("/")[0]
    return sorted(set(folders) - above)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key under which 2.jpg comes before 10.jpg."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
