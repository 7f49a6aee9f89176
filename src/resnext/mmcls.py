"""The interface of MMClassification 0.x: `from resnext.mmcls import ResNeXt`."""

from resnext.dialects.mmcls import Bottleneck, ResNeXt, SEResNeXt
from resnext.dialects.mmcls_build import ImageClassifier, build
from resnext.dialects.mmcls_config import read_config

__all__ = ["Bottleneck", "ImageClassifier", "ResNeXt", "SEResNeXt", "build", "read_config"]
