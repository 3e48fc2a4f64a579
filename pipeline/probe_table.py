"""How each probe of a report fares: what its figures are made of, and reports are compared by.

``<report>/tables/probes.parquet``
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from pipeline.protocols import Protocol
from pipeline.tables import KEY, read_table, write_table

PROBES = pa.schema(
    [
        ("protocol", pa.string()),
        ("condition", pa.string()),
        ("subject", pa.string()),
        ("sequence", pa.string()),
        ("view", pa.string()),
        # rank of the first right entry in the gallery of each view, or in the one gallery of all
        # views, from 1; 0: no right entry there, -1: no gallery there
        ("ranks", pa.list_(pa.int32())),
        # what follows is null where each view is a gallery; these two and right_distance also
        # where there is no right entry
        ("average_precision", pa.float64()),
        ("inverse_negative_penalty", pa.float64()),
        ("right_distance", pa.float32()),  # to the nearest right entry
        ("wrong_distance", pa.float32()),  # to the nearest wrong entry
        # for each right entry, the share of impostor pairs at most as far (of all probes of the
        # condition): the FAR at which it is accepted
        ("genuine_far", pa.list_(pa.float64())),
        # in the first row of each subject of a condition, for all of the subject's probes: impostor
        # pairs in steps of rising distance, the same for all of the condition's subjects
        ("impostors", pa.list_(pa.int32())),
    ],
    metadata={"gaitgl": "probes", "version": "2"},
)


@dataclass(frozen=True)
class Gallery:
    """What the probes of one protocol were compared with."""

    entries: int

    digest: str
    """SHA-256 of the entries' keys, in whatever order they came."""


@dataclass(frozen=True)
class Probes:
    """The probes of one protocol."""

    protocol: Protocol

    gallery: Gallery

    views: list[str]
    """Of galleries and probes, sorted: the order of a row's ranks where each is a gallery."""

    table: pd.DataFrame
    """Columns of PROBES, by condition as the protocol has them, then in the embeddings' order."""

    equal_error_rates: dict[str, float | None]
    """In % of each condition; None without genuine or without impostor pairs; empty where each view
    is a gallery."""

    def of(self, condition: str) -> pd.DataFrame:
        return self.table[self.table["condition"] == condition]


def gallery_of(keys: pd.DataFrame) -> Gallery:
    """Of a gallery's rows, with columns of KEY."""
    lines = sorted("\t".join(key) for key in keys[KEY].itertuples(index=False, name=None))
    return Gallery(len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest())


def write_probes(path: Path, probes: list[Probes]) -> None:
    """The tables of all protocols in one file, with the protocols themselves in its metadata."""
    described = [
        {
            "protocol": asdict(one.protocol),
            "gallery": asdict(one.gallery),
            "views": one.views,
            "equal_error_rates": one.equal_error_rates,
        }
        for one in probes
    ]
    metadata = {**PROBES.metadata, b"protocols": json.dumps(described, ensure_ascii=False).encode()}
    table = pd.concat([one.table for one in probes])
    write_table(path, table, PROBES.with_metadata(metadata))


def read_probes(path: Path) -> list[Probes]:
    """What ``write_probes`` wrote; PipelineError where it is missing or of another version."""
    table = read_table(path, PROBES)
    described: list[dict[str, Any]] = json.loads(pq.read_schema(path).metadata[b"protocols"])
    found = []
    for one in described:
        protocol = TypeAdapter(Protocol).validate_python(one["protocol"])
        rows = table[table["protocol"] == protocol.name].reset_index(drop=True)
        gallery = Gallery(**one["gallery"])
        found.append(Probes(protocol, gallery, one["views"], rows, one["equal_error_rates"]))
    return found
