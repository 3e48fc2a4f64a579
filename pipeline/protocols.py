"""Who is compared with whom: gallery and probes, as a file that goes with the catalogue."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import TypeAdapter

from pipeline.errors import PipelineError
from pipeline.files import write_bytes

FILE = "protocol.json"
VERSION = "1"


@dataclass(frozen=True)
class Protocol:
    """Gallery and probe sequences of the test subjects, compared view by view.

    A name that ends in ``*`` stands for all sequences that begin so.
    """

    title: str
    """What the data is called over tables and figures."""

    gallery: tuple[str, ...]
    probes: Mapping[str, tuple[str, ...]]
    """Probe sequences of each condition; the condition's name heads its table."""

    gallery_words: str
    probe_words: str
    excluded_views: tuple[str, ...] = ()

    labelled: bool = True
    """Whether it is known who walks in the probes; if not, their subject is the video's name."""

    def compares(
        self, sequences: "pd.Series[str]", views: "pd.Series[str]"
    ) -> npt.NDArray[np.bool_]:
        """Which rows are gallery or probe: bool [n]."""
        names = named([*self.gallery, *self.all_probes], sequences)
        return (sequences.isin(names) & ~views.isin(self.excluded_views)).to_numpy()

    @property
    def all_probes(self) -> tuple[str, ...]:
        return tuple(sequence for sequences in self.probes.values() for sequence in sequences)


def named(names: Iterable[str], sequences: Iterable[str]) -> list[str]:
    """Those of ``sequences``, each once and sorted, that the names of a protocol stand for."""
    names = list(names)
    exact = {name for name in names if not name.endswith("*")}
    begin = tuple(name[:-1] for name in names if name.endswith("*"))
    return sorted(s for s in set(sequences) if s in exact or s.startswith(begin))


def write_protocol(folder: Path, protocol: Protocol) -> None:
    """``protocol.json`` in a catalogue's folder; conditions stay in their order."""
    tree = {"version": VERSION, **asdict(protocol)}
    text = json.dumps(tree, indent=2, ensure_ascii=False)
    write_bytes(folder / FILE, f"{text}\n".encode())


def read_protocol(folder: Path) -> Protocol:
    """What ``write_protocol`` wrote; PipelineError where it is missing or of another version."""
    path = folder / FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        version = tree.pop("version", None) if isinstance(tree, dict) else None
        if version != VERSION:
            raise PipelineError(
                f"{path}: expected a protocol of version {VERSION}, got {version}. Run `dvc repro`."
            )
        return TypeAdapter(Protocol).validate_python(tree)
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing: `dvc repro` makes it") from None
    except ValueError as error:  # of json, and of pydantic
        raise PipelineError(
            f"{path} is not a readable protocol: {error}. Remove it and run `dvc repro`."
        ) from None
