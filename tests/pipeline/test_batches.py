from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gaitgl.sampling import PKSampler
from pipeline import batches as module
from pipeline.batches import TrainingBatch, TrainingBatches
from pipeline.distributed import World
from pipeline.settings import Dataset
from pipeline.silhouette_store import Silhouettes, SilhouetteStore

Row = tuple[str, str, str, str, Silhouettes]


@pytest.fixture
def batches(stores: dict[Dataset, SilhouetteStore]) -> TrainingBatches:
    return TrainingBatches(stores["oumvlp"], 3, 2, 4, seed=5)


def same(one: list[TrainingBatch], other: list[TrainingBatch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.silhouettes, b.silhouettes) and torch.equal(a.labels, b.labels)
        for a, b in zip(one, other, strict=True)
    )


def test_a_batch_is_p_times_k_clips(batches: TrainingBatches) -> None:
    batch = batches.batch(1)
    assert batch.silhouettes.shape == (6, 1, 4, 64, 44)
    assert batch.silhouettes.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64
    _, counts = np.unique(batch.labels.numpy(), return_counts=True)
    assert counts.tolist() == [2, 2, 2]


def test_the_same_batches_for_any_number_of_threads(batches: TrainingBatches) -> None:
    expected = [batches.batch(step) for step in range(3, 15)]
    for threads in (0, 1, 3):
        assert same(list(batches.ahead(3, 14, threads)), expected)


@pytest.mark.parametrize("at_once", [1, 4, 5, 7])
def test_the_same_batches_for_any_number_of_sequences_at_once(
    batches: TrainingBatches, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = batches.batch(1)
    monkeypatch.setattr(module, "READ_AT_ONCE", at_once)
    assert same([batches.batch(1)], [whole])


def test_other_steps_and_other_seeds_are_other_batches(
    batches: TrainingBatches, stores: dict[Dataset, SilhouetteStore]
) -> None:
    other = TrainingBatches(stores["oumvlp"], 3, 2, 4, seed=6)
    assert same([batches.batch(7)], [batches.batch(7)])
    assert not same([batches.batch(7)], [batches.batch(8)])
    assert not same([batches.batch(7)], [other.batch(7)])


def test_no_steps_are_no_batches_and_a_reader_may_stop_early(batches: TrainingBatches) -> None:
    for threads in (0, 2):
        assert list(batches.ahead(1, 0, threads)) == []
        some = batches.ahead(1, 1000, threads)
        assert same([next(some)], [batches.batch(1)])
        del some


def test_clips_are_the_stores_frames_of_training_subjects(
    stores: dict[Dataset, SilhouetteStore],
) -> None:
    store = stores["casia_e"]
    train = np.flatnonzero(store.index["split"] == "train")
    assert 0 < len(train) < len(store.index)
    subjects = store.index["subject"].to_numpy()[train]
    sampler = PKSampler(subjects, store.index["n_frames"].to_numpy()[train], 4, 3, 5, 9)
    batches = TrainingBatches(store, 4, 3, 5, seed=9)
    for step in (1, 2, 30):
        chosen, frames = sampler.batch(step)
        batch = batches.batch(step)
        for i, number in enumerate(train[chosen]):
            expected = store.read(int(number))[frames[i]]
            np.testing.assert_array_equal(batch.silhouettes[i, 0].numpy(), expected)
        names = subjects[chosen]
        same_subject = names[:, None] == names[None, :]
        same_label = batch.labels[:, None] == batch.labels[None, :]
        np.testing.assert_array_equal(same_subject, same_label.numpy())


def test_only_the_training_split_is_drawn(
    tmp_path: Path, write_store: Callable[[Path, list[Row]], SilhouetteStore]
) -> None:
    rows = [
        (f"{s:05}", f"{q:02}", "000", split, np.full((3 + q, 64, 44), value, np.uint8))
        for s, split, value in ((1, "train", 1), (2, "test", 2), (3, "train", 1), (4, "val", 2))
        for q in range(2)
    ]
    batches = TrainingBatches(write_store(tmp_path, rows), 2, 2, 4, seed=0)
    for step in range(1, 20):
        assert set(batches.batch(step).silhouettes.flatten().tolist()) == {1}


def test_too_few_training_subjects_are_an_error(stores: dict[Dataset, SilhouetteStore]) -> None:
    TrainingBatches(stores["oumvlp"], 6, 2, 4, seed=0)
    with pytest.raises(ValueError, match="needs 7 subjects, but the training set has 6"):
        TrainingBatches(stores["oumvlp"], 7, 2, 4, seed=0)


def test_held_out_subjects_are_never_trained_on(
    tmp_path: Path, write_store: Callable[[Path, list[Row]], SilhouetteStore]
) -> None:
    rows = [
        (f"{s:05}", f"{q:02}", "000", split, np.full((4, 64, 44), s, np.uint8))
        for s, split in ((1, "train"), (2, "train"), (3, "train"), (4, "train"), (5, "val"))
        for q in range(2)
    ]
    store = write_store(tmp_path, rows)
    for subjects, trained in ((0, {1, 2, 3, 4}), (1, {1, 2, 3, 4}), (2, {2, 3, 4}), (3, {2, 3})):
        batches = TrainingBatches(store, 2, 2, 4, seed=0, validation_subjects=subjects)
        seen = {int(s) for step in range(1, 20) for s in batches.batch(step).silhouettes.unique()}
        assert seen == trained
        labels = {int(s) for step in range(1, 20) for s in batches.batch(step).labels}
        assert labels == set(range(len(trained)))
    with pytest.raises(ValueError, match="the training set has 1, and a triplet needs 2"):
        TrainingBatches(store, 2, 2, 4, seed=0, validation_subjects=4)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_shares_of_all_processes_are_the_batch(
    batches: TrainingBatches, stores: dict[Dataset, SilhouetteStore], size: int
) -> None:
    whole = batches.batch(3)
    shares = [
        TrainingBatches(stores["oumvlp"], 3, 2, 4, seed=5, world=World(rank, size)).batch(3)
        for rank in range(size)
    ]
    assert torch.equal(torch.cat([share.silhouettes for share in shares]), whole.silhouettes)
    assert all(torch.equal(share.labels, whole.labels) for share in shares)


def test_the_sequences_of_a_batch_can_be_named(
    batches: TrainingBatches, stores: dict[Dataset, SilhouetteStore]
) -> None:
    store, batch, named = stores["oumvlp"], batches.batch(4), batches.sequences(4)
    assert list(named.columns) == ["dataset", "subject", "sequence", "view", "first_frame"]
    assert len(named) == len(batch.silhouettes)
    key = ["subject", "sequence", "view"]
    numbers = {tuple(row): i for i, row in enumerate(store.index[key].to_numpy())}
    for i, row in enumerate(named.itertuples()):
        frames = store.read(numbers[row.subject, row.sequence, row.view])
        np.testing.assert_array_equal(batch.silhouettes[i, 0, 0], frames[row.first_frame])
