import contextlib
import gzip
import io
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import py7zr
import pytest

from pipeline.archives import (
    Caps,
    DamagedArchiveError,
    Member,
    TooLargeError,
    WrongPasswordError,
    archive_containers,
    is_archive,
    is_packed,
    list_members,
    may_be_split,
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
WriteEncrypted = Callable[[Path, dict[str, bytes], str], None]


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
    tar = tar_of(FRAMES)
    write_zip(root / "train.zip", {"001.tar": tar, "b/002.TGZ": gzip.compress(tar)})
    write_zip(root / "frames.zip", FRAMES)
    (root / "x.tar").write_bytes(tar)
    (root / "x.tar.gz").write_bytes(gzip.compress(tar))
    (root / "UPPER.TGZ").write_bytes(gzip.compress(tar))
    write_7z(root / "UPPER.7Z", FRAMES)
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
    ("train.zip/b/002.TGZ", None),
    ("frames.zip", None),
    ("x.tar", None),
    ("x.tar.gz", None),
    ("UPPER.TGZ", None),
    ("UPPER.7Z", None),
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


@pytest.mark.parametrize("container", ["stored.7z", "frames.zip"])
def test_one_flipped_bit_costs_its_own_member_only(root: Path, container: str) -> None:
    flipped(root / container, FRAMES[NAMES[3]])
    got, error = read_until_damage(root, container)
    assert got == {name: FRAMES[name] for name in NAMES if name != NAMES[3]}
    assert NAMES[3] in error.reason
    assert not error.suspect


def test_damage_after_good_members_is_no_question_of_the_password(root: Path) -> None:
    whole = bytearray((root / "aes.7z").read_bytes())
    whole[32 + 3 * 700] ^= 1  # members follow the first 32 bytes
    (root / "aes.7z").write_bytes(whole)
    got, error = read_until_damage(root, "aes.7z", PASSWORD)
    assert 1 <= len(got) < 6
    assert all(got[name] == FRAMES[name] for name in got)
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


def test_a_zip_is_a_container_of_its_tars_and_of_its_other_files(
    root: Path, tar_of: TarOf, write_zip: WriteZip
) -> None:
    tar = tar_of(FRAMES)
    write_zip(root / "val.ZIP", {"b/2.TAR": tar, "1.tar": tar, "readme.txt": b"hi", "d/": b""})
    found, refused = archive_containers(root, "val.ZIP")
    assert found == ["val.ZIP/1.tar", "val.ZIP/b/2.TAR", "val.ZIP"]
    assert refused == []
    assert list(list_members(root, "val.ZIP", None)) == [
        Member("readme.txt", 2),
        Member("d", 0, folder=True),
    ]
    assert read(root, "val.ZIP/b/2.TAR") == FRAMES
    assert archive_containers(root, "frames.zip") == (["frames.zip"], [])
    assert archive_containers(root, "train.zip")[0] == [
        "train.zip/001.tar",
        "train.zip/b/002.TGZ",
    ]


@pytest.mark.parametrize("name", ["x.7z", "X.7Z", "x.tar", "x.tar.gz", "x.tgz"])
def test_other_archives_are_one_container_each(tmp_path: Path, name: str) -> None:
    assert archive_containers(tmp_path, name) == ([name], [])


@pytest.mark.parametrize("name", ["x.7z.001", "a/x.ZIP.002", "x.tar.gz.03"])
def test_a_part_of_a_split_archive_says_how_to_join_it(tmp_path: Path, name: str) -> None:
    whole = name.rpartition(".")[0]
    with pytest.raises(DamagedArchiveError, match=re.escape(f"cat {whole}.* > {whole}")):
        archive_containers(tmp_path, name)
    assert is_archive(name)


@pytest.mark.parametrize(
    ("container", "packed", "split"),
    [
        ("x.7z", True, False),
        ("d/X.TAR", True, False),
        ("x.tgz", True, False),
        ("x.tar.gz", True, False),
        ("x.zip/001.tar", True, False),
        ("x.Zip", True, True),
        ("00001/00/090", False, True),
        (".", False, True),
        ("7z", False, True),
    ],
)
def test_what_a_containers_name_says(container: str, packed: bool, split: bool) -> None:
    assert is_packed(container) is packed
    assert may_be_split(container) is split


def test_archives_are_told_by_their_suffix() -> None:
    assert all(map(is_archive, ("x.7z", "x.ZIP", "x.tar", "x.Tar.Gz", "x.tgz")))
    assert not any(map(is_archive, ("x.png", "zip", "x.gz", "x.7zz", "x.7z.txt")))


def test_an_archive_inside_an_archive_is_refused_and_says_so(
    root: Path, tar_of: TarOf, write_zip: WriteZip
) -> None:
    write_zip(root / "outer.zip", {"inner.7z": b"7z", "1.png": b"x"})
    (root / "outer.tar").write_bytes(tar_of({"inner.zip": b"PK", "1.png": b"x"}))
    for container, name in (("outer.zip", "inner.7z"), ("outer.tar", "inner.zip")):
        assert list(list_members(root, container, None)) == [
            Member(name, 2, "an archive inside an archive"),
            Member("1.png", 1),
        ]


@pytest.mark.parametrize(("container", "password"), [*CONTAINERS, ("a", None)])
def test_caps_stop_a_container_and_name_the_setting(
    root: Path, container: str, password: str | None
) -> None:
    assert len(list(list_members(root, container, password, Caps(max_members=6)))) == 6
    listed: list[Member] = []
    members = list_members(root, container, password, Caps(max_members=5))
    with pytest.raises(TooLargeError, match=r"more than 5 members.*ingest\.max_members") as raised:
        listed.extend(members)
    assert len(listed) == 5
    assert raised.value.container == container
    small = Caps(max_frame_bytes=699)
    refusals = {member.refusal for member in list_members(root, container, password, small)}
    assert refusals == {"larger than ingest.max_frame_bytes = 699"}


@pytest.mark.parametrize(("container", "password"), [*CONTAINERS, ("a", None)])
def test_a_frame_that_outgrew_the_cap_since_it_was_listed_is_not_read(
    root: Path, container: str, password: str | None
) -> None:
    names = {name.rpartition("/")[2] if container == "a" else name for name in NAMES}
    got: dict[str, bytes] = {}
    small = Caps(max_frame_bytes=699)
    with contextlib.suppress(DamagedArchiveError):
        read_members(root, container, names, password, got.__setitem__, small)
    assert not got


@pytest.mark.parametrize(("container", "password"), CONTAINERS)
def test_an_archive_is_given_up_by_what_it_unpacks_to(
    root: Path, container: str, password: str | None
) -> None:
    got: dict[str, bytes] = {}
    small = Caps(max_archive_bytes=2000)
    for attempt in (
        lambda: list(list_members(root, container, password, small)),
        lambda: read_members(root, container, set(FRAMES), password, got.__setitem__, small),
    ):
        with pytest.raises(TooLargeError, match=r"more than 2000 bytes.*max_archive_bytes"):
            attempt()
    assert len(got) <= 2


@pytest.mark.parametrize(("container", "password"), CONTAINERS)
@pytest.mark.parametrize("change", ["touched", "cut"])
def test_an_archive_that_changes_while_it_is_read_is_given_up(
    root: Path, container: str, password: str | None, change: str
) -> None:
    path = root / re.sub(r"(\.zip)/.*", r"\1", container)
    got: dict[str, bytes] = {}

    def consume(name: str, content: bytes) -> None:
        got[name] = content
        if change == "cut":
            os.truncate(path, 100)
        os.utime(path, ns=(0, 0))

    with pytest.raises(DamagedArchiveError, match="changed while it was being read"):
        read_members(root, container, set(FRAMES), password, consume)
    assert got == {NAMES[0]: FRAMES[NAMES[0]]}


def test_a_frame_of_a_folder_that_cannot_be_read_costs_no_other(root: Path) -> None:
    (root / "a" / "2.png").unlink()
    (root / "a" / "2.png").symlink_to("1.png")  # since it was listed
    (root / "a" / "4.png").unlink()
    os.mkfifo(root / "a" / "4.png")
    got: dict[str, bytes] = {}
    names = {name.rpartition("/")[2] for name in NAMES}
    with pytest.raises(DamagedArchiveError, match=r"a: 2\.png: .*, and 1 more member"):
        read_members(root, "a", names, None, got.__setitem__)
    assert set(got) == names - {"2.png", "4.png"}


@pytest.mark.parametrize("name", ["pipe.7z", "pipe.zip", "pipe.tar", "pipe.tar.gz"])
def test_a_pipe_or_a_folder_under_an_archives_name_is_no_archive(root: Path, name: str) -> None:
    os.mkfifo(root / name)
    (root / f"folder-{name}").mkdir()
    for container in (name, f"folder-{name}"):
        with pytest.raises(DamagedArchiveError, match=r"not a file|Is a directory"):
            list(list_members(root, container, None))


def test_a_folder_named_like_a_zip_is_a_folder_on_the_way_to_a_tar(
    root: Path, tar_of: TarOf
) -> None:
    (root / "unpacked.zip").mkdir()
    (root / "unpacked.zip" / "1.tar").write_bytes(tar_of(FRAMES))
    assert read(root, "unpacked.zip/1.tar") == FRAMES


@pytest.mark.parametrize("container", ["plain.7z", "frames.zip", "x.tar", "train.zip/001.tar"])
def test_of_two_members_of_one_name_the_first_is_read(
    root: Path, container: str, write_7z: Write7z, tar_of: TarOf, write_zip: WriteZip
) -> None:
    tar = tar_of({"a.png": b"first"})[:1024] + tar_of({"a.png": b"second"})
    (root / "x.tar").write_bytes(tar)
    write_zip(root / "train.zip", {"001.tar": tar})
    with zipfile.ZipFile(root / "frames.zip", "w") as outer:
        outer.writestr("a.png", b"first")
        with pytest.warns(UserWarning, match="Duplicate"):
            outer.writestr("a.png", b"second")
    with py7zr.SevenZipFile(root / "plain.7z", "w") as archive:
        archive.writestr(b"first", "a.png")
        archive.writestr(b"second", "a.png")
    got: list[tuple[str, bytes]] = []
    read_members(root, container, {"a.png"}, None, lambda *item: got.append(item))
    assert got == [("a.png", b"first")]
    assert [member.name for member in list_members(root, container, None)] == ["a.png"] * 2


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_zip_is_damaged(root: Path, share: float) -> None:
    whole = (root / "train.zip").read_bytes()
    (root / "cut.zip").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DamagedArchiveError, match=r"cut\.zip: "):
        archive_containers(root, "cut.zip")
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
        good, *links = [m for m in list_members(root, container, None) if not m.folder]
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


@pytest.mark.parametrize("kind", [DamagedArchiveError, WrongPasswordError, TooLargeError])
def test_damage_travels_between_processes(kind: type[DamagedArchiveError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("x.7z", "cut", True)))  # noqa: S301
    assert type(copy) is kind
    assert str(copy) == "x.7z: cut"
    assert copy.suspect


@pytest.mark.parametrize("password", [None, "wrong", PASSWORD])
def test_tars_of_an_encrypted_zip_need_its_password(
    tmp_path: Path, tar_of: TarOf, write_encrypted_zip: WriteEncrypted, password: str | None
) -> None:
    write_encrypted_zip(tmp_path / "a.zip", {"001.tar": tar_of(FRAMES)}, PASSWORD)
    if password == PASSWORD:
        assert read(tmp_path, "a.zip/001.tar", password=password) == FRAMES
        assert [m.name for m in list_members(tmp_path, "a.zip/001.tar", password)] == NAMES
    else:
        with pytest.raises(WrongPasswordError, match=r"a\.zip/001\.tar"):
            list(list_members(tmp_path, "a.zip/001.tar", password))
