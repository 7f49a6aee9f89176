"""Drop-in for MMClassification 0.x: `from resnext.mmcls import ResNeXt`.

backbone.py     `ResNeXt`, `SEResNeXt`, `Bottleneck` under mmcls's module names
classifier.py   `ImageClassifier` and `build`
config_file.py  `read_config`, which executes nothing
init_cfg.py     mmcv's initializers
"""

from resnext.mmcls.backbone import Bottleneck, ResNeXt, SEResNeXt
from resnext.mmcls.classifier import ImageClassifier, build
from resnext.mmcls.config_file import read_config

__all__ = ["Bottleneck", "ImageClassifier", "ResNeXt", "SEResNeXt", "build", "read_config"]
