import errno
import io
import json
import os
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import py7zr
import py7zr.io
import pytest
from PIL import Image

from gaitgl.silhouettes import normalize_sequence
from pipeline import finished_shards, normalizing, shard_plan
from pipeline.archives import Caps
from pipeline.catalogue import REFUSALS
from pipeline.errors import PipelineError
from pipeline.ingestion import ingest
from pipeline.normalizing import (
    RefusedFrameError,
    check_accounts,
    decode,
    normalize,
    release_state,
)
from pipeline.processes import map_in_order
from pipeline.settings import Dataset
from pipeline.silhouette_store import SilhouetteStore
from pipeline.tables import KEY, read_table
from tests.child_processes import environment, python

Write7z = Callable[..., None]
WriteFiles = Callable[[Path, dict[str, bytes]], None]

FOLDER = "00001/00/090"


def png(frame: npt.NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", frame)[1].tobytes())


def walker(shift: int) -> npt.NDArray[np.uint8]:
    """uint8 [100, 80]: a bright upright ellipse."""
    frame = np.zeros((100, 80), np.uint8)
    cv2.ellipse(frame, (30 + shift, 50), (12, 40), 0, 0, 360, 255, -1)
    return frame


# the least that ingest accepts: one subject to train on and one to test, four frames each
RELEASE = {
    f"{subject}/{sequence}/090/{number}.png": png(walker(number))
    for subject in ("00001", "00002")
    for sequence in ("00", "01")
    for number in range(1, 5)
}
BLACK = png(np.zeros((100, 80), np.uint8))


def run(
    root: Path,
    folder: Path,
    sequences: pd.DataFrame | None = None,
    workers: int = 0,
    max_refused_share: float = 1.0,
    shards: Path | None = None,
) -> None:
    if sequences is None:
        sequences, *_ = ingest("oumvlp", root, "published", workers=0)
    folder.mkdir()
    normalize(
        "oumvlp", root, sequences, folder, 10_000, 3, workers, None, max_refused_share, shards
    )


def refusals_of(folder: Path) -> pd.DataFrame:
    return read_table(folder / "refusals.parquet", REFUSALS)


SPLITS = ("train", "val", "test")


def reasons(folder: Path) -> dict[str, int]:
    """Frames refused for each reason; also checks that nothing is lost."""
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    assert counts["frames_in"] == counts["frames_kept"] + counts["frames_refused"]
    index = SilhouetteStore(folder).index
    assert counts["frames_kept"] == index["n_frames"].sum()
    assert counts["sequences_kept"] == len(index)
    by_split = counts["sequences_refused"]
    assert set(by_split) <= set(SPLITS)
    assert sum(by_split.values()) == counts["sequences_in"] - counts["sequences_kept"]
    frames = refusals_of(folder).groupby("reason")["frames"].sum()
    refused = {str(reason): int(n) for reason, n in frames.items()}
    assert counts["refused_by_reason"] == refused
    assert counts["frames_refused"] == sum(refused.values())
    return refused


def keys(folder: Path) -> list[str]:
    return ["/".join(key) for key in SilhouetteStore(folder).index[KEY].itertuples(index=False)]


def test_oumvlps_silhouettes_are_gaitgls_of_the_decoded_frames(
    release_roots: dict[Dataset, Path], stores: dict[Dataset, SilhouetteStore]
) -> None:
    members: dict[str, bytes] = {}
    for path in release_roots["oumvlp"].glob("*.7z"):
        factory = py7zr.io.BytesIOFactory(limit=1 << 24)
        with py7zr.SevenZipFile(path) as archive:
            archive.extractall(factory=factory)
            members |= {name: factory.products[name].read() for name in archive.getnames()}
    compare(
        stores["oumvlp"],
        members,
        lambda subject, sequence, view: f"Silhouette_{view}-{sequence}/{subject}/",
    )


def test_casia_es_silhouettes_are_gaitgls_of_the_decoded_frames(
    release_roots: dict[Dataset, Path], stores: dict[Dataset, SilhouetteStore]
) -> None:
    members: dict[str, bytes] = {}
    for path in release_roots["casia_e"].glob("*.zip"):
        with zipfile.ZipFile(path) as outer:
            for name in outer.namelist():
                with outer.open(name) as stream, tarfile.open(fileobj=stream) as tar:
                    for entry in tar:
                        content = tar.extractfile(entry)
                        assert content is not None
                        members[entry.name] = content.read()

    def folder(subject: str, sequence: str, view: str) -> str:
        height, scene, condition, number = sequence.split("-")
        return f"forTrain/{subject}/{height}/{scene}/{condition}/{view}/{number}/"

    compare(stores["casia_e"], members, folder)


def compare(
    store: SilhouetteStore, members: dict[str, bytes], folder: Callable[[str, str, str], str]
) -> None:
    """The store's sequences are those of ``members``, frame for frame."""
    for number, key in enumerate(store.index[KEY].itertuples(index=False, name=None)):
        prefix = folder(*key)
        frames = [
            cv2.imdecode(np.frombuffer(members.pop(name), np.uint8), cv2.IMREAD_GRAYSCALE)
            for name in sorted(members)
            if name.startswith(prefix)
        ]
        expected, _ = normalize_sequence([np.asarray(frame, np.uint8) for frame in frames])
        np.testing.assert_array_equal(store.read(number), expected)
    assert not members  # nothing of the release is left out


def test_bytes_do_not_depend_on_the_number_of_workers(
    release_roots: dict[Dataset, Path],
    catalogues: dict[Dataset, pd.DataFrame],
    stores: dict[Dataset, SilhouetteStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_plan, "SHARD_FRAMES", 100)
    written = []
    for workers in (0, 1, 3):
        folder = tmp_path / str(workers)
        run(release_roots["oumvlp"], folder, catalogues["oumvlp"], workers)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert sum(name.endswith(".arrow") for name in written[0]) > 2
    assert written[0] == written[1] == written[2]
    # however it is cut into shards, the frames are the same
    store = SilhouetteStore(tmp_path / "0")
    assert store.index[KEY].equals(stores["oumvlp"].index[KEY])
    assert store.index["crc32"].equals(stores["oumvlp"].index["crc32"])
    for number in range(0, len(store.index), 7):
        np.testing.assert_array_equal(store.read(number), stores["oumvlp"].read(number))


def test_splits_of_the_catalogue_are_kept(
    catalogues: dict[Dataset, pd.DataFrame], stores: dict[Dataset, SilhouetteStore]
) -> None:
    for dataset, store in stores.items():
        assert store.index[[*KEY, "split"]].equals(catalogues[dataset][[*KEY, "split"]])


def test_all_frames_in_are_kept_or_refused_for_a_reason(
    tmp_path: Path, write_tree: WriteFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(
        tmp_path / "root",
        RELEASE
        | {
            # one bad frame of each kind among good ones
            "00001/00/090/5.png": b"no picture",
            "00001/00/090/6.png": BLACK,
            "00001/00/090/7.png": b"",
            "00001/00/090/8.png": png(walker(0))[:60],
            # nothing but bad frames
            "00003/00/090/1.png": BLACK,
            "00003/00/090/2.png": b"GIF89a",
            # two usable frames where three are needed
            "00005/00/090/1.png": png(walker(1)),
            "00005/00/090/2.png": png(walker(2)),
            "00005/00/090/3.png": BLACK,
        },
    )
    out = tmp_path / "out"
    run(tmp_path / "root", out)
    assert reasons(out) == {
        "not a picture": 4,
        "too little foreground": 3,
        "the sequence is too short": 2,
    }
    assert keys(out) == ["00001/00/090", "00001/01/090", "00002/00/090", "00002/01/090"]
    assert SilhouetteStore(out).index["n_frames"].tolist() == [4, 4, 4, 4]
    table = refusals_of(out).set_index(["container", "member"])
    assert table.loc[("00001/00/090", "6.png"), "reason"] == "too little foreground"
    assert table.loc[("00001/00/090", "7.png"), "reason"] == "not a picture"
    short = table[table["reason"] == "the sequence is too short"].iloc[0]
    assert (short["subject"], short["detail"]) == ("00005", "2 usable frames, 3 needed")
    assert "frames in 25 = frames kept 16 + refused 9" in capsys.readouterr().out


def test_good_frames_around_a_bad_one_keep_their_order(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    frames = {f"{FOLDER}/{number}.png": png(walker(number)) for number in range(1, 12)}
    frames[f"{FOLDER}/9.png"] = BLACK
    write_tree(tmp_path / "root", RELEASE | frames)
    run(tmp_path / "root", tmp_path / "out")
    expected, _ = normalize_sequence([walker(number) for number in range(1, 12) if number != 9])
    np.testing.assert_array_equal(SilhouetteStore(tmp_path / "out").read(0), expected)


def test_a_7z_damaged_after_ingest_costs_what_the_damage_hit(
    release_roots: dict[Dataset, Path], catalogues: dict[Dataset, pd.DataFrame], tmp_path: Path
) -> None:
    root = shutil.copytree(release_roots["oumvlp"], tmp_path / "root")
    name = "Silhouette_060-01.7z"
    content = bytearray((root / name).read_bytes())
    content[len(content) // 2] ^= 1
    (root / name).write_bytes(content)
    run(root, tmp_path / "out", catalogues["oumvlp"])
    table = catalogues["oumvlp"]
    inside = table[table["container"] == name]
    refusals = refusals_of(tmp_path / "out")
    assert set(refusals["reason"]) == {"the archive is damaged"}
    assert set(refusals["container"]) == {name}
    assert reasons(tmp_path / "out")["the archive is damaged"] > 0
    lost = set(refusals.loc[refusals["frames"] > 0, "subject"])
    assert lost < set(inside["subject"])
    assert 0 < len(lost) < len(inside)
    assert len(keys(tmp_path / "out")) == len(table) - len(lost)


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_an_archive_lost_after_ingest_costs_its_own_sequences(
    release_roots: dict[Dataset, Path],
    catalogues: dict[Dataset, pd.DataFrame],
    tmp_path: Path,
    damage: str,
) -> None:
    root = shutil.copytree(release_roots["oumvlp"], tmp_path / "root")
    path = root / "Silhouette_000-00.7z"
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    run(root, tmp_path / "out", catalogues["oumvlp"])
    table = catalogues["oumvlp"]
    assert keys(tmp_path / "out") == [
        f"{row.subject}/{row.sequence}/{row.view}"
        for row in table.itertuples()
        if row.container != path.name
    ]
    lost = table.loc[table["container"] == path.name, "n_frames"].sum()
    assert reasons(tmp_path / "out") == {"the archive is damaged": lost}


def test_a_frame_gone_from_a_7z_costs_its_sequence(tmp_path: Path, write_7z: Write7z) -> None:
    members = {
        f"Silhouette_090-{sequence}/{subject}/{name}": content
        for path, content in RELEASE.items()
        for subject, sequence, _, name in [path.split("/")]
    }
    write_7z(tmp_path / "root" / "a.7z", members)
    sequences, *_ = ingest("oumvlp", tmp_path / "root", "published", workers=0)
    del members["Silhouette_090-01/00001/2.png"]
    write_7z(tmp_path / "root" / "a.7z", members)
    run(tmp_path / "root", tmp_path / "out", sequences)
    assert reasons(tmp_path / "out") == {"the frame is gone from the archive": 4}
    assert keys(tmp_path / "out") == ["00001/00/090", "00002/00/090", "00002/01/090"]


def test_a_flipped_bit_in_a_tar_costs_that_tar_and_changes_nothing(
    release_roots: dict[Dataset, Path],
    catalogues: dict[Dataset, pd.DataFrame],
    stores: dict[Dataset, SilhouetteStore],
    tmp_path: Path,
) -> None:
    """The zip's checksum tells that something is wrong, not in which sequence."""
    root = shutil.copytree(release_roots["casia_e"], tmp_path / "root")
    content = bytearray((root / "val501-614.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (root / "val501-614.zip").write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    normalize("casia_e", root, catalogues["casia_e"], out, 10_000, 3, workers=0)
    lost = catalogues["casia_e"].loc[catalogues["casia_e"]["subject"] == "501", "n_frames"].sum()
    assert reasons(out)["the archive is damaged"] == lost
    damage = refusals_of(out)[refusals_of(out)["reason"] == "the archive is damaged"]
    assert set(damage["container"]) == {"val501-614.zip/501.tar"}
    assert damage["detail"].str.contains("CRC").any()
    before = [key for key in keys(stores["casia_e"].folder) if not key.startswith("501/")]
    assert keys(out) == before


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path, write_tree: WriteFiles) -> None:
    chunk = b"IHDR" + struct.pack(">II", 50_000, 50_000) + bytes([8, 0, 0, 0, 0])
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    huge += struct.pack(">I", zlib.crc32(chunk)) + RELEASE["00001/00/090/1.png"][33:]
    write_tree(tmp_path / "root", RELEASE | {"00001/00/090/2.png": huge})
    run(tmp_path / "root", tmp_path / "out")
    assert reasons(tmp_path / "out") == {"more pixels than ingest.max_pixels": 1}
    with pytest.raises(cv2.error, match="IMAGE_PIXELS"):  # before it takes memory
        cv2.imdecode(np.frombuffer(huge, np.uint8), cv2.IMREAD_GRAYSCALE)
    content = RELEASE["00001/00/090/1.png"]  # 100 x 80
    assert decode(content, max_pixels=8000).size == 8000
    with pytest.raises(RefusedFrameError, match=r"ingest\.max_pixels"):
        decode(content, max_pixels=7999)
    sequences, *_ = ingest("oumvlp", tmp_path / "root", "published", workers=0)
    with pytest.raises(PipelineError, match=r"16 × more pixels than ingest\.max_pixels"):
        normalize(
            "oumvlp", tmp_path / "root", sequences, tmp_path, 10_000, 3, 0, Caps(max_pixels=7999)
        )


def palette_png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).convert("P").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "encode",
    [
        pytest.param(lambda grey: png(grey.astype(np.uint16) * 257), id="16 bit"),
        pytest.param(lambda grey: png(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)), id="RGB"),
        pytest.param(lambda grey: png(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGRA)), id="opaque RGBA"),
        pytest.param(palette_png, id="palette"),
    ],
)
def test_pictures_of_any_depth_and_colour_are_the_same_silhouettes(
    encode: Callable[[np.ndarray], bytes],
) -> None:
    grey = np.zeros((90, 70), np.uint8)
    grey[10:80, 20:50] = 255
    np.testing.assert_array_equal(decode(encode(grey)), grey)


def test_a_picture_without_background_is_no_silhouette() -> None:
    grey = np.zeros((90, 70), np.uint8)
    grey[10:80, 20:50] = 255
    white = np.full_like(grey, 255)
    for content in (png(white - grey // 2), png(np.dstack([white, white, white, grey]))):
        with pytest.raises(RefusedFrameError, match="no background"):
            decode(content)


def test_frames_of_differing_sizes_are_one_sequence(tmp_path: Path, write_tree: WriteFiles) -> None:
    frame = cv2.imdecode(np.frombuffer(RELEASE["00001/00/090/1.png"], np.uint8), 0)
    larger = png(cv2.resize(frame, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))
    write_tree(tmp_path / "root", RELEASE | {"00001/00/090/2.png": larger})
    run(tmp_path / "root", tmp_path / "out")
    assert reasons(tmp_path / "out") == {}


def test_what_ingest_refused_counts_towards_the_share(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path / "root", RELEASE)
    sequences, *_ = ingest("oumvlp", tmp_path / "root", "published", workers=0)
    frames = int(sequences["n_frames"].sum())
    shared = ("oumvlp", tmp_path / "root", sequences)
    for number, (refused_before, share) in enumerate(((0, 0.0), (frames, 0.5))):
        folder = tmp_path / str(number)
        folder.mkdir()
        normalize(
            *shared, folder, 10_000, 3, 0, max_refused_share=share, refused_before=refused_before
        )
    with pytest.raises(PipelineError, match=rf"{frames + 1} of {2 * frames + 1} frames are refu"):
        normalize(*shared, tmp_path, 10_000, 3, 0, max_refused_share=0.5, refused_before=frames + 1)


def test_encrypted_archives_need_their_password(
    tmp_path: Path,
    write_7z: Write7z,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    members = {
        f"Silhouette_090-{sequence}/{subject}/{name}": content
        for path, content in RELEASE.items()
        for subject, sequence, _, name in [path.split("/")]
    }
    root = tmp_path / "root"
    write_7z(root / "a.7z", members, password="right one")
    monkeypatch.setenv("OUMVLP_PASSWORD", "hunter2-hunter2")
    sequences, *_ = ingest("oumvlp", root, "published", workers=0)  # names are not encrypted
    with pytest.raises(PipelineError) as raised:
        run(root, tmp_path / "wrong", sequences)
    assert "a.7z: wrong password" in str(raised.value)
    assert "environment variable OUMVLP_PASSWORD" in str(raised.value)
    output = capsys.readouterr()
    assert "hunter2" not in str(raised.value) + output.out + output.err
    monkeypatch.setenv("OUMVLP_PASSWORD", "right one")
    run(root, tmp_path / "right", sequences)
    assert len(keys(tmp_path / "right")) == 4
    for path in (tmp_path / "right").iterdir():
        assert b"right one" not in path.read_bytes()


def test_nothing_usable_at_all_is_an_error_that_counts(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path / "root", dict.fromkeys(RELEASE, BLACK))
    with pytest.raises(PipelineError) as raised:
        run(tmp_path / "root", tmp_path / "out")
    assert "no usable sequence is left of 4" in str(raised.value)
    assert "16 × too little foreground (16 frames)" in str(raised.value)
    assert "normalize.min_foreground = 10000" in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"x", b"\x89PNG\r\n\x1a\n", png(walker(0))[:40]])
def test_what_is_no_picture_is_told(content: bytes) -> None:
    with pytest.raises(RefusedFrameError, match="not a picture"):
        decode(content)


def test_pictures_decode_to_grey() -> None:
    frame = walker(3)
    np.testing.assert_array_equal(decode(png(frame)), frame)
    decoded = decode(png(np.dstack([frame] * 3)))
    assert decoded is not None
    assert decoded.shape == frame.shape
    np.testing.assert_allclose(decoded.astype(int), frame, atol=1)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_plan, "SHARD_FRAMES", 20)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each frame decoded in this process."""
    sizes: list[int] = []

    def counting(picture: bytes, max_pixels: int) -> normalizing.Frame | None:
        sizes.append(len(picture))
        return decode(picture)

    monkeypatch.setattr(normalizing, "decode", counting)
    return sizes


class Killed(BaseException):
    """Stands for a kill -9 at a known point: nothing gets to clean up."""


def kill_at_frame(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    left = iter(range(number))

    def dying(picture: bytes, max_pixels: int) -> normalizing.Frame | None:
        if next(left, None) is None:
            raise Killed
        return decode(picture)

    monkeypatch.setattr(normalizing, "decode", dying)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("dataset", ["oumvlp", "casia_e"])
def test_finished_shards_are_not_decoded_again(
    release_roots: dict[Dataset, Path],
    catalogues: dict[Dataset, pd.DataFrame],
    tmp_path: Path,
    decoded: list[int],
    capsys: pytest.CaptureFixture[str],
    dataset: Dataset,
) -> None:
    arguments = (dataset, release_roots[dataset], catalogues[dataset])
    rules = (10_000, 3, 0, None, 1.0)
    (tmp_path / "whole").mkdir()
    normalize(*arguments, tmp_path / "whole", *rules, tmp_path / "all")
    n_frames = int(catalogues[dataset]["n_frames"].sum())
    assert len(decoded) == n_frames
    notes = sorted((tmp_path / "all").glob("shard-*.json"))
    assert len(notes) > 12
    shards = tmp_path / "shards"
    shards.mkdir()
    there = [note for number, note in enumerate(notes) if number % 3]  # some of each archive
    for note in there:
        for path in (note, note.with_suffix(".arrow")):
            shutil.copy(path, shards)
    frames = sum(
        row["n_frames"] for note in there for row in json.loads(note.read_text())["content"]["rows"]
    )
    decoded.clear()
    capsys.readouterr()
    (tmp_path / "again").mkdir()
    normalize(*arguments, tmp_path / "again", *rules, shards)
    refused = refusals_of(tmp_path / "whole")["frames"].sum()
    assert n_frames - frames - refused <= len(decoded) <= n_frames - frames < n_frames
    told = capsys.readouterr().out
    assert f"of {n_frames} frames are in shards that an earlier start has finished" in told
    assert content(tmp_path / "again") == content(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_a_kill_costs_the_shard_in_flight(
    slow_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    sequences, *_ = ingest("oumvlp", slow_release, "published", workers=0)
    run(slow_release, tmp_path / "whole", sequences)
    decoded.clear()
    shards = tmp_path / "shards"
    with monkeypatch.context() as patch:
        kill_at_frame(patch, 93)  # of the first archive's ten shards of 20 frames, in the fifth
        with pytest.raises(Killed):
            run(slow_release, tmp_path / "killed", sequences, shards=shards)
    assert not list((tmp_path / "killed").iterdir())
    assert len(list(shards.glob("shard-*.json"))) == 4
    run(slow_release, tmp_path / "again", sequences, shards=shards)
    assert len(decoded) == 600 - 4 * 20
    assert content(tmp_path / "again") == content(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_the_largest_archive_is_begun_first(
    tmp_path: Path, write_7z: Write7z, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, subjects in (("a", range(1, 11)), ("b", range(11, 41)), ("c", range(41, 61))):
        write_7z(
            tmp_path / "root" / f"{name}.7z", mixed([(s, f) for s in subjects for f in (1, 2, 3)])
        )
    begun: list[int] = []

    def recording(work: Any, tasks: "list[shard_plan.Task]", *arguments: Any) -> Any:
        begun.extend(task.frames for task in tasks)
        return map_in_order(work, tasks, *arguments)

    monkeypatch.setattr(normalizing, "map_in_order", recording)
    run(tmp_path / "root", tmp_path / "out")
    assert begun == [180, 120, 60]


@pytest.mark.usefixtures("small_shards")
def test_a_torn_shard_is_made_again(
    release_roots: dict[Dataset, Path],
    catalogues: dict[Dataset, pd.DataFrame],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, sequences, shards = release_roots["oumvlp"], catalogues["oumvlp"], tmp_path / "shards"
    run(root, tmp_path / "whole", sequences)
    run(root, tmp_path / "first", sequences, shards=shards)
    torn = shards / "shard-00002.arrow"
    cut = torn.read_bytes()[:-1]
    torn.unlink()  # elsewhere it has another name
    torn.write_bytes(cut)
    (shards / ".shard-00004.arrow.0").write_bytes(b"half")  # of a worker killed while writing
    run(root, tmp_path / "again", sequences, shards=shards)
    assert f"warning: {torn} is torn" in capsys.readouterr().err
    assert content(tmp_path / "again") == content(tmp_path / "whole")
    assert not list(shards.glob(".*"))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("lost", [0, -1], ids=["first", "last"])
def test_an_archive_found_damaged_before_a_kill_is_read_again_whole(
    tmp_path: Path, write_7z: Write7z, decoded: list[int], lost: int
) -> None:
    members = mixed([(subject, frame) for subject in range(1, 9) for frame in range(1, 6)])
    path = tmp_path / "root" / "a.7z"
    write_7z(path, members, stored=True)
    sequences, *_ = ingest("oumvlp", tmp_path / "root", "published", workers=0)
    spoilt = bytearray(path.read_bytes())
    spoilt[spoilt.index(members["Silhouette_090-00/00002/3.png"]) + 40] ^= 1
    path.write_bytes(spoilt)
    shards = tmp_path / "shards"
    run(tmp_path / "root", tmp_path / "whole", sequences, shards=shards)
    assert reasons(tmp_path / "whole") == {finished_shards.DAMAGED: 5}
    notes = sorted(shards.glob("shard-*.json"))
    damaged = [note for note in notes if finished_shards.DAMAGED in note.read_text()]
    assert damaged == [notes[0], notes[-1]]  # that of the sequence, and the last of the archive
    damaged[lost].unlink()
    decoded.clear()
    run(tmp_path / "root", tmp_path / "again", sequences, shards=shards)
    assert content(tmp_path / "again") == content(tmp_path / "whole")
    assert len(decoded) >= 75  # not only the frames of the shard that was lost


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("earlier", [False, True], ids=["at once", "after a kill"])
def test_a_checksum_over_a_whole_archive_takes_finished_shards_back(
    release_roots: dict[Dataset, Path],
    catalogues: dict[Dataset, pd.DataFrame],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    earlier: bool,
) -> None:
    root = shutil.copytree(release_roots["casia_e"], tmp_path / "root")
    table, shards = catalogues["casia_e"], tmp_path / "shards"
    rules = (10_000, 3, 0, None, 1.0, shards)
    inside = table[table["container"] == "val501-614.zip/501.tar"]
    if earlier:  # all of its shards but the last, which is the one that waits for the checksum
        (tmp_path / "good").mkdir()
        normalize("casia_e", root, table, tmp_path / "good", *rules)
        notes = [
            note
            for note in sorted(shards.glob("shard-*.json"))
            if json.loads(note.read_text())["content"]["rows"][0]["subject"] == "501"
        ]
        assert len(notes) > 3
        notes[-1].unlink()
    content = bytearray((root / "val501-614.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (root / "val501-614.zip").write_bytes(content)
    capsys.readouterr()
    out = tmp_path / "out"
    out.mkdir()
    normalize("casia_e", root, table, out, *rules)
    refusals = refusals_of(out)
    damage = refusals[refusals["reason"] == finished_shards.DAMAGED]
    assert set(damage["container"]) == {"val501-614.zip/501.tar"}
    assert len(damage[damage["frames"] == 0]) == 1
    assert damage["frames"].sum() == inside["n_frames"].sum()
    kept = SilhouetteStore(out).index
    assert len(kept) == len(table) - len(inside)
    assert not (kept["subject"] == "501").any()
    assert "normalizing: 1565/1565 frames (100 %)" in capsys.readouterr().err


@pytest.mark.usefixtures("small_shards")
def test_a_kill_leaves_no_shard_that_was_taken_back(
    release_roots: dict[Dataset, Path],
    catalogues: dict[Dataset, pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = shutil.copytree(release_roots["casia_e"], tmp_path / "root")
    content = bytearray((root / "val501-614.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (root / "val501-614.zip").write_bytes(content)
    make = normalizing._make_shards

    def dying(job: Any, rows: Any, distrusted: dict[str, str]) -> None:
        if distrusted:
            raise Killed
        make(job, rows, distrusted)

    monkeypatch.setattr(normalizing, "_make_shards", dying)
    shards = tmp_path / "shards"
    with pytest.raises(Killed):
        normalize("casia_e", root, catalogues["casia_e"], tmp_path, 10_000, 3, 0, None, 1.0, shards)
    assert not [note for note in shards.glob("shard-*.json") if '"501"' in note.read_text()]


def mixed(order: "list[tuple[int, int]]") -> dict[str, bytes]:
    """Members of one archive: (subject, frame) in this order."""
    return {
        f"Silhouette_090-{sequence}/{subject:05}/{frame}.png": png(walker(subject + frame))
        for sequence in ("00", "01")
        for subject, frame in order
    }


def test_an_archive_may_mix_its_sequences_up_to_a_bound(
    tmp_path: Path, write_7z: Write7z, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects, frames = range(1, 9), range(1, 6)
    write_7z(tmp_path / "in order" / "a.7z", mixed([(s, f) for s in subjects for f in frames]))
    write_7z(
        tmp_path / "mixed" / "a.7z", mixed([(s, f) for f in reversed(frames) for s in subjects])
    )
    sequences, *_ = ingest("oumvlp", tmp_path / "in order", "published", workers=0)
    run(tmp_path / "in order", tmp_path / "expected", sequences)
    one_sequence = len(frames) * 64 * 44
    monkeypatch.setattr(normalizing, "OPEN_BYTES", 8 * one_sequence)
    monkeypatch.setattr(finished_shards, "IN_MEMORY_BYTES", 1)
    catalogue, *_ = ingest("oumvlp", tmp_path / "mixed", "published", workers=0)
    run(tmp_path / "mixed", tmp_path / "got", catalogue)
    assert content(tmp_path / "got") == content(tmp_path / "expected")
    monkeypatch.setattr(normalizing, "OPEN_BYTES", 8 * one_sequence - 1)
    with pytest.raises(PipelineError) as raised:
        run(tmp_path / "mixed", tmp_path / "refused", catalogue)
    assert "a.7z mixes the frames of its sequences: 8 of them, with 40 frames" in str(raised.value)
    assert "Extract it, or pack it anew folder after folder" in str(raised.value)
    monkeypatch.setattr(normalizing, "OPEN_BYTES", one_sequence)
    run(tmp_path / "in order", tmp_path / "one at a time", sequences)


def test_a_sequence_without_frames_is_on_record(tmp_path: Path, write_tree: WriteFiles) -> None:
    write_tree(tmp_path / "root", RELEASE)
    sequences, *_ = ingest("oumvlp", tmp_path / "root", "published", workers=0)
    empty = sequences.iloc[[0]].assign(subject="00004", split="test", n_frames=0, bytes=0)
    empty["frames"] = [[]]
    sequences = pd.concat([sequences, empty], ignore_index=True)
    run(tmp_path / "root", tmp_path / "out", sequences)
    table = refusals_of(tmp_path / "out")
    assert table[["subject", "reason", "frames"]].values.tolist() == [
        ["00004", "the sequence is empty", 0]
    ]
    assert len(keys(tmp_path / "out")) == 4


def test_refusing_more_than_the_share_allowed_stops_with_the_reasons(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    spoilt = {"00001/00/090/5.png": b"no picture", "00001/00/090/6.png": BLACK}
    write_tree(tmp_path / "root", RELEASE | spoilt)
    shards = tmp_path / "shards"
    with pytest.raises(PipelineError) as raised:
        run(tmp_path / "root", tmp_path / "stopped", max_refused_share=0.11, shards=shards)
    text = str(raised.value)
    assert "oumvlp: 2 of 18 frames are refused, 11.1%, and normalize.max_refused_share" in text
    assert "1 × not a picture (1 frames); 1 × too little foreground (1 frames)" in text
    assert not list((tmp_path / "stopped").iterdir())
    run(tmp_path / "root", tmp_path / "out", max_refused_share=2 / 18, shards=shards)


def test_frames_that_do_not_add_up_stop_the_pipeline(
    stores: dict[Dataset, SilhouetteStore], catalogues: dict[Dataset, pd.DataFrame]
) -> None:
    sequences, index = catalogues["oumvlp"], stores["oumvlp"].index
    refusals = refusals_of(stores["oumvlp"].folder)
    check_accounts("oumvlp", sequences, index, refusals)
    first = "/".join(sequences.loc[0, KEY])
    with pytest.raises(PipelineError, match=f"(?s)are not frames kept .*{first}: in 7, kept 0"):
        check_accounts("oumvlp", sequences, index.iloc[1:], refusals)
    # right in total, wrong in two sequences
    swapped = index.copy()
    swapped.loc[0, "n_frames"] += 1
    swapped.loc[5, "n_frames"] -= 1
    with pytest.raises(PipelineError, match=f"(?s)wrong are 2:.*{first}: in 7, kept 8, refused 0"):
        check_accounts("oumvlp", sequences, swapped, refusals)
    unknown = refusals_of(stores["oumvlp"].folder).reindex([0]).assign(subject="", frames=3)
    with pytest.raises(PipelineError, match="please report it"):
        check_accounts("oumvlp", sequences, index, unknown)


def test_a_release_that_changes_while_it_is_read_stops_the_pipeline(
    tmp_path: Path, write_7z: Write7z, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = mixed([(subject, frame) for subject in (1, 2) for frame in range(1, 5)])
    path = tmp_path / "root" / "a.7z"
    write_7z(path, members)
    sequences, *_ = ingest("oumvlp", tmp_path / "root", "published", workers=0)
    plan = normalizing.plan_tasks

    def meanwhile(*arguments: Any) -> "list[shard_plan.Task]":
        path.write_bytes(path.read_bytes() + b"x")
        return plan(*arguments)

    monkeypatch.setattr(normalizing, "plan_tasks", meanwhile)
    with pytest.raises(PipelineError, match=r"a.7z has \d+ bytes, but had \d+ when normalize"):
        run(tmp_path / "root", tmp_path / "out", sequences)


def test_the_state_of_a_release_covers_archives_and_folders(
    tmp_path: Path, write_zip: WriteFiles, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path, {"b.7z": b"1", "c.7z": b"other", "f/1.png": b"x"})
    write_zip(tmp_path / "a.zip", {"1.tar": b"x"})
    names = pd.DataFrame({"container": ["a.zip/1.tar", "b.7z", "f", "gone.7z"]})
    states = [release_state(tmp_path, names)]
    assert release_state(tmp_path, names.iloc[::-1]) == states[0]
    for change in ("a.zip", "b.7z", "f/2.png"):
        (tmp_path / change).write_bytes(b"another content")
        states.append(release_state(tmp_path, names))
    assert len(set(states)) == 4
    (tmp_path / "c.7z").write_bytes(b"of no container here")
    assert release_state(tmp_path, names) == states[-1]


def test_other_file_systems_get_a_copy(
    stores: dict[Dataset, SilhouetteStore],
    release_roots: dict[Dataset, Path],
    catalogues: dict[Dataset, pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    run(release_roots["oumvlp"], tmp_path / "out", catalogues["oumvlp"])
    assert content(tmp_path / "out") == content(stores["oumvlp"].folder)


MEASURED = """
import resource, sys
from pathlib import Path
from pipeline.ingestion import ingest
from pipeline.normalizing import normalize
if __name__ == "__main__":
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    sequences, *_ = ingest("casia_e", root, "release", workers=0)
    out.mkdir()
    normalize("casia_e", root, sequences, out, 1000, 3, 2)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.soak
def test_memory_of_a_worker_does_not_grow_with_the_archive(
    tmp_path: Path, tar_of: Callable[[dict[str, bytes]], bytes], write_zip: WriteFiles
) -> None:
    picture = cv2.imencode(".jpg", walker(0))[1].tobytes()
    peaks = []
    for sequences in (100, 800):
        tars = {
            f"{subject}.tar": tar_of(
                {
                    f"forTrain/{subject}/H/{scene}/nm/000/{number}/{frame:03}.jpg": picture
                    for scene in ("scene1", "scene2")
                    for number in range(1, 1 + sequences // 2)
                    for frame in range(50)
                }
            )
            for subject in ("001", "002", "615", "616")
        }
        root = tmp_path / f"root-{sequences}"
        write_zip(root / "a.zip", tars)
        done = subprocess.run(
            python(MEASURED, str(root), str(tmp_path / f"out-{sequences}")),
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    print(f"peak of a worker: {peaks[0]:.0f} and {peaks[1]:.0f} MiB for 5 000 and 40 000 frames")
    assert peaks[1] < peaks[0] + 60 < 1024
