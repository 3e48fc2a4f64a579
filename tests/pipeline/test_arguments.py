import subprocess
import sys

import pytest

from pipeline.arguments import dataset_argument, no_arguments
from tests.child_processes import ROOT


@pytest.mark.parametrize("dataset", ["oumvlp", "casia_e"])
def test_the_dataset_is_the_only_argument(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["stage", dataset])
    assert dataset_argument() == dataset


@pytest.mark.parametrize("arguments", [[], ["casia-b"], ["oumvlp", "casia_e"]])
def test_anything_else_names_the_datasets(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["stage", *arguments])
    with pytest.raises(SystemExit) as raised:
        dataset_argument()
    assert raised.value.code == 2
    assert "oumvlp" in capsys.readouterr().err


def test_a_command_without_arguments_refuses_them_and_says_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, status, told in ((["--dry"], 2, "--dry"), (["--help"], 0, "Sends all")):
        monkeypatch.setattr("sys.argv", ["command", *arguments])
        with pytest.raises(SystemExit) as raised:
            no_arguments("Sends all.")
        assert raised.value.code == status
        output = capsys.readouterr()
        assert told in output.out + output.err
    monkeypatch.setattr("sys.argv", ["command"])
    no_arguments("Sends all.")


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("stages.ingest", "oumvlp"),
        ("stages.compare", "cp -r reports/casia_e"),
        ("pipeline.serve", "python -m pipeline.serve MODEL"),
        ("pipeline.ui", "python -m pipeline.ui PORT"),
        ("pipeline.submission", "each probe video once"),
    ],
)
def test_help_says_what_a_command_does_and_needs_no_store(module: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert told in done.stdout
