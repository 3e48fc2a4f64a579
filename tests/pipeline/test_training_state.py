import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline import stage_inputs, training_state
from pipeline.errors import PipelineError
from pipeline.training_state import TrainingState
from tests.child_processes import STARTER, child, environment, python

DEADLINE_S = 60

IDENTITY = {"seed": 0, "training": {"lr": 0.1, "steps": 9}, "upstream": {}}

HOLDER = """
import os, signal, sys
signal.alarm(60)
from pipeline.training_state import TrainingState
with TrainingState("pretrain", {"seed": 0}).locked():
    print(os.getpid(), flush=True)
    print("heard:", sys.stdin.readline(), end="", flush=True)
"""

KILLED_WRITER = """
import os, signal
from pathlib import Path
from pipeline.files import new_file
with new_file(Path("step-000000009.safetensors")) as beside:
    beside.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""

NO_LARGE_FILES = """
import resource, signal, torch
from pipeline.errors import PipelineError
from pipeline.training_state import TrainingState
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = TrainingState("pretrain", {"seed": 0})
with state.locked():
    state.save(4, {"weight": torch.arange(1000)}, {"idle": 3})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        state.save(5, {"weight": torch.zeros(3 << 18)}, {})
    except PipelineError as error:
        print(error)
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)


@pytest.fixture
def state() -> TrainingState:
    return TrainingState("pretrain", IDENTITY)


def some(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(40, 3, generator=generator),
        "step.weight": torch.tensor(float(seed)),
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(
        a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        for a, b in ((one[name], other[name]) for name in one)
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_tensors_and_notes_come_back_exactly(state: TrainingState) -> None:
    tensors = {
        **some(1),
        "history": torch.tensor(
            [[1, 0.1, torch.nan], [2, -torch.inf, 1e-310]], dtype=torch.float64
        ),
        "none yet": torch.empty(0, 8),
        "whole": torch.tensor([2**62 + 1, -1]),
        "half": torch.tensor([1.5, -0.0], dtype=torch.float16),
    }
    with state.locked():
        assert state.load() is None
        state.save(7, tensors, {"idle": 2, "best": {"step": 5, "rank1": 0.1 + 0.2}})
        saved = state.load()
    assert saved is not None
    assert saved.step == 7
    assert same(saved.tensors, tensors)
    assert saved.notes["idle"] == 2
    assert saved.notes["best"] == {"step": 5, "rank1": 0.1 + 0.2}


def test_the_last_two_states_are_kept(state: TrainingState) -> None:
    with state.locked():
        for step in (9, 10, 100, 1000):
            state.save(step, some(step), {})
        saved = state.load()
    assert saved is not None
    assert saved.step == 1000
    assert sorted(path.name for path in state.folder.glob("*step*")) == [
        "step-000000100.safetensors",
        "step-000001000.safetensors",
    ]


def truncated(content: bytes) -> bytes:
    return content[:-20]


def cut_in_the_header(content: bytes) -> bytes:
    return content[:30]


def zeroed_in_the_middle(content: bytes) -> bytes:
    return content[:-200] + bytes(100) + content[-100:]


def one_bit_flipped(content: bytes) -> bytes:
    return content[:-90] + bytes([content[-90] ^ 1]) + content[-89:]


def all_zeros(content: bytes) -> bytes:
    return bytes(len(content))


def empty(content: bytes) -> bytes:
    return b""


SPOILT = [truncated, cut_in_the_header, zeroed_in_the_middle, one_bit_flipped, all_zeros, empty]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_torn_state_is_told_and_the_one_before_taken(
    state: TrainingState, capsys: pytest.CaptureFixture[str], spoil: Callable[[bytes], bytes]
) -> None:
    last = state.folder / "step-000000020.safetensors"
    with state.locked():
        state.save(10, some(10), {"idle": 1})
        state.save(20, some(20), {"idle": 2})
        last.write_bytes(spoil(last.read_bytes()))
        saved = state.load()
        assert saved is not None
        assert (saved.step, saved.notes["idle"]) == (10, 1)
        assert same(saved.tensors, some(10))
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"warning: {last} is torn (")

        state.save(20, some(20), {"idle": 2})
        again = state.load()
    assert again is not None
    assert again.step == 20
    assert same(again.tensors, some(20))
    assert capsys.readouterr().err == ""


def test_where_all_states_are_torn_nothing_starts_over_in_silence(
    state: TrainingState, capsys: pytest.CaptureFixture[str]
) -> None:
    with state.locked():
        for step, spoil in ((10, truncated), (20, zeroed_in_the_middle)):
            state.save(step, some(step), {})
            path = state.folder / f"step-{step:09}.safetensors"
            path.write_bytes(spoil(path.read_bytes()))
        for _ in range(2):
            with pytest.raises(PipelineError, match="no state that is whole"):
                state.load()
    assert capsys.readouterr().err.count("is torn") == 2
    assert len(list(state.folder.glob("torn-*"))) == 2


def test_a_state_of_another_format_is_not_taken(
    state: TrainingState, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with state.locked():
        with monkeypatch.context() as patch:
            patch.setattr(training_state, "FORMAT", "gaitgl-training-state-0")
            state.save(1, some(1), {})
        with pytest.raises(PipelineError, match="no state that is whole"):
            state.load()
    assert "is torn (its format is gaitgl-training-state-0)" in capsys.readouterr().err


def test_a_state_that_cannot_be_read_now_is_not_given_up(state: TrainingState) -> None:
    with state.locked():
        state.save(10, some(10), {})
        path = state.folder / "step-000000010.safetensors"
        aside = path.rename(state.folder / "aside")
        path.mkdir()  # reading it fails as on a disk in trouble: an OSError
        with pytest.raises(PipelineError, match=f"{path} cannot be read: "):
            state.load()
        path.rmdir()
        aside.rename(path)
        saved = state.load()
    assert saved is not None
    assert saved.step == 10


def test_no_bit_of_a_state_can_flip_unnoticed(
    state: TrainingState, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {"w": torch.tensor([1.0, -2.5]), "history": torch.tensor([[3.0]]).double()}
    notes = {"idle": 0, "best": {"rank1": 61.5}}
    with state.locked():
        state.save(4, tensors, notes)
        path = state.folder / "step-000000004.safetensors"
        written = path.read_bytes()
        noticed = 0
        for i, bit in ((i, bit) for i in range(len(written)) for bit in range(8)):
            path.write_bytes(written[:i] + bytes([written[i] ^ 1 << bit]) + written[i + 1 :])
            try:
                saved = state.load()
            except PipelineError:
                noticed += 1
                continue
            assert saved is not None
            assert saved.step == 4, (i, bit)
            assert same(saved.tensors, tensors), (i, bit)
            assert {name: saved.notes[name] for name in notes} == notes, (i, bit)
    assert noticed > 0.9 * 8 * len(written)
    assert capsys.readouterr().err.count("is torn") == noticed


def test_what_a_killed_writer_left_is_swept(state: TrainingState) -> None:
    with state.locked():
        state.save(8, some(8), {})
    done = subprocess.run(
        python(KILLED_WRITER), cwd=state.folder, env=environment(), check=False, timeout=DEADLINE_S
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = state.folder.glob(".step-*")
    with state.locked():
        saved = state.load()
    assert saved is not None
    assert saved.step == 8
    assert not left.exists()


def test_other_settings_have_another_folder_and_are_told(state: TrainingState) -> None:
    others = {
        "lr": {**IDENTITY, "training": {"lr": 0.2, "steps": 9}},
        "inputs": {**IDENTITY, "upstream": {"pretrain": "ab"}, "seed": 1},
        "no state": {**IDENTITY, "seed": 2},
    }
    states = {name: TrainingState("pretrain", identity) for name, identity in others.items()}
    stage = TrainingState("finetune", IDENTITY)
    assert len({each.folder for each in (state, stage, *states.values())}) == 5
    assert TrainingState("pretrain", dict(reversed(IDENTITY.items()))).folder == state.folder
    for name, each in {**states, "stage": stage}.items():
        with each.locked():
            if name != "no state":
                each.save(3, some(3), {})
                each.save(12, some(12), {})
    with state.locked():
        state.save(5, some(5), {})
        assert state.load() is not None
        assert sorted(state.others()) == sorted(
            [
                f"{states['lr'].folder} (step 12): other training.lr",
                f"{states['inputs'].folder} (step 12): other seed, upstream.pretrain",
            ]
        )


def test_other_code_has_another_folder(
    state: TrainingState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with state.locked():
        state.save(6, some(6), {})
    root = tmp_path / "changed"
    for name in ("dvc.yaml", *(json.loads((state.folder / "what.json").read_text())["code"])):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((stage_inputs.ROOT / name).read_bytes())
    with (root / "gaitgl" / "losses.py").open("a") as file:
        file.write("\n")
    (root / "pipeline" / "progress.py").write_text("not what DVC reruns the stage for")
    monkeypatch.setattr(stage_inputs, "ROOT", root)
    changed = TrainingState("pretrain", IDENTITY)
    with changed.locked():
        assert changed.load() is None
        assert changed.others() == [f"{state.folder} (step 6): other code.gaitgl/losses.py"]


def test_a_second_trainer_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    state = TrainingState("pretrain", {"seed": 0})
    started = datetime.now().astimezone().replace(microsecond=0)
    with child(*python(HOLDER), cwd=tmp_path) as holder:
        with pytest.raises(PipelineError) as raised, state.locked():
            pass
        message = str(raised.value)
        matched = re.search(r"process (\d+) on (\S+), since (\S+ \S+) holds (\S+)\.\n", message)
        assert message.startswith("this pretrain runs already: ")
        assert matched
        pid, host, since, folder = matched.groups()
        assert (int(pid), host, Path(folder)) == (holder.pid, socket.gethostname(), state.folder)
        assert started <= datetime.fromisoformat(since) <= datetime.now().astimezone()
        with TrainingState("pretrain", {"seed": 1}).locked():
            pass  # another training is free to run

        holder.kill()
        with state.locked():
            now = json.loads((state.folder / "trainer.json").read_text())
            assert now["pid"] == os.getpid()


def test_a_trainer_whose_dvc_was_killed_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = python(STARTER, *python(HOLDER))
    with child(*command, cwd=tmp_path, DVC_STAGE="pretrain") as holder:
        state = TrainingState("pretrain", {"seed": 0})
        with pytest.raises(PipelineError, match="runs already"), state.locked():
            pass
        holder.kill()
        # the holder lets go once it hears that it is waited for
        monkeypatch.setattr(sys, "stderr", holder.input)
        with state.locked():
            heard = holder.answer()
    assert heard.startswith(f"heard: waiting for process {holder.pid} on {socket.gethostname()}, ")


def test_a_trainer_started_by_hand_is_not_waited_for_when_its_terminal_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with child(*python(STARTER, *python(HOLDER)), cwd=tmp_path) as holder:
        holder.kill()
        state = TrainingState("pretrain", {"seed": 0})
        with pytest.raises(PipelineError, match=f"process {holder.pid} on "), state.locked():
            pass
    assert "waiting" not in capsys.readouterr().err


def test_an_error_inside_frees_the_lock(state: TrainingState) -> None:
    with pytest.raises(ZeroDivisionError), state.locked():
        raise ZeroDivisionError
    with TrainingState("pretrain", IDENTITY).locked():
        pass


def test_a_state_that_cannot_be_written_leaves_the_one_before_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        python(NO_LARGE_FILES),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    state = TrainingState("pretrain", {"seed": 0})
    first, second = done.stdout.splitlines()
    assert first == (
        f"the state of step 5 cannot be written to {state.folder}: {os.strerror(errno.EFBIG)}."
    )
    assert second == (
        "It takes 3.0 MiB. Make room and start again: the training goes on from that of step 4."
    )
    assert [name for name in files(state.folder) if "step" in name] == [
        "step-000000004.safetensors"
    ]
    with state.locked():
        saved = state.load()
    assert saved is not None
    assert (saved.step, saved.notes["idle"]) == (4, 3)
    assert torch.equal(saved.tensors["weight"], torch.arange(1000))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[None]:
    """runs/ on a file system of 1 MiB."""
    runs = tmp_path / "runs"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(runs)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield
    subprocess.run(["umount", "-l", str(runs)], check=True)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_both_states_whole_and_room_lets_it_go_on(state: TrainingState) -> None:
    large, small = {"w": torch.ones(150_000)}, {"w": torch.ones(20_000)}  # 0.57 and 0.08 MiB
    with state.locked():
        state.save(1, small, {})
        state.save(2, large, {})
        with pytest.raises(PipelineError) as raised:
            state.save(3, large, {})
        assert f"the state of step 3 cannot be written to {state.folder}: " in str(raised.value)
        assert os.strerror(errno.ENOSPC) in str(raised.value)
        assert "It takes 0.6 MiB. Make room and start again" in str(raised.value)
        assert "goes on from that of step 2." in str(raised.value)
        saved = state.load()
        assert saved is not None
        assert saved.step == 2
        assert same(saved.tensors, large)
        assert sorted(name for name in files(state.folder) if "step" in name) == [
            "step-000000001.safetensors",
            "step-000000002.safetensors",
        ]
        state.save(3, small, {})
        last = state.load()
    assert last is not None
    assert last.step == 3


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "pretrain"
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(b"weights")
    (folder / "history.csv").write_bytes(b"step\n1\n")
    return folder


def test_a_result_is_handed_to_dvc_while_dvc_has_not_noted_it(
    state: TrainingState, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That DVC's own note is understood: tests/stages/test_killed_training.py"""
    monkeypatch.setenv("DVC_STAGE", "pretrain")
    assert state.result() is None
    state.keep_result(made)
    for lock in (None, "", "stages: {}", "stages: {pretrain: {outs: [{md5: 12ab.dir}]}}"):
        if lock is not None:
            Path("dvc.lock").write_text(lock)
        result = TrainingState("pretrain", IDENTITY).result()
        assert result is not None
        assert (result / "checkpoint.safetensors").read_bytes() == b"weights"
        assert (result / "history.csv").read_bytes() == b"step\n1\n"


def test_a_result_takes_the_place_of_all_states_and_of_torn_ones(
    state: TrainingState, made: Path
) -> None:
    last = state.folder / "step-000000002.safetensors"
    with state.locked():
        state.save(1, some(1), {})
        state.save(2, some(2), {})
        last.write_bytes(truncated(last.read_bytes()))
        assert state.load() is not None
        assert [name for name in files(state.folder) if "step" in name] == [
            "step-000000001.safetensors",
            "torn-step-000000002.safetensors",
        ]
        state.keep_result(made)
        assert not [name for name in files(state.folder) if "step" in name]
        assert state.load() is None


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "training.json"])
@pytest.mark.parametrize("content", [b"weighs", b"", None])
def test_a_damaged_result_is_told_and_not_taken(
    state: TrainingState,
    made: Path,
    name: str,
    content: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DVC_STAGE", "pretrain")
    state.keep_result(made)
    path = Path("runs", "finished", "pretrain", name)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert state.result() is None
    assert "is damaged; training starts anew" in capsys.readouterr().err
    assert not path.parent.exists()


def test_a_result_by_hand_is_taken_while_its_run_is_not_recorded(
    state: TrainingState, made: Path
) -> None:
    record = state.folder / "record"
    record.mkdir(parents=True)
    (record / "run.json").touch()
    state.keep_result(made)
    assert state.result() is not None
    (record / "run.json").unlink()
    assert state.result() is None
    assert not Path("runs", "finished", "pretrain").exists()


def test_only_dvc_and_the_very_same_training_get_a_result(
    state: TrainingState, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "pretrain")
    state.keep_result(made)
    assert TrainingState("pretrain", {**IDENTITY, "seed": 1}).result() is None
    assert TrainingState("finetune", IDENTITY).result() is None
    assert state.result() is not None
    monkeypatch.delenv("DVC_STAGE")
    assert state.result() is None


def test_a_new_result_takes_the_place_of_the_one_before(
    state: TrainingState, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "pretrain")
    state.keep_result(made)
    (made / "history.csv").unlink()
    (made / "checkpoint.safetensors").write_bytes(b"others")
    other = TrainingState("pretrain", {**IDENTITY, "seed": 1})
    other.keep_result(made)
    assert state.result() is None
    result = other.result()
    assert result is not None
    assert files(result) == ["checkpoint.safetensors", "training.json"]
    assert (result / "checkpoint.safetensors").read_bytes() == b"others"


@pytest.mark.parametrize("recorded", [True, False])
def test_a_finished_training_leaves_only_what_is_still_to_be_recorded(
    state: TrainingState, made: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    monkeypatch.setenv("DVC_STAGE", "pretrain")
    record = state.folder / "record"
    with state.locked():
        state.save(1, some(1), {})
        state.save(2, some(2), {})
        (state.folder / "trouble").mkdir()  # of a time before
        if not recorded:
            record.mkdir()
            (record / "params.json").write_bytes(b"{}")
        state.keep_result(made)
        state.remove()
    if recorded:
        assert not state.folder.exists()
    else:
        assert [path.name for path in state.folder.iterdir()] == ["record"]
        assert (record / "params.json").read_bytes() == b"{}"
    assert state.result() is not None
    with state.locked():
        assert state.load() is None
