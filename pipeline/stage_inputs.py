"""The settings and the code that dvc.yaml names for a stage."""

import os
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, listing
from pipeline.files import sha256
from pipeline.settings import PARAMS_FILE, TRAINED_BY, flatten, read_yaml

ROOT = Path(__file__).resolve().parent.parent

Values = dict[str, str | int | float]


class StageInputs:
    """Settings and code of a stage as they are when it starts, to be compared when it ends.

    DVC reads both only when a stage has ended, and would record new ones beside a result of the
    old.
    """

    def __init__(self, stage: str, dataset: str = "") -> None:
        """``dataset``: where dvc.yaml describes one stage for each."""
        described = _described(stage)
        self._stage = stage
        self._params = [name.replace("${key}", dataset) for name in described.get("params", [])]
        self._deps: list[str] = described["deps"]
        self._settings = self._settings_now()
        self._code = _code(self._deps)

    def check_unchanged(self) -> None:
        """PipelineError names every setting and file that is another one now.

        Of several processes the first one compares: it writes the result.
        """
        if os.environ.get("RANK", "0") != "0":
            return
        changed = [*self._changed_settings(), *self._changed_code()]
        if not changed:
            return
        again = "start it again"
        if self._stage in TRAINED_BY.values():
            again += ", or put back what was there: then what it has made is taken over"
        raise PipelineError(
            f"{self._stage}: settings or code were changed while it ran:\n{listing(changed)}\n"
            f"DVC would note the new ones beside what the old ones made: {again}."
        )

    def _changed_settings(self) -> list[str]:
        try:
            was, now = self._settings, self._settings_now()
        except PipelineError as error:
            return [str(error)]
        return [
            f"{PARAMS_FILE}: {name} was {was.get(name)} when it started, is {now.get(name)} now"
            for name in dict.fromkeys([*was, *now])
            if was.get(name) != now.get(name)
        ]

    def _changed_code(self) -> list[str]:
        was, now = self._code, _code(self._deps)
        paths = sorted(path for path in {*was, *now} if was.get(path) != now.get(path))
        return [f"{path} is not as it was when it started" for path in paths]

    def _settings_now(self) -> Values:
        """As the file has them: what other stages read may be half edited."""
        settings = flatten(read_yaml(PARAMS_FILE)) if self._params else {}
        return {
            name: value
            for name, value in settings.items()
            if any(f"{name}.".startswith(f"{key}.") for key in self._params)
        }


def code_of(stage: str) -> dict[str, str]:
    """SHA-256 of every file of code, and of pages' templates, that DVC reruns a stage for."""
    return _code(_described(stage)["deps"])


def _code(deps: list[str]) -> dict[str, str]:
    code = [path for path in deps if path.endswith((".py", ".html"))]
    for package in (path for path in deps if (ROOT / path / "__init__.py").exists()):
        files = sorted((ROOT / package).rglob("*.py"))
        code += [path.relative_to(ROOT).as_posix() for path in files]
    return {path: sha256(ROOT / path) for path in code if (ROOT / path).exists()}


def _described(stage: str) -> dict[str, Any]:
    described: dict[str, Any] = read_yaml(ROOT / "dvc.yaml")["stages"][stage]
    of_each: dict[str, Any] = described.get("do", described)  # where there is one a dataset
    return of_each
