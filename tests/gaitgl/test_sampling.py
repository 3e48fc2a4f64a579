from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gaitgl.sampling import PKSampler

Array = NDArray[Any]


@st.composite
def datasets(draw: st.DrawFn) -> tuple[Array, Array]:
    """Subjects with 1 to 9 sequences each, in a random order of rows, of 1 to 12 frames."""
    counts = draw(st.lists(st.integers(1, 9), min_size=2, max_size=8))
    subjects = np.repeat([f"s{i:03d}" for i in range(len(counts))], counts)
    subjects = subjects[draw(st.permutations(range(len(subjects))))]
    length = st.integers(1, 12)
    frames = draw(st.lists(length, min_size=len(subjects), max_size=len(subjects)))
    return subjects, np.array(frames)


@settings(max_examples=150, deadline=None)
@given(data=datasets(), k=st.integers(2, 6), clip=st.integers(1, 15), draws=st.data())
def test_every_batch_is_exactly_p_subjects_times_k_sequences(
    data: tuple[Array, Array], k: int, clip: int, draws: st.DataObject
) -> None:
    subjects, lengths = data
    p = draws.draw(st.integers(2, len(set(subjects))))
    sampler = PKSampler(subjects, lengths, p, k, clip, seed=draws.draw(st.integers(0, 2**32)))
    batch = sampler.batch(draws.draw(st.integers(0, 10**6)))

    assert batch.sequences.shape == (p * k,)
    assert batch.frames.shape == (p * k, clip)
    assert batch.sequences.dtype == batch.frames.dtype == np.int64
    groups = subjects[batch.sequences].reshape(p, k)
    assert (groups == groups[:, :1]).all()
    assert len(set(groups[:, 0])) == p

    available = Counter(subjects.tolist())
    for group in batch.sequences.reshape(p, k):
        drawn = Counter(group.tolist())
        n = available[subjects[group[0]]]
        assert len(drawn) == min(n, k)
        assert set(drawn.values()) <= {k // n, k // n + 1} if n < k else {1}

    for row, clip_frames in zip(batch.sequences, batch.frames, strict=True):
        length = lengths[row]
        if length < clip:
            assert clip_frames.tolist() == [i % length for i in range(clip)]
        else:
            assert (np.diff(clip_frames) == 1).all()
            assert clip_frames[0] >= 0
            assert clip_frames[-1] < length


def test_batches_depend_on_arguments_and_step_alone() -> None:
    subjects, lengths = np.repeat(np.arange(10), 4), np.full(40, 20)

    def draw(steps: Iterable[int], seed: int = 0) -> dict[int, list[bytes]]:
        sampler = PKSampler(subjects, lengths, 4, 3, 5, seed)
        return {step: [array.tobytes() for array in sampler.batch(step)] for step in steps}

    forwards = draw(range(6))
    assert draw([5, 3, 1, 0]) == {step: forwards[step] for step in (5, 3, 1, 0)}
    assert len({str(batch) for batch in forwards.values()}) == 6
    assert draw(range(6), seed=1) != forwards


def test_batches_are_the_same_in_every_release() -> None:
    """A change of the stream would break resumed runs: say so in the release notes."""
    sampler = PKSampler(np.repeat(["a", "b", "c"], 3), np.arange(4, 13), 2, 2, 3, seed=7)
    batch = sampler.batch(11)
    assert batch.sequences.tolist() == [8, 7, 5, 3]
    assert batch.frames[:, 0].tolist() == [1, 4, 3, 2]


def test_subjects_sequences_and_starts_are_drawn_evenly() -> None:
    sampler = PKSampler(np.repeat(np.arange(6), 4), np.full(24, 10), 3, 2, 6, seed=0)
    batches = [sampler.batch(step) for step in range(1000)]
    sequences = np.bincount(np.concatenate([batch.sequences for batch in batches]), minlength=24)
    starts = np.bincount(np.concatenate([batch.frames[:, 0] for batch in batches]))
    # 6000 draws: 250 of each of 24 sequences, 1200 of each of 5 starts; 5 standard deviations.
    assert np.abs(sequences - 250).max() < 5 * 250**0.5
    assert len(starts) == 5
    assert np.abs(starts - 1200).max() < 5 * 1200**0.5


def test_labels_may_be_numbers_or_strings() -> None:
    numbers = np.array([3, 1, 3, 1, 2, 2])
    a = PKSampler(numbers, np.full(6, 9), 2, 2, 4, seed=0).batch(0)
    b = PKSampler(numbers.astype(str), np.full(6, 9), 2, 2, 4, seed=0).batch(0)
    assert np.array_equal(a.sequences, b.sequences)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"subjects_per_batch": 4}, "needs 4 subjects, but the training set has 3; lower"),
        ({"subjects_per_batch": 1}, "1 subjects x 2 sequences"),
        ({"sequences_per_subject": 1}, "2 subjects x 1 sequences"),
        ({"clip_frames": 0}, "clip_frames is 0"),
        ({"frames": [5, 0, 5, 0, 5]}, "2 of 5 sequences have no frame .*row 1"),
        ({"frames": [5, 5]}, r"\(5,\) and \(2,\)"),
        ({"subjects": [list("aabbc")], "frames": [[5] * 5]}, r"\(1, 5\) and \(1, 5\)"),
    ],
)
def test_impossible_batches_are_refused_with_numbers(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "subjects": ["a", "a", "b", "b", "c"],
        "frames": [5] * 5,
        "subjects_per_batch": 2,
        "sequences_per_subject": 2,
        "clip_frames": 3,
        "seed": 0,
    }
    PKSampler(**arguments).batch(0)
    with pytest.raises(ValueError, match=message):
        PKSampler(**(arguments | changed))
