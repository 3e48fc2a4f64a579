from typing import Any

import cv2
import numpy as np
import pytest

from synthetic.people import Array
from synthetic.render import Frame
from synthetic.settings import Settings
from synthetic.walks import (
    casia_e_subjects,
    missing_sequences,
    oumvlp_subjects,
    render_sequence,
)

LOW_TAKE = "L-scene2-nm-1"


def test_ids_are_those_of_the_releases_splits(settings: Settings) -> None:
    assert oumvlp_subjects(settings) == (["00001", "00003", "00005"], ["00002", "00004"])
    assert casia_e_subjects(settings) == (["001", "002"], ["501"], ["615", "616"])


@pytest.mark.parametrize(("dataset", "sequence"), [("oumvlp", "00"), ("casia_e", LOW_TAKE)])
def test_a_sequence_is_the_same_whatever_was_rendered_before(
    settings: Settings, dataset: str, sequence: str
) -> None:
    key = (dataset, "00002" if dataset == "oumvlp" else "615", sequence, "090")
    first = render_sequence(settings, *key)
    render_sequence(settings, "oumvlp", "00001", "01", "000")
    again = render_sequence(settings, *key)
    assert 4 <= len(first) <= 6
    assert len(first) == len(again)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_seed_person_take_view_and_dataset_each_make_a_difference(
    content: dict[str, Any], settings: Settings
) -> None:
    other_seed = Settings.model_validate(content | {"seed": 2})
    sequences = [
        render_sequence(settings, "oumvlp", "00002", "00", "090"),
        render_sequence(other_seed, "oumvlp", "00002", "00", "090"),
        render_sequence(settings, "oumvlp", "00004", "00", "090"),
        render_sequence(settings, "oumvlp", "00002", "01", "090"),
        render_sequence(settings, "oumvlp", "00002", "00", "000"),
        render_sequence(settings, "casia_e", "00002", LOW_TAKE, "090"),
    ]
    pictures = {sequence[0].tobytes() for sequence in sequences}
    assert len(pictures) == len(sequences)


def test_picture_sizes_are_the_cameras(settings: Settings) -> None:
    camera, low = settings.oumvlp.camera, settings.casia_e.cameras["L"]
    assert render_sequence(settings, "oumvlp", "00001", "00", "000")[0].shape == (
        camera.height,
        camera.width,
    )
    assert render_sequence(settings, "casia_e", "001", LOW_TAKE, "000")[0].shape == (
        low.height,
        low.width,
    )


def test_an_unknown_dataset_is_refused(settings: Settings) -> None:
    with pytest.raises(ValueError, match="'casia-b'"):
        render_sequence(settings, "casia-b", "001", "nm-01", "090")


def test_few_sequences_are_missing_and_at_most_one_a_subject(content: dict[str, Any]) -> None:
    content["oumvlp"] |= {"training_subjects": 300, "test_subjects": 300, "missing_share": 0.02}
    settings = Settings.model_validate(content)
    missing = missing_sequences(settings)
    assert missing == missing_sequences(settings)
    subjects = [subject for subject, _, _ in missing]
    assert len(set(subjects)) == len(subjects)
    assert 0.01 < len(missing) / (600 * 2 * len(settings.oumvlp.views)) < 0.03
    assert {sequence for _, sequence, _ in missing} == {"00", "01"}
    content["oumvlp"]["missing_share"] = 0.0
    assert missing_sequences(Settings.model_validate(content)) == set()


def mean_shape(frames: list[Frame]) -> Array:
    """The mean figure, each frame cropped and resized to 32 × 24: height and place are gone."""
    crops = []
    for frame in frames:
        x, y, width, height = cv2.boundingRect(frame)
        centre, half = x + width // 2, 3 * height // 8
        padded = cv2.copyMakeBorder(frame, 0, 0, half, half, cv2.BORDER_CONSTANT)
        crop = padded[y : y + height, centre : centre + 2 * half]
        crops.append(cv2.resize(crop, (24, 32), interpolation=cv2.INTER_AREA).astype(float))
    mean: Array = np.mean(crops, axis=0)
    return mean.ravel()


def test_one_person_looks_more_like_themselves_than_like_others(content: dict[str, Any]) -> None:
    """At least in the plainest of descriptions, and without bags and coats."""
    content["oumvlp"]["recording"] |= {"fewest_frames": 18, "most_frames": 20}
    content["oumvlp"]["nuisance"] |= {"bag_share": 0.0, "coat_share": 0.0}
    settings = Settings.model_validate(content)
    subjects = [f"{i:05d}" for i in range(1, 13)]
    first, second = (
        np.stack(
            [mean_shape(render_sequence(settings, "oumvlp", s, sequence, "090")) for s in subjects]
        )
        for sequence in ("00", "01")
    )
    distances = np.linalg.norm(first[:, None] - second[None], axis=-1)
    same, others = np.diag(distances), distances[~np.eye(len(subjects), dtype=bool)]
    assert same.mean() < 0.85 * others.mean()
    assert same.min() > 0


def test_coats_and_bags_show(settings: Settings) -> None:
    """On average: only the draws within one take share a seed."""

    def area(condition: str) -> float:
        frames = [
            frame
            for subject in ("615", "616", "617", "618", "619", "620")
            for frame in render_sequence(
                settings, "casia_e", subject, f"L-scene2-{condition}-1", "090"
            )
        ]
        return float(
            np.mean([(frame > 0).sum() / cv2.boundingRect(frame)[3] ** 2 for frame in frames])
        )

    assert area("bg") > 1.03 * area("nm")
    assert area("cl") > 1.05 * area("nm")
