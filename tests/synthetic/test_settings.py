from pathlib import Path
from typing import Any

import pytest
import yaml

from synthetic import settings as schema
from synthetic.__main__ import main
from synthetic.settings import SettingsError, read_settings

PARAMS = Path(schema.__file__).with_name("params.yaml")


def write(content: object, folder: Path) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_shipped_settings_are_the_demo_that_is_promised() -> None:
    settings = read_settings(PARAMS)
    assert settings.oumvlp.test_subjects >= 40
    assert len(settings.oumvlp.views) >= 6
    assert settings.casia_e.test_subjects >= 40
    assert len(settings.casia_e.views) >= 6


def test_every_problem_is_named_at_once_with_its_full_key(
    content: dict[str, Any], tmp_path: Path
) -> None:
    content["oumvlp"]["camera"]["widht"] = 320
    content["oumvlp"]["views"][1] = "90"
    content["casia_e"]["scenes"]["scene2"]["faults"]["holes"] = "many"
    del content["people"]["shape_spread"]
    with pytest.raises(SettingsError) as caught:
        read_settings(write(content, tmp_path))
    message = str(caught.value)
    assert "4 problem(s)" in message
    for key in (
        "oumvlp.camera.widht",
        "oumvlp.views.1",
        "casia_e.scenes.scene2.faults.holes",
        "people.shape_spread",
    ):
        assert f"{key}: " in message
    assert "'many'" in message


def test_impossible_combinations_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    content["oumvlp"]["recording"] |= {"fewest_frames": 9, "most_frames": 8}
    content["casia_e"]["test_takes"].append("H-scene3_s-nm-1")
    with pytest.raises(SettingsError) as caught:
        read_settings(write(content, tmp_path))
    message = str(caught.value)
    assert "most_frames = 8 is below fewest_frames = 9" in message
    assert "scenes lacks scene3_s" in message


@pytest.mark.parametrize("text", ["seed: [1", "- 1\n- 2\n", ""])
def test_files_that_are_no_settings(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"params\.yaml"):
        read_settings(path)


def test_command_line_prints_the_message_and_no_traceback(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content["people"]["spread"] = 1.0
    path = write(content, tmp_path)
    assert main(["oumvlp", str(tmp_path / "release"), "--params", str(path)]) == 1
    assert main(["oumvlp", str(tmp_path / "release"), "--params", str(tmp_path / "none.yaml")]) == 1
    errors = capsys.readouterr().err
    assert "people.spread" in errors
    assert "none.yaml: no such file" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "release").exists()
