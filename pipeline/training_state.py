"""The state of an unfinished training on disk: killed at any moment, it goes on from here.

    runs/<stage>-<fingerprint>/
        what.json           settings, inputs and code behind the fingerprint
        trainer.lock        held by the one trainer; trainer.json says who that is
        step-000001000.safetensors      the last two states

DVC deletes declared outputs before a stage starts, so this folder is undeclared; another setting
has another fingerprint, and with it another folder.
"""

import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import safetensors.torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.files import fingerprint, new_folder, sha256, write_bytes, write_json
from pipeline.settings import read_yaml
from pipeline.stopping import is_orphan, started_by_hand

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs")
FORMAT = "gaitgl-training-state-1"
KEPT = 2
"""States on disk: should the last be torn, there is the one before."""

STOPPING_S = 60.0
"""How long a trainer whose DVC was killed may take to stop: one step, and a state to write."""


@dataclass(frozen=True)
class SavedState:
    """What a step leaves behind."""

    step: int
    tensors: dict[str, Tensor]
    """Weights, the optimizer's, and the history so far; on the CPU."""

    notes: dict[str, Any]
    """Whatever else JSON can hold."""


class TrainingState:
    """The folder of one training, told apart by everything that decides its result."""

    def __init__(self, stage: str, identity: dict[str, Any]) -> None:
        self._stage = stage
        self._identity = {**identity, "code": _code_of(stage)}
        self.fingerprint = fingerprint(self._identity)
        self.folder = RUNS / f"{stage}-{self.fingerprint[:16]}"
        self._finished = RUNS / "finished" / stage

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for the block; PipelineError names the trainer that has it already.

        One whose DVC was killed is about to stop: for that one it waits a while.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        holder = self.folder / "trainer.json"
        lock = FileLock(self.folder / "trainer.lock")
        try:
            try:
                lock.acquire(blocking=False)
            except Timeout:
                if not _is_stopping(holder):
                    raise
                sys.stderr.write(f"waiting for {_holder(holder)}, which is stopping\n")
                lock.acquire(timeout=STOPPING_S)
        except Timeout:
            raise PipelineError(
                f"this {self._stage} runs already: {_holder(holder)} holds {self.folder}.\n"
                "Wait for it, or stop it with kill: the next one goes on from where it was."
            ) from None
        try:
            this = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
            write_json(holder, {**this, "by_hand": started_by_hand()})
            write_json(self.folder / "what.json", self._identity)
            yield
        finally:
            lock.release()

    def save(self, step: int, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Write the state after ``step`` steps, flushed to the disk; the one before is kept.

        PipelineError where the disk does not take it: the states there are whole still.
        """
        text = json.dumps({**notes, "format": FORMAT, "step": step})
        header = {"gaitgl": text, "digest": _digest(text, tensors)}
        content = safetensors.torch.save(tensors, header)
        try:
            write_bytes(self.folder / f"step-{step:09}.safetensors", content)
        except OSError as error:
            last = max((_step(path) for path in self._paths()), default=0)
            raise PipelineError(
                f"the state of step {step} cannot be written to {self.folder}: {error.strerror}.\n"
                f"It takes {len(content) / 2**20:.1f} MiB. The state of step {last} is whole: make "
                "room and start again, and the training goes on from there."
            ) from None
        for path in self._paths()[:-KEPT]:
            path.unlink()

    def load(self) -> SavedState | None:
        """The last state that is whole; what is torn is told. None where there is no state."""
        for left in self.folder.glob(".step-*"):
            left.unlink()  # of a trainer that was killed while writing
        for path in reversed(self._paths()):
            try:
                return _read(path)
            except (SafetensorError, ValueError, KeyError, OSError) as error:
                sys.stderr.write(
                    f"warning: {path} is torn ({error}); going back to the state before it\n"
                )
                path.unlink()
        return None

    def others(self) -> list[str]:
        """Unfinished trainings of this stage under other settings, and what differs, in words."""
        found = []
        for what in sorted(RUNS.glob(f"{self._stage}-*/what.json")):
            steps = sorted(what.parent.glob("step-*.safetensors"))
            if what.parent == self.folder or not steps:
                continue
            mine, theirs = _leaves(self._identity), _leaves(json.loads(what.read_text("utf-8")))
            keys = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
            found.append(f"{what.parent} (step {_step(steps[-1])}): other {', '.join(keys)}")
        return found

    def keep_result(self, folder: Path) -> None:
        """Remember what the finished training made, until DVC has: see `result`."""
        with new_folder(self._finished) as beside:
            shutil.copytree(folder, beside, dirs_exist_ok=True)
            write_json(beside / "training.json", {"fingerprint": self.fingerprint})

    def result(self) -> Path | None:
        """What this very training made before, where DVC was killed before it took note.

        DVC writes dvc.lock after each stage: a result older than dvc.lock was taken note of, and
        whoever starts the training then wants it done again.
        """
        made = self._finished / "training.json"
        lock = Path("dvc.lock")
        if "DVC_STAGE" not in os.environ or not made.exists():
            return None
        if lock.exists() and lock.stat().st_mtime_ns >= made.stat().st_mtime_ns:
            return None
        same = json.loads(made.read_text("utf-8"))["fingerprint"] == self.fingerprint
        return self._finished if same else None

    def remove(self) -> None:
        """Delete the state of a training that is finished; a run still to be recorded stays."""
        for path in [*self._paths(), *self.folder.glob("trainer.*"), self.folder / "what.json"]:
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))


def _read(path: Path) -> SavedState:
    """A state file's content; ValueError where it is not as it was written."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header["digest"] != _digest(header["gaitgl"], tensors):
        raise ValueError("its content is not what was written")
    notes = json.loads(header["gaitgl"])
    if notes["format"] != FORMAT:
        raise ValueError(f"its format is {notes['format']}")
    return SavedState(notes["step"], tensors, notes)


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _code_of(stage: str) -> dict[str, str]:
    """Digests of the code that DVC reruns the stage for: what it finds changed is not resumed."""
    deps = read_yaml(ROOT / "dvc.yaml")["stages"][stage]["deps"]
    return {path: sha256(ROOT / path) for path in deps if path.endswith(".py")}


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text("utf-8"))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "a process that has just started"


def _is_stopping(path: Path) -> bool:
    """Whether the holder lost the DVC that started it, here on this machine."""
    try:
        holder = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    if holder.get("by_hand", True) or holder["host"] != socket.gethostname():
        return False
    return is_orphan(holder["pid"])


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _leaves(value, f"{prefix}.{name}".removeprefix("."))
    return found


def _now() -> str:
    return datetime.now().astimezone().isoformat(" ", "seconds")
