"""Members of a 7z, each block unpacked once, front to back, in bounded memory.

py7zr parses the archive and makes the decoders. Its extraction is not used: it feeds a decoder
faster than it asks for output, so that the whole packed archive ends up in memory, and it gives
up all blocks where one is damaged.
"""

import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import py7zr
import py7zr.archiveinfo
import py7zr.compressor
import py7zr.exceptions
import py7zr.properties

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

# py7zr holds about 0.7 kB per entry; an archive of OUMVLP has 250 000
py7zr.archiveinfo.MAX_NUMFILES = 2**19
py7zr.archiveinfo.MAX_HEADER_SIZE = 2**27

# these give more than they are asked for, and so can be made to fill the memory, even by a header
for _filter in (
    py7zr.properties.FILTER_BROTLI,
    py7zr.properties.FILTER_DEFLATE,
    py7zr.properties.FILTER_DEFLATE64,
    py7zr.properties.FILTER_PPMD,
    py7zr.properties.FILTER_ZSTD,
):
    _encoder, _ = py7zr.compressor.algorithm_class_map[_filter]
    py7zr.compressor.algorithm_class_map[_filter] = (_encoder, None)  # py7zr's word for "cannot"

_LZMA, _LZMA2, _AES = b"\x03\x01\x01", b"\x21", b"\x06\xf1\x07\x01"
_METHODS = {
    b"\x00": "Copy",
    _LZMA: "LZMA",
    _LZMA2: "LZMA2",
    b"\x04\x02\x02": "BZip2",
    b"\x03": "Delta",
    b"\x03\x03\x01\x03": "BCJ",
    _AES: "AES",
}
MAX_DICTIONARY_BYTES = 2**28
"""What 7-Zip's highest level takes; a decoder holds as much."""

PIECE_BYTES = 2**20
_FEED_BYTES = 2**16  # a multiple of AES' blocks

# py7zr parses headers without checking them first: a damaged one surfaces as any of these
_ERRORS = (
    py7zr.exceptions.ArchiveError,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class _Packed:
    """One member's place in its block, and the checksum to hold it to."""

    name: str
    bytes: int
    crc32: int | None


@dataclass(frozen=True, slots=True)
class _Block:
    """Members that are packed together; ``folder`` is py7zr's word for it, and its object."""

    folder: Any
    start: int
    packed_bytes: int
    members: list[_Packed]


def list_seven_zip(
    root: Path, container: str, password: str | None, caps: Caps
) -> Iterator[Member]:
    """Members in the archive's order. Raises DamagedArchiveError before the first, or never."""
    with _opened(root, container, password) as (archive, _):
        total = sum(item.uncompressed or 0 for item in archive.files)
        if total > caps.max_archive_bytes:
            raise too_many_bytes(container, caps)
        for item in archive.files:
            if item.is_directory:
                yield from listed_folder(item.filename, caps)
            else:
                # modes of 0 are written by tools that know none
                regular = item.is_file or item.st_fmt == 0
                yield checked_member(item.filename, item.uncompressed or 0, regular, caps)


def read_seven_zip(
    root: Path,
    container: str,
    wanted: set[str],
    password: str | None,
    caps: Caps,
    consume: Callable[[str, bytes], None],
) -> None:
    """``consume(name, content)`` for wanted members whose checksum holds, block after block.

    A damaged block does not keep the others from being read; DamagedArchiveError comes at the end.
    """
    with _opened(root, container, password) as (archive, source):
        try:
            empty, blocks = _blocks(archive)
        except _ERRORS as error:
            raise DamagedArchiveError(container, reason_of(error)) from None
        reader = _Reader(source, container, set(wanted), caps, consume)
        for name in empty:
            reader.hand_on(name, b"")
        for block in blocks:
            if not reader.wanted.isdisjoint(member.name for member in block.members):
                reader.read(block)
        if not reader.problems:
            return
        if not reader.passed and any(_AES in _coders(block.folder) for block in blocks):
            # a member that held its checksum was decrypted with the right password
            reason = f"wrong password, or damaged ({reader.problems[0][1]})"
            raise WrongPasswordError(container, reason)
        raise damaged_members(container, reader.problems)


@contextmanager
def _opened(
    root: Path, container: str, password: str | None
) -> Iterator[tuple[py7zr.SevenZipFile, Source]]:
    with Source(root / container, container) as source:
        try:
            archive = py7zr.SevenZipFile(source, "r", password=password)
            folders = _folders(archive)
            encrypted = any(_AES in _coders(folder) for folder in folders)
            if any((item.uncompressed or 0) < 0 for item in archive.files):
                raise ValueError("a member of less than no bytes")
            unread = next(filter(None, map(_why_not, folders)), "")
        except py7zr.exceptions.PasswordRequired:
            raise WrongPasswordError(container, "encrypted, and no password is set") from None
        except _ERRORS as error:
            if password is not None:
                reason = f"wrong password, or damaged ({reason_of(error)})"
                raise WrongPasswordError(container, reason) from None
            raise DamagedArchiveError(container, reason_of(error)) from None
        if unread:
            raise DamagedArchiveError(container, unread)
        if encrypted and password is None:
            raise WrongPasswordError(container, "encrypted, and no password is set")
        yield archive, source


def _folders(archive: py7zr.SevenZipFile) -> list[Any]:
    streams = archive.header.main_streams
    return list(streams.unpackinfo.folders) if streams is not None else []


def _coders(folder: Any) -> list[bytes]:
    return [coder["method"] for coder in folder.coders]


def _why_not(folder: Any) -> str:
    """Why a block cannot be unpacked in bounded memory; empty where it can."""
    known = ", ".join(_METHODS.values())
    for coder in folder.coders:
        method, properties = coder["method"], coder["properties"]
        if method not in _METHODS or coder["numinstreams"] != 1 or coder["numoutstreams"] != 1:
            return f"packed with method {method.hex()}, read are {known}: pack it anew with LZMA2"
        dictionary = 0
        if method == _LZMA:
            dictionary = struct.unpack("<I", properties[1:5])[0]
        elif method == _LZMA2:
            dictionary = (2 | properties[0] & 1) << (properties[0] // 2 + 11)
        if dictionary > MAX_DICTIONARY_BYTES:
            return (
                f"a dictionary of {dictionary >> 20} MiB, {MAX_DICTIONARY_BYTES >> 20} are read: "
                "pack it anew with a smaller one"
            )
    return ""


def _blocks(archive: py7zr.SevenZipFile) -> tuple[list[str], list[_Block]]:
    """Names of members without content, and the blocks of all others in the archive's order."""
    folders = _folders(archive)
    empty: list[str] = []
    members: dict[int, list[_Packed]] = {id(folder): [] for folder in folders}
    for item in archive.files:
        if item.folder is not None:
            packed = _Packed(item.filename, item.uncompressed, item.crc32)
            members[id(item.folder)].append(packed)
        elif not item.is_directory:
            empty.append(item.filename)
    if not folders:
        return empty, []
    packed_sizes = archive.header.main_streams.packinfo.packsizes
    start = archive.afterheader + archive.header.main_streams.packinfo.packpos
    blocks = []
    for folder, packed_bytes in zip(folders, packed_sizes, strict=True):
        blocks.append(_Block(folder, start, packed_bytes, members[id(folder)]))
        start += packed_bytes
    return empty, blocks


class _Reader:
    """Hands on wanted members of one block after another, and notes what could not be read."""

    def __init__(
        self,
        source: Source,
        container: str,
        wanted: set[str],
        caps: Caps,
        consume: Callable[[str, bytes], None],
    ) -> None:
        self.wanted = wanted
        """Members that have not come by yet."""
        self.passed = 0
        """Members whose checksum held."""
        self.problems: list[tuple[str, str]] = []
        self._source, self._container, self._caps = source, container, caps
        self._consume = consume
        self._unpacked_bytes = 0

    def hand_on(self, name: str, content: bytes) -> None:
        if name in self.wanted:
            self.wanted.remove(name)  # a second of the same name was refused by ingest
            self._source.check_unchanged()
            self._consume(name, content)

    def read(self, block: _Block) -> None:
        """Unpack one block up to its last wanted member."""
        last = max(i for i, member in enumerate(block.members) if member.name in self.wanted)
        pieces = self._pieces(block)
        rest = memoryview(b"")
        for number, member in enumerate(block.members[: last + 1]):
            kept = member.name in self.wanted and member.bytes <= self._caps.max_frame_bytes
            content = bytearray()
            checksum, left = 0, member.bytes
            try:
                while left:
                    rest = rest or memoryview(next(pieces))
                    part, rest = rest[:left], rest[left:]
                    checksum = zlib.crc32(part, checksum)
                    left -= len(part)
                    if kept:
                        content += part
            except _ERRORS as error:
                lost = sum(other.name in self.wanted for other in block.members[number:])
                self.problems += [(member.name, reason_of(error))] * lost
                return
            if member.crc32 is not None and checksum != member.crc32:
                self.problems.append((member.name, "its checksum does not match"))
                self.wanted.discard(member.name)
                continue
            self.passed += member.bytes > 0
            if kept:
                self.hand_on(member.name, bytes(content))

    def _pieces(self, block: _Block) -> Iterator[bytes]:
        """What a block unpacks to, in pieces; raises one of _ERRORS where it does not go on."""
        self._source.seek(block.start)
        feed = _Feed(self._source, block.packed_bytes)
        decoder = block.folder.get_decompressor(block.packed_bytes)
        left = sum(member.bytes for member in block.members)
        while left:
            asked = min(PIECE_BYTES, left)
            piece = decoder.decompress(feed, asked)
            if not piece and not feed.more:
                raise EOFError("the packed data ends too early")
            # a decoder that gave all it was asked for may hold more: feeding it would pile up
            feed.paused = len(piece) == asked
            left -= len(piece)
            self._unpacked_bytes += len(piece)
            if self._unpacked_bytes > self._caps.max_archive_bytes:
                raise too_many_bytes(self._container, self._caps)
            if piece:
                yield piece


class _Feed:
    """The packed bytes of one block, as much at a time as its decoder can use."""

    def __init__(self, source: Source, left: int) -> None:
        self._source, self._left = source, left
        self.paused = False
        self.more = left > 0

    def read(self, size: int) -> bytes:
        if self.paused:
            self.paused = False
            return b""
        data = self._source.read(min(size, _FEED_BYTES, self._left))
        self._left -= len(data)
        self.more = bool(data) and self._left > 0
        return data
