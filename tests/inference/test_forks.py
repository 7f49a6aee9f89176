"""Models in other processes: forked after a prediction, spawned, pickled and copied."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inference_cases import BATCH, INSTALLED, SIZE, agree, images

from resnext import ResNeXt, optimize, save
from resnext.errors import CheckpointError
from resnext.inference.engines.torch import TorchRunner
from resnext.inference.opener import open_runner
from resnext.inference.optimized import Optimized

pytestmark = pytest.mark.usefixtures("one_thread", "quick_search")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)

FORK = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
import numpy as np
import torch
from resnext import predict
from resnext.errors import ResNeXtError
import pickle

torch.set_num_threads(2)
torch.rand(2000, 2000).exp()  # starts the second thread
model = pickle.load(open(sys.argv[2], "rb"))
images = [*np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)]
wanted = predict(model, images, top=4)
for child in range(2):
    process = os.fork()
    if not process:
        threading.Timer(20, os._exit, [9]).start()  # a failure, not a hang
        code = 0
        try:
            got = predict(model, images, top=4)
            for mine, theirs in zip(got, wanted, strict=True):
                assert mine.labels == theirs.labels, (mine, theirs)
                np.testing.assert_allclose(mine.probabilities, theirs.probabilities, rtol=1e-5)
        except ResNeXtError as error:
            print(error, flush=True)
            code = 3
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.cancel()
        sys.exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
assert predict(model, images, top=4) == wanted
"""

SPAWN = """
import multiprocessing, pickle, sys
import numpy as np


def answer(model, queue):
    x = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)
    queue.put(model.pixels(x)[0])


if __name__ == "__main__":
    model = pickle.load(open(sys.argv[1], "rb"))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=answer, args=(model, queue))
    process.start()
    np.save(sys.argv[2], queue.get(timeout=120))
    process.join(60)
    sys.exit(process.exitcode)
"""


def pickled(model: Any, folder: Path) -> Path:
    """A model in a file."""
    path = folder / "model.pickle"
    path.write_bytes(pickle.dumps(model))
    return path


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("engine", ["network", *INSTALLED])
def test_forked_processes(network: ResNeXt, tmp_path: Path, engine: Any) -> None:
    """A child waited forever for threads of its parent, at a prediction or at its end.

    OpenVINO cannot be started twice, so the child says what to do instead.
    """
    model = network if engine == "network" else optimize(network, batch=BATCH, engine=engine)
    script = tmp_path / "fork.py"
    script.write_text(FORK)
    result = subprocess.run(
        [sys.executable, script, Path(__file__).parent.parent, pickled(model, tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    if engine == "openvino":
        assert lines[1::2] == ["3", "3"]
        assert all("multiprocessing.get_context('spawn')" in line for line in lines[::2])
    else:
        assert lines == ["0", "0"]


@pytest.mark.parametrize("engine", ["network", "onnxruntime", "openvino"])
def test_spawned_processes(network: ResNeXt, tmp_path: Path, engine: Any) -> None:
    """The result of `optimize` could not be sent to another process at all."""
    model = open_runner(network) if engine == "network" else optimize(network, engine=engine)
    wanted = model.pixels(PIXELS)[0]
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    command = [sys.executable, script, pickled(model, tmp_path), tmp_path / "got.npy"]
    subprocess.run(command, check=True, timeout=200)
    np.testing.assert_allclose(np.load(tmp_path / "got.npy"), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
@pytest.mark.parametrize("engine", INSTALLED)
def test_copies(network: ResNeXt, engine: Any, again: Any) -> None:
    """Copies compute, before and after the first call, also without the engine's file."""
    quick = optimize(network, batch=BATCH, engine=engine)
    first = again(quick)
    agree(quick, network, images(3))
    second = again(quick)
    quick.plan.graph("images").unlink(missing_ok=True)
    for other in (first, second):
        assert isinstance(other, Optimized)
        assert (other.plan, other.card, other.config) == (quick.plan, quick.card, quick.config)
        agree(other, network, images(3))


def test_files_travel_as_paths(
    network: ResNeXt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are not copied into the pickle; a relative path is found from elsewhere."""
    monkeypatch.chdir(tmp_path)
    save(network, "pets.safetensors")
    quick = optimize("pets.safetensors", batch=BATCH, engine="onnxruntime")
    quick.save_plan("pets.safetensors")
    planned = open_runner("pets.safetensors", batch=BATCH)
    assert isinstance(planned, Optimized)
    weights = network.state_dict()["layer1.0.conv1.weight"].numpy().tobytes()
    monkeypatch.chdir("/")
    for model in (quick, planned):
        data = pickle.dumps(model)
        assert weights not in data
        quick.plan.graph("images").unlink()
        agree(pickle.loads(data), network, images(3))
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.fc.bias.add_(1)
    save(other, tmp_path / "pets.safetensors")
    quick.plan.graph("images").unlink()
    with pytest.raises(CheckpointError, match="has changed since it was optimized"):
        pickle.loads(pickle.dumps(quick))(images(3))


def test_a_runner_of_a_network_travels(network: ResNeXt) -> None:
    """Its session holds what cannot be pickled; the network can."""
    runner = open_runner(network, device="cpu")
    for other in (copy.deepcopy(runner), pickle.loads(pickle.dumps(runner))):
        assert isinstance(other, TorchRunner)
        np.testing.assert_allclose(other.pixels(PIXELS)[0], runner.pixels(PIXELS)[0], rtol=1e-6)
