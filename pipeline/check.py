"""Checks params.yaml before anything expensive starts: ``python -m pipeline.check``."""

from pathlib import Path

from pipeline import releases
from pipeline.errors import PipelineError, run_stage
from pipeline.settings import DATASETS, TRAINED_BY, Settings

WALKERS = Path("synthetic/release")
"""What lies here is made by DVC itself, so it need not be there yet."""


MADE = ("data", "embeddings", "mlartifacts", "models", "reports", "runs")
"""Folders that stages and MLflow write to."""


def main() -> None:
    settings = Settings.load()
    problems = []
    if "%" in str(Path.cwd()):
        problems.append(f"{Path.cwd()}: MLflow cannot work in a folder whose path holds a %")
    for dataset in DATASETS:
        root = Path(settings.data[dataset].root)
        where = f"data.{dataset}.root = {root}"
        if WALKERS in root.parents:
            if root.name not in DATASETS or root.parent != WALKERS:
                known = ", ".join(str(WALKERS / name) for name in DATASETS)
                problems.append(f"{where}: no walkers are made there, only in {known}")
            continue
        if set(root.parts[:1]) & set(MADE):
            problems.append(f"{where}: {root.parts[0]}/ holds what the stages make; take raw/, say")
            continue
        try:
            releases.check_root(dataset, root)
        except PipelineError as error:
            problems.append(str(error))
    for stage in TRAINED_BY.values():
        if getattr(settings, stage).precision == "bfloat16" and (lack := _lack(settings)):
            print(f"warning: {stage}.precision is bfloat16, but {lack}: {stage} will stop there")
    if problems:
        raise PipelineError("\n".join(problems))


def _lack(settings: Settings) -> str:
    from pipeline.devices import choose_device, lacks_bfloat16  # import torch

    return lacks_bfloat16(choose_device(settings.runtime.device))


if __name__ == "__main__":
    run_stage(main)
