"""What the readers of all containers share: members, caps, errors and the file they read from."""

import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_LIST_BYTES = 48 * 2**20
"""Tables of contents are held in memory whole: 250 000 frames of OUMVLP need about 25 MiB."""

MAX_NAME = 4096
_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_OUTSIDE = re.compile(r"[/\\]|[A-Za-z]:|(?:.*[/\\])?\.\.(?:[/\\]|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Caps:
    """How much one archive may make us read; see the settings' section ``ingest``."""

    max_frame_bytes: int = 64 * 2**20
    max_archive_bytes: int = 2**40
    max_members: int = 20_000_000
    max_pixels: int = 2**26


class DamagedArchiveError(Exception):
    """A container that cannot be read on; ``reason`` is one line for people.

    ``suspect``: a checksum over the whole container failed, so that what it gave before may be
    wrong as well, and nobody can tell where.
    """

    def __init__(self, container: str, reason: str, suspect: bool = False) -> None:
        super().__init__(container, reason, suspect)  # plain arguments travel between processes
        self.container, self.reason, self.suspect = container, reason, suspect

    def __str__(self) -> str:
        return f"{self.container}: {self.reason}"


class WrongPasswordError(DamagedArchiveError):
    """The archive is encrypted, and the password is missing or not its own."""


class TooLargeError(DamagedArchiveError):
    """The archive goes past a cap; ``reason`` names the setting that raises it."""


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file inside a container (or one refused entry: then ``refusal`` says why).

    Archives list their folders, too, as members with ``folder``: an empty one may matter.
    """

    name: str
    bytes: int
    refusal: str = ""
    folder: bool = False


def checked_member(name: str, size: int, regular: bool, caps: Caps) -> Member:
    """A member with the reason for which its name, kind or size is refused, if there is one.

    The name of a refused one is safe to print and to write as UTF-8.
    """
    if len(name) > MAX_NAME:
        return Member(f"{escaped(name[:80])}...", size, "a name of more than 4096 characters")
    if _NOT_TEXT.search(name):
        return Member(escaped(name), size, "a name that is not text (UTF-8)")
    if not regular:
        return Member(name, size, "a link or a device, not a file")
    if _OUTSIDE.match(name):
        return Member(name, size, "a name that points outside the archive")
    if size > caps.max_frame_bytes:
        return Member(name, size, f"larger than ingest.max_frame_bytes = {caps.max_frame_bytes}")
    return Member(name, size)


def escaped(name: str) -> str:
    r"""``name`` with control characters and bytes that are no UTF-8 as ``\x..``."""
    return _NOT_TEXT.sub(_escape_of, name)


def _escape_of(match: re.Match[str]) -> str:
    code = ord(match[0])
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code  # how Python keeps such a byte
    return f"\\x{byte:02x}" if byte < 0x100 else f"\\u{byte:04x}"


def listed_folder(name: str, caps: Caps) -> Iterator[Member]:
    """A folder as a member, unless its name is refused."""
    if not checked_member(name, 0, True, caps).refusal:
        yield Member(name.rstrip("/"), 0, folder=True)


class Source(io.BufferedReader):
    """An archive's file. No read takes more memory than a table of contents may need.

    Raises DamagedArchiveError where ``path`` is no regular file that can be read, TooLargeError
    where more is asked for at once; both name ``container``.
    """

    def __init__(self, path: Path, container: str) -> None:
        self._container = container
        super().__init__(io.FileIO(open_regular(path, container), "rb"))
        self._state = self._seen_now()

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = max(0, self._state[0] - self.tell())
        if size > MAX_LIST_BYTES:
            raise TooLargeError(
                self._container,
                f"its table of contents is larger than {MAX_LIST_BYTES >> 20} MiB: divide it into "
                "smaller archives",
            )
        return super().read(size)

    def check_unchanged(self) -> None:
        """DamagedArchiveError once the file is not the one that was opened."""
        if self._seen_now() != self._state:
            raise DamagedArchiveError(self._container, "changed while it was being read")

    def _seen_now(self) -> tuple[int, int]:
        now = os.fstat(self.fileno())
        return now.st_size, now.st_mtime_ns


def open_regular(path: Path, container: str, follow: bool = True) -> int:
    """A descriptor to read ``path`` from; DamagedArchiveError unless it is a regular file."""
    # a pipe under an archive's name must not keep us waiting
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        raise DamagedArchiveError(container, error.strerror or "unreadable") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedArchiveError(container, "not a file")
    return descriptor


def too_many_bytes(container: str, caps: Caps) -> TooLargeError:
    return TooLargeError(
        container,
        f"more than {caps.max_archive_bytes} bytes when unpacked; if it is to be trusted, raise "
        "ingest.max_archive_bytes",
    )


def damaged_members(container: str, problems: list[tuple[str, str]]) -> DamagedArchiveError:
    """The error for members that could not be read while others could; [(name, reason), ...]."""
    name, reason = problems[0]
    more = f", and {len(problems) - 1} more member(s)" if len(problems) > 1 else ""
    return DamagedArchiveError(container, f"{name}: {reason}{more}")


def reason_of(error: Exception) -> str:
    """One line on what a library complained of."""
    text = escaped(" ".join(str(error).split())) or "unreadable"
    return f"{type(error).__name__}: {text[:300]}"
