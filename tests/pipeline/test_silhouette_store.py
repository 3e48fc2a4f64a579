from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import silhouette_store
from pipeline.errors import PipelineError
from pipeline.silhouette_store import (
    SHARD,
    Silhouettes,
    SilhouetteStore,
    compress,
    write_shard,
)

Row = tuple[str, str, str, str, Silhouettes]
WriteStore = Callable[[Path, list[Row]], SilhouetteStore]
Noise = Callable[[int, int], Silhouettes]


def some_rows(noise: Noise) -> list[Row]:
    return [
        ("00001", "00", "000", "train", noise(1, 5)),
        ("00001", "01", "000", "train", noise(2, 1)),
        ("00002", "00", "090", "test", np.zeros((40, 64, 44), np.uint8)),
    ]


def test_frames_come_back_in_any_order(
    tmp_path: Path, write_store: WriteStore, noise: Noise
) -> None:
    rows = some_rows(noise)
    store = write_store(tmp_path, rows)
    for number in (2, 0, 1, 0):
        read = store.read(number)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, rows[number][4])
        assert read.mT.flags.c_contiguous  # as it lies in the shard: no copy was made
        assert not read.flags.writeable
    assert store.read_all([]) == []
    together = store.read_all([1, 2, 1])
    for number, read in zip((1, 2, 1), together, strict=True):
        np.testing.assert_array_equal(read, rows[number][4])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_frames=st.integers(1, 9))
def test_compression_loses_nothing_and_is_deterministic(seed: int, n_frames: int) -> None:
    shape = (n_frames, 64, 44)
    frames = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    stored = compress("1", "00", "000", frames)
    assert stored.n_frames == n_frames
    assert stored == compress("1", "00", "000", np.asfortranarray(frames))
    content = pa.Codec("zstd").decompress(stored.silhouettes, frames.size)
    assert content.to_pybytes() == frames.transpose(0, 2, 1).tobytes()


def test_the_digest_is_of_keys_splits_and_frames(
    tmp_path: Path, write_store: WriteStore, noise: Noise
) -> None:
    rows = some_rows(noise)
    digest = write_store(tmp_path / "a", rows).digest()
    assert write_store(tmp_path / "b", rows).digest() == digest
    pixel = rows[0][4].copy()
    pixel[3, 10, 10] ^= 1
    key, split = list(rows), list(rows)
    key[1] = ("00001", "02", *rows[1][2:])
    split[1] = (*rows[1][:3], "test", rows[1][4])
    for i, changed in enumerate(([(*rows[0][:4], pixel), *rows[1:]], key, split)):
        assert write_store(tmp_path / f"changed-{i}", changed).digest() != digest


def test_equal_rows_give_equal_shards(tmp_path: Path, noise: Noise) -> None:
    rows = [compress("1", "00", "000", noise(0, 3))]
    for name in ("a", "b"):
        write_shard(tmp_path / name, rows)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_missing_store_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"index\.parquet is missing: `dvc repro` makes it"):
        SilhouetteStore(tmp_path)


def test_an_index_of_another_version_is_refused(
    tmp_path: Path, write_store: WriteStore, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path, some_rows(noise))
    newer = silhouette_store.INDEX.with_metadata(
        {**silhouette_store.INDEX.metadata, b"version": b"0"}
    )
    monkeypatch.setattr(silhouette_store, "INDEX", newer)
    with pytest.raises(PipelineError, match=r"index\.parquet is not what this version reads"):
        SilhouetteStore(tmp_path)


@pytest.mark.parametrize("change", ["version", "column"])
def test_a_shard_of_another_version_is_refused(
    tmp_path: Path, write_store: WriteStore, noise: Noise, change: str
) -> None:
    store = write_store(tmp_path, some_rows(noise))
    schema = (
        SHARD.with_metadata({**SHARD.metadata, b"version": b"0"})
        if change == "version"
        else SHARD.set(3, pa.field("n", pa.int32()))
    )
    columns = [pa.array([], field.type) for field in schema]
    path = tmp_path / "shard-00000.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    with pytest.raises(PipelineError, match=r"shard-00000\.arrow is not what this version reads"):
        store.read(0)


@pytest.mark.parametrize("left", [None, 0, 100])
def test_a_shard_that_is_gone_or_cut_short_is_named(
    tmp_path: Path, write_store: WriteStore, noise: Noise, left: int | None
) -> None:
    store = write_store(tmp_path, some_rows(noise))
    (shard,) = tmp_path.glob("*.arrow")
    if left is None:
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(PipelineError, match=rf"{shard.name} is missing, cut short or damaged"):
        store.read(0)


@pytest.mark.parametrize(
    ("place", "what"),
    [
        (0, "zstd: Unknown frame descriptor"),  # zstd's magic number
        (5, "zstd: Data corruption detected"),  # the size that the blob says it has
        (7, "zstd: Data corruption detected"),  # a kind of block
        (1000, "other pixels than were written"),
    ],
)
def test_damaged_silhouettes_are_named(
    tmp_path: Path, write_store: WriteStore, noise: Noise, place: int, what: str
) -> None:
    # noise cannot be compressed: zstd keeps its bytes as they are, and misses none
    store = write_store(tmp_path, some_rows(noise))
    (shard,) = tmp_path.glob("*.arrow")
    content = bytearray(shard.read_bytes())
    start = content.index(b"\x28\xb5\x2f\xfd")  # of the first blob: zstd's magic number
    content[start + place] ^= 0xFF
    shard.write_bytes(content)
    damaged = int(np.flatnonzero(store.index["row"] == 0)[0])
    store.read_all([number for number in range(len(store.index)) if number != damaged])
    for numbers in ([damaged], list(range(len(store.index)))):
        with pytest.raises(PipelineError, match=rf"{shard.name}: .* of 00001/00/000 .*{what}"):
            store.read_all(numbers)


@pytest.mark.parametrize("spoilt", [0x7F, 0xFF])  # far behind the file's end, and before it
def test_a_damaged_table_of_a_shard_is_told(
    tmp_path: Path, write_store: WriteStore, noise: Noise, spoilt: int
) -> None:
    store = write_store(tmp_path, some_rows(noise))
    (shard,) = tmp_path.glob("*.arrow")
    with pa.ipc.open_file(str(shard)) as reader:
        _, offsets, _ = reader.get_batch(0).column("silhouettes").buffers()
    content = bytearray(shard.read_bytes())
    content[content.index(offsets.to_pybytes()[:12]) + 7] = spoilt  # where the second blob begins
    shard.write_bytes(content)
    for number in np.flatnonzero(store.index["row"] == 1):
        with pytest.raises(PipelineError, match=rf"{shard.name}: the silhouettes of .* damaged"):
            store.read(int(number))


@pytest.mark.parametrize("rows", [None, 0, 1, 2])
def test_a_shard_of_too_few_sequences_is_told(
    tmp_path: Path, write_store: WriteStore, noise: Noise, rows: int | None
) -> None:
    store = write_store(tmp_path, some_rows(noise))
    (shard,) = tmp_path.glob("*.arrow")
    if rows is None:
        with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_file(sink, SHARD):
            pass  # no batch at all
    else:
        write_shard(shard, [compress("1", "00", "000", noise(0, 2))] * rows)
    with pytest.raises(
        PipelineError, match=rf"{shard.name} (has {rows} of \d seq|is missing, cut)"
    ):
        store.read(0)


def test_a_spoilt_byte_anywhere_is_told_or_harms_nothing(
    tmp_path: Path, write_store: WriteStore, noise: Noise
) -> None:
    write_store(tmp_path, some_rows(noise))
    (shard,) = tmp_path.glob("*.arrow")
    whole = shard.read_bytes()
    expected = SilhouetteStore(tmp_path).read_all([0, 1, 2])
    first = whole.index(b"\x28\xb5\x2f\xfd")  # where the blobs begin; schema and lengths lie before
    told = []
    for place in [*range(0, first + 4, 3), *range(len(whole) - 1_500, len(whole), 3)]:
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = SilhouetteStore(tmp_path).read_all([0, 1, 2])
        except PipelineError as error:
            told.append(str(error))
        else:
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)
    assert len(told) > 200
    assert all(shard.name in text for text in told)
