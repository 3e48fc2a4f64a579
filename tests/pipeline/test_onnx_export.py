import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline import onnx_export
from pipeline.checkpoints import save_checkpoint
from pipeline.errors import PipelineError
from pipeline.pyfunc import Embedder

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

ROOT = Path(__file__).resolve().parents[2]


CHANNELS = (2, 3, 4, 4, 4, 5)
DEMO = GaitGLConfig(CHANNELS, activation="sum")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[GaitGL, Path]:
    """A network and its file; an export takes ten seconds."""
    return exported_to(tmp_path_factory.mktemp("onnx"), DEMO)


def exported_to(folder: Path, config: GaitGLConfig) -> tuple[GaitGL, Path]:
    torch.manual_seed(0)
    network = GaitGL(config)
    onnx_export.export(network, folder / "network.onnx")
    return network, folder / "network.onnx"


def check_any_length_and_batch(network: GaitGL, path: Path) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    # 1 and 2 frames are repeated; 3 to 6 are one or two steps of the temporal aggregation
    for n, t in ((1, 1), (2, 1), (1, 2), (3, 2), (2, 3), (1, 4), (1, 5), (2, 6), (7, 10), (1, 64)):
        silhouettes = random.integers(0, 256, (n, t, 64, 44)).astype(np.float32) / 255
        (got,) = session.run(None, {"silhouettes": silhouettes})
        expected = Embedder(network).predict(silhouettes)
        assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max(), (n, t)


def test_onnxruntime_computes_the_same_for_any_length_and_batch(
    exported: tuple[GaitGL, Path],
) -> None:
    check_any_length_and_batch(*exported)


@pytest.mark.soak
@pytest.mark.parametrize(
    "config",
    [GaitGLConfig(CHANNELS), GaitGLConfig(CHANNELS, spatial_pooling="max_mean", parts=4)],
    ids=["branch", "max_mean"],
)
def test_so_it_does_for_other_architectures(tmp_path: Path, config: GaitGLConfig) -> None:
    check_any_length_and_batch(*exported_to(tmp_path, config))


def test_the_file_says_what_it_takes_and_gives_and_not_where_it_was_made(
    exported: tuple[GaitGL, Path],
) -> None:
    path = exported[1]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.shape) == ("silhouettes", ["n", "t", 64, 44])
    assert (given.name, given.shape) == ("embeddings", ["n", 5, 64])
    assert taken.type == given.type == "tensor(float)"
    for place in (ROOT, Path.home()):
        assert str(place).encode() not in path.read_bytes()


@pytest.mark.parametrize("same", [True, False])
def test_a_file_that_computes_something_else_is_not_written(
    exported: tuple[GaitGL, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """The file of another network stands in for an export that went wrong."""
    network, path = exported
    checkpoint = tmp_path / "finetune" / "checkpoint.safetensors"
    save_checkpoint(checkpoint, network if same else GaitGL(DEMO), {})
    monkeypatch.setattr(onnx_export, "export", lambda _, target: shutil.copy(path, target))
    monkeypatch.setattr(onnx_export, "FOLDER", tmp_path / "exports")
    monkeypatch.setattr(sys, "argv", ["onnx_export", str(checkpoint)])
    if same:
        onnx_export.main()
    else:
        with pytest.raises(PipelineError, match="computes something else in onnxruntime"):
            onnx_export.main()
    written = [file.name for file in (tmp_path / "exports").iterdir()]
    assert written == (["finetune.onnx"] if same else [])


def test_a_folder_in_the_place_of_the_file_is_told_before_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["onnx_export", "absent.safetensors", str(tmp_path)])
    with pytest.raises(PipelineError, match=f"{tmp_path} is a folder: name the file"):
        onnx_export.main()


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(PipelineError, match="onnx and onnxscript missing: make setup"):
        onnx_export.export(GaitGL(GaitGLConfig((2, 2, 2, 2, 2, 2))), tmp_path / "x.onnx")
