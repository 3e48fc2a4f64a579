"""Files from others are data: a pickle that runs code, in every place where a file may come from
somebody else, is refused or read as the bytes that it is, and is never run."""

import ast
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import mlflow.pyfunc
import numpy as np
import pandas as pd
import py7zr
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mlflow.exceptions import MlflowException

from gaitgl.published import to_gaitgl
from pipeline.catalogue import REFUSALS, SEQUENCES, read_refusals, read_sequences
from pipeline.checkpoints import read_checkpoint
from pipeline.embedding_file import read_embeddings, write_embeddings
from pipeline.errors import PipelineError
from pipeline.ingestion import ingest
from pipeline.model_folder import open_model
from pipeline.normalizing import normalize
from pipeline.settings import Settings, read_yaml
from pipeline.silhouette_store import INDEX, SHARD, SilhouetteStore
from pipeline.tables import write_table
from pipeline.training_state import TrainingState

ROOT = Path(__file__).resolve().parent.parent


class Evil:
    """Whoever unpickles it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.canary), "w")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """The file that is not to be made."""
    return tmp_path / "canary"


@pytest.fixture
def evil(canary: Path) -> bytes:
    """A pickle that would make it, as is seen here."""
    content = pickle.dumps(Evil(canary), protocol=2)
    pickle.loads(content).close()  # noqa: S301
    canary.unlink()
    return content


@pytest.fixture(autouse=True)
def _never_run(canary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Every test here ends without the file."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not canary.exists(), "a pickle was run"


def zipped_by_torch(path: Path, evil: bytes) -> None:
    torch.save({"weight": Evil(path.parent / "canary")}, path)


def plain(path: Path, evil: bytes) -> None:
    path.write_bytes(evil)


@pytest.mark.parametrize("write", [plain, zipped_by_torch])
def test_checkpoint(tmp_path: Path, evil: bytes, write: Callable[[Path, bytes], None]) -> None:
    path = tmp_path / "checkpoint.safetensors"
    write(path, evil)
    with pytest.raises(PipelineError, match="not a readable safetensors file"):
        read_checkpoint(path)


@pytest.mark.parametrize("write", [plain, zipped_by_torch])
def test_state_of_a_training(
    tmp_path: Path, evil: bytes, write: Callable[[Path, bytes], None]
) -> None:
    state = TrainingState("pretrain", {"seed": 0})
    state.folder.mkdir(parents=True)
    write(tmp_path / "state", evil)
    shutil.copy(tmp_path / "state", state.folder / "step-000000005.safetensors")
    with pytest.raises(PipelineError, match="no state that is whole"):
        state.load()


@pytest.mark.parametrize("write", [plain, zipped_by_torch])
def test_published_weights(
    tmp_path: Path, evil: bytes, write: Callable[[Path, bytes], None]
) -> None:
    """As the docstring of ``to_gaitgl`` says to read them."""
    assert "torch.load(path, weights_only=True)" in (to_gaitgl.__doc__ or "")
    path = tmp_path / "GaitGL.pt"
    write(path, evil)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def with_pickled_type(schema: pa.Schema, evil: bytes) -> pa.Schema:
    """A schema whose first column claims to be of a Python type, pickled into its description.

    PyArrow used to unpickle those (CVE-2023-47248).
    """
    claim = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": evil,
    }
    fields = [schema.field(0).with_metadata(claim), *list(schema)[1:]]
    return pa.schema(fields, metadata=schema.metadata)


def empty(schema: pa.Schema) -> pd.DataFrame:
    return schema.empty_table().to_pandas()


@pytest.mark.parametrize(
    ("name", "schema", "read"),
    [
        ("sequences.parquet", SEQUENCES, read_sequences),
        ("refusals.parquet", REFUSALS, read_refusals),
        ("index.parquet", INDEX, SilhouetteStore),
    ],
)
def test_tables(
    tmp_path: Path,
    evil: bytes,
    name: str,
    schema: pa.Schema,
    read: Callable[[Path], object],
) -> None:
    path = tmp_path / name
    path.write_bytes(evil)
    with pytest.raises(PipelineError, match="not a readable table"):
        read(tmp_path)
    pq.write_table(with_pickled_type(schema, evil).empty_table(), path)
    read(tmp_path)  # its first column is the text that it is


def test_shard(tmp_path: Path, evil: bytes) -> None:
    row = ("oumvlp", "1", "00", "000", "test", 1, "shard.arrow", 0, 0)
    write_table(tmp_path / "index.parquet", pd.DataFrame([row], columns=INDEX.names), INDEX)
    shard = tmp_path / "shard.arrow"
    shard.write_bytes(evil)
    with pytest.raises(PipelineError, match="missing, cut short or damaged"):
        SilhouetteStore(tmp_path).read(0)
    schema = with_pickled_type(SHARD, evil)
    columns = [
        pa.array([value], f.type) for value, f in zip([*row[1:4], 1, evil], SHARD, strict=True)
    ]
    with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    with pytest.raises(PipelineError, match=r"damaged \(zstd: "):  # the pickle is no zstd
        SilhouetteStore(tmp_path).read(0)


def test_embeddings(tmp_path: Path, evil: bytes) -> None:
    path = tmp_path / "oumvlp.arrow"
    path.write_bytes(evil)
    with pytest.raises(PipelineError, match="not a readable Arrow file"):
        read_embeddings(path)
    keys = pd.DataFrame(
        [("oumvlp", "1", "00", "000")], columns=["dataset", "subject", "sequence", "view"]
    )
    write_embeddings(path, keys, np.zeros((1, 2, 3), np.float32), {})
    batch = pa.ipc.open_file(path.read_bytes()).get_batch(0)
    schema = with_pickled_type(batch.schema, evil)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(batch.columns, schema=schema))
    assert read_embeddings(path)[0]["dataset"].tolist() == ["oumvlp"]


def test_archives_and_their_frames(tmp_path: Path, evil: bytes) -> None:
    root = tmp_path / "release"
    root.mkdir()
    frame = np.zeros((360, 480), np.uint8)
    frame[40:330, 200:280] = 255
    picture = cv2.imencode(".png", frame)[1].tobytes()
    for sequence in ("00", "01"):
        with py7zr.SevenZipFile(root / f"Silhouette_000-{sequence}.7z", "w") as archive:
            for subject in ("00001", "00002"):
                for number, content in enumerate([picture, picture, picture, evil]):
                    name = f"Silhouette_000-{sequence}/{subject}/{number:04}.png"
                    archive.writestr(content, name)
    (root / "Silhouette_090-00.7z").write_bytes(evil)
    with pytest.raises(PipelineError, match=r"Silhouette_090-00\.7z: .*not a 7z file"):
        ingest("oumvlp", root, "release", workers=0)
    (root / "Silhouette_090-00.7z").unlink()
    catalogue = ingest("oumvlp", root, "release", workers=0)
    (tmp_path / "silhouettes").mkdir()
    normalize("oumvlp", root, catalogue.sequences, tmp_path / "silhouettes", 10_000, 3, workers=0)
    store = SilhouetteStore(tmp_path / "silhouettes")
    assert store.index["n_frames"].tolist() == [3, 3, 3, 3]
    assert len(read_refusals(tmp_path / "silhouettes")) == 4


def test_settings_and_descriptions(tmp_path: Path, canary: Path) -> None:
    """YAML can name what is to be called, too."""
    path = tmp_path / "params.yaml"
    path.write_text(f"seed: !!python/object/apply:builtins.open ['{canary}', 'w']\n", "utf-8")
    for read in (read_yaml, Settings.load):
        with pytest.raises(PipelineError, match="not readable YAML"):
            read(path)


def test_model_of_mlflows_with_a_pickle_inside(
    tmp_path: Path, evil: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "python_model.pkl").write_bytes(evil)
    flavor = {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"}
    tree = {"flavors": {"python_function": flavor}, "model_uuid": "0"}
    (folder / "MLmodel").write_text(yaml.safe_dump(tree), "utf-8")
    with pytest.raises(PipelineError, match="MLmodel"):
        open_model(folder)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with pytest.raises(MlflowException, match="pickle is disallowed"):
        mlflow.pyfunc.load_model(str(folder))


def test_model_that_claims_to_be_ours(
    tmp_path: Path, model_folder: Path, evil: bytes, canary: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    code = f"open({str(canary)!r}, 'w').close()\n"
    for path in (folder / "code" / "gaitgl_pyfunc.py", folder / "code" / "gaitgl" / "model.py"):
        path.write_text(code, "utf-8")
    assert open_model(folder).predict(np.full((1, 3, 64, 44), 255)).shape == (1, 5, 64)
    (folder / "data" / "checkpoint.safetensors").write_bytes(evil)
    with pytest.raises(PipelineError, match="not a readable safetensors file"):
        open_model(folder)
    (folder / "MLmodel").write_bytes(evil)
    with pytest.raises(PipelineError, match="describes no model"):
        open_model(folder)


RUN_CODE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def test_no_code_of_the_pipeline_unpickles_or_evaluates() -> None:
    wrong = []
    for package in ("gaitgl", "pipeline", "stages", "synthetic"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                wrong += [f"{path}:{name}" for name in _dangers(node)]
    assert not wrong


def _dangers(node: ast.AST) -> list[str]:
    """Modules that unpickle, calls that run text, and loaders that unpickle if they are let."""
    if isinstance(node, ast.Import):
        return [a.name for a in node.names if a.name.partition(".")[0] in RUN_CODE]
    if isinstance(node, ast.ImportFrom):
        return [node.module] if (node.module or "").partition(".")[0] in RUN_CODE else []
    if not isinstance(node, ast.Call):
        return []
    called = ast.unparse(node.func)
    if called in (
        "eval",
        "exec",
        "pd.read_pickle",
        "torch.load",
        "torch.jit.load",
        "torch.export.load",
    ):
        return [called]
    return ["allow_pickle" for word in node.keywords if word.arg == "allow_pickle"]
