from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.ingestion import ingest
from pipeline.layouts.oumvlp_release import OumvlpRelease

ANYWHERE = OumvlpRelease(Path(), [], "published")


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("00001", "train"),
        ("00002", "test"),
        ("05153", "train"),
        ("10304", "test"),
        ("10305", "train"),
        ("10306", "test"),
        ("10307", "test"),
    ],
)
def test_odd_ids_but_the_last_train(subject: str, expected: str) -> None:
    assert ANYWHERE.split(subject, "00") == expected


def test_the_split_is_the_expected_one() -> None:
    splits = [ANYWHERE.split(f"{i:05}", "00") for i in range(1, 10308)]
    expected = OumvlpRelease.expected
    assert splits.count("train") == expected["train_subjects"] == 5153
    assert splits.count("test") == expected["test_subjects"] == 5154
    assert expected["subjects"] == len(splits)


def test_sequence_00_is_compared_with_01() -> None:
    protocol = OumvlpRelease.protocols[0]
    assert protocol.gallery == ("01",)
    assert protocol.all_probes == ("00",)
    assert protocol.excluded_views == ()


@pytest.mark.parametrize(
    "path",
    [
        "Silhouette_90-00/00001/1.png",
        "Silhouette_090-00/00001/1.jpg",
        "Silhouette_090-00/00001/extra/1.png",
        "Silhouette_090-00/001/1.png",
        "xSilhouette_090-00/00001/1.png",
    ],
)
def test_what_is_nearly_right_is_not_it(path: str) -> None:
    assert OumvlpRelease.key(path) is None


def test_from_every_container(
    tmp_path: Path, pack: Any, frame: Callable[[str], bytes], divided: Any
) -> None:
    png = frame(".png")
    files = {
        f"Silhouette_{view}-{sequence}/{subject}/{i:04}.png": png
        for view in ("000", "090")
        for sequence in ("00", "01")
        for subject in ("00001", "00002")
        for i in range(3)
    }
    pack(tmp_path, files)
    sequences, refusals, release, protocols = ingest("oumvlp", tmp_path, "published", workers=0)
    assert divided(sequences) == {
        split: {(subject, s, v) for s in ("00", "01") for v in ("000", "090")}
        for split, subject in (("train", "00001"), ("test", "00002"))
    }
    assert (sequences["bytes"] == 3 * len(png)).all()
    assert refusals.empty
    assert (release.layout, release.files_seen) == (OumvlpRelease.name, 24)
    assert release.expected == OumvlpRelease.expected
    assert protocols == OumvlpRelease.protocols
