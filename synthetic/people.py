"""People: traits drawn from a seed, and what somebody wears and carries.

Lengths in the tables are shares of the body height, angles are degrees.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthetic.settings import People

Array = NDArray[np.float64]

BAGS = ("backpack", "shoulder bag", "handbag", "parcel")

# name: (mean, standard deviation between people)
SHAPE = {
    "height": (1.70, 0.085),  # metres; invisible after normalization, but it sets the pace
    "leg": (0.491, 0.014),  # hip joint to ankle joint
    "thigh": (0.500, 0.014),  # share of `leg`
    "torso": (0.288, 0.011),  # hip joints to shoulder joints
    "neck": (0.108, 0.008),  # base of the neck to the middle of the head
    "arm": (0.335, 0.014),  # shoulder to wrist
    "upper_arm": (0.560, 0.014),  # share of `arm`
    "foot": (0.152, 0.009),
    "shoulder_width": (0.109, 0.007),  # middle to shoulder joint
    "shoulder_slope": (0.030, 0.009),  # shoulder joint below the base of the neck
    "hip_joint": (0.050, 0.004),  # middle to hip joint
    "head": (1.00, 0.06),  # size of the head, relative
    "hair": (0.010, 0.012),  # thickness of the hair behind; none below 0
    "hunch": (0.008, 0.010),  # shoulders ahead of the hips
    "head_ahead": (0.018, 0.009),  # head ahead of the shoulders
}
# Girths: name: (mean radius, standard deviation), partly common to a person (their build).
GIRTHS = {
    "chest_width": (0.089, 0.0075),
    "chest_depth": (0.065, 0.0065),
    "waist_width": (0.077, 0.0095),
    "waist_depth": (0.055, 0.0085),
    "hip_width": (0.092, 0.0075),
    "hip_depth": (0.060, 0.0065),
    "seat": (0.022, 0.009),  # how far the seat stands out behind
    "belly": (0.008, 0.010),  # how far the belly stands out in front
    "thigh_girth": (0.050, 0.0055),
    "knee_girth": (0.034, 0.0035),
    "calf_girth": (0.034, 0.0035),
    "ankle_girth": (0.024, 0.0035),
    "upper_arm_girth": (0.028, 0.0035),
    "forearm_girth": (0.021, 0.0025),
    "neck_girth": (0.034, 0.0035),
}
# name: (mean, standard deviation between people), degrees unless said otherwise
MOTION = {
    "cadence": (0.95, 0.07),  # strides (two steps) a second
    "hip_scale": (1.00, 0.10),  # stride: scale of the hip's curve
    "knee_scale": (1.00, 0.10),
    "ankle_scale": (1.00, 0.20),
    "hip_offset": (-2.0, 2.5),
    "knee_offset": (3.0, 3.0),
    "ankle_offset": (0.0, 2.0),
    "left_leg": (0.0, 0.04),  # the left leg's scales exceed the right's by twice this share
    "step_width": (0.045, 0.016),  # metres, middle to foot
    "toe_out": (7.0, 5.0),
    "arm_swing": (20.0, 8.0),
    "arm_offset": (-4.0, 5.0),
    "arm_lag": (10.0, 12.0),  # arms behind the legs, degrees of the cycle
    "left_arm": (0.0, 0.20),  # the left arm's swing exceeds the right's by twice this share
    "elbow_bend": (22.0, 10.0),
    "elbow_swing": (10.0, 5.0),
    "abduction": (7.0, 3.5),  # arms away from the body
    "lean": (2.5, 2.5),  # trunk forward
    "nod": (2.0, 5.0),  # head forward
    "sway": (2.0, 1.2),  # trunk sideways over the standing leg
    "shift": (0.018, 0.008),  # metres, pelvis sideways over the standing leg
    "trunk_twist": (6.0, 3.0),
    "pelvis_twist": (5.0, 2.5),
    "pelvis_drop": (4.0, 2.0),  # pelvis drops on the side of the swinging leg
    "bob": (1.5, 1.0),  # trunk pitches twice a stride
}
JOINTS = ("hip", "knee", "ankle", "shoulder", "elbow")
# Standard deviation, degrees, of a person's own first harmonic in each joint; the k-th has 1/k.
WAVES = (2.5, 3.5, 2.5, 2.0, 3.0)
HARMONICS = 3
ONE_SIDED = 0.35  # share of the waves that left and right do not have in common


@dataclass(frozen=True)
class Person:
    """What identifies somebody.

    Attributes:
        shape: values of `SHAPE` and `GIRTHS`.
        motion: values of `MOTION`.
        waves: float [2 sides, joints, harmonics, cos and sin], degrees added to the usual curves.
    """

    shape: dict[str, float]
    motion: dict[str, float]
    waves: Array


@dataclass(frozen=True)
class Outfit:
    """What somebody wears and carries: a coat; one of `BAGS` or None, on the left or right."""

    coat: bool = False
    bag: str | None = None
    bag_on_left: bool = False


def draw_person(rng: np.random.Generator, people: People) -> Person:
    """Somebody new."""
    build = bounded_normal(rng)
    shape = {
        name: mean + people.shape_spread * sd * bounded_normal(rng)
        for name, (mean, sd) in SHAPE.items()
    }
    for name, (mean, sd) in GIRTHS.items():
        shape[name] = mean + people.shape_spread * sd * (0.7 * build + 0.7 * bounded_normal(rng))
    motion = {
        name: mean + people.motion_spread * sd * bounded_normal(rng)
        for name, (mean, sd) in MOTION.items()
    }
    return Person(shape, motion, people.motion_spread * _draw_waves(rng))


def draw_take(
    rng: np.random.Generator, person: Person, people: People, speed_variation: float
) -> Person:
    """The same person on another occasion: other clothes, another speed, slightly other habits."""
    shape = person.shape | {
        name: person.shape[name] + people.clothes_variation * sd * bounded_normal(rng)
        for name, (_, sd) in GIRTHS.items()
    }
    motion = {
        name: person.motion[name] + people.motion_variation * sd * bounded_normal(rng)
        for name, (_, sd) in MOTION.items()
    }
    hurry = speed_variation * bounded_normal(rng)
    motion["cadence"] *= 1 + hurry
    motion["hip_scale"] *= 1 + hurry
    return Person(shape, motion, person.waves + people.motion_variation * _draw_waves(rng))


def bounded_normal(rng: np.random.Generator) -> float:
    """A standard normal number, cut at ±2 so that nobody looks impossible."""
    return float(np.clip(rng.standard_normal(), -2, 2))


def _draw_waves(rng: np.random.Generator) -> Array:
    """Float [2, joints, harmonics, 2], degrees: zero-mean departures from the usual curves."""
    size = (len(JOINTS), HARMONICS, 2)
    spread = np.array(WAVES)[:, None, None] / np.arange(1, HARMONICS + 1)[None, :, None]
    both = rng.standard_normal(size) * (1 - ONE_SIDED**2) ** 0.5
    sides = rng.standard_normal((2, *size)) * ONE_SIDED
    waves: Array = np.clip(both + sides, -2, 2) * spread / 2**0.5  # cosine and sine: half each
    return waves
