"""Several processes, on one machine or many, that train or embed as one: torchrun starts them.

Every process computes its share of each batch; embeddings are gathered, so that each of them sees
the loss of the whole batch. Process 0 alone writes files and records runs.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.processes import worker_count
from pipeline.stopping import SIGNALS, STARTED_BY, started_by, stopped_with_starter

TIMEOUT = timedelta(minutes=10)
"""A process that dies is noticed at once; a machine that loses its power, after this."""

SHUTDOWN_S = 50
"""What a process has for its step, its state and its record, once it is asked to stop."""


@dataclass(frozen=True, slots=True)
class World:
    """The processes that work together; ``World()`` is one process alone, where all is local."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and records."""
        return self.rank == 0

    @property
    def beside_leader(self) -> bool:
        """Whether this process runs on the machine of process 0 (torchrun's node 0)."""
        return os.environ.get("GROUP_RANK", "0") == "0"

    def share(self, n: int) -> slice:
        """The rows of this process, of ``n``; ``size`` must divide ``n``."""
        each = n // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, embeddings: Tensor) -> Tensor:
        """The whole batch [n, c, strips] from every process' share [n / size, c, strips].

        Only the own share has a gradient, so a loss of the whole batch must be multiplied by
        ``size`` before ``backward``: DistributedDataParallel averages over processes.
        """
        if self.size == 1:
            return embeddings
        own = embeddings.float().contiguous()
        shares = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(shares, own.detach())
        shares[self.rank] = own
        return torch.cat(shares)  # [n, c, strips]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process: all of them get the same answer."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def unlike_leader(self, digest: str) -> list[int]:
        """The processes whose ``digest`` (of equal length everywhere) is not that of process 0."""
        if self.size == 1:
            return []
        own = torch.tensor(list(digest.encode()), dtype=torch.uint8)
        digests = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(digests, own)
        return [rank for rank, other in enumerate(digests) if not torch.equal(other, digests[0])]

    def copy_from_leader(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors, of equal shapes everywhere, with those of process 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def send(self, rows: Tensor) -> None:
        """Give rows on the CPU to process 0, which must ``receive`` them."""
        dist.send(rows.contiguous(), 0)

    def receive(self, rows: Tensor, rank: int) -> Tensor:
        """Fill ``rows``, on the CPU, with what process ``rank`` sends."""
        dist.recv(rows, rank)
        return rows

    def wait_for_all(self) -> None:
        """Return once every process has come here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started, joined for the time of the block."""
    size = int(os.environ["WORLD_SIZE"]) if _launched() else 1
    if size == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # tensors on the CPU (flags, embeddings to write) travel by gloo also where GPUs train
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT
    )
    rank = dist.get_rank()
    # Gloo is left in any case: its threads, if they are still there at the interpreter's end, abort
    # it now and then. NCCL would never let go while another process waits in it for this one.
    leaves = device.type != "cuda"
    try:
        yield World(rank, size)
        leaves = True
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        # the process that is gone, or the one that started all of them, says why
        reason = str(error).partition("\n")[0][:200]
        sys.stderr.write(f"process {rank} lost another process, so it stops: {reason}\n")
        sys.exit(1)
    finally:
        if leaves:
            dist.destroy_process_group()


def spread(processes: int) -> None:
    """Run this stage in ``processes`` processes, wait, and exit with their status.

    Returns at once for one process, and in a process that torchrun has started. More machines:
    torchrun's own settings in the environment (PET_NNODES and so on) are respected.
    """
    if _launched() or (processes == 1 and "PET_NNODES" not in os.environ):
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, worker_count(-1) // processes)))
    os.environ[STARTED_BY] = started_by() or ""
    signals = (s for s in (*SIGNALS, signal.SIGQUIT) if signal.getsignal(s) != signal.SIG_IGN)
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", ",".join(s.name for s in signals))
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    # the processes themselves say what happened
    for part in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{part}").setLevel(logging.CRITICAL)
    stage = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]  # python -m stages.x
    arguments = ["--nproc-per-node", str(processes), "--shutdown-timeout", str(SHUTDOWN_S)]
    arguments += ["--module", stage, *sys.argv[1:]]
    try:
        with stopped_with_starter():
            run(get_args_parser().parse_args(arguments))  # type: ignore[no-untyped-call]
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            sys.stderr.write(
                f"\nerror: process {rank} of {processes} was killed by {failure.signal_name()}, so "
                "the others were stopped. SIGKILL is most likely for want of memory. A training "
                "goes on from its last state at the next start.\n"
            )
            sys.exit(128 - failure.exitcode)
        sys.exit(failure.exitcode)
    sys.exit(0)


def workers_of_each_process(workers: int) -> int:
    """``runtime.workers``, divided among the processes of this machine; 0 stays 0."""
    count = worker_count(workers)
    return max(1, count // processes_here()) if count else 0


def processes_here() -> int:
    """How many processes train on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _launched() else 1


def _launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
