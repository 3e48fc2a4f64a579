import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import PipelineError
from pipeline.layouts.casia_b import CasiaB
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.generic import Generic
from pipeline.layouts.hid import Hid
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.protocols import (
    PROTOCOL_FILE,
    Protocol,
    compared_by_any,
    in_view_pairs_and_all_views,
    named,
    read_protocols,
    write_protocols,
)

CASIA_E = CasiaERelease(Path(), [], "release").protocols
OWN = Generic(Path(), [(s, q, v) for s in "ab" for q in ("1", "2") for v in "xy"], "").protocols


def test_rows_compared_are_gallery_and_probes_of_the_views_that_count() -> None:
    sequences = pd.Series(["H-scene1-nm-1", "L-scene3_s-cl-2", "H-scene1-cl-1", "H-scene2-nm-1"])
    views = pd.Series(["090", "000", "090", "270"])
    for protocol in CASIA_E:
        assert protocol.compares(sequences, views).tolist() == [True, True, False, False]


def test_a_row_counts_that_one_of_several_protocols_compares() -> None:
    sequences, views = pd.Series(["a", "b", "c", "d", "a"]), pd.Series(["1", "1", "1", "1", "2"])
    one = in_view_pairs_and_all_views("", ("a",), {"all": ("b",)}, "", "", excluded_views=("2",))
    other = in_view_pairs_and_all_views("", ("b",), {"all": ("c",)}, "", "")
    assert compared_by_any([one[0], other[0]], sequences, views).tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert not compared_by_any([], sequences, views).any()


def test_a_star_stands_for_all_that_begin_so() -> None:
    sequences = ["gallery-b", "gallery-a", "gallery-a", "gallery", "probe", "probe-2", "a*b"]
    assert named(["gallery-*", "probe", "absent"], sequences) == ["gallery-a", "gallery-b", "probe"]
    assert named(["*"], sequences) == sorted(set(sequences))
    assert named(["a*b", "gall*y"], sequences) == ["a*b"]  # only at the end
    assert named([], sequences) == []
    rows = pd.Series(["gallery-x", "train-x", "probe"])
    compared = Hid.protocols[0].compares(rows, pd.Series(["any"] * 3))
    assert compared.tolist() == [True, False, True]


@pytest.mark.parametrize(
    "protocols", [OumvlpRelease.protocols, CASIA_E, CasiaB.protocols, Hid.protocols, OWN]
)
def test_protocols_come_back_from_their_file(
    tmp_path: Path, protocols: tuple[Protocol, ...]
) -> None:
    write_protocols(tmp_path, protocols)
    back = read_protocols(tmp_path)
    assert back == protocols
    for one, other in zip(back, protocols, strict=True):
        assert list(one.probes) == list(other.probes)  # tables come in this order
    content = (tmp_path / PROTOCOL_FILE).read_bytes()
    write_protocols(tmp_path, back)
    assert (tmp_path / PROTOCOL_FILE).read_bytes() == content


@pytest.mark.parametrize("protocols", [OumvlpRelease.protocols, CASIA_E, CasiaB.protocols, OWN])
def test_labelled_data_is_compared_in_view_pairs_first_and_then_in_one_gallery(
    protocols: tuple[Protocol, ...],
) -> None:
    assert [protocol.name for protocol in protocols] == ["view_pairs", "all_views"]
    assert [protocol.gallery_views for protocol in protocols] == ["each", "all"]
    pairs, every = protocols
    assert (pairs.gallery, pairs.probes, pairs.views) == (every.gallery, every.probes, every.views)
    assert "Pairs of identical views are excluded" in " ".join(pairs.rules())
    assert "own subject at the probe's own view is excluded" in " ".join(every.rules())
    for protocol in protocols:
        said = " ".join(protocol.rules())
        assert f"probes ({protocol.probe_words})" in said
        assert "counts as a miss" in said


def test_what_is_excluded_is_said() -> None:
    for protocol in CASIA_E:
        rules = protocol.rules()
        assert "Excluded views: 270." in rules
        assert "Neither gallery nor probe: scene1 with bag or coat, walks past the second." in rules
    assert not [rule for rule in OumvlpRelease.protocols[0].rules() if "Excluded views" in rule]
    (rule,) = Hid.protocols[0].rules()
    assert rule.startswith("Each probe gets the subject of the nearest of all gallery entries")


@pytest.mark.parametrize(
    ("split", "title"),
    [("release", "release split 500/114/400"), ("opengait", "OpenGait's split 200/814")],
)
def test_the_title_tells_the_split(split: str, title: str) -> None:
    for protocol in CasiaERelease(Path(), [], split).protocols:
        assert protocol.title == f"CASIA-E, {title}"


def test_views_that_a_protocol_does_not_know() -> None:
    keys = pd.DataFrame(
        [("00", "000"), ("01", "100"), ("02", "101"), ("00", "270")], columns=["sequence", "view"]
    )
    pairs = OumvlpRelease.protocols[0]
    assert len(pairs.views) == 14
    assert pairs.unknown_views(keys).to_numpy().tolist() == [["01", "100"]]  # 02 is not compared
    assert OWN[0].unknown_views(keys).empty  # own data may have any


def test_data_seen_from_one_view_has_no_pairs_of_different_views_to_pool() -> None:
    keys = [(subject, sequence, "any") for subject in "abcd" for sequence in ("1", "2")]
    assert [p.name for p in Generic(Path(), keys, "").protocols] == ["view_pairs"]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / PROTOCOL_FILE
    with pytest.raises(PipelineError, match=r"protocol\.json is missing: `dvc repro` makes it"):
        read_protocols(tmp_path)
    write_protocols(tmp_path, CasiaB.protocols)
    tree = json.loads(path.read_text(encoding="utf-8"))
    for other in (json.dumps({**tree, "version": "1"}), "[1, 2]", "{}"):
        path.write_text(other)
        with pytest.raises(PipelineError, match="expected protocols of version 2, got"):
            read_protocols(tmp_path)
    nameless = [{k: v for k, v in tree["protocols"][0].items() if k != "name"}]
    for broken in (
        json.dumps({**tree, "protocols": nameless}),
        json.dumps({**tree, "protocols": []}),
        json.dumps({"version": "2"}),
        "{",
    ):
        path.write_text(broken)
        with pytest.raises(PipelineError, match=r"protocol\.json does not hold readable protocols"):
            read_protocols(tmp_path)
