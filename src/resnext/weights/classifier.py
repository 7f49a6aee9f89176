"""Single tensors of our model files, read with NumPy: without torch and the other weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from resnext.errors import CheckpointError

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def read_classifier(path: Path) -> tuple[Float32[np.ndarray, "k d"], Float32[np.ndarray, " k"]]:
    """Weight and bias of the last layer, in single precision.

    Args:
        path: A safetensors file that `resnext.save` wrote.

    Raises:
        CheckpointError: The file cannot be read, or holds no classifier.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(size))
            tensors = []
            for name in ("fc.weight", "fc.bias"):
                entry = entries[name]
                start, end = entry["data_offsets"]
                file.seek(8 + size + start)
                values = np.frombuffer(file.read(end - start), _TYPES[entry["dtype"]])
                if entry["dtype"] == "BF16":  # the upper half of a single-precision number
                    values = (values.astype(np.uint32) << 16).view(np.float32)
                tensors.append(values.astype(np.float32).reshape(entry["shape"]))
    except (OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise CheckpointError(f"{path} holds no classifier that can be read: {error}.") from error
    weight, bias = tensors
    return weight, bias
