import cv2
import numpy as np
import pytest

from synthetic.body import Body, walk
from synthetic.people import Array, Outfit, draw_person
from synthetic.render import Frame, draw, outlines, project, spoil
from synthetic.settings import Faults, People

PEOPLE = People(shape_spread=0.0, motion_spread=0.0, motion_variation=0.0, clothes_variation=0.0)
FLAWLESS = Faults(raggedness=0.0, holes=0.0, lost_pieces=0.0, dropped_frames=0.0, blank_frames=0.0)
CAMERA = {"distance": 8.0, "elevation": 1.5, "focal_length": 800.0}
SIZE = (240, 320)


def balls(centres: list[tuple[float, float, float]], radii: list[float]) -> Body:
    """One moment, one part that holds all the balls."""
    axes = np.stack([radius * np.eye(3) for radius in radii])
    part = [*range(len(radii)), *[len(radii) - 1] * (4 - len(radii))]
    return Body(np.array([centres]), axes[None], np.array([part]), np.array([0]))


def walker(moments: int = 12) -> Body:
    person = draw_person(np.random.default_rng(0), PEOPLE)
    times = (np.arange(moments) - (moments - 1) / 2) / 18
    return walk(person, Outfit(), times, start_phase=0.1)


def middle_column(frame: Frame) -> float:
    return float(np.nonzero(frame)[1].mean())


@pytest.mark.parametrize("azimuth", [0.0, 33.0, 90.0, 215.0])
def test_projection_is_that_of_a_pinhole_camera(azimuth: float) -> None:
    points = [(0.3, -0.2, 0.1), (0.0, 0.5, 1.7), (-0.4, 0.0, 0.9), (0.0, 0.0, 0.9)]
    body = balls(points, [0.1, 0.2, 0.05, 0.1])
    centres, axes = project(body, azimuth, **CAMERA)
    turn = np.radians(azimuth)
    place = np.array([8 * np.cos(turn), 8 * np.sin(turn), 1.5])
    ahead = (np.array([0, 0, 0.9]) - place) / np.linalg.norm(np.array([0, 0, 0.9]) - place)
    right = np.cross(ahead, [0, 0, 1]) / np.linalg.norm(np.cross(ahead, [0, 0, 1]))
    up = np.cross(right, ahead)
    for i, point in enumerate(points):
        offset = np.array(point) - place
        depth = offset @ ahead
        expected = 800 * np.array([offset @ right, -offset @ up]) / depth
        np.testing.assert_allclose(centres[0, i], expected, atol=1e-9)
        gram = axes[0, i] @ axes[0, i].T  # a sphere is seen as a disc
        radius = 800 * body.axes[0, i, 0, 0] / depth
        np.testing.assert_allclose(gram, radius**2 * np.eye(2), atol=1e-9)
    np.testing.assert_allclose(centres[0, 3], 0, atol=1e-9)


def test_outlines_are_convex_and_hold_all_their_ellipses() -> None:
    rng = np.random.default_rng(0)
    centres = rng.uniform(-20, 20, (3, 4, 2))
    axes = rng.uniform(-5, 5, (3, 4, 2, 3))
    parts = np.array([[0, 1, 1, 1], [0, 1, 2, 3]])
    polygons = outlines(centres, axes, parts)
    for moment in range(3):
        for part, polygon in zip(parts, polygons[moment], strict=True):
            assert cv2.isContourConvex(polygon.astype(np.float32).round(2))
            sphere = rng.standard_normal((500, 3))
            sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
            for ball in part:
                points = centres[moment, ball] + sphere @ axes[moment, ball].T
                inside = [
                    cv2.pointPolygonTest(polygon.astype(np.float32), point, True)
                    for point in points.tolist()
                ]
                # A polygon inside the hull cuts off less than 1 - cos(half a turn's 20th).
                assert min(inside) > -0.02 * np.abs(axes).sum()


def test_views_are_what_they_are_called() -> None:
    body = walker()
    towards, _ = draw(body, 0.0, size=SIZE, **CAMERA)
    away, _ = draw(body, 180.0, size=SIZE, **CAMERA)
    left_side, _ = draw(body, 90.0, size=SIZE, **CAMERA)
    right_side, _ = draw(body, 270.0, size=SIZE, **CAMERA)
    height = [[cv2.boundingRect(frame)[3] for frame in frames] for frames in (towards, away)]
    assert height[0][-1] > 1.05 * height[0][0]
    assert height[1][-1] < 0.95 * height[1][0]
    assert middle_column(left_side[-1]) < middle_column(left_side[0]) - 50
    assert middle_column(right_side[-1]) > middle_column(right_side[0]) + 50
    width = [cv2.boundingRect(frames[3])[2] for frames in (towards, left_side)]
    assert width[0] != width[1]


def test_pictures_are_binary_and_hold_the_whole_person() -> None:
    frames, limb_ends = draw(walker(), 45.0, size=SIZE, **CAMERA)
    for frame, places in zip(frames, limb_ends, strict=True):
        assert frame.shape == SIZE
        assert frame.dtype == np.uint8
        assert set(np.unique(frame)) == {0, 255}
        assert not frame[[0, -1]].any()
        assert not frame[:, [0, -1]].any()
        assert cv2.boundingRect(frame)[3] >= 120
        assert cv2.connectedComponents(frame)[0] == 2  # background and one person
        for x, y in places:
            assert frame[round(y), round(x)] == 255


def silhouettes() -> tuple[list[Frame], Array]:
    return draw(walker(), 60.0, size=SIZE, **CAMERA)


def test_without_faults_nothing_changes() -> None:
    frames, limb_ends = silhouettes()
    unchanged = spoil(frames, limb_ends, FLAWLESS, np.random.default_rng(0))
    for frame, same in zip(frames, unchanged, strict=True):
        np.testing.assert_array_equal(frame, same)


@pytest.mark.parametrize(
    "fault", [{"raggedness": 1.0}, {"holes": 3.0}, {"lost_pieces": 1.0}, {"blank_frames": 1.0}]
)
def test_each_fault_does_its_own_damage(fault: dict[str, float]) -> None:
    frames, limb_ends = silhouettes()
    faults = FLAWLESS.model_copy(update=fault)
    spoilt = spoil(frames, limb_ends, faults, np.random.default_rng(1))
    changes = [(a != b).sum() for a, b in zip(frames, spoilt, strict=True)]
    lost = [((a > 0) & (b == 0)).sum() for a, b in zip(frames, spoilt, strict=True)]
    gained = [((a == 0) & (b > 0)).sum() for a, b in zip(frames, spoilt, strict=True)]
    sums = [int(frame.sum()) for frame in spoilt]
    assert all(set(np.unique(frame)) <= {0, 255} for frame in spoilt)
    if "blank_frames" in fault:
        assert max(sums) <= 10_000
        assert min(sums) > 0
        return
    assert min(sums) > 10_000
    if "raggedness" in fault:
        assert min(lost) > 0
        assert min(gained) > 0
        outline = [cv2.morphologyEx(f, cv2.MORPH_GRADIENT, np.ones((9, 9))) for f in frames]
        away = [
            ((a != b) & (o == 0)).sum() for a, b, o in zip(frames, spoilt, outline, strict=True)
        ]
        assert max(away) < 10  # only the outline wanders
    else:
        assert max(gained) == 0
        assert max(changes) > 20
    if "lost_pieces" in fault:
        assert 1 <= sum(change > 0 for change in changes) <= 5  # and comes back
