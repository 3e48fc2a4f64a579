"""Writing so that a reader never meets half a file, and fingerprints of what was written."""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UMASK = os.umask(0o022)
"""What this process keeps from others in what it makes; it can be asked for by setting it alone."""
os.umask(UMASK)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill beside ``path``; flushed to the disk, it takes that name at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}-*"):
        shutil.rmtree(left)  # of a process that was killed
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        beside.chmod(0o777 & ~UMASK)  # mkdtemp's 0700 would keep colleagues out
        yield beside
        for part in [*beside.rglob("*"), beside]:
            _flush(part)
        if path.exists():
            shutil.rmtree(path)
        beside.rename(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``; flushed to the disk, it takes that name at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # several machines may write to the same shared folder: a process's number would not do
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield beside
        _flush(beside)
        beside.rename(path)
        _flush(path.parent)  # the name itself
    finally:
        beside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Return once a file's content, or a folder's list of names, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside, flush to the disk, rename."""
    with new_file(path) as beside:
        beside.write_bytes(content)


def write_json(path: Path, tree: Any) -> None:
    """Sorted keys and a newline at the end: the same tree gives the same bytes."""
    text = json.dumps(tree, indent=2, sort_keys=True, ensure_ascii=False)
    write_bytes(path, f"{text}\n".encode())


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(tree: Any) -> str:
    """Hexadecimal digest of anything that JSON can hold; key order does not matter."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
