"""Whether embeddings, catalogue and protocols belong together, before anything is computed."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from gaitgl.distances import LARGEST
from pipeline.errors import PipelineError, listing
from pipeline.protocols import Protocol, compared_by_any, named
from pipeline.settings import Dataset, ProtocolName
from pipeline.tables import KEY

ROWS_AT_A_TIME = 4_096


def chosen(
    offered: Sequence[Protocol], names: Sequence[ProtocolName], dataset: Dataset
) -> list[Protocol]:
    """Protocols of ``evaluate.protocols.<dataset>``, in its order; all that are offered if it names
    none. PipelineError for one that the data does not offer."""
    by_name = {protocol.name: protocol for protocol in offered}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise PipelineError(
            f"evaluate.protocols.{dataset}: {offered[0].title} has no protocol called "
            f"{', '.join(unknown)}; it offers {', '.join(by_name)} ([] takes them all)"
        )
    return [by_name[name] for name in dict.fromkeys(names or by_name)]


def check_inputs(
    dataset: Dataset,
    keys: pd.DataFrame,
    embeddings: npt.NDArray[np.float32],
    sequences: pd.DataFrame,
    silhouettes: pd.DataFrame,
    protocols: Iterable[Protocol],
) -> None:
    """PipelineError that names all that is wrong, with rows and counts.

    Args:
        keys: dataset and KEY of each row of ``embeddings`` [n, c, strips].
        sequences: KEY and split, of the catalogue.
        silhouettes: KEY and split, of what normalize kept of it.
        protocols: those that are to be applied.
    """
    protocols = list(protocols)
    problems = []
    other = keys[keys["dataset"] != dataset]
    if len(other):
        problems.append(_rows(other, f"belong to {_few(other['dataset'])}, not to {dataset}"))
    repeated = keys[keys.duplicated(KEY)]
    if len(repeated):
        problems.append(_rows(repeated, f"of {len(keys)} repeat a key"))
    broken = keys[~_usable(embeddings)]
    if len(broken):
        problems.append(_rows(broken, f"of {len(keys)} hold NaN or numbers beyond {LARGEST:.0e}"))
    embedded = pd.MultiIndex.from_frame(keys[KEY])
    known = _of_test(sequences)
    strange = keys[~embedded.isin(pd.MultiIndex.from_frame(known))]
    if len(strange):
        problems.append(
            _rows(strange, f"of {len(keys)} are none of the {len(known)} test sequences catalogued")
        )
    kept = _of_test(silhouettes)
    kept = kept[compared_by_any(protocols, kept["sequence"], kept["view"])]
    lacking = kept[~pd.MultiIndex.from_frame(kept).isin(embedded)]
    if len(lacking):
        names = [" ".join(key) for key in lacking.itertuples(index=False)]
        problems.append(
            f"{len(names)} sequence(s) that are compared have silhouettes, but no embedding:\n"
            f"{listing(names, 5)}"
        )
    problems += [problem for protocol in protocols for problem in _strange_views(protocol, keys)]
    absent = [problem for protocol in protocols for problem in _absent_parts(protocol, keys)]
    remedies = []
    if problems:
        remedies.append(f"`dvc repro -f -s embed@{dataset}` makes embeddings of what is there now.")
    if absent:
        remedies.append(
            "Does the release hold such sequences? Those that normalize refused, for instance by "
            f"normalize.min_frames, are in data/{dataset}/silhouettes/refusals.parquet."
        )
    if remedies:
        text = "\n".join([*problems, *absent, *remedies])
        raise PipelineError(
            f"{dataset}: embeddings, catalogue and protocols do not belong together:\n{text}"
        )


def refused_words(sequences: pd.DataFrame, keys: pd.DataFrame, protocol: Protocol) -> list[str]:
    """A sentence on sequences of the catalogue that a protocol compares, but that were refused on
    the way to their embedding; none if there are none."""
    known = _of_test(sequences)
    known = known[protocol.compares(known["sequence"], known["view"])]
    embedded = pd.MultiIndex.from_frame(keys[KEY])
    refused = known[~pd.MultiIndex.from_frame(known).isin(embedded)]
    if refused.empty:
        return []
    in_gallery = refused["sequence"].isin(named(protocol.gallery, refused["sequence"]))
    return [
        f"{int((~in_gallery).sum())} probe and {int(in_gallery.sum())} gallery sequences of the "
        f"release's {len(known)} were refused by normalize: no figure counts them."
    ]


def _strange_views(protocol: Protocol, keys: pd.DataFrame) -> list[str]:
    """What a protocol cannot make sense of, of rows with these keys."""
    unknown = protocol.unknown_views(keys)
    if unknown.empty:
        return []
    what = f"{_few(unknown['view'])}; it knows {', '.join(protocol.views)}"
    return [_rows(unknown, f"at views that {protocol.name} does not know ({what})")]


def _absent_parts(protocol: Protocol, keys: pd.DataFrame) -> list[str]:
    """What a protocol needs and does not find among rows with these keys."""
    used = keys[protocol.compares(keys["sequence"], keys["view"])]
    held = _few(keys["sequence"]) or "none"
    return [
        f"{protocol.name}: no {part} ({words}) among {len(keys)} embeddings, whose sequences are "
        f"{held}"
        for part, names, words in (
            ("gallery", protocol.gallery, protocol.gallery_words),
            ("probe", protocol.all_probes, protocol.probe_words),
        )
        if not used["sequence"].isin(named(names, used["sequence"])).any()
    ]


def _of_test(table: pd.DataFrame) -> pd.DataFrame:
    """KEY of the test subjects' sequences."""
    return table.loc[table["split"] == "test", KEY]


def _usable(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which rows distances can be computed of: bool [n]; a few rows at a time, for it may be a
    memory map."""
    usable = np.ones(len(embeddings), np.bool_)
    for first in range(0, len(embeddings), ROWS_AT_A_TIME):
        rows = slice(first, first + ROWS_AT_A_TIME)
        usable[rows] = (np.abs(embeddings[rows]) <= LARGEST).all(axis=(1, 2))  # NaN is not
    return usable


def _rows(rows: pd.DataFrame, what: str) -> str:
    names = [
        f"row {number}: {' '.join(map(str, key))}"
        for number, key in zip(rows.index, rows[KEY].itertuples(index=False), strict=True)
    ]
    return f"{len(rows)} embedding(s) {what}:\n{listing(names, 5)}"


def _few(names: "pd.Series[str]") -> str:
    found = sorted(set(names))
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
