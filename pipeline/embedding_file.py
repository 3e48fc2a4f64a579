"""The file that holds embeddings, so that metrics rerun without the network."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.files import new_file
from pipeline.tables import KEY, check_schema

Embeddings = npt.NDArray[np.float32]


def write_embeddings(
    path: Path, keys: pd.DataFrame, embeddings: Embeddings, metadata: dict[str, str]
) -> None:
    """Arrow IPC: dataset, subject, sequence, view, and ``float32 [c · strips]`` a row."""
    _, c, strips = embeddings.shape
    flat = pa.array(embeddings.reshape(-1))  # [n · c · strips]
    columns = [pa.array(keys[name], pa.string()) for name in ("dataset", *KEY)]
    columns.append(pa.FixedSizeListArray.from_arrays(flat, c * strips))
    schema = _schema(c, strips)
    batch = pa.record_batch(columns, schema.with_metadata({**schema.metadata, **metadata}))
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
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [file.get_batch(i) for i in range(file.num_record_batches)]
    except (pa.ArrowInvalid, OSError) as error:
        raise PipelineError(
            f"{path} is not a readable Arrow file: {error}. `dvc repro` brings it back"
        ) from None
    metadata = {k.decode(): v.decode() for k, v in (file.schema.metadata or {}).items()}
    if metadata.get("gaitgl") != "embeddings" or metadata.get("version") != "1":
        raise PipelineError(
            f"{path}: expected embeddings of version 1, got {metadata}. Run `dvc repro`."
        )
    sizes = metadata.get("channels", ""), metadata.get("strips", "")
    c, strips = (int(size) if size.isdecimal() else 0 for size in sizes)
    check_schema(path, file.schema, _schema(c, strips))
    if len(batches) != 1:
        raise PipelineError(f"{path} has {len(batches)} batches, expected 1. Run `dvc repro`.")
    values = batches[0].column("embedding").values.to_numpy()
    keys = batches[0].select(["dataset", *KEY]).to_pandas()
    return keys, values.reshape(len(keys), c, strips), metadata  # [n, c, strips]


def _schema(c: int, strips: int) -> pa.Schema:
    keys = [pa.field(name, pa.string()) for name in ("dataset", *KEY)]
    header = {"gaitgl": "embeddings", "version": "1", "channels": str(c), "strips": str(strips)}
    return pa.schema([*keys, ("embedding", pa.list_(pa.float32(), c * strips))], header)
