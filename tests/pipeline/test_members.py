import os
from pathlib import Path

import pytest

from pipeline import members
from pipeline.members import (
    Caps,
    DamagedArchiveError,
    Source,
    TooLargeError,
    checked_member,
    damaged_members,
    escaped,
    reason_of,
)


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("a/1.png", ""),
        ("./a/1.png", ""),
        ("a..b/..1.png", ""),
        ("影/1.png", ""),
        ("/a/1.png", "a name that points outside the archive"),
        ("\\a\\1.png", "a name that points outside the archive"),
        ("C:/1.png", "a name that points outside the archive"),
        ("..", "a name that points outside the archive"),
        ("a/../../1.png", "a name that points outside the archive"),
        ("a\\..\\1.png", "a name that points outside the archive"),
        ("a\n/1.png", "a name that is not text (UTF-8)"),
        ("a\x1b[2J.png", "a name that is not text (UTF-8)"),
        ("a\udcff.png", "a name that is not text (UTF-8)"),
        ("x" * 4097, "a name of more than 4096 characters"),
    ],
)
def test_names_are_refused_for_what_they_could_do(name: str, refusal: str) -> None:
    member = checked_member(name, 3, True, Caps())
    assert (member.refusal, member.bytes) == (refusal, 3)
    member.name.encode("utf-8")
    assert len(member.name) <= 4096
    if not refusal:
        assert member.name == name


def test_kind_and_size_are_refused_with_their_reasons() -> None:
    caps = Caps(max_frame_bytes=10)
    assert checked_member("a", 10, True, caps).refusal == ""
    assert checked_member("a", 11, True, caps).refusal == "larger than ingest.max_frame_bytes = 10"
    assert checked_member("a", 1, False, caps).refusal == "a link or a device, not a file"


def test_what_is_no_text_in_a_name_is_escaped() -> None:
    raw = os.fsdecode(b"a\xff\n\xc3\xa9.png")
    assert escaped(raw) == "a\\xff\\x0aé.png"
    assert escaped("\ud800") == "\\ud800"
    assert escaped("a é 影.png") == "a é 影.png"
    assert reason_of(ValueError(f"bad {raw}\nthen")) == "ValueError: bad a\\xff é.png then"
    assert reason_of(ValueError()) == "ValueError: unreadable"


def test_damaged_members_are_counted_and_the_first_is_named() -> None:
    assert str(damaged_members("x.7z", [("a", "cut")])) == "x.7z: a: cut"
    both = damaged_members("x.7z", [("a", "cut"), ("b", "gone")])
    assert str(both) == "x.7z: a: cut, and 1 more member(s)"


def test_a_source_reads_seeks_and_knows_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.7z"
    path.write_bytes(b"0123456789")
    with Source(path, "x.7z") as source:
        assert (source.read(3), source.read()) == (b"012", b"3456789")
        source.seek(8)
        assert source.read(-1) == b"89"
        source.check_unchanged()
        os.utime(path, ns=(0, 0))
        with pytest.raises(DamagedArchiveError, match=r"x\.7z: changed while it was being read"):
            source.check_unchanged()


def test_a_source_holds_no_more_than_a_table_of_contents(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.touch()
    os.truncate(path, members.MAX_LIST_BYTES + 1)  # no byte of it is stored
    with Source(path, "x.zip") as source:
        for size in (None, -1, members.MAX_LIST_BYTES + 1):
            with pytest.raises(TooLargeError, match="table of contents is larger than 48 MiB"):
                source.read(size)
        source.seek(1)
        assert len(source.read()) == members.MAX_LIST_BYTES


def test_a_source_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        ("pipe", "not a file"),
        ("", "Is a directory|not a file"),
        ("no", "No su"),
    ):
        with pytest.raises(DamagedArchiveError, match=f"label: ({reason})"):
            Source(tmp_path / name, "label")
