"""What holds for every layout, and for all of them together."""

from pathlib import Path

import pytest

from pipeline.layouts import LAYOUTS, recognize
from pipeline.layouts.casia_b import CasiaB
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.generic import Generic
from pipeline.layouts.hid import Hid
from pipeline.layouts.layout import Layout
from pipeline.layouts.oumvlp_rearranged import OumvlpRearranged
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.protocols import named
from pipeline.settings import DATASETS

FRAMES: dict[type[Layout], list[str]] = {
    OumvlpRelease: ["Silhouette_090-01/00002/0001.png", "train/Silhouette_000-00/10307/1.PNG"],
    OumvlpRearranged: ["00002/01/090/0001.png", "test_probe/00002/01/090/0001.png"],
    CasiaERelease: ["forTrain/001/H/scene1/nm/000/1/1.jpg", "1014/L/scene3_s/cl/270/2/1.JPEG"],
    CasiaB: ["001/nm-01/000/001-nm-01-000-001.png", "train/124/cl-02/180/1.png"],
    Hid: ["train/001/ab/1.jpg", "test_gallery/001/ab/1.png", "x/test_probe/00001/1.jpg"],
    Generic: ["alice/walk/front/1.bmp", "x/00002/01/090/1.jpg", "125/nm-01/000/1.png"],
}


@pytest.mark.parametrize(("layout", "path"), [(k, p) for k, paths in FRAMES.items() for p in paths])
def test_a_frame_is_recognized_as_the_layouts_own(layout: type[Layout], path: str) -> None:
    key = layout.key(path)
    assert key is not None
    for where in (path, f"one/level.deeper/{path}", f"./{path}"):
        assert recognize(where) == (layout.name, key)
    assert layout.key_of_folder(path.rpartition("/")[0]) == key


@pytest.mark.parametrize("path", [path for paths in FRAMES.values() for path in paths])
def test_hidden_files_and_other_suffixes_are_no_frames(path: str) -> None:
    folder, _, name = path.rpartition("/")
    for other in (f"{folder}/._{name}", f"{path}.txt", folder, f"{folder}/"):
        assert recognize(other) is None


def test_every_layout_is_listed_once_and_the_one_that_fits_everything_last() -> None:
    assert set(LAYOUTS) == set(FRAMES)
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)
    assert LAYOUTS[-1] is Generic
    assert {layout.dataset for layout in LAYOUTS} == {*DATASETS, None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_expected_is_what_the_ingest_report_counts(layout: type[Layout]) -> None:
    counted = {
        "subjects",
        "sequences",
        "views",
        *(f"{s}_subjects" for s in ("train", "val", "test")),
    }
    for split in ("release", "opengait"):
        assert set(layout(Path(), [], split).expected) <= counted


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout is not Generic])
def test_nothing_is_gallery_and_probe(layout: type[Layout]) -> None:
    for protocol in layout(Path(), [], "release").protocols:
        assert not set(named(protocol.gallery, protocol.all_probes))
        assert len(protocol.all_probes) == len(set(protocol.all_probes))
