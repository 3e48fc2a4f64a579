from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PipelineError
from pipeline.tables import read_table, write_table

SCHEMA = pa.schema(
    [("name", pa.string()), ("n", pa.int32())], metadata={"gaitgl": "test", "version": "1"}
)
TABLE = pd.DataFrame({"name": ["a", "b"], "n": [1, 2]})


def test_a_table_has_the_schemas_columns_types_and_nothing_of_pandas(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, TABLE[["n", "name"]].assign(extra=0), SCHEMA)
    stored = pq.read_schema(path)
    assert stored.equals(SCHEMA)
    assert stored.metadata == SCHEMA.metadata
    pd.testing.assert_frame_equal(read_table(path, SCHEMA), TABLE, check_dtype=False)


def test_columns_that_are_not_asked_for_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, TABLE, SCHEMA)
    assert list(read_table(path, SCHEMA, ["n"]).columns) == ["n"]
    with pytest.raises(PipelineError, match="is not what this version reads"):
        read_table(path, SCHEMA.remove(0), ["n"])


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_table(tmp_path / name, TABLE.copy(), SCHEMA)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_missing_table_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"t\.parquet is missing: `dvc repro` makes it"):
        read_table(tmp_path / "t.parquet", SCHEMA)


@pytest.mark.parametrize(
    "changed",
    [
        SCHEMA.with_metadata({"gaitgl": "test", "version": "2"}),
        SCHEMA.with_metadata({"gaitgl": "other", "version": "1"}),
        SCHEMA.remove_metadata(),
        SCHEMA.remove(1),
        SCHEMA.set(1, pa.field("n", pa.int64())),
    ],
)
def test_another_kind_version_or_column_is_refused_and_shown(
    tmp_path: Path, changed: pa.Schema
) -> None:
    path = tmp_path / "t.parquet"
    arrow = pa.Table.from_pandas(TABLE[changed.names], changed, preserve_index=False)
    pq.write_table(arrow.replace_schema_metadata(changed.metadata), path)
    with pytest.raises(PipelineError, match="is not what this version reads") as raised:
        read_table(path, SCHEMA)
    assert "'version': b'1'" in str(raised.value).replace("b'version'", "'version'")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table at all" * 9])
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"t\.parquet is not a readable table"):
        read_table(path, SCHEMA)
