"""The data that a run works on, as MLflow shows them: name, digest, counts; no frame is read."""

from pathlib import Path

from pipeline.catalogue import read_sequences
from pipeline.files import sha256
from pipeline.run_record import DataInput

DIGEST_LENGTH = 32
"""Characters; MLflow takes 36 at most."""


def data_inputs(dataset: str, catalogue: Path, used_for: str) -> list[DataInput]:
    """The dataset with this catalogue, for training or evaluation.

    Empty where there is none: silhouettes or embeddings that DVC pulled work without.
    """
    path = catalogue / "sequences.parquet"
    if not path.exists():
        return []
    sequences = read_sequences(catalogue, ["subject", "split", "n_frames"])
    counts = {
        str(split): {
            "subjects": int(rows["subject"].nunique()),
            "sequences": len(rows),
            "frames": int(rows["n_frames"].sum()),
        }
        for split, rows in sequences.groupby("split")
    }
    digest = sha256(path)[:DIGEST_LENGTH]
    return [DataInput(dataset, digest, f"data/{dataset}/catalogue", counts, used_for)]
