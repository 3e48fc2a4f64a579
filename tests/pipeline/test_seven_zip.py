import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import py7zr
import py7zr.archiveinfo
import pytest

from pipeline.members import Caps, DamagedArchiveError, TooLargeError, WrongPasswordError
from pipeline.seven_zip import MAX_DICTIONARY_BYTES, list_seven_zip, read_seven_zip

PASSWORD = "correct horse"
CAPS = Caps()


def frames(count: int, size: int) -> dict[str, bytes]:
    """Noise, which cannot be packed, every third time with zeros, which vanish, behind it."""
    random = np.random.default_rng(0)
    return {
        f"a/{i:05}.png": random.bytes(size) + bytes(size * 9 if i % 3 == 0 else 0)
        for i in range(count)
    }


def write(path: Path, *blocks: dict[str, bytes], **options: Any) -> None:
    """An archive of a block each."""
    raw = options.pop("raw_header", False)
    for number, block in enumerate(blocks):
        with py7zr.SevenZipFile(path, "a" if number else "w", **options) as archive:
            archive.set_encoded_header_mode(not raw)
            for name, content in block.items():
                archive.writestr(content, name)


def reseal(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change a raw header, and make its checksums say that it is as it should be."""
    content = path.read_bytes()
    start = 32 + int.from_bytes(content[12:20], "little")
    header = bytearray(content[start:])
    change(header)
    place = content[12:20] + len(header).to_bytes(8, "little")
    place += zlib.crc32(header).to_bytes(4, "little")
    seal = zlib.crc32(place).to_bytes(4, "little")
    path.write_bytes(content[:8] + seal + place + content[32:start] + header)


def replace(old: bytes, new: bytes) -> Callable[[bytearray], None]:
    def change(header: bytearray) -> None:
        assert header.count(old) == 1
        header[:] = header.replace(old, new)

    return change


def read(
    root: Path, wanted: set[str], password: str | None = None, caps: Caps = CAPS
) -> dict[str, bytes]:
    got: dict[str, bytes] = {}
    read_seven_zip(root, "x.7z", wanted, password, caps, got.__setitem__)
    return got


LZMA, LZMA2 = {"id": py7zr.FILTER_LZMA}, {"id": py7zr.FILTER_LZMA2, "preset": 0}
BCJ, DELTA = {"id": py7zr.FILTER_X86}, {"id": py7zr.FILTER_DELTA, "dist": 4}
AES, COPY = {"id": py7zr.FILTER_CRYPTO_AES256_SHA256}, {"id": py7zr.FILTER_COPY}
BZIP2 = {"id": py7zr.FILTER_BZIP2}


@pytest.mark.parametrize(
    "filters",
    [
        *([COPY], [LZMA], [LZMA2], [BCJ, LZMA2], [BCJ, LZMA], [DELTA, LZMA2], [BZIP2]),
        *([COPY, AES], [LZMA2, AES], [LZMA, AES], [BZIP2, AES]),
    ],
    ids=lambda filters: "+".join(str(item["id"]) for item in filters),
)
def test_every_method_that_is_read_gives_back_what_was_packed(
    tmp_path: Path, filters: list[dict[str, int]]
) -> None:
    # several pieces, several feeds, and members that span them
    members = frames(40, 30_000) | {"big": np.random.default_rng(1).bytes(1_500_000), "none": b""}
    password = PASSWORD if AES in filters else None
    write(tmp_path / "x.7z", members, filters=filters, password=password)
    assert read(tmp_path, set(members), password) == members
    some = {"a/00007.png", "a/00039.png"}
    assert read(tmp_path, some, password) == {name: members[name] for name in some}


def test_blocks_without_a_wanted_member_are_passed_over(tmp_path: Path) -> None:
    blocks = [{f"{block}/{i}.png": bytes([block, i]) * 400 for i in range(3)} for block in range(3)]
    write(tmp_path / "x.7z", *blocks, filters=[LZMA2])
    assert read(tmp_path, {"1/1.png"}) == {"1/1.png": blocks[1]["1/1.png"]}


@pytest.mark.parametrize(
    "method",
    [
        {"id": py7zr.FILTER_ZSTD},
        {"id": py7zr.FILTER_DEFLATE},
        {"id": py7zr.FILTER_PPMD, "order": 6, "mem": 24},
        {"id": py7zr.FILTER_BROTLI, "level": 1},
    ],
)
def test_methods_without_a_bound_on_memory_are_refused_before_anything_is_read(
    tmp_path: Path, method: dict[str, int]
) -> None:
    write(tmp_path / "x.7z", {"1.png": b"content" * 100}, filters=[method])
    for attempt in (
        lambda: list(list_seven_zip(tmp_path, "x.7z", None, CAPS)),
        lambda: read(tmp_path, {"1.png"}),
    ):
        with pytest.raises(DamagedArchiveError, match=r"packed with method .*anew with LZMA2"):
            attempt()


def test_a_header_packed_without_a_bound_on_memory_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filters = py7zr.archiveinfo.DEFAULT_FILTERS
    monkeypatch.setattr(
        type(filters), "ENCODED_HEADER_FILTER", [{"id": py7zr.FILTER_ZSTD}], raising=True
    )
    write(tmp_path / "x.7z", {"1.png": b"content"})
    with pytest.raises(DamagedArchiveError, match="Decompression is not supported by ZStandard"):
        list(list_seven_zip(tmp_path, "x.7z", None, CAPS))


@pytest.mark.parametrize(
    ("method", "old", "new"),
    [
        (LZMA2, b"\x21\x21\x01\x0c", b"\x21\x21\x01\x21"),
        (LZMA, b"\x5d\x00\x00\x80\x00", b"\x5d\x00\x00\x00\x20"),
    ],
)
def test_a_dictionary_that_fills_the_memory_is_refused(
    tmp_path: Path, method: dict[str, int], old: bytes, new: bytes
) -> None:
    write(tmp_path / "x.7z", {"1.png": b"content"}, filters=[method], raw_header=True)
    reseal(tmp_path / "x.7z", replace(old, new))
    with pytest.raises(DamagedArchiveError, match=r"a dictionary of (384|512) MiB"):
        list(list_seven_zip(tmp_path, "x.7z", None, CAPS))
    assert MAX_DICTIONARY_BYTES == 256 * 2**20


def test_a_header_of_too_many_members_is_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert py7zr.archiveinfo.MAX_NUMFILES == 2**19
    write(tmp_path / "x.7z", frames(6, 10))
    assert len(list(list_seven_zip(tmp_path, "x.7z", None, CAPS))) == 6
    monkeypatch.setattr(py7zr.archiveinfo, "MAX_NUMFILES", 5)
    with pytest.raises(DamagedArchiveError, match="numfiles value 6 exceeds limit 5"):
        list(list_seven_zip(tmp_path, "x.7z", None, CAPS))


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes that Python and its decoders held at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [LZMA2, COPY])
def test_memory_does_not_grow_with_the_archive(tmp_path: Path, method: dict[str, int]) -> None:
    members = frames(1500, 8000)  # 12 MB packed, 48 MB unpacked
    write(tmp_path / "x.7z", members, filters=[method], raw_header=True)
    wanted = set(members)
    seen: list[str] = []
    members.clear()

    def work() -> None:
        take = lambda name, content: seen.append(name)  # noqa: E731
        read_seven_zip(tmp_path, "x.7z", wanted, None, CAPS, take)

    assert peak_of(work) < 8 * 2**20
    assert len(seen) == 1500


def test_memory_does_not_grow_with_what_is_packed_well(tmp_path: Path) -> None:
    """A decoder that has more to give than it is asked for is fed no more meanwhile."""
    peaks = []
    for count in (10, 60):
        random = np.random.default_rng(0)
        members = {f"{i}.png": random.bytes(80_000) + bytes(31 * 80_000) for i in range(count)}
        write(tmp_path / "x.7z", members, filters=[LZMA2], raw_header=True)
        members.clear()
        peaks.append(peak_of(lambda last=f"{count - 1}.png": read(tmp_path, {last})))
    assert peaks[1] - peaks[0] < 2**20


def test_a_bomb_is_unpacked_in_pieces_and_only_up_to_the_cap(tmp_path: Path) -> None:
    bomb = {"bomb": bytes(80 * 2**20), "1.png": b"behind it"}
    write(tmp_path / "x.7z", bomb, filters=[LZMA2], raw_header=True)
    assert (tmp_path / "x.7z").stat().st_size < 100_000
    listed = list(list_seven_zip(tmp_path, "x.7z", None, CAPS))
    assert [member.refusal != "" for member in listed] == [True, False]
    got: dict[str, bytes] = {}
    assert peak_of(lambda: got.update(read(tmp_path, {"1.png"}))) < 8 * 2**20
    assert got == {"1.png": b"behind it"}
    small = Caps(max_archive_bytes=10 * 2**20)
    for attempt in (
        lambda: list(list_seven_zip(tmp_path, "x.7z", None, small)),
        lambda: read(tmp_path, {"1.png"}, caps=small),
    ):
        with pytest.raises(TooLargeError, match=r"ingest\.max_archive_bytes"):
            attempt()


def test_a_damaged_block_costs_no_other(tmp_path: Path) -> None:
    blocks = [{f"{block}/{i}.png": bytes([block, i]) * 400 for i in range(3)} for block in range(3)]
    write(tmp_path / "x.7z", *blocks, filters=[LZMA2])
    content = bytearray((tmp_path / "x.7z").read_bytes())
    content[32] ^= 0xFF  # the first byte of the first block
    (tmp_path / "x.7z").write_bytes(content)
    got: dict[str, bytes] = {}
    wanted = {name for block in blocks for name in block}
    with pytest.raises(DamagedArchiveError, match=r"0/0\.png: .*, and 2 more") as raised:
        read_seven_zip(tmp_path, "x.7z", wanted, None, CAPS, got.__setitem__)
    assert got == blocks[1] | blocks[2]
    assert not raised.value.suspect


def test_a_password_is_no_matter_where_nothing_is_encrypted(tmp_path: Path) -> None:
    members = frames(4, 100)
    write(tmp_path / "x.7z", members, filters=[COPY])
    assert read(tmp_path, set(members), "any") == members
    content = bytearray((tmp_path / "x.7z").read_bytes())
    content[32] ^= 1
    (tmp_path / "x.7z").write_bytes(content)
    with pytest.raises(DamagedArchiveError) as raised:
        read(tmp_path, {"a/00000.png"}, "any")
    assert not isinstance(raised.value, WrongPasswordError)


def test_a_member_of_another_size_than_it_says_is_damaged(tmp_path: Path) -> None:
    members = {"1.png": bytes(range(200)), "2.png": bytes(range(100)), "3.png": b"third"}
    write(tmp_path / "x.7z", members, filters=[COPY], raw_header=True)
    # sizes of the first two as they stand in the header: 200 takes two bytes, 100 one
    reseal(tmp_path / "x.7z", replace(b"\x80\xc8\x64", b"\x80\xc9\x63"))
    got: dict[str, bytes] = {}
    with pytest.raises(DamagedArchiveError, match=r"1\.png: its checksum.*1 more"):
        read_seven_zip(tmp_path, "x.7z", set(members), None, CAPS, got.__setitem__)
    assert got == {"3.png": b"third"}
    reseal(tmp_path / "x.7z", replace(b"\x80\xc9\x63", b"\xbf\xff\x63"))  # more than all of it
    with pytest.raises(DamagedArchiveError, match="less than no bytes"):
        list(list_seven_zip(tmp_path, "x.7z", None, CAPS))


def longer(header: bytearray) -> None:
    """A block is to unpack to 254 bytes instead of 206."""
    header[header.rfind(b"\x80\xce") + 1] = 0xFE


def test_packed_data_that_is_shorter_than_what_it_should_give_ends(tmp_path: Path) -> None:
    members = {"1.png": bytes(range(200)), "2.png": b"second"}
    for method, password in ((COPY, None), (LZMA2, None), (LZMA2, PASSWORD)):
        filters = [method, AES] if password else [method]
        write(tmp_path / "x.7z", members, filters=filters, password=password, raw_header=True)
        # what the block unpacks to, 206 bytes, stands behind all else of that kind
        reseal(
            tmp_path / "x.7z",
            lambda header: header.__setitem__(header.rfind(b"\x80\xce") + 1, 0xFE),
        )
        got: dict[str, bytes] = {}
        with pytest.raises(DamagedArchiveError, match=r"2\.png: EOFError"):
            read_seven_zip(tmp_path, "x.7z", set(members), password, CAPS, got.__setitem__)
        assert got == {"1.png": members["1.png"]}


def test_an_empty_archive_holds_nothing(tmp_path: Path) -> None:
    write(tmp_path / "x.7z", {})
    assert list(list_seven_zip(tmp_path, "x.7z", None, CAPS)) == []
    assert read(tmp_path, {"1.png"}) == {}


def test_links_and_devices_are_refused_by_their_mode(tmp_path: Path) -> None:
    modes = {"link": 0o120777, "device": 0o020666, "socket": 0o140666, "pipe": 0o010666}
    with py7zr.SevenZipFile(tmp_path / "x.7z", "w") as archive:
        for name, mode in {**modes, "file": 0o100644, "modeless": 0}.items():
            archive.writestr(b"x", name)
            archive.header.files_info.files[-1]["attributes"] = mode << 16 | 0x8000
    refused = {m.name for m in list_seven_zip(tmp_path, "x.7z", None, CAPS) if m.refusal}
    assert refused == set(modes)
