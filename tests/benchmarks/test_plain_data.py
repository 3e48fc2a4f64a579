"""The plain versions and the product agree: each is the other's oracle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import plain_data
from benchmarks.store import plain_draws, write_pickles
from benchmarks.walkers import png_frames, write_walks
from gaitgl.retrieval import cross_view_gallery, rank_by_view
from gaitgl.silhouettes import normalize_frame, normalize_sequence
from pipeline.batches import TrainingBatches
from pipeline.decoding import decode
from pipeline.silhouette_store import SilhouetteStore

Array = NDArray[Any]
DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def load() -> Callable[[str], dict[str, Array]]:
    """Load tests/data/<name>.npz: what the published implementations computed."""

    def arrays(name: str) -> dict[str, Array]:
        with np.load(DATA / f"{name}.npz", allow_pickle=False) as stored:
            return dict(stored)

    return arrays


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SilhouetteStore:
    """Three subjects, two sequences, two views, 3 to 6 frames."""
    folder = tmp_path_factory.mktemp("walks") / "store"
    return write_walks(folder, subjects=3, views=["000", "090"], most_frames=6)


@pytest.fixture(scope="module")
def made() -> tuple[Array, Array, Array, Array]:
    """Embeddings [n, 6, 4] of 12 subjects, 3 views, 2 sequences: people differ, but not clearly."""
    random = np.random.default_rng(0)
    subject, view, sequence = (
        axis.ravel() for axis in np.meshgrid(range(12), range(3), range(2), indexing="ij")
    )
    people = random.normal(size=(12, 6, 4))
    embeddings = (people[subject] + random.normal(size=(len(subject), 6, 4))).astype(np.float32)
    return embeddings, *(
        np.array([f"{number:02}" for number in codes]) for codes in (subject, sequence, view)
    )


def test_plain_frames_equal_the_published_preprocessing(
    load: Callable[[str], dict[str, Array]],
) -> None:
    published = load("normalize_frames")
    for frame, expected, kept in zip(
        published["frames"], published["normalized"], published["kept"], strict=True
    ):
        found = plain_data.normalize_frame(frame)
        assert (found is not None) == kept
        if kept:
            assert np.array_equal(found, expected)


def test_plain_frames_equal_the_products() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        frame = np.zeros((120, 160), np.uint8)
        for _ in range(random.integers(4)):
            centre = random.integers((0, 0), (160, 120)).tolist()
            axes = random.integers(1, (30, 50)).tolist()
            grey, angle = int(random.integers(1, 256)), float(random.integers(180))
            cv2.ellipse(frame, centre, axes, angle, 0, 360, grey, cv2.FILLED)
        found, expected = plain_data.normalize_frame(frame), normalize_frame(frame, width=64)
        assert (found is None) == (expected is None)
        if expected is not None:
            assert np.array_equal(found, expected)


def test_plain_sequences_of_walkers_equal_the_products() -> None:
    contents = png_frames(3)
    assert all(5_000 < len(content) < 12_000 for content in contents)  # OUMVLP's are about 8 kB
    frames = [decode(content) for content in contents]
    assert all(frame is not None and frame.shape == (980, 1280) for frame in frames)
    expected, kept = normalize_sequence(frame for frame in frames if frame is not None)
    assert kept.all()
    found = plain_data.normalize_sequence(contents)
    assert np.array_equal(found[:, :, plain_data.CUT : -plain_data.CUT], expected)


def test_plain_batches_equal_the_products(store: SilhouetteStore, tmp_path: Path) -> None:
    paths = write_pickles(store, tmp_path)
    assert len(paths) == len(store.index)
    batches = TrainingBatches(store, 2, 2, clip_frames=5, seed=0)
    for step in (1, 2, 3):
        chosen, frames = plain_draws(store, batches, step, clip_frames=5)
        found = plain_data.training_batch([paths[key] for key in chosen], frames)
        assert found.dtype == np.float64
        expected = batches.batch(step).silhouettes[:, 0].numpy() / 255.0
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("per_strip", [False, True])
def test_plain_rank_tables_equal_the_products(
    made: tuple[Array, Array, Array, Array], per_strip: bool
) -> None:
    distance = "strip_euclidean" if per_strip else "euclidean"
    expected = rank_by_view(*made, ranks=(1, 5, 20), distance=distance)
    found = plain_data.rank_tables(*made, ranks=(1, 5, 20), per_strip=per_strip)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert 0 < expected[0].mean() < 100
    some = plain_data.rank_tables(*made, ranks=(1, 5, 20), per_strip=per_strip, probe_views=["01"])
    assert np.array_equal(some[:, 1], found[:, 1])
    assert np.isnan(some[:, [0, 2]]).all()


def test_plain_rank_tables_equal_the_published_ones(
    load: Callable[[str], dict[str, Array]],
) -> None:
    published = load("evaluation")
    rows = [published[name] for name in ("f", "subject", "sequence", "view")]
    flat = plain_data.rank_tables(*rows, ranks=range(1, 6))
    assert np.array_equal(np.round(flat.transpose(1, 2, 0), 2), published["rank_flat"])
    strips = plain_data.rank_tables(*rows, per_strip=True)
    np.testing.assert_allclose(strips[0], published["rank1_per_strip"], rtol=1e-12)


@pytest.mark.parametrize("divide_in_numpy", [False, True])
def test_plain_average_precision_equals_the_products(
    made: tuple[Array, Array, Array, Array], divide_in_numpy: bool
) -> None:
    """One subject is without a gallery."""
    left = ~((made[1] == "03") & (made[2] == "01"))
    embeddings, subjects, sequences, views = (array[left] for array in made)
    expected = cross_view_gallery(embeddings, subjects, sequences, views)
    probes, gallery = np.flatnonzero(sequences == "00"), np.flatnonzero(sequences == "01")
    hit, average_precision = plain_data.cross_view(
        plain_data.distance_matrix(
            embeddings[probes], embeddings[gallery], per_strip=False
        ).numpy(),
        subjects[probes],
        views[probes],
        subjects[gallery],
        views[gallery],
        divide_in_numpy,
    )
    assert np.array_equal(hit, expected.ranks == 1)
    np.testing.assert_allclose(average_precision, expected.average_precision, rtol=1e-12)
    assert np.isnan(average_precision).sum() == 3


def test_plain_average_precision_equals_the_published_one(
    load: Callable[[str], dict[str, Array]],
) -> None:
    published = load("evaluation")
    embeddings, subjects, sequences, views = (
        published[name] for name in ("f", "subject", "sequence", "view")
    )
    probes, gallery = sequences == "00", sequences == "01"
    hit, average_precision = plain_data.cross_view(
        plain_data.distance_matrix(embeddings[probes], embeddings[gallery], per_strip=True).numpy(),
        subjects[probes],
        views[probes],
        subjects[gallery],
        views[gallery],
    )
    for row, view in enumerate(np.unique(views)):
        here = views[probes] == view
        matched = here & ~np.isnan(average_precision)
        rank1 = published["crossview_gallery_rank1_per_strip"][row]
        mean = published["crossview_gallery_map_per_strip"][row]
        assert 100 * hit[matched].mean() == pytest.approx(rank1)
        assert 100 * average_precision[matched].mean() == pytest.approx(mean)
