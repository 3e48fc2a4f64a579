from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.ingestion import ingest
from pipeline.layouts.oumvlp_rearranged import OumvlpRearranged


@pytest.mark.parametrize(
    "path",
    ["00001/00/90/1.png", "000001/00/090/1.png", "x00001/00/090/1.png", "00001/00/090/1.jpg"],
)
def test_what_is_nearly_right_is_not_it(path: str) -> None:
    assert OumvlpRearranged.key(path) is None


def test_from_every_container(
    tmp_path: Path, pack: Any, frame: Callable[[str], bytes], divided: Any
) -> None:
    files = {
        f"{subject}/{sequence}/090/{i:04}.png": frame(".png")
        for subject in ("00001", "10307")
        for sequence in ("00", "01")
        for i in range(2)
    }
    pack(tmp_path, files)
    sequences, refusals, release, protocols = ingest("oumvlp", tmp_path, "published", workers=0)
    assert divided(sequences) == {
        "train": {("00001", "00", "090"), ("00001", "01", "090")},
        "test": {("10307", "00", "090"), ("10307", "01", "090")},
    }
    assert refusals.empty
    assert (release.layout, release.files_seen) == (OumvlpRearranged.name, 8)
    assert protocols[0].title == "OUMVLP"
