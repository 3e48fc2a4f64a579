from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.ingestion import ingest
from pipeline.layouts.hid import Hid
from pipeline.tables import KEY


def release(content: bytes) -> dict[str, bytes]:
    folders = [
        "train/001/aa11",
        "train/001/bb22",
        "train/002/cc33",
        "test_gallery/501/dd44",
        "test_gallery/502/ee55",
        "test_probe/00001",
        "test_probe/001",  # a video that has a training subject's name
    ]
    return {f"{folder}/{i:03}.jpg": content for folder in folders for i in (1, 2)}


EXPECTED = {
    "train": {
        ("001", "train-aa11", "any"),
        ("001", "train-bb22", "any"),
        ("002", "train-cc33", "any"),
    },
    "test": {
        ("501", "gallery-dd44", "any"),
        ("502", "gallery-ee55", "any"),
        ("00001", "probe", "any"),
        ("001", "probe", "any"),
    },
}


@pytest.mark.parametrize(
    "path",
    [
        "train/001/1.jpg",
        "train/001/aa/more/1.jpg",
        "test_gallery/1.jpg",
        "test_probe/1.jpg",
        "test_probe/001/more/1.jpg",
        "xtest_probe/001/1.jpg",
        "val/001/aa/1.jpg",
    ],
)
def test_what_is_nearly_right_is_not_it(path: str) -> None:
    assert Hid.key(path) is None


def test_from_every_container(
    tmp_path: Path,
    pack: Any,
    frame: Callable[[str], bytes],
    divided: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pack(tmp_path, release(frame(".jpg")))
    sequences, refusals, found, protocols = ingest("casia_e", tmp_path, "release", workers=0)
    assert divided(sequences) == EXPECTED
    assert refusals.empty
    assert (found.layout, found.files_seen) == (Hid.name, 14)
    assert protocols == Hid.protocols
    (protocol,) = protocols
    assert not protocol.labelled
    test = sequences[sequences["split"] == "test"]
    assert protocol.compares(test["sequence"], test["view"]).all()
    said = capsys.readouterr().out
    assert "the 2 probes with frames have no labels" in said
    assert "takes its place" not in said
    assert "no gallery sequence" not in said  # nobody knows


def test_probes_without_a_frame_are_recorded_with_their_names(
    tmp_path: Path, pack: Any, divided: Any
) -> None:
    files = release(b"x")
    empty = {"test_probe/00007/": b"", "test_probe/00008/": b"", "test_probe/00001/thumbs/": b""}
    empty |= {"test_probe/00010/masks/": b""}
    junk = {"test_probe/00009/Thumbs.db": b"x", "test_probe/readme.txt": b"x"}
    junk |= {"test_probe/00011/masks/deep/1.jpg": b"x"}  # no frame lies so deep
    pack(tmp_path, {**files, **empty, **junk})
    sequences, refusals, found, _ = ingest("casia_e", tmp_path, "release", workers=0)
    assert divided(sequences) == EXPECTED
    assert found.files_seen == 17
    rows = refusals[[*KEY, "reason", "frames"]].itertuples(index=False, name=None)
    assert set(rows) == {
        ("00007", "probe", "any", "an empty folder", 0),
        ("00008", "probe", "any", "an empty folder", 0),
        ("00009", "probe", "any", "not a frame's name", 1),
        ("00010", "probe", "any", "an empty folder", 0),
        ("00011", "probe", "any", "not in the layout of the rest", 1),
        ("", "", "", "not a frame's name", 1),
    }


def test_an_empty_folder_whose_frames_lie_elsewhere_is_no_empty_probe(
    tmp_path: Path, write_tree: Callable[[Path, dict[str, bytes]], None]
) -> None:
    write_tree(tmp_path, release(b"x"))
    (tmp_path / "copy/test_probe/00001").mkdir(parents=True)
    (tmp_path / "train/003").mkdir(parents=True)
    _, refusals, *_ = ingest("casia_e", tmp_path, "release", workers=0)
    assert refusals.empty
