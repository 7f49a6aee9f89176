"""Small configs that differ in every layer, and what compares two networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from oracles.originals import randomize
from torch import Tensor, nn

from resnext import ResNeXtConfig

TINY: dict[str, Any] = {
    "layers": (1, 2),
    "cardinality": 2,
    "base_width": 64,
    "num_classes": 5,
    "channels": (8, 16),
    "num_stages": 2,
    "stem_channels": 8,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep stem": {"stem_type": "deep", "stem_channels": (4, 8, 8)},
    "avg_down": {"avg_down": True},
    "small stem": {"small_stem": True},
    "se": {"attention": "se"},
    "se of Lucid": {"block_args": {"se": True, "se_args": {"reduction": 4}}},
    "eca": {"attention": "eca"},
    "avg": {"anti_alias": "avg"},
    "blur": {"anti_alias": "blur"},
    "group norm": {"norm": "group", "norm_groups": 4},
    "layer norm": {"norm": "layer"},
    "instance norm": {"norm": "instance"},
    "untracked norm": {"norm_track": False},
    "standardized": {"conv": "weight_standardized"},
    "affine standardized": {"conv": "affine_weight_standardized"},
    "same padding": {"conv": "same_padding"},
    "reflecting": {"padding_mode": "reflect"},
    "caffe": {"style": "caffe"},
    "dilated": {"strides": (1, 1), "dilations": (1, 2)},
    "dilated from its second block": {
        "strides": (1, 1),
        "dilations": (1, (1, 2)),
        "avg_down": True,
        "anti_alias": "blur",
        "keep_pooling": True,
    },
    "ceil pooling": {"ceil_pooling": True},
    "dropping": {"drop_path_rate": 0.5, "dropout": 0.5},
    "resnext-d of timm": {
        "stem_type": "deep",
        "stem_channels": (4, 8, 8),
        "avg_down": True,
        "attention": "se",
        "anti_alias": "avg",
    },
}


def tiny(**changes: Any) -> ResNeXtConfig:
    """Two stages, for tests that run many networks."""
    return ResNeXtConfig(**{**TINY, **changes})


def four(**changes: Any) -> ResNeXtConfig:
    """Four narrow stages."""
    fields = {"layers": (1, 2, 1, 1), "channels": (8, 16, 24, 32), "num_stages": 4}
    return tiny(**{**fields, **changes})


def filled(model: Any, seed: int = 0) -> Any:
    """`model` in float64 with weights and statistics that hide nothing."""
    model = model.double()
    randomize(model, seed)
    return model


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images, the same each time."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def same(got: Any, wanted: Any, tolerance: float = 1e-10) -> None:
    """Equal up to rounding, whatever is nested."""
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """Gradients by name."""
    return {name: p.grad for name, p in model.named_parameters()}


def loss(maps: Tensor | Iterable[Tensor]) -> Tensor:
    """A number to differentiate: the sum of all squares."""
    maps = (maps,) if isinstance(maps, Tensor) else maps
    return torch.stack([m.square().sum() for m in maps]).sum()
