"""Records what six trainings and evaluations would: run in the folder of a project.

The learning rate of finetune changes from one to the next, and nothing is trained: the figures are
made up.
"""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from mlflow.tracking import MlflowClient

from pipeline.settings import Settings
from pipeline.tracking import TrackedRun

mpl.use("Agg")
import matplotlib.pyplot as plt

RANK1 = {0.0003: 70.1, 0.001: 77.3, 0.003: 64.2}
"""Of condition NM, by finetune.lr."""


def train(
    stage: str,
    dataset: str,
    settings: dict[str, Any],
    p: tuple[float, float],
    upstream: dict[str, str],
    output: str,
) -> str:
    """The id of the run."""
    noise = np.random.default_rng(len(output))
    with TrackedRun(stage, dataset, "gaitgl", settings, upstream) as run:
        for step in range(5, 301, 5):
            left = math.exp(-step / 100)
            run.log(
                step,
                {
                    "loss": 0.15 * left + 0.01 * noise.random() + 0.02,
                    "active_share": 0.1 + 0.8 * left,
                    "p": p[1] + (p[0] - p[1]) * left,
                    "sequences_per_s": 80 + noise.random(),
                    "duration_s": step * (1.3 + 0.01 * noise.random()),
                },
            )
        run.log(300, {"final_p": p[1]})
        run.made(output)
    return run.run_id


def evaluate(settings: dict[str, Any], rank1: float, finals: list[float], upstream: str) -> None:
    with TrackedRun("evaluate", "casia_e", "gaitgl", settings, {"finetune": upstream}) as run:
        metrics = {
            "headline_rank1": round(rank1 - 17.5 / 3, 1),
            "NM_rank1": rank1,
            "BG_rank1": round(rank1 - 11, 1),
            "CL_rank1": round(rank1 - 6.5, 1),
        }
        metrics |= {"p_pretrain": finals[0], "p_finetune": finals[1], "duration_s": 10.2}
        run.log(0, metrics)
        figures = Path("figures")
        figures.mkdir(exist_ok=True)
        angles = np.arange(0, 181, 30)
        table = rank1 - abs(angles[:, None] - angles) / 6
        figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
        image = axes.imshow(table, vmin=0, vmax=100)
        axes.set_xticks(range(len(angles)), angles)
        axes.set_yticks(range(len(angles)), angles)
        axes.set(xlabel="gallery view (degrees)", ylabel="probe view (degrees)")
        figure.colorbar(image, label="rank-1 (%)")
        figure.savefig(figures / "rank1_nm.png")
        plt.close(figure)
        run.artifact(figures)


def register(client: MlflowClient, run_id: str, alias: str) -> None:
    tags = {"stage": "finetune", "dataset": "casia_e"}
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    version = client.create_model_version("gaitgl", source, run_id, tags)
    client.set_registered_model_alias("gaitgl", alias, version.version)


def main() -> None:
    settings = Settings.load().flat()
    train("pretrain", "oumvlp", settings, (6.5, 5.12), {}, "pretrain")
    client = MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    client.create_registered_model("gaitgl")
    for lr, rank1 in RANK1.items():
        changed = settings | {"finetune.lr": lr}
        output, final_p = f"finetune {lr}", round(5 - 80 * lr, 3)
        run_id = train(
            "finetune", "casia_e", changed, (5.12, final_p), {"pretrain": "pretrain"}, output
        )
        evaluate(changed, rank1, [5.12, final_p], output)
        register(client, run_id, "champion" if rank1 == max(RANK1.values()) else "finetuned")


if __name__ == "__main__":
    main()
