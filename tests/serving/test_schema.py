"""schemathesis asks for all that `/openapi.json` promises, and for what it does not."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest
from helpers import tiny_network
from serving_process import process

from resnext import Card, Preprocessing, save

SETTINGS = """
[[operations]]  # no schema says that two parameters differ
include-path = "/v1/explain"
checks.positive_data_acceptance.expected-statuses = ["2xx", 422]
"""


@pytest.mark.slow
def test_schemathesis(tmp_path: Path) -> None:
    """Valid requests are taken, others refused, all as described."""
    python = os.environ.get("SCHEMATHESIS")  # the Python of an environment that has it
    if python is None:
        venv.create(tmp_path / "venv", with_pip=True)
        python = str(tmp_path / "venv" / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "-q", "schemathesis>=4"], check=True)
    card = Card(("a cat", "Löwe", "c", "d"), Preprocessing(size=32, resize=36), threshold=0.5)
    model = tmp_path / "model.safetensors"
    save(tiny_network(card=card), model)
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(SETTINGS)
    log = tmp_path / "log"
    with process("-m", "resnext", "serve", str(model), "--port", "0", log=log) as server:
        command = [str(Path(python).with_name("schemathesis")), "--config-file", str(settings)]
        command += ["run", f"http://127.0.0.1:{server.port}/openapi.json", "--mode", "all"]
        command += ["--max-examples", "100", "--seed", "1", "--checks", "all", "--no-color"]
        hooks = {"SCHEMATHESIS_HOOKS": "schema_hooks", "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, **hooks},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
    assert "Traceback" not in log.read_text()
