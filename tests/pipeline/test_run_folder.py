from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import stage_inputs
from pipeline.errors import PipelineError
from pipeline.run_folder import RunFolder, held

IDENTITY = {"catalogue": "ab", "min_frames": 5}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def folder(name: str = "normalize-oumvlp", **changes: Any) -> RunFolder:
    made = RunFolder(name, "normalize", {**IDENTITY, **changes})
    made.folder.mkdir(parents=True, exist_ok=True)
    made.describe()
    return made


def test_the_key_covers_the_identity_and_the_code_that_dvc_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = folder()
    assert folder().folder == first.folder
    assert folder(min_frames=6).folder != first.folder
    root = tmp_path / "changed"
    stage = yaml.safe_load((stage_inputs.ROOT / "dvc.yaml").read_text())["stages"]["normalize"]
    code = [path for path in stage["do"]["deps"] if path.endswith(".py")]
    assert "pipeline/normalizing.py" in code
    for name in ("dvc.yaml", *code):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((stage_inputs.ROOT / name).read_bytes())
    monkeypatch.setattr(stage_inputs, "ROOT", root)
    assert folder().folder == first.folder
    with (root / "gaitgl" / "silhouettes.py").open("a") as file:
        file.write("\n")
    assert folder().folder != first.folder


def test_folders_under_other_settings_are_named_with_what_differs() -> None:
    mine, other = folder(), folder(min_frames=6, catalogue="cd")
    folder("normalize-casia_e", min_frames=7)
    assert list(mine.folders_of_others()) == [(other.folder, "catalogue, min_frames")]
    (other.folder / "what.json").write_text("{")
    assert list(mine.folders_of_others()) == [
        (other.folder, "settings, which what.json no longer tells")
    ]


def test_a_lock_is_held_for_the_block_and_tells_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "runs" / "normalize-oumvlp.lock"
    work = Path("data/oumvlp/silhouettes")
    with (
        held(lock, "normalize of oumvlp", work),
        pytest.raises(PipelineError) as raised,
        held(lock, "normalize of oumvlp", work),
    ):
        pass
    first, advice = str(raised.value).splitlines()
    assert first.startswith("this normalize of oumvlp runs already: process ")
    assert first.endswith(f" holds {work}.")
    assert "the next one goes on" in advice
    with held(lock, "normalize of oumvlp", work):
        pass
