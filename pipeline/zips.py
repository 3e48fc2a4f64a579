"""Members of a zip: frames right inside it, or tars to be read as containers of their own."""

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from pipeline.members import (
    Caps,
    DamagedArchiveError,
    Member,
    Source,
    WrongPasswordError,
    checked_member,
    damaged_members,
    listed_folder,
    reason_of,
    too_many_bytes,
)

_TAR = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)
_LOCAL_HEADER_BYTES = 30  # at least
_PIECE_BYTES = 2**20
_END_BYTES = 22 + 20 + 56  # records at a zip's end
_WRONG_PASSWORD_AFTER = 8  # damaged members, with none whole before them

# RuntimeError: what zipfile says of passwords and of methods that it does not know
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    UnicodeDecodeError,
    ValueError,
)


def zip_containers(root: Path, path: str) -> tuple[list[str], list[Member]]:
    """What to list of a zip: its tars, itself where it holds anything else; and refused tars."""
    tars: list[str] = []
    refused: list[Member] = []
    others = False
    with _opened(root, path) as (outer, _):
        names: set[str] = set()
        for info, refusal in _entries(outer):
            if not _TAR.search(info.filename):
                others = True
                continue
            member = checked_member(info.filename, 0, _is_file(info), Caps())
            if not refusal and info.filename in names:
                refusal = "a second member of the same name"
            names.add(info.filename)
            if member.refusal or refusal:
                refused.append(Member(member.name, info.file_size, member.refusal or refusal))
            else:
                tars.append(f"{path}/{info.filename}")
    return sorted(tars) + [path] * others, refused


def list_zip(root: Path, container: str, password: str | None, caps: Caps) -> Iterator[Member]:
    """Members of a zip other than its tars, in the order of its table of contents."""
    with _opened(root, container) as (outer, _):
        total = 0
        for info, refusal in _entries(outer):
            if _TAR.search(info.filename):
                continue
            if info.flag_bits & 1 and password is None:
                raise WrongPasswordError(container, "encrypted, and no password is set")
            total += info.file_size
            if total > caps.max_archive_bytes:
                raise too_many_bytes(container, caps)
            member = checked_member(info.filename, info.file_size, _is_file(info), caps)
            yield Member(member.name, member.bytes, member.refusal or refusal)
        for info in outer.infolist():
            if info.filename.endswith("/"):  # is_dir stumbles over an empty name
                yield from listed_folder(info.filename, caps)


def read_zip(
    root: Path,
    container: str,
    wanted: set[str],
    password: str | None,
    caps: Caps,
    consume: Callable[[str, bytes], None],
) -> None:
    """``consume(name, content)`` for wanted members whose checksum holds, as they lie in the file.

    A damaged member does not keep the others from being read; DamagedArchiveError comes at the end.
    """
    problems: list[tuple[str, str]] = []
    passed = 0
    unpacked_bytes = 0
    with _opened(root, container) as (outer, source):
        first: dict[str, zipfile.ZipInfo] = {}
        for info, refusal in _entries(outer):
            if info.filename in wanted and not refusal:
                first.setdefault(info.filename, info)
        for info in sorted(first.values(), key=lambda info: info.header_offset):
            try:
                content = _content(outer, info, password, caps)
            except ZIP_ERRORS as error:
                problems.append((info.filename, reason_of(error)))
                if info.flag_bits & 1 and not passed and len(problems) == _WRONG_PASSWORD_AFTER:
                    break
                continue
            unpacked_bytes += len(content)
            if unpacked_bytes > caps.max_archive_bytes:
                raise too_many_bytes(container, caps)
            source.check_unchanged()
            passed += 1
            consume(info.filename, content)
        if problems and not passed and all(info.flag_bits & 1 for info in first.values()):
            reason = f"wrong password, or damaged ({problems[0][1]})"
            raise WrongPasswordError(container, reason)
    if problems:
        raise damaged_members(container, problems)


@contextmanager
def open_in_zip(
    root: Path, archive: str, name: str, container: str, password: str | None
) -> Iterator[tuple[IO[bytes], Source]]:
    """The stream of one member; ``container`` is what errors name."""
    with _opened(root, archive, container) as (outer, source):
        infos = (info for info, refusal in _entries(outer) if not refusal)
        info = next((info for info in infos if info.filename == name), None)
        if info is None:
            raise DamagedArchiveError(container, "no such member in the zip")
        try:
            stream = outer.open(info, pwd=_bytes(password))
        except ZIP_ERRORS as error:
            # zipfile says so with a RuntimeError of its own
            if isinstance(error, RuntimeError) and "password" in str(error):
                raise WrongPasswordError(container, reason_of(error)) from None
            raise DamagedArchiveError(container, reason_of(error)) from None
        with stream:
            yield stream, source


@contextmanager
def _opened(
    root: Path, archive: str, container: str = ""
) -> Iterator[tuple[zipfile.ZipFile, Source]]:
    container = container or archive
    with Source(root / archive, container) as source:
        try:
            outer = zipfile.ZipFile(source)
            declared = _declared_entries(source)
        except ZIP_ERRORS as error:
            raise DamagedArchiveError(container, reason_of(error)) from None
        if len(outer.infolist()) != declared:
            found = len(outer.infolist())
            raise DamagedArchiveError(container, f"lists {found} members, and says {declared}")
        with outer:
            yield outer, source


def _declared_entries(source: Source) -> int:
    """How many members a zip says that it has; zipfile does not compare it with what it found."""
    end = source.seek(0, os.SEEK_END)
    source.seek(max(0, end - 2**16 - _END_BYTES))
    tail = source.read()
    at = tail.rfind(b"PK\5\6")
    (entries,) = struct.unpack_from("<H", tail, at + 10)
    if entries == 0xFFFF:  # then a longer form of the same stands before it
        at = tail.rfind(b"PK\6\6", 0, at)
        (entries,) = struct.unpack_from("<Q", tail, at + 32) if at >= 0 else (entries,)
    return int(entries)


def _entries(outer: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """Entries that are no folders, each with the reason why it cannot be read, if there is one."""
    infos = [info for info in outer.infolist() if not info.filename.endswith("/")]
    overlapping = _overlapping(infos, outer.start_dir)
    for info in infos:
        refusal = ""
        if id(info) in overlapping:
            refusal = "overlaps another member of the zip"
        elif info.compress_type == 99:
            refusal = "encrypted with AES, which is read from a 7z only"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile unpacks other methods without a bound on what comes out at once
            refusal = f"compressed by method {info.compress_type}, read are stored and deflated"
        yield info, refusal


def _overlapping(infos: list[zipfile.ZipInfo], end_of_data: int) -> set[int]:
    """Ids of the entries that share bytes, as in bombs that pack one member into many."""
    overlapping: set[int] = set()
    last, last_end = None, 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
        if last is not None and info.header_offset < last_end:
            overlapping |= {id(last), id(info)}
        if end > end_of_data:
            overlapping.add(id(info))
        if last is None or end > last_end:
            last, last_end = info, end
    return overlapping


def _is_file(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0: written where there are no links
    return info.create_system != 3 or kind in (0, stat.S_IFREG)


def _content(
    outer: zipfile.ZipFile, info: zipfile.ZipInfo, password: str | None, caps: Caps
) -> bytes:
    if info.file_size > caps.max_frame_bytes:
        raise ValueError("larger than when it was listed")
    with outer.open(info, pwd=_bytes(password)) as stream:
        # a Source gives no more than that at once; to the end, where the checksum is compared
        piece = min(info.file_size + 1, _PIECE_BYTES)
        content = b"".join(iter(partial(stream.read, piece), b""))
    if len(content) != info.file_size:
        raise EOFError(f"{len(content)} of {info.file_size} bytes")
    return content


def _bytes(password: str | None) -> bytes | None:
    return password.encode() if password else None
