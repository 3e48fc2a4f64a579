from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.batches import TrainingBatch, TrainingBatches
from pipeline.devices import place
from pipeline.distributed import ALONE
from pipeline.embedding import embed
from pipeline.errors import PipelineError
from pipeline.evaluation import rank1_by_condition
from pipeline.held_out import held_out
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.hid import Hid
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.protocols import Protocol, write_protocols
from pipeline.settings import Dataset
from pipeline.silhouette_store import Silhouettes, SilhouetteStore
from pipeline.training import everything_trained, new_optimizer, train_steps
from pipeline.training_history import Step
from pipeline.validation import Validation

CPU = torch.device("cpu")

Stores = dict[Dataset, SilhouetteStore]
Catalogue = Callable[[Protocol], Path]

PROTOCOLS: dict[Dataset, Protocol] = {
    "oumvlp": OumvlpRelease.protocols[0],
    "casia_e": CasiaERelease(Path(), [], "release").protocols[0],
}


@pytest.fixture
def catalogue_of(tmp_path: Path) -> Catalogue:
    """A catalogue's folder with a protocol in it."""

    def write(protocol: Protocol) -> Path:
        folder = tmp_path / "catalogue"
        folder.mkdir(exist_ok=True)
        write_protocols(folder, [protocol])
        return folder

    return write


def new_model() -> GaitGL:
    torch.manual_seed(0)
    return GaitGL(GaitGLConfig(channels=(2, 2, 4, 4, 4, 4)))


@pytest.mark.parametrize(("dataset", "subjects"), [("oumvlp", 3), ("casia_e", 4)])
def test_validation_is_the_evaluation_of_held_out_subjects(
    stores: Stores, catalogue_of: Catalogue, dataset: Dataset, subjects: int
) -> None:
    store, model, protocol = stores[dataset], new_model(), PROTOCOLS[dataset]
    validation = Validation(store, catalogue_of(protocol), subjects, "float32")
    found = validation.rank1(model, CPU, ALONE)

    index = store.index
    mine = index["subject"].isin(held_out(index, subjects)).to_numpy()
    assert len(set(index.loc[mine, "subject"])) == subjects
    assert "test" not in set(index.loc[mine, "split"])
    numbers = np.flatnonzero(mine & protocol.compares(index["sequence"], index["view"]))
    embeddings = embed(model, store, numbers, "float32", CPU)
    keys = index.iloc[numbers].reset_index(drop=True)
    expected = rank1_by_condition(keys, embeddings, protocol)
    assert found.pop("rank1") == pytest.approx(np.mean(list(expected.values())))
    if len(expected) == 1:  # OUMVLP has one condition, which is the mean
        assert found == {}
    else:
        assert found == {f"{name}_rank1": rank1 for name, rank1 in expected.items()}
        assert len(set(found.values())) > 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_measuring_changes_neither_weights_nor_training(
    stores: Stores, catalogue_of: Catalogue, precision: str
) -> None:
    catalogue = catalogue_of(OumvlpRelease.protocols[0])
    validation = Validation(stores["oumvlp"], catalogue, 2, precision)
    batches = TrainingBatches(stores["oumvlp"], 3, 2, 4, seed=0, validation_subjects=2)
    given: list[TrainingBatch] = [batches.batch(step) for step in (1, 2, 3)]

    def trained(measured: bool) -> tuple[list[Step], dict[str, torch.Tensor]]:
        model = place(new_model(), CPU)
        optimizer = new_optimizer(model)
        steps = []
        for step in train_steps(
            model,
            optimizer,
            given,
            lr=1e-2,
            warmup_steps=0,
            lr_drops=[],
            margin=0.2,
            precision=precision,
            device=CPU,
        ):
            if measured:
                before = {n: t.clone() for n, t in everything_trained(model, optimizer).items()}
                first = validation.rank1(model, CPU, ALONE)
                assert validation.rank1(model, CPU, ALONE) == first
                after = everything_trained(model, optimizer)
                assert all(torch.equal(after[name], before[name]) for name in before)
            steps.append(step)
        return steps, everything_trained(model, optimizer)

    (steps, weights), (measured_steps, measured_weights) = trained(False), trained(True)
    assert measured_steps == steps
    assert all(torch.equal(measured_weights[name], weights[name]) for name in weights)
    initial = dict(new_model().named_parameters())
    assert not torch.equal(weights["weight.lta.conv.weight"], initial["lta.conv.weight"])


def test_measuring_says_nothing(
    stores: Stores, catalogue_of: Catalogue, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = catalogue_of(OumvlpRelease.protocols[0])
    Validation(stores["oumvlp"], catalogue, 2, "float32").rank1(new_model(), CPU, ALONE)
    assert capsys.readouterr() == ("", "")


def test_subjects_without_anything_to_compare_are_an_error(
    tmp_path: Path,
    write_store: Callable[..., SilhouetteStore],
    noise: Callable[[int, int], Silhouettes],
    catalogue_of: Catalogue,
) -> None:
    rows = [
        (subject, sequence, "000", split, noise(0, 3))
        for subject, split, sequence in (
            ("00001", "val", "02"),  # OUMVLP compares 00 with 01
            ("00002", "val", "02"),
            ("00003", "train", "00"),
            ("00003", "train", "01"),
        )
    ]
    store = write_store(tmp_path, rows)
    catalogue = catalogue_of(OumvlpRelease.protocols[0])
    with pytest.raises(
        PipelineError, match="of the 2 validation subjects the protocol compares 0 probes with 0"
    ) as raised:
        Validation(store, catalogue, 2, "float32")
    assert str(tmp_path) in str(raised.value)
    assert "raise validation_subjects" in str(raised.value)
    Validation(store, catalogue, 3, "float32")


@pytest.mark.parametrize(
    ("sequence", "found"), [("00", "1 probes with 0"), ("01", "0 probes with 1")]
)
def test_probes_without_a_gallery_validate_nobody(
    tmp_path: Path,
    write_store: Callable[..., SilhouetteStore],
    noise: Callable[[int, int], Silhouettes],
    catalogue_of: Catalogue,
    sequence: str,
    found: str,
) -> None:
    store = write_store(tmp_path, [("00001", sequence, "000", "val", noise(0, 3))])
    catalogue = catalogue_of(OumvlpRelease.protocols[0])
    with pytest.raises(PipelineError, match=f"compares {found} gallery sequences"):
        Validation(store, catalogue, 1, "float32")


def test_a_protocol_for_unknown_people_validates_nobody(
    stores: Stores, catalogue_of: Catalogue
) -> None:
    with pytest.raises(PipelineError, match=r"HID has a protocol .* set validate_every to 0"):
        Validation(stores["casia_e"], catalogue_of(Hid.protocols[0]), 2, "float32")
