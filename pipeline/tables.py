"""Parquet and Arrow files with a fixed schema: kind and version are in its metadata."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError

KEY = ["subject", "sequence", "view"]
"""What names a sequence within a dataset."""


def write_table(path: Path, table: pd.DataFrame, schema: pa.Schema) -> None:
    """Parquet with exactly the schema's columns."""
    arrow = pa.Table.from_pandas(table[schema.names], schema, preserve_index=False)
    # pandas' own description of the frame would make bytes depend on its version
    pq.write_table(arrow.replace_schema_metadata(schema.metadata), path, compression="zstd")


def read_table(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pd.DataFrame:
    """Read what ``write_table`` wrote; PipelineError where kind, version or columns differ.

    ``columns``: only these are read, the others need no memory.
    """
    if not path.exists():
        raise PipelineError(f"{path} is missing: `dvc repro` makes it")
    try:
        check_schema(path, pq.read_schema(path), schema)
        arrow = pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise PipelineError(
            f"{path} is not a readable table: {error}. Remove it and run `dvc repro`."
        ) from None
    frame: pd.DataFrame = arrow.to_pandas()
    return frame


def check_schema(path: Path, got: pa.Schema, expected: pa.Schema) -> None:
    """PipelineError unless a file's schema and its version are the expected ones."""
    metadata = {key: (got.metadata or {}).get(key) for key in expected.metadata}
    if metadata != expected.metadata or not got.equals(expected):
        raise PipelineError(
            f"{path} is not what this version reads: expected {expected.metadata} with columns "
            f"{expected.names}, got {metadata} with {got.names}. Run `dvc repro` to make it anew."
        )
