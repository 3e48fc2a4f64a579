"""Embedding whole sequences of mixed lengths: one by one, against batches of equal length.

python -m benchmarks embedding [--quick]

Both read the same store of sequences of 18 to 40 frames, as OUMVLP's are. Plain is in float32; on a
GPU it is in the precision it is compared with. A device that lacks bfloat16 gets no row in it. Ours
in float32 must equal plain, and itself one by one, to 1e-5 of the largest value; the row says how
near to one by one it is (aim: 1e-6).
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.plain_network import PlainGaitGL, plain_embed
from benchmarks.silhouettes import write_drawn
from benchmarks.timing import Row, compared, interleaved
from benchmarks.training_step import CHANNELS, QUICK_CHANNELS, forward_flops, product_flops
from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.devices import choose_device, lacks_bfloat16, place
from pipeline.embedding import embed
from pipeline.silhouette_store import SilhouetteStore

Embeddings = npt.NDArray[np.float32]


def rows(quick: bool) -> list[Row]:
    device = choose_device("auto")
    most, each = (20, 2) if quick else (40, 2 if device.type == "cpu" else 128)
    random = np.random.default_rng(0)
    lengths = random.permutation(np.repeat(np.arange(18, most + 1), each))
    with tempfile.TemporaryDirectory() as folder:
        store = write_drawn(Path(folder, "store"), lengths, len(lengths), random)
        repeats = 1 if quick else 3
        return _compare(store, QUICK_CHANNELS if quick else CHANNELS, device, repeats)


def _compare(
    store: SilhouetteStore, channels: tuple[int, ...], device: torch.device, repeats: int
) -> list[Row]:
    torch.manual_seed(0)
    config = GaitGLConfig(channels)
    model = place(GaitGL(config), device)
    plain_model = PlainGaitGL(config)
    plain_model.load_state_dict(model.state_dict())
    plain_model.to(device)
    numbers = np.arange(len(store.index))

    def ours(precision: str) -> Embeddings:
        return embed(model, store, numbers, precision, device, shown=False)

    def plain(precision: str) -> Embeddings:
        sequences = (store.read(int(number)) for number in numbers)
        return plain_embed(plain_model, sequences, device, precision)

    lack = lacks_bfloat16(device)
    precisions = ("float32",) if lack else ("float32", "bfloat16")
    embedded = {precision: ours(precision) for precision in precisions}  # this warms up, too
    whole = embedded["float32"]
    alone = [
        embed(model, store, numbers[i : i + 1], "float32", device, shown=False)[0]
        for i in range(min(10, len(numbers)))
    ]
    off_plain = _difference(plain("float32"), whole)
    off_alone = _difference(np.stack(alone), whole[: len(alone)])
    if max(off_plain, off_alone) > 1e-5:
        raise AssertionError(
            f"float32 embeddings differ by {off_plain:.1e} from plain ones and by {off_alone:.1e} "
            "from ours one by one, of the largest value; 1e-5 is allowed"
        )

    work = f"embedding, {len(numbers)} sequences of {store.index['n_frames'].min()} to "
    work += f"{store.index['n_frames'].max()} frames"
    if device.type == "cpu":
        works = {precision: partial(ours, precision) for precision in precisions}
        timings = interleaved({"plain": partial(plain, "float32"), **works}, repeats, warmups=0)
        timed = {name: (timings["plain"], timings[name]) for name in precisions}
        target = "≥ 1.5×"
    else:
        timed, target = {}, "≥ 4×"
        for precision in precisions:
            works = {"plain": partial(plain, precision), "ours": partial(ours, precision)}
            timings = interleaved(works, repeats, warmups=0)
            timed[precision] = timings["plain"], timings["ours"]
    notes = {
        name: f"differs by {_difference(whole, short):.0e} from float32"
        for name, short in embedded.items()
    }
    notes["float32"] = f"differs by {off_plain:.1e} from plain, {off_alone:.1e} from one by one"
    notes["float32"] += f"; no row in bfloat16: {lack}" if lack else ""
    if device.type == "cpu":
        flops = sum(sum(forward_flops(channels, int(t))) for t in store.index["n_frames"])
        for name, (_, timing) in timed.items():
            rate = flops / timing.median_s / product_flops(getattr(torch, name))
            notes[name] += f"; {rate:.0%} of a matrix product's rate"
    return [
        compared(f"{work}, {name}", "sequences/s", *pair, len(numbers), target, notes[name])
        for name, pair in timed.items()
    ]


def _difference(expected: Embeddings, got: Embeddings) -> float:
    """The largest difference, as a share of the largest value."""
    return float(np.abs(expected - got).max() / np.abs(expected).max())
