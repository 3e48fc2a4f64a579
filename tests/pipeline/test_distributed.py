import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from gaitgl.losses import batch_all_triplet_loss
from pipeline.distributed import ALONE, World, joined, spread
from tests.child_processes import STARTER, child, environment, python

DEADLINE_S = 60.0
CPU = torch.device("cpu")

TOGETHER = """
import sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from gaitgl.losses import batch_all_triplet_loss
from pipeline.distributed import joined

folder = Path(sys.argv[1])
given = torch.load(folder / "given.pt")
with joined(torch.device("cpu")) as world:
    found = {"rank": world.rank, "size": world.size, "leads": world.leads}
    found["any"] = [world.any(flag) for flag in (False, world.rank == 0, world.rank == 1, True)]

    share = world.share(8)
    own = given["embeddings"].permute(1, 2, 0)[share]
    found["gathered"] = world.gather(own)
    found["gathered half"] = world.gather(own.bfloat16())

    weight = given["weight"].requires_grad_()
    embeddings = (given["inputs"][share] @ weight).view(-1, 5, 3)
    loss = batch_all_triplet_loss(world.gather(embeddings), given["labels"]).loss
    (loss * world.size).backward()
    dist.all_reduce(weight.grad)
    found["loss"], found["gradient"] = loss.detach(), weight.grad / world.size

    tensors = given["tensors"]
    if not world.leads:
        tensors = [torch.zeros_like(tensor) for tensor in tensors]
    found["strides"] = [tensor.stride() for tensor in tensors]
    world.copy_from_leader(tensors)
    found["copied"] = tensors
    found["strides after"] = [tensor.stride() for tensor in tensors]

    if world.leads:
        found["received"] = world.receive(torch.empty(3, 8), 1)
    else:
        world.send(given["inputs"].t()[:3])

    came = [folder / f"came-{rank}" for rank in range(2)]
    while not world.leads and not came[0].exists():
        time.sleep(0.01)
    came[world.rank].touch()
    world.wait_for_all()
    found["all came"] = all(path.exists() for path in came)
    torch.save(found, folder / f"found-{world.rank}.pt")
"""

LOST = """
import os, signal, torch
signal.alarm(60)
from pipeline.distributed import joined
with joined(torch.device("cpu")) as world:
    world.wait_for_all()
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    world.any(True)
"""

FAILING = """
import signal, torch
signal.alarm(60)
from pipeline.distributed import joined
from pipeline.errors import PipelineError
try:
    with joined(torch.device("cpu")) as world:
        world.wait_for_all()
        raise PipelineError("both of us")
except PipelineError:
    assert not torch.distributed.is_initialized()
"""

STAGE = """
import os, signal, sys, time
from pathlib import Path
signal.alarm(60)
if "RANK" in os.environ:
    rank = int(os.environ["RANK"])
    Path(f"new-{rank}").write_text(str(os.getpid()))
    Path(f"new-{rank}").rename(f"pid-{rank}")
    while not all(Path(f"pid-{other}").exists() for other in range(2)):
        time.sleep(0.01)
    if rank == 1:
        exec(sys.argv[1])
    signal.pause()
from pipeline.distributed import spread
print(os.getpid(), flush=True)
spread(2)
"""

ON_TWO_MACHINES = """
import torch
from pathlib import Path
from pipeline.distributed import joined, spread
spread(1)
with joined(torch.device("cpu")) as world:
    row = world.gather(torch.full((1, 1, 1), float(world.rank)))
    Path(f"found-{world.rank}").write_text(str(row.flatten().tolist()))
"""


@pytest.fixture(autouse=True)
def _started_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "PET_NNODES", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    torch.manual_seed(0)
    weight = torch.randn(4, 2, 3, 3, 3)
    last = torch.channels_last_3d
    return {
        "embeddings": torch.randn(3, 8, 5),
        "inputs": torch.randn(8, 6),
        "weight": torch.randn(6, 15),
        "labels": torch.tensor([3, 1, 1, 0, 3, 3, 0, 1]),
        "tensors": [
            torch.randn(7, 5),
            weight.to(memory_format=last),
            weight[:, :1].to(memory_format=last),
            weight[:, :, :1, :1, :1].to(memory_format=last),
            torch.tensor(2.5),
            torch.tensor([2**40, -3]),
        ],
    }


@pytest.fixture(scope="module")
def together(
    given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of two processes, started by torchrun, found."""
    folder = tmp_path_factory.mktemp("together")
    torch.save(given, folder / "given.pt")
    (folder / "work.py").write_text(TOGETHER, encoding="utf-8")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    done = subprocess.run(
        [*torchrun, folder / "work.py", folder],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)]


def test_one_process_alone_leaves_everything_as_it_is() -> None:
    embeddings = torch.randn(4, 5, 3).bfloat16()
    tensor = torch.randn(3)
    before = tensor.clone()
    with joined(CPU) as world:
        assert world is ALONE
        assert not torch.distributed.is_initialized()
        assert world.leads
        assert world.share(7) == slice(0, 7)
        assert world.gather(embeddings) is embeddings
        assert [world.any(flag) for flag in (True, False)] == [True, False]
        world.copy_from_leader([tensor])
        world.wait_for_all()
    assert torch.equal(tensor, before)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 12])
def test_shares_are_equal_and_make_up_the_batch(size: int) -> None:
    rows = list(range(12))
    shares = [rows[World(rank, size).share(12)] for rank in range(size)]
    assert [row for share in shares for row in share] == rows
    assert {len(share) for share in shares} == {12 // size}


def test_torchrun_starts_a_leader_and_another(together: list[dict[str, Any]]) -> None:
    assert [found["rank"] for found in together] == [0, 1]
    assert [found["size"] for found in together] == [2, 2]
    assert [found["leads"] for found in together] == [True, False]


def test_each_process_gathers_the_whole_batch(
    given: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    whole = given["embeddings"].permute(1, 2, 0)
    for found in together:
        assert torch.equal(found["gathered"], whole)
        assert found["gathered half"].dtype == torch.float32
        assert torch.equal(found["gathered half"], whole.bfloat16().float())


def test_gradients_of_the_whole_batch_average_to_those_of_one_process(
    given: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    weight = given["weight"].clone().requires_grad_()
    loss = batch_all_triplet_loss((given["inputs"] @ weight).view(8, 5, 3), given["labels"]).loss
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() > 0.01
    for found in together:
        torch.testing.assert_close(found["loss"], loss.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found["gradient"], gradient, rtol=1e-6, atol=1e-6)


def test_what_is_true_in_any_process_is_true_in_all(together: list[dict[str, Any]]) -> None:
    assert [found["any"] for found in together] == [[False, True, True, True]] * 2


def test_all_get_the_leaders_tensors_in_their_own_layout(
    given: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    assert not given["tensors"][1].is_contiguous()
    for found in together:
        assert found["strides after"] == found["strides"]
        for copied, tensor in zip(found["copied"], given["tensors"], strict=True):
            assert torch.equal(copied, tensor)


def test_the_leader_receives_rows_that_another_sends(
    given: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    assert torch.equal(together[0]["received"], given["inputs"].t()[:3])


def test_nobody_goes_on_before_all_have_come(together: list[dict[str, Any]]) -> None:
    assert [found["all came"] for found in together] == [True, True]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def ended(
    commands: list[tuple[str, ...]], cwd: Path, changes: list[dict[str, str]]
) -> list[tuple[int, str]]:
    """Exit status and standard error of processes that run at once."""
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=environment(MASTER_ADDR="127.0.0.1", **change),
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for command, change in zip(commands, changes, strict=True)
        ]
        for process in processes:
            stack.callback(process.kill)
        errors = [process.communicate(timeout=2 * DEADLINE_S)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def test_a_process_that_loses_another_says_so_in_one_line(tmp_path: Path) -> None:
    launched = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "MASTER_PORT": free_port()}
    (status, error), (killed, _) = ended(
        [python(LOST)] * 2, tmp_path, [{**launched, "RANK": rank} for rank in "01"]
    )
    assert killed == -signal.SIGKILL
    assert status == 1
    assert "process 0 lost another process, so it stops: " in error
    assert "Connection" in error
    assert "Traceback" not in error


def test_processes_that_fail_leave_each_other_before_they_end(tmp_path: Path) -> None:
    launched = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "MASTER_PORT": free_port()}
    done = ended([python(FAILING)] * 2, tmp_path, [{**launched, "RANK": rank} for rank in "01"])
    assert [status for status, _ in done] == [0, 0], done


def test_two_machines_work_as_one(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(ON_TWO_MACHINES, encoding="utf-8")
    torchrun = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": free_port()}
    done = ended(
        [(sys.executable, "-m", "work")] * 2,
        tmp_path,
        [{**torchrun, "PET_NODE_RANK": rank} for rank in "01"],
    )
    assert [status for status, _ in done] == [0, 0], done
    assert [(tmp_path / f"found-{rank}").read_text() for rank in range(2)] == ["[0.0, 1.0]"] * 2


def test_one_process_needs_no_other_and_a_launched_one_starts_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spread(1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    spread(2)
    monkeypatch.setenv("PET_NNODES", "2")
    spread(1)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ranks(folder: Path) -> list[int]:
    """Process numbers of the two that were started, once they run."""
    files = [folder / f"pid-{rank}" for rank in range(2)]
    wait_until(lambda: all(file.exists() for file in files))
    return [int(file.read_text()) for file in files]


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) for pid in pids)


Stage = Callable[[str], tuple[str, ...]]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """``stage(statement)``: a stage of two processes, of which the second runs the statement."""
    (tmp_path / "work.py").write_text(STAGE, encoding="utf-8")
    return lambda statement: (sys.executable, "-m", "work", statement)


def test_the_exit_status_of_one_process_is_that_of_the_stage(stage: Stage, tmp_path: Path) -> None:
    assert ended([stage("sys.exit(7)")], tmp_path, [{}]) == [(7, "")]
    assert gone(ranks(tmp_path))


def test_a_process_killed_for_want_of_memory_is_named_and_the_other_stopped(
    stage: Stage, tmp_path: Path
) -> None:
    killed = stage("os.kill(os.getpid(), signal.SIGKILL)")
    ((status, error),) = ended([killed], tmp_path, [{}])
    assert status == 128 + signal.SIGKILL
    assert "error: process 1 of 2 was killed by SIGKILL, so the others were" in error
    assert "Traceback" not in error
    assert gone(ranks(tmp_path))


def test_nohup_holds_for_all_processes(stage: Stage, tmp_path: Path) -> None:
    ends_when_told = "while not Path('go').exists(): time.sleep(0.01)\nsys.exit(7)"
    with child("nohup", *stage(ends_when_told), cwd=tmp_path) as hung_up:
        for pid in (*ranks(tmp_path), hung_up.pid):
            os.kill(pid, signal.SIGHUP)
        (tmp_path / "go").touch()
        assert hung_up.process.wait(DEADLINE_S) == 7


def test_a_signal_stops_all_processes_and_is_the_exit_status(stage: Stage, tmp_path: Path) -> None:
    with child(*stage("pass"), cwd=tmp_path) as stopped:
        pids = ranks(tmp_path)
        os.kill(stopped.pid, signal.SIGTERM)
        assert stopped.process.wait(DEADLINE_S) == 128 + signal.SIGTERM
    assert gone(pids)


def test_all_processes_end_with_the_dvc_that_started_them(stage: Stage, tmp_path: Path) -> None:
    command = python(STARTER, *stage("pass"))
    with child(*command, cwd=tmp_path, DVC_STAGE="pretrain") as stopped:
        pids = ranks(tmp_path)
        assert not gone(pids)
        stopped.kill()
        wait_until(lambda: gone([*pids, stopped.pid]))
