import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.members import (
    MAX_LIST_BYTES,
    Caps,
    DamagedArchiveError,
    Member,
    TooLargeError,
    WrongPasswordError,
)
from pipeline.zips import list_zip, open_in_zip, read_zip, zip_containers

WriteZip = Callable[[Path, dict[str, bytes]], None]
WriteEncrypted = Callable[[Path, dict[str, bytes], str], None]
TarOf = Callable[[dict[str, bytes]], bytes]

CAPS = Caps()
PASSWORD = "correct horse"
FRAMES = {
    f"a/{i}.png": np.random.default_rng(i).integers(0, 256, 700, dtype=np.uint8).tobytes()
    for i in range(6)
}
NAMES = list(FRAMES)

# where they stand in an entry of the table of contents
CHECKSUM, PACKED, UNPACKED, NAME, EXTRA, COMMENT, OFFSET = 16, 20, 24, 28, 30, 32, 42


def names_of(root: Path, password: str | None = None) -> dict[str, str]:
    return {member.name: member.refusal for member in list_zip(root, "x.zip", password, CAPS)}


def read(
    root: Path, password: str | None = None, wanted: set[str] | None = None
) -> dict[str, bytes]:
    got: dict[str, bytes] = {}
    read_zip(root, "x.zip", wanted or set(FRAMES), password, CAPS, got.__setitem__)
    return got


def read_until_damage(
    root: Path, password: str | None = None
) -> tuple[dict[str, bytes], DamagedArchiveError]:
    got: dict[str, bytes] = {}
    with pytest.raises(DamagedArchiveError) as raised:
        read_zip(root, "x.zip", set(FRAMES), password, CAPS, got.__setitem__)
    assert (raised.value.container, raised.value.suspect) == ("x.zip", False)
    return got, raised.value


def change(path: Path, name: str, place: int, form: str, value: int) -> None:
    """Set one number in a member's entry in the table of contents."""
    content = bytearray(path.read_bytes())
    at = content.rfind(name.encode()) - 46
    assert content[at : at + 4] == b"PK\1\2"
    struct.pack_into(form, content, at + place, value)
    path.write_bytes(content)


def without(*numbers: int) -> dict[str, bytes]:
    return {name: FRAMES[name] for i, name in enumerate(NAMES) if i not in numbers}


def test_a_frame_larger_than_any_table_of_contents_is_read(
    tmp_path: Path, write_zip: WriteZip
) -> None:
    frames = {"a/0.png": b"first", "a/1.png": b"x" * (MAX_LIST_BYTES + 1), "a/2.png": b"last"}
    write_zip(tmp_path / "x.zip", frames)
    assert read(tmp_path, wanted=set(frames)) == frames


def test_overlapping_members_are_refused_and_the_others_read(
    tmp_path: Path, write_zip: WriteZip
) -> None:
    write_zip(tmp_path / "x.zip", FRAMES)
    assert read(tmp_path) == FRAMES
    overlaps = "overlaps another member of the zip"
    change(tmp_path / "x.zip", NAMES[4], OFFSET, "<I", 0)  # where the first one lies
    refusals = names_of(tmp_path)
    assert refusals == dict.fromkeys(NAMES, "") | dict.fromkeys((NAMES[0], NAMES[4]), overlaps)
    assert read(tmp_path) == without(0, 4)
    write_zip(tmp_path / "x.zip", FRAMES)
    change(tmp_path / "x.zip", NAMES[2], PACKED, "<I", 1500)  # into those behind it
    assert {name for name, refusal in names_of(tmp_path).items() if refusal} == set(NAMES[2:5])
    assert read(tmp_path) == without(2, 3, 4)


def test_a_member_past_the_end_is_refused(tmp_path: Path, write_zip: WriteZip) -> None:
    write_zip(tmp_path / "x.zip", FRAMES)
    change(tmp_path / "x.zip", NAMES[5], PACKED, "<I", 2**31)
    assert [name for name, refusal in names_of(tmp_path).items() if refusal] == [NAMES[5]]


@pytest.mark.parametrize(
    ("place", "form", "value"),
    [
        (UNPACKED, "<I", 699),
        (UNPACKED, "<I", 701),
        (UNPACKED, "<I", 0),
        (CHECKSUM, "<I", 1),
        (PACKED, "<I", 650),
        (8, "<H", 1),  # encrypted
        (10, "<H", 8),  # deflated
        (OFFSET, "<I", 3 * 735 + 1),
    ],
)
def test_a_member_that_is_not_as_it_says_costs_no_other(
    tmp_path: Path, place: int, form: str, value: int, write_zip: WriteZip
) -> None:
    write_zip(tmp_path / "x.zip", FRAMES)
    change(tmp_path / "x.zip", NAMES[3], place, form, value)
    got, error = read_until_damage(tmp_path)
    assert got == without(3)
    assert error.reason.startswith(NAMES[3])
    assert not isinstance(error, WrongPasswordError)


@pytest.mark.parametrize("place", [EXTRA, COMMENT])
def test_members_swallowed_by_another_are_not_lost_in_silence(
    tmp_path: Path, place: int, write_zip: WriteZip
) -> None:
    write_zip(tmp_path / "x.zip", FRAMES)
    record = 46 + len(NAMES[2])
    change(tmp_path / "x.zip", NAMES[1], place, "<H", 2 * record)
    for attempt in (lambda: names_of(tmp_path), lambda: zip_containers(tmp_path, "x.zip")):
        with pytest.raises(DamagedArchiveError, match=r"lists 4 members, and says 6|extra field"):
            attempt()


def test_a_member_without_a_name_costs_no_other(tmp_path: Path, write_zip: WriteZip) -> None:
    write_zip(tmp_path / "x.zip", FRAMES)
    change(tmp_path / "x.zip", NAMES[1], COMMENT, "<H", len(NAMES[1]))
    change(tmp_path / "x.zip", NAMES[1], NAME, "<H", 0)
    assert list(names_of(tmp_path)) == [NAMES[0], "", *NAMES[2:]]
    assert read(tmp_path) == without(1)


def test_a_zip_of_many_members_says_so_in_its_longer_form(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as outer:
        for number in range(66_000):
            outer.writestr(zipfile.ZipInfo(str(number)), b"")
    assert len(names_of(tmp_path)) == 66_000


def test_a_bomb_is_refused_by_its_size_and_one_that_lies_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as outer:
        outer.writestr(NAMES[0], bytes(100 * 2**20))
        outer.writestr(NAMES[1], b"behind it")
    assert list(list_zip(tmp_path, "x.zip", None, CAPS)) == [
        Member(NAMES[0], 100 * 2**20, "larger than ingest.max_frame_bytes = 67108864"),
        Member(NAMES[1], 9),
    ]
    with pytest.raises(TooLargeError, match=r"ingest\.max_archive_bytes"):
        list(list_zip(tmp_path, "x.zip", None, Caps(max_archive_bytes=2**20)))
    change(tmp_path / "x.zip", NAMES[0], UNPACKED, "<I", 1000)
    assert names_of(tmp_path) == {NAMES[0]: "", NAMES[1]: ""}
    tracemalloc.start()
    got, error = read_until_damage(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got == {NAMES[1]: b"behind it"}
    assert "CRC" in error.reason
    assert peak < 2**20


def test_what_is_really_unpacked_counts_towards_the_cap(
    tmp_path: Path, write_zip: WriteZip
) -> None:
    write_zip(tmp_path / "x.zip", FRAMES)
    got: dict[str, bytes] = {}
    small = Caps(max_archive_bytes=2000)
    with pytest.raises(TooLargeError, match="more than 2000 bytes"):
        read_zip(tmp_path, "x.zip", set(FRAMES), None, small, got.__setitem__)
    assert list(got) == NAMES[:2]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_on_memory_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as outer:
        outer.writestr("1.png", b"content" * 100, method)
        outer.writestr("2.png", b"content" * 100, zipfile.ZIP_DEFLATED)
        outer.writestr("1.tar", b"content" * 100, method)
    reason = f"compressed by method {method}, read are stored and deflated"
    assert names_of(tmp_path) == {"1.png": reason, "2.png": ""}
    assert zip_containers(tmp_path, "x.zip") == (["x.zip"], [Member("1.tar", 700, reason)])
    assert read(tmp_path, wanted={"1.png", "2.png"}) == {"2.png": b"content" * 100}


def test_encryption_that_is_not_read_says_what_is(tmp_path: Path, write_zip: WriteZip) -> None:
    write_zip(tmp_path / "x.zip", FRAMES)
    change(tmp_path / "x.zip", NAMES[0], 10, "<H", 99)
    assert names_of(tmp_path)[NAMES[0]] == "encrypted with AES, which is read from a 7z only"


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    modes = {"link": 0o120777, "device": 0o020666, "pipe": 0o010666}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as outer:
        for name, mode in {**modes, "file": 0o100644, "modeless": 0}.items():
            for suffix in ("", ".tar"):
                info = zipfile.ZipInfo(name + suffix)
                info.create_system, info.external_attr = 3, mode << 16
                outer.writestr(info, b"x")
    refused = "a link or a device, not a file"
    assert {name for name, refusal in names_of(tmp_path).items() if refusal} == set(modes)
    tars, others = zip_containers(tmp_path, "x.zip")
    assert tars == ["x.zip/file.tar", "x.zip/modeless.tar", "x.zip"]
    assert others == [Member(f"{name}.tar", 1, refused) for name in modes]


def test_tars_of_odd_names_are_refused_and_of_two_the_first_is_read(
    tmp_path: Path, tar_of: TarOf
) -> None:
    outside = "a name that points outside the archive"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as outer:
        for name in ("../1.tar", "/2.tar", "3.tar"):
            outer.writestr(name, b"first")
        with pytest.warns(UserWarning, match="Duplicate"):
            outer.writestr("3.tar", b"second")
    tars, refused = zip_containers(tmp_path, "x.zip")
    assert tars == ["x.zip/3.tar"]
    assert refused == [
        Member("../1.tar", 5, outside),
        Member("/2.tar", 5, outside),
        Member("3.tar", 6, "a second member of the same name"),
    ]
    with open_in_zip(tmp_path, "x.zip", "3.tar", "x.zip/3.tar", None) as (stream, _):
        assert stream.read() == b"first"


def test_a_name_that_says_it_is_utf8_and_is_not_is_damage(
    tmp_path: Path, write_zip: WriteZip
) -> None:
    write_zip(tmp_path / "x.zip", {"影.png": b"x"})
    assert names_of(tmp_path) == {"影.png": ""}
    content = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(content.replace("影".encode(), b"\xff\xfe\xfd"))
    with pytest.raises(DamagedArchiveError, match="UnicodeDecodeError"):
        names_of(tmp_path)


def test_an_empty_zip_holds_nothing(tmp_path: Path, write_zip: WriteZip) -> None:
    write_zip(tmp_path / "x.zip", {})
    assert zip_containers(tmp_path, "x.zip") == ([], [])
    assert names_of(tmp_path) == {}
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(DamagedArchiveError, match="not a zip file"):
        zip_containers(tmp_path, "x.zip")


def test_an_encrypted_zip_of_frames_needs_its_password(
    tmp_path: Path, write_encrypted_zip: WriteEncrypted
) -> None:
    frames = FRAMES | {f"b/{i}.png": b"more" * 100 for i in range(20)}
    write_encrypted_zip(tmp_path / "x.zip", frames, PASSWORD)
    with pytest.raises(WrongPasswordError, match="encrypted, and no password is set"):
        names_of(tmp_path)
    assert list(names_of(tmp_path, PASSWORD)) == list(frames)
    assert read(tmp_path, PASSWORD) == FRAMES
    with pytest.raises(WrongPasswordError, match="wrong password, or damaged"):
        read(tmp_path, "another", set(frames))
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[100] ^= 1
    (tmp_path / "x.zip").write_bytes(content)
    got, error = read_until_damage(tmp_path, PASSWORD)
    assert got == without(0)
    assert not isinstance(error, WrongPasswordError)


def test_members_are_read_as_they_lie_in_the_file(tmp_path: Path, write_zip: WriteZip) -> None:
    write_zip(tmp_path / "x.zip", FRAMES)
    content = (tmp_path / "x.zip").read_bytes()
    start, end = content.find(b"PK\1\2"), content.rfind(b"PK\5\6")
    size = 46 + len(NAMES[0])
    table = [content[at : at + size] for at in range(start, end, size)]
    (tmp_path / "x.zip").write_bytes(content[:start] + b"".join(table[::-1]) + content[end:])
    assert list(names_of(tmp_path)) == NAMES[::-1]
    assert list(read(tmp_path)) == NAMES
