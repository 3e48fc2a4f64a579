import json
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import py7zr
import py7zr.io
import pytest

from gaitgl.silhouettes import normalize_sequence
from pipeline import normalizing
from pipeline.archives import Caps
from pipeline.catalogue import REFUSALS
from pipeline.errors import PipelineError
from pipeline.ingestion import ingest
from pipeline.normalizing import decode, normalize
from pipeline.settings import Dataset
from pipeline.silhouette_store import SilhouetteStore
from pipeline.tables import KEY, read_table

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


def run(root: Path, folder: Path, sequences: pd.DataFrame | None = None, workers: int = 0) -> None:
    if sequences is None:
        sequences, *_ = ingest("oumvlp", root, "published", workers=0)
    folder.mkdir()
    normalize("oumvlp", root, sequences, folder, 10_000, 3, workers)


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
    by_split = {split: SilhouetteStore(folder).refused_sequences(split) for split in SPLITS}
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
    monkeypatch.setattr(normalizing, "SHARD_FRAMES", 100)
    written = []
    for workers in (0, 2, 3):
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
    assert reasons(tmp_path / "out") == {"not a picture": 1}
    with pytest.raises(cv2.error, match="IMAGE_PIXELS"):  # before it takes memory
        cv2.imdecode(np.frombuffer(huge, np.uint8), cv2.IMREAD_GRAYSCALE)
    content = RELEASE["00001/00/090/1.png"]  # 100 x 80
    assert decode(content, max_pixels=8000) is not None
    assert decode(content, max_pixels=7999) is None
    sequences, _ = ingest("oumvlp", tmp_path / "root", "published", workers=0)
    with pytest.raises(PipelineError, match=r"16 × not a picture"):
        normalize(
            "oumvlp", tmp_path / "root", sequences, tmp_path, 10_000, 3, 0, Caps(max_pixels=7999)
        )


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
def test_what_is_no_picture_decodes_to_none(content: bytes) -> None:
    assert decode(content) is None


def test_pictures_decode_to_grey() -> None:
    frame = walker(3)
    decoded = decode(png(frame))
    assert decoded is not None
    np.testing.assert_array_equal(decoded, frame)
    decoded = decode(png(np.dstack([frame] * 3)))
    assert decoded is not None
    assert decoded.shape == frame.shape
    np.testing.assert_allclose(decoded.astype(int), frame, atol=1)
