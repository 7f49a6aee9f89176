"""Libraries that users hand our networks to, each doing its work in a script of `clients/`.

They are installed into an environment of their own, beside the one that runs the tests and on top
of its packages, when it is first needed.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CLIENTS = {  # script → packages
    "accelerate": ["accelerate"],
    "captum": ["captum"],
    "counters": ["torchinfo", "thop", "fvcore"],
    "fastai": ["fastai"],
    "lightning": ["lightning"],
    "pytorch_grad_cam": ["grad-cam"],
    "segmentation_models_pytorch": ["segmentation_models_pytorch"],
    "skorch": ["skorch"],
    "torchao": ["torchao"],
    "transformers": ["transformers", "accelerate"],
}
RUN = "import oracles.originals, runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of the environment, made once and kept."""
    folder = Path(sys.prefix) / "clients"
    made = folder / "made"
    wanted = "\n".join(sorted({package for packages in CLIENTS.values() for package in packages}))
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made.is_file() and made.read_text() == wanted):
            venv.create(folder, with_pip=True, symlinks=True)
            (packages,) = folder.glob("lib/python*/site-packages")
            shared = [path for path in sys.path if path.endswith("site-packages")]
            (packages / "shared.pth").write_text("\n".join(shared))
            pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint"]
            command = [*pip, TESTS.parent / "constraints.txt", *wanted.split()]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            made.write_text(wanted)
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_client(client: str, python: Path, tmp_path: Path) -> None:
    """The library trains, explains, counts or quantizes a network, as its own users would."""
    script = TESTS / "clients" / f"{client}_client.py"
    paths = [str(TESTS.parent / "src"), str(TESTS), str(script.parent)]
    done = subprocess.run(
        [python, "-c", RUN, script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_script_is_run() -> None:
    """A script without a row would never fail."""
    scripts = {path.stem.removesuffix("_client") for path in TESTS.glob("clients/*_client.py")}
    assert scripts == set(CLIENTS)
