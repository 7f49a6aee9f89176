"""Precisions: what the hardware computes fast, and what is refused."""

from __future__ import annotations

import pytest
import torch

from resnext.errors import InputError
from resnext.system.device import pick_precision

CPU = torch.device("cpu")


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
