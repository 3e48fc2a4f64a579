"""People for tests: settings as shipped, and somebody of average shape and habits."""

import numpy as np

from synthetic.people import Person, draw_person
from synthetic.settings import People

NOBODY_IN_PARTICULAR = People(
    shape_spread=0.0, motion_spread=0.0, motion_variation=0.0, clothes_variation=0.0
)
PEOPLE = People(shape_spread=1.0, motion_spread=1.0, motion_variation=0.35, clothes_variation=0.25)


def average_person() -> Person:
    return draw_person(np.random.default_rng(0), NOBODY_IN_PARTICULAR)
