"""int8 networks through NNCF, for OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
from jaxtyping import Float32

from resnext.card import Preprocessing
from resnext.inference.engines.base import load_package, silenced
from resnext.inference.engines.openvino import OpenVino, preserve_signal_stack
from resnext.inference.runner import Outputs, Session

MAX_DROP = 0.005
"""Accuracy that int8 may cost: half a percentage point."""


def quantize(
    model: Any,
    images: Float32[np.ndarray, "n c h w"],
    accuracy: Callable[[Session], float] | None = None,
) -> Any:
    """A model whose convolutions and classifier are computed in 8 bits.

    Weights have one scale per channel; activation ranges are calibrated on `images`.

    Args:
        model: An `openvino.Model`; left unchanged.
        images: Normalized images.
        accuracy: Measures a session. If given, the layers that cost most accuracy are returned to
            floating point until at most `MAX_DROP` is lost.

    Raises:
        InputError: NNCF is not installed.
    """
    nncf = load_package("nncf", OpenVino.install_hint)
    model = model.clone()
    shape = list(model.input(0).partial_shape)
    model.reshape([1, *(size.get_length() for size in shape[1:])])
    progress_bars = redirect_stderr(StringIO())
    with preserve_signal_stack(), silenced("nncf"), progress_bars:
        data = nncf.Dataset([image[None] for image in images])
        if accuracy is None:
            return nncf.quantize(model, data, subset_size=len(images))
        return nncf.quantize_with_accuracy_control(
            model,
            data,
            data,
            lambda compiled, _: (accuracy(partial(_run_one_by_one, compiled)), None),
            max_drop=MAX_DROP,
            subset_size=len(images),
        )


def _run_one_by_one(compiled: Any, x: Float32[np.ndarray, "n c h w"]) -> Outputs:
    """Logits and embeddings of a model that was compiled for one image."""
    results = [compiled(image[None]) for image in x]
    logits, embeddings = (np.concatenate([one[i] for one in results]) for i in range(2))
    return logits, embeddings


def with_pixel_input(model: Any, preprocessing: Preprocessing) -> Any:
    """A copy of a model that takes pixels `(n, h, w, c)` of 8 bits and normalizes them."""
    ov = OpenVino().load()
    model = model.clone()
    steps = ov.preprocess.PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(ov.Type.f32).mean(
        [255 * value for value in preprocessing.mean]
    ).scale([255 * value for value in preprocessing.std])
    return steps.build()
