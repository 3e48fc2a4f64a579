"""Roots of every layout, in every packing."""

import gzip
import io
import tarfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import py7zr
import pytest

from pipeline.catalogue import SEQUENCES
from pipeline.tables import KEY

Files = dict[str, bytes]
Pack = Callable[[Path, Files], None]

PACKINGS = ["tree", "deeper tree", "7z", "zip", "tar", "tar.gz", "zip of tars", "zip of tar.gz"]


@pytest.fixture(params=PACKINGS)
def pack(
    request: pytest.FixtureRequest,
    write_tree: Callable[[Path, Files], None],
    write_zip: Callable[[Path, Files], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Pack:
    """``pack(root, {path: content})``; a path that ends in / is an empty folder.

    Archives hold what has the first folder in common.
    """

    def tree(root: Path, files: Files) -> None:
        write_tree(root, {path: c for path, c in files.items() if not path.endswith("/")})
        for path in files:
            if path.endswith("/"):
                (root / path).mkdir(parents=True)

    def archives(root: Path, files: Files) -> None:
        parts: dict[str, Files] = defaultdict(dict)
        for path, content in files.items():
            parts[path.partition("/")[0]][path] = content
        root.mkdir(exist_ok=True)
        if request.param == "zip of tars":
            write_zip(root / "release.zip", {f"{n}.tar": _tar(part) for n, part in parts.items()})
            return
        if request.param == "zip of tar.gz":
            tars = {f"{name}.tar.gz": gzip.compress(_tar(part)) for name, part in parts.items()}
            write_zip(root / "release.zip", tars)
            return
        for name, part in parts.items():
            if request.param == "zip":
                write_zip(root / f"{name}.zip", part)
                continue
            if request.param == "tar":
                (root / f"{name}.TAR").write_bytes(_tar(part))
                continue
            if request.param == "tar.gz":
                (root / f"{name}.tar.gz").write_bytes(gzip.compress(_tar(part)))
                continue
            extracted = tmp_path_factory.mktemp("extracted")
            tree(extracted, part)
            with py7zr.SevenZipFile(root / f"{name}.7z", "w") as archive:
                archive.writeall(extracted, "")

    def pack(root: Path, files: Files) -> None:
        if request.param.endswith("tree"):
            tree(root / "deeper" / "still" if request.param == "deeper tree" else root, files)
        else:
            archives(root, files)

    return pack


def _tar(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def frame() -> Callable[[str], bytes]:
    """``frame(".png")``: a picture in which somebody stands."""

    def picture(suffix: str) -> bytes:
        grey = np.zeros((80, 60), np.uint8)
        cv2.ellipse(grey, (30, 40), (9, 34), 0, 0, 360, 255, -1)
        return cv2.imencode(suffix, grey)[1].tobytes()

    return picture


@pytest.fixture(scope="session")
def divided() -> Callable[[pd.DataFrame], dict[str, set[tuple[str, str, str]]]]:
    """``divided(sequences)``: the keys in each split."""

    def keys(sequences: pd.DataFrame) -> dict[str, set[tuple[str, str, str]]]:
        assert list(sequences.columns) == SEQUENCES.names
        return {
            str(split): set(rows[KEY].itertuples(index=False, name=None))
            for split, rows in sequences.groupby("split")
        }

    return keys
