"""Small archives and stores, made on the spot."""

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import py7zr
import pytest

from pipeline import shard_plan
from pipeline.releases import PASSWORD_VARIABLES
from pipeline.silhouette_store import (
    INDEX,
    Silhouettes,
    SilhouetteStore,
    compress,
    write_shard,
)
from pipeline.tables import write_table

STORED = [{"id": py7zr.FILTER_COPY}]

Row = tuple[str, str, str, str, Silhouettes]


@pytest.fixture(autouse=True)
def _no_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in PASSWORD_VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="session")
def write_7z() -> Callable[..., None]:
    """``write_7z(path, {name: content}, password=..., hide_names=..., stored=...)``"""

    def write(
        path: Path,
        members: dict[str, bytes],
        password: str | None = None,
        hide_names: bool = False,
        stored: bool = False,
    ) -> None:
        options: dict[str, Any] = {"password": password, "header_encryption": hide_names}
        if stored:  # members can be found, and spoilt, in the file
            options["filters"] = STORED
        path.parent.mkdir(parents=True, exist_ok=True)
        with py7zr.SevenZipFile(path, "w", **options) as archive:
            for name, content in members.items():
                archive.writestr(content, name)

    return write


@pytest.fixture(scope="session")
def tar_of() -> Callable[[dict[str, bytes]], bytes]:
    """``tar_of({name: content})``: a tar's bytes."""

    def tar(members: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    return tar


@pytest.fixture(scope="session")
def write_zip() -> Callable[[Path, dict[str, bytes]], None]:
    """``write_zip(path, {name: content})``"""

    def write(path: Path, members: dict[str, bytes]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return write


@pytest.fixture(scope="session")
def write_encrypted_zip() -> Callable[[Path, dict[str, bytes], str], None]:
    """``write_encrypted_zip(path, {name: content}, password)``

    Stored members under PKZIP's own encryption, which Python's zipfile reads, but does not write.
    """

    def sealed(content: bytes, password: bytes) -> bytes:
        keys = [0x12345678, 0x23456789, 0x34567890]

        def crc(value: int, byte: int) -> int:
            return zlib.crc32(bytes([byte]), value ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

        def update(byte: int) -> None:
            keys[0] = crc(keys[0], byte)
            keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
            keys[2] = crc(keys[2], keys[1] >> 24)

        for byte in password:
            update(byte)
        out = bytearray()
        for byte in bytes(11) + bytes([zlib.crc32(content) >> 24]) + content:
            seed = keys[2] | 2
            out.append(byte ^ ((seed * (seed ^ 1) >> 8) & 0xFF))
            update(byte)
        return bytes(out)

    def write(path: Path, members: dict[str, bytes], password: str) -> None:
        data, table = b"", b""
        for name, content in members.items():
            body = sealed(content, password.encode())
            sizes = zlib.crc32(content), len(body), len(content), len(name), 0
            table += struct.pack(
                "<4s6H3I5H2I", b"PK\1\2", 20, 20, 1, 0, 0, 33, *sizes, 0, 0, 0, 0, len(data)
            )
            table += name.encode()
            data += struct.pack("<4s5H3I2H", b"PK\3\4", 20, 1, 0, 0, 33, *sizes)
            data += name.encode() + body
        n = len(members)
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, n, n, len(table), len(data), 0)
        path.write_bytes(data + table + end)

    return write


@pytest.fixture(scope="session")
def write_tree() -> Callable[[Path, dict[str, bytes]], None]:
    """``write_tree(root, {path below it: content})``"""

    def write(root: Path, files: dict[str, bytes]) -> None:
        root.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return write


@pytest.fixture(scope="session")
def write_store() -> Callable[[Path, list[Row]], SilhouetteStore]:
    """``write_store(folder, [(subject, sequence, view, split, silhouettes), ...])``"""

    def write(folder: Path, rows: list[Row]) -> SilhouetteStore:
        folder.mkdir(parents=True, exist_ok=True)
        stored = [compress(*row[:3], row[4]) for row in rows]
        write_shard(folder / "shard-00000.arrow", stored)
        index = [
            {
                "dataset": "oumvlp",
                "subject": item.subject,
                "sequence": item.sequence,
                "view": item.view,
                "split": row[3],
                "n_frames": item.n_frames,
                "shard": "shard-00000.arrow",
                "row": number,
                "crc32": item.crc32,
            }
            for number, (item, row) in enumerate(zip(stored, rows, strict=True))
        ]
        write_table(folder / "index.parquet", pd.DataFrame(index), INDEX)
        return SilhouetteStore(folder)

    return write


@pytest.fixture(scope="session")
def noise() -> Callable[[int, int], Silhouettes]:
    """``noise(seed, n_frames)``: uint8 [n_frames, 64, 44]."""

    def frames(seed: int, n_frames: int) -> Silhouettes:
        shape = (n_frames, 64, 44)
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    return frames


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_plan, "SHARD_FRAMES", 20)
