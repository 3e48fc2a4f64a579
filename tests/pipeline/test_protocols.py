import pandas as pd

from pipeline.protocols import PROTOCOLS
from pipeline.releases import LAYOUTS
from pipeline.settings import DATASETS


def test_oumvlp_compares_sequence_00_with_01() -> None:
    protocol = PROTOCOLS["oumvlp"]
    assert protocol.gallery == ("01",)
    assert protocol.all_probes == ("00",)
    assert protocol.excluded_views == ()


def test_casia_e_follows_opengait() -> None:
    protocol = PROTOCOLS["casia_e"]
    assert set(protocol.gallery) == {
        "H-scene1-nm-1",
        "H-scene1-nm-2",
        "L-scene1-nm-1",
        "L-scene1-nm-2",
    }
    assert list(protocol.probes) == ["NM", "BG", "CL"]
    for condition, sequences in protocol.probes.items():
        assert len(sequences) == len(set(sequences)) == 2 * 3 * 2
        assert {sequence.split("-")[2] for sequence in sequences} == {condition.lower()}
        assert {s.split("-")[1] for s in sequences} == {"scene2", "scene3", "scene3_s"}
    assert protocol.excluded_views == ("270",)


def test_every_dataset_has_a_protocol_and_layouts() -> None:
    assert set(PROTOCOLS) == set(LAYOUTS) == set(DATASETS)
    for protocol in PROTOCOLS.values():
        assert not set(protocol.gallery) & set(protocol.all_probes)


def test_rows_compared_are_gallery_and_probes_of_the_views_that_count() -> None:
    sequences = pd.Series(["H-scene1-nm-1", "L-scene3_s-cl-2", "H-scene1-cl-1", "H-scene2-nm-1"])
    views = pd.Series(["090", "000", "090", "270"])
    compared = PROTOCOLS["casia_e"].compares(sequences, views)
    assert compared.tolist() == [True, True, False, False]
