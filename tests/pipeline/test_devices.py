import subprocess
from pathlib import Path
from typing import NoReturn

import pynvml
import pytest
import torch

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.devices import (
    autocast,
    choose_device,
    gpu_out_of_reach,
    lacks_bfloat16,
    place,
    precision_here,
)
from pipeline.errors import PipelineError
from tests.child_processes import environment, python


def test_cpu_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_missing_gpu_names_the_setting() -> None:
    with pytest.raises(PipelineError, match=r"runtime\.device is cuda, but torch finds no GPU"):
        choose_device("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine whose GPU torch cannot use")
def test_a_gpu_that_torch_cannot_use_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_out_of_reach() == ""  # NVML finds no driver here
    for name, answer in (
        ("nvmlInit", None),
        ("nvmlDeviceGetHandleByIndex", 0),
        ("nvmlDeviceGetName", "NVIDIA H200"),
        ("nvmlSystemGetDriverVersion", "470.1"),
    ):
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)
    assert choose_device("auto") == torch.device("cpu")
    said = capsys.readouterr().err
    assert "warning: computing on the CPU: torch" in said
    assert "cannot use the NVIDIA H200 with driver 470.1" in said
    with pytest.raises(PipelineError, match=r"runtime\.device is cuda, but torch .* NVIDIA H200"):
        choose_device("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device("auto") == torch.device("cpu")
    assert capsys.readouterr().err == ""


def test_a_gpu_that_is_full_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", full)
    with pytest.raises(PipelineError, match=r"cannot compute on cuda: CUDA out of memory\..*free"):
        choose_device("cuda")


def test_float32_is_not_rounded_to_tf32() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    choose_device("cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_processes_of_torchruns_share_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_processes_without_a_gpu_get_the_cpu_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(PipelineError, match=r"runtime\.device is cuda, but torch finds no GPU"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_each_process_gets_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = torch.cuda.device_count()
    assert choose_device("cuda") == torch.device("cuda")
    for number in range(gpus):
        monkeypatch.setenv("LOCAL_RANK", str(number))
        assert choose_device("auto") == torch.device("cuda", number)
    monkeypatch.setenv("LOCAL_RANK", str(gpus))
    with pytest.raises(PipelineError, match=rf"Lower runtime\.processes to {gpus}, or set"):
        choose_device("auto")


def test_precision_chooses_the_arithmetic() -> None:
    linear = torch.nn.Linear(2, 2)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(torch.device("cpu"), precision):
            assert linear(torch.zeros(1, 2)).dtype == dtype


LACKS = bool(lacks_bfloat16(torch.device("cpu")))


@pytest.mark.skipif(LACKS, reason="this CPU has no fast bfloat16")
def test_a_cpu_with_bfloat16_takes_what_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert precision_here(torch.device("cpu"), "bfloat16") == "bfloat16"
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not LACKS, reason="this CPU has fast bfloat16")
def test_a_cpu_without_bfloat16_embeds_in_float32_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert precision_here(torch.device("cpu"), "bfloat16") == "float32"
    assert "float32 instead of bfloat16: this CPU (" in capsys.readouterr().err


def test_float32_is_had_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert precision_here(torch.device("cpu"), "float32") == "float32"
    assert capsys.readouterr().err == ""


def test_placing_a_model_changes_its_layout_and_not_its_results() -> None:
    torch.manual_seed(0)
    model = GaitGL(GaitGLConfig(channels=(2, 2, 4, 4, 4, 4))).eval()
    silhouettes = torch.rand(2, 1, 6, 64, 44)
    with torch.inference_mode():
        before = model(silhouettes)
        placed = place(model, torch.device("cpu"))
        torch.testing.assert_close(placed(silhouettes), before, rtol=1e-5, atol=1e-6)
    weight = placed.glconv_a1.global_conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_missing_compiler_is_told(tmp_path: Path) -> None:
    script = (
        "import torch; from pipeline.devices import compiler_problem; "
        "print(compiler_problem(torch.device('cpu')))"
    )
    done = subprocess.run(
        python(script),
        env=environment(
            PATH=str(tmp_path), CXX=str(tmp_path / "g++"), TORCHINDUCTOR_CACHE_DIR=str(tmp_path)
        ),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "No working C++ compiler found" in done.stdout
    assert len(done.stdout.splitlines()) == 1
