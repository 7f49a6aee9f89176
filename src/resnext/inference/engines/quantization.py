"""Eight-bit networks through NNCF, for OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
from jaxtyping import Float32

from resnext.card import Preprocessing
from resnext.inference.runner import (
    Outputs,
    Session,
    engine_package,
    preserve_signal_stack,
    silenced,
)

MAX_DROP = 0.005
"""What accuracy 8 bits may cost: half a point."""


def quantize(
    model: Any,
    images: Float32[np.ndarray, "n c h w"],
    accuracy: Callable[[Session], float] | None = None,
) -> Any:
    """A model whose convolutions and classifier are computed in 8 bits.

    Weights have a scale for each channel; ranges of activations are those of `images`.

    Args:
        model: An `openvino.Model`; left as it is.
        images: As the model takes them.
        accuracy: Of a session. If given, layers that hurt most are computed in floats again until
            the loss is at most `MAX_DROP`.

    Raises:
        InputError: NNCF is not installed.
    """
    nncf = engine_package("nncf")
    model = model.clone()
    shape = list(model.input(0).partial_shape)
    model.reshape([1, *(size.get_length() for size in shape[1:])])
    bars = redirect_stderr(StringIO())
    with preserve_signal_stack(), silenced("nncf"), bars:
        data = nncf.Dataset([image[None] for image in images])
        if accuracy is None:
            return nncf.quantize(model, data, subset_size=len(images))
        return nncf.quantize_with_accuracy_control(
            model,
            data,
            data,
            lambda compiled, _: (accuracy(partial(_answers, compiled)), None),
            max_drop=MAX_DROP,
            subset_size=len(images),
        )


def _answers(compiled: Any, x: Float32[np.ndarray, "n c h w"]) -> Outputs:
    """A compiled model for one image as a session for any number."""
    found = [compiled(image[None]) for image in x]
    logits, embeddings = (np.concatenate([one[i] for one in found]) for i in range(2))
    return logits, embeddings


def with_pixel_input(model: Any, how: Preprocessing) -> Any:
    """The same model for pixels `(n, h, w, c)` of 8 bits."""
    ov = engine_package("openvino")
    model = model.clone()
    steps = ov.preprocess.PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(ov.Type.f32).mean(
        [255 * value for value in how.mean]
    ).scale([255 * value for value in how.std])
    return steps.build()
