import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import PipelineError
from pipeline.layouts.casia_b import CasiaB
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.hid import Hid
from pipeline.protocols import FILE, Protocol, named, read_protocol, write_protocol


def test_rows_compared_are_gallery_and_probes_of_the_views_that_count() -> None:
    sequences = pd.Series(["H-scene1-nm-1", "L-scene3_s-cl-2", "H-scene1-cl-1", "H-scene2-nm-1"])
    views = pd.Series(["090", "000", "090", "270"])
    compared = CasiaERelease.protocol.compares(sequences, views)
    assert compared.tolist() == [True, True, False, False]


def test_a_star_stands_for_all_that_begin_so() -> None:
    sequences = ["gallery-b", "gallery-a", "gallery-a", "gallery", "probe", "probe-2", "a*b"]
    assert named(["gallery-*", "probe", "absent"], sequences) == ["gallery-a", "gallery-b", "probe"]
    assert named(["*"], sequences) == sorted(set(sequences))
    assert named(["a*b", "gall*y"], sequences) == ["a*b"]  # only at the end
    assert named([], sequences) == []
    rows = pd.Series(["gallery-x", "train-x", "probe"])
    compared = Hid.protocol.compares(rows, pd.Series(["any"] * 3))
    assert compared.tolist() == [True, False, True]


@pytest.mark.parametrize("protocol", [CasiaERelease.protocol, CasiaB.protocol, Hid.protocol])
def test_a_protocol_comes_back_from_its_file(tmp_path: Path, protocol: Protocol) -> None:
    write_protocol(tmp_path, protocol)
    back = read_protocol(tmp_path)
    assert back == protocol
    assert list(back.probes) == list(protocol.probes)  # tables come in this order
    content = (tmp_path / FILE).read_bytes()
    write_protocol(tmp_path, back)
    assert (tmp_path / FILE).read_bytes() == content


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with pytest.raises(PipelineError, match=r"protocol\.json is missing: `dvc repro` makes it"):
        read_protocol(tmp_path)
    write_protocol(tmp_path, CasiaB.protocol)
    tree = json.loads(path.read_text(encoding="utf-8"))
    for other in (json.dumps({**tree, "version": "7"}), "[1, 2]", "{}"):
        path.write_text(other)
        with pytest.raises(PipelineError, match="expected a protocol of version 1, got"):
            read_protocol(tmp_path)
    del tree["gallery"]
    for broken in (json.dumps(tree), "{"):
        path.write_text(broken)
        with pytest.raises(PipelineError, match=r"protocol\.json is not a readable protocol"):
            read_protocol(tmp_path)
