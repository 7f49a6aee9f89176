"""Signals to the whole process group, in the middle of every command that computes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import photo_folder, tiny_network

from resnext import Card, Preprocessing, save

COMMAND = """
import importlib, os, signal, sys
from resnext.cli.app import main

place, number, *arguments = sys.argv[1:]
module, _, name = place.rpartition(":")
owner = importlib.import_module(module)
*above, name = name.split(".")
for each in above:
    owner = getattr(owner, each)
original = getattr(owner, name)
done = False

def disturbed(*given, **options):
    '''Signals the group inside a call, and again, as `timeout` does.'''
    global done
    result = original(*given, **options)
    if not done:
        done = True
        os.killpg(0, int(number))
        os.killpg(0, signal.SIGTERM)
    return result

setattr(owner, name, disturbed)
sys.argv = ["resnext", *arguments]
main()
"""

QUICK = {
    "predict m.safetensors photos --out new/a.csv": "resnext.prediction.output:Journal.add",
    "evaluate m.safetensors photos --workers 2": "torch.utils.data.dataloader:"
    "_MultiProcessingDataLoaderIter._next_data",
    "evaluate m.safetensors photos --workers 1": "multiprocessing.process:BaseProcess.start",
    "explain m.safetensors photos/cat/000.jpg --out new/e.html": "resnext.explanation.deletion:"
    "random_maps",
    "train photos --model resnext_nano --size 32 --epochs 1 --workers 0 --out new/m.safetensors": (
        "resnext.training.finalize:load_classifier"
    ),
}
SLOW = {
    "bench m.safetensors": "resnext.benchmark.timing:time_calls",
    "optimize m.safetensors --again": "resnext.inference.search:Search.timed",
    "predict m.safetensors photos": "resnext.prediction.images:to_pixels",
    "compare m.safetensors m.safetensors photos": "resnext.evaluation.classification:_speeds",
    "train photos --minutes 5 --workers 2 --out new/m.safetensors": "resnext.training.minutes:"
    "_measured",
    "train photos --weights m.safetensors --recipe probe --out new/p.safetensors": (
        "resnext.training.probe:fit_head"
    ),
    "distill m.safetensors --data photos --model resnext_nano --out new/m.safetensors": (
        "resnext.training.step:TrainStep.backward"
    ),
}
CASES = [
    *((line, place, signal.SIGTERM) for line, place in QUICK.items()),
    (*next(iter(QUICK.items())), signal.SIGHUP),
    *(pytest.param(*case, signal.SIGHUP, marks=pytest.mark.slow) for case in SLOW.items()),
]


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize(("line", "place", "number"), CASES)
def test_every_command_ends_with_its_signal(
    tmp_path: Path, line: str, place: str, number: signal.Signals
) -> None:
    """The exit code of the first signal, no traceback, no process and no temporary file left."""
    photo_folder(tmp_path / "photos")
    save(tiny_network(card=Card(("cat", "dog"), Preprocessing(32, 32))), tmp_path / "m.safetensors")
    (tmp_path / "script.py").write_text(COMMAND)
    with subprocess.Popen(
        [sys.executable, "script.py", place, str(int(number)), *line.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path]),
        },
        start_new_session=True,
    ) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    left = [path for path in tmp_path.rglob(".*") if path.name != ".onnxruntime"]  # its own cache
    assert not left
