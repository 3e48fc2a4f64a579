import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalogue import read_sequences, write_catalogue
from pipeline.ingestion import ingest
from pipeline.layouts.casia_b import CasiaB
from pipeline.normalizing import normalize
from pipeline.protocols import read_protocols, write_protocols
from pipeline.silhouette_store import SilhouetteStore

SEQUENCES = [
    *(f"nm-{i:02}" for i in range(1, 7)),
    *(f"{condition}-{i:02}" for condition in ("bg", "cl") for i in (1, 2)),
]
VIEWS = ["000", "018", "036", "054", "072", "090", "108", "126", "144", "162", "180"]


def test_the_published_split() -> None:
    layout = CasiaB(Path(), [], "published")
    splits = Counter(layout.split(f"{i:03}", "nm-01") for i in range(1, 125))
    assert splits == {"train": 74, "test": 50}
    assert layout.split("074", "nm-01") == "train"
    assert layout.split("075", "nm-01") == "test"
    expected = layout.expected
    assert (expected["train_subjects"], expected["test_subjects"]) == (74, 50)
    assert expected["views"] == len(VIEWS)


def test_every_sequence_is_gallery_or_probe_of_its_condition() -> None:
    protocol = CasiaB.protocols[0]
    assert [*protocol.gallery, *protocol.all_probes] == SEQUENCES
    for condition, sequences in protocol.probes.items():
        assert {name[:2] for name in sequences} == {condition.lower()}


def test_subjects_sequences_and_views_are_those_of_the_release() -> None:
    known = {
        CasiaB.key(f"{subject:03}/{sequence}/{view:03}/1.png")
        for subject in range(1000)
        for sequence in (*SEQUENCES, "nm-00", "nm-07", "bg-03", "cl-00", "xx-01")
        for view in (*range(0, 181, 18), 1, 45, 198)
    } - {None}
    assert known == {
        (f"{subject:03}", sequence, view)
        for subject in range(1, 125)
        for sequence in SEQUENCES
        for view in VIEWS
    }


@pytest.mark.parametrize("dataset", ["oumvlp", "casia_e"])
def test_from_what_was_downloaded_to_silhouettes(
    dataset: Any,
    tmp_path: Path,
    pack: Any,
    frame: Callable[[str], bytes],
    divided: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "root"
    png = frame(".png")
    files = {
        f"{subject}/{sequence}/{view}/{subject}-{sequence}-{view}-{i:03}.png": png
        for subject in ("001", "074", "075")
        for sequence in SEQUENCES
        for view in ("000", "180")
        for i in (1, 2, 10)
    }
    pack(root, {**files, "001/readme.txt": b"hello"})
    catalogue = ingest(dataset, root, "release", workers=0)
    said = capsys.readouterr().out
    assert f"{dataset}: CASIA-B (<subject: 001-124>/<nm-01" in said
    assert f"this is not how {dataset} is handed out: CASIA-B takes its place" in said
    assert "split: subjects 001-074 train, 075-124 are the test; gallery: nm-01 to nm-04" in said
    assert divided(catalogue.sequences) == {
        split: {(s, q, v) for s in subjects for q in SEQUENCES for v in ("000", "180")}
        for split, subjects in (("train", ("001", "074")), ("test", ("075",)))
    }
    assert catalogue.refusals[["reason", "frames"]].values.tolist() == [["not a frame's name", 1]]

    folder = tmp_path / "catalogue"
    folder.mkdir()
    write_catalogue(folder, catalogue.sequences, catalogue.refusals, catalogue.release)
    write_protocols(folder, catalogue.protocols)
    assert read_protocols(folder) == CasiaB.protocols
    release = json.loads((folder / "release.json").read_text(encoding="utf-8"))
    assert release["layout"] == "CASIA-B"
    assert release["files_seen"] == len(files) + 1
    assert release["expected"] == CasiaB.expected

    silhouettes = tmp_path / "silhouettes"
    silhouettes.mkdir()
    normalize(dataset, root, read_sequences(folder), silhouettes, 10_000, 3, workers=0)
    store = SilhouetteStore(silhouettes)
    assert divided_index(store) == {"train": 2 * 10 * 2, "test": 10 * 2}
    for number in (0, len(store.index) - 1):
        walk = store.read(number)
        assert walk.shape == (3, 64, 44)
        assert walk.max() == 255
    compared = CasiaB.protocols[0].compares(store.index["sequence"], store.index["view"])
    assert compared.all()


def divided_index(store: SilhouetteStore) -> dict[str, int]:
    return dict(Counter(store.index["split"]))
