import io
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import py7zr
import pytest
import yaml

from synthetic.__main__ import main
from synthetic.release import write_casia_e, write_oumvlp
from synthetic.render import Frame
from synthetic.settings import Settings
from synthetic.walks import missing_sequences, render_sequence

SILHOUETTE = re.compile(r"Silhouette_(\d{3})-(0[01])/(\d{5})/(\d{4})\.png")
FOR_TRAIN = re.compile(
    r"forTrain/(\d{3})/([HL])/(scene1|scene2|scene3|scene3_s)/(nm|bg|cl)/(\d{3})/(\d)/(\d{4})\.jpg"
)


def read_7z(path: Path) -> dict[str, bytes]:
    factory: Any = py7zr.io.BytesIOFactory(limit=1 << 24)
    with py7zr.SevenZipFile(path) as archive:
        assert not archive.needs_password()
        archive.extractall(factory=factory)
        names = archive.getnames()
    return {name: factory.get(name).read() for name in names}


def read_casia_e(folder: Path) -> dict[tuple[str, str], dict[str, bytes]]:
    """Members of every tar, by (zip, tar)."""
    found = {}
    for path in sorted(folder.iterdir()):
        with zipfile.ZipFile(path) as zipped:
            assert zipped.testzip() is None
            for name in zipped.namelist():
                with tarfile.open(fileobj=io.BytesIO(zipped.read(name))) as tar:
                    members = {}
                    for member in tar:
                        assert member.isreg()
                        content = tar.extractfile(member)
                        assert content is not None
                        members[member.name] = content.read()
                    found[path.name, name] = members
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def decode(content: bytes) -> Frame:
    frame: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert frame is not None
    assert frame.dtype == np.uint8
    return np.asarray(frame, np.uint8)


def test_oumvlp_has_the_releases_names_and_lossless_frames(
    content: dict[str, Any], tmp_path: Path
) -> None:
    content["oumvlp"]["missing_share"] = 0.05
    settings = Settings.model_validate(content)
    missing = missing_sequences(settings)
    write_oumvlp(settings, tmp_path / "oumvlp", workers=1)
    found: dict[tuple[str, str, str], list[bytes]] = {}
    for path in sorted((tmp_path / "oumvlp").iterdir()):
        for name, data in read_7z(path).items():
            matched = SILHOUETTE.fullmatch(name)
            assert matched, name
            view, sequence, subject, number = matched.groups()
            assert path.name == f"Silhouette_{view}-{sequence}.7z"
            frames = found.setdefault((subject, sequence, view), [])
            frames.append(data)
            assert int(number) == len(frames)
    combinations = {
        (f"{subject:05d}", sequence, view)
        for subject in range(1, 6)
        for sequence in ("00", "01")
        for view in ("000", "090", "210")
    }
    assert missing
    assert missing < combinations
    assert set(found) == combinations - missing
    for (subject, sequence, view), encoded in found.items():
        rendered = render_sequence(settings, "oumvlp", subject, sequence, view)
        assert len(encoded) == len(rendered)
        for data, frame in zip(encoded, rendered, strict=True):
            np.testing.assert_array_equal(decode(data), frame)  # one channel, foreground 255


def test_casia_e_has_the_releases_names_and_jpeg_frames(settings: Settings, tmp_path: Path) -> None:
    write_casia_e(settings, tmp_path / "casia_e", workers=1)
    found = read_casia_e(tmp_path / "casia_e")
    assert sorted(found) == [
        ("test615-1014.zip", "615.tar"),
        ("test615-1014.zip", "616.tar"),
        ("train001-500.zip", "001.tar"),
        ("train001-500.zip", "002.tar"),
        ("val501-614.zip", "501.tar"),
    ]
    for (archive, tar), members in found.items():
        test = archive.startswith("test")
        takes = settings.casia_e.test_takes if test else settings.casia_e.training_takes
        sequences: dict[tuple[str, str], list[bytes]] = {}
        for name, data in members.items():
            matched = FOR_TRAIN.fullmatch(name)
            assert matched, name
            subject, camera, scene, condition, view, take, number = matched.groups()
            assert tar == f"{subject}.tar"
            key = (f"{camera}-{scene}-{condition}-{take}", view)
            sequences.setdefault(key, []).append(data)
            assert int(number) == len(sequences[key])
        assert set(sequences) == {(take, view) for take in takes for view in ("000", "090")}
        for (take, view), encoded in sequences.items():
            rendered = render_sequence(settings, "casia_e", tar[:3], take, view)
            assert len(encoded) == len(rendered)
            for data, frame in zip(encoded, rendered, strict=True):
                decoded = decode(data)
                assert decoded.shape == frame.shape  # grey
                assert np.abs(decoded.astype(int) - frame).mean() < 3
                assert len(np.unique(decoded)) > 2  # lossy


@pytest.mark.parametrize("dataset", ["oumvlp", "casia_e"])
def test_same_bytes_again_and_for_any_number_of_workers(
    dataset: str, params_file: Path, tmp_path: Path
) -> None:
    releases = []
    for name, workers in (("first", "1"), ("second", "2")):
        folder = tmp_path / name / dataset
        command = [dataset, str(folder), "--params", str(params_file), "--workers", workers]
        assert main(command) == 0
        releases.append(files(folder))
        assert list(folder.parent.iterdir()) == [folder]  # nothing is left beside it
    assert releases[0] == releases[1]


def test_no_machine_or_moment_shows_in_the_archives(settings: Settings, tmp_path: Path) -> None:
    write_casia_e(settings, tmp_path / "casia_e", workers=1)
    write_oumvlp(settings, tmp_path / "oumvlp", workers=1)
    with zipfile.ZipFile(tmp_path / "casia_e" / "val501-614.zip") as zipped:
        info = zipped.getinfo("501.tar")
        assert info.date_time == (2000, 1, 1, 0, 0, 0)
        with tarfile.open(fileobj=io.BytesIO(zipped.read("501.tar"))) as tar:
            owners = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
    assert owners == {(946_684_800, 0, 0, "", "", 0o644)}
    with py7zr.SevenZipFile(tmp_path / "oumvlp" / "Silhouette_000-00.7z") as archive:
        assert {str(entry.creationtime)[:10] for entry in archive.list()} == {"2000-01-01"}


def test_every_frame_is_bright_enough_unless_it_is_meant_to_be_bad(
    content: dict[str, Any],
) -> None:
    content["oumvlp"]["faults"] |= {"blank_frames": 0.0, "holes": 3.0, "lost_pieces": 1.0}
    settings = Settings.model_validate(content)
    for subject in ("00001", "00002", "00003"):
        for view in ("000", "090"):
            for frame in render_sequence(settings, "oumvlp", subject, "00", view):
                assert int(frame.sum()) > 10_000


def test_a_folder_that_holds_something_is_left_alone(
    params_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "real data"
    folder.mkdir()
    (folder / "Silhouette_000-00.7z").write_bytes(b"licensed")
    assert main(["oumvlp", str(folder), "--params", str(params_file)]) == 1
    assert "real data is there already" in capsys.readouterr().err
    assert files(folder) == {"Silhouette_000-00.7z": b"licensed"}


def test_progress_lines_count_to_the_end(
    params_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["oumvlp", str(tmp_path / "release"), "--params", str(params_file), "--workers", "1"])
    assert "OUMVLP walkers, archives: 6/6" in capsys.readouterr().out


def test_dvc_stages_name_what_they_run_and_read() -> None:
    package = Path(write_oumvlp.__code__.co_filename).parent
    stages = yaml.safe_load((package / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    params = yaml.safe_load((package / "params.yaml").read_text(encoding="utf-8"))
    code = {path.name for path in package.glob("*.py")} - {"__init__.py", "contact_sheet.py"}
    read = set()
    for dataset in ("oumvlp", "casia_e"):
        stage = stages[f"walkers_{dataset}"]
        assert {Path(dep).name for dep in stage["deps"]} == code
        (declared,) = stage["params"]
        assert declared["synthetic/params.yaml"] == ["seed", "people", dataset]
        read |= set(declared["synthetic/params.yaml"])
        assert f"python -m synthetic {dataset} {stage['outs'][0]}" in stage["cmd"]
    assert read == set(params)
