"""The schema of params.yaml: every setting with its unit, its range and a sentence.

DVC decides from ``dvc.yaml`` which leaf reruns which stage; this file decides what a leaf may hold.
All problems of a file are collected and reported at once, with their full keys.
"""

import difflib
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.errors import PipelineError

PARAMS_FILE = Path("params.yaml")

Dataset = Literal["oumvlp", "casia_e"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
TRAINED_BY: dict[Dataset, str] = {"oumvlp": "pretrain", "casia_e": "finetune"}
"""The stage that trains on a dataset, in the order in which they run."""

ProtocolName = Literal["view_pairs", "all_views", "hid"]

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """One section of params.yaml: no unknown keys, no silent conversions, no later changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Oumvlp(Section):
    root: Annotated[str, Field(min_length=1)]
    """Folder with what the owners of OUMVLP hand out: Silhouette_<view>-<sequence>.7z, those
    archives extracted, or <subject>/<sequence>/<view>/<frame>.png. Or other data to pretrain on, in
    any layout of docs/layouts.md."""

    split: ClassVar[str] = "published"
    """Odd ids up to 10305 are trained on, even ids and 10307 tested: no other split is known."""


class CasiaE(Section):
    root: Annotated[str, Field(min_length=1)]
    """Folder with what the owners of CASIA-E hand out: the three zips, forTrain/ extracted, or the
    HID competition's train/, test_gallery/ and test_probe/. Or other data to fine-tune on, in any
    layout of docs/layouts.md."""

    split: Literal["release", "opengait"]
    """Who is trained on: subjects 1-500, 501-614 kept for validation, the rest for the test
    (release); or subjects 1-200, the rest for the test (opengait). Other layouts have their own."""


class Data(Section):
    oumvlp: Oumvlp
    casia_e: CasiaE

    def __getitem__(self, dataset: Dataset) -> Oumvlp | CasiaE:
        found: Oumvlp | CasiaE = getattr(self, dataset)
        return found


class Ingest(Section):
    """How much of an archive is read, so that a hostile one cannot fill memory or disk."""

    max_frame_bytes: Positive
    """A member larger than this, unpacked, is refused (bytes; OUMVLP's frames: about 8 000)."""

    max_archive_bytes: Positive
    """An archive that unpacks to more than this is given up (bytes)."""

    max_members: Positive
    """An archive, or a folder, that holds more members than this is given up (members)."""

    max_pixels: Annotated[int, Field(gt=0, le=2**26)]
    """A picture of more pixels than this is refused (OUMVLP's frames: 1.3 million). OpenCV is told
    the highest value before any setting is read, and decodes nothing past it."""


class Normalize(Section):
    min_foreground: NotNegative
    """A frame whose pixels add up to this or less is refused (grey levels; GaitSet: 10 000)."""

    min_frames: Positive
    """A sequence with fewer usable frames is refused (frames; OpenGait: 5)."""

    max_refused_share: Annotated[float, Field(ge=0, le=1)]
    """Refusing more than this share of a dataset's frames stops the pipeline (0 to 1)."""


class Model(Section):
    channels: Annotated[list[Positive], Field(min_length=6, max_length=6)]
    """Output channels of first conv and LTA, A1, A2, A3, A4, B1 (Table 1)."""

    parts: Literal[1, 2, 4, 8, 16]
    """Horizontal parts of the local branch (Table 1: 2); they divide the last layers' 32 rows."""

    aggregation: Literal["lta", "max_pool"]
    """What follows the first convolution: LTA (Eq. 1), or the spatial max pooling that it replaces,
    which leaves half the rows, and so half the strips."""

    branches: Literal["both", "global", "local"]
    """Branches of every GLConv: Eq. 4 and Eq. 5, or one of them alone, with half the strips."""

    last_join: Literal["stack", "add"]
    """The last layer is a GLConvB, which stacks its branches (Table 1), or a GLConvA, which adds
    them and leaves half the strips."""

    gem_p: Annotated[float, Field(ge=1, le=100)]
    """Where the exponent of GeM pooling starts (Eq. 8)."""

    gem_learned: bool
    """Train that exponent (the paper), or let it stay where it starts."""

    spatial_pooling: Literal["gem", "max_mean"]
    """What maps a strip to a vector: GeM (Eq. 8) or max and mean added (Eq. 7)."""

    max_weight: float
    """α of Eq. 7; read where spatial_pooling is max_mean."""

    mean_weight: float
    """β of Eq. 7; read where spatial_pooling is max_mean."""

    activation: Literal["branch", "sum"]
    """LeakyReLU on each branch of a GLConvA (published code), or once on their sum (faster)."""


class Training(Section):
    """What pretrain and finetune have in common."""

    subjects_per_batch: Annotated[int, Field(ge=2)]
    """P: subjects in a batch."""

    sequences_per_subject: Annotated[int, Field(ge=2)]
    """K: sequences of each of them."""

    clip_frames: Positive
    """Consecutive frames cut from each sequence (frames)."""

    steps: NotNegative
    """Optimizer steps; 0 writes the initial weights."""

    lr: Annotated[float, Field(gt=0)]
    """Adam's learning rate (no unit)."""

    warmup_steps: NotNegative
    """Steps over which the learning rate rises linearly to lr (the paper: 0)."""

    lr_drops: list[Positive]
    """Steps after which the learning rate is divided by ten, rising."""

    margin: Annotated[float, Field(gt=0)]
    """m of Eq. 10 (distance between embeddings)."""

    precision: Literal["float32", "bfloat16"]
    """Arithmetic of the convolutions; pooling, distances and loss are float32 always."""

    compile: bool
    """Let torch.compile rewrite the training steps: minutes before the first one, and only worth
    it on a GPU. Needs a C++ compiler; goes on without, and says so, where there is none."""

    validation_subjects: NotNegative
    """Subjects kept out of training to validate on (subjects). CASIA-E's release has 114 for that;
    elsewhere, and past those, they are taken from the training subjects."""

    validate_every: NotNegative
    """Steps between two measurements of rank-1 on the validation subjects; 0: none. Measuring does
    not change the training."""


class Pretrain(Training):
    pass


class Finetune(Training):
    initial: Literal["pretrained", "random"]
    """Start from the OUMVLP checkpoint (the paper), or from scratch, for comparison."""


class Protocols(Section):
    """Which protocols of a dataset's layout are applied, the headline first; []: all it offers."""

    oumvlp: list[ProtocolName]
    casia_e: list[ProtocolName]

    def __getitem__(self, dataset: Dataset) -> list[ProtocolName]:
        found: list[ProtocolName] = getattr(self, dataset)
        return found


class Reranking(Section):
    """k-reciprocal re-ranking (Zhong et al., 2017): who is near to the same entries counts as near.
    It looks at all probes together, so figures with and without it answer different questions."""

    method: Literal["none", "k_reciprocal"]
    """none, or k_reciprocal: re-rank by shared neighbours, which alone reads what follows."""

    k1: Positive
    """Nearest entries among which reciprocal ones are looked for (entries; published: 20)."""

    k2: Positive
    """Nearest entries whose neighbourhoods are averaged (entries; published: 6)."""

    original_share: Annotated[float, Field(ge=0, le=1)]
    """Weight of the distance itself beside that of the neighbourhoods (λ, 0 to 1; published:
    0.3)."""


class Submission(Section):
    """The CSV file of a competition whose probes have no labels (HID)."""

    columns: Literal["videoID,subjectID", "videoID,label"]
    """Its first line: videoID,subjectID in 2020, videoID,label since 2022."""

    unknown_above: Annotated[float, Field(ge=0)]
    """A probe whose nearest gallery entry is further than this, or that has no usable frame, gets
    the label -1 (in the unit of evaluate.distance; of cosine: √(2 - 2 cos); with
    evaluate.reranking: of its distances, from 0 to 1); for years that score unknown people.
    0: nobody does."""


class Evaluate(Section):
    protocols: Protocols

    distance: Literal["euclidean", "strip_euclidean", "cosine"]
    """Euclidean on the flattened embedding (the paper), mean over strips of the distances per
    strip (OpenGait), or cosine on the flattened embedding: as the Euclidean distance of vectors
    scaled to length 1, √(2 - 2 cos), from 0 to 2, which ranks as 1 - cos does."""

    reranking: Reranking

    cmc_ranks: Annotated[int, Field(ge=5)]
    """How far the CMC curve goes (ranks)."""

    submission: Submission


class Runtime(Section):
    """Where and how fast it runs. Nothing here reruns a stage; device and processes may change last
    digits."""

    device: Literal["auto", "cpu", "cuda"]
    """Where networks run; auto takes the GPU where there is one."""

    workers: Annotated[int, Field(ge=-1)]
    """Processes for ingest and normalize, threads that prepare batches; 0: none beside the
    stage itself, -1: as many as there are cores."""

    dask_scheduler: Annotated[str, Field(pattern=r"^(tcp://\S+:\d+)?$")]
    """Address of a Dask scheduler (tcp://host:port), whose workers then normalize instead of
    processes of this machine; empty: none. For trusted networks only."""

    processes: Positive
    """Processes that train and embed together, on this machine: one a GPU. The batch is divided
    among them; P x K must be a multiple."""

    distance_block_mib: Positive
    """Distances that evaluate holds at a time (MiB); it works in about three times that, beside
    one copy of the gallery. Distances may then differ in their last digit, and so the ranks of
    entries that are exactly as far."""

    checkpoint_every: Positive
    """Steps between two states on disk that a killed training resumes from (steps)."""

    stop_after_idle_steps: NotNegative
    """Steps in a row without an active triplet after which training gives up; 0: never. A warning
    comes at half of it, or after 100 steps."""

    profile: bool
    """Write a trace of a few training steps to runs/, for ui.perfetto.dev."""

    log_every: Positive
    """Steps between two points of the curves in MLflow (steps)."""

    experiment: Annotated[str, Field(min_length=1)]
    """Name of the MLflow experiment."""


class Settings(Section):
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    """Where initial weights, batches and clips come from."""

    data: Data
    ingest: Ingest
    normalize: Normalize
    model: Model
    pretrain: Pretrain
    finetune: Finetune
    evaluate: Evaluate
    runtime: Runtime

    @classmethod
    def load(cls, path: Path = PARAMS_FILE) -> Self:
        """Read and check a settings file; PipelineError names every problem in it."""
        return cls.check(read_yaml(path), str(path))

    @classmethod
    def check(cls, tree: dict[str, Any], source: str) -> Self:
        """Settings from what a file holds; PipelineError names the ``source`` and every problem."""
        problems = []
        try:
            settings = cls.model_validate(tree)
        except ValidationError as error:
            problems += [explain(item, cls) for item in error.errors()]
        problems += _cross_checks(tree)
        if problems:
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise PipelineError(f"{source} has {len(problems)} problem(s):\n{lines}")
        return settings

    def flat(self) -> dict[str, str | int | float]:
        """Every leaf under its full key, lists as text: what a run of MLflow shows."""
        return flatten(self.model_dump())


def as_trained(
    params: dict[str, Any], stage: str, training: dict[str, Any], architecture: dict[str, Any]
) -> dict[str, Any]:
    """``params`` (of `Settings.flat`) with what a checkpoint says it was trained with.

    That is what params.yaml says, unless a later stage was made to run by itself (`dvc repro -s`).
    """
    return as_noted(params, {stage: training, "model": architecture})


def as_noted(params: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """``params`` (of `Settings.flat`), with the values of those settings that a tree holds."""
    noted = flatten(tree)
    return {name: noted.get(name, value) for name, value in params.items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; PipelineError where it holds none."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing: run this from the project's root") from None
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path} is not readable YAML: {error}") from None


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in a text, YAML 1.2 as DVC reads it; PipelineError names the ``source``."""
    try:
        tree = YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        where = error.problem_mark
        at = f"line {where.line + 1}, column {where.column + 1}: " if where else ""
        raise PipelineError(f"{source} is not readable YAML: {at}{error.problem}") from None
    except (YAMLError, ValueError, KeyError, RecursionError) as error:  # a 30th of February, say
        raise PipelineError(f"{source} is not readable YAML: {error}") from None
    if tree is None:  # nothing but comments
        return {}
    if not isinstance(tree, dict):
        raise PipelineError(f"{source}: expected a mapping of sections, got {type(tree).__name__}")
    return tree


def explain(error: Any, root: type[BaseModel]) -> str:
    """One pydantic error as `full.key[0]: what is wrong`."""
    location = error["loc"]
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    key = key.removeprefix(".")
    if error["type"] == "missing":
        return f"{key}: missing; profiles/paper.yaml shows every key"
    if error["type"] == "extra_forbidden":
        known = _keys_at(root, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        prefix = key[: len(key) - len(str(location[-1]))]
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    context = error.get("ctx", {})
    if error["type"] == "too_short":
        least = context["min_length"]
        return f"{key}: must have {least} or more entries, not {context['actual_length']}"
    if error["type"] == "too_long":
        most = context["max_length"]
        return f"{key}: must have {most} entries at most, not {context['actual_length']}"
    text = error["msg"][0].lower() + error["msg"][1:]
    return f"{key}: {text.replace('input should be', 'must be')}, not {error['input']!r}"


def _keys_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        inner = model.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _cross_checks(tree: dict[str, Any]) -> list[str]:
    """What no field can check by itself, as far as the fields that it takes are valid."""
    problems = []
    processes = _valid_fields(Runtime, tree.get("runtime")).get("processes", 1)
    for name, section in (("pretrain", Pretrain), ("finetune", Finetune)):
        fields = _valid_fields(section, tree.get(name))
        problems += _training_problems(name, fields)
        if {"subjects_per_batch", "sequences_per_subject"} <= fields.keys():
            undivided = batch_problem(name, section.model_construct(**fields), processes)
            problems += [undivided] if undivided else []
    evaluate = tree.get("evaluate")
    reranking = evaluate.get("reranking") if isinstance(evaluate, dict) else None
    fields = _valid_fields(Reranking, reranking)
    if fields.get("k2", 0) > fields.get("k1", math.inf):
        problems.append(f"evaluate.reranking.k2: {fields['k2']} is above k1 = {fields['k1']}")
    return problems


def _valid_fields(section: type[Section], tree: Any) -> dict[str, Any]:
    """The fields of a section that are valid by themselves."""
    if not isinstance(tree, dict):
        return {}
    try:
        section.model_validate(tree)
    except ValidationError as error:
        invalid = {item["loc"][0] for item in error.errors()}
        known = section.model_fields.keys() - invalid
        return {name: value for name, value in tree.items() if name in known}
    return tree


def batch_problem(name: str, training: Training, processes: int) -> str:
    """Why a batch cannot be divided among processes, with the nearest sizes; empty if it can."""
    p, k = training.subjects_per_batch, training.sequences_per_subject
    if p * k % processes == 0:
        return ""
    step = processes // math.gcd(k, processes)  # P must be a multiple of this
    sizes = [n for n in (p // step * step, p // step * step + step) if n >= 2]
    counts = [n for n in range(1, p * k + 1) if p * k % n == 0]
    below = max(n for n in counts if n < processes)
    above = min((n for n in counts if n > processes), default=below)
    return (
        f"{name}.subjects_per_batch: {p} x {k} = {p * k} sequences do not divide among "
        f"{processes} processes; nearest: {' or '.join(map(str, sizes))} subjects, or "
        f"{' or '.join(map(str, sorted({below, above})))} processes"
    )


def _training_problems(name: str, fields: dict[str, Any]) -> list[str]:
    problems = []
    steps, drops = fields.get("steps", math.inf), fields.get("lr_drops", [])
    for i, drop in enumerate(drops):
        if drop > steps:
            problems.append(f"{name}.lr_drops[{i}]: {drop} is past {name}.steps = {steps}")
        if i and drop <= drops[i - 1]:
            problems.append(
                f"{name}.lr_drops[{i}]: {drop} must be above the one before it, {drops[i - 1]}"
            )
    warmup = fields.get("warmup_steps", 0)
    if warmup > steps:
        problems.append(f"{name}.warmup_steps: {warmup} is past {name}.steps = {steps}")
    every, subjects = fields.get("validate_every", 0), fields.get("validation_subjects", 2)
    if every and subjects < 2:
        problems.append(
            f"{name}.validation_subjects: {subjects}, but validation every {every} steps needs at "
            "least 2"
        )
    return problems


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str | int | float]:
    """Every leaf under its full key, lists as text."""
    flat: dict[str, str | int | float] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = str(list(value)) if isinstance(value, list | tuple) else value
    return flat
