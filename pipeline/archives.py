"""Members of release archives and folders, listed and streamed without extracting to disk.

A container is named by its path below the release's root: a ``.7z``, ``.zip``, ``.tar``,
``.tar.gz`` or ``.tgz``, a folder that holds frames, or a tar inside a zip, written
``train001-500.zip/001.tar``. Suffixes are read in any case. Nothing here follows a link, trusts a
name, or writes.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.members import (
    Caps,
    DamagedArchiveError,
    Member,
    TooLargeError,
    WrongPasswordError,
    checked_member,
    damaged_members,
    escaped,
    open_regular,
)
from pipeline.seven_zip import list_seven_zip, read_seven_zip
from pipeline.tars import list_tar, read_tar
from pipeline.zips import list_zip, read_zip, zip_containers

__all__ = [
    "Caps",
    "DamagedArchiveError",
    "Member",
    "TooLargeError",
    "WrongPasswordError",
    "archive_containers",
    "escaped",
    "is_archive",
    "is_packed",
    "list_members",
    "may_be_split",
    "read_members",
]

_SEVEN_ZIP, _ZIP, _TAR = (".7z",), (".zip",), (".tar", ".tar.gz", ".tgz")
_VOLUME = re.compile(r"\.(7z|zip|tar|tar\.gz|tgz)\.\d+$", re.IGNORECASE)


def is_archive(name: str) -> bool:
    """Whether a file's suffix is that of an archive, or of one part of a split one."""
    return is_packed(name) or _VOLUME.search(name) is not None


def is_packed(container: str) -> bool:
    """Whether members are named by their whole path inside the container, as in archives.

    Those of a folder are named by the file's name alone.
    """
    return container.lower().endswith(_SEVEN_ZIP + _ZIP + _TAR)


def may_be_split(container: str) -> bool:
    """Whether several readers may share one container: others are unpacked from their start."""
    return not container.lower().endswith(_SEVEN_ZIP + _TAR)


def archive_containers(root: Path, path: str) -> tuple[list[str], list[Member]]:
    """Containers in one archive file: itself, or the tars in a zip; and members refused for good.

    A zip that holds tars and other files is a container as well, of those others. Raises
    DamagedArchiveError where there is no telling.
    """
    if part := _VOLUME.search(path):
        whole = path[: part.end(1)]
        raise DamagedArchiveError(
            path, f"a part of a split archive; join the parts first: cat {whole}.* > {whole}"
        )
    if path.lower().endswith(_ZIP):
        return zip_containers(root, path)
    return [path], []


def list_members(
    root: Path, container: str, password: str | None, caps: Caps | None = None
) -> Iterator[Member]:
    """What a container holds, in its own order.

    Raises DamagedArchiveError where the list ends too early: what came before it is good, unless
    the error is ``suspect``. TooLargeError, one of those, is raised at a cap.
    """
    caps = caps or Caps()
    lower = container.lower()
    if lower.endswith(_SEVEN_ZIP):
        members = list_seven_zip(root, container, password, caps)
    elif lower.endswith(_TAR):
        members = list_tar(root, container, password, caps)
    elif lower.endswith(_ZIP):
        members = list_zip(root, container, password, caps)
    else:
        members = _list_folder(root, container, caps)
    for number, member in enumerate(members, 1):
        if number > caps.max_members:
            raise TooLargeError(
                container,
                f"more than {caps.max_members} members; if it is to be trusted, raise "
                "ingest.max_members",
            )
        taken = not member.folder and not member.refusal
        if taken and is_packed(container) and is_archive(member.name):
            member = Member(member.name, member.bytes, "an archive inside an archive")
        yield member


def read_members(
    root: Path,
    container: str,
    wanted: set[str],
    password: str | None,
    consume: Callable[[str, bytes], None],
    caps: Caps | None = None,
) -> None:
    """Hand every wanted member's bytes to ``consume(name, content)``, in the container's order.

    Each archive is read once, front to back; of members of one name the first is handed on. Raises
    DamagedArchiveError where reading cannot go on, or in the end where some members could not be
    read; what was consumed passed the container's checks, unless the error is ``suspect``.
    """
    caps = caps or Caps()
    lower = container.lower()
    if lower.endswith(_SEVEN_ZIP):
        read_seven_zip(root, container, wanted, password, caps, consume)
    elif lower.endswith(_TAR):
        read_tar(root, container, wanted, password, caps, consume)
    elif lower.endswith(_ZIP):
        read_zip(root, container, wanted, password, caps, consume)
    else:
        _read_folder(root, container, wanted, caps, consume)


def _list_folder(root: Path, container: str, caps: Caps) -> Iterator[Member]:
    try:
        with os.scandir(root / container) as entries:
            for file in sorted(entries, key=lambda entry: entry.name):
                if not file.is_dir(follow_symlinks=False):
                    regular = file.is_file(follow_symlinks=False)
                    size = file.stat(follow_symlinks=False).st_size
                    yield checked_member(file.name, size, regular, caps)
    except OSError as error:
        raise DamagedArchiveError(container, error.strerror or "unreadable") from None


def _read_folder(
    root: Path,
    container: str,
    wanted: set[str],
    caps: Caps,
    consume: Callable[[str, bytes], None],
) -> None:
    problems: list[tuple[str, str]] = []
    for name in sorted(wanted):
        try:
            content = _file_content(root / container / name, container, caps)
        except DamagedArchiveError as error:
            problems.append((name, error.reason))
            continue
        consume(name, content)
    if problems:
        raise damaged_members(container, problems)


def _file_content(path: Path, container: str, caps: Caps) -> bytes:
    with os.fdopen(open_regular(path, container, follow=False), "rb") as file:
        before = os.fstat(file.fileno())
        try:
            content = file.read(min(before.st_size, caps.max_frame_bytes) + 1)
        except OSError as error:
            raise DamagedArchiveError(container, error.strerror or "unreadable") from None
        after = os.fstat(file.fileno())
    if len(content) > caps.max_frame_bytes:
        raise DamagedArchiveError(container, "larger than when it was listed")
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    if not same or len(content) != before.st_size:
        raise DamagedArchiveError(container, "changed while it was being read")
    return content
