"""``make ablations``: variants of the paper's network as DVC experiments, and docs/ablations.md.

    python -m pipeline.ablations [--seeds 3] [--jobs 1] [-S key=value ...] [--page]

Experiments are named ``ablation-<variant>-<seed>`` and wait in DVC's queue. What an earlier call
has trained already, DVC restores. ``--page`` runs nothing and writes the page of what is there.
"""

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline import dvc_data
from pipeline.ablation_page import Claim, Outcome, Outcomes, Variant, ablations_page
from pipeline.check import WALKERS
from pipeline.commits import git
from pipeline.errors import PipelineError, listing, run_stage
from pipeline.estimates import IDENTICAL, figures
from pipeline.files import new_folder, write_bytes
from pipeline.mlflow_store import find_runs, open_store, store_errors, tracking_uri, trouble
from pipeline.probe_table import read_probes
from pipeline.settings import DATASETS, TRAINED_BY, Settings
from pipeline.tracking import DVC_EXPERIMENT_TAG
from pipeline.training_history import HISTORY, read_history

PAGE = Path("docs/ablations.md")
FETCHED = Path("runs/ablations")
STAGES = tuple(TRAINED_BY.values())
UNFINISHED = ("Queued", "Running")
POLL_S = 30.0
"""Asking takes DVC seconds of a processor that the experiments could have."""
WORKER_S = 90.0
"""How long workers are missing before others are started: one takes a while to come up. DVC's leave
before the queue is empty, and one that reads a message while another writes it dies of it."""
MOST_STARTS = 3
STATE = re.compile(r"^\w{7} +(\S+) .* (Queued|Running|Success|Failed) *$", re.MULTILINE)
"""A row of `dvc queue status`: an experiment's name and its state."""
WORKERS = re.compile(r"^Worker status: (\d+) active, (\d+) idle", re.MULTILINE)

BASELINE: dict[str, str | float | bool] = {
    "model.branches": "both",
    "model.last_join": "stack",
    "model.aggregation": "lta",
    "model.spatial_pooling": "gem",
    "model.gem_p": 6.5,
    "model.gem_learned": True,
    "model.activation": "sum",
    "finetune.initial": "pretrained",
}
"""Set in every experiment, unless the variant says otherwise; all else is as in params.yaml."""

VARIANTS = (
    Variant("baseline", "the paper's network; activation after the sum, which is faster", {}),
    Variant("global-only", "global branch alone, 32 strips", {"model.branches": "global"}),
    Variant("local-only", "local branch alone, 32 strips", {"model.branches": "local"}),
    Variant("glconva-only", "last layer a GLConvA, 32 strips", {"model.last_join": "add"}),
    Variant("max-mean", "maximum + mean for GeM", {"model.spatial_pooling": "max_mean"}),
    Variant("p-1", "p fixed at 1", {"model.gem_p": 1.0, "model.gem_learned": False}),
    Variant("p-6.5", "p fixed at 6.5", {"model.gem_learned": False}),
    Variant("max-pool", "spatial pooling for LTA, 32 strips", {"model.aggregation": "max_pool"}),
    Variant("branch", "activation on both branches", {"model.activation": "branch"}),
    # last, for the baseline has pretrained by then, and DVC restores what it made
    Variant("scratch", "CASIA-E from random weights", {"finetune.initial": "random"}),
)

CLAIMS = (
    Claim("Global and local branch are better than the global one", "baseline", "global-only"),
    Claim("Global and local branch are better than the local one", "baseline", "local-only"),
    Claim(
        "The same at 32 strips each: both, added, are better than the global one",
        "glconva-only",
        "global-only",
    ),
    Claim(
        "The same at 32 strips each: both, added, are better than the local one",
        "glconva-only",
        "local-only",
    ),
    Claim("A GLConvB as last layer is better than a GLConvA", "baseline", "glconva-only"),
    Claim("GeM with a learned p is better than maximum + mean", "baseline", "max-mean"),
    Claim("A learned p is better than p = 1, the mean", "baseline", "p-1"),
    Claim("A learned p is better than one fixed at 6.5", "baseline", "p-6.5"),
    Claim("LTA is better than the spatial pooling that it replaces", "baseline", "max-pool"),
    Claim(
        "Fine-tuning OUMVLP's weights is better than training from scratch", "baseline", "scratch"
    ),
    Claim(
        "Not the paper's, which does not say: an activation on each branch, as in the published "
        "code, is better than one on their sum",
        "branch",
        "baseline",
    ),
)


def main() -> None:
    arguments = _arguments()
    settings = Settings.load()
    # seed 0 of all comes first: a table of one seed is worth more than half a table of three
    planned = {
        f"ablation-{variant.name}-{seed}": (variant, seed)
        for seed in range(arguments.seeds)
        for variant in VARIANTS
    }
    if not arguments.page:
        run(planned, arguments.settings, arguments.jobs)
    outcomes, missing = collect(planned)
    if not outcomes:
        raise PipelineError(
            "no experiment has finished at this commit; `dvc queue status` shows what there is"
        )
    changed = common_changes(
        settings, [Settings.load(FETCHED / n / "params.yaml") for n in planned if n not in missing]
    )
    write_bytes(
        PAGE,
        ablations_page(
            VARIANTS,
            CLAIMS,
            outcomes,
            missing=missing,
            data=_data(settings),
            command=_command(arguments.seeds, changed),
            commit=_commit(),
            machine=_machine(),
        ).encode(),
    )
    print(f"{PAGE} holds {len(planned) - len(missing)} of {len(planned)} experiments")
    if missing:
        raise PipelineError(
            f"{len(missing)} experiment(s) have not finished:\n{listing(missing, len(VARIANTS))}\n"
            "`dvc queue status` shows their state, `dvc queue logs NAME` what they printed."
        )


def run(experiments: dict[str, tuple[Variant, int]], settings: Sequence[str], jobs: int) -> None:
    """Bring the pipeline itself up to date, queue the experiments, start DVC's workers, and wait
    until none is left to run.

    Those of an earlier call make room. ``settings`` as ``key=value``, for all experiments.
    """
    states = queue_states()
    busy = [name for name, state in states.items() if state in UNFINISHED]
    if busy:
        raise PipelineError(
            f"DVC's queue is not empty:\n{listing(busy)}\n"
            "Wait for it (`dvc queue status`), or `dvc queue stop --kill` and then "
            "`dvc queue remove --all`."
        )
    # Experiments see what DVC has: the data is made once, not by each. And where dvc.lock names
    # outputs that the cache lacks, as in a fresh clone, DVC 3.67 cannot restore an experiment.
    _dvc("repro", output=None)
    _remove("queue", [name for name in experiments if name in states])
    earlier = _dvc("exp", "list", "--all-commits", "--name-only").split()
    _remove("exp", [name for name in experiments if name in earlier])
    for name, (variant, seed) in experiments.items():
        changed = BASELINE | variant.settings | {"seed": seed}
        overrides = [*settings, *(f"{key}={json.dumps(value)}" for key, value in changed.items())]
        flags = [flag for override in overrides for flag in ("-S", override)]
        _dvc("exp", "run", "--queue", "--name", name, *flags)
    _start_workers(jobs)
    print(
        f"{len(experiments)} experiments are queued. Ctrl-C ends the waiting and not the queue: "
        "`dvc queue stop --kill` does."
    )
    _wait(experiments, jobs)


def queue_states() -> dict[str, str]:
    """Name and state (Queued, Running, Success, Failed) of each experiment in DVC's queue."""
    return dict(STATE.findall(_dvc("queue", "status")))


def collect(experiments: dict[str, tuple[Variant, int]]) -> tuple[Outcomes, list[str]]:
    """What the experiments of this commit came to, and the names of those not finished.

    Their files are left in ``FETCHED``.
    """
    finished = _dvc("exp", "list", "--name-only").split()
    seconds = _training_seconds()
    outcomes: Outcomes = {}
    for name, (variant, seed) in experiments.items():
        if name in finished:
            folder = fetched(name)
            outcomes.setdefault(variant.name, {})[seed] = outcome(folder, seconds.get(name, {}))
    return outcomes, [name for name in experiments if name not in finished]


def outcome(folder: Path, seconds: dict[str, float]) -> Outcome:
    """The figures of one experiment: ``<dataset>/probes.parquet``, ``<stage>/history.csv``."""
    rank1, final_p = {}, {}
    for dataset in DATASETS:
        probes = read_probes(folder / dataset / "probes.parquet")[0]  # the headline protocol's
        title = probes.protocol.title.partition(",")[0]  # without the split
        conditions = probes.table["condition"].unique()
        for condition in conditions:
            column = title if len(conditions) == 1 else f"{title} {condition}"
            found = figures(probes, condition)
            rank1[column] = found["rank1"] if "rank1" in found else found[f"rank1{IDENTICAL}"]
    for stage in STAGES:
        p = read_history(folder / stage / HISTORY)["p"]
        if len(p) and not math.isnan(p.iloc[-1]):
            final_p[stage] = float(p.iloc[-1])
    return Outcome(rank1, final_p, sum(seconds.get(stage, math.nan) for stage in STAGES))


def common_changes(settings: Settings, used: Sequence[Settings]) -> dict[str, str | int | float]:
    """The leaves that the experiments have otherwise than ``settings``, less what a variant sets.

    PipelineError where they differ among themselves: they are not one comparison then.
    """
    changes: dict[str, str | int | float] = {}
    problems = []
    for key, value in settings.flat().items():
        values = {each.flat()[key] for each in used}
        if key in BASELINE or key == "seed" or key.startswith("runtime."):
            continue
        if len(values) > 1:
            problems.append(f"{key}: {', '.join(sorted(map(str, values)))}")
        elif values != {value}:
            changes[key] = values.pop()
    if problems:
        raise PipelineError(
            f"the experiments were run with different settings:\n{listing(problems)}\n"
            "`make ablations` runs all of them anew."
        )
    return changes


def _wait(experiments: dict[str, tuple[Variant, int]], jobs: int) -> None:
    told: dict[str, str] = {}
    all_seen = time.monotonic()  # as many workers as there should be
    starts = 0  # of workers, since an experiment went on
    while True:
        status = _dvc("queue", "status")
        states = {name: state for name, state in STATE.findall(status) if name in experiments}
        for name, state in states.items():
            if state not in ("Queued", told.get(name)):
                print(f"{time.strftime('%H:%M')}  {state.lower()}: {name}", flush=True)
                starts = 0
        told = states
        unfinished = sum(state in UNFINISHED for state in states.values())
        if not unfinished:
            return
        workers = sum(int(n) for found in WORKERS.findall(status) for n in found)
        if workers >= min(jobs, unfinished):
            all_seen = time.monotonic()
        elif time.monotonic() - all_seen > WORKER_S:
            if starts >= MOST_STARTS and not workers:
                raise PipelineError(
                    "DVC's workers do not go on: `dvc queue status` shows what is left, "
                    "`dvc queue start` tries again, and then `make ablations ARGS=--page` writes "
                    "the page"
                )
            starts += 1
            _start_workers(jobs)
            all_seen = time.monotonic()
        time.sleep(POLL_S)


def _start_workers(jobs: int) -> None:
    # they hold what they are given as output open for as long as they live
    _dvc("queue", "start", "--jobs", str(jobs), output=subprocess.DEVNULL)


def fetched(name: str) -> Path:
    """The files of an experiment that ``outcome`` reads, in a folder."""
    with new_folder(FETCHED / name) as folder:  # DVC's links to its cache must not be written to
        for dataset in DATASETS:
            dvc_data.get(f"reports/{dataset}/tables", name, folder / dataset)
        for stage in STAGES:
            (folder / stage).mkdir()
            dvc_data.get(f"models/{stage}/{HISTORY}", name, folder / stage / HISTORY)
        dvc_data.get("params.yaml", name, folder / "params.yaml")
    return FETCHED / name


def _training_seconds() -> dict[str, dict[str, float]]:
    """How long the stages of each experiment ran, by name and stage, as MLflow knows it; none where
    it does not answer."""
    seconds: dict[str, dict[str, float]] = {}
    of_ablations = f"tags.{DVC_EXPERIMENT_TAG} LIKE 'ablation-%'"
    condition = f"{of_ablations} AND attributes.status = 'FINISHED'"
    try:
        runs = find_runs(open_store(tracking_uri()), condition)
    except store_errors() as error:
        sys.stderr.write(f"warning: how long trainings took is left out: {trouble(error)}\n")
        return {}
    for run in runs:
        by_stage = seconds.setdefault(run.data.tags[DVC_EXPERIMENT_TAG], {})
        took = (run.info.end_time - run.info.start_time) / 1000
        by_stage.setdefault(run.data.tags["stage"], took)  # the latest comes first
    return seconds


def _remove(what: str, names: list[str]) -> None:
    if names:
        _dvc(what, "remove", *names)


def _dvc(*arguments: str, output: int | None = subprocess.PIPE) -> str:
    """What a command of DVC's prints; nothing where its ``output`` goes elsewhere."""
    done = dvc_data.dvc(*arguments, output=output)
    if done.returncode:
        printed = f"{done.stdout or ''}{done.stderr or ''}"
        raise PipelineError(f"`dvc {' '.join(arguments)}` failed\n{printed}".rstrip())
    return done.stdout or ""


def _data(settings: Settings) -> str:
    roots = [Path(settings.data[dataset].root) for dataset in DATASETS]
    rendered = all(WALKERS in root.parents for root in roots)
    return "rendered walkers" if rendered else " and ".join(f"`{root.name}`" for root in roots)


def _command(seeds: int, changes: dict[str, str | int | float]) -> str:
    flags = [f"--seeds {seeds}"]
    for key, value in changes.items():
        text = str(value)
        flags.append(f"-S {key}={text.replace(' ', '') if text.startswith('[') else text}")
    lines = " \\\n    ".join(flags)
    return f'make ablations ARGS="{lines}"'


def _commit() -> str:
    # but for what the command itself writes
    changed = git("diff", "--name-only", "HEAD", "--", ".", ":!dvc.lock", f":!{PAGE}").split()
    since = f" (changed since: {', '.join(changed)})" if changed else ""
    return git("rev-parse", "--short=12", "HEAD") + since


def _machine() -> str:
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{os.cpu_count()} processors ({platform.machine()}), {threads} thread(s) a training"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=_positive, default=3, help="seeds 0 to N - 1 (3)")
    parser.add_argument(
        "--jobs", type=_positive, default=1, help="experiments at the same time (1)"
    )
    parser.add_argument(
        "-S",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting for all experiments, as in `dvc exp run`; may be repeated",
    )
    parser.add_argument("--page", action="store_true", help="run nothing, write what is there")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1 is needed, got {text}")
    return number


if __name__ == "__main__":
    run_stage(main)
