"""Cadene's SE networks, which timm calls `legacy_seresnext…`: only read.

Source: `timm.models.senet`, version 1.0, which has kept the names of `pretrainedmodels`. So have
the encoders of segmentation_models_pytorch.
"""

from __future__ import annotations

from typing import Any

from resnext.config import ResNeXtConfig
from resnext.dialects.dialect import Dialect, NameRule, ParameterNames


def _is_cadene(names: ParameterNames) -> bool:
    """The stem in a Sequential and squeezing layers by its name."""
    wanted = {"layer0.conv1.weight", "layer1.0.se_module.fc1.weight"}
    return wanted <= set(names.network)


def unseen(config: ResNeXtConfig) -> dict[str, Any]:
    """Max pooling as Caffe's; SE-ResNets without groups have the stride in their first 1×1."""
    if config.small_stem:  # SENet-154, whose stem was read in part
        return {}
    caffe = {"style": "caffe"} if config.cardinality == 1 else {}
    return {"ceil_pooling": True, **caffe}


CADENE = Dialect(
    "cadene",
    "Cadene's pretrained models",
    network=(
        NameRule("conv1.", "layer0.conv1."),
        NameRule("bn1.", "layer0.bn1."),
        NameRule("fc.", "last_linear."),
    ),
    block=(NameRule("se.", "se_module."),),
    recognises=_is_cadene,
    unseen=unseen,
)
