import gzip
import io
import json
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.members import Caps, DamagedArchiveError, Member, TooLargeError
from pipeline.tars import list_tar, read_tar

TarOf = Callable[[dict[str, bytes]], bytes]
WriteZip = Callable[[Path, dict[str, bytes]], None]

CAPS = Caps()
FRAMES = {
    f"a/{i}.png": np.random.default_rng(i).integers(0, 256, 7000, dtype=np.uint8).tobytes()
    for i in range(6)
}
NAMES = list(FRAMES)
ENTRY = 512 + 7168  # header, and 7000 bytes in whole blocks
FORMS = ["x.tar", "x.tar.gz", "x.zip/1.tar", "x.zip/1.tgz"]


def write(root: Path, tar: bytes, write_zip: WriteZip) -> None:
    """The same tar in all four forms."""
    (root / "x.tar").write_bytes(tar)
    (root / "x.tar.gz").write_bytes(gzip.compress(tar))
    write_zip(root / "x.zip", {"1.tar": tar, "1.tgz": gzip.compress(tar)})


def read(root: Path, container: str, wanted: set[str] | None = None) -> dict[str, bytes]:
    got: dict[str, bytes] = {}
    names = set(FRAMES) if wanted is None else wanted
    read_tar(root, container, names, None, CAPS, got.__setitem__)
    return got


def damage(root: Path, container: str) -> tuple[dict[str, bytes], DamagedArchiveError]:
    """What was read before the damage; listing meets the same damage."""
    with pytest.raises(DamagedArchiveError) as listed:
        list(list_tar(root, container, None, CAPS))
    got: dict[str, bytes] = {}
    with pytest.raises(DamagedArchiveError) as raised:
        read_tar(root, container, set(FRAMES), None, CAPS, got.__setitem__)
    assert raised.value.container == listed.value.container == container
    assert raised.value.suspect == listed.value.suspect
    return got, raised.value


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("container", FORMS)
def test_a_tar_cut_before_it_was_packed_is_good_up_to_the_cut(
    tmp_path: Path, container: str, tar_of: TarOf, write_zip: WriteZip
) -> None:
    write(tmp_path, tar_of(FRAMES)[: 3 * ENTRY + 600], write_zip)
    got, error = damage(tmp_path, container)
    assert got == {name: FRAMES[name] for name in NAMES[:3]}
    assert not error.suspect  # every checksum holds


@pytest.mark.parametrize("share", [0.001, 0.3, 0.7, 0.99])
def test_a_gzip_that_was_cut_is_good_up_to_the_cut(
    tmp_path: Path, share: float, tar_of: TarOf
) -> None:
    packed = gzip.compress(tar_of(FRAMES))
    (tmp_path / "x.tar.gz").write_bytes(packed[: int(share * len(packed))])
    got, error = damage(tmp_path, "x.tar.gz")
    assert got == {name: FRAMES[name] for name in NAMES[: len(got)]}
    assert len(got) >= int(share * 6) - 2  # what is read ahead is lost
    assert not error.suspect


def test_a_gzip_that_is_damaged_and_cut_as_well_is_in_doubt(tmp_path: Path, tar_of: TarOf) -> None:
    tar = bytearray(tar_of(FRAMES))
    tar[3 * ENTRY + 5] ^= 1  # a name; whether more is wrong, the checksum would have told
    packed = gzip.compress(bytes(tar))
    (tmp_path / "x.tar.gz").write_bytes(packed[: len(packed) - 6])
    got, error = damage(tmp_path, "x.tar.gz")
    assert (len(got), error.suspect) == (3, True)


@pytest.mark.parametrize("container", FORMS[1:])
def test_a_checksum_that_fails_in_the_end_puts_all_in_doubt(
    tmp_path: Path, container: str, tar_of: TarOf, write_zip: WriteZip
) -> None:
    """One bit of a frame: the tar is as good as before, but for its content."""
    tar = tar_of(FRAMES)
    spoilt = tar.replace(FRAMES[NAMES[2]], bytes(1) + FRAMES[NAMES[2]][1:])
    checksum = struct.pack("<I", zlib.crc32(tar))
    wrong_gzip = gzip.compress(spoilt)[:-8] + checksum + struct.pack("<I", len(spoilt))
    (tmp_path / "x.tar.gz").write_bytes(wrong_gzip)
    write_zip(tmp_path / "x.zip", {"1.tar": tar, "1.tgz": wrong_gzip})
    stored = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(stored.replace(tar, spoilt))
    got, error = damage(tmp_path, container)
    assert len(got) >= 4
    assert error.suspect


@pytest.mark.parametrize("container", FORMS[1:])
def test_damage_that_shows_in_a_header_is_held_to_the_checksum(
    tmp_path: Path, container: str, tar_of: TarOf, write_zip: WriteZip
) -> None:
    tar = bytearray(tar_of(FRAMES))
    tar[3 * ENTRY + 5] ^= 1  # a name
    write(tmp_path, bytes(tar), write_zip)
    got, error = damage(tmp_path, container)
    assert (len(got), error.suspect) == (3, False)  # packed as it is
    good = tar_of(FRAMES)
    for name in ("x.tar.gz", "x.zip"):
        content = (tmp_path / name).read_bytes()
        for checksum in (struct.pack("<I", zlib.crc32(tar)), struct.pack("<I", zlib.crc32(good))):
            content = content.replace(checksum, bytes(4))
        (tmp_path / name).write_bytes(content)
    if container != "x.zip/1.tgz":  # whose checksums are the inner one's, packed, and its own
        got, error = damage(tmp_path, container)
        assert (len(got), error.suspect) == (3, True)


@pytest.mark.parametrize("container", FORMS)
@pytest.mark.parametrize("rest", [b"\0" * 5000 + b"x", b"\0" * 200_000 + b"x"])
def test_what_follows_the_end_is_not_passed_over(
    tmp_path: Path, container: str, rest: bytes, tar_of: TarOf, write_zip: WriteZip
) -> None:
    write(tmp_path, tar_of(FRAMES) + rest, write_zip)
    got, error = damage(tmp_path, container)
    assert (got, error.suspect) == (FRAMES, False)
    assert "something follows" in error.reason
    write(tmp_path, tar_of(FRAMES) + bytes(300_000), write_zip)
    assert read(tmp_path, container) == FRAMES


@pytest.mark.parametrize("container", FORMS)
def test_a_header_overwritten_with_zeros_is_not_the_end(
    tmp_path: Path, container: str, tar_of: TarOf, write_zip: WriteZip
) -> None:
    tar = bytearray(tar_of(FRAMES))
    tar[2 * ENTRY : 2 * ENTRY + 512] = bytes(512)
    write(tmp_path, bytes(tar), write_zip)
    got, error = damage(tmp_path, container)
    assert list(got) == NAMES[:2]
    assert "something follows" in error.reason


@pytest.mark.parametrize("container", FORMS)
@pytest.mark.parametrize("tar", [b"", bytes(1024), bytes(10240)])
def test_an_empty_tar_is_damaged(
    tmp_path: Path, container: str, tar: bytes, write_zip: WriteZip
) -> None:
    write(tmp_path, tar, write_zip)
    got, _ = damage(tmp_path, container)
    assert got == {}


def test_an_empty_gzip_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").touch()
    assert damage(tmp_path, "x.tar.gz")[0] == {}
    (tmp_path / "x.tar.gz").write_bytes(b"no gzip at all")
    assert "Not a gzipped file" in damage(tmp_path, "x.tar.gz")[1].reason


@pytest.mark.parametrize("size", [2**33, 2**62, 2**80])
def test_a_size_that_no_file_has_ends_the_tar_at_once(
    tmp_path: Path, size: int, tar_of: TarOf, write_zip: WriteZip
) -> None:
    write(tmp_path, tar_of(FRAMES)[: 2 * ENTRY] + header("b/1.png", size) + b"x", write_zip)
    for container in FORMS:
        got, error = damage(tmp_path, container)
        assert list(got) == NAMES[:2]
        assert not error.suspect


def test_a_negative_size_is_damage(tmp_path: Path, tar_of: TarOf) -> None:
    block = bytearray(header("b/1.png", 0))
    block[124:136] = b"\xff" * 12  # -1 as GNU tar writes numbers that octal digits cannot hold
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "x.tar").write_bytes(tar_of(FRAMES)[:ENTRY] + block + bytes(1024))
    got, error = damage(tmp_path, "x.tar")
    assert list(got) == NAMES[:1]
    assert "an entry of -1 bytes" in error.reason


@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK]
)
def test_a_bomb_in_a_header_is_stopped_by_what_comes_out(
    tmp_path: Path, kind: bytes, tar_of: TarOf
) -> None:
    size = 200 * 2**20
    with gzip.open(tmp_path / "x.tar.gz", "wb", 1) as packed:
        packed.write(tar_of(FRAMES)[:ENTRY] + header("x", size, kind))
        for _ in range(200):
            packed.write(bytes(2**20))
    tracemalloc.start()
    got: dict[str, bytes] = {}
    with pytest.raises(DamagedArchiveError, match="more than 65536 bytes of headers"):
        read_tar(tmp_path, "x.tar.gz", set(FRAMES), None, CAPS, got.__setitem__)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(got) == NAMES[:1]
    assert peak < 2 * 2**20


def test_what_is_said_for_all_entries_does_not_pile_up(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.tar.gz", "wb", 1) as packed:
        for number in range(200):
            record = b"60000 key%03d=" % number
            record = record.ljust(59_999, b"x") + b"\n"
            packed.write(header("x", len(record), tarfile.XGLTYPE) + record.ljust(60_416, b"\0"))
            packed.write(header(f"{number}.png", 0))
        packed.write(bytes(1024))
    tracemalloc.start()
    listed = [member.name for member in list_tar(tmp_path, "x.tar.gz", None, CAPS)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(listed) == 200
    assert peak < 2 * 2**20


def test_headers_in_a_row_are_stopped(tmp_path: Path, tar_of: TarOf) -> None:
    pax = header("x", 16, tarfile.XHDTYPE) + b"16 comment=abcd\n".ljust(512, b"\0")
    (tmp_path / "x.tar").write_bytes(tar_of(FRAMES)[:ENTRY] + pax * 5000)
    got, error = damage(tmp_path, "x.tar")
    assert list(got) == NAMES[:1]
    assert "headers before an entry" in error.reason or "recursion" in error.reason


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read(tmp_path: Path, form: int) -> None:
    names = [f"{'deep/' * 60}{i}.png" for i in range(3)] + ["影/1.png"]
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    assert read(tmp_path, "x.tar", set(names)) == dict.fromkeys(names, b"abc")


@pytest.mark.parametrize("container", FORMS)
def test_frames_larger_than_headers_may_be_are_read(
    tmp_path: Path, container: str, tar_of: TarOf, write_zip: WriteZip
) -> None:
    large = {f"{i}.png": np.random.default_rng(i).bytes(300_000) for i in range(3)}
    write(tmp_path, tar_of(large), write_zip)
    assert read(tmp_path, container, set(large)) == large


def test_a_bomb_is_given_up_by_what_it_unpacks_to(tmp_path: Path, tar_of: TarOf) -> None:
    with gzip.open(tmp_path / "x.tar.gz", "wb", 1) as packed:
        packed.write(tar_of(FRAMES)[:ENTRY] + header("b/1.png", 2**40))
        for _ in range(50):
            packed.write(bytes(2**20))
    small = Caps(max_archive_bytes=10 * 2**20)
    listed: list[Member] = []
    members = list_tar(tmp_path, "x.tar.gz", None, small)
    with pytest.raises(TooLargeError, match=r"x\.tar\.gz: more than 10485760 bytes .*raise ingest"):
        listed.extend(members)
    assert [member.refusal != "" for member in listed] == [False, True]


def sparse(name: str) -> bytes:
    """A GNU tar's sparse entry: 4 GiB, of which 512 bytes are stored."""
    block = bytearray(header(name, 512, tarfile.GNUTYPE_SPARSE))
    block[386:410] = b"%011o\0%011o\0" % (0, 512)
    block[483:495] = b"%011o\0" % 2**32
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"x" * 512


def test_what_is_no_plain_file_is_refused_and_costs_nothing_else(
    tmp_path: Path, tar_of: TarOf, write_zip: WriteZip
) -> None:
    odd = b""
    kinds = {
        "symbolic link": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "device": tarfile.CHRTYPE,
        "disk": tarfile.BLKTYPE,
        "pipe": tarfile.FIFOTYPE,
    }
    for name, kind in kinds.items():
        odd += header(name, 0, kind)
    write(tmp_path, odd + sparse("sparse") + tar_of(FRAMES), write_zip)
    wanted = {*FRAMES, *kinds, "sparse"}
    for container in FORMS:
        refused = {
            m.name: m.refusal for m in list_tar(tmp_path, container, None, CAPS) if m.refusal
        }
        assert refused == dict.fromkeys([*kinds, "sparse"], "a link or a device, not a file")
        assert read(tmp_path, container, wanted) == FRAMES


def test_names_that_are_no_utf8_can_be_written_and_printed(tmp_path: Path, tar_of: TarOf) -> None:
    tar = tar_of({"a\xff.png".replace("\xff", "?"): b"x"}).replace(b"a?", b"a\xff")
    block = bytearray(tar[:512])
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "x.tar").write_bytes(bytes(block) + tar[512:])
    (member,) = list_tar(tmp_path, "x.tar", None, CAPS)
    assert member == Member("a\\xff.png", 1, "a name that is not text (UTF-8)")
    assert json.dumps(member.name).encode("utf-8")


@pytest.mark.parametrize("bit", range(0, 512 * 8, 67))
def test_every_bit_of_a_header_is_guarded(tmp_path: Path, bit: int, tar_of: TarOf) -> None:
    tar = bytearray(tar_of(FRAMES))
    tar[ENTRY + bit // 8] ^= 1 << bit % 8
    (tmp_path / "x.tar").write_bytes(tar)
    got, _ = damage(tmp_path, "x.tar")
    assert list(got) == NAMES[:1]
