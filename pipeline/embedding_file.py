"""The file that holds embeddings, so that metrics rerun without the network."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.files import new_file
from pipeline.tables import KEY

Embeddings = npt.NDArray[np.float32]


def write_embeddings(
    path: Path, keys: pd.DataFrame, embeddings: Embeddings, metadata: dict[str, str]
) -> None:
    """Arrow IPC: dataset, subject, sequence, view, and ``float32 [c · strips]`` a row."""
    _, c, strips = embeddings.shape
    flat = pa.array(embeddings.reshape(-1))  # [n · c · strips]
    columns = {name: pa.array(keys[name]) for name in ("dataset", *KEY)}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, c * strips)
    header = {"gaitgl": "embeddings", "version": "1", "channels": str(c), "strips": str(strips)}
    batch = pa.record_batch(columns).replace_schema_metadata({**header, **metadata})
    with (
        new_file(path) as beside,
        pa.OSFile(str(beside), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def read_embeddings(path: Path) -> tuple[pd.DataFrame, Embeddings, dict[str, str]]:
    """Keys, embeddings ``[n, c, strips]`` (memory-mapped) and metadata of an embeddings file."""
    if not path.exists():
        raise PipelineError(f"{path} is missing: `dvc repro` makes it")
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except pa.ArrowInvalid as error:
        raise PipelineError(
            f"{path} is not a readable Arrow file: {error}. `dvc repro` brings it back"
        ) from None
    metadata = {k.decode(): v.decode() for k, v in (batch.schema.metadata or {}).items()}
    if metadata.get("gaitgl") != "embeddings" or metadata.get("version") != "1":
        raise PipelineError(
            f"{path}: expected embeddings of version 1, got {metadata}. Run `dvc repro`."
        )
    c, strips = int(metadata["channels"]), int(metadata["strips"])
    values = batch.column("embedding").values.to_numpy()
    keys = batch.select(["dataset", *KEY]).to_pandas()
    return keys, values.reshape(len(keys), c, strips), metadata  # [n, c, strips]
