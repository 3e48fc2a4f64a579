import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline import finished_shards
from pipeline.catalogue import DAMAGED, Refusal
from pipeline.finished_shards import ShardWriter, finished_shard, shard_name, shards_to_do
from pipeline.silhouette_store import Silhouettes, StoredSequence, compress

Noise = Callable[[int, int], Silhouettes]


def sequence(noise: Noise, subject: str, n_frames: int = 4) -> StoredSequence:
    return compress(subject, "00", "090", noise(int(subject), n_frames))


@pytest.fixture(params=[1, 2**20], ids=["on disk", "in memory"])
def _spool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finished_shards, "IN_MEMORY_BYTES", request.param)


@pytest.mark.usefixtures("_spool")
def test_a_shard_is_written_as_soon_as_it_is_whole(tmp_path: Path, noise: Noise) -> None:
    refusal = Refusal("a.7z", "x/1.png", "not a picture", subject="2")
    with ShardWriter(tmp_path, {3: 2, 4: 1, 7: 1}) as writer:
        writer.keep(3, sequence(noise, "2"), "train")
        writer.refuse(4, [refusal])
        assert not list(tmp_path.iterdir())
        writer.lose(4)
        assert [p.name for p in tmp_path.iterdir()] == ["shard-00004.json"]  # nothing is kept
        writer.keep(7, sequence(noise, "9"), "test")
        assert finished_shard(tmp_path, 7) is None  # the last waits: damage may show yet
        writer.keep(3, sequence(noise, "1", 6), "val")
        third = finished_shard(tmp_path, 3)
        writer.note(Refusal("a.7z", "", DAMAGED, frames=0))
    assert third is not None
    assert (third.name, third.refused, third.damaged) == ("shard-00003.arrow", [], False)
    assert [(r["subject"], r["split"], r["n_frames"], r["row"]) for r in third.rows] == [
        ("1", "val", 6, 0),
        ("2", "train", 4, 1),
    ]
    fourth, last = finished_shard(tmp_path, 4), finished_shard(tmp_path, 7)
    assert fourth is not None
    assert (fourth.rows, fourth.refused) == ([], [refusal])
    assert last is not None
    assert last.damaged
    expected = tmp_path / "expected.arrow"
    finished_shards.write_shard(expected, [sequence(noise, "1", 6), sequence(noise, "2")])
    assert (tmp_path / "shard-00003.arrow").read_bytes() == expected.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_an_error_leaves_only_what_was_whole(tmp_path: Path, noise: Noise) -> None:
    with suppress(KeyError), ShardWriter(tmp_path, {0: 1, 1: 1, 2: 1}) as writer:
        writer.keep(0, sequence(noise, "1"), "train")
        writer.keep(2, sequence(noise, "2"), "train")
        raise KeyError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard-00000.arrow", "shard-00000.json"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def change_a_number(path: Path) -> None:
    tree = json.loads(path.read_text())
    tree["content"]["rows"][0]["n_frames"] = 5
    path.write_text(json.dumps(tree))


def no_tree(path: Path) -> None:
    path.write_text("[]")


@pytest.mark.parametrize(
    ("suffix", "spoil"),
    [
        (".arrow", cut),
        (".arrow", flip),
        (".arrow", empty),
        (".arrow", Path.unlink),
        (".json", cut),
        (".json", empty),
        (".json", change_a_number),
        (".json", no_tree),
    ],
)
def test_a_torn_shard_is_told_and_put_aside(
    tmp_path: Path,
    noise: Noise,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    spoil: Callable[[Path], None],
) -> None:
    with ShardWriter(tmp_path, {0: 1}) as writer:
        writer.keep(0, sequence(noise, "1"), "train")
    spoil((tmp_path / shard_name(0)).with_suffix(suffix))
    assert finished_shard(tmp_path, 0) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path}/shard-00000.arrow is torn (")
    assert line.endswith("; it is put aside and made again")
    assert not list(tmp_path.glob("shard-*"))
    assert (tmp_path / "torn-shard-00000.json").exists()
    assert finished_shard(tmp_path, 0) is None  # told once
    assert capsys.readouterr().err == ""
    with ShardWriter(tmp_path, {0: 1}) as writer:
        writer.keep(0, sequence(noise, "1"), "train")
    assert finished_shard(tmp_path, 0) is not None


def test_a_shard_without_its_note_is_not_finished(tmp_path: Path, noise: Noise) -> None:
    finished_shards.write_shard(tmp_path / shard_name(5), [sequence(noise, "1")])
    assert finished_shard(tmp_path, 5) is None
    assert finished_shard(tmp_path, 6) is None


def test_a_shard_of_another_format_is_not_finished(
    tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(finished_shards, "FORMAT", "gaitgl-finished-shard-0")
        with ShardWriter(tmp_path, {0: 1}) as writer:
            writer.keep(0, sequence(noise, "1"), "train")
    assert finished_shard(tmp_path, 0) is None


@pytest.mark.parametrize("damaged", [False, True])
def test_of_an_archive_all_shards_are_made_again_only_if_it_is_damaged(
    tmp_path: Path, noise: Noise, damaged: bool
) -> None:
    with ShardWriter(tmp_path, {0: 1, 1: 1, 2: 1}) as writer:
        for number in range(3):
            writer.keep(number, sequence(noise, str(number + 1)), "train")
        if damaged:
            writer.note(Refusal("a.7z", "", DAMAGED, frames=0))
    assert shards_to_do(tmp_path, [2, 0, 1]) == []
    (tmp_path / shard_name(1)).with_suffix(".json").unlink()
    assert shards_to_do(tmp_path, [2, 0, 1]) == ([0, 1, 2] if damaged else [1])
