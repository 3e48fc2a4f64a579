"""Members of release archives and folders, listed and streamed without extracting to disk.

A container is named by its path below the release's root: a ``.7z``, a folder that holds frames,
or a tar inside a zip, written ``train001-500.zip/001.tar``. Nothing here follows a link, trusts a
name, or writes.
"""

import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import py7zr
import py7zr.exceptions
from py7zr.io import Py7zIO, WriterFactory

MAX_MEMBER_BYTES = 64 * 2**20
"""A frame of OUMVLP is about 8 kB; whatever is larger than this is no frame."""

# py7zr parses headers without checking them first: a damaged one surfaces as any of these
_SEVEN_ZIP_ERRORS = (
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
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)
_TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, *_ZIP_ERRORS)


class DamagedArchiveError(Exception):
    """A container that cannot be read on; ``reason`` is one line for people."""

    def __init__(self, container: str, reason: str) -> None:
        super().__init__(container, reason)  # plain arguments travel between processes
        self.container, self.reason = container, reason

    def __str__(self) -> str:
        return f"{self.container}: {self.reason}"


class WrongPasswordError(DamagedArchiveError):
    """The archive is encrypted, and the password is missing or not its own."""


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file inside a container (or one refused entry: then ``refusal`` says why)."""

    name: str
    bytes: int
    refusal: str = ""


def list_members(root: Path, container: str, password: str | None) -> Iterator[Member]:
    """What a container holds, in its own order; directories are left out.

    Raises DamagedArchiveError where the list ends too early; what came before it is good.
    """
    if container.endswith(".7z"):
        with _seven_zip(root, container, password) as archive:
            for item in archive.files:
                if not item.is_directory:
                    regular = not (item.is_symlink or item.is_junction or item.is_socket)
                    yield _member(item.filename, item.uncompressed or 0, regular)
    elif container.endswith(".tar"):
        with _inner_tar(root, container, password) as tar:
            for entry in _tar_entries(tar, container):
                if not entry.isdir():
                    yield _member(entry.name, entry.size, entry.isreg() and not entry.issparse())
    else:
        with os.scandir(root / container) as entries:
            for file in sorted(entries, key=lambda entry: entry.name):
                if not file.is_dir(follow_symlinks=False):
                    regular = file.is_file(follow_symlinks=False)
                    yield _member(file.name, file.stat(follow_symlinks=False).st_size, regular)


def read_members(
    root: Path,
    container: str,
    wanted: Collection[str],
    password: str | None,
    consume: Callable[[str, bytes], None],
) -> None:
    """Hand every wanted member's bytes to ``consume(name, content)``, in the container's order.

    Each archive is read once, front to back. Raises DamagedArchiveError where reading cannot go on;
    what was consumed before it passed the archive's own checks.
    """

    def hand_on(name: str, content: bytes) -> None:
        try:
            consume(name, content)
        except Exception as error:
            raise _ConsumerError(error) from error

    try:
        if container.endswith(".7z"):
            _read_seven_zip(root, container, wanted, password, hand_on)
        elif container.endswith(".tar"):
            with _inner_tar(root, container, password) as tar:
                for entry in _tar_entries(tar, container):
                    if entry.name in wanted and entry.isreg():
                        hand_on(entry.name, _tar_content(tar, entry, container))
        else:
            for name in sorted(wanted):
                hand_on(name, _file_content(root, container, name))
    except _ConsumerError as carrier:
        raise carrier.error from None


def inner_tars(root: Path, archive: str) -> tuple[list[str], list[Member]]:
    """Containers inside a zip of tars, and the zip's other members (refused)."""
    try:
        with zipfile.ZipFile(root / archive) as outer:
            entries = [entry for entry in outer.infolist() if not entry.is_dir()]
    except _ZIP_ERRORS as error:
        raise DamagedArchiveError(archive, _reason(error)) from None
    tars = [f"{archive}/{e.filename}" for e in entries if e.filename.endswith(".tar")]
    others = [
        Member(e.filename, e.file_size, "not a tar of one subject")
        for e in entries
        if not e.filename.endswith(".tar")
    ]
    return sorted(tars), others


def _member(name: str, size: int, regular: bool) -> Member:
    parts = name.replace("\\", "/").split("/")
    if not regular:
        return Member(name, size, "a link or a device, not a file")
    if name.startswith("/") or ".." in parts:
        return Member(name, size, "a name that points outside the archive")
    if size > MAX_MEMBER_BYTES:
        return Member(name, size, f"larger than {MAX_MEMBER_BYTES >> 20} MiB")
    return Member(name, size)


@contextmanager
def _seven_zip(root: Path, container: str, password: str | None) -> Iterator[py7zr.SevenZipFile]:
    # an open file instead of a path keeps py7zr from spreading one archive over threads
    try:
        file = (root / container).open("rb")
    except OSError as error:
        raise DamagedArchiveError(container, _reason(error)) from None
    with file:
        try:
            archive = py7zr.SevenZipFile(file, "r", password=password)
        except py7zr.exceptions.PasswordRequired:
            raise WrongPasswordError(container, "encrypted, and no password is set") from None
        except _SEVEN_ZIP_ERRORS as error:
            raise _seven_zip_error(container, error, password) from None
        if archive.needs_password() and password is None:
            raise WrongPasswordError(container, "encrypted, and no password is set")
        try:
            yield archive
        finally:
            archive.close()


class _Frame(Py7zIO):
    """Collects one member; py7zr writes it piece by piece."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.content = bytearray()

    def write(self, s: bytes | bytearray) -> int:
        self.content += s
        return len(s)

    def read(self, size: int | None = None) -> bytes:
        return bytes(self.content if size is None else self.content[:size])

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def flush(self) -> None:
        pass

    def size(self) -> int:
        return len(self.content)


class _Frames(WriterFactory):
    """Hands a member on once the next one begins, that is after its checksum was compared."""

    def __init__(self, consume: Callable[[str, bytes], None]) -> None:
        self._consume = consume
        self._last: _Frame | None = None
        self.passed = 0
        """Members that were handed on."""

    def create(self, filename: str) -> Py7zIO:
        self.finish()
        self._last = _Frame(filename)
        return self._last

    def finish(self) -> None:
        if self._last is not None:
            self._consume(self._last.name, bytes(self._last.content))
            self._last = None
            self.passed += 1


class _ConsumerError(Exception):
    """Carries an error of ``consume`` past the handlers that mend the archive's own errors."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _read_seven_zip(
    root: Path,
    container: str,
    wanted: Collection[str],
    password: str | None,
    consume: Callable[[str, bytes], None],
) -> None:
    frames = _Frames(consume)
    try:
        with _seven_zip(root, container, password) as archive:
            archive.extract(targets=set(wanted), factory=frames)
        frames.finish()
    except _SEVEN_ZIP_ERRORS as error:
        # a member that passed its checksum was decrypted with the right password
        raise _seven_zip_error(container, error, None if frames.passed else password) from None


def _seven_zip_error(container: str, error: Exception, password: str | None) -> DamagedArchiveError:
    if password is not None:
        return WrongPasswordError(container, f"wrong password, or damaged ({_reason(error)})")
    return DamagedArchiveError(container, _reason(error))


class _Entry(tarfile.TarInfo):
    """An entry whose header must be whole: tarfile takes a cut or damaged one for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # a block of zeros is how a tar ends
            raise tarfile.ReadError(f"{error}, where an entry or the end was expected") from None


@contextmanager
def _inner_tar(root: Path, container: str, password: str | None) -> Iterator[tarfile.TarFile]:
    archive, _, name = container.partition(".zip/")
    try:
        with (
            zipfile.ZipFile(root / f"{archive}.zip") as outer,
            outer.open(name, pwd=password.encode() if password else None) as stream,
            tarfile.open(fileobj=stream, mode="r|", tarinfo=_Entry) as tar,
        ):
            yield tar
    except KeyError:
        raise DamagedArchiveError(container, "no such member in the zip") from None
    except _TAR_ERRORS as error:
        # zipfile says so with a RuntimeError of its own
        if isinstance(error, RuntimeError) and "password" in str(error):
            raise WrongPasswordError(container, _reason(error)) from None
        raise DamagedArchiveError(container, _reason(error)) from None


def _tar_entries(tar: tarfile.TarFile, container: str) -> Iterator[tarfile.TarInfo]:
    """Entries of a tar, which must hold at least one; see _Entry for one that is cut."""
    ended_well = False
    while (entry := tar.next()) is not None:
        yield entry
        # a stream needs no list of what went by
        tar.members = []  # type: ignore[attr-defined]
        ended_well = True
    if not ended_well:
        raise DamagedArchiveError(container, "an empty tar")


def _file_content(root: Path, container: str, name: str) -> bytes:
    try:
        return (root / container / name).read_bytes()
    except OSError as error:
        raise DamagedArchiveError(container, f"{name}: {error.strerror}") from None


def _tar_content(tar: tarfile.TarFile, entry: tarfile.TarInfo, container: str) -> bytes:
    stream = tar.extractfile(entry)
    content = stream.read() if stream is not None else b""
    if len(content) != entry.size:
        raise DamagedArchiveError(
            container, f"{entry.name}: {len(content)} of {entry.size} bytes, then the tar ends"
        )
    return content


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or "unreadable"
    return f"{type(error).__name__}: {text}"
