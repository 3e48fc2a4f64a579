from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.ingestion import ingest
from pipeline.layouts.casia_e_release import CasiaERelease


@pytest.mark.parametrize(
    ("setting", "train", "val", "test"),
    [("release", 500, 114, 400), ("opengait", 200, 0, 814), ("published", 500, 114, 400)],
)
def test_the_published_splits(setting: str, train: int, val: int, test: int) -> None:
    layout = CasiaERelease(Path(), [], setting)
    splits = [layout.split(f"{i:03}", "H-scene1-nm-1") for i in range(1, 1015)]
    assert splits == ["train"] * train + ["val"] * val + ["test"] * test
    assert layout.expected.get("train_subjects", 0) == train
    assert layout.expected.get("val_subjects", 0) == val
    assert layout.expected.get("test_subjects", 0) == test
    assert layout.expected["subjects"] == train + val + test


def test_the_protocol_is_opengaits() -> None:
    protocol = CasiaERelease(Path(), [], "release").protocols[0]
    assert set(protocol.gallery) == {
        "H-scene1-nm-1",
        "H-scene1-nm-2",
        "L-scene1-nm-1",
        "L-scene1-nm-2",
    }
    assert list(protocol.probes) == ["NM", "BG", "CL"]
    for condition, sequences in protocol.probes.items():
        assert len(sequences) == len(set(sequences)) == 2 * 3 * 2
        assert {sequence.split("-")[2] for sequence in sequences} == {condition.lower()}
        assert {s.split("-")[1] for s in sequences} == {"scene2", "scene3", "scene3_s"}
    assert protocol.excluded_views == ("270",)


@pytest.mark.parametrize(
    "path",
    [
        "001/M/scene1/nm/000/1/1.jpg",
        "001/H/scene4/nm/000/1/1.jpg",
        "001/H/scene1/xx/000/1/1.jpg",
        "001/H/scene1/nm/000/1.jpg",
        "01/H/scene1/nm/000/1/1.jpg",
        "001/H/scene1/nm/000/1/1.png",
    ],
)
def test_what_is_nearly_right_is_not_it(path: str) -> None:
    assert CasiaERelease.key(path) is None


def test_from_every_container(
    tmp_path: Path, pack: Any, frame: Callable[[str], bytes], divided: Any
) -> None:
    takes = ("H/scene1/nm/090/1", "L/scene3_s/cl/090/2")
    files = {
        f"forTrain/{subject}/{take}/{i}.jpg": frame(".jpg")
        for subject in ("001", "501", "1014")
        for take in takes
        for i in range(2)
    }
    pack(tmp_path, files)
    sequences, refusals, release, protocols = ingest("casia_e", tmp_path, "release", workers=0)
    assert divided(sequences) == {
        split: {(subject, "H-scene1-nm-1", "090"), (subject, "L-scene3_s-cl-2", "090")}
        for split, subject in (("train", "001"), ("val", "501"), ("test", "1014"))
    }
    assert refusals.empty
    assert (release.layout, release.files_seen) == (CasiaERelease.name, 12)
    assert protocols == CasiaERelease(tmp_path, [], "release").protocols
