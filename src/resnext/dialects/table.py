"""The table of dialects: one row for each library."""

from __future__ import annotations

from resnext.dialects.cadene import CADENE
from resnext.dialects.detectron2 import DETECTRON2
from resnext.dialects.dialect import Dialect
from resnext.dialects.lucid import LUCID, LUCID3
from resnext.dialects.openmmlab import MMCLS, MMDET
from resnext.dialects.timm import TIMM
from resnext.dialects.torch7 import TORCH7
from resnext.dialects.torchvision import TORCHVISION
from resnext.dialects.transformers import TRANSFORMERS

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        TORCHVISION,
        TIMM,
        MMCLS,
        MMDET,
        LUCID,
        LUCID3,
        DETECTRON2,
        TRANSFORMERS,
        TORCH7,
        CADENE,
    )
}
"""Dialects by name. Where two recognise the same file, the lower row is taken."""
