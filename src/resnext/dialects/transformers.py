"""Transformers: names of its `ResNetForImageClassification`, read where its 3×3 is grouped.

Source: its `models/resnet/modeling_resnet.py`. The class has no groups of its own, so grouped
files come from forks; plain ones are ResNets.
"""

from __future__ import annotations

from resnext.dialects.dialect import Dialect, NameRule

_BLOCK = (
    *(NameRule(f"conv{i + 1}.", f"layer.{i}.convolution.") for i in range(3)),
    *(NameRule(f"bn{i + 1}.", f"layer.{i}.normalization.") for i in range(3)),
    NameRule("downsample.0.", "shortcut.convolution."),
    NameRule("downsample.1.", "shortcut.normalization."),
)

TRANSFORMERS = Dialect(
    "transformers",
    "Transformers",
    network=(
        NameRule("conv1.", "embedder.embedder.convolution."),
        NameRule("bn1.", "embedder.embedder.normalization."),
    ),
    block=_BLOCK,
    place="encoder.stages.{stage}.layers.{block}.",
    first_stage=0,
)
