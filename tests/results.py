"""Results of protocols that nobody computed, with everything that a report can hold."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.evaluation import Estimate, Evaluation, ProtocolResult
from pipeline.protocols import in_view_pairs_and_all_views
from pipeline.silhouette_store import SilhouetteStore
from pipeline.tables import KEY

RANKS = (1, 5, 10, 20)
FIGURES = ("map", "minp", "eer", "tar_far_1e-2", "fnir_fpir_1e-2")


def evaluation(store: SilhouetteStore, conditions: tuple[str, ...] = ("all",)) -> Evaluation:
    """View pairs and all views over the test subjects in ``store``; the same every time.

    Of sequences, the first name is the gallery, the second the probe of every condition.
    """
    keys = store.index[store.index["split"] == "test"].reset_index(drop=True)
    gallery, probe, *_ = sorted(set(keys["sequence"]))
    views = sorted(set(keys["view"]))
    protocols = in_view_pairs_and_all_views(
        "Walkers & <b>",
        (gallery,),
        dict.fromkeys(conditions, (probe,)),
        "first walk",
        "second walk",
        excluded_views=("270",),
    )
    random = np.random.default_rng(0)
    results = []
    for protocol in protocols:
        pairs = protocol.gallery_views == "each"
        shape = (len(views),) * (2 if pairs else 1)
        rank1 = {condition: random.uniform(0, 100, shape) for condition in conditions}
        for table in rank1.values():
            table.flat[0] = np.nan
        results.append(
            ProtocolResult(
                protocol=protocol,
                views=views,
                headline="rank1",
                rank1=rank1,
                estimates={c: _estimates(random, pairs) for c in conditions},
                cmc=_curves(random, conditions, "rank", np.arange(1, 21), "percent", 100),
                det=_curves(random, conditions, "far", np.geomspace(1e-4, 1, 50), "frr", 1)
                if not pairs
                else pd.DataFrame({"condition": [], "far": [], "frr": []}),
                counts={
                    "subjects": keys["subject"].nunique(),
                    "gallery_sequences": int((keys["sequence"] == gallery).sum()),
                    "probe_sequences": int((keys["sequence"] == probe).sum()),
                    "views": len(views),
                    **{f"unmatched_probes_{condition}": 1 for condition in conditions},
                },
                confusions=_confusions(keys, gallery, probe, conditions[0]),
                probes=pd.DataFrame(),
                notes=["A condition was left out."] if pairs else [],
            )
        )
    return Evaluation(results, None, ["One protocol could not be applied."])


def _estimates(random: np.random.Generator, pairs: bool) -> dict[str, Estimate]:
    names = [f"rank{k}" for k in RANKS] + [f"rank{k}_matched_probes" for k in RANKS]
    names += ["rank1_with_identical_views"] if pairs else FIGURES
    values = random.uniform(20, 90, len(names))
    return {
        name: Estimate(value, value - 7, value + 6) if "identical" not in name else Estimate(value)
        for name, value in zip(names, map(float, values), strict=True)
    }


def _curves(
    random: np.random.Generator,
    conditions: tuple[str, ...],
    x: str,
    points: npt.NDArray[np.float64],
    y: str,
    most: float,
) -> pd.DataFrame:
    curves = []
    for condition in conditions:
        values = np.sort(random.uniform(0, most, len(points)))
        if y == "frr":
            values = values[::-1]
        curves.append(pd.DataFrame({"condition": condition, x: points, y: values}))
    return pd.concat(curves, ignore_index=True)


def _confusions(
    keys: pd.DataFrame, gallery: str, probe: str, condition: str, count: int = 20
) -> pd.DataFrame:
    probes = keys[keys["sequence"] == probe].head(count)
    entries = keys[keys["sequence"] == gallery]
    rows = []
    for i, (subject, sequence, view) in enumerate(probes[KEY].itertuples(index=False)):
        own = entries[entries["subject"] == subject]
        other = entries[entries["subject"] != subject].iloc[[i % 3]]
        row = {"condition": condition, "wrong_distance": 1.0 + i, "right_distance": 2.0 + 2 * i}
        if own.empty:
            row["right_distance"] = np.inf
        row |= {"probe_subject": subject, "probe_sequence": sequence, "probe_view": view}
        for who, entry in (("wrong", other), ("right", own)):
            key = entry[KEY].iloc[0].tolist() if len(entry) else ["", "", ""]
            row |= {f"{who}_{name}": part for name, part in zip(KEY, key, strict=True)}
        rows.append(row)
    return pd.DataFrame(rows)
