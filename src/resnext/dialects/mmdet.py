"""MMDetection and MMSegmentation: the backbone of their detectors and segmentors.

Source: mmdet 2.28 and mmseg 0.30, run with random weights. They differ from mmcls in the deep
stem, which is flat, and in `avg_down`, which pools in every stage. They have no classifier; a
file for them keeps ours under `fc`, which they leave unread.
"""

from __future__ import annotations

from resnext.architectures import unsupported_reason
from resnext.config import ResNeXtConfig
from resnext.dialects.dialect import Dialect, NameRule, norm_rows
from resnext.dialects.mmcls import BLOCK_NORMS, STEM_NORM, deep, nearest
from resnext.mmcls.backbone import LETTERS

_NETWORK = (
    NameRule("conv1.0.", "stem.0."),
    NameRule("conv1.1.", "stem.1."),
    NameRule("conv1.3.", "stem.3."),
    NameRule("conv1.4.", "stem.4."),
    NameRule("conv1.6.", "stem.6."),
    NameRule("bn1.", "stem.7.", deep),
    STEM_NORM,
)


def _problem(config: ResNeXtConfig) -> str:
    if config.gate:
        return f"has no networks with {config.gate.upper()} attention."
    if config.expansion != 4:
        return "has networks of expansion 4 only."
    return unsupported_reason(config, nearest(config))


MMDET = Dialect(
    "mmdet",
    "MMDetection",
    network=norm_rows(_NETWORK, LETTERS),
    block=norm_rows(BLOCK_NORMS, LETTERS),
    problem=_problem,
)
