"""Choosing a torch device, and the precision to compute in."""

from __future__ import annotations

import os
from typing import Literal

import torch

from resnext.errors import InputError
from resnext.system.cpu import cpu_name, within_quota
from resnext.system.forks import refuse_after_fork
from resnext.system.limits import total_memory
from resnext.system.text import counted

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The torch device with a name; "auto" is the GPU if available, else the CPU.

    torch's threads are lowered to a container's CPU quota: more of them wait for each other.

    Raises:
        InputError: The name is invalid, or this machine has no such device.
        ResourceError: A GPU was used before this process was forked.
    """
    _lower_threads()
    if name != "cpu" and torch.cuda._is_in_bad_fork():
        refuse_after_fork(0, "CUDA")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = "it is not the name of a torch device"
    try:
        device = torch.device(name)
        reason = ""
        torch.empty(1, device=device).item()  # the meta device has no values
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, TypeError) as error:
        reason = reason or _why_not(torch.device(name), error)
        raise InputError(f"device {name!r} cannot be used: {reason}. Use {_usable()}.") from error
    return device


def _why_not(device: torch.device, error: Exception) -> str:
    """Why torch cannot compute on a device."""
    builds = {
        "cuda": ("CUDA", torch.backends.cuda.is_built(), torch.cuda),
        "mps": ("MPS", torch.backends.mps.is_built(), torch.mps),
        "xpu": ("XPU", torch.xpu._is_compiled(), torch.xpu),
    }
    if device.type not in builds:
        return "torch cannot compute on it here"
    title, built, module = builds[device.type]
    if not built:
        return (
            f"this torch, {torch.__version__}, was built without {title}; pytorch.org says how to "
            f"install one that has it"
        )
    if not (count := module.device_count()):
        return f"torch finds no {title} device: its driver is missing, or the device is hidden"
    if (device.index or 0) >= count:
        return f"this machine has {counted(count, f'{title} device')}"
    return str(error).partition("\n")[0].rstrip(".")


def _usable() -> str:
    """The devices that can be used, as advice."""
    if not torch.accelerator.is_available():
        return "auto or cpu"
    kind, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
    assert kind is not None, "one is available"
    more = f" to {kind.type}:{count - 1}" if count > 1 else ""
    return f"auto, cpu, or {kind.type}:0{more}"


def _lower_threads() -> None:
    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ and within_quota(threads) < threads:
        torch.set_num_threads(within_quota(threads))


def inference_batch(device: torch.device) -> int:
    """Images per batch that run fast without a plan: 16 on a CPU, 64 on a GPU.

    On a CPU fewer if 128 MB an image, enough for the largest networks, exceed a container's memory.
    """
    if device.type != "cpu":
        return 64
    memory = total_memory()
    return 16 if memory is None else max(min(16, memory // 2**27), 1)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a compute precision; "auto" is bf16 where the hardware supports it.

    Otherwise "auto" is fp16 on a GPU and fp32 elsewhere.

    Raises:
        InputError: The name is unknown, or the device does not support the precision.
    """
    if name != "auto" and name not in DTYPES:
        raise InputError(f"precision must be auto, fp32, bf16 or fp16, not {name!r}.")
    if name != "auto":
        check_precision(name, device)
        return DTYPES[name]
    if device.type == "cuda":
        has_bf16_units = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16_units else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if has_bf16() else torch.float32
    return torch.float32


def has_bf16() -> bool:
    """Whether the CPU has bf16 arithmetic (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def check_precision(name: str, device: torch.device) -> None:
    """Refuse a precision that the device does not support.

    Raises:
        InputError: The precision is fp16 and the device a CPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 needs a GPU. Use bf16 or fp32.")


def require_bf16() -> None:
    """Refuse bf16 on a CPU that would only emulate it.

    Raises:
        InputError: The CPU has no bf16 arithmetic.
    """
    if not has_bf16():
        raise InputError("This processor has no bf16 arithmetic. Use fp32 or int8.")


def hardware(device: torch.device) -> str:
    """Model name of the CPU or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()
