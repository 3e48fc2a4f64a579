import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import stage_inputs
from pipeline.errors import PipelineError
from pipeline.stage_inputs import StageInputs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the settings, of the code and of what DVC knows of both."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("gaitgl", "pipeline", "stages"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage_inputs, "ROOT", tmp_path)
    return tmp_path


def test_settings_that_dvc_will_note_are_named_once_they_are_others(
    project: Path, change_leaf: Callable[[Path, str, Any], None]
) -> None:
    pretrain, finetune, describe = map(StageInputs, ("pretrain", "finetune", "describe"))
    ingest, normalize = StageInputs("ingest", "casia_e"), StageInputs("normalize", "casia_e")
    change_leaf(project / "params.yaml", "pretrain.lr", 0.123)
    change_leaf(project / "params.yaml", "data.casia_e.split", "opengait")
    with pytest.raises(PipelineError, match=r"pretrain\.lr was 0\.0015 when .* is 0\.123 now"):
        pretrain.check_unchanged()
    with pytest.raises(PipelineError, match=r"casia_e\.split was release when .*, is opengait now"):
        ingest.check_unchanged()
    for others in (finetune, describe, normalize):
        others.check_unchanged()


def test_code_and_templates_that_were_edited_added_or_deleted_are_named(project: Path) -> None:
    evaluate, ingest = StageInputs("evaluate", "oumvlp"), StageInputs("ingest", "oumvlp")
    with (project / "pipeline" / "report_page.html").open("a") as file:
        file.write("\n")
    (project / "gaitgl" / "reranking.py").unlink()
    (project / "pipeline" / "training.py").unlink()
    ingest.check_unchanged()
    (project / "pipeline" / "layouts" / "mine.py").touch()
    for inputs, paths in (
        (evaluate, ["gaitgl/reranking.py", "pipeline/report_page.html"]),
        (ingest, ["pipeline/layouts/mine.py"]),
    ):
        with pytest.raises(PipelineError) as raised:
            inputs.check_unchanged()
        _, *lines, advice = str(raised.value).splitlines()
        assert lines == [f"  {path} is not as it was when it started" for path in paths]
        assert advice.endswith("what the old ones made: start it again.")


def test_a_file_that_is_half_edited_stops_the_stages_alone_that_read_that_half(
    project: Path,
) -> None:
    pretrain, finetune = StageInputs("pretrain"), StageInputs("finetune")
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("clip_frames", "frames_of_a_clip", 1))
    finetune.check_unchanged()
    (project / "dvc.yaml").unlink()
    with pytest.raises(PipelineError) as raised:
        pretrain.check_unchanged()
    first, *told = str(raised.value).splitlines()
    assert first == "pretrain: settings or code were changed while it ran:"
    assert "  params.yaml: pretrain.clip_frames was 12 when it started, is None now" in told
    assert "  params.yaml: pretrain.frames_of_a_clip was None when it started, is 12 now" in told
    assert "put back what was there" in told[-1]
    params.write_text("seed: [")
    with pytest.raises(PipelineError, match=r"while it ran:\n  params\.yaml is not readable YAML"):
        finetune.check_unchanged()


def test_of_several_processes_the_first_one_compares(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = StageInputs("embed", "oumvlp")
    (project / "gaitgl" / "model.py").unlink()
    monkeypatch.setenv("RANK", "1")
    embed.check_unchanged()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(PipelineError, match=r"gaitgl/model\.py"):
        embed.check_unchanged()
