"""Shards as a task finishes them, each with a note of what it holds: a killed stage keeps them.

    <folder>/shard-00012.arrow      as the store will have it; missing where nothing was kept
    <folder>/shard-00012.json       index rows, refusals, and digests of both files

Both are written beside and renamed, the note last: a shard is finished once its note is there. Any
process on any machine may write them, twice too: the bytes are the same.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Any, Self

from pipeline.catalogue import DAMAGED, Refusal
from pipeline.files import fingerprint, new_file, sha256, write_json
from pipeline.silhouette_store import StoredSequence, write_shard

FORMAT = "gaitgl-finished-shard-1"

IN_MEMORY_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """What became of a shard's sequences."""

    number: int
    rows: list[dict[str, Any]]
    """Of the index, in the shard's order, without dataset and shard."""

    refused: list[Refusal]

    @property
    def name(self) -> str:
        return shard_name(self.number)

    @property
    def damaged(self) -> bool:
        """Whether the reading of an archive went wrong for it."""
        return any(refusal.reason == DAMAGED for refusal in self.refused)


def shard_name(number: int) -> str:
    return f"shard-{number:05}.arrow"


def finished_shard(folder: Path, number: int) -> FinishedShard | None:
    """A shard that is finished and whole; None where it has to be made.

    A damaged one is reported and set aside.
    """
    shard = folder / shard_name(number)
    note = shard.with_suffix(".json")
    try:
        tree = json.loads(note.read_text("utf-8"))
        content = tree["content"]
        if tree["digest"] != fingerprint(content) or content["format"] != FORMAT:
            raise ValueError("its note is not what was written")
        if content["rows"] and content["sha256"] != sha256(shard):
            raise ValueError("its content is not what was written")
        refused = [Refusal(**row) for row in content["refused"]]
        return FinishedShard(number, content["rows"], refused)
    except FileNotFoundError as error:
        if error.filename == str(note):
            return None
        reason = "its content is gone"
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error)
    sys.stderr.write(f"warning: {shard} is torn ({reason}); it is put aside and made again\n")
    for path in (note, shard):  # the note first: without it the shard counts for nothing
        if path.exists():
            path.rename(path.with_name(f"torn-{path.name}"))
    return None


def shards_to_do(folder: Path, numbers: Iterable[int]) -> list[int]:
    """Those of one task's shards that are not finished.

    What lies behind a damage depends on what was read before it. So an archive found damaged by a
    worker that was killed afterwards is read again for all its shards.
    """
    shards = {number: finished_shard(folder, number) for number in numbers}
    todo = sorted(number for number, shard in shards.items() if shard is None)
    damaged = any(shard.damaged for shard in shards.values() if shard is not None)
    return sorted(shards) if todo and damaged else todo


def forget_shard(folder: Path, number: int) -> None:
    """Delete a shard, if it is there."""
    shard = folder / shard_name(number)
    shard.with_suffix(".json").unlink(missing_ok=True)  # first: without it the shard is none
    shard.unlink(missing_ok=True)


class ShardWriter:
    """Takes sequences of one task as they are finished, and writes each shard once it is whole.

    ``sequences`` says how many sequences each shard of the task has. What was compressed waits in
    a file until its shard is whole: memory does not grow with how far an archive is out of order.

    The task's last shard is written at the end of the block only: until then an archive may prove
    damaged, which is noted in that one.
    """

    def __init__(self, folder: Path, sequences: dict[int, int]) -> None:
        self._folder = folder
        self._left = dict(sequences)
        self._last = max(sequences)
        self._rows: dict[int, list[tuple[StoredSequence, str, int, int]]] = {}
        self._refused: dict[int, list[Refusal]] = {}
        self._spool = SpooledTemporaryFile(IN_MEMORY_BYTES, dir=str(folder))  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._spool:
            if error is None:
                self._write(self._last)

    def keep(self, shard: int, sequence: StoredSequence, split: str) -> None:
        """One more sequence of ``shard`` is finished."""
        start = self._spool.seek(0, 2)
        self._spool.write(sequence.silhouettes)
        row = (replace(sequence, silhouettes=b""), split, start, len(sequence.silhouettes))
        self._rows.setdefault(shard, []).append(row)
        self._count(shard)

    def refuse(self, shard: int, refused: Iterable[Refusal]) -> None:
        """Frames that go no further; their sequence may be kept all the same."""
        self._refused.setdefault(shard, []).extend(refused)

    def lose(self, shard: int) -> None:
        """One more sequence of ``shard`` is finished, and nothing of it is kept."""
        self._count(shard)

    def note(self, refusal: Refusal) -> None:
        """What concerns no single sequence."""
        self.refuse(self._last, [refusal])

    def _count(self, shard: int) -> None:
        self._left[shard] -= 1
        if not self._left[shard] and shard != self._last:
            self._write(shard)

    def _write(self, number: int) -> None:
        kept = self._rows.pop(number, [])
        kept.sort(key=lambda row: (row[0].subject, row[0].sequence, row[0].view))
        path = self._folder / shard_name(number)
        rows: list[dict[str, Any]] = []
        digest = ""
        if kept:
            with new_file(path) as beside:
                write_shard(
                    beside, [self._whole(stored, start, size) for stored, _, start, size in kept]
                )
                digest = sha256(beside)
        for stored, split, _, _ in kept:
            rows.append(
                {
                    "subject": stored.subject,
                    "sequence": stored.sequence,
                    "view": stored.view,
                    "split": split,
                    "n_frames": stored.n_frames,
                    "row": len(rows),
                    "crc32": stored.crc32,
                }
            )
        refused = [asdict(refusal) for refusal in self._refused.pop(number, [])]
        content = {"format": FORMAT, "rows": rows, "refused": refused, "sha256": digest}
        write_json(path.with_suffix(".json"), {"content": content, "digest": fingerprint(content)})

    def _whole(self, stored: StoredSequence, start: int, size: int) -> StoredSequence:
        self._spool.seek(start)
        return replace(stored, silhouettes=self._spool.read(size))
