"""How people walk: their joint angles over time → 3-D ellipsoids.

Coordinates are metres: x forward (the way the person walks), y to the person's left, z up, the
ground at z = 0. A body is a set of ellipsoids ("balls"), grouped into parts; what one sees is the
union of the parts' convex hulls. Lengths in the tables are shares of the body height; angles
are degrees in the tables and radians in the code.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from synthetic.people import JOINTS, Array, Outfit, Person

PART_BALLS = 4

# Usual joint angles over a stride from heel strike, degrees, every 5 % (textbook gait).
HIP_CURVE = (30, 29, 26, 22, 17, 12, 7, 2, -3, -7, -10, -10, -5, 4, 14, 22, 28, 32, 33, 32)
KNEE_CURVE = (5, 11, 17, 19, 17, 14, 10, 7, 6, 8, 13, 24, 40, 54, 61, 59, 49, 33, 16, 5)
ANKLE_CURVE = (0, -5, -3, 2, 5, 7, 8, 9, 10, 9, 5, -4, -15, -17, -10, -4, 0, 2, 1, 0)


@dataclass(frozen=True)
class Body:
    """A walking body in t moments.

    Attributes:
        centres: float [t, balls, 3], metres.
        axes: float [t, balls, 3, 3], metres; the columns are an ellipsoid's three half-axes.
        parts: int [parts, PART_BALLS], the balls of each part; one of fewer repeats its last.
        limb_ends: int [k], balls at which segmentation may lose a piece.
    """

    centres: Array
    axes: Array
    parts: NDArray[np.int64]
    limb_ends: NDArray[np.int64]


def _series(curve: tuple[int, ...], harmonics: int = 4) -> tuple[float, Array]:
    """Mean and Fourier coefficients float [harmonics, 2] (cos, sin) of an evenly sampled cycle."""
    spectrum = np.fft.rfft(curve) / len(curve)
    parts = spectrum[1 : harmonics + 1]
    return float(spectrum[0].real), np.stack([2 * parts.real, -2 * parts.imag], axis=1)


_CURVES = tuple(_series(curve) for curve in (HIP_CURVE, KNEE_CURVE, ANKLE_CURVE))


def _evaluate(coefficients: Array, phase: Array) -> Array:
    """Σ over harmonics k of c_k cos kφ + s_k sin kφ, float [t]."""
    k = np.arange(1, len(coefficients) + 1)[:, None]
    return coefficients[:, 0] @ np.cos(k * phase) + coefficients[:, 1] @ np.sin(k * phase)


def _rotation(yaw: Array, pitch: Array, roll: Array) -> Array:
    """Float [t, 3, 3]: roll about x, then pitch forward about y, then yaw to the left about z."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    return np.stack(
        [
            np.stack([cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr], axis=-1),
            np.stack([sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr], axis=-1),
            np.stack([-sp, cp * sr, cp * cr], axis=-1),
        ],
        axis=-2,
    )


class _Figure:
    """Balls and parts as they are put together."""

    def __init__(self) -> None:
        self.centres: list[Array] = []
        self.axes: list[Array] = []
        self.parts: list[tuple[int, ...]] = []
        self.limb_ends: list[int] = []

    def ball(self, centre: Array, radii: float | tuple[float, float, float], frame: Array) -> int:
        """Add an ellipsoid at `centre` [t, 3] with `radii` along the axes of `frame` [t, 3, 3]."""
        self.centres.append(centre)
        self.axes.append(frame * np.broadcast_to(np.asarray(radii, dtype=float), 3))
        return len(self.centres) - 1

    def part(self, *balls: int) -> None:
        """Draw the common hull of up to PART_BALLS balls."""
        self.parts.append((*balls, *balls[-1:] * (PART_BALLS - len(balls))))

    def chain(self, *balls: int) -> None:
        """Draw the hull of each ball with the next."""
        for pair in pairwise(balls):
            self.part(*pair)


def _at(origin: Array, frame: Array, x: float, y: float, z: float) -> Array:
    """The point (x, y, z) of a moving frame, float [t, 3]."""
    point: Array = origin + frame @ np.array([x, y, z])
    return point


def walk(
    person: Person, outfit: Outfit, times: Array, start_phase: float, slope: float = 0.0
) -> Body:
    """The body of a person at the given times.

    Args:
        person: who walks, as on this occasion (`draw_take`).
        outfit: coat and bag.
        times: float [t], seconds; the person is at x = 0 at time 0.
        start_phase: position in the stride at time 0, share of a cycle; 0 = left heel strikes.
        slope: rise of the ground, degrees; people lean into it.

    Returns:
        The body; its lowest point is on the ground (z = 0) at each moment.
    """
    shape = {name: value * person.shape["height"] for name, value in person.shape.items()}
    shape |= {name: person.shape[name] for name in ("height", "thigh", "upper_arm", "head")}
    motion = person.motion
    phase = 2 * np.pi * (motion["cadence"] * times + start_phase)
    radians = np.pi / 180
    cos, sin = np.cos(phase), np.sin(phase)

    # Left hip forward at heel strike; over the standing leg in its mid-stance (phase 15 to 35 %).
    pelvis = _rotation(
        -motion["pelvis_twist"] * radians * cos,
        np.full_like(times, 0.3 * motion["lean"] * radians),
        motion["pelvis_drop"] * radians * sin,
    )
    trunk = _rotation(
        motion["trunk_twist"] * radians * cos,
        (motion["lean"] + 0.5 * slope + motion["bob"] * np.cos(2 * phase - 0.6)) * radians,
        -motion["sway"] * radians * sin,
    )
    head = _rotation(
        np.zeros_like(times),
        np.full_like(times, (0.5 * motion["lean"] + motion["nod"]) * radians),
        np.zeros_like(times),
    )
    origin = np.zeros((len(times), 3))
    origin[:, 1] = motion["shift"] * sin

    figure = _Figure()
    knees = _add_legs(figure, person, shape, origin, pelvis, phase)
    hips, collar = _add_trunk(figure, shape, origin, pelvis, trunk, head, outfit.coat)
    hands = _add_arms(figure, person, shape, origin, trunk, phase, outfit, collar)
    if outfit.coat:
        _add_skirt(figure, shape, hips, knees, pelvis)
    if outfit.bag is not None:
        _add_bag(figure, shape, outfit, origin, trunk, hands)

    centres = np.stack(figure.centres, axis=1)  # [t, balls, 3]
    axes = np.stack(figure.axes, axis=1)  # [t, balls, 3, 3]
    # Stand on the ground, and advance two steps a stride.
    lowest = centres[..., 2] - np.linalg.norm(axes[..., 2, :], axis=-1)
    centres[..., 2] -= lowest.min(axis=1)[:, None]
    centres[..., 0] += (2 * _step_length(person, shape) * motion["cadence"] * times)[:, None]
    return Body(centres, axes, np.array(figure.parts), np.array(figure.limb_ends))


def _leg_angles(person: Person, side: int, phase: Array) -> tuple[Array, Array, Array]:
    """Flexion of hip, knee and ankle on one side (0 left, 1 right), float [t] each, radians.

    Positive: thigh forward, shank backward, toes up.
    """
    own_phase = phase + np.pi * side
    scale = 1 + (1 - 2 * side) * person.motion["left_leg"]
    hip, knee, ankle = (
        mean
        + person.motion[f"{joint}_offset"]
        + scale * person.motion[f"{joint}_scale"] * _evaluate(curve, own_phase)
        + _evaluate(person.waves[side, i], own_phase)
        for i, (joint, (mean, curve)) in enumerate(zip(JOINTS[:3], _CURVES, strict=True))
    )
    return np.radians(hip), np.radians(np.maximum(knee, 2)), np.radians(ankle)


def _step_length(person: Person, shape: dict[str, float]) -> float:
    """How far the standing foot moves back under the hip in half a stride, metres."""
    thigh = shape["leg"] * shape["thigh"]
    shank = shape["leg"] - thigh
    ends = np.array([0.0, np.pi])
    lengths = []
    for side in (0, 1):
        hip, knee, _ = _leg_angles(person, side, ends + np.pi * side)
        ahead = thigh * np.sin(hip) + shank * np.sin(hip - knee)
        lengths.append(ahead[0] - ahead[1])
    return float(np.mean(lengths))


def _add_legs(
    figure: _Figure,
    person: Person,
    shape: dict[str, float],
    origin: Array,
    pelvis: Array,
    phase: Array,
) -> list[Array]:
    """Legs and feet; returns the left and the right knee, float [t, 3] each."""
    motion = person.motion
    thigh = shape["leg"] * shape["thigh"]
    shank = shape["leg"] - thigh
    ankle_height = 0.039 * shape["height"]
    foot_length = shape["foot"]
    girth = shape["thigh_girth"]
    hips, knees, ankles, feet, toes = [], [], [], [], []
    for side in (0, 1):
        outwards = 1 - 2 * side
        hip_angle, knee_angle, ankle_angle = _leg_angles(person, side, phase)
        splay = outwards * (motion["step_width"] - shape["hip_joint"]) / shape["leg"]
        hips.append(_at(origin, pelvis, 0, outwards * shape["hip_joint"], 0))
        knees.append(hips[side] + thigh * _downwards(hip_angle, splay))
        ankles.append(knees[side] + shank * _downwards(hip_angle - knee_angle, splay))
        toe_out = np.full_like(phase, outwards * np.radians(motion["toe_out"]))
        pitch = knee_angle - hip_angle - ankle_angle  # of the sole: positive = heel up
        feet.append(_rotation(toe_out, pitch, 0 * phase))
        toes.append(_rotation(toe_out, np.minimum(pitch, 0.35), 0 * phase))  # bend, heel up

    # Angles alone would leave one foot in the air while both should stand: lengthen that leg.
    soles = [
        np.minimum(
            _at(ankle, foot, -0.24 * foot_length, 0, -ankle_height)[:, 2],
            _at(ankle, foot, 0.50 * foot_length, 0, -ankle_height)[:, 2],
        )
        for ankle, foot in zip(ankles, feet, strict=True)
    ]
    for side in (0, 1):
        gap = (soles[side] - np.minimum(*soles)) * _standing(phase + np.pi * side)
        knees[side][:, 2] -= 0.5 * gap
        ankles[side][:, 2] -= gap

    crotch = figure.ball(origin - np.array([0, 0, 0.1 * thigh]), 0.9 * girth, pelvis)
    for hip, knee, ankle, foot, toe in zip(hips, knees, ankles, feet, toes, strict=True):
        tread = _at(ankle, foot, 0.5 * foot_length, 0, 0.02 * foot_length - ankle_height)
        balls = [
            figure.ball(hip, girth, pelvis),
            figure.ball(hip + 0.45 * (knee - hip), 0.92 * girth, pelvis),
            figure.ball(knee, shape["knee_girth"], pelvis),
            figure.ball(
                _at(knee + 0.3 * (ankle - knee), foot, -0.005, 0, 0), shape["calf_girth"], pelvis
            ),
            figure.ball(ankle, shape["ankle_girth"], pelvis),
            figure.ball(
                _at(ankle, foot, -0.24 * foot_length, 0, 0.1 * foot_length - ankle_height),
                (0.10 * foot_length, 0.13 * foot_length, 0.10 * foot_length),
                foot,
            ),
            figure.ball(
                _at(tread, foot, 0, 0, 0.06 * foot_length),
                (0.08 * foot_length, 0.18 * foot_length, 0.08 * foot_length),
                foot,
            ),
            figure.ball(
                _at(tread, toe, 0.22 * foot_length, 0, 0.035 * foot_length),
                (0.06 * foot_length, 0.15 * foot_length, 0.05 * foot_length),
                toe,
            ),
        ]
        figure.chain(crotch, *balls[:5])  # hip, thigh, knee, calf, ankle
        figure.part(*balls[4:7])  # ankle, heel, tread
        figure.part(*balls[6:])  # tread, toe
        figure.limb_ends += balls[2:5]
    return knees


def _standing(phase: Array) -> Array:
    """How much the foot of a leg stands, float [t] in [0, 1]: from heel strike (0) to toe-off."""
    share = phase / (2 * np.pi) % 1
    return np.interp(share, [0, 0.5, 0.62, 0.93, 1], [1, 1, 0, 0, 1])


def _downwards(angle: Array, splay: float) -> Array:
    """Direction float [t, 3] that points down at angle 0, forwards at π/2, and to the left."""
    down = np.cos(angle)
    return np.stack([np.sin(angle), down * splay, -down], axis=-1)  # [t, 3]


def _add_trunk(
    figure: _Figure,
    shape: dict[str, float],
    origin: Array,
    pelvis: Array,
    trunk: Array,
    head: Array,
    coat: bool,
) -> tuple[int, int]:
    """Hips to head; returns the balls of the hips and of the base of the neck."""
    height, torso = shape["height"], shape["torso"]
    wide, deep = (1.08, 1.12) if coat else (1.0, 1.0)

    def ring(level: float, x: float, depth: str, width: str, tall: float, frame: Array) -> int:
        return figure.ball(
            _at(origin, frame, x, 0, level * torso),
            (deep * shape[depth], wide * shape[width], tall * height),
            frame,
        )

    hunch = shape["hunch"]
    hips = ring(0.07, 0, "hip_depth", "hip_width", 0.040, pelvis)
    seat = figure.ball(
        _at(origin, pelvis, -shape["seat"], 0, -0.03 * torso),
        (0.9 * shape["hip_depth"], 0.85 * shape["hip_width"], 0.040 * height),
        pelvis,
    )
    waist = ring(0.42, 0.15 * hunch, "waist_depth", "waist_width", 0.030, trunk)
    belly = figure.ball(
        _at(origin, trunk, shape["belly"], 0, 0.28 * torso),
        (deep * shape["waist_depth"], 0.9 * wide * shape["waist_width"], 0.040 * height),
        trunk,
    )
    chest = ring(0.75, 0.6 * hunch, "chest_depth", "chest_width", 0.040, trunk)
    shoulder_level = torso - 0.8 * shape["shoulder_slope"]
    yoke = figure.ball(
        _at(origin, trunk, hunch, 0, shoulder_level - 0.015 * height),
        (0.85 * deep * shape["chest_depth"], shape["shoulder_width"], 0.022 * height),
        trunk,
    )
    figure.chain(seat, hips, waist, chest, yoke)
    figure.chain(hips, belly, chest)
    neck_base = _at(origin, trunk, hunch, 0, torso + 0.012 * height)
    collar = figure.ball(neck_base, (1.25 if coat else 1.0) * shape["neck_girth"], trunk)
    size = shape["head"] * height
    skull_centre = _at(neck_base, head, shape["head_ahead"], 0, shape["neck"])
    nape = figure.ball(
        _at(skull_centre, head, -0.012 * height, 0, -0.030 * size), 0.85 * shape["neck_girth"], head
    )
    skull = figure.ball(
        _at(skull_centre, head, 0, 0, 0.012 * size),
        (0.056 * size, 0.047 * size, 0.050 * size),
        head,
    )
    jaw = figure.ball(
        _at(skull_centre, head, 0.018 * size, 0, -0.040 * size),
        (0.034 * size, 0.034 * size, 0.026 * size),
        head,
    )
    figure.chain(yoke, collar, nape, skull)
    figure.part(skull, jaw)
    hair = max(shape["hair"], 0.0)
    back = figure.ball(
        _at(skull_centre, head, -0.6 * hair - 0.012 * size, 0, 0.006 * size - hair),
        (0.046 * size + 0.5 * hair, 0.044 * size + 0.4 * hair, 0.046 * size + hair),
        head,
    )
    figure.part(skull, back)
    return hips, collar


def _add_arms(
    figure: _Figure,
    person: Person,
    shape: dict[str, float],
    origin: Array,
    trunk: Array,
    phase: Array,
    outfit: Outfit,
    collar: int,
) -> list[Array]:
    """Arms and hands; returns the left and the right hand, float [t, 3] each."""
    motion = person.motion
    height = shape["height"]
    upper = shape["arm"] * shape["upper_arm"]
    forearm = shape["arm"] - upper
    sleeve = 1.2 if outfit.coat else 1.0
    hands = []
    for side in (0, 1):
        outwards = 1 - 2 * side
        own_phase = phase + np.pi * (1 - side) - np.radians(motion["arm_lag"])  # against the leg
        swing = 1 + outwards * motion["left_arm"]
        bend = motion["elbow_bend"]
        spread = motion["abduction"] + (4 if outfit.coat else 0)
        if outfit.bag == "parcel":
            swing, bend, spread = 0.1 * swing, 85.0, 4.0
        elif outfit.bag == "handbag" and outfit.bag_on_left == (side == 0):
            swing, bend = 0.35 * swing, 0.4 * bend
        elif outfit.bag == "shoulder bag" and outfit.bag_on_left == (side == 0):
            swing, spread = 0.6 * swing, spread + 8
        shoulder_angle = np.radians(
            motion["arm_offset"]
            + swing
            * (
                motion["arm_swing"] * np.cos(own_phase)
                + _evaluate(person.waves[side, 3], own_phase)
            )
        )
        elbow_angle = np.radians(
            np.maximum(
                bend
                + swing
                * (
                    motion["elbow_swing"] * np.cos(own_phase - 0.4)
                    + _evaluate(person.waves[side, 4], own_phase)
                ),
                3,
            )
        )
        shoulder = _at(
            origin,
            trunk,
            shape["hunch"],
            outwards * shape["shoulder_width"],
            shape["torso"] - shape["shoulder_slope"],
        )
        splay = outwards * np.tan(np.radians(spread))
        elbow = shoulder + upper * _turned(trunk, _downwards(shoulder_angle, splay))
        lower = _downwards(shoulder_angle + elbow_angle, 0.4 * splay)
        wrist = elbow + forearm * _turned(trunk, lower)
        hand = wrist + 0.048 * height * _turned(trunk, lower)
        girth = sleeve * shape["upper_arm_girth"]
        balls = [
            figure.ball(shoulder, 1.05 * girth, trunk),
            figure.ball(shoulder + 0.4 * (elbow - shoulder), girth, trunk),
            figure.ball(elbow, 0.95 * sleeve * shape["forearm_girth"], trunk),
            figure.ball(elbow + 0.3 * (wrist - elbow), sleeve * shape["forearm_girth"], trunk),
            figure.ball(wrist, 0.75 * shape["forearm_girth"], trunk),
            figure.ball(hand, (0.020 * height, 0.013 * height, 0.024 * height), trunk),
        ]
        figure.chain(collar, *balls)  # … shoulder, upper arm, elbow, forearm, wrist, hand
        figure.limb_ends += balls[2:]
        hands.append(hand)
    return hands


def _turned(frame: Array, vectors: Array) -> Array:
    """Vectors [t, 3] of a moving frame [t, 3, 3], in the world."""
    turned: Array = np.einsum("tij,tj->ti", frame, vectors)
    return turned


def _add_skirt(
    figure: _Figure, shape: dict[str, float], hips: int, knees: list[Array], pelvis: Array
) -> None:
    """The part of a coat below the hips: it hangs to above the knees and follows both thighs."""
    top = figure.centres[hips]
    girth = 1.35 * shape["knee_girth"]
    hems = [
        figure.ball(top + 0.85 * (knee - top), (1.2 * girth, 1.3 * girth, 0.4 * girth), pelvis)
        for knee in knees
    ]
    figure.part(hips, *hems)


def _add_bag(
    figure: _Figure,
    shape: dict[str, float],
    outfit: Outfit,
    origin: Array,
    trunk: Array,
    hands: list[Array],
) -> None:
    """What is carried. Bags have sizes of their own, metres, whoever carries them."""
    torso = shape["torso"]
    side = 1 if outfit.bag_on_left else -1
    hand = hands[0 if outfit.bag_on_left else 1]
    upright = np.broadcast_to(np.eye(3), trunk.shape)
    if outfit.bag == "backpack":
        x = -shape["chest_depth"] - 0.05
        low = figure.ball(_at(origin, trunk, x - 0.02, 0, 0.42 * torso), (0.08, 0.13, 0.05), trunk)
        high = figure.ball(_at(origin, trunk, x, 0, 0.85 * torso), (0.06, 0.12, 0.06), trunk)
        figure.part(low, high)
        return
    if outfit.bag == "shoulder bag":
        middle, frame = _at(origin, trunk, -0.02, side * (shape["hip_width"] + 0.05), 0.08), trunk
        half_length, half_width, half_height = 0.15, 0.05, 0.10
    elif outfit.bag == "handbag":
        middle, frame = _at(hand, upright, 0, 0, -0.26), upright
        half_length, half_width, half_height = 0.15, 0.04, 0.10
        figure.part(
            figure.ball(hand, 0.02, upright),
            figure.ball(_at(hand, upright, 0, 0, -0.15), 0.04, upright),
        )
    else:  # parcel, in both arms
        middle, frame = _at((hands[0] + hands[1]) / 2, trunk, 0.02, 0, 0.09), trunk
        half_length, half_width, half_height = 0.12, 0.18, 0.09
    rounding = 0.03
    figure.part(
        *(
            figure.ball(
                _at(middle, frame, x * (half_length - rounding), 0, z * (half_height - rounding)),
                (rounding, half_width, rounding),
                frame,
            )
            for x in (-1, 1)
            for z in (-1, 1)
        )
    )
