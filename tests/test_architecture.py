"""Who may import whom, and that tests lie where the code they test lies."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT = {
    "gaitgl": set(),
    "pipeline": {"gaitgl"},
    "stages": {"pipeline", "gaitgl"},
    "synthetic": {"gaitgl"},
}
NOT_IN_GAITGL = {"mlflow", "dvc", "pandas", "pathlib", "os", "shutil", "pyarrow", "yaml"}


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no code in {package}/: was it renamed?"
    return found


def imports(path: Path) -> list[str]:
    """Full names of all modules that a file imports, wherever in the file."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write the whole name instead of a relative import"
            names.append(node.module or "")
    return names


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    ours = set(MAY_IMPORT)
    allowed = MAY_IMPORT[package] | ({package} if package != "stages" else set())
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imports(path)
        if top(name) in ours and top(name) not in allowed
    ]
    assert not wrong


def test_tests_and_benchmarks_are_imported_by_nobody() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package in MAY_IMPORT
        for path in sources(package)
        for name in imports(path)
        if top(name) in {"tests", "benchmarks"}
    ]
    assert not wrong


def test_gaitgl_knows_no_paths_no_tracking_and_no_device() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("gaitgl")
        for name in imports(path)
        if top(name) in NOT_IN_GAITGL
    ]
    for path in sources("gaitgl"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "cuda":
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} uses .cuda")
            if isinstance(node, ast.Name) and node.id == "open":
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} opens a file")
    assert not wrong


def test_few_files_speak_to_mlflow_and_none_to_dvc() -> None:
    names = ("mlflow_import", "mlflow_store", "model_folder", "registry", "system_metrics")
    speaking = {ROOT / "pipeline" / f"{name}.py" for name in names}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package in MAY_IMPORT
        for path in sources(package)
        for name in imports(path)
        if top(name) == "dvc" or (top(name) == "mlflow" and path not in speaking)
    ]
    assert not wrong


@pytest.mark.parametrize("package", ["gaitgl", "pipeline", "synthetic"])
def test_test_files_mirror_source_files(package: str) -> None:
    code = {path.stem.strip("_") for path in sources(package)}
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / package).rglob("test_*")}
    assert tests <= code, f"tests/{package} tests files that are not in {package}/"


@pytest.mark.parametrize("package", ["gaitgl", "pipeline"])
def test_every_source_file_has_its_tests(package: str) -> None:
    code = {path.stem for path in sources(package)} - {"__init__"}
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / package).rglob("test_*")}
    assert code <= tests, f"{package}/ has files without a tests/{package}/test_<file>.py"
