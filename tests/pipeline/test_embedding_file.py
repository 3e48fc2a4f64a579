from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.embedding_file import read_embeddings, write_embeddings
from pipeline.errors import PipelineError

KEYS = pd.DataFrame(
    {
        "dataset": "casia_e",
        "subject": ["615", "615", "616"],
        "sequence": ["H-scene1-nm-1", "L-scene2-bg-1", "H-scene1-nm-1"],
        "view": ["000", "090", "000"],
        "split": "test",
    },
    index=[7, 3, 9],
)
EMBEDDINGS = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "embeddings" / "casia_e.arrow"
    write_embeddings(path, KEYS, EMBEDDINGS, {"stage": "finetune", "checkpoint": "abc"})
    return path


def test_keys_embeddings_and_metadata_come_back_in_order(path: Path) -> None:
    keys, embeddings, metadata = read_embeddings(path)
    columns = ["dataset", "subject", "sequence", "view"]
    assert keys.to_dict("list") == KEYS[columns].to_dict("list")
    np.testing.assert_array_equal(embeddings, EMBEDDINGS)
    assert embeddings.dtype == np.float32
    assert (metadata["stage"], metadata["checkpoint"]) == ("finetune", "abc")


def test_the_same_embeddings_give_the_same_bytes(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.arrow"
    write_embeddings(again, KEYS, EMBEDDINGS, {"stage": "finetune", "checkpoint": "abc"})
    assert again.read_bytes() == path.read_bytes()


def test_embeddings_that_are_not_contiguous_are_written_right(tmp_path: Path) -> None:
    turned = np.ascontiguousarray(EMBEDDINGS.transpose(2, 1, 0)).transpose(2, 1, 0)
    write_embeddings(tmp_path / "x", KEYS, turned, {})
    np.testing.assert_array_equal(read_embeddings(tmp_path / "x")[1], EMBEDDINGS)


def test_a_missing_file_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="x is missing: `dvc repro` makes it"):
        read_embeddings(tmp_path / "x")


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"no table" * 40])
def test_what_is_no_arrow_file_is_named(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"casia_e\.arrow is not a readable Arrow file"):
        read_embeddings(path)


def test_a_truncated_file_is_named(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PipelineError, match=r"casia_e\.arrow"):
        read_embeddings(path)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"gaitgl": "embeddings", "version": "2"},
        {"gaitgl": "silhouettes", "version": "1"},
    ],
)
def test_another_version_or_kind_is_refused(path: Path, metadata: dict[str, str]) -> None:
    batch = pa.record_batch({"x": [1]}).replace_schema_metadata(metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(PipelineError, match="expected embeddings of version 1"):
        read_embeddings(path)


HEADER = {"gaitgl": "embeddings", "version": "1", "channels": "1", "strips": "2"}


def _batch(**columns: pa.Array) -> pa.RecordBatch:
    text = pa.array(["a", "b"])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2, 3, 4], pa.float32()), 2)
    usual = dict.fromkeys(("dataset", "subject", "sequence", "view"), text)
    return pa.record_batch({**usual, "embedding": vectors, **columns})


@pytest.mark.parametrize(
    ("batch", "header"),
    [
        (_batch(), {**HEADER, "strips": "3"}),
        (_batch(), {name: HEADER[name] for name in ("gaitgl", "version")}),
        (_batch(view=pa.array([0, 90])), HEADER),
        (
            _batch(embedding=pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2, 3, 4]), 2)),
            HEADER,  # float64
        ),
        (_batch().drop_columns("embedding"), HEADER),
    ],
)
def test_other_columns_are_refused(
    path: Path, batch: pa.RecordBatch, header: dict[str, str]
) -> None:
    batch = batch.replace_schema_metadata(header)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(PipelineError, match=r"casia_e\.arrow is not what this version reads"):
        read_embeddings(path)


@pytest.mark.parametrize("count", [0, 2])
def test_a_file_in_pieces_is_refused(path: Path, count: int) -> None:
    batch = _batch().replace_schema_metadata(HEADER)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        for _ in range(count):
            writer.write_batch(batch)
    with pytest.raises(PipelineError, match=f"{count} batches, expected 1"):
        read_embeddings(path)
