"""Whether two configs are of the same network, whatever they say about training."""

from __future__ import annotations

from typing import Any

from resnext.config import ResNeXtConfig
from resnext.zoo import variant, variants


def differences(config: ResNeXtConfig, other: ResNeXtConfig) -> list[str]:
    """What two networks compute differently, as names of fields; empty if nothing."""
    mine, theirs = _computed(config), _computed(other)
    return [name for name in mine if mine[name] != theirs[name]]


def unlike(config: ResNeXtConfig, nearest: ResNeXtConfig) -> str:
    """Why a library whose nearest network is `nearest` does not have the network of `config`.

    Returns:
        The end of a sentence that starts with the library; empty if it has the network.
    """
    names = differences(config, nearest)
    return f"has no networks with such {' and '.join(names)}." if names else ""


def nearest_variant(config: ResNeXtConfig) -> tuple[str, list[str]]:
    """The named variant that a config is most alike, and what differs beside classes and images."""
    usual = ("num_classes", "in_channels")
    ranked = [
        ([x for x in differences(config, variant(name)) if x not in usual], name)
        for name in variants()
    ]
    other, name = min(ranked, key=lambda row: (len(row[0]), row[1]))
    return name, other


def _computed(config: ResNeXtConfig) -> dict[str, Any]:
    stages = config.stages
    standardised = config.conv in ("weight_standardized", "affine_weight_standardized")
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
        "dilations": [stage.dilation for stage in stages],
        "style": config.style,
        "norm": (config.norm if config.norm != "sync" else "batch", config.norm_eps),
        "norm_groups": config.norm_groups if config.norm == "group" else None,
        "norm_affine": config.norm_affine,
        "norm_track": config.norm_track,
        "conv": (config.conv, config.conv_eps if standardised else None),
        "padding_mode": config.padding_mode,
        "attention": (config.gate, squeezed),
        "anti_alias": config.anti_alias,
    }
