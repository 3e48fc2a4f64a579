"""The catalogue: one row per sequence of a release, and a row for everything refused.

``<folder>/sequences.parquet``, ``<folder>/refusals.parquet`` and ``<folder>/release.json``; no
pixels are copied.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.files import write_json
from pipeline.tables import KEY, read_table, write_table

VERSION = "1"

DAMAGED = "the archive is damaged"
"""Reason of a refusal: the reading of an archive went wrong."""

SEQUENCES = pa.schema(
    [
        ("dataset", pa.string()),
        ("subject", pa.string()),
        ("sequence", pa.string()),
        ("view", pa.string()),
        ("split", pa.string()),  # train, val or test
        ("container", pa.string()),  # below the root; see pipeline.archives
        ("folder", pa.string()),  # path of the frames inside the container
        ("frames", pa.list_(pa.string())),  # their names, in the order they were taken
        ("n_frames", pa.int32()),
        ("bytes", pa.int64()),  # of the encoded pictures
    ],
    metadata={"gaitgl": "catalogue", "version": VERSION},
)

REFUSALS = pa.schema(
    [
        ("dataset", pa.string()),
        ("subject", pa.string()),  # empty where no key could be read
        ("sequence", pa.string()),
        ("view", pa.string()),
        ("container", pa.string()),
        ("member", pa.string()),  # empty: the whole container
        ("frames", pa.int32()),  # how many frames this row refuses; 0: their number is unknown
        ("reason", pa.string()),
        ("detail", pa.string()),
    ],
    metadata={"gaitgl": "refusals", "version": VERSION},
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Frames that go no further; ``frames`` counts them, 0 where their number is unknown."""

    container: str
    member: str
    reason: str
    detail: str = ""
    frames: int = 1
    subject: str = ""
    sequence: str = ""
    view: str = ""


@dataclass(frozen=True)
class Release:
    """What was found as a whole; the content of release.json."""

    layout: str
    containers: int
    files_seen: int
    """Frames catalogued and files refused."""

    expected: dict[str, int]
    """Those of pipeline.layouts.layout.Layout."""


def write_catalogue(
    folder: Path, sequences: pd.DataFrame, refusals: pd.DataFrame, release: Release
) -> None:
    """Write both tables, with the schemas' column order and types, and release.json."""
    write_table(folder / "sequences.parquet", sequences, SEQUENCES)
    write_table(folder / "refusals.parquet", refusals, REFUSALS)
    write_json(folder / "release.json", asdict(release))


def read_sequences(folder: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """The catalogue's rows, sorted by key; ``columns``: only these."""
    return read_table(folder / "sequences.parquet", SEQUENCES, columns)


def read_refusals(folder: Path) -> pd.DataFrame:
    """What ingest or normalize refused on the way to ``folder``, sorted by container."""
    return read_table(folder / "refusals.parquet", REFUSALS)


def read_release(folder: Path) -> Release:
    """What ingest found as a whole."""
    path = folder / "release.json"
    try:
        return Release(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise PipelineError(
            f"{path} is missing or not what this version reads ({error}): "
            "`dvc repro` brings it back"
        ) from None


def refusal_table(dataset: str, refusals: Iterable[Refusal]) -> pd.DataFrame:
    """Refusals as a frame with REFUSALS' columns, sorted."""
    rows = [{"dataset": dataset, **asdict(refusal)} for refusal in refusals]
    table = pd.DataFrame(rows, columns=REFUSALS.names)
    return table.sort_values(["container", "member", *KEY, "reason"], ignore_index=True)


def by_reason(refusals: pd.DataFrame) -> str:
    """A line for people: how many frames were refused, and why."""
    counts = refusals.groupby("reason")["frames"].agg(["size", "sum"])
    parts = [f"{row['size']} × {reason} ({row['sum']} frames)" for reason, row in counts.iterrows()]
    return "; ".join(parts) or "none"
