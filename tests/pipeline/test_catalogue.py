import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import (
    REFUSALS,
    SEQUENCES,
    Refusal,
    Release,
    by_reason,
    read_refusals,
    read_release,
    read_sequences,
    refusal_table,
    write_catalogue,
)
from pipeline.errors import PipelineError
from pipeline.settings import Dataset

RELEASE = Release("OUMVLP, release", 28, 7, {"subjects": 10_307})
NO_REFUSALS = refusal_table("oumvlp", [])


def test_tables_come_back_as_they_were_and_as_the_same_bytes(
    catalogues: dict[Dataset, pd.DataFrame], tmp_path: Path
) -> None:
    refusals = refusal_table("oumvlp", [Refusal("b.7z", "x", "junk"), Refusal("a.7z", "", "cut")])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_catalogue(tmp_path / name, catalogues["oumvlp"], refusals, RELEASE)
    back = read_sequences(tmp_path / "one")
    assert list(back.columns) == SEQUENCES.names
    for column in SEQUENCES.names:
        assert back[column].map(str if column != "frames" else list).tolist() == (
            catalogues["oumvlp"][column].map(str if column != "frames" else list).tolist()
        )
    assert list(read_sequences(tmp_path / "one", ["view", "split"]).columns) == ["view", "split"]
    back = read_refusals(tmp_path / "one")
    assert list(back.columns) == REFUSALS.names
    assert back["container"].tolist() == ["a.7z", "b.7z"]
    assert json.loads((tmp_path / "one" / "release.json").read_text(encoding="utf-8")) == {
        "layout": "OUMVLP, release",
        "containers": 28,
        "files_seen": 7,
        "expected": {"subjects": 10_307},
    }
    assert read_release(tmp_path / "one") == RELEASE
    for name in ("sequences.parquet", "refusals.parquet", "release.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for name in ("sequences.parquet", "refusals.parquet"):
        assert b"pandas" not in pq.read_schema(tmp_path / "one" / name).metadata


@pytest.mark.parametrize("text", [None, '{"layout', '{"layout": "x"}', "[]"])
def test_what_was_found_as_a_whole_is_brought_back_where_it_cannot_be_read(
    tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "release.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        PipelineError, match=r"release\.json is missing or not .* `dvc repro` brings it back"
    ):
        read_release(tmp_path)


def test_refusals_are_sorted_whatever_order_they_came_in() -> None:
    items = [Refusal(c, m, r) for c in ("b", "a") for m in ("2", "1") for r in ("y", "x")]
    first, second = refusal_table("oumvlp", items), refusal_table("oumvlp", reversed(items))
    pd.testing.assert_frame_equal(first, second)
    assert first["container"].is_monotonic_increasing


def test_reasons_are_counted_in_rows_and_frames() -> None:
    items = [
        Refusal("a", "1", "junk"),
        Refusal("a", "2", "short", frames=4),
        Refusal("b", "", "junk"),
    ]
    assert by_reason(refusal_table("oumvlp", items)) == "2 × junk (2 frames); 1 × short (4 frames)"
    assert by_reason(NO_REFUSALS) == "none"
