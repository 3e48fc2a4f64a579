from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.ingestion import ingest
from pipeline.layouts.generic import Generic
from pipeline.layouts.layout import Key

NAMES = ["alice", "bob", "carol", "dave"]
SEQUENCES = ["walk 1", "walk 2", "with bag"]


def files(content: bytes = b"x", suffix: str = ".png") -> dict[str, bytes]:
    return {
        f"{name}/{sequence}/{view}/{i}{suffix}": content
        for name in NAMES
        for sequence in SEQUENCES
        for view in ("front", "left side")
        for i in (1, 2)
    }


def keys(subjects: list[str], sequences: list[str] | None = None) -> list[Key]:
    return [(name, sequence, "any") for name in subjects for sequence in sequences or SEQUENCES]


def settled(root: Path, found: list[Key], description: str | None = None) -> Generic:
    if description is not None:
        (root / "dataset.yaml").write_text(description, encoding="utf-8")
    return Generic(root, found, "release")


def splits(layout: Generic, subjects: list[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name in subjects:
        parts.setdefault(layout.split(name, "any"), []).append(name)
    return parts


def problems(root: Path, found: list[Key], description: str) -> list[str]:
    with pytest.raises(PipelineError) as raised:
        settled(root, found, description)
    first, *lines = str(raised.value).splitlines()
    assert first == f"{root / 'dataset.yaml'} has {len(lines)} problem(s):"
    return [line.strip() for line in lines]


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".bmp"])
def test_from_every_container(
    tmp_path: Path,
    pack: Any,
    frame: Callable[[str], bytes],
    divided: Any,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    pack(tmp_path, {**files(frame(suffix.lower()), suffix), "alice/walk 1/notes.txt": b"x"})
    sequences, refusals, release, protocols = ingest("oumvlp", tmp_path, "published", workers=0)
    assert divided(sequences) == {
        split: {(n, s, v) for n in names for s in SEQUENCES for v in ("front", "left side")}
        for split, names in (("train", ["alice", "bob"]), ("test", ["carol", "dave"]))
    }
    assert refusals["reason"].tolist() == ["not a frame's name"]
    assert (release.layout, release.files_seen, release.expected) == ("generic", 49, {})
    for protocol in protocols:
        assert protocol.gallery == ("walk 1",)
        assert protocol.probes == {"all": ("walk 2", "with bag")}
    said = capsys.readouterr().out
    assert "generic (<subject>/<sequence>/<view>/<frame>.(png|jpg|jpeg|bmp), any names)" in said
    assert "own data takes its place" in said
    assert "split: no dataset.yaml, so train: alice, bob, test: carol, dave; " in said
    assert "gallery: walk 1; probes: all: walk 2, with bag" in said


def test_a_description_is_followed(
    tmp_path: Path, pack: Any, divided: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(tmp_path, files())
    (tmp_path / "dataset.yaml").write_text(
        """
        train: [dave]
        val: [bob]
        gallery: ["walk*"]
        probes: {BG: [with bag]}
        """
    )
    sequences, refusals, release, protocols = ingest("casia_e", tmp_path, "release", workers=0)
    assert {split: {key[0] for key in rows} for split, rows in divided(sequences).items()} == {
        "train": {"dave"},
        "val": {"bob"},
        "test": {"alice", "carol"},
    }
    assert refusals.empty  # the description is no data
    assert release.files_seen == 48
    test = sequences[sequences["split"] == "test"]
    for protocol in protocols:
        assert protocol.gallery == ("walk*",)
        assert protocol.probes == {"BG": ("with bag",)}
        assert protocol.compares(test["sequence"], test["view"]).all()
    said = capsys.readouterr().out
    assert "split: dataset.yaml: train: dave, val: bob, test: alice, carol; " in said
    assert "gallery: walk*; probes: BG: with bag" in said


def test_ranges_name_the_subjects_that_are_there(tmp_path: Path) -> None:
    subjects = ["001", "002", "010", "011", "050", "0002", "x", "001-002"]
    layout = settled(
        tmp_path,
        keys(subjects),
        'train: ["001-010"]\nval: ["001-002"]\ntest: ["011-099", "0002", x]',
    )
    assert splits(layout, subjects) == {
        "train": ["001", "002", "010"],
        "val": ["001-002"],  # somebody's name before it is a range
        "test": ["011", "050", "0002", "x"],
    }
    subjects = ["1", "2", "10", "100", "007"]
    layout = settled(tmp_path, keys(subjects), 'train: ["1-10"]')
    assert splits(layout, subjects) == {"train": ["1", "2", "10"], "test": ["100", "007"]}


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("train: [carol]", {"train": ["carol"], "test": ["alice", "bob", "dave"]}),
        ("test: [carol]", {"train": ["alice", "bob", "dave"], "test": ["carol"]}),
        ("val: [alice, bob]", {"val": ["alice", "bob"], "train": ["carol"], "test": ["dave"]}),
        ("{}", {"train": ["alice", "bob"], "test": ["carol", "dave"]}),
        ("train: [alice]\ntest:\n", {"train": ["alice"], "test": ["bob", "carol", "dave"]}),
    ],
)
def test_who_is_not_named_goes_where_the_list_is_left_out(
    tmp_path: Path, description: str, expected: dict[str, list[str]]
) -> None:
    assert splits(settled(tmp_path, keys(NAMES), description), NAMES) == expected


def test_all_problems_of_a_description_come_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        keys(NAMES),
        """
        train: [alice, eve, "100-200"]
        val: [alice]
        test: [carol]
        gallery: [walk 1, walk 3]
        probes: {NM: [walk 2, "run*"], nm: [walk 1], ../BG: [with bag], p: [with bag],
                 gallery: [with bag], all: [with bag]}
        """,
    )
    assert found == [
        "train[1]: no subject here is called 'eve'",
        "train[2]: no subject here is called '100-200'",
        "val[0]: 'alice' names subjects of train: alice",
        "train, val, test: 2 subject(s) are in none of them: bob, dave",
        "gallery[1]: no test subject has a sequence called 'walk 3'",
        "probes.NM[1]: no test subject has a sequence called 'run*'",
        "probes.nm: in the gallery, too: walk 1",
        "probes.nm: differs from NM in capitals only",
        "probes.../BG: letters, digits, - and _ only, please",
        "probes.p: the report calls something else so",
        "probes.gallery: the report calls something else so",
        "probes.all: what the only condition may be called, not one of several",
    ]


def test_names_that_are_no_text_and_unknown_keys_come_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path, keys(NAMES), "train: [001]\ngalery: [x]\ngallery: []\nprobes: {NM: walk}"
    )
    assert "train[0]: must be a valid string, not 1; write it in quotes" in found
    assert "galery: unknown key; did you mean gallery?" in found
    assert any(line.startswith("gallery: must have 1 or more entries") for line in found)
    assert any(line.startswith("probes.NM: must be a valid list") for line in found)
    assert len(found) == 4


@pytest.mark.parametrize("description", ["gallery: [walk 1]", "probes: {all: [walk 1]}"])
def test_a_gallery_needs_probes_and_probes_a_gallery(tmp_path: Path, description: str) -> None:
    assert problems(tmp_path, keys(NAMES), description) == [
        "gallery, probes: write both, or neither"
    ]


@pytest.mark.parametrize("description", ["nonsense", "[a, b]", "train: ["])
def test_a_file_that_is_no_description_is_named(tmp_path: Path, description: str) -> None:
    with pytest.raises(PipelineError, match=r"dataset\.yaml"):
        settled(tmp_path, keys(NAMES), description)


def test_many_names_are_told_by_their_ends(tmp_path: Path) -> None:
    subjects = [f"{i:03}" for i in range(1, 125)]
    layout = settled(tmp_path, keys(subjects))
    assert layout.split_words == (
        "no dataset.yaml, so train: 001, 002, 003 ... 062 (62), test: 063, 064, 065 ... 124 (62)"
    )


def test_frames_of_two_depths_are_an_error_with_examples(
    tmp_path: Path, write_tree: Callable[[Path, dict[str, bytes]], None]
) -> None:
    write_tree(tmp_path, {**files(), "alice/walk 1/front/crops/1.png": b"x"})
    with pytest.raises(PipelineError) as raised:
        ingest("oumvlp", tmp_path, "published", workers=0)
    text = str(raised.value)
    assert f"data.oumvlp.root = {tmp_path}: expected every frame as deep as the others" in text
    assert "3 folders deep: 24 sequence(s) of 48 frame(s), such as alice/walk 1/front/1.png" in text
    assert "4 folders deep: 1 sequence(s) of 1 frame(s), such as alice/walk 1/front/crops" in text


def test_what_a_mac_adds_to_an_archive_is_refused(
    tmp_path: Path, write_tree: Callable[[Path, dict[str, bytes]], None]
) -> None:
    write_tree(
        tmp_path,
        {**files(), "__MACOSX/alice/walk 1/front/._1.png": b"x", "alice/.DS_Store": b"x"},
    )
    sequences, refusals, *_ = ingest("oumvlp", tmp_path, "published", workers=0)
    assert len(sequences) == 24
    assert refusals["reason"].tolist() == ["not a frame's name"] * 2


def test_one_person_is_too_few(
    tmp_path: Path, write_tree: Callable[[Path, dict[str, bytes]], None]
) -> None:
    # the folder of the whole data set is taken for a subject's where a level is missing
    write_tree(tmp_path, {f"mine/{name}/walk/1.png": b"x" for name in NAMES})
    with pytest.raises(PipelineError) as raised:
        ingest("oumvlp", tmp_path, "published", workers=0)
    assert "oumvlp cannot be evaluated: no subject to train on" in str(raised.value)
    assert "All of it is taken for one subject, mine: is one of the three" in str(raised.value)
