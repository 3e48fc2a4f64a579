"""Rank-1 on subjects that are kept out of training, while it goes on."""

from pathlib import Path

import numpy as np
import torch

from gaitgl.model import GaitGL
from pipeline.distributed import World
from pipeline.embedding import embed
from pipeline.errors import PipelineError
from pipeline.evaluation import rank1_by_condition
from pipeline.held_out import held_out
from pipeline.protocols import named, read_protocols
from pipeline.silhouette_store import SilhouetteStore


class Validation:
    """Measures a network on ``subjects`` held-out subjects, by their catalogue's first protocol."""

    def __init__(
        self, store: SilhouetteStore, catalogue: Path, subjects: int, precision: str
    ) -> None:
        self._store, self._precision = store, precision
        self._protocol = read_protocols(catalogue)[0]
        if not self._protocol.labelled:
            raise PipelineError(
                f"{catalogue}: {self._protocol.title} has a protocol for unknown people, which "
                "training subjects cannot be measured by; set validate_every to 0"
            )
        index = store.index
        compared = self._protocol.compares(index["sequence"], index["view"])
        self._numbers = np.flatnonzero(
            compared & index["subject"].isin(held_out(index, subjects)).to_numpy()
        )
        held = index["sequence"].iloc[self._numbers]
        gallery = named(self._protocol.gallery, held)
        probes = named(self._protocol.all_probes, held)
        if not gallery or not probes:
            raise PipelineError(
                f"{store.folder}: of the {subjects} validation subjects the protocol compares "
                f"{held.isin(probes).sum()} probes with {held.isin(gallery).sum()} gallery "
                "sequences; both are needed: raise validation_subjects"
            )

    def rank1(self, model: GaitGL, device: torch.device, world: World) -> dict[str, float]:
        """Rank-1 in % of each condition, and their mean as ``rank1``; empty but in process 0.

        Identical views are left out. The model's weights are only read.
        """
        embeddings = embed(
            model, self._store, self._numbers, self._precision, device, world, shown=False
        )
        if not world.leads:
            return {}
        keys = self._store.index.iloc[self._numbers].reset_index(drop=True)
        rank1 = rank1_by_condition(keys, embeddings, self._protocol)
        found = {f"{name}_rank1": value for name, value in rank1.items()}
        mean = float(np.mean(list(found.values())))
        return {"rank1": mean, **(found if len(found) > 1 else {})}
