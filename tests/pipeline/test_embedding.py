import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline import embedding
from pipeline.embedding import embed
from pipeline.errors import PipelineError
from pipeline.settings import Dataset
from pipeline.silhouette_store import Silhouettes, SilhouetteStore
from tests.child_processes import environment

Row = tuple[str, str, str, str, Silhouettes]
CPU = torch.device("cpu")

TOGETHER = """
import sys
from pathlib import Path
import numpy as np, torch
from gaitgl.model import GaitGL, GaitGLConfig
from pipeline import embedding
from pipeline.distributed import joined
from pipeline.silhouette_store import SilhouetteStore

store, folder = SilhouetteStore(Path(sys.argv[1])), Path(sys.argv[2])
torch.manual_seed(1)
model = GaitGL(GaitGLConfig(channels=(2, 2, 4, 4, 4, 6)))
embedding.FRAMES_PER_BATCH["cpu"] = 16
cpu = torch.device("cpu")
with joined(cpu) as world:
    for name in ("many", "one"):
        numbers = np.load(folder / f"{name}.npy")
        found = embedding.embed(model, store, numbers, "float32", cpu, world)
        np.save(folder / f"{name}-{world.rank}.npy", found)
"""


@pytest.fixture
def model() -> GaitGL:
    torch.manual_seed(1)
    return GaitGL(GaitGLConfig(channels=(2, 2, 4, 4, 4, 6)))


def one_by_one(model: GaitGL, store: SilhouetteStore, numbers: np.ndarray) -> np.ndarray:
    rows = []
    with torch.inference_mode():
        for number in numbers:
            frames = torch.from_numpy(store.read(int(number)).copy())[None, None]
            rows.append(model(frames.float() / 255)[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("frames_per_batch", [480, 16, 1])
def test_batches_of_equal_length_equal_one_by_one(
    model: GaitGL,
    stores: dict[Dataset, SilhouetteStore],
    monkeypatch: pytest.MonkeyPatch,
    frames_per_batch: int,
) -> None:
    monkeypatch.setitem(embedding.FRAMES_PER_BATCH, "cpu", frames_per_batch)
    store = stores["oumvlp"]
    numbers = np.flatnonzero(store.index["split"] == "test")[::-1][:15].copy()
    assert len(set(store.index["n_frames"].iloc[numbers])) > 1
    expected = one_by_one(model, store, numbers)
    got = embed(model, store, numbers, "float32", CPU)
    assert got.dtype == np.float32
    assert got.shape == (len(numbers), 6, 64)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_two_processes_give_the_bytes_of_one(
    model: GaitGL,
    stores: dict[Dataset, SilhouetteStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = stores["oumvlp"]
    numbers = {"many": np.arange(len(store.index))[::-1][:13].copy(), "one": np.array([2])}
    for name, chosen in numbers.items():
        np.save(tmp_path / f"{name}.npy", chosen)
    (tmp_path / "work.py").write_text(TOGETHER, encoding="utf-8")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    done = subprocess.run(
        [*torchrun, tmp_path / "work.py", store.folder, tmp_path],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("embedding: 13/13 sequences (100 %)") == 1  # the leader alone speaks

    monkeypatch.setitem(embedding.FRAMES_PER_BATCH, "cpu", 16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = {name: embed(model, store, n, "float32", CPU) for name, n in numbers.items()}
    finally:
        torch.set_num_threads(threads)
    for name, expected in alone.items():
        assert np.load(tmp_path / f"{name}-0.npy").tobytes() == expected.tobytes()
        assert np.load(tmp_path / f"{name}-1.npy").size == 0


def test_sequences_shorter_than_the_temporal_kernel_are_embedded(
    model: GaitGL,
    tmp_path: Path,
    write_store: Callable[[Path, list[Row]], SilhouetteStore],
    noise: Callable[[int, int], Silhouettes],
) -> None:
    lengths = [1, 3, 2, 1, 7]
    rows = [("1", f"{i:02}", "000", "test", noise(i, t)) for i, t in enumerate(lengths)]
    store = write_store(tmp_path, rows)
    numbers = np.arange(len(lengths))
    got = embed(model, store, numbers, "float32", CPU)
    expected = one_by_one(model, store, numbers)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_bfloat16_is_near_float32(model: GaitGL, stores: dict[Dataset, SilhouetteStore]) -> None:
    numbers = np.arange(4)
    exact = embed(model, stores["oumvlp"], numbers, "float32", CPU)
    got = embed(model, stores["oumvlp"], numbers, "bfloat16", CPU)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - exact).max() < 0.05 * np.abs(exact).max()


def test_embedding_leaves_training_mode(
    model: GaitGL, stores: dict[Dataset, SilhouetteStore]
) -> None:
    model.train()
    embed(model, stores["oumvlp"], np.arange(1), "float32", CPU)
    assert not model.training


def test_embeddings_that_are_not_finite_name_the_first_sequence(
    model: GaitGL, stores: dict[Dataset, SilhouetteStore]
) -> None:
    with torch.no_grad():
        model.first_conv.weight[0, 0, 0, 0, 0] = torch.nan
    store = stores["oumvlp"]
    with pytest.raises(PipelineError, match="2 of 2 embeddings are not finite") as raised:
        embed(model, store, np.array([5, 3]), "float32", CPU)
    assert str(store.index[["subject", "sequence", "view"]].iloc[5].tolist()) in str(raised.value)


def test_nothing_to_embed_is_an_error(
    model: GaitGL, stores: dict[Dataset, SilhouetteStore]
) -> None:
    with pytest.raises(PipelineError, match="no sequence to embed"):
        embed(model, stores["oumvlp"], np.array([], np.int64), "float32", CPU)


def test_memory_that_runs_out_names_the_sequences(
    model: GaitGL, stores: dict[Dataset, SilhouetteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(GaitGL, "forward", exhausted)
    with pytest.raises(PipelineError, match=r"out of memory while embedding a sequence of \d+ fr"):
        embed(model, stores["oumvlp"], np.arange(3), "float32", CPU)


def test_a_batch_that_does_not_fit_is_divided(
    model: GaitGL, stores: dict[Dataset, SilhouetteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, numbers = stores["oumvlp"], np.arange(len(stores["oumvlp"].index))
    expected = embed(model, store, numbers, "float32", CPU)
    forward, sizes = GaitGL.forward, []

    def small(self: GaitGL, silhouettes: torch.Tensor) -> torch.Tensor:
        sizes.append(len(silhouettes))
        if len(silhouettes) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, silhouettes)

    monkeypatch.setattr(GaitGL, "forward", small)
    got = embed(model, store, numbers, "float32", CPU)
    assert max(sizes) > 2  # some were divided more than once
    np.testing.assert_allclose(got, expected, atol=1e-6)
