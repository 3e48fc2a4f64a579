"""The settings and the code that dvc.yaml names for a stage."""

from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, listing
from pipeline.files import sha256
from pipeline.settings import PARAMS_FILE, Settings, read_yaml

ROOT = Path(__file__).resolve().parent.parent


class StageInputs:
    """Settings and code of a stage as they are when it starts, to be compared when it ends.

    DVC looks at both when a stage has ended, and would note new ones beside a result of the old.
    """

    def __init__(self, stage: str, dataset: str = "") -> None:
        """``dataset``: where dvc.yaml describes one stage for each."""
        self._stage = stage
        self._params = [p.replace("${key}", dataset) for p in _described(stage).get("params", [])]
        self._settings = self._settings_now()
        self._code = code_of(stage)

    def check_unchanged(self) -> None:
        """PipelineError names every setting and file that is another one now."""
        settings, code = self._settings_now(), code_of(self._stage)
        changed = [
            f"{PARAMS_FILE}: {name} was {value} when it started, is {settings[name]} now"
            for name, value in self._settings.items()
            if settings[name] != value
        ]
        changed += [
            f"{path}: other code than when it started"
            for path in sorted({*self._code, *code})
            if self._code.get(path) != code.get(path)
        ]
        if changed:
            raise PipelineError(
                f"what {self._stage} was made with was changed while it ran:\n{listing(changed)}\n"
                "DVC would take its result for one of what is there now: start again. (A training "
                "is taken over as it is once the old state is back.)"
            )

    def _settings_now(self) -> dict[str, str | int | float]:
        settings = Settings.load().flat() if self._params else {}
        return {
            name: value
            for name, value in settings.items()
            if any(f"{name}.".startswith(f"{key}.") for key in self._params)
        }


def code_of(stage: str) -> dict[str, str]:
    """SHA-256 of every file of code, and of pages' templates, that DVC reruns a stage for."""
    deps = _described(stage)["deps"]
    code = [path for path in deps if path.endswith((".py", ".html"))]
    for package in (path for path in deps if (ROOT / path / "__init__.py").exists()):
        files = sorted((ROOT / package).rglob("*.py"))
        code += [path.relative_to(ROOT).as_posix() for path in files]
    return {path: sha256(ROOT / path) for path in code if (ROOT / path).exists()}


def _described(stage: str) -> dict[str, Any]:
    described: dict[str, Any] = read_yaml(ROOT / "dvc.yaml")["stages"][stage]
    of_each: dict[str, Any] = described.get("do", described)  # where there is one a dataset
    return of_each
