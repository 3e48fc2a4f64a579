"""A checkpoint as a folder that MLflow can load anywhere, and how to open one from a stranger.

    MLmodel                         what it is: loader, signature, contract
    data/checkpoint.safetensors     the checkpoint, as training wrote it
    code/gaitgl_pyfunc.py           a copy of pipeline/pyfunc.py, which loads it
    code/gaitgl/                    the network's code at the time of training
    requirements.txt, conda.yaml, python_env.yaml, input_example.json ...

Nothing in it is a pickle. But ``mlflow.pyfunc.load_model`` runs the code that a folder brings, and
anybody may have written that; ``open_model`` reads the weights with this project's own code.
"""

import logging
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml

from gaitgl.model import GaitGL
from pipeline.checkpoints import check_weights, load_weights, read_checkpoint
from pipeline.errors import PipelineError
from pipeline.mlflow_import import import_mlflow
from pipeline.pyfunc import WIDTH, Embedder

LOADER = "gaitgl_pyfunc"
CHECKPOINT = Path("data", "checkpoint.safetensors")
ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ("mlflow", "numpy", "safetensors", "torch")
"""What the code in the folder imports, and MLflow; the installed releases are named."""


def write_model(folder: Path, checkpoint: Path) -> None:
    """Make ``folder``, a model in MLflow's format, of a checkpoint; it needs no tracking server."""
    import_mlflow()
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # it logs each check
    network, info = read_network(checkpoint), read_checkpoint(checkpoint)[2]
    example = _example(network.config.height)
    embeddings = Embedder(network).predict(example)
    signature = ModelSignature(
        Schema([TensorSpec(example.dtype, (-1, -1, *example.shape[2:]))]),
        Schema([TensorSpec(embeddings.dtype, (-1, *embeddings.shape[1:]))]),
    )
    # The schema of a tensor names one type, and MLflow would refuse all others. With this flag it
    # leaves the checks to the model, which takes integers and floats.
    signature._is_signature_from_type_hint = True
    with tempfile.TemporaryDirectory() as name:
        parts = Path(name)
        package, loader, data = parts / "gaitgl", parts / f"{LOADER}.py", parts / CHECKPOINT.name
        shutil.copytree(ROOT / "gaitgl", package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pipeline" / "pyfunc.py", loader)
        shutil.copy(checkpoint, data)
        mlflow.pyfunc.save_model(
            folder,
            loader_module=LOADER,
            data_path=str(data),
            code_paths=[str(loader), str(package)],
            pip_requirements=[f"{name}=={_release(name)}" for name in REQUIREMENTS],
            signature=signature,
            input_example=example,
            metadata={name: info[name] for name in ("stage", "dataset", "fingerprint")},
        )


def open_model(folder: Path) -> Embedder:
    """The network of a model folder, wherever it comes from: nothing in the folder is run.

    PipelineError where the folder is no model of this project's.
    """
    description = folder / "MLmodel"
    try:
        tree: Any = yaml.safe_load(description.read_text(encoding="utf-8"))
        flavor = tree["flavors"]["python_function"]
        loader, data = flavor["loader_module"], flavor["data"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise PipelineError(f"{description} describes no model of MLflow's: {error!r}") from None
    if loader != LOADER or data != CHECKPOINT.as_posix():
        raise PipelineError(
            f"{description}: expected a model that {LOADER} loads from {CHECKPOINT}, got one that "
            f"{loader} loads from {data}. It is not opened: nobody knows what its code does."
        )
    return Embedder(read_network(folder / CHECKPOINT))


def read_network(checkpoint: Path) -> GaitGL:
    """A checkpoint's network with its weights, on the CPU."""
    config, weights, _ = read_checkpoint(checkpoint)
    with torch.device("meta"):  # first: a stranger's file may ask for more memory than there is
        check_weights(GaitGL(config), weights, checkpoint)
    network = GaitGL(config)
    load_weights(network, weights, checkpoint)
    return network


def _release(package: str) -> str:
    """The installed release, by the name under which package indices have it."""
    return version(package).partition("+")[0]  # 2.13.0+cpu is a build of 2.13.0


def _example(height: int) -> npt.NDArray[np.uint8]:
    """One sequence of four frames, uint8 [1, 4, height, WIDTH]: a bar that sways."""
    example = np.zeros((1, 4, height, WIDTH), np.uint8)
    for t in range(4):
        example[0, t, 4:-4, 16 + 2 * t : 24 + 2 * t] = 255
    return example
