"""What does not belong together is told before anything is computed, with rows and counts."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from pipeline.errors import PipelineError
from pipeline.evaluation_inputs import check_inputs, chosen, refused_words
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.hid import Hid
from pipeline.layouts.oumvlp_release import OumvlpRelease
from tests.pipeline.walks import walks

OUMVLP = OumvlpRelease.protocols


def _check(
    keys: pd.DataFrame,
    embeddings: npt.NDArray[np.float32],
    catalogue: pd.DataFrame | None = None,
    silhouettes: pd.DataFrame | None = None,
) -> str:
    """What is told, without the frame around it; empty if all is well."""
    original, _ = walks(("00", "01"))
    known = original.assign(split="test")
    try:
        check_inputs(
            "oumvlp",
            keys,
            embeddings,
            known if catalogue is None else catalogue,
            known if silhouettes is None else silhouettes,
            OUMVLP,
        )
    except PipelineError as error:
        first, told = str(error).split("\n", 1)
        assert first == "oumvlp: embeddings, catalogue and protocols do not belong together:"
        return told
    return ""


def test_what_belongs_together_passes() -> None:
    keys, embeddings = walks(("00", "01"))
    trained = keys.assign(subject="00001", split="train")
    catalogue = pd.concat([keys.assign(split="test"), trained])
    assert _check(keys, embeddings, catalogue, catalogue) == ""


def test_repeated_keys_are_named() -> None:
    keys, embeddings = walks(("00", "01"))
    keys.loc[5] = keys.loc[4]
    told = _check(keys, embeddings)
    assert "1 embedding(s) of 72 repeat a key:\n  row 5: 00002 01 090" in told
    assert "have silhouettes, but no embedding:\n  00002 01 180" in told


def test_embeddings_that_are_not_numbers_are_named() -> None:
    keys, embeddings = walks(("00", "01"))
    embeddings[3, 0, 0], embeddings[70], embeddings[71] = np.nan, np.inf, -2e15
    told = _check(keys, embeddings)
    assert "3 embedding(s) of 72 hold NaN or numbers beyond 1e+15:\n  row 3: 00002 01 000" in told


def test_embeddings_of_other_data_are_named() -> None:
    keys, embeddings = walks(("00", "01"))
    catalogue = keys.assign(split="test")
    strange = keys.assign(subject=keys["subject"].replace("00002", "00003"))
    told = _check(strange, embeddings, catalogue, catalogue)
    assert "6 embedding(s) of 72 are none of the 72 test sequences catalogued" in told
    assert "row 0: 00003 00 000" in told
    assert "... and 1 more" in told
    trained = catalogue.assign(split=["train"] * 6 + ["test"] * 66)
    assert "are none of the 66 test sequences catalogued" in _check(keys, embeddings, trained)
    told = _check(keys.assign(dataset="casia_e"), embeddings)
    assert "72 embedding(s) belong to casia_e, not to oumvlp" in told


def test_sequences_that_were_not_embedded_are_named_but_not_refused_ones() -> None:
    keys, embeddings = walks(("00", "01"))
    catalogue = keys.assign(split="test")
    told = _check(keys[2:], embeddings[2:], catalogue, catalogue)
    assert "2 sequence(s) that are compared have silhouettes, but no embedding" in told
    assert _check(keys[2:], embeddings[2:], catalogue, catalogue[2:]) == ""
    assert refused_words(catalogue, keys[2:], OUMVLP[0]) == [
        "2 probe and 0 gallery sequences of the release's 72 were refused by normalize: no figure "
        "counts them."
    ]
    assert refused_words(catalogue, keys, OUMVLP[0]) == []


@pytest.mark.parametrize(("kept", "lacking"), [("00", "gallery"), ("01", "probe")])
def test_an_empty_gallery_or_probe_set_is_told(kept: str, lacking: str) -> None:
    keys, embeddings = walks((kept,))
    told = _check(keys, embeddings, keys.assign(split="test"), keys.assign(split="test"))
    for protocol in ("view_pairs", "all_views"):
        assert f"{protocol}: no {lacking} (sequence " in told
    assert f"among 36 embeddings, whose sequences are {kept}" in told
    assert "data/oumvlp/silhouettes/refusals.parquet" in told
    assert "dvc repro -f -s embed" not in told


def test_views_that_the_protocol_does_not_know_are_told() -> None:
    keys, embeddings = walks(("00", "01"), views=("000", "091"))
    told = _check(keys, embeddings, keys.assign(split="test"), keys.assign(split="test"))
    assert "24 embedding(s) at views that view_pairs does not know (091; it knows 000, 015" in told


def test_all_is_told_at_once() -> None:
    keys, embeddings = walks(("00", "01"), views=("000", "091"))
    embeddings[0] = np.nan
    keys.loc[5] = keys.loc[4]
    told = _check(keys, embeddings, keys.assign(split="test"), keys.assign(split="test"))
    for expected in ("repeat a key", "hold NaN", "does not know", "embed@oumvlp` makes"):
        assert expected in told


def test_protocols_are_chosen_by_name_in_the_order_given() -> None:
    assert chosen(OUMVLP, [], "oumvlp") == list(OUMVLP)
    assert chosen(OUMVLP, ["all_views", "view_pairs"], "oumvlp") == list(OUMVLP)[::-1]
    assert chosen(OUMVLP, ["all_views", "all_views"], "oumvlp") == [OUMVLP[1]]
    casia_e = CasiaERelease(Path(), [], "opengait").protocols
    with pytest.raises(PipelineError, match=r"evaluate\.protocols\.casia_e: CASIA-E, OpenGait's"):
        chosen(casia_e, ["hid"], "casia_e")
    with pytest.raises(PipelineError, match="no protocol called view_pairs; it offers hid"):
        chosen(Hid.protocols, ["view_pairs"], "casia_e")
