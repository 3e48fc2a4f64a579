import hashlib
from pathlib import Path

import pytest

from pipeline import files
from pipeline.files import fingerprint, new_folder, sha256, write_bytes, write_json


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_new_folder_takes_its_name_when_all_is_written(tmp_path: Path) -> None:
    target = tmp_path / "data" / "catalogue"
    with new_folder(target) as folder:
        assert folder.parent == target.parent  # the same file system: renaming is atomic
        assert not target.exists()
        (folder / "a").write_text("new")
    assert content(tmp_path) == {"data/catalogue/a": b"new"}
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_new_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "inner").mkdir(parents=True)
    (target / "inner" / "old").write_text("old")
    with new_folder(target) as folder:
        (folder / "a").write_text("new")
        assert (target / "inner" / "old").exists()
    assert content(tmp_path) == {"out/a": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o775), (0o022, 0o755), (0o077, 0o700)])
def test_a_new_folder_is_as_open_as_others_of_this_user(
    tmp_path: Path, umask: int, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "UMASK", umask)
    with new_folder(tmp_path / "x"):
        pass
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_folder_and_nothing_beside_it(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")

    def fill() -> None:
        with new_folder(target) as folder:
            (folder / "half").write_text("half")
            raise kind

    with pytest.raises(kind):
        fill()
    assert content(tmp_path) == {"out/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_bytes_replace_a_file_and_leave_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"old and longer")
    write_bytes(path, b"new")
    assert content(tmp_path) == {"deep/file": b"new"}


def test_bytes_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_bytes(tmp_path / "folder", b"x")
    assert content(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_json_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "ü"})
    write_json(tmp_path / "b", {"a": "ü", "b": 1})
    assert (tmp_path / "a").read_bytes() == '{\n  "a": "ü",\n  "b": 1\n}\n'.encode()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"gait")
    assert sha256(tmp_path / "x") == hashlib.sha256(b"gait").hexdigest()
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
