"""The silhouettes of a dataset: a few Arrow IPC shards, memory-mapped, and an index.

One row of a shard is one sequence: its key and its frames as one zstd-compressed blob. In it the
pixels of a column follow each other (``uint8 [t, width, height]``): a body is a few long runs then,
which takes a sixth less room than rows do and is decompressed faster. ``index.parquet`` says in
which shard and row a sequence lies.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import zstandard

from pipeline.errors import PipelineError
from pipeline.files import sha256
from pipeline.tables import KEY, check_schema, read_table

HEIGHT, WIDTH = 64, 44

_REMEDY = "`dvc repro` brings it back"

_METADATA = {"version": "2", "height": str(HEIGHT), "width": str(WIDTH)}

SHARD = pa.schema(
    [
        ("subject", pa.string()),
        ("sequence", pa.string()),
        ("view", pa.string()),
        ("n_frames", pa.int32()),
        ("silhouettes", pa.binary()),  # zstd of uint8 [n_frames, WIDTH, HEIGHT]
    ],
    metadata={"gaitgl": "silhouettes", **_METADATA},
)

INDEX = pa.schema(
    [
        ("dataset", pa.string()),
        ("subject", pa.string()),
        ("sequence", pa.string()),
        ("view", pa.string()),
        ("split", pa.string()),
        ("n_frames", pa.int32()),
        ("shard", pa.string()),
        ("row", pa.int32()),
        ("crc32", pa.int64()),  # of the blob's content; makes the index a digest of all frames
    ],
    metadata={"gaitgl": "silhouette index", **_METADATA},
)

LEVEL = 9
"""Of zstd's 22: higher ones take much longer for a few bytes, lower ones make reading slower."""

Silhouettes = npt.NDArray[np.uint8]

_Blobs = tuple[npt.NDArray[np.int32], memoryview]
"""Where each blob of a shard begins and ends, and their bytes one after the other."""


@dataclass(frozen=True, slots=True)
class StoredSequence:
    """A sequence on its way into a shard."""

    subject: str
    sequence: str
    view: str
    n_frames: int
    silhouettes: bytes
    crc32: int


def compress(subject: str, sequence: str, view: str, silhouettes: Silhouettes) -> StoredSequence:
    """Pack ``uint8 [t, HEIGHT, WIDTH]`` without loss."""
    content = silhouettes.mT.tobytes()  # [t, w, h]
    blob = zstandard.compress(content, LEVEL)
    return StoredSequence(subject, sequence, view, len(silhouettes), blob, zlib.crc32(content))


def write_shard(path: Path, rows: list[StoredSequence]) -> None:
    """One Arrow IPC file with the rows in the order given."""
    columns = [pa.array([getattr(row, f.name) for row in rows], f.type) for f in SHARD]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SHARD) as writer:
        writer.write_batch(pa.record_batch(columns, schema=SHARD))


class SilhouetteStore:
    """Random access to the sequences of a dataset; of its frames nothing stays in memory.

    ``index`` is a frame with INDEX' columns, one row per sequence, sorted by key; a sequence's
    number is its row there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_table(folder / "index.parquet", INDEX)
        self._shards: dict[int, _Blobs] = {}
        self._shard_numbers, self._shard_names = pd.factorize(self.index["shard"])
        self._rows = self.index["row"].to_numpy()
        self._lengths = self.index["n_frames"].to_numpy()
        self._checksums = self.index["crc32"].to_numpy()
        self._checked = np.zeros(len(self.index), np.bool_)

    def digest(self) -> str:
        """Fingerprint of all keys, splits and frames."""
        return sha256(self.folder / "index.parquet")

    def read(self, number: int) -> Silhouettes:
        """All frames of a sequence, as ``read_all`` gives them."""
        return self.read_all([number])[0]

    def read_all(self, numbers: Sequence[int]) -> list[Silhouettes]:
        """All frames of one sequence or more, ``uint8 [t, HEIGHT, WIDTH]``, not to be written to.

        Each is a view of ``[t, WIDTH, HEIGHT]``: who copies many frames copies ``.mT`` faster. At
        one go, since threads that decompress wait for each other between two calls.
        """
        if not len(numbers):  # zstandard 0.25 divides by their number, and the process dies
            return []
        sizes = self._lengths[numbers].astype(np.uint64) * (HEIGHT * WIDTH)
        blobs: list[bytes | bytearray | memoryview] = []
        for shard, row in zip(self._shard_numbers[numbers], self._rows[numbers], strict=True):
            offsets, together = self._shard(shard)
            blobs.append(together[offsets[row] : offsets[row + 1]])
        try:
            contents = zstandard.ZstdDecompressor().multi_decompress_to_buffer(
                blobs, decompressed_sizes=sizes.tobytes()
            )
        except (zstandard.ZstdError, ValueError) as error:  # the latter for a blob of no bytes
            if len(numbers) == 1:
                raise self._damage(numbers[0], f"zstd: {str(error).rpartition(': ')[2]}") from None
            for number in numbers:
                self.read(number)  # says which one it is
            raise
        found = [  # zstandard's annotations leave out that a segment is a buffer
            np.frombuffer(contents[i], np.uint8)  # type: ignore[call-overload]
            for i in range(len(numbers))
        ]
        # once: each time would take a quarter of a training batch's time
        for number, content in zip(numbers, found, strict=True):
            if not self._checked[number]:
                if zlib.crc32(content) != self._checksums[number]:
                    raise self._damage(number, "other pixels than were written")
                self._checked[number] = True
        return [content.reshape(-1, WIDTH, HEIGHT).mT for content in found]  # [t, h, w]

    def _damage(self, number: int, what: str) -> PipelineError:
        key = "/".join(self.index[name].iloc[number] for name in KEY)
        path = self.folder / self._shard_names[self._shard_numbers[number]]
        return PipelineError(f"{path}: the silhouettes of {key} are damaged ({what}); {_REMEDY}")

    def _shard(self, number: int) -> _Blobs:
        if number not in self._shards:
            path = self.folder / self._shard_names[number]
            needed = 1 + int(self._rows[self._shard_numbers == number].max())
            try:
                reader = pa.ipc.open_file(pa.memory_map(str(path)))
                check_schema(path, reader.schema, SHARD)
                _, offsets, contents = reader.get_batch(0).column("silhouettes").buffers()
                shard = np.frombuffer(offsets, np.int32), memoryview(contents)
            # no batch and odd lengths are a ValueError, no buffer is a TypeError
            except (pa.ArrowException, ValueError, TypeError, OSError) as error:
                what = f"missing, cut short or damaged ({error})"
                raise PipelineError(f"{path} is {what}; {_REMEDY}") from None
            if len(shard[0]) <= needed:
                held = max(0, len(shard[0]) - 1)
                raise PipelineError(f"{path} has {held} of {needed} sequences; {_REMEDY}")
            self._shards[number] = shard
        return self._shards[number]
