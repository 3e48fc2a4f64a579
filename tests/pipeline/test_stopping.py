import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest

from pipeline.stopping import (
    SIGNALS,
    STARTED_BY,
    WATCHER,
    exits_at_signals,
    has_ended,
    stopped_with_starter,
)
from tests.child_processes import STARTER, Child, child, python

DEADLINE_S = 60.0

STAGE = """
import os, signal, sys
from contextlib import suppress
signal.alarm(60)
from pipeline.stopping import SIGNALS, StopRequest

def handlers():
    return [signal.getsignal(number) for number in SIGNALS]

before = handlers()
print(os.getpid(), flush=True)
sys.stdin.readline()
with suppress(ZeroDivisionError), StopRequest() as stop:
    print("inside", flush=True)
    while (line := sys.stdin.readline()) == "reason\\n":
        print(stop.reason() or "nothing", stop.exit_status, flush=True)
    if line == "fail\\n":
        1 / 0
print("restored" if handlers() == before else "changed", flush=True)
sys.stdin.readline()
"""

WATCHED = """
import os, signal, sys
signal.alarm(60)
from pipeline.stopping import stopped_with_starter

def told(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit()

signal.signal(signal.SIGTERM, told)
print(os.getpid(), flush=True)
sys.stdin.readline()
with stopped_with_starter():
    print("inside", flush=True)
    while True:
        signal.pause()
"""

GONE = "the end of the process that started it 143"


Start = Callable[..., Child]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda *command, **changes: stack.enter_context(child(*command, **changes))


def wait_for_zombie(pid: int) -> None:
    process, deadline = psutil.Process(pid), time.monotonic() + DEADLINE_S
    while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_is_noted_and_the_block_goes_on(start: Start, name: str) -> None:
    number = signal.Signals[name]
    stage = start(*python(STAGE))
    assert stage.ask("begin") == "inside"
    assert stage.ask("reason") == "nothing 143"
    os.kill(stage.pid, number)
    assert stage.ask("reason") == stage.ask("reason") == f"{name} {128 + number}"


def test_the_last_of_several_signals_is_the_reason(start: Start) -> None:
    stage = start(*python(STAGE))
    stage.ask("begin")
    for name, status in (("SIGHUP", 129), ("SIGTERM", 143), ("SIGINT", 130)):
        os.kill(stage.pid, signal.Signals[name])
        assert stage.ask("reason") == f"{name} {status}"


def test_after_the_block_signals_do_what_they_did_before(start: Start) -> None:
    stage = start(*python(STAGE))
    stage.ask("begin")
    os.kill(stage.pid, signal.SIGTERM)
    assert stage.ask("leave") == "restored"
    os.kill(stage.pid, signal.SIGTERM)
    assert stage.process.wait(DEADLINE_S) == -signal.SIGTERM


def test_handlers_are_restored_after_an_error_too(start: Start) -> None:
    stage = start(*python(STAGE))
    stage.ask("begin")
    assert stage.ask("fail") == "restored"


def test_nohup_keeps_a_hangup_ignored(start: Start) -> None:
    stage = start("nohup", *python(STAGE))
    stage.ask("begin")
    os.kill(stage.pid, signal.SIGHUP)
    assert stage.ask("reason") == "nothing 143"
    os.kill(stage.pid, signal.SIGINT)
    assert stage.ask("reason") == "SIGINT 130"
    assert stage.ask("leave") == "restored"


def test_what_was_started_by_hand_outlives_its_starter(start: Start) -> None:
    stage = start(*python(STARTER, *python(STAGE)))
    stage.ask("begin")
    stage.kill()
    assert stage.ask("reason") == "nothing 143"


@pytest.mark.parametrize("variable", ["DVC_STAGE", "TORCHELASTIC_RUN_ID"])
def test_the_death_of_the_starter_is_a_reason(start: Start, variable: str) -> None:
    stage = start(*python(STARTER, *python(STAGE)), **{variable: "x"})
    stage.ask("begin")
    assert stage.ask("reason") == "nothing 143"
    stage.kill()
    assert stage.ask("reason") == GONE
    os.kill(stage.pid, signal.SIGINT)
    assert stage.ask("reason") == "the end of the process that started it 130"


def test_the_death_of_the_starter_is_noticed_through_a_shell(start: Start) -> None:
    commands = f"{shlex.join(python(STAGE))}; true"  # of one command alone the shell makes itself
    stage = start(*python(STARTER, "sh", "-c", commands), DVC_STAGE="pretrain")
    shell = psutil.Process(stage.pid).parent()
    assert shell is not None
    assert shell.ppid() == stage.process.pid
    stage.ask("begin")
    assert stage.ask("reason") == "nothing 143"
    stage.kill()
    assert psutil.Process(stage.pid).parent() == shell
    assert stage.ask("reason") == GONE


@pytest.mark.parametrize("between", [(), ("sh", "-c", '"$@"; true', "sh")], ids=["", "shell"])
def test_a_starter_that_died_before_the_first_look_is_noticed(
    start: Start, between: tuple[str, ...]
) -> None:
    stage = start(*python(STARTER, *between, *python(STAGE)), DVC_STAGE="pretrain")
    stage.kill()
    assert stage.ask("begin") == "inside"
    assert stage.ask("reason") == GONE


def test_a_starter_that_nobody_waited_for_counts_as_dead(start: Start) -> None:
    stage = start(*python(STARTER, *python(STAGE)), DVC_STAGE="pretrain")
    stage.ask("begin")
    stage.process.kill()
    wait_for_zombie(stage.process.pid)
    assert stage.ask("reason") == GONE


@pytest.mark.parametrize(
    ("first", "reason"), [("stages.pretrain", "nothing 143"), ("supervisord", GONE)]
)
def test_process_1_of_a_container_may_have_started_it_or_adopted_it(
    start: Start, first: str, reason: str
) -> None:
    container = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    if subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make process namespaces")
    command = python(STARTER, "sh", "-c", '"$@"; true', first, *python(STAGE))
    stage = start(*container, *command, TORCHELASTIC_RUN_ID="x")
    assert stage.ask("begin") == "inside"
    assert stage.ask("reason") == reason


NAMING = """
import os, signal, sys
signal.alarm(60)
from pipeline.stopping import started_by
print(os.getpid(), flush=True)
while sys.stdin.readline():
    print(started_by(), flush=True)
"""


@pytest.mark.parametrize("between", [(), ("sh", "-c", '"$@"; true', "sh")], ids=["", "shell"])
def test_a_process_names_its_starter_and_others_see_it_end(
    start: Start, between: tuple[str, ...]
) -> None:
    stage = start(*python(STARTER, *between, *python(NAMING)), DVC_STAGE="pretrain")
    named = stage.ask("who")
    assert named.split()[0] == str(stage.process.pid)
    assert not has_ended(named)
    stage.kill()
    assert psutil.pid_exists(stage.pid)
    assert has_ended(named)


def test_a_starter_that_nobody_waited_for_has_ended(start: Start) -> None:
    stage = start(*python(STARTER, *python(NAMING)), DVC_STAGE="pretrain")
    named = stage.ask("who")
    stage.process.kill()
    wait_for_zombie(stage.process.pid)
    assert has_ended(named)


def test_a_number_used_again_is_not_the_starter(start: Start) -> None:
    stage = start(*python(STARTER, *python(NAMING)), DVC_STAGE="pretrain")
    pid, created = stage.ask("who").split()
    assert has_ended(f"{pid} {float(created) - 1}")


def test_nobody_started_what_was_started_by_hand_and_several_name_who_started_them_all(
    start: Start,
) -> None:
    assert start(*python(STARTER, *python(NAMING))).ask("who") == "None"
    several = start(*python(NAMING), DVC_STAGE="x", TORCHELASTIC_RUN_ID="x", **{STARTED_BY: "7 1"})
    assert several.ask("who") == "7 1"


def test_who_is_stopped_with_its_starter_gets_a_sigterm(start: Start) -> None:
    stage = start(*python(STARTER, *python(WATCHED)), DVC_STAGE="pretrain")
    assert stage.ask("begin") == "inside"
    stage.kill()
    assert stage.answer() == "SIGTERM"


def test_nobody_watches_the_starter_after_the_block() -> None:
    def watchers() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == WATCHER]

    with stopped_with_starter():
        with stopped_with_starter():
            assert len(watchers()) == 1
        assert len(watchers()) == 1
    assert not watchers()


EXITING = """
import os, signal, sys
signal.alarm(60)
from pipeline.stopping import exits_at_signals
print(os.getpid(), flush=True)
sys.stdin.readline()
try:
    with exits_at_signals("all of it is kept"):
        print("inside", flush=True)
        while True:
            signal.pause()
finally:
    print("closed", flush=True)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_the_process_but_closes_what_is_open(start: Start, name: str) -> None:
    number = signal.Signals[name]
    stage = start(*python(EXITING))
    assert stage.ask("begin") == "inside"
    os.kill(stage.pid, number)
    assert stage.answer() == "closed"
    assert stage.process.wait(DEADLINE_S) == 128 + number


def test_nohup_keeps_a_process_from_ending_at_a_hangup(start: Start) -> None:
    stage = start("nohup", *python(EXITING))
    assert stage.ask("begin") == "inside"
    os.kill(stage.pid, signal.SIGHUP)
    os.kill(stage.pid, signal.SIGTERM)
    assert stage.answer() == "closed"
    assert stage.process.wait(DEADLINE_S) == 128 + signal.SIGTERM


def test_a_second_signal_does_not_disturb_the_closing(capsys: pytest.CaptureFixture[str]) -> None:
    closed = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            closed.append(True)

    with pytest.raises(SystemExit) as raised, exits_at_signals("what is done is kept"):
        work()
    assert closed
    assert raised.value.code == 143
    assert capsys.readouterr().err.count("stopped by") == 1


def test_the_end_of_dvc_ends_the_process_too(start: Start) -> None:
    stage = start(*python(STARTER, *python(EXITING)), DVC_STAGE="normalize")
    assert stage.ask("begin") == "inside"
    stage.kill()
    assert stage.answer() == "closed"


def test_signals_do_what_they_did_before_once_the_block_is_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit) as raised, exits_at_signals("what is done is kept"):
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.code == 143
    assert capsys.readouterr().err == "\nstopped by SIGTERM: what is done is kept\n"
    assert [signal.getsignal(number) for number in SIGNALS] == before
