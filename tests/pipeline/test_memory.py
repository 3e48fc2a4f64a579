import ctypes
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks.fresh_process import in_fresh_process
from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.memory import advice, is_exhausted, kept_bytes, memory_of_each, shortage
from pipeline.settings import Pretrain, Settings
from tests.child_processes import environment
from tests.small_project import ROOT

CONFIG = GaitGLConfig(channels=(8, 16, 32, 32, 32, 32))
GIB = 2**30
M_MMAP_THRESHOLD = -3
"""Of glibc's mallopt: larger blocks come from the system one by one, and go back when freed."""


@pytest.fixture
def training() -> Pretrain:
    section = Settings.load(ROOT / "params.yaml").pretrain
    return section.model_copy(
        update={
            "subjects_per_batch": 32,
            "sequences_per_subject": 8,
            "clip_frames": 30,
            "precision": "float32",
        }
    )


def held_after_forward(clips: int, frames: int) -> int:
    """Bytes of address space that a forward pass has added and not given back.

    Not of resident memory: a busy kernel takes back what nobody has touched for a while. And glibc
    is told to give back what is freed, else the pass may find room that was there before.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    model = GaitGL(CONFIG)
    silhouettes = torch.zeros(clips, 1, frames, 64, 44)
    model(silhouettes[:1])  # the libraries' own buffers come with the first call
    process = psutil.Process()
    before = process.memory_info().vms
    embeddings = model(silhouettes)  # while it lives, so does all that its backward pass needs
    held: int = process.memory_info().vms - before
    assert embeddings.requires_grad
    return held


def test_what_a_forward_pass_keeps_is_really_there() -> None:
    clips, frames = 12, 24
    expected = clips * kept_bytes(CONFIG, frames, "float32")
    assert expected > 80 * 2**20  # large against what else moves
    assert 0.8 * expected < in_fresh_process(held_after_forward, clips, frames) < 2.0 * expected


def test_it_grows_with_the_clip_and_shrinks_with_cheaper_arithmetic() -> None:
    whole = kept_bytes(CONFIG, 30, "float32")
    assert 1.9 * whole < kept_bytes(CONFIG, 60, "float32") < 2.1 * whole
    assert kept_bytes(CONFIG, 30, "bfloat16") < 0.7 * whole
    summed = GaitGLConfig(channels=CONFIG.channels, activation="sum")
    assert kept_bytes(summed, 30, "float32") < 0.8 * whole
    alone = GaitGLConfig(channels=CONFIG.channels, branches="global")
    assert kept_bytes(alone, 30, "float32") < 0.8 * whole
    pooled = GaitGLConfig(channels=CONFIG.channels, aggregation="max_pool")
    assert kept_bytes(pooled, 30, "float32") < whole


def test_a_batch_that_fits_is_no_problem(training: Pretrain) -> None:
    needed = 256 * kept_bytes(CONFIG, 30, "float32")
    assert shortage("pretrain", training, CONFIG, needed, 1) == ""
    assert "pretrain: a batch of 32 x 8" in shortage("pretrain", training, CONFIG, needed - 1, 1)
    assert shortage("pretrain", training, CONFIG, needed // 2, 2) == ""
    assert "among 2 processes" in shortage("pretrain", training, CONFIG, needed // 2 - 1, 2)


def test_the_advice_names_batch_clip_widths_and_a_batch_that_would_fit(training: Pretrain) -> None:
    text = advice("pretrain", training, CONFIG, 2 * GIB, 1)
    for part in (
        "32 x 8 sequences of 30 frames",
        "widths [8, 16, 32, 32, 32, 32] in float32",
        "there are 2 GiB",
        "pretrain.clip_frames: ",
        "pretrain.precision: bfloat16",
        "model.activation: sum",
    ):
        assert part in text
    subjects = int(text.partition("about ")[2].partition(" subjects")[0])
    assert 2 <= subjects < 32
    fitting = training.model_copy(update={"subjects_per_batch": subjects})
    assert shortage("pretrain", fitting, CONFIG, 2 * GIB, 1) == ""


def test_the_advice_does_not_name_what_is_done_already(training: Pretrain) -> None:
    lean = training.model_copy(update={"precision": "bfloat16"})
    config = GaitGLConfig(channels=CONFIG.channels, activation="sum")
    text = advice("pretrain", lean, config, 2**20, 1)
    assert "not even 2 subjects would fit" in text
    assert "precision" not in text
    assert "activation" not in text
    config = GaitGLConfig(channels=CONFIG.channels, branches="global")
    assert "activation" not in advice("pretrain", lean, config, 2**20, 1)


def test_where_the_batch_would_fit_something_else_holds_the_memory(training: Pretrain) -> None:
    text = advice("pretrain", training, CONFIG, 64 * GIB, 1)
    assert "something else holds most of it" in text
    assert "subjects_per_batch" not in text


def test_the_machine_has_some_memory() -> None:
    assert 2**28 < memory_of_each(torch.device("cpu")) < 2**50


OUT_OF_MEMORY = """
import resource, sys
import torch
from pipeline.memory import is_exhausted

torch.zeros(1)
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
try:
    torch.zeros(1 << 34)
except RuntimeError as error:
    sys.exit(0 if is_exhausted(error) else str(error))
sys.exit("16 GiB of zeros within 8")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own address space")
def test_memory_that_has_run_out_is_told_from_other_errors(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert is_exhausted(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_exhausted(RuntimeError("CUDA error: out of memory"))
    assert is_exhausted(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not is_exhausted(RuntimeError("shapes differ"))
