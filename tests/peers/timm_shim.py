"""Pytest plugin: `timm.create_model` builds our networks, for the names of timm's ResNeXts.

So do the ResNets that timm's tests take as examples, as networks of the same kind. timm's registry
still says what a name's images and classes are.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from oracles import originals  # noqa: F401 (lets timm import torchvision)

# isort: split
import timm
import timm.models
from torch import Tensor, nn

from resnext import Backbone, ResNeXt, ResNeXtConfig, variants
from resnext.architectures import canonical_name, variant
from resnext.dilation import with_output_stride
from resnext.layers import traceable

_EXAMPLES = {
    "resnet18": ResNeXtConfig((2, 2, 2, 2), 1, 64),
    "resnet50d": ResNeXtConfig((3, 4, 6, 3), 1, 64, stem_type="deep", stem_width=32, avg_down=True),
    "test_resnet": ResNeXtConfig(
        (1, 1, 1, 1), 4, 16, channels=(16, 24, 32, 48), stem_type="deep", stem_width=16
    ),
}
_ARGUMENTS = {
    "in_chans": "in_channels",
    "drop_rate": "dropout",
    "zero_init_last": "zero_init_residual",
}
_cfg: Any = timm.get_pretrained_cfg
_original, _list = timm.create_model, timm.list_models


class _Network(ResNeXt):
    """Can return the last map itself."""

    pooled = True
    default_cfg: Any = None  # pyright: ignore
    pretrained_cfg: Any = None  # pyright: ignore

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's, whose '' means no pooling, and which asserts that it has a pooling."""
        assert global_pool in (None, "", "avg"), f"no pooling {global_pool}"
        self.pooled = global_pool != ""
        super().reset_classifier(num_classes, global_pool or None)

    @traceable
    def forward(self, x: Tensor) -> Tensor:
        """Logits, embeddings or the last map."""
        return super().forward(x) if self.pooled else self.forward_features(x)


class _Features(Backbone):
    """`features_only=True`."""

    default_cfg: Any

    @property
    def feature_info(self) -> timm.models.FeatureInfo:  # pyright: ignore
        """timm's description of the maps."""
        described = [
            {"num_chs": f.channels, "reduction": f.stride, "module": f.name}
            for f in super().feature_info
        ]
        return timm.models.FeatureInfo(described, tuple(range(len(described))))


def _is_ours(name: str) -> bool:
    name = name.partition(".")[0]
    return name in _EXAMPLES or canonical_name(name) in variants()


def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    features_only: bool = False,
    out_indices: Any = None,
    feature_cls: Any = None,
    num_classes: int | None = None,
    global_pool: str | None = None,
    output_stride: int | None = None,
    device: Any = None,
    dtype: Any = None,
    pretrained_cfg: Any = None,
    scriptable: bool | None = None,
    **fields: Any,
) -> nn.Module:
    """Our network by timm's name and arguments; timm's own for every other name."""
    if not _is_ours(model_name):
        return _original(model_name, pretrained, num_classes=num_classes, **fields)
    assert not pretrained
    fields = {_ARGUMENTS.get(name, name): value for name, value in fields.items()}
    name = model_name.partition(".")[0]
    config = _EXAMPLES[name].replace(**fields) if name in _EXAMPLES else variant(name, **fields)
    config = with_output_stride(config, output_stride, "timm")
    with torch.device(device or torch.get_default_device()):
        if features_only:
            model: Any = _Features(config, with_stem=True)
        else:
            model = _Network(config if not num_classes else config.replace(num_classes=num_classes))
    if num_classes == 0 or global_pool is not None:
        model.reset_classifier(
            model.num_classes if num_classes is None else num_classes, global_pool
        )
    model.default_cfg = model.pretrained_cfg = _cfg(model_name).to_dict()
    return model.to(dtype=dtype or torch.get_default_dtype())


def list_models(*args: Any, pretrained: bool = False, **options: Any) -> list[str]:
    """timm's list, of our networks only; none with weights, which would be downloaded."""
    names = [] if pretrained else _list(*args, **options)
    return [name for name in names if _is_ours(name) and name not in _EXAMPLES]


_homes: Any = (timm, timm.models)
for _home in _homes:
    _home.create_model = create_model
    _home.list_models = list_models
timm.list_pretrained = timm.models.list_pretrained = lambda *_, **__: []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of our names, and those whose source takes a ResNet as the example."""
    items[:] = [item for item in items if _concerns_us(item)]


def _concerns_us(item: Any) -> bool:
    if hasattr(item, "callspec") and "model_name" in item.callspec.params:
        return _is_ours(str(item.callspec.params["model_name"]))
    return "'test_resnet'" in inspect.getsource(item.function)
