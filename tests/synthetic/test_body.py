import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthetic.body import PART_BALLS, Body, walk
from synthetic.people import BAGS, Array, Outfit, Person, draw_person
from tests.synthetic.cast import PEOPLE, average_person

PLAIN = Outfit()
# Order of a body's limb ends: left and right knee, calf, ankle; then elbow, forearm, wrist, hand.
LEFT_KNEE, LEFT_ANKLE, RIGHT_KNEE, RIGHT_ANKLE, LEFT_HAND, RIGHT_HAND = 0, 2, 3, 5, 9, 13


def one_stride(person: Person, outfit: Outfit = PLAIN, moments: int = 100) -> Body:
    times = np.arange(moments) / moments / person.motion["cadence"]
    return walk(person, outfit, times, start_phase=0.0)


def limb_end(body: Body, index: int) -> Array:
    return body.centres[:, body.limb_ends[index]]


def lowest_points(body: Body) -> Array:
    lowest: Array = body.centres[..., 2] - np.linalg.norm(body.axes[..., 2, :], axis=-1)
    lowest = lowest.min(axis=1)
    return lowest


@given(
    seed=st.integers(0, 10_000),
    coat=st.booleans(),
    bag=st.sampled_from([None, *BAGS]),
    bag_on_left=st.booleans(),
    start_phase=st.floats(0, 1),
)
def test_everybody_stands_on_the_ground_upright(
    seed: int, coat: bool, bag: str | None, bag_on_left: bool, start_phase: float
) -> None:
    person = draw_person(np.random.default_rng(seed), PEOPLE)
    body = walk(person, Outfit(coat, bag, bag_on_left), np.arange(8) / 18, start_phase)
    np.testing.assert_allclose(lowest_points(body), 0, atol=1e-12)
    top = (body.centres[..., 2] + np.linalg.norm(body.axes[..., 2, :], axis=-1)).max(axis=1)
    height = person.shape["height"]
    assert (top > 0.85 * height).all()
    assert (top < 1.12 * height).all()
    knees, ankles = (
        np.stack([limb_end(body, left)[:, 2], limb_end(body, right)[:, 2]])
        for left, right in ((LEFT_KNEE, RIGHT_KNEE), (LEFT_ANKLE, RIGHT_ANKLE))
    )
    assert (knees > ankles - 0.05).all()
    assert body.parts.shape[1] == PART_BALLS
    assert body.parts.max() < body.centres.shape[1]


def test_arms_swing_against_the_legs() -> None:
    body = one_stride(average_person())
    for hand, same_side, other_side in (
        (LEFT_HAND, LEFT_ANKLE, RIGHT_ANKLE),
        (RIGHT_HAND, RIGHT_ANKLE, LEFT_ANKLE),
    ):
        middle = body.centres[:, 0, 0]  # crotch
        ahead = limb_end(body, hand)[:, 0] - middle
        assert np.corrcoef(ahead, limb_end(body, same_side)[:, 0] - middle)[0, 1] < -0.7
        assert np.corrcoef(ahead, limb_end(body, other_side)[:, 0] - middle)[0, 1] > 0.7


def test_knees_bend_backwards() -> None:
    """A knee is never behind the straight line from hip to ankle."""
    person = average_person()
    body = one_stride(person)
    hip = body.centres[:, 1]  # the left hip follows the crotch
    knee, ankle = limb_end(body, LEFT_KNEE), limb_end(body, LEFT_ANKLE)
    share = (hip[:, 2] - knee[:, 2]) / (hip[:, 2] - ankle[:, 2])
    on_line = hip[:, 0] + share * (ankle[:, 0] - hip[:, 0])
    assert (knee[:, 0] > on_line).all()


def test_the_standing_foot_does_not_slide() -> None:
    person = average_person()
    body = one_stride(person, moments=200)
    speed = np.gradient(limb_end(body, LEFT_ANKLE)[:, 0])
    walking_speed = np.ptp(body.centres[:, 0, 0]) / 199
    standing = slice(20, 80)  # 10 to 40 % of the stride: flat on the ground
    assert np.abs(speed[standing]).mean() < 0.25 * walking_speed
    assert speed.max() > 2 * walking_speed  # the swinging foot overtakes


def test_a_stride_has_the_length_of_a_stride() -> None:
    person = average_person()
    body = walk(person, Outfit(), np.array([0.0, 1 / person.motion["cadence"]]), 0.0)
    stride = body.centres[1, 0, 0] - body.centres[0, 0, 0]
    assert 0.7 < stride / person.shape["height"] < 1.0  # adults: about 0.8


@pytest.mark.parametrize("bag", BAGS)
def test_bags_and_coats_add_something(bag: str) -> None:
    person = average_person()
    plain = one_stride(person)
    with_bag = one_stride(person, Outfit(bag=bag))
    with_coat = one_stride(person, Outfit(coat=True))
    assert len(with_bag.parts) > len(plain.parts)
    assert len(with_coat.parts) > len(plain.parts)
