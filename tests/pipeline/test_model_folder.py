import json
import pickletools
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.checkpoints import save_checkpoint
from pipeline.errors import PipelineError
from pipeline.model_folder import open_model, read_network
from pipeline.pyfunc import Embedder
from tests.child_processes import environment

ROOT = Path(__file__).resolve().parents[2]

CLEAN_PROCESS = """
import json, sys
import numpy as np
import mlflow.pyfunc

folder, silhouettes = sys.argv[1:]
model = mlflow.pyfunc.load_model(folder)
assert sys.modules["gaitgl.model"].__file__.startswith(folder), "not the code of the model"
assert not [name for name in sys.modules if name.startswith(("pipeline", "stages"))]
example = model.input_example
assert model.predict(example).shape == (1, 5, 64)
with np.load(silhouettes) as batches:
    np.savez(folder + ".npz", **{name: model.predict(batches[name]) for name in batches})
try:
    model.predict(np.zeros((2, 64, 44), np.uint8))
except ValueError as error:
    print(error)
print(model.metadata.signature)
"""


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def is_pickle(content: bytes) -> bool:
    """Whether a file's beginning can be taken for a pickle, or for the zip around one."""
    if content.startswith(b"PK"):
        return True
    try:
        opcodes = [opcode.name for opcode, _, _ in pickletools.genops(content)]
    except ValueError:
        return False
    return opcodes[-1] == "STOP"


def test_a_pickle_would_be_found_out() -> None:
    import pickle

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert is_pickle(pickle.dumps({"a": [1, 2]}, protocol))


def test_nothing_in_the_folder_is_a_pickle(model_folder: Path) -> None:
    assert {path.suffix for path in files(model_folder)} <= {
        "",
        ".json",
        ".py",
        ".safetensors",
        ".txt",
        ".yaml",
    }
    assert not [path for path in files(model_folder) if is_pickle(path.read_bytes())]
    description = (model_folder / "MLmodel").read_text(encoding="utf-8")
    assert "pickle" not in description
    assert "python_model" not in description


def test_nothing_in_the_folder_names_a_place_on_this_machine(
    model_folder: Path, checkpoint: Path
) -> None:
    for path in files(model_folder):
        content = path.read_bytes()
        for place in (ROOT, Path.home(), checkpoint.parent, model_folder):
            assert str(place).encode() not in content, path


def test_requirements_are_pinned_and_name_what_its_code_imports(model_folder: Path) -> None:
    lines = (model_folder / "requirements.txt").read_text(encoding="utf-8").split()
    pins = dict(line.split("==") for line in lines)
    assert set(pins) == {"mlflow", "numpy", "safetensors", "torch"}
    for name, pin in pins.items():
        assert version(name).partition("+")[0] == pin


def test_a_clean_process_loads_it_from_anywhere_without_pickle(
    model_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere" / "model"
    shutil.copytree(model_folder, folder)
    random = np.random.default_rng(0)
    batches: dict[str, Any] = {}
    for n, t in ((1, 1), (2, 2), (3, 7), (1, 45)):
        grey = random.integers(0, 256, (n, t, 64, 44), np.uint8)
        batches[f"uint8_{n}_{t}"] = grey
        batches[f"float32_{n}_{t}"] = grey / np.float32(255)
        batches[f"float64_{n}_{t}"] = grey / 255
    np.savez(tmp_path / "silhouettes.npz", **batches)
    clean = environment(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false")
    del clean["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS, str(folder), str(tmp_path / "silhouettes.npz")],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "expected silhouettes [n, t, 64, 44]" in done.stdout
    assert "Tensor('uint8', (-1, -1, 64, 44))" in done.stdout
    assert "Tensor('float32', (-1, 5, 64))" in done.stdout
    embedder = Embedder(read_network(checkpoint))
    with np.load(f"{folder}.npz") as embeddings:
        assert set(embeddings) == set(batches)
        for name in batches:
            np.testing.assert_allclose(embeddings[name], embedder.predict(batches[name]), rtol=1e-5)


def test_opening_runs_nothing_that_came_with_the_folder(
    model_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    for path in folder.rglob("*.py"):
        path.write_text("raise SystemExit('a stranger was run')\n", encoding="utf-8")
    silhouettes = np.full((1, 4, 64, 44), 200, np.uint8)
    expected = Embedder(read_network(checkpoint)).predict(silhouettes)
    np.testing.assert_array_equal(open_model(folder).predict(silhouettes), expected)


def other_loader(tree: dict[str, Any]) -> None:
    tree["flavors"]["python_function"]["loader_module"] = "mlflow.pyfunc.model"


def other_place(tree: dict[str, Any]) -> None:
    tree["flavors"]["python_function"]["data"] = "../../elsewhere/checkpoint.safetensors"


def other_flavor(tree: dict[str, Any]) -> None:
    tree["flavors"] = {"sklearn": {"pickled_model": "model.pkl"}}


def no_flavor(tree: dict[str, Any]) -> None:
    del tree["flavors"]


@pytest.mark.parametrize("change", [other_loader, other_place, other_flavor, no_flavor])
def test_a_folder_that_is_no_model_of_ours_is_not_opened(
    model_folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    description = folder / "MLmodel"
    tree = yaml.safe_load(description.read_text(encoding="utf-8"))
    change(tree)
    description.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(PipelineError, match=r"MLmodel(:| describes no model)"):
        open_model(folder)


def test_a_checkpoint_that_asks_for_more_memory_than_there_is_is_not_built(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    network = GaitGL(GaitGLConfig(channels=(2, 2, 2, 2, 2, 2)))
    network.config = GaitGLConfig(channels=(10**7,) * 6)  # what the file says of itself
    save_checkpoint(path, network, {})
    with pytest.raises(PipelineError, match="do not fit this network"):
        read_network(path)


def test_a_folder_without_a_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="MLmodel describes no model"):
        open_model(tmp_path)
