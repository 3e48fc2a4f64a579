import numpy as np
import pytest

from synthetic.people import Array, Person, draw_person, draw_take
from tests.synthetic.cast import NOBODY_IN_PARTICULAR, PEOPLE, average_person


def test_takes_of_one_person_are_nearer_than_people() -> None:
    rng = np.random.default_rng(3)

    def traits(person: Person) -> Array:
        values = [*person.shape.values(), *person.motion.values(), *person.waves.ravel()]
        return np.array(values)

    people = [draw_person(rng, PEOPLE) for _ in range(30)]
    first, second = (
        np.stack([traits(draw_take(rng, person, PEOPLE, 0.04)) for person in people]) for _ in "ab"
    )
    spread = np.concatenate([first, second]).std(axis=0)
    distances = np.linalg.norm((first[:, None] - second[None]) / spread, axis=-1)
    assert (distances.argmin(axis=1) == np.arange(30)).all()
    assert np.diag(distances).min() > 0.5


@pytest.mark.parametrize(
    ("spread", "moved"), [("shape_spread", "shape"), ("motion_spread", "motion")]
)
def test_spreads_change_what_they_are_named_after(spread: str, moved: str) -> None:
    people = NOBODY_IN_PARTICULAR.model_copy(update={spread: 1.0})
    person, average = draw_person(np.random.default_rng(1), people), average_person()
    assert getattr(person, moved) != getattr(average, moved)
    other = "motion" if moved == "shape" else "shape"
    assert getattr(person, other) == getattr(average, other)
    assert np.array_equal(person.waves, average.waves) == (moved == "shape")
