"""The network behind MLflow's ``predict``: silhouettes in, embeddings out.

A copy of this file goes into every model that is logged, as the top-level module ``gaitgl_pyfunc``
beside the package ``gaitgl``, and is all of this project that is there: it imports nothing else of
it. ``pipeline.model_folder`` writes such models, and opens them without running a stranger's copy.
"""

import json
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from gaitgl.model import GaitGL, GaitGLConfig

WIDTH = 44

FRAMES_AT_ONCE = 480
"""A larger batch is embedded in pieces of about so many frames: it bounds the memory."""


class Embedder:
    """A trained network, on the GPU where there is one. It computes in float32.

    That is what every machine has and what ONNX computes in; embeddings that the pipeline made in
    bfloat16 differ from these by its rounding.
    """

    def __init__(self, model: GaitGL) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).eval()
        self._alone = threading.Lock()  # MLflow's server has many threads, cuDNN one set of flags

    def predict(self, silhouettes: Any) -> npt.NDArray[np.float32]:
        """Embeddings float32 [n, c, strips] of sequences that are equally long.

        Args:
            silhouettes: [n, t, height, 44] with n, t >= 1, as an array or as nested lists: integers
                are grey levels in 0..255, floats lie in [0, 1].

        Raises:
            ValueError: says what was expected and what came.
        """
        x = _checked(silhouettes, self._model.config.height)
        pieces = np.array_split(x, -(-x.shape[0] * x.shape[1] // FRAMES_AT_ONCE))
        return np.concatenate([self._embed(piece) for piece in pieces if len(piece)])

    def _embed(self, silhouettes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        x = torch.from_numpy(silhouettes).to(self._device)[:, None]  # [n, 1, t, h, w]
        with (
            self._alone,
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),  # float32 means float32
        ):
            embeddings: npt.NDArray[np.float32] = self._model(x).cpu().numpy()
        return embeddings  # [n, c, strips]


def _checked(silhouettes: Any, height: int) -> npt.NDArray[np.float32]:
    """The silhouettes as float32 in [0, 1], [n, t, height, WIDTH]."""
    expected = (
        f"expected silhouettes [n, t, {height}, {WIDTH}], integers in 0..255 or floats in [0, 1]"
    )
    try:
        x = np.asarray(silhouettes)
    except ValueError:  # lists that are not equally long
        raise ValueError(
            f"{expected}; got lists that differ in length: a sequence of another length needs a "
            "call of its own"
        ) from None
    if x.dtype.kind == "b":
        raise ValueError(f"{expected}; got booleans: multiply a mask by 255")
    if x.dtype.kind not in "iuf":
        raise ValueError(f"{expected}; got {type(silhouettes).__name__} of {x.dtype}")
    if x.ndim != 4 or x.shape[2:] != (height, WIDTH) or 0 in x.shape:
        raise ValueError(f"{expected}, n and t at least 1; got shape {list(x.shape)}")
    low, high = x.min(), x.max()
    if x.dtype.kind == "f":
        if not 0 <= low <= high <= 1:  # NaN, too
            raise ValueError(
                f"{expected}; got floats from {low} to {high}: grey levels are divided by 255"
            )
        return np.array(x, np.float32, order="C")  # the network's own, whatever was given
    if not 0 <= low <= high <= 255:
        raise ValueError(f"{expected}; got integers from {low} to {high}")
    if high == 1:
        raise ValueError(f"{expected}; got integers 0 and 1 only: multiply a mask by 255")
    return np.asarray(x, np.float32) / np.float32(255)


def _load_pyfunc(path: str) -> Embedder:
    """What MLflow calls, with the path of the model's checkpoint.safetensors."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["gaitgl"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = GaitGL(GaitGLConfig(**header["architecture"]))
    model.load_state_dict(weights)
    return Embedder(model)
