from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from pipeline.embedding_map import POINTS, SUBJECTS, embedding_map, principal_components
from pipeline.layouts.hid import Hid
from pipeline.protocols import Protocol

PROTOCOL = Protocol(
    "view_pairs",
    "walkers",
    ("nm-1",),
    {"NM": ("nm-2",), "CL": ("cl-*",)},
    "",
    "",
    excluded_views=("270",),
)


def _keys(subjects: int, sequences: Sequence[str], views: Sequence[str]) -> pd.DataFrame:
    rows = [(f"{s:03}", q, v) for s in range(subjects) for q in sequences for v in views]
    return pd.DataFrame(rows, columns=["subject", "sequence", "view"])


def _embeddings(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 3, 4)).astype(np.float32)


def test_principal_components_are_those_of_the_singular_vectors() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 50)) * np.linspace(3, 0.1, 50)
    points, shares = principal_components(vectors)
    u, s, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs(u[:, :2] * s[:2]), atol=1e-9)
    np.testing.assert_allclose(shares, s[:2] ** 2 / (s**2).sum())
    assert (points[np.abs(points).argmax(axis=0), [0, 1]] > 0).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_vectors_and_equal_ones_have_a_place_too(n: int) -> None:
    points, shares = principal_components(np.ones((n, 5)))
    assert points.shape == (n, 2)
    assert not points.any()
    assert not shares.any()


def test_only_what_is_compared_is_drawn_and_with_its_role() -> None:
    keys = _keys(3, ["cl-1", "nm-1", "nm-2", "nm-3"], ["000", "270"])
    shown = embedding_map(keys, _embeddings(len(keys)), PROTOCOL)
    assert len(shown.points) == 3 * 3
    assert shown.subjects == [s for s in ("000", "001", "002") for _ in range(3)]
    assert shown.roles == ["CL", "gallery", "NM"] * 3
    assert shown.others.shape == (0, 2)
    assert shown.others_name == "other subjects"


def test_the_only_conditions_probes_are_called_so() -> None:
    protocol = Protocol("view_pairs", "", ("01",), {"all": ("00",)}, "", "")
    shown = embedding_map(_keys(2, ["00", "01"], ["0"]), _embeddings(4), protocol)
    assert shown.roles == ["probe", "gallery"] * 2


def test_probes_of_nobody_knows_whom_are_no_subjects() -> None:
    (protocol,) = Hid.protocols
    gallery, probes = _keys(20, ["gallery-a"], ["any"]), _keys(8, ["probe"], ["any"])
    keys = pd.concat([probes, gallery], ignore_index=True)  # video 001 is not subject 001
    shown = embedding_map(keys, _embeddings(len(keys)), protocol)
    assert len(set(shown.subjects)) == len(shown.points) == SUBJECTS
    assert max(shown.subjects) == "019"
    assert set(shown.roles) == {"gallery"}
    assert len(shown.others) == len(probes)
    assert shown.others_name == "probes"


def test_of_many_a_few_subjects_are_drawn_and_a_bounded_number_of_points() -> None:
    keys = _keys(200, ["nm-1", "nm-2"], [f"{v:03}" for v in range(40)])
    shown = embedding_map(keys, _embeddings(len(keys)), PROTOCOL)
    assert len(set(shown.subjects)) == SUBJECTS
    assert min(shown.subjects) == "000"
    assert max(shown.subjects) == "199"
    assert len(shown.points) == len(shown.others) == POINTS


def test_it_is_the_same_every_time() -> None:
    keys = _keys(30, ["nm-1", "nm-2"], ["000", "090"])
    one, two = (embedding_map(keys, _embeddings(len(keys)), PROTOCOL) for _ in range(2))
    np.testing.assert_array_equal(one.points, two.points)
    # the points of a subject stay together where its embeddings do
    apart = np.repeat(np.random.default_rng(1).normal(size=(30, 3, 4)) * 10, 4, axis=0)
    near = embedding_map(keys, (apart + _embeddings(len(keys)) / 100).astype(np.float32), PROTOCOL)
    places = pd.DataFrame(near.points).groupby(near.subjects)
    assert (places.std().max() < pd.DataFrame(near.points).std() / 20).all()
