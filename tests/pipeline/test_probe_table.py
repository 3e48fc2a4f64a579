"""The table of probes comes back from its file, and says what it holds."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.distance_pass import Method
from pipeline.errors import PipelineError
from pipeline.estimates import figures
from pipeline.evaluation import evaluate
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.probe_table import PROBES, read_probes, write_probes
from tests.pipeline.walks import walks

CASIA_E = CasiaERelease(Path(), [], "release").protocols


def test_probes_come_back_from_their_file(tmp_path: Path) -> None:
    keys, embeddings = walks(("H-scene1-nm-1", "H-scene2-nm-1", "H-scene2-cl-1"))
    gone = (keys["subject"] == "00002") & (keys["sequence"] == "H-scene1-nm-1")
    keys, embeddings = keys[~gone].reset_index(drop=True), embeddings[~gone.to_numpy()]
    results = evaluate(keys, embeddings, CASIA_E, Method(shown=False), 5).results
    path = tmp_path / "probes.parquet"
    write_probes(path, [result.probes for result in results])
    content = path.read_bytes()
    back = read_probes(path)
    assert len(back) == 2
    for one, result in zip(back, results, strict=True):
        assert (one.protocol, one.views) == (result.protocol, result.views)
        assert one.gallery == result.probes.gallery
        assert one.gallery.entries == 36 - 3
        assert one.equal_error_rates == result.probes.equal_error_rates
        assert list(one.table["condition"].unique()) == ["NM", "CL"]
        for condition in ("NM", "CL"):
            found = {name: f.estimate() for name, f in figures(one, condition).items()}
            assert found == result.estimates[condition]
    write_probes(path, back)
    assert path.read_bytes() == content


def test_other_files_are_told_from_it(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"x\.parquet is missing"):
        read_probes(tmp_path / "x.parquet")
    other = PROBES.with_metadata({"gaitgl": "probes", "version": "0"})
    pq.write_table(other.empty_table(), tmp_path / "old.parquet")
    with pytest.raises(PipelineError, match="is not what this version reads"):
        read_probes(tmp_path / "old.parquet")
