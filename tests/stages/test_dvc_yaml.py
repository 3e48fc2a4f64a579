"""dvc.yaml, params.yaml and the stages' code must agree; DVC itself resolves dvc.yaml here."""

import ast
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from pipeline.evaluation_run import NEVER_BEHIND
from pipeline.settings import DATASETS, Settings

ROOT = Path(__file__).parents[2]

PLUMBING = {
    "pipeline/__init__.py",
    "pipeline/arguments.py",
    "pipeline/cluster.py",
    "pipeline/commits.py",
    "pipeline/data_inputs.py",
    "pipeline/errors.py",
    "pipeline/evaluation_run.py",
    "pipeline/files.py",
    "pipeline/memory.py",
    "pipeline/mlflow_store.py",
    "pipeline/moved_project.py",
    "pipeline/prefetching.py",
    "pipeline/processes.py",
    "pipeline/profiling.py",
    "pipeline/progress.py",
    "pipeline/run_folder.py",
    "pipeline/run_record.py",
    "pipeline/settings.py",
    "pipeline/stage_inputs.py",
    "pipeline/stopping.py",
    "pipeline/sync_runs.py",
    "pipeline/tracking.py",
    "pipeline/training_state.py",
    "pipeline/validation.py",
    "gaitgl/__init__.py",
    "stages/__init__.py",
}
"""Code that cannot change what comes out: messages, progress, runs, the schema of the settings,
where files are renamed, how a killed training goes on, what is measured while it does. Mending it,
or what it alone imports, must not cost a training."""


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    with Repo(str(ROOT)) as repo:
        return {
            stage.addressing: stage
            for stage in repo.index.stages
            if "synthetic" not in stage.addressing
        }


def _file(stage: Any) -> Path:
    module = stage.cmd.removeprefix("python -m ").split()[0]
    return ROOT / f"{module.replace('.', '/')}.py"


def _deps(stage: Any) -> set[str]:
    """The code that a stage depends on; a package stands for all its files."""
    found = set()
    for path in (ROOT / dep.def_path for dep in stage.deps):
        files = path.glob("*.py") if (path / "__init__.py").exists() else [path]
        found |= {file.relative_to(ROOT).as_posix() for file in files if file.suffix == ".py"}
    return found


def _params(stage: Any) -> set[str]:
    return {name for dep in stage.deps if hasattr(dep, "params") for name in dep.params}


def _imports(path: Path) -> set[Path]:
    """Project files that a file imports, directly."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        for module in modules:
            place = ROOT / module.replace(".", "/")
            found |= {place.with_suffix(".py"), place / "__init__.py", place.parent / "__init__.py"}
    return {file for file in found if file.exists()}


def _closure(path: Path) -> set[str]:
    pending, seen = {path}, set()
    while pending:
        file = pending.pop()
        seen.add(file)
        if file.relative_to(ROOT).as_posix() not in PLUMBING:
            pending |= _imports(file) - seen
    return {file.relative_to(ROOT).as_posix() for file in seen}


def test_the_stages_are_those_of_the_pipeline(stages: dict[str, Any]) -> None:
    datasets = ("oumvlp", "casia_e")
    of_each = ("ingest", "normalize", "describe", "embed", "evaluate")
    expected = {f"{stage}@{d}" for stage in of_each for d in datasets}
    assert set(stages) == expected | {"pretrain", "finetune"}
    # compare is asked for by hand
    scripts = {
        path for path in (ROOT / "stages").glob("*.py") if path.stem not in ("__init__", "compare")
    }
    assert {_file(stage) for stage in stages.values()} == scripts


def test_deps_name_the_code_that_each_stage_runs(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        assert _deps(stage) == _closure(_file(stage)) - PLUMBING, name


def test_pages_templates_rerun_the_stages_that_fill_them(stages: dict[str, Any]) -> None:
    """A stage that has a page depends on its template, and on what all pages share."""
    shared = {"pipeline/page_base.html", "pipeline/page_parts.html"}
    own = {"describe": "pipeline/description_page.html", "evaluate": "pipeline/report_page.html"}
    templates = {f"pipeline/{path.name}" for path in (ROOT / "pipeline").glob("*.html")}
    assert templates == shared | set(own.values())
    for name, stage in stages.items():
        deps = {dep.def_path for dep in stage.deps if dep.def_path.endswith(".html")}
        step = name.partition("@")[0]
        assert deps == (shared | {own[step]} if step in own else set()), name


def test_what_changes_a_protocol_only_is_not_normalized_anew(stages: dict[str, Any]) -> None:
    part_read = {
        "normalize": {"refusals.parquet", "sequences.parquet"},
        "embed": {"protocol.json"},
        "evaluate": {"protocol.json", "refusals.parquet", "sequences.parquet"},
    }
    for name, stage in stages.items():
        step, _, dataset = name.partition("@")
        if step in part_read:
            catalogue = f"data/{dataset}/catalogue"
            read = {dep.def_path for dep in stage.deps if dep.def_path.startswith(catalogue)}
            assert read == {f"{catalogue}/{part}" for part in part_read[step]}, name


def test_plumbing_is_still_there() -> None:
    assert all((ROOT / path).exists() for path in PLUMBING)


def _reads(path: Path) -> set[str]:
    """Full keys that a stage reads from ``settings``, as written; [dataset] becomes *."""
    keys = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute | ast.Subscript)}

    def chain(node: ast.expr) -> list[str] | None:
        if isinstance(node, ast.Attribute):
            base = chain(node.value)
            return None if base is None else [*base, node.attr]
        if isinstance(node, ast.Subscript):
            base = chain(node.value)
            return None if base is None else [*base, "*"]
        return [] if isinstance(node, ast.Name) and node.id == "settings" else None

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and id(node) not in inner:
            found = chain(node)
            if found:
                keys.add(".".join(part for part in found if part not in ("model_dump",)))
    return {key for key in keys if key != "flat" and not key.startswith("runtime")}


def _leaves() -> set[str]:
    return {
        key for key in Settings.load(ROOT / "params.yaml").flat() if not key.startswith("runtime.")
    }


def _under(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def test_stages_declare_what_they_read_and_read_what_they_declare(stages: dict[str, Any]) -> None:
    leaves = _leaves()
    for name, stage in stages.items():
        dataset = name.partition("@")[2]
        read = {key.replace("*", dataset) for key in _reads(_file(stage))}
        read_leaves = {leaf for leaf in leaves if any(_under(leaf, key) for key in read)}
        declared = {leaf for leaf in leaves if any(_under(leaf, key) for key in _params(stage))}
        assert read_leaves == declared, name


def test_every_leaf_of_params_is_read_by_a_stage(stages: dict[str, Any]) -> None:
    declared = {param for stage in stages.values() for param in _params(stage)}
    unread = {leaf for leaf in _leaves() if not any(_under(leaf, param) for param in declared)}
    assert not unread


def test_a_row_of_mlflow_is_told_apart_by_the_settings_behind_its_report(
    stages: dict[str, Any],
) -> None:
    makers = {out.def_path: name for name, stage in stages.items() for out in stage.outs}

    def behind(name: str) -> set[str]:
        """A stage and all whose outputs it needs."""
        needed = {name}
        for path in (dep.def_path for dep in stages[name].deps):
            for above in (path, *map(str, Path(path).parents)):
                if above in makers:
                    needed |= behind(makers[above])
        return needed

    for dataset in DATASETS:
        never = NEVER_BEHIND[dataset]
        declared = {p for name in behind(f"evaluate@{dataset}") for p in _params(stages[name])}
        leaves = Settings.load(ROOT / "params.yaml").flat()
        read = {leaf for leaf in leaves if any(_under(leaf, param) for param in declared)}
        shown = {leaf for leaf in leaves if not leaf.startswith(never)}
        assert shown == read, f"NEVER_BEHIND of {dataset} in pipeline/evaluation_run.py is wrong"


def test_runtime_is_declared_by_no_stage(stages: dict[str, Any]) -> None:
    assert not {p for stage in stages.values() for p in _params(stage) if p.startswith("runtime")}


def test_every_leaf_of_what_is_passed_whole_is_read_somewhere() -> None:
    settings = Settings.load(ROOT / "params.yaml")
    common = settings.pretrain.model_dump().keys()
    leaves = {
        "runtime": settings.runtime.model_dump().keys(),
        "training": common,
        "finetune": settings.finetune.model_dump().keys() - common,
    }
    for section, fields in leaves.items():
        read = {
            node.attr
            for folder in ("pipeline", "stages")
            for path in (ROOT / folder).glob("*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
            and section in (getattr(node.value, "id", ""), getattr(node.value, "attr", ""))
        }
        assert fields <= read, f"no code reads {section}.{sorted(fields - read)}"


def test_every_command_runs_a_stage_as_a_module(stages: dict[str, Any]) -> None:
    for stage in stages.values():
        assert stage.cmd.startswith("python -m stages.")


def test_each_stage_checks_at_its_end_what_dvc_will_note_for_it(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        step, _, dataset = name.partition("@")
        tree = ast.parse(_file(stage).read_text(encoding="utf-8"))
        (main,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main"]
        arguments = f"'{step}', dataset" if dataset else f"'{step}'"
        lines = [ast.unparse(statement) for statement in main.body]
        # before anything that the stage reads
        first = next(line for line in lines if not line.startswith(("dataset =", "began_at =")))
        assert first == f"inputs = StageInputs({arguments})", name
        assert lines[-1] == "inputs.check_unchanged()", name
