"""The state of an unfinished training on disk: killed at any moment, it goes on from here.

    runs/<stage>-<key>/
        what.json           settings, inputs and code, whose digest is the key
        trainer.lock        held by the one trainer; trainer.json says who that is
        step-000001000.safetensors      the last two states

DVC deletes declared outputs before a stage starts, so this folder is undeclared; another setting
has another key, and with it another folder.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.files import new_folder, sha256, write_bytes, write_json
from pipeline.run_folder import RUNS, RunFolder, held

FORMAT = "gaitgl-training-state-1"
KEPT = 2
"""States on disk: should the last be torn, there is the one before."""


@dataclass(frozen=True)
class SavedState:
    """What a step leaves behind."""

    step: int
    tensors: dict[str, Tensor]
    """Weights, the optimizer's, and the history so far; on the CPU."""

    notes: dict[str, Any]
    """Whatever else JSON can hold."""


class TrainingState(RunFolder):
    """The folder of one training, told apart by everything that decides its result."""

    def __init__(self, stage: str, identity: dict[str, Any]) -> None:
        super().__init__(stage, stage, identity)
        self.stage = stage
        self._finished = RUNS / "finished" / stage

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for the block; PipelineError names the trainer that has it already.

        One whose DVC was killed is about to stop: for that one it waits a while.
        """
        with held(self.folder / "trainer.lock", self.stage, self.folder):
            self.describe()
            yield

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
            states = [f"that of step {_step(path)}" for path in self._paths()]
            last = states[-1] if states else "the beginning"
            raise PipelineError(
                f"the state of step {step} cannot be written to {self.folder}: {error.strerror}.\n"
                f"It takes {len(content) / 2**20:.1f} MiB. Make room and start again: the training "
                f"goes on from {last}."
            ) from None
        for path in self._paths()[:-KEPT]:
            path.unlink()

    def load(self) -> SavedState | None:
        """The last state that is whole; torn ones are told and put aside. None where none is.

        PipelineError where states are there, but cannot be read now, or are torn without exception.
        """
        for left in self.folder.glob(".step-*"):
            left.unlink()  # of a trainer that was killed while writing
        for path in reversed(self._paths()):
            try:
                return _read(path)
            except OSError as error:
                raise PipelineError(
                    f"{path} cannot be read: {error.strerror}. It may be whole: mend the disk and "
                    "start again, or delete it to go on from the state before it."
                ) from None
            except (SafetensorError, ValueError, KeyError) as error:
                torn = path.rename(path.with_name(f"torn-{path.name}"))
                sys.stderr.write(f"warning: {path} is torn ({error}); it is now {torn.name}\n")
        if any(self.folder.glob("torn-*")):
            raise PipelineError(
                f"{self.folder} holds no state that is whole. Delete the folder, and this "
                f"{self.stage} starts from its first step."
            )
        return None

    def others(self) -> list[str]:
        """Unfinished trainings of this stage under other settings, and what differs, in words."""
        found = []
        for folder, differs in self.folders_of_others():
            if steps := sorted(folder.glob("step-*.safetensors")):
                found.append(f"{folder} (step {_step(steps[-1])}): other {differs}")
        return found

    def keep_result(self, folder: Path) -> None:
        """Remember what the training has made, until DVC has (see `result`), instead of states."""
        with new_folder(self._finished) as beside:
            shutil.copytree(folder, beside, dirs_exist_ok=True)
            files = {path.name: sha256(path) for path in folder.iterdir()}
            write_json(beside / "training.json", {"key": self.key, "files": files})
        self._remove_states()

    def result(self) -> Path | None:
        """What this very training made before, where DVC was killed before it took note.

        Where DVC did take note, whoever starts the training wants it done again; and where no DVC
        started it, unless its run is not recorded to the end.
        """
        if not self._finished.exists():
            return None
        try:
            made = json.loads((self._finished / "training.json").read_text("utf-8"))
            if made["key"] != self.key:
                return None
            files = made["files"]
            whole = all(sha256(self._finished / name) == files[name] for name in files)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            whole = False
        unrecorded = (self.folder / "record" / "run.json").exists()
        if not whole:
            sys.stderr.write(f"warning: {self._finished} is damaged; training starts anew\n")
        elif ("DVC_STAGE" in os.environ or unrecorded) and not self._noted_by_dvc(files):
            return self._finished
        shutil.rmtree(self._finished)
        return None

    def _noted_by_dvc(self, files: dict[str, str]) -> bool:
        """Whether dvc.lock holds this result: DVC writes it once a stage has ended."""
        try:
            lock = yaml.safe_load(Path("dvc.lock").read_text("utf-8"))
            noted = lock["stages"][self.stage]["outs"][0]["md5"]
        except (FileNotFoundError, yaml.YAMLError, KeyError, TypeError, IndexError):
            return False
        # DVC's digest of a folder: that of the list of its files with theirs
        listed = [{"md5": _md5(self._finished / n), "relpath": n} for n in sorted(files)]
        return bool(noted == f"{hashlib.md5(json.dumps(listed).encode()).hexdigest()}.dir")

    def remove(self) -> None:
        """Delete the state of a training that is finished; a run still to be recorded stays."""
        self._remove_states()
        shutil.rmtree(self.folder / "trouble", ignore_errors=True)
        for name in ("what.json", "trainer.json", "trainer.lock"):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty: the record of its run is there still
            self.folder.rmdir()

    def _remove_states(self) -> None:
        for path in [*self._paths(), *self.folder.glob("torn-*")]:
            path.unlink()

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


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
