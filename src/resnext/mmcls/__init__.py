"""Drop-in for MMClassification 0.x: `from resnext.mmcls import ResNeXt`.

backbone.py     `ResNeXt`, `SEResNeXt`
blocks.py       `Bottleneck`, `SEBottleneck`, `ResLayer` under mmcls's module names
classifier.py   `ImageClassifier`
registry.py     `build`: modules from config dicts; `BACKBONES`: classes of users
layer_cfg.py    `conv_cfg`, `norm_cfg`, `act_cfg` as fields of our config
init_cfg.py     mmcv's initializers
config_file.py  `read_config`: reads config files without executing them
expressions.py  what their expressions amount to, as data
"""

from resnext.mmcls.backbone import ResNeXt, SEResNeXt
from resnext.mmcls.blocks import Bottleneck, ConvModule, ResLayer, SEBottleneck, SELayer
from resnext.mmcls.classifier import ImageClassifier
from resnext.mmcls.config_file import read_config
from resnext.mmcls.registry import BACKBONES, build

__all__ = [
    "BACKBONES",
    "Bottleneck",
    "ConvModule",
    "ImageClassifier",
    "ResLayer",
    "ResNeXt",
    "SEBottleneck",
    "SELayer",
    "SEResNeXt",
    "build",
    "read_config",
]
