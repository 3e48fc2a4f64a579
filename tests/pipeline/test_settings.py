import itertools
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_origin

import dvc.utils.serialize
import pytest
import yaml
from pydantic import ValidationError

from gaitgl.model import GaitGLConfig
from pipeline.errors import PipelineError
from pipeline.evaluation_run import NEVER_BEHIND
from pipeline.registry import ALIASES
from pipeline.report_page import TITLES
from pipeline.settings import (
    DATASETS,
    TRAINED_BY,
    Data,
    Model,
    Protocols,
    Settings,
    batch_problem,
    parse_yaml,
    read_yaml,
)

ROOT = Path(__file__).resolve().parents[2]
DEMO, PAPER = ROOT / "params.yaml", ROOT / "profiles" / "paper.yaml"

Change = Callable[[Path, str, Any], None]


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_bytes(DEMO.read_bytes())
    return path


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        found |= {f"{prefix}{name}": value} if inner is None else inner
    return found


def problems_of(path: Path) -> list[str]:
    with pytest.raises(PipelineError) as raised:
        Settings.load(path)
    first, *problems = str(raised.value).splitlines()
    assert first == f"{path} has {len(problems)} problem(s):"
    return [problem.removeprefix("  ") for problem in problems]


def test_shipped_files_are_valid_and_have_the_same_keys() -> None:
    keys = []
    for path in (DEMO, PAPER):
        assert set(Settings.load(path).flat()) == set(leaves(read_yaml(path)))
        keys.append(list(leaves(read_yaml(path))))
    assert keys[0] == keys[1]


def test_paper_profile_has_the_papers_numbers() -> None:
    settings = Settings.load(PAPER)
    assert settings.model.channels == [32, 64, 128, 128, 128, 128]
    assert settings.model.parts == 2
    assert settings.model.gem_p == 6.5
    assert (settings.model.spatial_pooling, settings.model.activation) == ("gem", "branch")
    assert (settings.model.aggregation, settings.model.branches) == ("lta", "both")
    assert (settings.model.last_join, settings.model.gem_learned) == ("stack", True)
    p, f = settings.pretrain, settings.finetune
    assert (p.subjects_per_batch, p.sequences_per_subject, p.clip_frames) == (32, 8, 30)
    assert (f.subjects_per_batch, f.sequences_per_subject, f.clip_frames) == (12, 8, 64)
    assert (p.steps, p.lr, p.lr_drops) == (250_000, 1e-4, [150_000])
    assert (f.steps, f.lr, f.lr_drops) == (15_000, 1e-4, [10_000])
    assert (p.warmup_steps, p.margin, f.warmup_steps, f.margin) == (0, 0.2, 0, 0.2)
    assert f.initial == "pretrained"
    assert settings.evaluate.distance == "euclidean"
    assert settings.normalize.min_foreground == 10_000
    assert settings.data.casia_e.split == "release"


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("gem_p", 1.0, "gem_p: unknown key; did you mean "),
        ("model.gem_pp", 1.0, "model.gem_pp: unknown key; did you mean model.gem_p?"),
        ("pretrain.lr_drop", [1], "pretrain.lr_drop: unknown key; did you mean pretrain.lr_drops?"),
        ("data.oumvlp.split", "release", "data.oumvlp.split: unknown key; known here: root"),
        ("pretrain.steps", "many", "pretrain.steps: must be a valid integer, not 'many'"),
        ("pretrain.steps", 2.5, "pretrain.steps: must be a valid integer, not 2.5"),
        ("pretrain.steps", True, "pretrain.steps: must be a valid integer, not True"),
        ("pretrain.steps", -1, "pretrain.steps: must be greater than or equal to 0, not -1"),
        ("pretrain.lr", "0.001", "pretrain.lr: must be a valid number, not '0.001'"),
        ("pretrain.lr", 0, "pretrain.lr: must be greater than 0, not 0"),
        ("pretrain.lr", float("inf"), "pretrain.lr: must be a finite number, not inf"),
        ("model.gem_p", float("nan"), "model.gem_p: must be "),
        ("model.gem_p", 0.9, "model.gem_p: must be greater than or equal to 1, not 0.9"),
        ("model.parts", 3, "model.parts: must be 1, 2, 4, 8 or 16, not 3"),
        ("model.branches", "none", "model.branches: must be 'both', 'global' or 'local', not"),
        ("model.channels", [1, 2, 3], "model.channels: must have 6 or more entries, not 3"),
        ("model.channels", [2] * 9, "model.channels: must have 6 entries at most, not "),
        ("model.channels", [1, 2, 3, 4, 0, 6], "model.channels[4]: must be greater than 0, not 0"),
        ("finetune.subjects_per_batch", 1, "finetune.subjects_per_batch: must be greater than"),
        ("finetune.initial", "scratch", "finetune.initial: must be 'pretrained' or 'random', not"),
        ("evaluate.cmc_ranks", 4, "evaluate.cmc_ranks: must be greater than or equal to 5, not 4"),
        (
            "evaluate.protocols.casia_e",
            ["all_views", "view_pair"],
            "evaluate.protocols.casia_e[1]: must be 'view_pairs', 'all_views' or 'hid', not 'view",
        ),
        ("evaluate.reranking.k1", 5, "evaluate.reranking.k2: 6 is above k1 = 5"),
        ("evaluate.submission.unknown_above", -1.0, "evaluate.submission.unknown_above: must be "),
        ("runtime.distance_block_mib", 0, "runtime.distance_block_mib: must be greater than 0"),
        ("runtime.workers", -2, "runtime.workers: must be greater than or equal to -1, not -2"),
        ("runtime.device", "gpu", "runtime.device: must be 'auto', 'cpu' or 'cuda', not 'gpu'"),
        ("data.casia_e.split", None, "data.casia_e.split: must be 'release' or 'opengait', not"),
        ("data.casia_e.root", "", "data.casia_e.root: "),
        ("pretrain", None, "pretrain: must be a valid dictionary"),
        ("pretrain.validation_subjects", -1, "pretrain.validation_subjects: must be greater than"),
        ("finetune.validate_every", -1, "finetune.validate_every: must be greater than or equal"),
        ("finetune.validate_every", 2.0, "finetune.validate_every: must be a valid integer, not"),
        ("runtime.processes", 0, "runtime.processes: must be greater than 0, not 0"),
        ("runtime.processes", -1, "runtime.processes: must be greater than 0, not -1"),
        ("runtime.checkpoint_every", 0, "runtime.checkpoint_every: must be greater than 0, not 0"),
        ("runtime.stop_after_idle_steps", -1, "runtime.stop_after_idle_steps: must be greater "),
        ("runtime.profile", 1, "runtime.profile: must be a valid boolean, not 1"),
        ("runtime.profile", "yes", "runtime.profile: must be a valid boolean, not 'yes'"),
    ],
)
def test_one_wrong_leaf_is_one_problem_with_its_full_key(
    params: Path, change_leaf: Change, key: str, value: Any, problem: str
) -> None:
    change_leaf(params, key, value)
    (found,) = problems_of(params)
    if key == "gem_p":  # no section is spelt nearly like this
        assert found.startswith("gem_p: unknown key; ")
    else:
        assert found.startswith(problem)


def test_impossible_combinations_are_named_with_both_keys(
    params: Path, change_leaf: Change
) -> None:
    change_leaf(params, "finetune.steps", 600)
    change_leaf(params, "finetune.lr_drops", [300, 900])
    assert problems_of(params) == ["finetune.lr_drops[1]: 900 is past finetune.steps = 600"]
    change_leaf(params, "finetune.lr_drops", [300, 300])
    assert problems_of(params) == ["finetune.lr_drops[1]: 300 must be above the one before it, 300"]
    change_leaf(params, "finetune.lr_drops", [])
    change_leaf(params, "finetune.warmup_steps", 601)
    assert problems_of(params) == ["finetune.warmup_steps: 601 is past finetune.steps = 600"]


@pytest.mark.parametrize("subjects", [0, 1])
def test_validation_without_subjects_is_a_problem(
    params: Path, change_leaf: Change, subjects: int
) -> None:
    change_leaf(params, "finetune.validation_subjects", subjects)
    Settings.load(params)
    change_leaf(params, "finetune.validate_every", 50)
    assert problems_of(params) == [
        f"finetune.validation_subjects: {subjects}, but validation every 50 steps needs at least 2"
    ]
    change_leaf(params, "finetune.validation_subjects", 2)
    assert Settings.load(params).finetune.validate_every == 50


def test_a_batch_that_does_not_divide_among_processes_is_a_problem(
    params: Path, change_leaf: Change
) -> None:
    for leaf, value in (("subjects_per_batch", 7), ("sequences_per_subject", 6)):
        change_leaf(params, f"pretrain.{leaf}", value)
    change_leaf(params, "runtime.processes", 4)  # finetune's 8 x 4 divide
    assert problems_of(params) == [
        "pretrain.subjects_per_batch: 7 x 6 = 42 sequences do not divide among 4 processes; "
        "nearest: 6 or 8 subjects, or 3 or 6 processes"
    ]


def nearest(n: int, good: Callable[[int], bool], least: int, most: int) -> list[int]:
    """The good numbers next to ``n`` on either side."""
    below = [m for m in range(least, n) if good(m)]
    above = [m for m in range(n + 1, most + 1) if good(m)]
    return below[-1:] + above[:1]


def test_the_nearest_sizes_of_a_batch_are_right() -> None:
    training = Settings.load(DEMO).pretrain
    for p, k, n in itertools.product(range(2, 14), range(2, 9), range(1, 40)):
        changed = training.model_copy(update={"subjects_per_batch": p, "sequences_per_subject": k})
        problem = batch_problem("pretrain", changed, n)
        if p * k % n == 0:
            assert problem == ""
            continue
        subjects = nearest(p, lambda m: m * k % n == 0, 2, n + p)  # noqa: B023
        processes = nearest(n, lambda m: p * k % m == 0, 1, p * k)  # noqa: B023
        assert problem.endswith(
            f"nearest: {' or '.join(map(str, subjects))} subjects, or "
            f"{' or '.join(map(str, processes))} processes"
        ), (p, k, n)


def test_a_drop_at_the_last_step_and_no_steps_at_all_are_possible(
    params: Path, change_leaf: Change
) -> None:
    change_leaf(params, "pretrain.steps", 320)
    change_leaf(params, "pretrain.lr_drops", [320])
    for leaf, value in (("steps", 0), ("warmup_steps", 0), ("lr_drops", [])):
        change_leaf(params, f"finetune.{leaf}", value)
    settings = Settings.load(params)
    assert settings.pretrain.lr_drops == [320]
    assert settings.finetune.steps == 0


def test_all_problems_are_reported_at_once(params: Path) -> None:
    tree = read_yaml(params)
    tree["seed"] = -1
    tree["model"]["part"] = 2
    del tree["finetune"]["initial"]
    del tree["runtime"]
    tree["pretrain"]["steps"] = 320
    tree["pretrain"]["lr_drops"] = [400, 390]
    params.write_text(yaml.safe_dump(tree), encoding="utf-8")
    problems = problems_of(params)
    assert {problem.partition(": ")[0] for problem in problems} == {
        "seed",
        "model.part",
        "finetune.initial",
        "runtime",
        "pretrain.lr_drops[0]",
        "pretrain.lr_drops[1]",
    }
    assert "finetune.initial: missing; profiles/paper.yaml shows every key" in problems
    assert len(problems) == 7  # the second drop is past the end, and below the first


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.0e-4", 1e-4), ("5e+1", 50.0), ("2e0", 2.0), ("1", 1.0)],
)
def test_numbers_are_read_as_dvc_reads_them(params: Path, text: str, value: float) -> None:
    content = params.read_text(encoding="utf-8")
    content = re.sub(r"\blr: \S+", f"lr: {text}", content)
    params.write_text(content, encoding="utf-8")
    assert Settings.load(params).pretrain.lr == value


def test_quoted_numbers_and_names_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: '1e-4'\nb: 1e-4x\nc: e5\n", encoding="utf-8")
    assert read_yaml(path) == {"a": "1e-4", "b": "1e-4x", "c": "e5"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: [1\nmodel: 2", "is not readable YAML"),
        (b"seed: 0\n\tmodel: 1", "is not readable YAML"),
        (b"\xff\xfe\x00", "is not readable YAML"),
        (b"- seed\n- model\n", "expected a mapping of sections, got list"),
        (b"# nothing", "seed: missing"),
        (b"!!python/object/apply:os.getcwd []", "is not readable YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=message) as raised:
        Settings.load(path)
    assert str(path) in str(raised.value)


def test_a_missing_file_is_named_and_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"params\.yaml is missing: run this from"):
        Settings.load(tmp_path / "params.yaml")


def test_keys_that_are_no_text_are_a_problem_and_not_a_crash(params: Path) -> None:
    params.write_text(params.read_text(encoding="utf-8") + "\n1: 2\n", encoding="utf-8")
    assert len(problems_of(params)) == 1


def test_flat_has_every_leaf_once_and_lists_as_text() -> None:
    flat = Settings.load(DEMO).flat()
    assert flat["model.channels"] == "[8, 16, 32, 32, 32, 32]"
    assert flat["pretrain.lr"] == read_yaml(DEMO)["pretrain"]["lr"]
    assert flat["data.casia_e.split"] == "release"
    assert all(isinstance(value, str | int | float) for value in flat.values())


def test_settings_do_not_change_afterwards() -> None:
    settings = Settings.load(DEMO)
    with pytest.raises(ValidationError):
        settings.pretrain.steps = 1


def test_data_is_reached_by_the_datasets_name() -> None:
    data = Settings.load(DEMO).data
    assert data["oumvlp"] is data.oumvlp
    assert data["casia_e"] is data.casia_e
    assert data["oumvlp"].split == "published"


def test_a_broken_field_hides_no_other_problem_of_its_section(
    params: Path, change_leaf: Change
) -> None:
    for key, value in (
        ("finetune.foo", 1),
        ("finetune.lr_drops", [9000]),
        ("evaluate.cmc_ranks", 2),
        ("evaluate.reranking.k2", 30),
        ("runtime.bogus", 1),
        ("runtime.processes", 5),
    ):
        change_leaf(params, key, value)
    told = [problem.partition(":")[0] for problem in problems_of(params)]
    assert sorted(told) == [
        "evaluate.cmc_ranks",
        "evaluate.reranking.k2",
        "finetune.foo",
        "finetune.lr_drops[0]",
        "finetune.subjects_per_batch",
        "pretrain.subjects_per_batch",
        "runtime.bogus",
    ]


@pytest.mark.parametrize(
    "text",
    ["a: 010", "a: 0o17", "a: yes", "a: off", "a: 1:30", "a: 1e-4", "a: 1_000", "a: 2020-01-01"],
)
def test_values_are_read_as_dvc_reads_them(text: str) -> None:
    assert parse_yaml(text, "params.yaml") == dvc.utils.serialize.parse_yaml(text, "params.yaml")


@pytest.mark.parametrize("text", ["a: 2026-02-30", "a: !!int b", "a: !!bool b", "[" * 3000])
def test_what_is_no_yaml_is_named(text: str) -> None:
    with pytest.raises(PipelineError, match=r"params\.yaml is not readable YAML"):
        parse_yaml(text, "params.yaml")


@pytest.mark.parametrize("key", [None, 1e-4])
def test_keys_that_are_no_text_are_named(params: Path, key: object) -> None:
    tree = read_yaml(params)
    tree["pretrain"][key] = 5
    params.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert [problem.partition(".")[0] for problem in problems_of(params)] == ["pretrain"]


def test_a_key_that_is_there_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: {b: 1, c: 2}\nd:\n  b: 1\n  b: 2\n")
    with pytest.raises(PipelineError, match=r'line 4, column 3: found duplicate key "b"'):
        read_yaml(path)
    path.write_text("a: &a {b: 1}\nc: {<<: *a, b: 2}\n")
    assert read_yaml(path)["c"] == {"b": 2}
    path.write_text("b: &b {k: 1}\nx: {a: &a {<<: *b, k: 2}}\nc: {<<: *a}\n1: x\n'1': y\n")
    assert set(read_yaml(path)) == {"b", "x", "c", 1, "1"}  # merged twice, and of two types


def test_every_table_of_datasets_and_of_trainings_is_complete() -> None:
    """Who adds a dataset learns here what else names them all."""
    for table in (TRAINED_BY, Data.model_fields, Protocols.model_fields, NEVER_BEHIND, TITLES):
        assert tuple(table) == DATASETS
    assert set(ALIASES) == set(TRAINED_BY.values()) <= set(Settings.model_fields)


def test_words_that_choose_a_network_are_those_that_the_network_knows() -> None:
    known = {field.name: field.type for field in fields(GaitGLConfig)}
    for name, field in Model.model_fields.items():
        if get_origin(known[name]) is Literal:
            assert field.annotation == known[name], name
