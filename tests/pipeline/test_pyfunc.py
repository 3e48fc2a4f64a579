import ast
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline import pyfunc
from pipeline.model_folder import read_network
from pipeline.pyfunc import Embedder


@pytest.fixture(scope="module")
def network() -> GaitGL:
    torch.manual_seed(0)
    return GaitGL(GaitGLConfig(channels=(2, 3, 4, 4, 4, 5)))


@pytest.fixture(scope="module")
def embedder(network: GaitGL) -> Embedder:
    return Embedder(network)


def grey(n: int, t: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, t, 64, 44), np.uint8)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 3), t=st.integers(1, 9), seed=st.integers(0, 9))
def test_embeddings_are_the_networks_whatever_the_type(n: int, t: int, seed: int) -> None:
    torch.manual_seed(seed)
    network = GaitGL(GaitGLConfig(channels=(2, 2, 2, 2, 2, 2)))
    silhouettes = grey(n, t, seed)
    with torch.inference_mode():
        expected = network(torch.from_numpy(silhouettes)[:, None].float() / 255).numpy()
    embedder = Embedder(network)
    got = embedder.predict(silhouettes)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
    floats = silhouettes / np.float32(255)
    same: list[Any] = [silhouettes.tolist(), silhouettes.astype(np.int64), floats]
    same += [
        floats.astype(np.float64),
        np.asfortranarray(silhouettes),
        silhouettes[:, ::-1][:, ::-1],
    ]
    for other in same:
        np.testing.assert_array_equal(embedder.predict(other), got)


def test_a_batch_in_pieces_is_embedded_like_its_sequences(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    silhouettes = grey(5, 4)
    alone = np.concatenate([embedder.predict(one[None]) for one in silhouettes])
    for frames in (1, 8, 11, 1000):
        monkeypatch.setattr(pyfunc, "FRAMES_AT_ONCE", frames)
        np.testing.assert_allclose(embedder.predict(silhouettes), alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("silhouettes", "told"),
    [
        (grey(2, 3)[0], r"got shape \[3, 64, 44\]"),
        (grey(2, 3)[:, :, None], r"got shape \[2, 3, 1, 64, 44\]"),
        (np.zeros((1, 3, 64, 64), np.uint8), r"got shape \[1, 3, 64, 64\]"),
        (np.zeros((0, 3, 64, 44), np.uint8), "n and t at least 1"),
        (np.zeros((1, 0, 64, 44), np.uint8), "n and t at least 1"),
        (grey(1, 3) / 1.0, "floats from 0.0 to 255.0: grey levels are divided by 255"),
        (np.full((1, 3, 64, 44), np.nan), "floats from nan"),
        (np.full((1, 3, 64, 44), -0.5), "floats from -0.5"),
        (grey(1, 3).astype(np.int32) + 1, "integers from 1 to 256"),
        (grey(1, 3).astype(np.int8), "integers from -128"),
        (grey(1, 3) // 128, "integers 0 and 1 only: multiply a mask by 255"),
        (grey(1, 3) > 0, "got booleans: multiply a mask by 255"),
        (
            [grey(1, 3)[0].tolist(), grey(1, 2)[0].tolist()],
            "another length needs a call of its",
        ),
        ("silhouettes", "got str of <U11"),
        (None, "got NoneType of object"),
        ({"silhouettes": 1}, "got dict of object"),
    ],
)
def test_anything_else_is_refused_with_what_was_expected(
    embedder: Embedder, silhouettes: Any, told: str
) -> None:
    expected = r"expected silhouettes \[n, t, 64, 44\], integers in 0..255 or floats in \[0, 1\]"
    with pytest.raises(ValueError, match=f"{expected}.*{told}"):
        embedder.predict(silhouettes)


def test_mirrored_and_read_only_arrays_will_do(embedder: Embedder) -> None:
    silhouettes = (grey(1, 3) / np.float32(255)).astype(np.float32)
    expected = embedder.predict(silhouettes[..., ::-1].copy())
    given = silhouettes[..., ::-1]
    given.flags.writeable = False
    with warnings.catch_warnings(action="error"):
        np.testing.assert_array_equal(embedder.predict(given), expected)


def test_a_checkpoint_is_loaded_as_the_pipeline_loads_it(checkpoint: Path) -> None:
    expected = Embedder(read_network(checkpoint)).predict(grey(1, 5))
    np.testing.assert_array_equal(
        pyfunc._load_pyfunc(str(checkpoint)).predict(grey(1, 5)), expected
    )


def test_of_this_project_it_imports_gaitgl_alone() -> None:
    tree = ast.parse(Path(pyfunc.__file__).read_text(encoding="utf-8"))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [
        a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
    ]
    tops = {str(module).partition(".")[0] for module in modules}
    assert tops == {"gaitgl", "json", "numpy", "safetensors", "threading", "torch", "typing"}
