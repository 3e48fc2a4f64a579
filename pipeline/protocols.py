"""Who is compared with whom: the galleries and probes of the published protocols."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.settings import Dataset


@dataclass(frozen=True)
class Protocol:
    """Gallery and probe sequences of the test subjects, compared view by view."""

    gallery: tuple[str, ...]
    probes: Mapping[str, tuple[str, ...]]
    """Probe sequences of each condition; the condition's name heads its table."""

    excluded_views: tuple[str, ...]
    gallery_words: str
    probe_words: str

    def compares(
        self, sequences: "pd.Series[str]", views: "pd.Series[str]"
    ) -> npt.NDArray[np.bool_]:
        """Which rows are gallery or probe: bool [n]."""
        named = sequences.isin([*self.gallery, *self.all_probes])
        return (named & ~views.isin(self.excluded_views)).to_numpy()

    @property
    def all_probes(self) -> tuple[str, ...]:
        return tuple(sequence for sequences in self.probes.values() for sequence in sequences)


def _casia_e(scenes: tuple[str, ...], condition: str) -> tuple[str, ...]:
    return tuple(
        f"{height}-{scene}-{condition}-{number}"
        for height in "HL"
        for scene in scenes
        for number in (1, 2)
    )


PROTOCOLS: dict[Dataset, Protocol] = {
    "oumvlp": Protocol(
        gallery=("01",),
        probes={"all": ("00",)},
        excluded_views=(),
        gallery_words="sequence 01",
        probe_words="sequence 00",
    ),
    # OpenGait's protocol for CASIA-E
    "casia_e": Protocol(
        gallery=_casia_e(("scene1",), "nm"),
        probes={
            condition.upper(): _casia_e(("scene2", "scene3", "scene3_s"), condition)
            for condition in ("nm", "bg", "cl")
        },
        excluded_views=("270",),
        gallery_words="{H,L}-scene1-nm-{1,2}",
        probe_words="{H,L}-{scene2,scene3,scene3_s}-{nm,bg,cl}-{1,2}",
    ),
}
