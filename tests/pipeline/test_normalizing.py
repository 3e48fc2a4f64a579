import errno
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import py7zr
import py7zr.io
import pytest

from gaitgl.silhouettes import normalize_sequence
from pipeline import normalizing, shard_plan
from pipeline.archives import Caps
from pipeline.errors import PipelineError
from pipeline.ingestion import ingest
from pipeline.normalizing import check_accounts, normalize, release_state
from pipeline.processes import map_in_order
from pipeline.settings import Dataset
from pipeline.silhouette_store import SilhouetteStore
from pipeline.tables import KEY
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
            # masks of labels, large and small
            "00001/00/090/9.png": png(np.minimum(np.tile(walker(1), (5, 5)), 1)),
            "00001/00/090/10.png": png(np.minimum(walker(1), 1)),
        },
    )
    out = tmp_path / "out"
    run(tmp_path / "root", out)
    assert reasons(out) == {
        "not a picture": 4,
        "too little foreground": 3,
        "darker than 64 of 255: is it a mask of 0 and 1?": 2,
        "the sequence is too short": 2,
    }
    assert keys(out) == ["00001/00/090", "00001/01/090", "00002/00/090", "00002/01/090"]
    assert SilhouetteStore(out).index["n_frames"].tolist() == [4, 4, 4, 4]
    table = refusals_of(out).set_index(["container", "member"])
    assert table.loc[("00001/00/090", "6.png"), "reason"] == "too little foreground"
    assert table.loc[("00001/00/090", "7.png"), "reason"] == "not a picture"
    short = table[table["reason"] == "the sequence is too short"].iloc[0]
    assert (short["subject"], short["detail"]) == ("00005", "2 usable frames, 3 needed")
    assert "frames in 27 = frames kept 16 + refused 11" in capsys.readouterr().out


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path, write_tree: WriteFiles) -> None:
    write_tree(tmp_path / "root", RELEASE)  # pictures of 100 x 80
    sequences, *_ = ingest("oumvlp", tmp_path / "root", "published", workers=0)
    with pytest.raises(PipelineError, match=r"16 × more pixels than ingest\.max_pixels"):
        normalize(
            "oumvlp",
            tmp_path / "root",
            sequences,
            tmp_path,
            10_000,
            3,
            0,
            caps=Caps(max_pixels=7999),
        )


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


def test_nothing_usable_at_all_is_an_error_that_counts(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path / "root", dict.fromkeys(RELEASE, BLACK))
    with pytest.raises(PipelineError) as raised:
        run(tmp_path / "root", tmp_path / "out")
    assert "no usable sequence is left of 4" in str(raised.value)
    assert "16 × too little foreground (16 frames)" in str(raised.value)
    assert "normalize.min_foreground = 10000" in str(raised.value)


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
