"""Whether embeddings, catalogue and protocols belong together, before anything is computed."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

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
    broken = keys[~_finite(embeddings)]
    if len(broken):
        problems.append(_rows(broken, f"of {len(keys)} hold NaN or infinite values"))
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
    problems += [problem for protocol in protocols for problem in _problems(protocol, keys)]
    if problems:
        text = "\n".join(problems)
        raise PipelineError(
            f"{dataset}: embeddings, catalogue and protocols do not belong together:\n{text}\n"
            f"`dvc repro -f -s embed@{dataset}` makes embeddings of what is there now."
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


def _problems(protocol: Protocol, keys: pd.DataFrame) -> list[str]:
    """What keeps a protocol from being applied to rows with these keys."""
    problems = []
    used = keys[protocol.compares(keys["sequence"], keys["view"])]
    unknown = protocol.unknown_views(keys)
    if len(unknown):
        problems.append(
            _rows(
                unknown,
                f"at views that {protocol.name} does not know ({_few(unknown['view'])}; it knows "
                f"{', '.join(protocol.views)})",
            )
        )
    for part, names, words in (
        ("gallery", protocol.gallery, protocol.gallery_words),
        ("probe", protocol.all_probes, protocol.probe_words),
    ):
        if not used["sequence"].isin(named(names, used["sequence"])).any():
            held = _few(keys["sequence"])
            problems.append(
                f"{protocol.name}: no {part} ({words}) among {len(keys)} embeddings, whose "
                f"sequences are {held or 'none'}"
            )
    return problems


def _of_test(table: pd.DataFrame) -> pd.DataFrame:
    """KEY of the test subjects' sequences."""
    return table.loc[table["split"] == "test", KEY]


def _finite(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which rows hold numbers only: bool [n]; a few rows at a time, for it may be a memory map."""
    finite = np.ones(len(embeddings), np.bool_)
    for first in range(0, len(embeddings), ROWS_AT_A_TIME):
        rows = slice(first, first + ROWS_AT_A_TIME)
        finite[rows] = np.isfinite(embeddings[rows]).all(axis=(1, 2))
    return finite


def _rows(rows: pd.DataFrame, what: str) -> str:
    names = [
        f"row {number}: {' '.join(map(str, key))}"
        for number, key in zip(rows.index, rows[KEY].itertuples(index=False), strict=True)
    ]
    return f"{len(rows)} embedding(s) {what}:\n{listing(names, 5)}"


def _few(names: "pd.Series[str]") -> str:
    found = sorted(set(names))
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
