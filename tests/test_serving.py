"""A model behind HTTP, in a process of its own, and where servers can be reached from."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from benchmarks.serving import served
from pipeline.model_folder import open_model
from tests.child_processes import environment

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow models serve`, as `make serve` starts it."""
    model = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(model_folder, model)
    with served(model) as address:
        yield address


def ask(address: str, content: Any) -> requests.Response:
    return requests.post(f"{address}/invocations", json=content, timeout=120)


def test_embeddings_come_over_http_as_they_do_here(server: str, model_folder: Path) -> None:
    embedder = open_model(model_folder)
    random = np.random.default_rng(0)
    for n, t in ((1, 1), (2, 5), (1, 40)):
        grey = random.integers(0, 256, (n, t, 64, 44), np.uint8)
        for silhouettes in (grey, grey / 255):
            answer = ask(server, {"inputs": silhouettes.tolist()})
            assert answer.status_code == 200, answer.text
            got = np.array(answer.json()["predictions"], np.float32)
            np.testing.assert_allclose(got, embedder.predict(grey), rtol=1e-5, atol=1e-7)


def test_the_input_example_is_a_request(server: str, model_folder: Path) -> None:
    request = json.loads((model_folder / "serving_input_example.json").read_text(encoding="utf-8"))
    assert np.array(ask(server, request).json()["predictions"]).shape == (1, 5, 64)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"inputs": np.zeros((3, 64, 44)).tolist()}, "got shape [3, 64, 44]"),
        ({"inputs": np.full((1, 3, 64, 44), 255.0).tolist()}, "grey levels are divided by 255"),
        ({"instances": np.zeros((1, 3, 64, 44)).tolist()}, "'inputs'"),
    ],
)
def test_what_cannot_be_embedded_is_answered_with_what_was_expected(
    server: str, content: Any, told: str
) -> None:
    answer = ask(server, content)
    assert answer.status_code == 400
    assert told in answer.text


def test_the_server_is_reached_from_this_machine_alone_unless_told_otherwise() -> None:
    def recipe(*arguments: str) -> str:
        command = ["make", "--no-print-directory", "-n", "serve", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
        ).stdout

    by_default = recipe()
    assert "mlflow models serve" in by_default
    assert by_default.count("--host") == by_default.count("--host 127.0.0.1") == 1
    told = recipe("ARGS=--host 0.0.0.0")
    assert told.index("--host 0.0.0.0") > told.index("--host 127.0.0.1")  # the last one counts
