"""python -m stages.compare as a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

from pipeline.comparison import PLACE
from pipeline.distance_pass import Method
from pipeline.evaluation import evaluate
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.probe_table import write_probes
from tests.pipeline.walks import walks


def test_two_reports_are_compared_or_refused(tmp_path: Path) -> None:
    for name, subjects in (("a", 12), ("b", 12), ("c", 11)):
        keys, embeddings = walks(("00", "01"), subjects, noise=0.5 if name == "b" else 1.5)
        made = evaluate(keys, embeddings, OumvlpRelease.protocols, Method(shown=False), 5)
        (tmp_path / name / PLACE).parent.mkdir(parents=True)
        write_probes(tmp_path / name / PLACE, [result.probes for result in made.results])

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "stages.compare", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    a, b, c = (str(tmp_path / name) for name in "abc")
    done = run(a, b, "--json")
    assert done.returncode == 0, done.stderr
    changes = json.loads(done.stdout)
    (rank1,) = (x for x in changes if (x["protocol"], x["figure"]) == ("view_pairs", "rank1"))
    assert rank1["verdict"] == "more than other subjects explain"
    assert rank1["low"] < rank1["difference"] < rank1["high"]
    done = run(a, c)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "3 of 36 probes are in A alone, not in B" in done.stderr
    assert "Traceback" not in done.stderr
