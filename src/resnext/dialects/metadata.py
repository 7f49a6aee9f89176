"""What checkpoints say about themselves beside their weights: labels, preprocessing, architecture.

Whatever is missing or not understood is left open; nothing here is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from resnext.card import Card, Preprocessing
from resnext.config import ResNeXtConfig
from resnext.dialects.mmcls_build import build
from resnext.dialects.mmcls_config import parse_config
from resnext.errors import CheckpointError, ResNeXtError
from resnext.zoo import variant, variants

_OPENMMLAB_MEAN = (123.675, 116.28, 103.53)


class About(NamedTuple):
    """What a checkpoint says about itself."""

    card: Card = Card()
    config: ResNeXtConfig | None = None
    """The architecture, if it is told completely."""
    preprocessing: bool = False
    """Whether the card's preprocessing was told."""


def from_openmmlab(meta: Mapping[str, Any]) -> About:
    """From `meta` of a file that mmcv or mmengine wrote.

    Raises:
        CheckpointError: The config that it holds is of no ResNeXt that can be built.
    """
    data = meta.get("dataset_meta")
    classes = meta.get("CLASSES") or (data.get("classes") if isinstance(data, Mapping) else None)
    text = meta.get("config") or meta.get("cfg")
    config, how = None, None
    if isinstance(text, str):
        try:
            settings = parse_config(text)
        except ResNeXtError:
            settings = {}
        model = settings.get("model")
        config = _openmmlab_network(model) if isinstance(model, Mapping) else None
        how = _openmmlab_preprocessing(settings)
    provenance = {
        name: meta[name]
        for name in ("mmcls_version", "mmengine_version", "mmcv_version", "exp_name", "epoch")
        if isinstance(meta.get(name), str | int)
    }
    card = Card(_labels(classes), how or Preprocessing(), provenance=provenance)
    return About(card, config, how is not None)


def from_folder(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> About:
    """From `config.json` and `preprocessor_config.json`, as timm and Transformers write them.

    Raises:
        CheckpointError: They contradict each other, or name another architecture.
    """
    named = config.get("architecture") or (config.get("architectures") or [""])[0]
    network = None
    if isinstance(named, str) and named in variants():
        extra = config.get("model_args") or {}
        count = config.get("num_classes") or config.get("num_labels")
        fields = {"num_classes": count} if isinstance(count, int) and count > 0 else {}
        if isinstance(extra, Mapping) and isinstance(extra.get("in_chans"), int):
            fields["in_channels"] = extra["in_chans"]
        network = variant(named, **fields)
    names = config.get("label_names")
    descriptions = config.get("label_descriptions")
    if isinstance(names, list) and isinstance(descriptions, Mapping):
        names = [str(descriptions.get(name, name)) for name in names]
    by_id = config.get("id2label")
    if not names and isinstance(by_id, Mapping) and all(str(k).isdigit() for k in by_id):
        names = [by_id[key] for key in sorted(by_id, key=int)]
    how = _timm_preprocessing(config.get("pretrained_cfg")) or _transformers(preprocessor)
    about = config.get("pretrained_cfg")
    licence = about.get("license") if isinstance(about, Mapping) else None
    card = Card(
        _labels(names),
        how or Preprocessing(),
        provenance={"architecture": named} if isinstance(named, str) and named else {},
        licence=licence if isinstance(licence, str) else "",
    )
    return About(card, network, how is not None)


def _labels(names: object) -> tuple[str, ...]:
    if not isinstance(names, list | tuple):
        return ()
    return tuple(str(name) for name in names)


def _openmmlab_network(model: Mapping[str, Any]) -> ResNeXtConfig | None:
    """The config of a classifier, if it is a ResNeXt; None for what is not built here."""
    backbone = model.get("backbone")
    if not isinstance(backbone, Mapping) or "ResNeXt" not in str(backbone.get("type")):
        return None
    if "base_width" in backbone:  # mmdet's and mmseg's own class
        return None
    head = model.get("head")
    try:
        network = build({**backbone, "init_cfg": None}).config
    except (ResNeXtError, TypeError, KeyError) as error:
        raise CheckpointError(f"The config in it is of no network that exists: {error}") from error
    assert isinstance(network, ResNeXtConfig)
    classes = head.get("num_classes") if isinstance(head, Mapping) else None
    return network.replace(num_classes=classes) if isinstance(classes, int) else network


def _openmmlab_preprocessing(settings: Mapping[str, Any]) -> Preprocessing | None:
    """From the pipeline for testing: Resize, CenterCrop, Normalize."""
    steps = {str(step.get("type")): step for step in _pipeline(settings)}
    normal = steps.get("Normalize") or settings.get("img_norm_cfg")
    normal = normal or settings.get("data_preprocessor")
    resize = steps.get("Resize") or steps.get("ResizeEdge")
    crop = steps.get("CenterCrop")
    if not isinstance(normal, Mapping) or not resize or not crop:
        return None
    shorter: Any = resize.get("scale", resize.get("size"))
    if isinstance(shorter, list | tuple):
        shorter = shorter[0]
    try:
        return Preprocessing(
            size=crop["crop_size"],
            resize=shorter,
            interpolation=resize.get("interpolation", "bilinear"),
            mean=tuple(x / 255 for x in normal.get("mean", ())),
            std=tuple(x / 255 for x in normal.get("std", ())),
            colour="RGB" if normal.get("to_rgb", True) else "BGR",
        )
    except (ResNeXtError, TypeError, KeyError):
        return None


def _pipeline(settings: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    data = settings.get("data")
    test = data.get("test") if isinstance(data, Mapping) else None
    loader = settings.get("test_dataloader")
    inner = loader.get("dataset") if isinstance(loader, Mapping) else None
    for place in (test, inner):
        if isinstance(place, Mapping) and isinstance(place.get("pipeline"), list):
            return [step for step in place["pipeline"] if isinstance(step, Mapping)]
    steps = settings.get("test_pipeline")
    return [s for s in steps if isinstance(s, Mapping)] if isinstance(steps, list) else []


def _timm_preprocessing(about: object) -> Preprocessing | None:
    """From `pretrained_cfg`, at the size for testing."""
    if not isinstance(about, Mapping) or "mean" not in about:
        return None
    try:
        size = (about.get("test_input_size") or about["input_size"])[-1]
        part = about.get("test_crop_pct") or about.get("crop_pct") or 1.0
        channels = (about.get("input_size") or (3,))[0]
        return Preprocessing(
            size=size,
            resize=int(size / part),
            interpolation=about.get("interpolation", "bilinear"),
            mean=tuple(about["mean"]),
            std=tuple(about["std"]),
            colour="L" if channels == 1 else "RGB",
        )
    except (ResNeXtError, TypeError, KeyError, ValueError, ArithmeticError, LookupError):
        return None


def _transformers(about: Mapping[str, Any]) -> Preprocessing | None:
    """From Transformers' image processor, as `ConvNextImageProcessor` reads it."""
    kinds = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    size = about.get("size")
    edge: Any = size.get("shortest_edge", size.get("height")) if isinstance(size, Mapping) else size
    crop: Any = about.get("crop_size")
    crop = crop.get("height") if isinstance(crop, Mapping) else crop
    try:
        part = about.get("crop_pct")
        shorter = int(edge / part) if part and not crop else edge
        return Preprocessing(
            size=crop or edge,
            resize=shorter,
            interpolation=kinds.get(about.get("resample", 2), "bilinear"),  # type: ignore[arg-type]
            mean=tuple(about["image_mean"]),
            std=tuple(about["image_std"]),
        )
    except (ResNeXtError, TypeError, KeyError, ArithmeticError):
        return None
