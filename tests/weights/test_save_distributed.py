"""`save` of networks in the wrappers of torch's distributed training, in two real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_network

from resnext import load, save

SCRIPT = """
import json, sys, warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import resnext

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
warnings.simplefilter("ignore")
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
mesh = dist.init_device_mesh("cpu", (2,))


def network():
    return resnext.load(folder / "whole.safetensors").train()


def sharded():
    model = network()
    for stage in model.stages:
        fully_shard(stage, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def parallel():
    return DistributedDataParallel(network())


def compiled():
    return torch.compile(DistributedDataParallel(network()), backend="eager")


told = {}
for build in (sharded, parallel, compiled):
    model = build()
    path = folder / f"{build.__name__}{rank}.safetensors"
    try:
        resnext.save(model, path)
        told[build.__name__] = "saved"
    except resnext.ResNeXtError as error:
        told[build.__name__] = str(error)
options = StateDictOptions(full_state_dict=True)
state = get_model_state_dict(sharded(), options=options)
if rank == 0:
    resnext.save(resnext.load(state, config=network().config), folder / "gathered.safetensors")
(folder / f"told{rank}.json").write_text(json.dumps(told))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes saved, and what they were told."""
    folder = tmp_path_factory.mktemp("distributed")
    save(tiny_network(), folder / "whole.safetensors")
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True, env=env)
        for rank in range(2)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    return folder


def told(folder: Path, kind: str) -> list[str]:
    return [json.loads((folder / f"told{rank}.json").read_text())[kind] for rank in range(2)]


def is_whole(path: Path) -> bool:
    got: Any = load(path)
    wanted = load(path.parent / "whole.safetensors").state_dict()
    return all(value.equal(wanted[name]) for name, value in got.state_dict().items())


@pytest.mark.parametrize("kind", ["parallel", "compiled"])
def test_copies_are_saved_whole(folder: Path, kind: str) -> None:
    """Every process holds all weights, so each file is the network."""
    assert told(folder, kind) == ["saved", "saved"]
    assert is_whole(folder / f"{kind}0.safetensors")
    assert is_whole(folder / f"{kind}1.safetensors")


def test_shards_are_refused_in_one_line(folder: Path) -> None:
    """Gathering would wait for ever where only the first process saves, as most scripts do."""
    for message in told(folder, "sharded"):
        assert "get_model_state_dict" in message
        assert "\n" not in message
    assert not list(folder.glob("sharded*.safetensors"))


def test_the_advice_works(folder: Path) -> None:
    """What the message says to call gives the whole network."""
    assert is_whole(folder / "gathered.safetensors")
