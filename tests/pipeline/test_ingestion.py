import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import py7zr
import pytest

from pipeline.catalogue import REFUSALS, SEQUENCES
from pipeline.errors import PipelineError
from pipeline.ingestion import ingest
from pipeline.layouts import LAYOUTS
from pipeline.settings import Dataset
from pipeline.tables import KEY
from synthetic.settings import Settings as WalkerSettings
from synthetic.walks import casia_e_subjects, missing_sequences, oumvlp_subjects

Write7z = Callable[..., None]
TarOf = Callable[[dict[str, bytes]], bytes]
WriteFiles = Callable[[Path, dict[str, bytes]], None]

CONTENT = [*KEY, "dataset", "split", "frames", "n_frames", "bytes"]

# the least that can be evaluated: one subject to train on, one to test
OUMVLP = {
    f"{subject}/{sequence}/090/{frame}.png": b"frame"
    for subject in ("00001", "00002")
    for sequence in ("00", "01")
    for frame in (1, 2, 10)
}


def as_release(files: dict[str, bytes]) -> dict[str, bytes]:
    """<subject>/<sequence>/<view>/<frame> to Silhouette_<view>-<sequence>/<subject>/<frame>."""
    renamed = {}
    for path, content in files.items():
        subject, sequence, view, frame = path.split("/")
        renamed[f"Silhouette_{view}-{sequence}/{subject}/{frame}"] = content
    return renamed


def refused(table: pd.DataFrame) -> set[tuple[str, str, str, int]]:
    return set(
        table[["container", "member", "reason", "frames"]].itertuples(index=False, name=None)
    )


def splits(table: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    keys = table[KEY].itertuples(index=False, name=None)
    return dict(zip(keys, table["split"], strict=True))


def message(dataset: Dataset, root: Path) -> str:
    with pytest.raises(PipelineError) as raised:
        ingest(dataset, root, "release", workers=0)
    return str(raised.value)


def test_the_walkers_catalogue_has_their_keys_and_splits(
    catalogues: dict[Dataset, pd.DataFrame], walker_settings: WalkerSettings
) -> None:
    views = walker_settings.oumvlp.views
    train, test = oumvlp_subjects(walker_settings)
    missing = missing_sequences(walker_settings)
    expected = {
        (subject, sequence, view): "train" if subject in train else "test"
        for subject in train + test
        for sequence in ("00", "01")
        for view in views
        if (subject, sequence, view) not in missing
    }
    table = catalogues["oumvlp"]
    assert splits(table) == expected

    casia_e = walker_settings.casia_e
    takes = {
        "train": casia_e.training_takes,
        "val": casia_e.training_takes,
        "test": casia_e.test_takes,
    }
    expected = {
        (subject, take, view): split
        for split, subjects in zip(takes, casia_e_subjects(walker_settings), strict=True)
        for subject in subjects
        for take in takes[split]
        for view in casia_e.views
    }
    table = catalogues["casia_e"]
    assert splits(table) == expected


def test_the_catalogue_is_sorted_and_typed(catalogues: dict[Dataset, pd.DataFrame]) -> None:
    for table in catalogues.values():
        assert list(table.columns) == SEQUENCES.names
        keys = list(table[KEY].itertuples(index=False, name=None))
        assert keys == sorted(set(keys))
        assert (table["n_frames"] == table["frames"].map(len)).all()
        assert (table["bytes"] > 0).all()


def test_all_layouts_of_oumvlp_give_the_same_sequences(
    release_roots: dict[Dataset, Path], catalogues: dict[Dataset, pd.DataFrame], tmp_path: Path
) -> None:
    extracted = tmp_path / "deeper" / "extracted"
    extracted.mkdir(parents=True)
    for path in release_roots["oumvlp"].glob("*.7z"):
        with py7zr.SevenZipFile(path) as archive:
            archive.extractall(extracted)
    rearranged = tmp_path / "rearranged"
    for path in extracted.rglob("*.png"):
        view, _, sequence = path.parent.parent.name.removeprefix("Silhouette_").partition("-")
        target = rearranged / path.parent.name / sequence / view / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for root in (extracted.parent, rearranged):
        sequences, refusals, *_ = ingest("oumvlp", root, "published", workers=0)
        pd.testing.assert_frame_equal(sequences[CONTENT], catalogues["oumvlp"][CONTENT])
        assert refusals.empty


def test_zips_and_extracted_tree_of_casia_e_give_the_same_sequences(
    release_roots: dict[Dataset, Path], catalogues: dict[Dataset, pd.DataFrame], tmp_path: Path
) -> None:
    for path in release_roots["casia_e"].glob("*.zip"):
        with zipfile.ZipFile(path) as outer:
            for name in outer.namelist():
                with outer.open(name) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                    for entry in tar:  # extractall's filter is not in Python 3.11.0 to 3.11.3
                        if (content := tar.extractfile(entry)) is not None:
                            (tmp_path / entry.name).parent.mkdir(parents=True, exist_ok=True)
                            (tmp_path / entry.name).write_bytes(content.read())
    sequences, refusals, *_ = ingest("casia_e", tmp_path, "release", workers=0)
    pd.testing.assert_frame_equal(sequences[CONTENT], catalogues["casia_e"][CONTENT])
    assert refusals.empty


def test_opengaits_split_is_a_setting(
    release_roots: dict[Dataset, Path], catalogues: dict[Dataset, pd.DataFrame]
) -> None:
    sequences, *_ = ingest("casia_e", release_roots["casia_e"], "opengait", workers=0)
    was, now = catalogues["casia_e"]["split"], sequences["split"]
    assert (now[was == "train"] == "train").all()
    assert (now[was != "train"] == "test").all()


@pytest.mark.parametrize("dataset", ["oumvlp", "casia_e"])
def test_the_same_tables_for_any_number_of_workers(
    dataset: Dataset,
    release_roots: dict[Dataset, Path],
    catalogues: dict[Dataset, pd.DataFrame],
    capsys: pytest.CaptureFixture[str],
) -> None:
    ingest(dataset, release_roots[dataset], "release", workers=0)
    said = capsys.readouterr().out
    for workers in (1, 3):
        sequences, refusals, *_ = ingest(dataset, release_roots[dataset], "release", workers)
        pd.testing.assert_frame_equal(sequences, catalogues[dataset])
        assert refusals.empty
        assert list(refusals.columns) == REFUSALS.names
        assert capsys.readouterr().out == said


def test_nothing_is_lost_where_junk_lies_about(
    tmp_path: Path, write_tree: WriteFiles, write_7z: Write7z, capsys: pytest.CaptureFixture[str]
) -> None:
    junk = {
        "00001/00/090/Thumbs.db": b"x",
        "00001/00/090/frame.jpg": b"x",
        "00001/00/0001.png": b"x",
        "notes.txt": b"x",
        ".hidden/0001.png": b"x",
    }
    write_tree(tmp_path, OUMVLP | junk)
    (tmp_path / "00001" / "00" / "090" / "3.png").symlink_to("1.png")
    write_7z(
        tmp_path / "more.7z",
        {"00003/00/090/1.png": b"x", "00003/00/090/readme.txt": b"x", "1.png": b"x"},
    )
    n_files = sum(path.name != "more.7z" for path in tmp_path.rglob("*") if not path.is_dir()) + 3
    sequences, refusals, *_ = ingest("oumvlp", tmp_path, "published", workers=0)
    assert sequences["n_frames"].sum() + refusals["frames"].sum() == n_files
    assert sequences["frames"].map(list).tolist() == [
        *[["1.png", "2.png", "10.png"]] * 4,
        ["1.png"],
    ]
    assert refused(refusals) == {
        ("00001/00/090", "Thumbs.db", "not a frame's name", 1),
        ("00001/00/090", "00001/00/090", "not in the layout of the rest", 1),
        ("00001/00/090", "3.png", "a link or a device, not a file", 1),
        ("00001/00", "0001.png", "not a frame's name", 1),
        (".", "notes.txt", "not a frame's name", 1),
        (".hidden", "0001.png", "not a frame's name", 1),
        ("more.7z", "00003/00/090/readme.txt", "not a frame's name", 1),
        ("more.7z", "1.png", "not a frame's name", 1),
    }
    assert f"files seen {n_files} = frames catalogued 13 + refused 8" in capsys.readouterr().out
    # what lies in the place of a sequence is accounted to it
    keyed = refusals[refusals["subject"] != ""].set_index("reason")[KEY]
    assert set(keyed.itertuples(index=False, name=None)) == {
        ("00001", "00", "090"),
        ("00003", "00", "090"),
    }
    assert len(keyed) == 4


def test_a_sequence_that_is_there_twice_is_kept_once_and_refused_once(
    tmp_path: Path, write_7z: Write7z
) -> None:
    members = as_release(OUMVLP)
    write_7z(tmp_path / "a.7z", members)
    second = {name: b"other" for name in members if "-00/00001/" in name}
    write_7z(tmp_path / "b.7z", second)
    sequences, refusals, *_ = ingest("oumvlp", tmp_path, "published", workers=0)
    assert set(sequences["container"]) == {"a.7z"}
    assert len(sequences) == 4
    assert refused(refusals) == {
        ("b.7z", "Silhouette_090-00/00001", "the sequence is there twice", 3)
    }
    assert refusals["detail"].iloc[0] == "kept: a.7z Silhouette_090-00/00001"
    assert refusals[KEY].iloc[0].tolist() == ["00001", "00", "090"]


def test_archives_that_hold_nothing_are_refused(
    tmp_path: Path, write_7z: Write7z, write_zip: WriteFiles, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path, OUMVLP)
    write_7z(tmp_path / "empty.7z", {})
    write_zip(tmp_path / "empty.zip", {})
    sequences, refusals, *_ = ingest("oumvlp", tmp_path, "published", workers=0)
    assert len(sequences) == 4
    assert refused(refusals) == {
        ("empty.7z", "", "the archive is empty", 0),
        ("empty.zip", "", "the archive is empty", 0),
    }


@pytest.mark.parametrize("name", ["Silhouette_000-00.7z", "train001-500.zip"])
def test_a_root_with_an_empty_archive_only_names_it(
    tmp_path: Path, write_7z: Write7z, write_zip: WriteFiles, name: str
) -> None:
    if name.endswith(".7z"):
        write_7z(tmp_path / name, {})
    else:
        write_zip(tmp_path / name, {})
    text = message("oumvlp", tmp_path)
    assert f"{name}: (whole archive): the archive is empty" in text
    assert f"data.oumvlp.root = {tmp_path}" in text


def test_a_root_without_any_frame_says_what_was_looked_for_and_found(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    junk = {"holiday/beach.png": b"x", "holiday/sea.PNG": b"x", "readme.md": b"x", "LICENSE": b"x"}
    write_tree(tmp_path, junk)
    text = message("oumvlp", tmp_path)
    assert f"data.oumvlp.root = {tmp_path}: no sequence of oumvlp in it" in text
    for layout in LAYOUTS:
        assert f"  {layout.name}: {layout.form}\n" in text
    assert "holiday: beach.png: not a frame's name" in text
    assert "Files by suffix: .png: 2, none: 1, .md: 1" in text
    assert text.endswith("three folders deep; one camera? Call the view any.")


def test_a_root_without_any_file_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    text = message("oumvlp", tmp_path)
    assert "Silhouette_<view>-<sequence>/<subject>/<frame>.png" in text
    assert "Found instead:\n  no file" in text


def test_either_dataset_may_be_the_others(
    release_roots: dict[Dataset, Path],
    catalogues: dict[Dataset, pd.DataFrame],
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = ingest("oumvlp", release_roots["oumvlp"], "published", workers=0)
    assert "takes its place" not in capsys.readouterr().out
    other = ingest("casia_e", release_roots["oumvlp"], "release", workers=0)
    pd.testing.assert_frame_equal(
        other.sequences.drop(columns="dataset"), own.sequences.drop(columns="dataset")
    )
    assert set(other.sequences["dataset"]) == {"casia_e"}
    assert other.protocols == own.protocols
    said = capsys.readouterr().out
    assert "casia_e: OUMVLP, release (Silhouette_<view>-<sequence>/" in said
    assert "casia_e: this is not how casia_e is handed out: OUMVLP takes its place" in said
    assert "odd subjects up to 10305 train" in said
    # there, the setting of CASIA-E does not exist
    other = ingest("oumvlp", release_roots["casia_e"], "published", workers=0)
    assert splits(other.sequences) == splits(catalogues["casia_e"])


def test_two_layouts_in_one_root_are_an_error(tmp_path: Path, write_tree: WriteFiles) -> None:
    casia_b = {"001/nm-01/090/1.png": b"x"}
    write_tree(tmp_path, OUMVLP | as_release({"00003/00/090/1.png": b"x"}) | casia_b)
    text = message("oumvlp", tmp_path)
    assert "more than one layout" in text
    for line in (
        "OUMVLP, release (Silhouette_<view>-<sequence>/<subject>/<frame>.png): 1 sequence(s) of "
        "1 frame(s), such as Silhouette_090-00/00003/1.png",
        "OUMVLP, rearranged (<subject>/<sequence>/<view>/<frame>.png of 5, 2 and 3 digits): "
        "4 sequence(s) of 12 frame(s), such as 00001/00/090/1.png",
        "CASIA-B (",
    ):
        assert line in text


def test_frames_that_fit_everything_only_are_refused_beside_a_known_layout(
    tmp_path: Path, write_tree: WriteFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    strays = {f"alice/walk/front/{i}.png": b"x" for i in range(3)}
    write_tree(tmp_path, OUMVLP | strays)
    catalogue = ingest("oumvlp", tmp_path, "published", workers=0)
    assert catalogue.release.layout == "OUMVLP, rearranged"
    assert catalogue.release.files_seen == 15
    assert refused(catalogue.refusals) == {
        ("alice/walk/front", "alice/walk/front", "not in the layout of the rest", 3)
    }
    said = capsys.readouterr().out
    assert "1 sequence(s) of 3 frame(s), such as alice/walk/front/0.png, do not fit" in said
    assert "write a dataset.yaml" in said
    assert "such as 0.png; expected <subject>" in catalogue.refusals["detail"].iloc[0]
    assert catalogue.refusals[KEY].iloc[0].tolist() == ["", "", ""]


def test_a_description_makes_it_own_data_whatever_its_names_look_like(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    names = ("nm-01", "nm-02", "bag-01")
    frames = {
        f"{subject}/{name}/{view}/{i}.png": b"x"
        for subject in ("001", "055", "061", "100")  # as CASIA-B's
        for name in names
        for view in ("000", "045")
        for i in range(2)
    }
    text = "train: ['001-060']\ntest: ['061-100']\ngallery: [nm-01]\nprobes: {BG: ['bag-*']}\n"
    write_tree(tmp_path, frames | {"dataset.yaml": text.encode()})
    catalogue = ingest("casia_e", tmp_path, "release", workers=0)
    assert catalogue.release.layout == "generic"
    assert catalogue.sequences["n_frames"].sum() == len(frames)
    assert catalogue.refusals.empty
    (tmp_path / "dataset.yaml").unlink()
    with pytest.raises(PipelineError, match="casia_e cannot be evaluated"):  # taken for CASIA-B
        ingest("casia_e", tmp_path, "release", workers=0)


def test_an_empty_folder_in_the_place_of_a_sequence_is_recorded(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path, OUMVLP)
    for folder in ("00004/00/090", "00004/01", "elsewhere", "copy/00001/00/090"):
        (tmp_path / folder).mkdir(parents=True)
    _, refusals, *_ = ingest("oumvlp", tmp_path, "published", workers=0)
    assert refused(refusals) == {("00004/00/090", "", "an empty folder", 0)}
    assert refusals[KEY].iloc[0].tolist() == ["00004", "00", "090"]


def test_all_truncated_archives_are_named_at_once(
    tmp_path: Path, release_roots: dict[Dataset, Path]
) -> None:
    root = shutil.copytree(release_roots["oumvlp"], tmp_path / "root")
    for name in ("Silhouette_000-00.7z", "Silhouette_090-01.7z"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    text = message("oumvlp", root)
    assert "2 archive(s) cannot be read" in text
    assert "Silhouette_000-00.7z: " in text
    assert "Silhouette_090-01.7z: " in text
    assert "Download them again" in text
    assert "OUMVLP_PASSWORD" not in text


def test_a_dangling_link_to_an_archive_is_named(tmp_path: Path, write_tree: WriteFiles) -> None:
    write_tree(tmp_path, OUMVLP)
    (tmp_path / "lost.7z").symlink_to("nowhere.7z")
    assert "lost.7z: No such file" in message("oumvlp", tmp_path)


def test_a_damaged_tar_costs_its_own_sequences_only(
    tmp_path: Path,
    release_roots: dict[Dataset, Path],
    catalogues: dict[Dataset, pd.DataFrame],
    write_zip: WriteFiles,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = shutil.copytree(release_roots["casia_e"], tmp_path / "root")
    with zipfile.ZipFile(root / "train001-500.zip") as outer:
        tars = {name: outer.read(name) for name in outer.namelist()}
    tars["002.tar"] = tars["002.tar"][: len(tars["002.tar"]) // 2]
    tars["003.tar"] = b""
    write_zip(root / "train001-500.zip", tars)
    sequences, refusals, *_ = ingest("casia_e", root, "release", workers=0)
    whole = catalogues["casia_e"]
    others = ~whole["subject"].isin(["002", "003"])
    pd.testing.assert_frame_equal(
        sequences[~sequences["subject"].isin(["002", "003"])].reset_index(drop=True),
        whole[others].reset_index(drop=True),
    )
    kept = sequences.loc[sequences["subject"] == "002", "n_frames"].sum()
    assert 0 < kept < whole.loc[whole["subject"] == "002", "n_frames"].sum()
    assert set(refusals["container"]) == {"train001-500.zip/002.tar", "train001-500.zip/003.tar"}
    assert set(refusals["reason"]) == {"the archive is damaged", "cut off by the damage"}
    warning = capsys.readouterr().out.partition("warning: ")[2]
    assert warning.startswith("casia_e: 2 archive(s) are damaged, and of each")
    assert [line.partition(":")[0].strip() for line in warning.splitlines()[1:]] == [
        "train001-500.zip/002.tar",
        "train001-500.zip/003.tar",
    ]


def test_a_wrong_password_names_the_variable_and_never_the_password(
    tmp_path: Path,
    write_7z: Write7z,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_7z(tmp_path / "a.7z", as_release(OUMVLP), password="right one", hide_names=True)
    text = message("oumvlp", tmp_path)
    assert "a.7z: encrypted, and no password is set" in text
    assert "environment variable OUMVLP_PASSWORD" in text
    monkeypatch.setenv("OUMVLP_PASSWORD", "hunter2-hunter2")
    text = message("oumvlp", tmp_path)
    assert "a.7z: wrong password" in text
    assert "environment variable OUMVLP_PASSWORD" in text
    output = capsys.readouterr()
    assert "hunter2" not in text + output.out + output.err
    monkeypatch.setenv("OUMVLP_PASSWORD", "right one")
    sequences, refusals, *_ = ingest("oumvlp", tmp_path, "published", workers=0)
    assert len(sequences) == 4
    everything = sequences.to_json() + refusals.to_json() + capsys.readouterr().out
    assert "right one" not in everything


def test_test_subjects_without_any_gallery_are_an_error(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path, {name: b"x" for name in OUMVLP if "00002/01/" not in name})
    text = message("oumvlp", tmp_path)
    assert (
        "oumvlp cannot be evaluated: no test subject has a gallery sequence (sequence 01)" in text
    )
    assert "Found test sequences named 00." in text


def test_views_that_the_protocols_do_not_know_are_an_error(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path, {**OUMVLP, "00002/00/091/1.png": b"x", "00001/00/092/1.png": b"x"})
    text = message("oumvlp", tmp_path)
    assert "1 test sequence(s) at views 091, and OUMVLP knows only 000, 015, 030" in text
    assert "dataset.yaml" in text


def test_test_subjects_without_any_probe_are_an_error(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path, {name: b"x" for name in OUMVLP if "00002/00/" not in name})
    assert "no test subject has a probe sequence (sequence 00)" in message("oumvlp", tmp_path)


def test_nobody_to_train_on_and_nobody_to_test_are_one_error(
    tmp_path: Path, write_tree: WriteFiles
) -> None:
    write_tree(tmp_path / "test", {name: b"x" for name in OUMVLP if name.startswith("00002")})
    assert "oumvlp cannot be evaluated: no subject to train on." in message(
        "oumvlp", tmp_path / "test"
    )
    write_tree(tmp_path / "val", {"501/H/scene1/nm/000/1/1.jpg": b"x"})
    text = message("casia_e", tmp_path / "val")
    for problem in (
        "no subject to train on",
        "a gallery sequence ({H,L}-scene1-nm-{1,2}",
        "a probe",
    ):
        assert problem in text


def test_some_test_subjects_without_a_gallery_are_printed(
    tmp_path: Path, write_tree: WriteFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path, OUMVLP | {"00004/00/090/1.png": b"x", "00006/00/090/1.png": b"x"})
    sequences, *_ = ingest("oumvlp", tmp_path, "published", workers=0)
    assert len(sequences) == 6
    said = capsys.readouterr().out
    assert "2 test subject(s) have probes but no gallery sequence" in said
    assert "  00004\n  00006\n" in said
