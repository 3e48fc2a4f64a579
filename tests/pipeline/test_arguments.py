import pytest

from pipeline.arguments import dataset_argument


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
