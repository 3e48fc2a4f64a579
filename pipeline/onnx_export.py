"""The network of a checkpoint as ONNX: ``python -m pipeline.onnx_export [checkpoint] [file.onnx]``.

Without arguments the fine-tuned network goes to exports/finetune.onnx. It takes ``silhouettes``,
float32 [n, t, 64, 44] in [0, 1] with any n and t from 1, and gives ``embeddings``, float32
[n, c, strips].
"""

import argparse
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gaitgl.model import GaitGL
from pipeline.errors import PipelineError, run_stage
from pipeline.files import new_file
from pipeline.model_folder import read_network
from pipeline.pyfunc import WIDTH, Embedder

CHECKPOINT = Path("models/finetune/checkpoint.safetensors")
FOLDER = Path("exports")
TOLERANCE = 1e-4
"""How far the file's embeddings may be from PyTorch's, as a share of the largest value."""
TRIED = ((1, 1), (2, 2), (1, 3), (3, 10), (1, 45))
"""Sequences and frames of the batches with which a new file is compared to PyTorch."""


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("file", type=Path, nargs="?", help="exports/<the checkpoint's folder>.onnx")
    given = parser.parse_args()
    checkpoint: Path = given.checkpoint
    target: Path = given.file or FOLDER / f"{checkpoint.parent.name}.onnx"
    if target.is_dir():
        raise PipelineError(
            f"{target} is a folder: name the file to be written, exports/x.onnx say"
        )
    network = read_network(checkpoint)
    with new_file(target) as beside:
        export(network, beside)
        off = difference(network, beside)
        if not off <= TOLERANCE:
            raise PipelineError(
                f"the network of {checkpoint} computes something else in onnxruntime: embeddings "
                f"are off by {off:.1e} of the largest value, allowed are {TOLERANCE:.0e}. "
                f"{target} was not written."
            )
    print(f"{target}: in onnxruntime as in PyTorch, but for {off:.0e} of the largest value")


def export(network: GaitGL, path: Path) -> None:
    """Write a network as one file of ONNX whose batch and time axes are free."""
    _need("onnx", "onnxscript")
    example = torch.rand(2, 7, network.config.height, WIDTH)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # about torchvision's operators
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch's, about itself
        program = torch.onnx.export(
            _OfSequences(network).eval(),
            (example,),
            dynamo=True,
            input_names=["silhouettes"],
            output_names=["embeddings"],
            dynamic_shapes={"silhouettes": {0: "n", 1: "t"}},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    file = program.model_proto
    for part in (*file.graph.node, *file.graph.value_info, *file.graph.input, *file.graph.output):
        part.ClearField("metadata_props")  # where in which file, with this machine's paths
    path.write_bytes(file.SerializeToString())


def difference(network: GaitGL, path: Path) -> float:
    """How far a file's embeddings in onnxruntime are from PyTorch's, as a share of the largest.

    The largest difference over batches of noise with the sizes of ``TRIED``.
    """
    _need("onnxruntime")
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    embedder = Embedder(network)
    random = np.random.default_rng(0)
    off = []
    for n, t in TRIED:
        silhouettes = random.random((n, t, network.config.height, WIDTH), np.float32)
        expected = embedder.predict(silhouettes)
        (got,) = session.run(["embeddings"], {"silhouettes": silhouettes})
        off.append(np.abs(got - expected).max() / np.abs(expected).max())
    return float(np.max(off))


class _OfSequences(nn.Module):
    """The network with the input of ``Embedder.predict``: without the axis of one channel."""

    def __init__(self, network: GaitGL) -> None:
        super().__init__()
        self.network = network

    def forward(self, silhouettes: Tensor) -> Tensor:
        embeddings: Tensor = self.network(silhouettes[:, None])  # [n, 1, t, h, w]
        return embeddings


def _need(*packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise PipelineError(f"{' and '.join(missing)} missing: make setup installs them")


if __name__ == "__main__":
    run_stage(main)
