"""The settings of the walkers: one schema for `synthetic/params.yaml`.

Every problem of a file is collected and reported at once, with the full key, before any frame is
drawn.
"""

from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

Share = Annotated[float, Field(ge=0, le=1)]
View = Annotated[str, StringConstraints(pattern=r"^([0-2]\d\d|3[0-5]\d)$")]
Take = Annotated[
    str, StringConstraints(pattern=r"^[HL]-(scene1|scene2|scene3|scene3_s)-(nm|bg|cl)-[1-9]$")
]


class SettingsError(Exception):
    """The settings file cannot be used; the message lists every problem, one a line."""


class Section(BaseModel):
    """A part of the file: no unknown keys, no silent conversions, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class People(Section):
    """How far people differ from one another, and from themselves on another day."""

    shape_spread: float = Field(ge=0, le=2)
    """Differences in body proportions between people; 1 = about those of adults."""
    motion_spread: float = Field(ge=0, le=2)
    """Differences in how people move; 1 = about those of healthy adults."""
    motion_variation: float = Field(ge=0, le=2)
    """How one person's movement differs between takes, as a share of `motion_spread`'s unit."""
    clothes_variation: float = Field(ge=0, le=2)
    """How one person's girths differ between takes (clothes), as a share of `shape_spread`'s
    unit."""


class Camera(Section):
    """Where the camera stands and what it makes of the scene."""

    width: int = Field(ge=64, le=2048)
    """Picture width, pixels."""
    height: int = Field(ge=64, le=2048)
    """Picture height, pixels."""
    focal_length: float = Field(gt=0)
    """Focal length, pixels: a person 1.7 m tall covers 1.7 · focal_length / distance of them."""
    distance: float = Field(ge=4, le=50)
    """Distance over ground to the middle of the walk, metres."""
    elevation: float = Field(ge=0, le=10)
    """Height of the camera above ground, metres."""


class Nuisance(Section):
    """What changes from one recording to the next, whoever walks."""

    view_error: float = Field(ge=0, le=20)
    """Standard deviation of the azimuth around the nominal view, degrees."""
    distance_error: Share
    """Standard deviation of the camera's distance, as a share of it."""
    elevation_error: float = Field(ge=0, le=2)
    """Standard deviation of the camera's height, metres."""
    speed_variation: Share
    """Standard deviation of a person's cadence and stride from take to take, as a share of them."""
    bag_share: Share
    """Share of the takes in which a bag is carried although the condition asks for none."""
    coat_share: Share
    """Share of the takes in which a coat is worn although the condition asks for none."""


class Faults(Section):
    """What segmentation does wrong."""

    raggedness: float = Field(ge=0, le=4)
    """How far the outline wanders, pixels."""
    holes: float = Field(ge=0, le=10)
    """Holes in the body, mean count a frame."""
    lost_pieces: Share
    """Share of the sequences in which a piece of a limb vanishes for a few frames."""
    dropped_frames: Share
    """Share of the frames that were never recorded: the walker moves on, the numbers do not."""
    blank_frames: Share
    """Share of the frames in which segmentation found nothing but a speck."""


class Recording(Section):
    """How long and how densely a walk is recorded."""

    frame_rate: float = Field(gt=0, le=120)
    """Frames a second."""
    fewest_frames: int = Field(ge=1)
    """Least number of frames of a sequence."""
    most_frames: int = Field(ge=1)
    """Greatest number of frames of a sequence."""

    @model_validator(mode="after")
    def _frames_in_order(self) -> Self:
        if self.most_frames < self.fewest_frames:
            raise ValueError(
                f"most_frames = {self.most_frames} is below fewest_frames = {self.fewest_frames}"
            )
        return self


class Oumvlp(Section):
    """OUMVLP: everybody walks twice (sequences 00 and 01) past every camera."""

    training_subjects: int = Field(ge=1, le=5_000)
    """People with odd ids: 00001, 00003, …"""
    test_subjects: int = Field(ge=1, le=5_000)
    """People with even ids: 00002, 00004, …"""
    views: list[View] = Field(min_length=1)
    """Azimuths, three digits, degrees: 000 walks towards the camera, 090 sideways, 180 away."""
    missing_share: float = Field(ge=0, le=0.05)
    """Share of the (subject, sequence, view) combinations that are missing; at most one each."""
    recording: Recording
    camera: Camera
    nuisance: Nuisance
    faults: Faults


class Scene(Section):
    """One of CASIA-E's places."""

    heading: float = Field(ge=-30, le=30)
    """By how much people there walk off the nominal azimuth, degrees."""
    slope: float = Field(ge=-15, le=15)
    """Rise of the ground in walking direction, degrees."""
    faults: Faults


class CasiaE(Section):
    """CASIA-E: other people, two cameras at different heights, scenes and conditions."""

    training_subjects: int = Field(ge=1, le=500)
    """People from 001 on."""
    validation_subjects: int = Field(ge=1, le=114)
    """People from 501 on."""
    test_subjects: int = Field(ge=1, le=400)
    """People from 615 on."""
    views: list[View] = Field(min_length=1)
    """Azimuths, three digits, degrees, as in OUMVLP."""
    training_takes: list[Take] = Field(min_length=1)
    """What training and validation subjects walk, per view: camera-scene-condition-number."""
    test_takes: list[Take] = Field(min_length=1)
    """What test subjects walk, per view: camera-scene-condition-number."""
    jpeg_quality: int = Field(ge=50, le=100)
    """JPEG quality, 0 to 100."""
    recording: Recording
    cameras: dict[str, Camera]
    """The high camera `H` and the low one `L`."""
    nuisance: Nuisance
    scenes: dict[str, Scene]
    """Every scene that a take names."""

    @model_validator(mode="after")
    def _takes_are_described(self) -> Self:
        takes = self.training_takes + self.test_takes
        for key, part, known in (("cameras", 0, self.cameras), ("scenes", 1, self.scenes)):
            absent = sorted({take.split("-")[part] for take in takes} - known.keys())
            if absent:
                raise ValueError(f"{key} lacks {', '.join(absent)}, which the takes name")
        return self


class Settings(Section):
    """The whole file."""

    seed: int = Field(ge=0)
    """Seed of everything random; same seed, same bytes."""
    people: People
    oumvlp: Oumvlp
    casia_e: CasiaE


def read_settings(path: Path) -> Settings:
    """Settings from a YAML file.

    Raises:
        SettingsError: the file is missing, is no YAML, or breaks the schema; lists every problem.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; name one with --params") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from None
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        problems = [
            f"  {'.'.join(map(str, problem['loc'])) or '(whole file)'}: {problem['msg']}"
            f" (got {_shortened(problem['input'])})"
            for problem in error.errors()
        ]
        raise SettingsError(
            f"{path}: {len(problems)} problem(s) to correct\n" + "\n".join(problems)
        ) from None


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
