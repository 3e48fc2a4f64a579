"""Entries of a tar, read once as a stream, whatever the stream comes out of."""

import gzip
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Self, cast

from pipeline.members import (
    Caps,
    DamagedArchiveError,
    Member,
    Source,
    checked_member,
    listed_folder,
    reason_of,
    too_many_bytes,
)
from pipeline.zips import ZIP_ERRORS, open_in_zip

HEADER_BYTES = 2**16
"""What may stand before an entry: long names and attributes need a few kB."""

_BUFFER_BYTES = tarfile.RECORDSIZE
_ERRORS = (tarfile.TarError, AttributeError, IndexError, *ZIP_ERRORS)
_CHECKSUM_ERRORS = (zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)


def list_tar(root: Path, container: str, password: str | None, caps: Caps) -> Iterator[Member]:
    """Entries in the tar's order; DamagedArchiveError where it cannot be read on."""
    with _opened(root, container, password, caps) as stream:
        for entry, _ in _entries(container, stream, caps, set()):
            if entry.isdir():
                yield from listed_folder(entry.name, caps)
                continue
            regular = entry.isreg() and not entry.issparse()
            yield checked_member(entry.name, entry.size, regular, caps)


def read_tar(
    root: Path,
    container: str,
    wanted: set[str],
    password: str | None,
    caps: Caps,
    consume: Callable[[str, bytes], None],
) -> None:
    """``consume(name, content)`` for wanted entries, in the tar's order.

    A plain tar has no checksum over contents; one in a zip or gzip has it at its end, and a
    DamagedArchiveError that is ``suspect`` where it does not match.
    """
    with _opened(root, container, password, caps) as stream:
        for entry, content in _entries(container, stream, caps, set(wanted)):
            if content is not None:
                consume(entry.name, content)


class _Stream:
    """What tarfile reads from: bounded, watched for changes, and honest about its end."""

    def __init__(self, file: IO[bytes], source: Source, container: str, caps: Caps) -> None:
        self._file, self._source = file, source
        self._container, self._caps = container, caps
        self._position = 0
        self._allowed = 0
        self._ended = self._resting = self._cut = self._mismatched = False

    def read(self, size: int) -> bytes:
        """Raises ReadError past what ``allow`` allowed, TooLargeError past the cap."""
        if self._position > self._allowed and not self._resting:
            raise tarfile.ReadError(f"more than {HEADER_BYTES} bytes of headers before an entry")
        data = self._next(size)
        if not data:
            if self._ended and not self._resting:
                # tarfile would skip what is not there, for as long as a header says
                raise tarfile.ReadError("the tar ends too early")
            self._ended = True
        return data

    def allow(self, position: int) -> None:
        """Reading may go on up to here, and a buffer further."""
        self._allowed = position + _BUFFER_BYTES

    def check_rest(self, read: Callable[[int], bytes]) -> None:
        """After a tar's end follow zeros only, and then the end of what it lies in."""
        self._resting = True
        while data := read(_BUFFER_BYTES):
            if data.count(0) != len(data):
                raise tarfile.ReadError("something follows the tar's end")
        self.check_unchanged()

    def failed_checksum(self) -> bool:
        """Whether a checksum over the whole tar fails, be it only at the end of reading on."""
        if self._file is self._source:
            return False
        cut_before = self._cut
        try:
            while not (self._cut or self._mismatched) and self._next():
                pass
        except (*_CHECKSUM_ERRORS, EOFError, OSError):
            pass
        # a gzip that was cut is good up to there, but not one in which something else came first
        cut_only = cut_before and isinstance(self._file, gzip.GzipFile)
        return self._mismatched or (self._cut and not cut_only)

    def check_unchanged(self) -> None:
        self._source.check_unchanged()

    def _next(self, size: int = _BUFFER_BYTES) -> bytes:
        try:
            data = self._file.read(size)
        except _CHECKSUM_ERRORS:
            self._mismatched = True
            raise
        except EOFError:
            self._cut = True
            raise
        self._position += len(data)
        if self._position > self._caps.max_archive_bytes:
            raise too_many_bytes(self._container, self._caps)
        return data


class _Entry(tarfile.TarInfo):
    """An entry whose header must be whole: tarfile takes a cut or damaged one for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            entry = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # a block of zeros is how a tar ends
            raise tarfile.ReadError(f"{error}, where an entry or the end was expected") from None
        if entry.size < 0:
            raise tarfile.ReadError(f"an entry of {entry.size} bytes")
        return entry


@contextmanager
def _opened(root: Path, container: str, password: str | None, caps: Caps) -> Iterator[_Stream]:
    """The tar's bytes, out of a file, a gzip, a zip, or a gzip in a zip."""
    with ExitStack() as stack:
        outer = _outer_zip(root, container)
        if outer is not None:
            opened = open_in_zip(root, *outer, container, password)
            file, source = stack.enter_context(opened)
        else:
            source = stack.enter_context(Source(root / container, container))
            file = source
        if container.lower().endswith((".gz", ".tgz")):
            file = stack.enter_context(cast(IO[bytes], gzip.GzipFile(fileobj=file, mode="rb")))
        yield _Stream(file, source, container, caps)


def _outer_zip(root: Path, container: str) -> tuple[str, str] | None:
    """A zip and the name inside it, where ``container`` is a tar in a zip; a folder is none."""
    for match in re.finditer(r"\.zip/", container, re.IGNORECASE):
        archive = container[: match.end() - 1]
        if not (root / archive).is_dir():
            return archive, container[match.end() :]
    return None


def _entries(
    container: str, stream: _Stream, caps: Caps, wanted: set[str]
) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Everything, with the content of each wanted one (the first of its name)."""
    try:
        stream.allow(HEADER_BYTES)
        # typeshed asks for more of a stream than tarfile does
        file = cast(IO[bytes], stream)
        with tarfile.open(fileobj=file, mode="r|", tarinfo=_Entry) as tar:
            entry = tar.next()
            if entry is None:
                raise DamagedArchiveError(container, "an empty tar")
            while entry is not None:
                content = None
                stream.allow(tar.offset)
                if entry.name in wanted and entry.isreg() and not entry.issparse():
                    wanted.remove(entry.name)
                    content = _content(tar, entry, caps)
                    stream.check_unchanged()
                yield entry, content
                # keep no list of past entries, nor the headers that hold for all that follow
                tar.members = []  # type: ignore[attr-defined]
                tar.pax_headers = {}
                stream.allow(tar.offset + HEADER_BYTES)
                entry = tar.next()
            stream.check_rest(tar.fileobj.read)
    except _ERRORS as error:
        reason = reason_of(error)
        raise DamagedArchiveError(container, reason, stream.failed_checksum()) from None


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo, caps: Caps) -> bytes | None:
    if entry.size > caps.max_frame_bytes:
        return None  # larger than when it was listed
    stream = tar.extractfile(entry)
    content = stream.read() if stream is not None else b""
    if len(content) != entry.size:
        raise tarfile.ReadError(f"{entry.name}: {len(content)} of {entry.size} bytes")
    return content
