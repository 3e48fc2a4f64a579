"""Protocol tables from embeddings, against counting by hand."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from pipeline.errors import PipelineError
from pipeline.evaluation import evaluate, rank1_table
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.hid import Hid
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.protocols import Protocol

Embeddings = npt.NDArray[np.float32]
VIEWS = ("000", "090", "180")


def _walks(
    sequences: tuple[str, ...], subjects: int = 12, noise: float = 0.8
) -> tuple[pd.DataFrame, Embeddings]:
    """Every subject at every view; embeddings are the subject's own plus noise."""
    rng = np.random.default_rng(0)
    own = rng.standard_normal((subjects, 3, 4))
    rows, embeddings = [], []
    for subject in range(subjects):
        for sequence in sequences:
            for view in VIEWS:
                rows.append((f"{2 * subject + 2:05}", sequence, view))
                embeddings.append(own[subject] + noise * rng.standard_normal((3, 4)))
    keys = pd.DataFrame(rows, columns=["subject", "sequence", "view"])
    return keys, np.array(embeddings, np.float32)


def _by_hand(
    keys: pd.DataFrame, embeddings: Embeddings, protocol: Protocol, probes: tuple[str, ...], k: int
) -> npt.NDArray[np.float64]:
    views = sorted(set(keys["view"]))
    table = np.full((len(views), len(views)), np.nan)
    flat = embeddings.reshape(len(keys), -1)
    for i, probe_view in enumerate(views):
        for j, gallery_view in enumerate(views):
            probe = keys.index[keys["sequence"].isin(probes) & (keys["view"] == probe_view)]
            gallery = keys.index[
                keys["sequence"].isin(protocol.gallery) & (keys["view"] == gallery_view)
            ]
            hits = 0
            for row in probe:
                distances = np.linalg.norm(flat[gallery] - flat[row], axis=1)
                nearest = gallery[np.argsort(distances)[:k]]
                hits += keys.loc[row, "subject"] in set(keys.loc[nearest, "subject"])
            table[i, j] = 100 * hits / len(probe)
    return table


def test_oumvlp_is_counted_per_view_pair() -> None:
    keys, embeddings = _walks(("00", "01"))
    protocol = OumvlpRelease.protocol
    evaluation = evaluate(keys, embeddings, protocol, "euclidean", 20)
    rank1 = _by_hand(keys, embeddings, protocol, ("00",), 1)
    rank5 = _by_hand(keys, embeddings, protocol, ("00",), 5)
    other = ~np.eye(3, dtype=bool)
    assert 20 < rank1[other].mean() < 95  # neither trivial nor hopeless
    np.testing.assert_allclose(evaluation.rank1["all"], rank1)
    metrics = evaluation.metrics["all"]
    assert metrics["rank1"] == pytest.approx(rank1[other].mean())
    assert metrics["rank5"] == pytest.approx(rank5[other].mean())
    assert metrics["rank1_with_identical_views"] == pytest.approx(rank1.mean())
    assert evaluation.counts == {
        "subjects": 12,
        "gallery_sequences": 36,
        "probe_sequences": 36,
        "views": 3,
    }


def test_the_cmc_curve_starts_at_rank1_rises_and_ends_at_all() -> None:
    keys, embeddings = _walks(("00", "01"))
    evaluation = evaluate(keys, embeddings, OumvlpRelease.protocol, "euclidean", 12)
    percent = evaluation.cmc["percent"].to_numpy()
    assert percent[0] == evaluation.metrics["all"]["rank1"]
    assert (np.diff(percent) >= 0).all()
    assert percent[-1] == 100  # twelve subjects in the gallery


def test_casia_e_has_a_table_for_each_condition_and_leaves_view_270_out() -> None:
    sequences = ("H-scene1-nm-1", "L-scene2-nm-1", "H-scene3-bg-2", "L-scene3_s-cl-1")
    keys, embeddings = _walks((*sequences, "H-scene1-cl-1"))
    at_270 = keys["view"] == "180"
    keys.loc[at_270, "view"] = "270"
    protocol = CasiaERelease.protocol
    evaluation = evaluate(keys, embeddings, protocol, "euclidean", 5)
    assert evaluation.views == ["000", "090"]
    used = keys[~at_270 & (keys["sequence"] != "H-scene1-cl-1")]
    for condition, probe in zip(("NM", "BG", "CL"), sequences[1:], strict=True):
        expected = _by_hand(
            used.reset_index(drop=True), embeddings[used.index], protocol, (probe,), 1
        )
        np.testing.assert_allclose(evaluation.rank1[condition], expected)
    # H-scene1-cl-1 is neither gallery nor probe
    assert evaluation.counts["probe_sequences"] == 3 * 12 * 2


def test_probes_without_a_counterpart_are_reported_both_ways() -> None:
    keys, embeddings = _walks(("00", "01"), noise=0.0)
    gone = (keys["subject"] == "00002") & (keys["sequence"] == "01") & (keys["view"] == "090")
    metrics = evaluate(
        keys[~gone].reset_index(drop=True),
        embeddings[~gone],
        OumvlpRelease.protocol,
        "euclidean",
        5,
    ).metrics["all"]
    assert metrics["rank1_matched_probes"] == 100
    # two of the six pairs of different views have that gallery: a twelfth is lost there
    assert metrics["rank1"] == pytest.approx(100 - 2 / 6 * 100 / 12)


def test_the_table_for_people_ends_with_the_mean_of_the_other_views() -> None:
    rank1 = np.array([[90.0, 10.0, 20.0], [30.0, 90.0, np.nan], [50.0, 60.0, 90.0]])
    table = rank1_table(rank1, list(VIEWS))
    assert table["mean without identical view"].tolist() == [15.0, 30.0, 55.0]
    assert table.loc["090", "000"] == 30.0


def test_a_repeated_key_is_an_error_that_names_it() -> None:
    keys, embeddings = _walks(("00", "01"))
    keys.loc[5] = keys.loc[4]
    with pytest.raises(PipelineError, match=r"1 of 72 embeddings repeat a key:\s+00002 01 090"):
        evaluate(keys, embeddings, OumvlpRelease.protocol, "euclidean", 5)


@pytest.mark.parametrize("kept", ["00", "01"])
def test_without_gallery_or_probes_nothing_is_compared(kept: str) -> None:
    keys, embeddings = _walks((kept,))
    with pytest.raises(PipelineError, match="cannot compare"):
        evaluate(keys, embeddings, OumvlpRelease.protocol, "euclidean", 5)


def test_embeddings_that_are_not_numbers_are_an_error() -> None:
    keys, embeddings = _walks(("00", "01"))
    embeddings[3] = np.nan
    with pytest.raises(PipelineError, match="NaN"):
        evaluate(keys, embeddings, OumvlpRelease.protocol, "euclidean", 5)


def test_a_condition_without_probes_is_left_out_and_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys, embeddings = _walks(("H-scene1-nm-1", "H-scene2-nm-1", "H-scene2-cl-1"))
    evaluation = evaluate(keys, embeddings, CasiaERelease.protocol, "euclidean", 5)
    assert list(evaluation.metrics) == ["NM", "CL"]
    assert "BG: no probe sequence" in capsys.readouterr().out


def test_a_name_with_a_star_is_as_good_as_all_names() -> None:
    keys, embeddings = _walks(("nm-01", "nm-02", "bg-01", "cl-01"))
    probes = {"BG": ("bg-01",), "CL": ("cl-*",)}
    starred = Protocol("stars", ("nm-*",), probes, "", "")
    plain = Protocol("plain", ("nm-01", "nm-02"), {"BG": ("bg-01",), "CL": ("cl-01",)}, "", "")
    one = evaluate(keys, embeddings, starred, "euclidean", 5)
    other = evaluate(keys, embeddings, plain, "euclidean", 5)
    assert one.metrics == other.metrics
    assert one.counts == other.counts
    assert one.counts["gallery_sequences"] == 72


def test_probes_without_labels_have_no_ranks() -> None:
    keys, embeddings = _walks(("gallery-a", "probe"))
    with pytest.raises(PipelineError, match=r"HID: nobody knows who walks .* ranks need labels"):
        evaluate(keys, embeddings, Hid.protocol, "euclidean", 5)
