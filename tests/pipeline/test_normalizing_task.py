import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from gaitgl.silhouettes import normalize_sequence
from pipeline import finished_shards, normalizing_task
from pipeline.catalogue import DAMAGED
from pipeline.decoding import Frame, decode
from pipeline.errors import PipelineError
from pipeline.ingestion import ingest
from pipeline.normalizing import normalize
from pipeline.settings import Dataset
from pipeline.silhouette_store import SilhouetteStore
from tests.child_processes import environment, python
from tests.pipeline.small_release import (
    BLACK,
    RELEASE,
    Write7z,
    WriteFiles,
    content,
    keys,
    mixed,
    png,
    reasons,
    refusals_of,
    run,
    walker,
)

FOLDER = "00001/00/090"


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


def test_frames_of_differing_sizes_are_one_sequence(tmp_path: Path, write_tree: WriteFiles) -> None:
    frame = cv2.imdecode(np.frombuffer(RELEASE["00001/00/090/1.png"], np.uint8), 0)
    larger = png(cv2.resize(frame, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))
    write_tree(tmp_path / "root", RELEASE | {"00001/00/090/2.png": larger})
    run(tmp_path / "root", tmp_path / "out")
    assert reasons(tmp_path / "out") == {}


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


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each frame decoded in this process."""
    sizes: list[int] = []

    def counting(picture: bytes, max_pixels: int) -> Frame:
        sizes.append(len(picture))
        return decode(picture)

    monkeypatch.setattr(normalizing_task, "decode", counting)
    return sizes


class Killed(BaseException):
    """Stands for a kill -9 at a known point: nothing gets to clean up."""


def kill_at_frame(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    left = iter(range(number))

    def dying(picture: bytes, max_pixels: int) -> Frame:
        if next(left, None) is None:
            raise Killed
        return decode(picture)

    monkeypatch.setattr(normalizing_task, "decode", dying)


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
    rules = (10_000, 3, 0)
    (tmp_path / "whole").mkdir()
    normalize(*arguments, tmp_path / "whole", *rules, shards=tmp_path / "all")
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
    normalize(*arguments, tmp_path / "again", *rules, shards=shards)
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
    assert reasons(tmp_path / "whole") == {DAMAGED: 5}
    notes = sorted(shards.glob("shard-*.json"))
    damaged = [note for note in notes if DAMAGED in note.read_text()]
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
    rules = (10_000, 3, 0)
    inside = table[table["container"] == "val501-614.zip/501.tar"]
    if earlier:  # all of its shards but the last, which is the one that waits for the checksum
        (tmp_path / "good").mkdir()
        normalize("casia_e", root, table, tmp_path / "good", *rules, shards=shards)
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
    normalize("casia_e", root, table, out, *rules, shards=shards)
    refusals = refusals_of(out)
    damage = refusals[refusals["reason"] == DAMAGED]
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
    make = normalizing_task._make_shards

    def dying(job: Any, rows: Any, distrusted: dict[str, str]) -> None:
        if distrusted:
            raise Killed
        make(job, rows, distrusted)

    monkeypatch.setattr(normalizing_task, "_make_shards", dying)
    shards = tmp_path / "shards"
    with pytest.raises(Killed):
        normalize("casia_e", root, catalogues["casia_e"], tmp_path, 10_000, 3, 0, shards=shards)
    assert not [note for note in shards.glob("shard-*.json") if '"501"' in note.read_text()]


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
    monkeypatch.setattr(normalizing_task, "OPEN_BYTES", 8 * one_sequence)
    monkeypatch.setattr(finished_shards, "IN_MEMORY_BYTES", 1)
    catalogue, *_ = ingest("oumvlp", tmp_path / "mixed", "published", workers=0)
    run(tmp_path / "mixed", tmp_path / "got", catalogue)
    assert content(tmp_path / "got") == content(tmp_path / "expected")
    monkeypatch.setattr(normalizing_task, "OPEN_BYTES", 8 * one_sequence - 1)
    with pytest.raises(PipelineError) as raised:
        run(tmp_path / "mixed", tmp_path / "refused", catalogue)
    assert "a.7z mixes the frames of its sequences: 8 of them, with 40 frames" in str(raised.value)
    assert "Extract it, or pack it anew folder after folder" in str(raised.value)
    monkeypatch.setattr(normalizing_task, "OPEN_BYTES", one_sequence)
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


FAULTS = """
import resource, sys
from pathlib import Path
from pipeline import shard_plan
from pipeline.ingestion import ingest
from pipeline.normalizing import normalize
if __name__ == "__main__":
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    sequences, *_ = ingest("oumvlp", root, "published", workers=0)
    shard_plan.SHARD_FRAMES = 10  # tasks for two workers
    out.mkdir()
    normalize("oumvlp", root, sequences, out, 10_000, 3, 2)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="how glibc gives memory back to the system")
def test_workers_keep_the_memory_of_a_picture(tmp_path: Path, write_tree: WriteFiles) -> None:
    picture = np.zeros((980, 1280), np.uint8)
    cv2.ellipse(picture, (600, 500), (120, 400), 0, 0, 360, 255, -1)
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    faults = []
    for frames in (5, 105):  # of each of four sequences
        names = [
            f"{s}/{q}/090/{n:03}.jpg" for s in (1, 2) for q in ("00", "01") for n in range(frames)
        ]
        root = tmp_path / f"root-{frames}"
        write_tree(root, dict.fromkeys(names, jpeg))
        done = subprocess.run(
            python(FAULTS, str(root), str(tmp_path / f"out-{frames}")),
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        faults.append(int(done.stdout.split()[-1]))
    print(f"{(faults[1] - faults[0]) / 400:.0f} page faults a frame; {faults}")
    assert faults[1] - faults[0] < 400 * 100  # a picture has 300 pages


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
