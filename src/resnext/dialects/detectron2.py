"""Detectron2: its ResNeXt backbones, which are only read.

Source: its `modeling/backbone/resnet.py`. Its ResNeXts stride on the 3×3 convolution.
"""

from __future__ import annotations

from resnext.dialects.dialect import Dialect, NameRule

_BLOCK = (
    *(NameRule(f"conv{i}.", f"conv{i}.") for i in (1, 2, 3)),
    *(NameRule(f"bn{i}.", f"conv{i}.norm.") for i in (1, 2, 3)),
    NameRule("downsample.0.", "shortcut."),
    NameRule("downsample.1.", "shortcut.norm."),
)

DETECTRON2 = Dialect(
    "detectron2",
    "Detectron2",
    network=(NameRule("conv1.", "stem.conv1."), NameRule("bn1.", "stem.conv1.norm.")),
    block=_BLOCK,
    block_prefix="res{stage}.{block}.",
    first_stage=2,
)
