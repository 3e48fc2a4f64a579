import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import distance_pass
from pipeline.distance_pass import Method, Reranking, compare, nearest, placed
from pipeline.errors import PipelineError
from pipeline.layouts.hid import Hid
from pipeline.layouts.oumvlp_release import OumvlpRelease
from tests.pipeline.walks import walks

PAIRS = OumvlpRelease.protocols[0]
(HID,) = Hid.protocols


def test_the_nearest_is_found_whoever_it_is() -> None:
    keys, embeddings = walks(("gallery-a", "gallery-b", "probe"), views=("any",), noise=1.5)
    found = nearest(keys, embeddings, HID, Method(block_bytes=200, shown=False))
    flat = embeddings.reshape(len(keys), -1)
    gallery = keys.index[keys["sequence"] != "probe"]
    rows = keys.index[keys["sequence"] == "probe"]
    assert found.videos == keys.loc[rows, "subject"].tolist()
    for row, subject, distance in zip(rows, found.subjects, found.distances, strict=True):
        distances = np.linalg.norm(flat[gallery] - flat[row], axis=1)
        assert subject == keys.loc[gallery[distances.argmin()], "subject"]
        assert distance == pytest.approx(distances.min(), rel=1e-4)
    assert found.subjects != found.videos  # not everybody is found


def test_of_equally_near_ones_the_first_subject_is_taken_whatever_the_order() -> None:
    keys, embeddings = walks(("gallery-a", "probe"), views=("any",))
    keys, same = keys.iloc[::-1].reset_index(drop=True), np.ones_like(embeddings)
    assert set(nearest(keys, same, HID, Method(shown=False)).subjects) == {"00002"}


def test_progress_is_shown_in_probes(capsys: pytest.CaptureFixture[str]) -> None:
    keys, embeddings = walks(("00", "01"))
    compare(keys, embeddings, PAIRS, "all", Method(reranking=Reranking(3, 2, 0.3)))
    said = capsys.readouterr().err
    assert "neighbours of OUMVLP, all: 72/72 sequences (100 %)" in said
    assert "comparing OUMVLP, all: 36/36 probes (100 %)" in said
    compare(keys, embeddings, PAIRS, "all", Method(shown=False))
    assert capsys.readouterr().err == ""


def test_tensors_are_compared_where_they_lie() -> None:
    keys, embeddings = walks(("00", "01"))
    assert placed(embeddings, torch.device("cpu")) is embeddings
    method = Method(shown=False)
    ours = compare(keys, embeddings, PAIRS, "all", method)
    theirs = compare(keys, torch.from_numpy(embeddings), PAIRS, "all", method)
    np.testing.assert_array_equal(ours.first.ranks, theirs.first.ranks)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_ranks_alike() -> None:
    keys, embeddings = walks(("00", "01"), subjects=40)
    there = placed(embeddings, torch.device("cuda"))
    assert isinstance(there, torch.Tensor)
    ours, theirs = (
        compare(keys, e, PAIRS, "all", Method(shown=False)) for e in (embeddings, there)
    )
    assert (ours.first.ranks == theirs.first.ranks).mean() > 0.99


def test_a_gallery_that_is_a_probe_is_an_error() -> None:
    keys, embeddings = walks(("00",))
    with pytest.raises(PipelineError, match="view_pairs, all: cannot compare: "):
        compare(keys, embeddings, PAIRS, "all", Method(shown=False))


def test_genuine_pairs_have_the_share_of_impostors_that_are_as_near() -> None:
    keys, embeddings = walks(("00", "01"), subjects=8, noise=1.2)
    compared = compare(keys, embeddings, PAIRS, "all", Method(shown=False))
    far = compared.genuine_far()
    flat = embeddings.reshape(len(keys), -1)
    probes, gallery = (np.flatnonzero(keys["sequence"] == s) for s in ("00", "01"))
    distances = np.linalg.norm(flat[probes, None] - flat[gallery], axis=2)
    subject, view = keys["subject"].to_numpy(), keys["view"].to_numpy()
    same = subject[probes, None] == subject[gallery]
    impostors = distances[~same]
    assert compared.impostor_pairs == len(impostors)
    for row, found in enumerate(far):
        own = distances[row, same[row] & (view[probes[row]] != view[gallery])]
        expected = sorted((impostors <= d).mean() for d in own)
        assert sorted(found[~np.isnan(found)]) == pytest.approx(expected, abs=2 / len(impostors))


def test_keys_may_have_any_index() -> None:
    keys, embeddings = walks(("00", "01"))
    moved = pd.DataFrame(keys.to_numpy(), columns=keys.columns, index=keys.index + 7)
    one, other = (compare(k, embeddings, PAIRS, "all", Method(shown=False)) for k in (keys, moved))
    np.testing.assert_array_equal(one.first.ranks, other.first.ranks)


def test_a_gpu_without_memory_is_told_with_the_settings_that_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhausted(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(distance_pass, "distance_blocks", exhausted)
    keys, embeddings = walks(("00", "01"))
    with pytest.raises(PipelineError, match=r"block_mib \(32 now\), or set runtime.device"):
        compare(keys, embeddings, OumvlpRelease.protocols[0], "all", Method(shown=False))
