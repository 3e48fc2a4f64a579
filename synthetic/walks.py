"""Who walks where, and how it is recorded: from a sequence's key to its frames.

Every draw comes from a generator that is seeded with the key alone, so any sequence can be
rendered by itself, in any order, in any process.
"""

import zlib
from dataclasses import dataclass
from itertools import chain

import numpy as np

from synthetic.body import walk
from synthetic.people import BAGS, Array, Outfit, bounded_normal, draw_person, draw_take
from synthetic.render import Frame, draw, spoil
from synthetic.settings import Camera, Faults, Nuisance, Recording, Settings

SEQUENCES = ("00", "01")  # OUMVLP: everybody walks twice


@dataclass(frozen=True)
class Scenario:
    """All that the settings say about one sequence.

    Attributes:
        take: name of the occasion; whatever is seen by several cameras at once shares it.
        condition: "any" (as nuisance has it), "nm", "bg" or "cl".
        heading: added to the nominal azimuth, degrees.
        slope: rise of the ground, degrees.
    """

    take: str
    condition: str
    camera: Camera
    recording: Recording
    nuisance: Nuisance
    faults: Faults
    heading: float
    slope: float


def oumvlp_subjects(settings: Settings) -> tuple[list[str], list[str]]:
    """Training (odd) and test (even) ids of the OUMVLP walkers."""
    oumvlp = settings.oumvlp
    training = [f"{2 * i + 1:05d}" for i in range(oumvlp.training_subjects)]
    test = [f"{2 * i + 2:05d}" for i in range(oumvlp.test_subjects)]
    return training, test


def casia_e_subjects(settings: Settings) -> tuple[list[str], list[str], list[str]]:
    """Training, validation and test ids of the CASIA-E walkers."""
    casia_e = settings.casia_e
    training = [f"{1 + i:03d}" for i in range(casia_e.training_subjects)]
    validation = [f"{501 + i:03d}" for i in range(casia_e.validation_subjects)]
    test = [f"{615 + i:03d}" for i in range(casia_e.test_subjects)]
    return training, validation, test


def missing_sequences(settings: Settings) -> set[tuple[str, str, str]]:
    """(subject, sequence, view) of OUMVLP that were never recorded: at most one a subject."""
    views = settings.oumvlp.views
    combinations = [(sequence, view) for sequence in SEQUENCES for view in views]
    missing = set()
    for subject in sorted(chain(*oumvlp_subjects(settings))):
        rng = _generator(settings.seed, "oumvlp", subject, "missing")
        if rng.random() < settings.oumvlp.missing_share * len(combinations):
            missing.add((subject, *combinations[rng.integers(len(combinations))]))
    return missing


def render_sequence(
    settings: Settings, dataset: str, subject: str, sequence: str, view: str
) -> list[Frame]:
    """One person walking once before one camera.

    Args:
        settings: the whole settings file.
        dataset: "oumvlp" or "casia_e".
        subject: id as released, "00001" or "001".
        sequence: as released, "00" or "H-scene1-nm-1".
        view: azimuth, degrees, three digits.

    Returns:
        silhouettes uint8 [camera height, camera width] each, background 0, foreground 255.
    """
    if dataset == "oumvlp":
        scenario = _oumvlp_scenario(settings, sequence)
    elif dataset == "casia_e":
        scenario = _casia_e_scenario(settings, sequence)
    else:
        raise ValueError(f'dataset must be "oumvlp" or "casia_e", got {dataset!r}')
    camera, nuisance = scenario.camera, scenario.nuisance

    person = draw_person(_generator(settings.seed, dataset, subject), settings.people)
    rng = _generator(settings.seed, dataset, subject, scenario.take)
    person = draw_take(rng, person, settings.people, nuisance.speed_variation)
    outfit = _dress(rng, scenario.condition, nuisance)

    rng = _generator(settings.seed, dataset, subject, sequence, view)
    times = _moments(rng, scenario.recording, scenario.faults.dropped_frames)
    body = walk(person, outfit, times, start_phase=rng.random(), slope=scenario.slope)
    frames, limb_ends = draw(
        body,
        azimuth=float(view) + scenario.heading + nuisance.view_error * rng.standard_normal(),
        distance=camera.distance * (1 + nuisance.distance_error * bounded_normal(rng)),
        elevation=max(camera.elevation + nuisance.elevation_error * bounded_normal(rng), 0.2),
        focal_length=camera.focal_length,
        size=(camera.height, camera.width),
    )
    return spoil(frames, limb_ends, scenario.faults, rng)


def _generator(seed: int, *key: str) -> np.random.Generator:
    return np.random.default_rng([seed, *(zlib.crc32(part.encode()) for part in key)])


def _oumvlp_scenario(settings: Settings, sequence: str) -> Scenario:
    oumvlp = settings.oumvlp
    return Scenario(
        take=sequence,
        condition="any",
        camera=oumvlp.camera,
        recording=oumvlp.recording,
        nuisance=oumvlp.nuisance,
        faults=oumvlp.faults,
        heading=0.0,
        slope=0.0,
    )


def _casia_e_scenario(settings: Settings, sequence: str) -> Scenario:
    casia_e = settings.casia_e
    camera, scene, condition, number = sequence.split("-")
    return Scenario(
        take=f"{scene}-{condition}-{number}",  # both cameras see the same walk
        condition=condition,
        camera=casia_e.cameras[camera],
        recording=casia_e.recording,
        nuisance=casia_e.nuisance,
        faults=casia_e.scenes[scene].faults,
        heading=casia_e.scenes[scene].heading,
        slope=casia_e.scenes[scene].slope,
    )


def _dress(rng: np.random.Generator, condition: str, nuisance: Nuisance) -> Outfit:
    """What is worn and carried under a condition."""
    coat = condition == "cl" or bool(rng.random() < nuisance.coat_share)
    bag = condition == "bg" or bool(rng.random() < nuisance.bag_share)
    kind = BAGS[rng.integers(len(BAGS))]
    return Outfit(coat, kind if bag else None, bag_on_left=bool(rng.random() < 0.3))


def _moments(rng: np.random.Generator, recording: Recording, dropped: float) -> Array:
    """When the frames are taken, float [t], seconds; about 0 when the walker passes the middle."""
    count = int(rng.integers(recording.fewest_frames, recording.most_frames + 1))
    ticks = np.cumsum(1 + (rng.random(count) < dropped))  # a dropped frame is a tick without frame
    moments: Array = (ticks - ticks.mean() + rng.uniform(-2, 2)) / recording.frame_rate
    return moments
