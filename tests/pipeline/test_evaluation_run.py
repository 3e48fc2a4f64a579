from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation_run import result_digest
from pipeline.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.json"
    path.write_text('{"rank1": 50.0}', encoding="utf-8")
    return path


def params(**changes: Any) -> dict[str, Any]:
    flat = Settings.load(ROOT / "params.yaml").flat()
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    assert changed.keys() <= flat.keys()
    return {**flat, **changed}


@pytest.mark.parametrize(
    ("change", "oumvlp", "casia_e"),
    [
        ({"evaluate__distance": "cosine"}, True, True),
        ({"pretrain__lr": 7.0}, True, True),
        ({"seed": 7}, True, True),
        ({"finetune__lr": 7.0}, False, True),
        ({"data__casia_e__split": "opengait"}, False, True),
        ({"runtime__workers": 7, "runtime__experiment": "x"}, False, False),
    ],
    ids=str,
)
def test_a_result_is_another_one_under_settings_that_its_stages_read(
    change: dict[str, Any], oumvlp: bool, casia_e: bool, metrics: Path
) -> None:
    for dataset, differs in (("oumvlp", oumvlp), ("casia_e", casia_e)):
        before, after = (
            result_digest(dataset, flat, metrics)  # type: ignore[arg-type]
            for flat in (params(), params(**change))
        )
        assert (before != after) == differs


def test_other_figures_are_another_result_and_another_folder_is_not(metrics: Path) -> None:
    before = result_digest("oumvlp", params(data__oumvlp__root="/home/a/OUMVLP"), metrics)
    assert before == result_digest("oumvlp", params(data__oumvlp__root="/mnt/OUMVLP"), metrics)
    metrics.write_text('{"rank1": 50.1}', encoding="utf-8")
    assert before != result_digest("oumvlp", params(data__oumvlp__root="/mnt/OUMVLP"), metrics)
