"""Who is compared with whom: protocols are data, in a file that goes with the catalogue."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, TypeAdapter

from pipeline.errors import PipelineError
from pipeline.files import write_bytes
from pipeline.settings import ProtocolName

PROTOCOL_FILE = "protocol.json"
VERSION = "2"

RESERVED = ("p", "protocols", "submission", "notes", "gallery", "view_pairs", "all_views", "hid")
"""Keys of metrics.json, and the gallery in figures: no condition can be called so."""


@dataclass(frozen=True)
class Protocol:
    """Gallery and probe sequences of the test subjects, and how they are compared.

    A name of a sequence that ends in ``*`` stands for all sequences that begin so.
    """

    name: ProtocolName
    """What settings, tables and metrics call it; each protocol of a layout has another."""

    title: str
    """What the data, and its split where there are several, is called over tables and figures."""

    gallery: tuple[str, ...]
    probes: Mapping[str, tuple[str, ...]]
    """Probe sequences of each condition; the condition's name heads its table."""

    gallery_words: str
    probe_words: str

    gallery_views: Literal["each", "all"] = "each"
    """``each``: every view is a gallery of its own, and figures are means over pairs of different
    views. ``all``: all views are one gallery, less the probe's own subject at the probe's view."""

    views: tuple[str, ...] = ()
    """Views that are known to be compared; any other is an error. Empty: the data may have any."""

    excluded_views: tuple[str, ...] = ()

    excluded_words: str = ""
    """Which of the test subjects' sequences are neither gallery nor probe; empty if none is."""

    labelled: bool = True
    """Whether it is known who walks in the probes; if not, their subject is the video's name, and
    what comes out is a submission."""

    @property
    def all_probes(self) -> tuple[str, ...]:
        return tuple(sequence for sequences in self.probes.values() for sequence in sequences)

    def compares(
        self, sequences: "pd.Series[str]", views: "pd.Series[str]"
    ) -> npt.NDArray[np.bool_]:
        """Which rows are gallery or probe: bool [n]."""
        names = named([*self.gallery, *self.all_probes], sequences)
        return (sequences.isin(names) & ~views.isin(self.excluded_views)).to_numpy()

    def unknown_views(self, keys: pd.DataFrame) -> pd.DataFrame:
        """Rows (sequence, view) that it compares at views that it does not know."""
        if not self.views:
            return keys.head(0)
        compared = keys[self.compares(keys["sequence"], keys["view"])]
        return compared[~compared["view"].isin(self.views)]

    def rules(self) -> list[str]:
        """What is compared, what is excluded and what counts as a miss, in sentences."""
        compared = f"probes ({self.probe_words}) against the gallery ({self.gallery_words})"
        if not self.labelled:
            return [
                f"Each probe gets the subject of the nearest of all gallery entries: {compared}."
            ]
        if self.gallery_views == "each":
            rules = [
                f"Each view is a gallery: {compared}; figures are means over view pairs.",
                "Pairs of identical views are excluded, except from the figures that say so.",
            ]
        else:
            rules = [
                f"All views are one gallery: {compared}; figures are means over probe views.",
                "A probe's own subject at the probe's own view is excluded from its gallery.",
            ]
        if self.excluded_views:
            rules.append(f"Excluded views: {', '.join(self.excluded_views)}.")
        if self.excluded_words:
            rules.append(f"Neither gallery nor probe: {self.excluded_words}.")
        missing = "in that view's gallery" if self.gallery_views == "each" else "in the gallery"
        rules.append(
            f"A probe whose subject has no entry {missing} counts as a miss; figures for matched "
            "probes leave it out."
        )
        return rules


def named(names: Iterable[str], sequences: Iterable[str]) -> list[str]:
    """Those of ``sequences``, each once and sorted, that the names of a protocol stand for."""
    names = list(names)
    exact = {name for name in names if not name.endswith("*")}
    begin = tuple(name[:-1] for name in names if name.endswith("*"))
    return sorted(s for s in set(sequences) if s in exact or s.startswith(begin))


def in_view_pairs_and_all_views(
    title: str,
    gallery: tuple[str, ...],
    probes: Mapping[str, tuple[str, ...]],
    gallery_words: str,
    probe_words: str,
    views: tuple[str, ...] = (),
    excluded_views: tuple[str, ...] = (),
    excluded_words: str = "",
) -> tuple[Protocol, Protocol]:
    """The two ways in which the same gallery and probes are usually compared."""
    pairs = Protocol(
        "view_pairs",
        title,
        gallery,
        probes,
        gallery_words,
        probe_words,
        views=views,
        excluded_views=excluded_views,
        excluded_words=excluded_words,
    )
    return pairs, replace(pairs, name="all_views", gallery_views="all")


def compared_by_any(
    protocols: Iterable[Protocol], sequences: "pd.Series[str]", views: "pd.Series[str]"
) -> npt.NDArray[np.bool_]:
    """Which rows are gallery or probe of at least one protocol: bool [n]."""
    compared = np.zeros(len(sequences), np.bool_)
    for protocol in protocols:
        compared |= protocol.compares(sequences, views)
    return compared


def write_protocols(folder: Path, protocols: Iterable[Protocol]) -> None:
    """``protocol.json`` in a catalogue's folder; protocols and conditions stay in their order."""
    tree = {"version": VERSION, "protocols": [asdict(protocol) for protocol in protocols]}
    text = json.dumps(tree, indent=2, ensure_ascii=False)
    write_bytes(folder / PROTOCOL_FILE, f"{text}\n".encode())


def read_protocols(folder: Path) -> tuple[Protocol, ...]:
    """What ``write_protocols`` wrote, at least one; the first is the headline.

    PipelineError where it is missing or of another version.
    """
    path = folder / PROTOCOL_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        version = tree.get("version") if isinstance(tree, dict) else None
        if version != VERSION:
            raise PipelineError(
                f"{path}: expected protocols of version {VERSION}, got {version}. Run `dvc repro`."
            )
        return _LIST.validate_python(tree.get("protocols"))
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing: `dvc repro` makes it") from None
    except ValueError as error:  # of json, and of pydantic
        raise PipelineError(
            f"{path} does not hold readable protocols: {error}. Remove it and run `dvc repro`."
        ) from None


_LIST: TypeAdapter[tuple[Protocol, ...]] = TypeAdapter(
    Annotated[tuple[Protocol, ...], Field(min_length=1)]
)
