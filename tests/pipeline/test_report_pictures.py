from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from pipeline.distance_pass import Method
from pipeline.embedding_map import embedding_map
from pipeline.errors import PipelineError
from pipeline.evaluation import ProtocolResult, evaluate
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.report_pictures import confusions, report_figures
from pipeline.silhouette_store import Silhouettes, SilhouetteStore
from pipeline.tables import KEY
from tests.pipeline.walks import walks


class Case(NamedTuple):
    result: ProtocolResult
    store: SilhouetteStore


@pytest.fixture(scope="module")
def case(
    tmp_path_factory: pytest.TempPathFactory,
    write_store: Callable[..., SilhouetteStore],
    noise: Callable[[int, int], Silhouettes],
) -> Case:
    """View pairs of subjects that are hard to tell apart, and their silhouettes."""
    keys, embeddings = walks(("00", "01"), noise=2)
    protocol = OumvlpRelease.protocols[0]
    result = evaluate(keys, embeddings, [protocol], Method(shown=False), 20).results[0]
    rows = [
        (*key, "test", noise(i, 3 + i % 18))
        for i, key in enumerate(keys[KEY].itertuples(index=False, name=None))
    ]
    return Case(result, write_store(tmp_path_factory.mktemp("silhouettes"), rows))


def test_confusions_show_the_probe_the_wrong_and_the_right_entry(case: Case) -> None:
    worst = case.result.confusions
    shown = confusions(case.result, case.store)
    assert len(shown) == len(worst) > 5
    for confusion, row in zip(shown, worst.to_dict("records"), strict=True):
        assert [word for word, _, _ in confusion.strips] == ["Probe", "Taken for", "Right"]
        for who, (_, name, strip) in zip(
            ("probe", "wrong", "right"), confusion.strips, strict=True
        ):
            key = [row[f"{who}_{part}"] for part in KEY]
            assert name.startswith("subject {}, sequence {}, view {}".format(*key))
            index = case.store.index
            (number,) = index.index[(index[KEY] == key).all(axis=1)]
            pixels = cv2.imdecode(np.frombuffer(strip.png, np.uint8), cv2.IMREAD_GRAYSCALE)
            assert pixels is not None
            np.testing.assert_array_equal(pixels[:, :44], case.store.read(number)[0])
            np.testing.assert_array_equal(pixels[:, -44:], case.store.read(number)[-1])
        assert confusion.strips[1][1].endswith(f"; distance {row['wrong_distance']:.4g}")
        assert confusion.strips[2][1].endswith(f"; distance {row['right_distance']:.4g}")


def test_silhouettes_that_are_not_there_are_told(case: Case) -> None:
    class Less(SilhouetteStore):
        def __init__(self) -> None:
            super().__init__(case.store.folder)
            self.index = self.index[self.index["subject"] == "00002"]

    with pytest.raises(PipelineError, match=r"lacks the silhouettes of .*, which has an embedding"):
        confusions(case.result, Less())


def test_words_say_what_a_figure_shows(case: Case) -> None:
    keys, embeddings = walks(("00", "01"))
    plane = embedding_map(keys, embeddings, case.result.protocol)
    drawn = report_figures([case.result], [], plane)
    assert set(drawn) == {"rank1_all", "cmc", "embeddings"}
    table, views = case.result.rank1["all"], case.result.views
    lowest, highest = (np.unravel_index(f(table), table.shape) for f in (np.argmin, np.argmax))
    for place in (lowest, highest):
        probe, gallery = (views[i] for i in place)
        words = f"{table[place]:.0f} % (probe {probe}, gallery {gallery})"
        assert words in drawn["rank1_all"].words
    first = case.result.cmc["percent"].iloc[0]
    assert f"probes identified: {first:.1f} % within rank 1" in drawn["cmc"].words
    assert "principal components, PCA" in drawn["embeddings"].words
