"""Devices and precisions: what the hardware computes fast, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch

from resnext.errors import InputError
from resnext.system.device import pick_device, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cuda", "this torch, 9.9, was built without CUDA; pytorch.org says how to install one .*"),
        ("cuda:7", "this torch, 9.9, was built without CUDA; .*"),
        ("mps", "this torch, 9.9, was built without MPS; .*"),
        ("xpu:0", "this torch, 9.9, was built without XPU; .*"),
        ("meta", "torch cannot compute on it here"),
        ("hpu", "torch cannot compute on it here"),
        ("vulkan", "torch cannot compute on it here"),
        *((name, "it is not the name of a torch device") for name in ("gpu", "CPU", "cuda:x", "")),
    ],
)
def test_devices_that_a_torch_for_processors_lacks(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was advised to use cuda:0, or quoted torch's list of twenty names."""
    monkeypatch.setattr(torch, "__version__", "9.9")
    for module, build in (
        (torch.backends.cuda, "is_built"),
        (torch.backends.mps, "is_built"),
        (torch.xpu, "_is_compiled"),
        (torch.cuda, "is_available"),
        (torch.accelerator, "is_available"),
    ):
        monkeypatch.setattr(module, build, lambda: False)

    def empty(*_: object, **__: object) -> None:
        raise AssertionError("Torch not compiled with it")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(InputError) as caught:
        pick_device(name)
    wanted = rf"device {name!r} cannot be used: {reason}\. Use auto or cpu\."
    assert re.fullmatch(wanted, str(caught.value))


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("cuda:7", 1, "this machine has 1 CUDA device. Use auto, cpu, or cuda:0."),
        ("cuda:2", 2, "this machine has 2 CUDA devices. Use auto, cpu, or cuda:0 to cuda:1."),
        ("cuda:0", 2, "busy. Use auto, cpu, or cuda:0 to cuda:1."),
        ("cuda", 0, "torch finds no CUDA device: its driver is missing, or the device is hidden."),
        ("mps", 1, "this torch, 9.9, was built without MPS; pytorch.org says"),
    ],
)
def test_devices_that_a_torch_for_gpus_lacks(
    name: str, count: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice names the devices that there are."""

    def empty(*_: object, **__: object) -> None:
        raise RuntimeError("busy.\nMore lines")

    monkeypatch.setattr(torch, "__version__", "9.9")
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for module in (torch.cuda, torch.accelerator):
        monkeypatch.setattr(module, "is_available", lambda: count > 0)
        monkeypatch.setattr(module, "device_count", lambda: count)
    with pytest.raises(InputError) as caught:
        pick_device(name)
    assert str(caught.value).startswith(f"device {name!r} cannot be used: {message}")
    assert "\n" not in str(caught.value)


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 without hardware for it is many times slower than fp32."""
    assert pick_precision("fp32", CPU) is torch.float32
    assert pick_precision("bf16", CPU) is torch.bfloat16
    assert pick_precision("fp16", torch.device("cuda")) is torch.float16
    assert pick_precision("auto", torch.device("mps")) is torch.float32
    for avx, amx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        wanted = torch.bfloat16 if avx or amx else torch.float32
        assert pick_precision("auto", CPU) is wanted
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, has=has, **__: has)
        wanted = torch.bfloat16 if has else torch.float16
        assert pick_precision("auto", torch.device("cuda")) is wanted


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("fp8", "cpu", "precision must be auto, fp32, bf16 or fp16, not 'fp8'"),
        ("", "cuda", "precision must be auto"),
        ("FP32", "cpu", "precision must be auto"),
        ("fp16", "cpu", "fp16 needs a GPU. Use bf16 or fp32"),
    ],
)
def test_precision_that_does_not_exist(name: str, device: str, message: str) -> None:
    """torch's own error comes from inside the first step, and names no option."""
    with pytest.raises(InputError, match=message) as caught:
        pick_precision(name, torch.device(device))
    assert "\n" not in str(caught.value)
