from pathlib import Path

import pandas as pd

from pipeline.catalogue import SEQUENCES, Release, refusal_table, write_catalogue
from pipeline.data_inputs import data_inputs
from pipeline.settings import Dataset

MLFLOWS_LIMIT = 36


def write(folder: Path, sequences: pd.DataFrame) -> Path:
    folder.mkdir()
    write_catalogue(folder, sequences, refusal_table("oumvlp", []), Release("x", 1, 1, {}))
    return folder


def test_data_are_named_and_counted_by_split(
    catalogues: dict[Dataset, pd.DataFrame], tmp_path: Path
) -> None:
    sequences = catalogues["casia_e"]
    (data,) = data_inputs("casia_e", write(tmp_path / "catalogue", sequences), "training")
    assert (data.name, data.used_for) == ("casia_e", "training")
    assert set(data.counts) == {"train", "val", "test"}
    assert data.counts["val"]["subjects"] == 1
    for name in ("sequences", "frames"):
        counted = sum(split[name] for split in data.counts.values())
        assert counted == (len(sequences) if name == "sequences" else sequences["n_frames"].sum())


def test_other_sequences_have_another_digest_that_mlflow_takes(
    catalogues: dict[Dataset, pd.DataFrame], tmp_path: Path
) -> None:
    sequences = catalogues["oumvlp"]
    assert set(sequences.columns) == set(SEQUENCES.names)
    folders = [
        write(tmp_path / "all", sequences),
        write(tmp_path / "again", sequences),
        write(tmp_path / "fewer", sequences.iloc[1:]),
    ]
    digests = [data_inputs("oumvlp", folder, "training")[0].digest for folder in folders]
    assert digests[0] == digests[1] != digests[2]
    assert all(0 < len(digest) <= MLFLOWS_LIMIT for digest in digests)


def test_a_catalogue_that_is_not_here_is_no_trouble(tmp_path: Path) -> None:
    assert data_inputs("oumvlp", tmp_path / "absent", "evaluation") == []
