"""The last layer, read with NumPy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_network
from inference_cases import CARD, CONFIG

from resnext import save
from resnext.errors import CheckpointError
from resnext.weights.classifier import read_classifier


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """safetensors gives NumPy no bf16, and maps from a wrong layer look like maps."""
    network = tiny_network(CONFIG, CARD).to(dtype)
    save(network, tmp_path / "a.safetensors")
    weight, bias = read_classifier(tmp_path / "a.safetensors")
    assert (weight.dtype, bias.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(weight, network.fc.weight.detach().float().numpy())
    np.testing.assert_array_equal(bias, network.fc.bias.detach().float().numpy())


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\2\0\0\0\0\0\0\0{}"])
def test_files_without_a_classifier(content: bytes, tmp_path: Path) -> None:
    """One line, not a traceback."""
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="holds no classifier"):
        read_classifier(file)
    with pytest.raises(CheckpointError, match="holds no classifier"):
        read_classifier(tmp_path / "none.safetensors")
