"""Training in several processes, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from resnext.errors import InputError, ResNeXtError


@dataclass(frozen=True)
class ProcessGroup:
    """This process and the number of processes that train together.

    Args:
        rank: Number of this process over all machines, from 0.
        world: Number of processes.
        local: Number of this process on its machine, and of its GPU.
        restarts: Number of times `torchrun` restarted the processes.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    restarts: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any process set it. All processes must call this together."""
        if self.world == 1:
            return list(flags)
        values = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=_control())
        return [bool(x) for x in values]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank. All processes must call this together."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=_control())
        return values

    def broadcast(self, value: Any) -> Any:
        """The value of the first process. All processes must call this together."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=_control())
        return values[0]

    def broadcast_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Copy the first process's values into the tensors of all others."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


_groups: dict[str, Any] = {}


def _control() -> Any:
    """A process group for small objects on the CPU, in addition to the one for gradients."""
    if dist.get_backend() == "gloo":
        return None
    if "control" not in _groups:
        _groups["control"] = dist.new_group(backend="gloo")
    return _groups["control"]


def init_distributed(device: str) -> ProcessGroup:
    """Join the other processes if `torchrun` started several.

    Raises:
        InputError: This machine runs more processes than it has GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if world == 1:
        return ProcessGroup(restarts=restarts)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available() and device in ("auto", "cuda")
    if cuda and local >= torch.cuda.device_count():
        raise InputError(
            f"Process {local} of this machine has no GPU; there are "
            f"{torch.cuda.device_count()}. Lower --nproc-per-node."
        )
    if not dist.is_initialized():
        _rendezvous("nccl" if cuda else "gloo")
    return ProcessGroup(dist.get_rank(), world, local, restarts)


def _rendezvous(backend: str) -> None:
    """Form the process group, under keys that no earlier start of these processes used.

    After a restart by `torchrun`, the store still holds the keys of the previous processes, and
    the new ones would wait for those (pytorch/pytorch#135712).
    """
    store, rank, world = next(rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(
        world
    ):  # one launcher, whose count all processes share
        start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    else:
        start = store.add(f"resnext/{world}/{rank}", 1)
    fresh = PrefixStore(f"resnext/start{start}", store)
    dist.init_process_group(backend, store=fresh, rank=rank, world_size=world)


def shutdown_distributed() -> None:
    """Leave the process group.

    The group is kept until the next one ends. Else DistributedDataParallel, which lives longer
    where an exception refers to it, would delete it while it holds Python's lock, and wait for
    gloo's thread, which may wait for that lock to delete a tensor.
    """
    _groups.clear()
    if dist.is_available() and dist.is_initialized():
        _groups["left"] = dist.group.WORLD
        dist.destroy_process_group()


class SyncedNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes; torch's SyncBatchNorm needs a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize with mean and variance over all processes."""
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        values = input.double() if input.dtype is torch.float64 else input.float()
        count = values.numel() / values.shape[1] * dist.get_world_size()
        sums = _AllReduceSum.apply(values.sum((0, 2, 3)))
        mean = sums / count
        centred = values - mean[:, None, None]
        variance = _AllReduceSum.apply(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = self.momentum
            if momentum is None:  # None means the average over all batches
                momentum = 1.0 / float(self.num_batches_tracked)
            with torch.no_grad():
                for running, new in (
                    (self.running_mean, mean),
                    (self.running_var, variance * (count / max(count - 1, 1))),
                ):
                    if running is not None:
                        running.lerp_(new.to(running.dtype), momentum)
        result = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            result = result * self.weight[:, None, None] + self.bias[:, None, None]
        return result.to(input.dtype)


class _AllReduceSum(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


def synchronize_norms(network: nn.Module) -> None:
    """Make every batch norm use the images of all processes. Parameters stay the same objects."""
    if next(network.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedNorm


@contextmanager
def peer_errors(group: ProcessGroup) -> Iterator[None]:
    """Report the death of another process in one line, instead of torch.distributed's error.

    Raises:
        ResNeXtError: Another process of the run died.
    """
    try:
        yield
    except RuntimeError as error:
        if group.world > 1 and any(name in str(error) for name in ("gloo", "NCCL", "nccl")):
            reason = str(error).partition("\n")[0]
            raise ResNeXtError(f"Another process of the run is gone: {reason}") from error
        raise
