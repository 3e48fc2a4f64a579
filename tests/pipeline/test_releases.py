import gzip
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import py7zr
import pytest

from pipeline import releases
from pipeline.archives import Caps, DamagedArchiveError, TooLargeError, WrongPasswordError
from pipeline.catalogue import REFUSALS, Refusal, refusal_table
from pipeline.errors import PipelineError
from pipeline.layouts import recognize
from pipeline.releases import Scan, bytes_of, cannot_be_read, containers, member_name
from pipeline.settings import Dataset
from pipeline.tables import read_table, write_table

Write7z = Callable[..., None]
TarOf = Callable[[dict[str, bytes]], bytes]
WriteFiles = Callable[[Path, dict[str, bytes]], None]

PLACE = "forTrain/001/H/scene1/nm/000/1"


def scan(dataset: Dataset, root: Path, container: str, caps: Caps | None = None) -> Scan:
    return releases.scan(dataset, root, container, recognize, caps)


def test_frames_come_in_natural_order_whatever_the_archives(
    tmp_path: Path, tar_of: TarOf, write_zip: WriteFiles
) -> None:
    names = [f"{PLACE}/{name}.jpg" for name in ("10", "9", "1", "frame2", "frame10", "002", "²")]
    write_zip(tmp_path / "train001-500.zip", {"001.tar": tar_of(dict.fromkeys(names, b"x"))})
    (found,) = scan("casia_e", tmp_path, "train001-500.zip/001.tar").found
    assert found.frames == [
        "1.jpg",
        "002.jpg",
        "9.jpg",
        "10.jpg",
        "frame2.jpg",
        "frame10.jpg",
        "².jpg",
    ]
    assert found.folder == PLACE
    assert found.key == ("001", "H-scene1-nm-1", "000")
    assert found.bytes == 7
    assert member_name(found.container, found.folder, "1.jpg") == f"{PLACE}/1.jpg"


def test_oumvlps_frames_do_not_depend_on_the_order_in_the_7z(
    tmp_path: Path, write_7z: Write7z
) -> None:
    folder = "Silhouette_090-01/00002"
    write_7z(tmp_path / "a.7z", {f"{folder}/{n:04}.png": b"x" for n in (3, 1, 2)})
    (found,) = scan("oumvlp", tmp_path, "a.7z").found
    assert found.key == ("00002", "01", "090")
    assert found.frames == ["0001.png", "0002.png", "0003.png"]
    assert member_name("a.7z", folder, "0001.png") == f"{folder}/0001.png"


def test_frames_of_a_folder_are_members_by_their_own_name(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path, {"deeper/00001/00/090/0001.png": b"x"})
    names, refused, empty = containers("oumvlp", tmp_path)
    assert (names, refused, empty) == (["deeper/00001/00/090"], [], [])
    (found,) = scan("oumvlp", tmp_path, names[0]).found
    assert found.key == ("00001", "00", "090")
    assert member_name(names[0], found.folder, "0001.png") == "0001.png"


def test_what_is_no_frame_is_refused(tmp_path: Path, write_7z: Write7z) -> None:
    write_7z(tmp_path / "a.7z", {"Silhouette_90-00/00001/1.png": b"x"})
    result = scan("oumvlp", tmp_path, "a.7z")
    assert result.found == []
    assert result.refused == [Refusal("a.7z", "Silhouette_90-00/00001/1.png", "not a frame's name")]
    assert result.seen == 1


def test_scene3_s_and_four_digit_subjects_of_casia_e_are_known(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    folder = "forTrain/1014/L/scene3_s/cl/270/2"
    write_tree(tmp_path, {f"{folder}/1.jpg": b"x", f"{folder}/2.jpeg": b"x"})
    (found,) = scan("casia_e", tmp_path, folder).found
    assert found.key == ("1014", "L-scene3_s-cl-2", "270")
    assert len(found.frames) == 2


def test_a_damaged_tar_keeps_what_came_before_and_counts_the_rest(
    tmp_path: Path, tar_of: TarOf, write_zip: WriteFiles
) -> None:
    other = PLACE.replace("000", "090")
    members = {f"{folder}/{i}.jpg": b"x" * 9 for folder in (PLACE, other) for i in range(3)}
    whole = tar_of(members)
    write_zip(tmp_path / "val.zip", {"001.tar": whole[: 5 * 1024]})  # the sixth entry is missing
    result = scan("casia_e", tmp_path, "val.zip/001.tar")
    assert [found.key[2] for found in result.found] == ["000"]
    assert result.seen == 5
    assert {(r.reason, r.frames) for r in result.refused} == {
        ("the archive is damaged", 0),
        ("cut off by the damage", 2),
    }


def test_a_tar_past_a_cap_is_not_called_damaged(tmp_path: Path, tar_of: TarOf) -> None:
    other = PLACE.replace("000", "090")
    tar = tar_of({f"{folder}/{i}.jpg": b"x" * 9 for folder in (PLACE, other) for i in range(3)})
    (tmp_path / "a.tar").write_bytes(tar)
    assert len(scan("casia_e", tmp_path, "a.tar", Caps(max_archive_bytes=len(tar))).found) == 2
    refused = scan("casia_e", tmp_path, "a.tar", Caps(max_archive_bytes=len(tar) - 1)).refused
    assert refused[0].frames == 0
    assert {refusal.reason for refusal in refused} == {"past a cap"}


def test_a_tar_that_is_damaged_from_its_start_is_not_called_empty_too(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    (one,) = scan("casia_e", tmp_path, "a.tar").refused
    assert one.reason == "the archive is damaged"


def test_a_second_member_of_the_same_name_is_refused(
    tmp_path: Path, write_zip: WriteFiles, tar_of: TarOf
) -> None:
    one = tar_of({f"{PLACE}/1.jpg": b"x", f"{PLACE}/2.jpg": b"x"})
    # two tars in one: the first without its end
    write_zip(tmp_path / "val.zip", {"001.tar": one[: 2 * 1024] + one})
    result = scan("casia_e", tmp_path, "val.zip/001.tar")
    assert [len(found.frames) for found in result.found] == [2]
    assert [r.reason for r in result.refused] == ["a second member of the same name"] * 2
    assert result.seen == 4


def test_a_tar_whose_checksum_fails_costs_all_its_sequences(
    tmp_path: Path, tar_of: TarOf, write_zip: WriteFiles
) -> None:
    other = PLACE.replace("000", "090")
    members = {
        f"{folder}/{i}.jpg": b"content".ljust(8000) for folder in (PLACE, other) for i in range(3)
    }
    write_zip(tmp_path / "val.zip", {"001.tar": tar_of(members)})
    content = (tmp_path / "val.zip").read_bytes()
    (tmp_path / "val.zip").write_bytes(content.replace(b"content", b"CONTENT", 1))
    result = scan("casia_e", tmp_path, "val.zip/001.tar")
    assert result.found == []
    assert result.seen == 6 == sum(refusal.frames for refusal in result.refused)


def hostile(tar_of: TarOf) -> bytes:
    """A tar of one good sequence among all that a tar should not hold."""
    good = tar_of({f"{PLACE}/{i}.jpg": b"x" for i in range(3)})
    odd = b""
    for name, kind in (
        (f"{PLACE}/7.jpg", tarfile.SYMTYPE),
        (f"{PLACE}/8.jpg", tarfile.LNKTYPE),
        (f"{PLACE}/9.jpg", tarfile.CHRTYPE),
        (f"../{PLACE}/4.jpg", tarfile.REGTYPE),
        (f"/{PLACE}/5.jpg", tarfile.REGTYPE),
        (f"{PLACE}/\udcff.jpg", tarfile.REGTYPE),
        (f"{PLACE}/\x1b[2J.jpg", tarfile.REGTYPE),
        (f"{PLACE}/0.jpg", tarfile.REGTYPE),
    ):
        info = tarfile.TarInfo(name)
        info.type = kind
        odd += info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")
    return odd[-512:] + odd[:-512] + good


def test_what_an_archive_should_not_hold_is_refused_member_by_member(
    tmp_path: Path, tar_of: TarOf
) -> None:
    (tmp_path / "a.tar").write_bytes(hostile(tar_of))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(hostile(tar_of)))
    for container in ("a.tar", "b.tar.gz"):
        result = scan("casia_e", tmp_path, container)
        assert [found.frames for found in result.found] == [["0.jpg", "1.jpg", "2.jpg"]]
        assert Counter(refusal.reason for refusal in result.refused) == {
            "a link or a device, not a file": 3,
            "a name that points outside the archive": 2,
            "a name that is not text (UTF-8)": 2,
            "a second member of the same name": 1,
        }
        write_table(
            tmp_path / "refusals.parquet", refusal_table("casia_e", result.refused), REFUSALS
        )
        members = read_table(tmp_path / "refusals.parquet", REFUSALS)["member"]
        assert f"{PLACE}/\\xff.jpg" in set(members)
        assert all(member.isprintable() for member in members)
    assert not (tmp_path.parent / PLACE).exists()


def test_folders_and_archives_whose_names_are_no_text_are_refused(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path, {"00001/00/090/1.png": b"x", "bad/00001/00/000/1.png": b"x"})
    (tmp_path / "bad").rename(tmp_path / os.fsdecode(b"bad\xff"))
    (tmp_path / os.fsdecode(b"\xfe.7z")).touch()
    (tmp_path / os.fsdecode(b"empty\xff")).mkdir()
    names, refused, empty = containers("oumvlp", tmp_path)
    assert (names, empty) == (["00001/00/090"], [])
    assert {(r.container, r.member, r.frames) for r in refused} == {
        ("bad\\xff/00001/00/000", "", 1),
        (".", "\\xfe.7z", 1),
        ("empty\\xff", "", 0),
    }
    assert all("UTF-8" in refusal.reason for refusal in refused)


def test_a_folder_that_cannot_be_read_stops_the_ingest(
    tmp_path: Path, write_tree: WriteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path, {"00001/00/090/1.png": b"x", "00002/00/090/1.png": b"x"})
    scandir = os.scandir

    def refuse(path: str) -> object:  # root may read everything, so permissions show nothing
        if os.fspath(path).endswith("00002"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PipelineError, match=r"1 folder\(s\) cannot be read:\n.*00002: Permission"):
        containers("oumvlp", tmp_path)


def test_a_folder_called_like_an_archive_is_refused_by_that_name(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path, {"00001/00/090/1.png": b"x", "00001/01/v.zip/1.png": b"x"})
    names, refused, _ = containers("oumvlp", tmp_path)
    assert names == ["00001/00/090"]
    assert [(r.container, r.frames) for r in refused] == [("00001/01/v.zip", 1)]
    assert "called like an archive" in refused[0].reason


def test_a_damaged_7z_raises(tmp_path: Path) -> None:
    (tmp_path / "a.7z").write_bytes(b"7z")
    with pytest.raises(DamagedArchiveError, match=r"a\.7z: "):
        scan("oumvlp", tmp_path, "a.7z")


def test_containers_are_sorted_folder_by_folder(tmp_path: Path, write_tree: WriteFiles) -> None:
    numbers = [i * 7 % 50 for i in range(50)]
    archives, folders = ([f"{number:02}{end}" for number in numbers] for end in (".7z", "/00/090"))
    write_tree(tmp_path, dict.fromkeys([*archives, *(f"{name}/1.png" for name in folders)], b"x"))
    assert containers("oumvlp", tmp_path) == ([*sorted(archives), *sorted(folders)], [], [])


def test_containers_are_found_and_what_cannot_hold_frames_is_refused(
    tmp_path: Path, write_zip: WriteFiles, write_tree: WriteFiles, tar_of: TarOf
) -> None:
    write_tree(tmp_path, {"b/x.7z": b"", "a/x.7z": b"", "c/1.png": b"", "d/e/f/1.png": b""})
    write_zip(tmp_path / "t.zip", {"2.tar": tar_of({"x": b""}), "1.tar": b"", "readme": b"hi"})
    write_zip(tmp_path / "none.zip", {})
    names, refused, _ = containers("casia_e", tmp_path)
    assert sorted(names) == sorted(
        ["a/x.7z", "b/x.7z", "c", "d/e/f", "t.zip/1.tar", "t.zip/2.tar", "t.zip"]
    )
    assert {(r.container, r.member, r.reason, r.frames) for r in refused} == {
        ("none.zip", "", "the archive is empty", 0),
    }
    assert containers("casia_e", tmp_path) == (names, refused, [])


def test_a_linked_folder_is_refused_and_not_passed_over(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path / "root", {"00001/00/090/1.png": b"x"})
    write_tree(tmp_path / "outside", {"00003/00/090/1.png": b"x"})
    (tmp_path / "root" / "00003").symlink_to(tmp_path / "outside" / "00003")
    names, refused, _ = containers("oumvlp", tmp_path / "root")
    assert names == ["00001/00/090"]
    (link,) = refused
    assert link.member == "00003"
    assert link.reason.startswith("a link to a folder, which is not followed: ")


def test_the_root_itself_may_be_a_link(tmp_path: Path, write_tree: WriteFiles) -> None:
    write_tree(tmp_path / "real", {"00001/00/090/1.png": b"x"})
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert containers("oumvlp", tmp_path / "root") == (["00001/00/090"], [], [])


def test_a_missing_root_and_an_empty_one_name_the_setting(tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"data\.oumvlp\.root = .*absent: expected the folder .* missing"
    ):
        containers("oumvlp", tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(
        PipelineError, match=r"data\.casia_e\.root = .*file: expected the folder .* a file"
    ):
        containers("casia_e", tmp_path / "file")


def test_empty_folders_are_named_and_no_others(tmp_path: Path, write_tree: WriteFiles) -> None:
    write_tree(tmp_path, {"a/b/1.png": b"x", "c/1.png": b"x"})
    for folder in ("a/b/empty", "a/hollow/empty"):
        (tmp_path / folder).mkdir(parents=True)
    names, refused, empty = containers("oumvlp", tmp_path)
    assert (names, refused) == (["a/b", "c"], [])
    assert empty == ["a/b/empty", "a/hollow/empty"]


def test_empty_folders_inside_an_archive_are_named(
    tmp_path: Path, write_zip: WriteFiles, write_tree: WriteFiles
) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in (".", "./full", "./full/empty", "./hollow", "./hollow/empty", "../outside"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("./full/1.png"))
    write_zip(tmp_path / "x.zip", {"x.tar": (tmp_path / "x.tar").read_bytes()})
    write_tree(tmp_path / "tree", {"full/1.png": b""})
    (tmp_path / "tree" / "empty").mkdir()
    with py7zr.SevenZipFile(tmp_path / "x.7z", "w") as archive:
        archive.writeall(tmp_path / "tree", "")
    result = scan("oumvlp", tmp_path, "x.zip/x.tar")
    assert result.empty == ["./full/empty", "./hollow/empty"]
    assert result.seen == 1
    result = scan("oumvlp", tmp_path, "x.7z")
    assert result.empty == ["empty"]
    assert result.seen == 1


def test_a_description_is_no_data(tmp_path: Path, write_tree: WriteFiles) -> None:
    write_tree(tmp_path, {"dataset.yaml": b"x", "a/dataset.yaml": b"x"})
    assert containers("oumvlp", tmp_path) == (["a"], [], [])
    write_tree(tmp_path, {"other.yaml": b"x"})
    assert scan("oumvlp", tmp_path, ".").refused == [
        Refusal(".", "other.yaml", "not a frame's name")
    ]


def test_a_description_below_the_root_is_none(tmp_path: Path, write_tree: WriteFiles) -> None:
    write_tree(tmp_path, {"a/dataset.yaml": b"x"})
    assert scan("oumvlp", tmp_path, "a").refused == [
        Refusal("a", "dataset.yaml", "not a frame's name")
    ]


def test_the_size_of_a_container_is_its_archives(
    tmp_path: Path, write_tree: WriteFiles, write_zip: WriteFiles, tar_of: TarOf
) -> None:
    write_tree(tmp_path, {"a/b/1.png": b"x"})
    write_zip(tmp_path / "x.zip", {"1.tar": tar_of({"x": b""})})
    assert bytes_of(tmp_path, "x.zip/1.tar") == (tmp_path / "x.zip").stat().st_size
    for container in ("a/b", ".", "gone.7z"):
        assert bytes_of(tmp_path, container) == 0


def test_all_broken_zips_are_named_at_once(tmp_path: Path) -> None:
    for name in ("train001-500.zip", "val501-614.zip"):
        (tmp_path / name).write_bytes(b"PK, then nothing")
    with pytest.raises(PipelineError, match=r"2 archive\(s\) cannot be read") as raised:
        containers("casia_e", tmp_path)
    assert "train001-500.zip" in str(raised.value)
    assert "val501-614.zip" in str(raised.value)


def test_passwords_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert releases.password("oumvlp") is None
    monkeypatch.setenv("OUMVLP_PASSWORD", "secret")
    assert releases.password("oumvlp") == "secret"
    assert releases.password("casia_e") is None
    monkeypatch.setenv("OUMVLP_PASSWORD", "")
    assert releases.password("oumvlp") is None
    assert os.environ["OUMVLP_PASSWORD"] == ""


def test_advice_on_archives_fits_what_is_wrong_with_them() -> None:
    cap, wrong, damage = (
        kind("a.7z", "x") for kind in (TooLargeError, WrongPasswordError, DamagedArchiveError)
    )
    for broken, advice in (
        ([cap, cap], "A cap of params.yaml was reached"),
        ([cap, damage], "Download them again"),
        ([cap, wrong, damage], "environment variable OUMVLP_PASSWORD"),
    ):
        told = str(cannot_be_read("oumvlp", Path("root"), broken))
        assert f"{len(broken)} archive(s) cannot be read:" in told
        assert advice in told
