"""A model behind HTTP: requests a second, and how long they take.

python -m benchmarks serving [--quick]

`mlflow models serve` as `make serve` starts it, on this machine's loopback, with a network of the
demo's size. A request is one sequence of 30 frames as JSON. Each client sends its next request when
it has the answer to the last one, so no more wait than there are clients; they run in this process
and take their share of the cores.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import requests
import torch

from benchmarks.mlflow_servers import free_port
from benchmarks.timing import Row, number, seconds
from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.checkpoints import save_checkpoint
from pipeline.model_folder import open_model, write_model

CHANNELS = (8, 16, 32, 32, 32, 32)
FRAMES = 30
CLIENTS = (1, 4)
DEADLINE_S = 300.0


def rows(quick: bool) -> list[Row]:
    random = np.random.default_rng(0)
    silhouettes = 255 * random.integers(0, 2, (1, FRAMES, 64, 44), np.uint8)
    body = json.dumps({"inputs": silhouettes.tolist()}, separators=(",", ":")).encode()
    asked = 8 if quick else 200
    with tempfile.TemporaryDirectory() as name:
        model = Path(name, "model")
        _write_model(model)
        embedder = open_model(model)
        alone_s = statistics.median(
            seconds(lambda: embedder.predict(silhouettes)) for _ in range(5 if quick else 50)
        )
        with served(model) as address:
            _ask(address, body, 5)  # untimed: what the first requests load and make
            return [_row(address, body, clients, asked // clients, alone_s) for clients in CLIENTS]


def _row(address: str, body: bytes, clients: int, each_client: int, alone_s: float) -> Row:
    started_at = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(_ask, address, body, each_client) for _ in range(clients)]
        times_s = sorted(time_s for one in asked for time_s in one.result())
    rate = len(times_s) / (time.perf_counter() - started_at)
    p50, p99 = (1000 * float(np.quantile(times_s, q)) for q in (0.5, 0.99))
    return Row(
        f"served model, {FRAMES} frames a request, {clients} client{'s' * (clients > 1)}",
        "requests/s",
        None,
        rate,
        None,
        "–",
        f"p50 {number(p50)}, p99 {number(p99)} ms of {len(times_s)} requests",
        f"the network alone, here: {number(1000 * alone_s)} ms; a request is "
        f"{len(body) / 1000:.0f} kB",
    )


def _ask(address: str, body: bytes, times: int) -> list[float]:
    """Seconds that each of some requests took, one after the other."""
    times_s = []
    with requests.Session() as session:
        session.headers["Content-Type"] = "application/json"
        for _ in range(times):
            started_at = time.perf_counter()
            answer = session.post(f"{address}/invocations", data=body, timeout=DEADLINE_S)
            answer.raise_for_status()
            times_s.append(time.perf_counter() - started_at)
    return times_s


@contextmanager
def served(model: Path) -> Iterator[str]:
    """The address where `mlflow models serve` answers for a model, for the block."""
    port = free_port()
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith("MLFLOW") and k != "PYTHONPATH"
    }
    clean["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    clean["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    where = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            ["mlflow", "models", "serve", "--model-uri", str(model), *where],
            cwd=model.parent,  # where nothing of this project can be imported
            env=clean,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the whole group can be killed
        )
        address = f"http://127.0.0.1:{port}"
        try:
            given_up_at = time.monotonic() + DEADLINE_S
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > given_up_at:
                    log.seek(0)
                    raise RuntimeError(f"no server:\n{log.read().decode(errors='replace')}")
                time.sleep(0.1)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/ping", timeout=10).ok
    except requests.RequestException:
        return False


def _write_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = GaitGLConfig(CHANNELS, activation="sum")
    checkpoint = folder.with_name("checkpoint.safetensors")
    about = {"stage": "finetune", "dataset": "casia_e", "fingerprint": ""}
    save_checkpoint(checkpoint, GaitGL(config), about)
    write_model(folder, checkpoint)
