"""The named variants, their spellings, and how two networks differ. Loads no torch."""

from __future__ import annotations

import difflib
import re
import warnings
from typing import Any

from resnext.checks import brief
from resnext.config import ResNeXtConfig
from resnext.errors import UnknownNameError, UntrainedWarning

_DEPTHS = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    201: (3, 24, 36, 4),
}
_D = {"stem_type": "deep", "stem_width": 32, "avg_down": True}  # arXiv:1812.01187, ResNet-D
_T = {**_D, "stem_channels": (24, 32, 64)}  # timm's tiered stem


def _imagenet(depth: int, cardinality: int, base_width: int, **more: Any) -> ResNeXtConfig:
    return ResNeXtConfig(_DEPTHS[depth], cardinality, base_width, **more)


def _small(blocks: int, cardinality: int, base_width: int, width: int = 64) -> ResNeXtConfig:
    """The paper's network for 32×32 images (section 5.3): three stages of `blocks` blocks."""
    return ResNeXtConfig(
        (blocks,) * 3,
        cardinality,
        base_width,
        num_classes=10,
        channels=(width, 2 * width, 4 * width),
        num_stages=3,
        small_stem=True,
    )


def _compact(
    layers: tuple[int, ...], cardinality: int, base_width: int, channels: tuple[int, ...], stem: int
) -> ResNeXtConfig:
    """A network for a processor: few wide groups, a narrow deep stem."""
    return ResNeXtConfig(
        layers, cardinality, base_width, channels=channels, stem_type="deep", stem_width=stem
    )


def _compact_32px(
    layers: tuple[int, ...], cardinality: int, base_width: int, channels: tuple[int, ...], stem: int
) -> ResNeXtConfig:
    """A network for a processor and images of about 32 pixels, whose last map has 4×4."""
    return ResNeXtConfig(
        layers,
        cardinality,
        base_width,
        num_classes=10,
        channels=channels,
        num_stages=3,
        strides=(2, 2, 2),
        small_stem=True,
        stem_channels=stem,
    )


_ORIGINS = "tv|ig|ssl|swsl|gluon"  # whose weights, in timm 0.4 and the hub of torch
_WEIGHTS_SUFFIX = (  # torch's hub, torchvision's enumerations, mmcls's schedules
    r"\d+x\d+d(_(?:wsl|ssl|swsl|weights|\d+xb\d+|b\d+x\d+|in1k|imagenet).*)$"
)

_VARIANTS: dict[str, ResNeXtConfig] = {
    "resnext26_32x4d": _imagenet(26, 32, 4),
    "resnext50_32x4d": _imagenet(50, 32, 4),
    "resnext101_32x4d": _imagenet(101, 32, 4),
    "resnext101_32x8d": _imagenet(101, 32, 8),
    "resnext101_32x16d": _imagenet(101, 32, 16),
    "resnext101_32x32d": _imagenet(101, 32, 32),
    "resnext101_32x48d": _imagenet(101, 32, 48),
    "resnext101_64x4d": _imagenet(101, 64, 4),
    "resnext152_32x4d": _imagenet(152, 32, 4),
    "resnext26d_32x4d": _imagenet(26, 32, 4, **_D),
    "resnext50d_32x4d": _imagenet(50, 32, 4, **_D),
    "resnext101d_32x4d": _imagenet(101, 32, 4, **_D),
    "resnext101d_32x8d": _imagenet(101, 32, 8, **_D),
    "resnext101d_64x4d": _imagenet(101, 64, 4, **_D),
    "resnext152d_32x4d": _imagenet(152, 32, 4, **_D),
    "seresnext26d_32x4d": _imagenet(26, 32, 4, attention="se", **_D),
    "seresnext26t_32x4d": _imagenet(26, 32, 4, attention="se", **_T),
    "seresnext50_32x4d": _imagenet(50, 32, 4, attention="se"),
    "seresnext101_32x4d": _imagenet(101, 32, 4, attention="se"),
    "seresnext101_32x8d": _imagenet(101, 32, 8, attention="se"),
    "seresnext101_64x4d": _imagenet(101, 64, 4, attention="se"),
    "seresnext101d_32x8d": _imagenet(101, 32, 8, attention="se", **_D),
    "seresnextaa101d_32x8d": _imagenet(101, 32, 8, attention="se", anti_alias="avg", **_D),
    "seresnextaa201d_32x8d": _imagenet(
        201, 32, 8, attention="se", anti_alias="avg", **{**_D, "stem_width": 64}
    ),
    "ecaresnext26t_32x4d": _imagenet(26, 32, 4, attention="eca", **_T),
    "ecaresnext50t_32x4d": _imagenet(50, 32, 4, attention="eca", **_T),
    "resnext29_1x64d": _small(3, 1, 64),
    "resnext29_2x64d": _small(3, 2, 64),
    "resnext29_4x64d": _small(3, 4, 64),
    "resnext29_8x64d": _small(3, 8, 64),
    "resnext29_16x64d": _small(3, 16, 64),
    "resnext29_32x4d": _small(3, 32, 4),
    "resnext11_8x16d": _small(1, 8, 16, width=32),
    "resnext_nano": _compact((1, 2, 2, 1), 4, 16, (16, 32, 64, 128), 8),
    "resnext_tiny": _compact((1, 1, 2, 1), 4, 16, (32, 64, 128, 256), 16),
    "resnext_small": _compact((1, 2, 3, 2), 4, 24, (40, 80, 160, 320), 16),
    "resnext_medium": _compact((2, 2, 4, 2), 4, 32, (64, 128, 256, 384), 24),
    "resnext_nano_32px": _compact_32px((1, 1, 1), 4, 16, (16, 32, 64), 16),
    "resnext_tiny_32px": _compact_32px((1, 1, 2), 4, 16, (32, 64, 128), 32),
    "resnext_small_32px": _compact_32px((1, 2, 2), 4, 32, (64, 128, 192), 32),
}


def variants() -> tuple[str, ...]:
    """Names that `create` and `variant` accept, in the order of the table."""
    return tuple(_VARIANTS)


def variant(name: str, **overrides: Any) -> ResNeXtConfig:
    """The config of a named variant.

    Args:
        name: A name from `variants()`, or as torchvision, timm, Lucid or mmcls spell it:
            `resnext50_32x4d`, `resnext50_32x4d.a1_in1k`, `resnext_50_32x4d`,
            `resnext50-32x4d_8xb32_in1k`.
        overrides: Fields of `ResNeXtConfig` to change.

    Raises:
        UnknownNameError: No variant has that name; the message names the nearest.
        ConfigError: An override is not valid.
    """
    if not isinstance(name, str):
        raise UnknownNameError(
            f"No variant is called {brief(name)}. Give its name as text; a config is built with "
            f"ResNeXt(config)."
        )
    key = canonical_name(name)
    if key not in _VARIANTS:
        near = difflib.get_close_matches(key, _VARIANTS, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`resnext info` lists them."
        raise UnknownNameError(f"No variant is called {brief(name)}. {hint}")
    return _VARIANTS[key].replace(**overrides)


def canonical_name(name: str) -> str:
    """Our spelling of a variant's name, from our own or another library's spelling."""
    return split_name(name)[0]


def split_name(name: str) -> tuple[str, str]:
    """A variant's name in our spelling, and what names trained weights of it; empty if nothing.

    timm adds a tag after a dot, and formerly a prefix for the origin of the weights, as the hub of
    torch adds a suffix; Lucid writes an underscore before the depth; mmcls writes hyphens and the
    training schedule. `swsl_resnext50_32x4d` is `("resnext50_32x4d", "swsl")`.
    """
    key, _, tag = str(name).strip().lower().replace("-", "_").partition(".")
    key = key.removeprefix("timm/")
    if origin := re.match(f"({_ORIGINS})_", key):
        key, tag = key[origin.end() :], origin[1]
    key = re.sub(r"^(se|eca)_?resnext", r"\1resnext", key)
    key = re.sub(r"resnext_?((?:aa)?\d+)", r"resnext\1", key)
    key = key.replace("seresnext26tn_", "seresnext26t_")  # timm 0.4
    if suffix := re.search(_WEIGHTS_SUFFIX, key):
        key, tag = key[: suffix.start(1)], suffix[1].strip("_") + (f".{tag}" if tag else "")
    return key, "" if tag == "untrained" else tag


def warn_of_weights(name: str) -> None:
    """Warn if a name is that of trained weights, where only its architecture is used.

    A warning and not an error, because timm's users build untrained networks by such names.

    Warns:
        UntrainedWarning: The name has an origin, a tag or a training schedule.
    """
    if split_name(name)[1]:
        warnings.warn(
            f"{brief(name)} is a name of trained weights, but the network is untrained: only the "
            f"architecture is used. For the weights use resnext.load({brief(name)}), or "
            f"weights={brief(name)} in training.",
            UntrainedWarning,
            stacklevel=3,
        )


def differences(config: ResNeXtConfig, other: ResNeXtConfig) -> list[str]:
    """Names of the properties in which two networks differ; empty if they compute the same."""
    mine, theirs = _computed(config), _computed(other)
    return [name for name in mine if mine[name] != theirs[name]]


def unsupported_reason(config: ResNeXtConfig, nearest: ResNeXtConfig) -> str:
    """Why a library cannot build a network.

    Args:
        config: The network.
        nearest: The most similar network that the library can build.

    Returns:
        The end of a sentence that starts with the library; empty if it can build the network.
    """
    names = differences(config, nearest)
    return f"does not support this network's {' and '.join(names)}." if names else ""


def nearest_variant(config: ResNeXtConfig) -> tuple[str, list[str]]:
    """The most similar named variant, and what differs apart from classes and input channels."""
    ignored = ("num_classes", "in_channels")
    ranked = [
        ([x for x in differences(config, variant(name)) if x not in ignored], name)
        for name in variants()
    ]
    other, name = min(ranked, key=lambda candidate: (len(candidate[0]), candidate[1]))
    return name, other


def title(config: ResNeXtConfig) -> str:
    """Short name of a network, whatever its classes and input channels.

    The variant's name if it is one; else blocks of each stage, cardinality and base width:
    `ResNeXt(1, 1, 2, 1), 8×8d`.
    """
    name, other = nearest_variant(config)
    if not other:
        return name
    stage = config.stages[0]
    width = config.block_args.get("base_width", config.base_width)
    if config.widths:
        width = stage.width // stage.groups
    family = f"{config.gate.upper()}-ResNeXt" if config.gate else "ResNeXt"
    return f"{family}({', '.join(map(str, config.layers))}), {stage.groups}×{width}d"


def _computed(config: ResNeXtConfig) -> dict[str, Any]:
    stages = config.stages
    standardized = config.conv in ("weight_standardized", "affine_weight_standardized")
    pools = config.avg_down or config.anti_alias == "blur"
    squeezed = [config.squeezed(s.out_channels) for s in stages if config.gate == "se"]
    return {
        "num_stages": config.num_stages,
        "layers": config.layers,
        "num_classes": config.num_classes,
        "in_channels": config.in_channels,
        "stem": (config.stem_type, config.stem_out, config.small_stem),
        "avg_down": config.avg_down,
        "cardinality": [stage.groups for stage in stages],
        "width": [stage.width for stage in stages],
        "channels": [stage.out_channels for stage in stages],
        "strides": [stage.stride for stage in stages],
        "dilations": [stage.dilations for stage in stages],
        "style": config.style,
        "norm": (config.norm if config.norm != "sync" else "batch", config.norm_eps),
        "norm_groups": config.norm_groups if config.norm == "group" else None,
        "norm_affine": config.norm_affine,
        "norm_track": config.norm_track,
        "conv": (config.conv, config.conv_eps if standardized else None),
        "padding_mode": config.padding_mode,
        "attention": (config.gate, squeezed),
        "anti_alias": config.anti_alias,
        "ceil_pooling": config.ceil_pooling,
        "keep_pooling": [pools and stage.keeps_pooling for stage in stages],
    }
