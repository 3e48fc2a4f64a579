import io
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import py7zr
import pytest

from pipeline import archives
from pipeline.archives import (
    DamagedArchiveError,
    Member,
    WrongPasswordError,
    list_members,
    read_members,
)

FRAMES = {
    f"a/{i}.png": np.random.default_rng(i).integers(0, 256, 700, dtype=np.uint8).tobytes()
    for i in range(6)
}
NAMES = list(FRAMES)
PASSWORD = "correct horse"

Write7z = Callable[..., None]
TarOf = Callable[[dict[str, bytes]], bytes]
WriteZip = Callable[[Path, dict[str, bytes]], None]


def read(
    root: Path, container: str, wanted: set[str] | None = None, password: str | None = None
) -> dict[str, bytes]:
    got: dict[str, bytes] = {}
    names = set(FRAMES) if wanted is None else wanted
    read_members(root, container, names, password, got.__setitem__)
    return got


def read_until_damage(
    root: Path, container: str, password: str | None = None
) -> tuple[dict[str, bytes], DamagedArchiveError]:
    got: dict[str, bytes] = {}
    with pytest.raises(DamagedArchiveError) as raised:
        read_members(root, container, set(FRAMES), password, got.__setitem__)
    assert raised.value.container == container
    return got, raised.value


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory, write_7z: Write7z, tar_of: TarOf, write_zip: WriteZip
) -> Path:
    """The same six frames in each kind of container."""
    root = tmp_path_factory.mktemp("archives")
    write_7z(root / "plain.7z", FRAMES)
    write_7z(root / "stored.7z", FRAMES, stored=True)
    write_7z(root / "aes.7z", FRAMES, password=PASSWORD)
    write_7z(root / "hidden.7z", FRAMES, password=PASSWORD, hide_names=True)
    write_zip(root / "train.zip", {"001.tar": tar_of(FRAMES)})
    (root / "a").mkdir()
    for name, content in FRAMES.items():
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy for one test, run from a folder that is empty."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return shutil.copytree(written, tmp_path / "root")


CONTAINERS = [
    ("plain.7z", None),
    ("stored.7z", None),
    ("aes.7z", PASSWORD),
    ("hidden.7z", PASSWORD),
    ("train.zip/001.tar", None),
]


@pytest.mark.parametrize(("container", "password"), CONTAINERS)
def test_members_are_listed_and_read_in_order(
    root: Path, container: str, password: str | None
) -> None:
    listed = list(list_members(root, container, password))
    assert listed == [Member(name, 700) for name in NAMES]
    got = read(root, container, password=password)
    assert list(got.items()) == list(FRAMES.items())


@pytest.mark.parametrize(("container", "password"), CONTAINERS)
def test_only_what_is_wanted_is_handed_over(
    root: Path, container: str, password: str | None
) -> None:
    wanted = {NAMES[4], NAMES[1]}
    got = read(root, container, wanted, password)
    assert list(got) == [NAMES[1], NAMES[4]]
    assert got[NAMES[4]] == FRAMES[NAMES[4]]
    assert read(root, container, set(), password) == {}


def test_a_folder_is_a_container_of_its_files(root: Path) -> None:
    assert [member.name for member in list_members(root, "a", None)] == [
        f"{i}.png" for i in range(6)
    ]
    got = read(root, "a", {"3.png", "0.png"})
    assert got == {"0.png": FRAMES["a/0.png"], "3.png": FRAMES["a/3.png"]}
    with pytest.raises(DamagedArchiveError, match=r"a: 9\.png: No such file"):
        read(root, "a", {"9.png"})


def test_nothing_is_written_to_disk(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")}
    for container, password in CONTAINERS:
        list(list_members(root, container, password))
        read(root, container, password=password)
    assert {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")} == before


@pytest.mark.parametrize("container", ["aes.7z", "hidden.7z"])
def test_a_missing_password_is_told_apart(root: Path, container: str) -> None:
    for attempt in (
        lambda: list(list_members(root, container, None)),
        lambda: read(root, container),
    ):
        with pytest.raises(WrongPasswordError, match="encrypted, and no password is set"):
            attempt()


@pytest.mark.parametrize("container", ["aes.7z", "hidden.7z"])
def test_a_wrong_password_hands_nothing_over_and_is_not_repeated(
    root: Path, container: str
) -> None:
    got, error = read_until_damage(root, container, "wrong-and-secret")
    assert got == {}
    assert isinstance(error, WrongPasswordError)
    assert "wrong password" in str(error)
    assert "wrong-and-secret" not in str(error)


@pytest.mark.parametrize("password", [None, PASSWORD])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_7z_is_damaged_wherever_it_ends(
    root: Path, share: float, password: str | None
) -> None:
    whole = (root / ("aes.7z" if password else "plain.7z")).read_bytes()
    (root / "cut.7z").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DamagedArchiveError, match=r"cut\.7z: "):
        list(list_members(root, "cut.7z", password))
    assert read_until_damage(root, "cut.7z", password)[0] == {}


def test_a_7z_with_a_damaged_header_is_damaged_whatever_was_hit(root: Path) -> None:
    whole = (root / "stored.7z").read_bytes()
    for position in range(0, 32):  # signature, version, checksum, place and size of the header
        spoilt = bytearray(whole)
        spoilt[position] ^= 0x41
        (root / "spoilt.7z").write_bytes(spoilt)
        if position not in (6, 7):  # the version of the format is read, but not compared
            read_until_damage(root, "spoilt.7z")
    for position in range(len(whole) - 32, len(whole)):
        spoilt = bytearray(whole)
        spoilt[position] ^= 0x41
        (root / "spoilt.7z").write_bytes(spoilt)
        with pytest.raises(DamagedArchiveError):
            list(list_members(root, "spoilt.7z", None))


def flipped(path: Path, content: bytes) -> None:
    """Change one bit in the middle of a member that is stored as it is."""
    spoilt = bytearray(path.read_bytes())
    position = spoilt.find(content)
    assert position >= 0
    spoilt[position + len(content) // 2] ^= 1
    path.write_bytes(spoilt)


def test_one_flipped_bit_is_found_after_earlier_members_were_handed_over(root: Path) -> None:
    flipped(root / "stored.7z", FRAMES[NAMES[3]])
    got, error = read_until_damage(root, "stored.7z")
    assert got == {name: FRAMES[name] for name in NAMES[:3]}
    assert "CrcError" in str(error)


def test_damage_after_good_members_is_no_question_of_the_password(root: Path) -> None:
    whole = bytearray((root / "aes.7z").read_bytes())
    whole[32 + 3 * 700] ^= 1  # members follow the first 32 bytes
    (root / "aes.7z").write_bytes(whole)
    got, error = read_until_damage(root, "aes.7z", PASSWORD)
    assert list(got) == NAMES[: len(got)]
    assert 1 <= len(got) <= 3
    assert not isinstance(error, WrongPasswordError)


def test_a_flipped_bit_in_a_tar_is_found_by_the_zips_checksum(root: Path) -> None:
    flipped(root / "train.zip", FRAMES[NAMES[3]])
    _, error = read_until_damage(root, "train.zip/001.tar")
    assert "CRC" in str(error)


def test_a_truncated_tar_is_damaged_wherever_it_ends(
    root: Path, tar_of: TarOf, write_zip: WriteZip
) -> None:
    whole = tar_of(FRAMES)
    entry = 512 + 1024  # header, and 700 bytes in two blocks
    end = 6 * entry
    for cut in sorted({*range(0, end, 331), *range(0, end + 1, 512)}):
        write_zip(root / "cut.zip", {"001.tar": whole[:cut]})
        got, _ = read_until_damage(root, "cut.zip/001.tar")
        # content is whole once its 700 bytes are there; padding may be cut
        assert list(got) == NAMES[: (cut - 512 - 700) // entry + 1 if cut >= 1212 else 0]
        assert all(got[name] == FRAMES[name] for name in got)
        listed: list[str] = []
        members = list_members(root, "cut.zip/001.tar", None)
        with pytest.raises(DamagedArchiveError):
            listed.extend(member.name for member in members)
        assert listed == NAMES[: (cut - 512) // entry + 1 if cut >= 512 else 0]


def test_what_is_no_tar_or_holds_nothing_is_damaged(
    root: Path, tar_of: TarOf, write_zip: WriteZip
) -> None:
    write_zip(
        root / "odd.zip",
        {"empty.tar": tar_of({}), "zero.tar": b"", "text.tar": b"no tar at all" * 100},
    )
    for name in ("empty.tar", "zero.tar", "text.tar", "absent.tar"):
        with pytest.raises(DamagedArchiveError, match=f"odd.zip/{name}: "):
            list(list_members(root, f"odd.zip/{name}", None))
        read_until_damage(root, f"odd.zip/{name}")


def test_inner_tars_are_found_and_other_members_are_refused(
    root: Path, tar_of: TarOf, write_zip: WriteZip
) -> None:
    tar = tar_of(FRAMES)
    write_zip(root / "val.zip", {"b/002.tar": tar, "001.tar": tar, "readme.txt": b"hi", "d/": b""})
    tars, others = inner_tars(root, "val.zip")
    assert tars == ["val.zip/001.tar", "val.zip/b/002.tar"]
    assert others == [Member("readme.txt", 2, "not a tar of one subject")]
    assert read(root, "val.zip/b/002.tar") == FRAMES


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_zip_is_damaged(root: Path, share: float) -> None:
    whole = (root / "train.zip").read_bytes()
    (root / "cut.zip").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DamagedArchiveError, match=r"cut\.zip: "):
        inner_tars(root, "cut.zip")
    read_until_damage(root, "cut.zip/001.tar")


@pytest.mark.parametrize("container", ["gone.7z", "gone.zip/001.tar"])
def test_an_archive_that_is_gone_is_damaged_and_not_a_wrong_password(
    root: Path, container: str
) -> None:
    for password in (None, PASSWORD):
        with pytest.raises(DamagedArchiveError) as raised:
            list(list_members(root, container, password))
        assert type(raised.value) is DamagedArchiveError
        assert "No such file" in str(raised.value)
        _, error = read_until_damage(root, container, password)
        assert type(error) is DamagedArchiveError


@pytest.mark.parametrize("container", ["plain.7z", "stored.7z", "train.zip/001.tar", "a"])
@pytest.mark.parametrize("kind", [ValueError, OSError, KeyError, RuntimeError, EOFError])
def test_the_consumers_own_error_comes_through_unchanged(
    root: Path, container: str, kind: type[Exception]
) -> None:
    own = kind("the consumer's")

    def consume(name: str, content: bytes) -> None:
        raise own

    wanted = {"2.png"} if container == "a" else {NAMES[2]}
    with pytest.raises(kind) as raised:
        read_members(root, container, wanted, None, consume)
    assert raised.value is own


def test_links_are_refused(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "1.png").write_bytes(b"picture")
    (source / "2.png").symlink_to("1.png")
    with py7zr.SevenZipFile(root / "links.7z", "w") as archive:
        archive.writeall(source, "s")
    (root / "folder").mkdir()
    (root / "folder" / "1.png").write_bytes(b"picture")
    (root / "folder" / "2.png").symlink_to(source / "1.png")
    (root / "folder" / "3.png").symlink_to(source)
    with zipfile.ZipFile(root / "links.zip", "w") as outer:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo("s/1.png")
            info.size = 7
            tar.addfile(info, io.BytesIO(b"picture"))
            for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)):
                info = tarfile.TarInfo(f"s/{number + 2}.png")
                info.type, info.linkname = kind, "s/1.png"
                tar.addfile(info)
            directory = tarfile.TarInfo("s/d")
            directory.type = tarfile.DIRTYPE
            tar.addfile(directory)
        outer.writestr("001.tar", buffer.getvalue())
    for container, n_links in (("links.7z", 1), ("folder", 2), ("links.zip/001.tar", 3)):
        good, *links = list_members(root, container, None)
        assert (good.name[-5:], good.refusal) == ("1.png", "")
        assert [m.refusal for m in links] == ["a link or a device, not a file"] * n_links
    assert read(root, "links.7z", {"s/1.png"}) == {"s/1.png": b"picture"}
    assert read(root, "links.zip/001.tar", {"s/1.png", "s/2.png", "s/3.png"}) == {
        "s/1.png": b"picture"
    }


def test_names_that_point_outside_are_refused(
    root: Path, tar_of: TarOf, write_zip: WriteZip
) -> None:
    names = ["../x.png", "/x.png", "a/../../x.png", "a\\..\\x.png"]
    write_zip(root / "out.zip", {"001.tar": tar_of(dict.fromkeys([*names, "ok..png"], b"x"))})
    listed = list(list_members(root, "out.zip/001.tar", None))
    assert {member.name: member.refusal for member in listed} == {
        **dict.fromkeys(names, "a name that points outside the archive"),
        "ok..png": "",
    }
    with py7zr.SevenZipFile(root / "out.7z", "w") as archive:
        archive.writestr(b"good", "ok.png")
        archive.writestr(b"bad", "later.png")
        archive.header.files_info.files[-1]["filename"] = "../later.png"
    good, bad = list_members(root, "out.7z", None)
    assert (good.refusal, bad.refusal) == ("", "a name that points outside the archive")
    assert read(root, "out.7z", {"ok.png"}) == {"ok.png": b"good"}
    assert not (root.parent / "later.png").exists()


def test_what_is_too_large_for_a_frame_is_refused(root: Path) -> None:
    (root / "big").mkdir()
    for name, size in (
        ("fits", archives.MAX_MEMBER_BYTES),
        ("large", archives.MAX_MEMBER_BYTES + 1),
    ):
        (root / "big" / name).touch()
        os.truncate(root / "big" / name, size)  # no byte of it is stored
    fits, large = list_members(root, "big", None)
    assert (fits.refusal, large.refusal) == ("", "larger than 64 MiB")


@pytest.mark.parametrize("kind", [DamagedArchiveError, WrongPasswordError])
def test_damage_travels_between_processes(kind: type[DamagedArchiveError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("x.7z", "cut")))  # noqa: S301
    assert type(copy) is kind
    assert str(copy) == "x.7z: cut"


def _encrypted_zip(path: Path, name: str, content: bytes, password: bytes) -> None:
    """One stored member under PKZIP's own encryption, which Python's zipfile reads, not writes."""
    keys = [0x12345678, 0x23456789, 0x34567890]

    def crc(value: int, byte: int) -> int:
        return zlib.crc32(bytes([byte]), value ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    def update(byte: int) -> None:
        keys[0] = crc(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = crc(keys[2], keys[1] >> 24)

    for byte in password:
        update(byte)
    checksum = zlib.crc32(content)
    sealed = bytearray()
    for byte in bytes(11) + bytes([checksum >> 24]) + content:
        seed = keys[2] | 2
        sealed.append(byte ^ ((seed * (seed ^ 1) >> 8) & 0xFF))
        update(byte)
    sizes = checksum, len(sealed), len(content), len(name), 0
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 1, 0, 0, 33, *sizes) + name.encode()
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 1, 0, 0, 33, *sizes, 0, 0, 0, 0, 0)
    entry += name.encode()
    start = len(local) + len(sealed)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry), start, 0)
    path.write_bytes(local + bytes(sealed) + entry + end)


@pytest.mark.parametrize("password", [None, "wrong", PASSWORD])
def test_tars_of_an_encrypted_zip_need_its_password(
    tmp_path: Path, tar_of: TarOf, password: str | None
) -> None:
    _encrypted_zip(tmp_path / "a.zip", "001.tar", tar_of(FRAMES), PASSWORD.encode())
    if password == PASSWORD:
        assert read(tmp_path, "a.zip/001.tar", password=password) == FRAMES
        assert [m.name for m in list_members(tmp_path, "a.zip/001.tar", password)] == NAMES
    else:
        with pytest.raises(WrongPasswordError, match=r"a\.zip/001\.tar"):
            list(list_members(tmp_path, "a.zip/001.tar", password))
