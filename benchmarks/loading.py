"""Loading resnext101_32x8d: time and peak memory, relative to reading the file and to torchvision.

Every measurement runs several times in a new process; the smallest value counts.
Run alone on the machine: `python benchmarks/loading.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import resnext
from resnext.system.cpu import cpu_name

_REPEATS = 5
_PREPARE = """
import json, resource, sys, threading, time
import torch
path = sys.argv[1]
import resnext
from resnext.weights.load import load
from resnext.network import ResNeXt
sys.path.insert(0, "tests")
from oracles.originals import torchvision
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
peak, running = 0, True
def watch():
    global peak
    while running:
        peak = max(peak, resident())
        time.sleep(0.001)
base = resident()
watcher = threading.Thread(target=watch)
watcher.start()
began = time.perf_counter()
{code}
seconds = time.perf_counter() - began
running = False
watcher.join()
print(json.dumps([seconds, peak - base]))
"""
_READ_TORCH = "state = torch.load(path, weights_only=True)"
_READ_SAFETENSORS = """from safetensors.torch import load_file
state = {name: value.clone() for name, value in load_file(path).items()}"""
_MAPPED = """from safetensors.torch import load_file
state = load_file(path)"""
_TORCHVISION = """
model = torchvision.models.resnext101_32x8d()
model.load_state_dict({read})
"""


def main() -> None:
    """Print a table."""
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':51}{'seconds':>10}{'of reading':>10}{'peak, of file':>15}")
    with tempfile.TemporaryDirectory() as folder:
        model = resnext.create("resnext101_32x8d")
        state = model.state_dict()
        files = [
            Path(folder) / name
            for name in ("foreign.pth", "foreign.safetensors", "own.safetensors")
        ]
        torch.save(state, files[0])
        save_file(state, files[1])
        resnext.save(model, files[2])
        del model, state
        for path in files:
            is_torch = path.suffix == ".pth"
            read = "torch.load(path, weights_only=True)"
            if not is_torch:
                read = "__import__('safetensors.torch').torch.load_file(path)"
            rows = {
                "reading into tensors": _READ_TORCH if is_torch else _READ_SAFETENSORS,
                "resnext.load": "model = load(path)",
                "torchvision, load_state_dict": _TORCHVISION.format(read=read),
                **({} if is_torch else {"(mapped into memory, not read)": _MAPPED}),
            }
            reading = 0.0
            for name, code in rows.items():
                seconds, peak = measure(code, path)
                reading = reading or seconds
                print(
                    f"{path.name:20}{name:>31}{seconds:8.3f} s{seconds / reading:9.2f}×"
                    f"{peak / path.stat().st_size:14.2f}×"
                )


def measure(code: str, path: Path) -> tuple[float, float]:
    """Smallest number of seconds, and of bytes above the memory before loading."""
    results: list[tuple[float, float]] = []
    for _ in range(_REPEATS):
        out = subprocess.run(
            [sys.executable, "-c", _PREPARE.replace("{code}", code), str(path)],
            check=True,
            capture_output=True,
            text=True,
        )
        results.append(tuple(json.loads(out.stdout)))
    return min(seconds for seconds, _ in results), min(peak for _, peak in results)


if __name__ == "__main__":
    main()
