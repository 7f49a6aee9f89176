"""How OpenMMLab's configs prepare an image for testing: its pipeline, and mmengine's preprocessor.

Every step and argument is in a table below; a pipeline with any other is not used.
Source: the documentation of mmcls 0.25, mmpretrain 1.2 and mmcv 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resnext.card import Preprocessing
from resnext.dialects.dialect import Values
from resnext.errors import ResNeXtError

_ANY = object()
_READ_AS: dict[str, Any] = dict.fromkeys(
    ("to_float32", "file_client_args", "backend_args", "imdecode_backend", "ignore_empty"), _ANY
)
_RESIZE: dict[str, Any] = dict.fromkeys(("interpolation", "backend"), _ANY)
_STEPS: dict[str, dict[str, Any]] = {  # what each argument may be
    "LoadImageFromFile": {**_READ_AS, "color_type": "color"},
    "Resize": {
        **_RESIZE,
        "size": _ANY,
        "scale": _ANY,
        "adaptive_side": "short",
        "keep_ratio": _ANY,
    },
    "ResizeEdge": {**_RESIZE, "scale": _ANY, "edge": "short"},
    "CenterCrop": {"crop_size": _ANY, "efficientnet_style": False, "auto_pad": False, **_RESIZE},
    "Normalize": dict.fromkeys(("mean", "std", "to_rgb"), _ANY),
}
_PACKING = ("ImageToTensor", "ToTensor", "Collect", "PackInputs", "PackClsInputs")
_PROCESSOR: dict[str, Any] = {
    **dict.fromkeys(("mean", "std", "to_rgb", "bgr_to_rgb", "num_classes"), _ANY),
    **dict.fromkeys(("pad_size_divisor", "pad_value", "non_blocking"), _ANY),
    **{"rgb_to_bgr": False, "to_onehot": _ANY, "batch_augments": _ANY},  # the last two for training
}
_OTHER = "the preprocessing in the file's config is of another kind, so it is not used"


def pipeline_preprocessing(settings: Values, notes: list[str]) -> Preprocessing | None:
    """Resize, CenterCrop and Normalize of the test pipeline; None if it is of another kind.

    Args:
        settings: A whole config.
        notes: Gets what cannot be used, and why.
    """
    pipeline = _pipeline(settings)
    model = settings.get("model")
    inner = model.get("data_preprocessor") if isinstance(model, Mapping) else None
    processor = settings.get("data_preprocessor") or inner
    if problem := _unknown_step(pipeline):
        notes.append(f"{_OTHER}: {problem}")
        return None
    steps = {_kind(step): step for step in pipeline}
    normal, rgb = steps.get("Normalize") or settings.get("img_norm_cfg"), True
    if not normal and isinstance(processor, Mapping):
        normal, rgb = processor, False  # MMPretrain's default
        if problem := _unknown_argument("data_preprocessor", processor, _PROCESSOR):
            notes.append(f"{_OTHER}: {problem}")
            return None
    resize, crop = steps.get("Resize") or steps.get("ResizeEdge"), steps.get("CenterCrop")
    if not isinstance(normal, Mapping) or not resize or not crop:
        if pipeline:
            notes.append(_OTHER)
        return None
    wanted: Any = resize.get("scale", resize.get("size"))
    edge, by_edge = wanted, _kind(resize) == "ResizeEdge"
    if isinstance(wanted, list | tuple) and len(wanted) == 2 and wanted[1] == -1:
        edge, by_edge = wanted[0], True
    try:
        if not by_edge or crop["crop_size"] % (normal.get("pad_size_divisor") or 1):
            raise TypeError
        preprocessing = Preprocessing(
            size=crop["crop_size"],
            resize=edge,
            interpolation=resize.get("interpolation", "bilinear"),
            mean=tuple(x / 255 for x in normal["mean"]),
            std=tuple(x / 255 for x in normal["std"]),
            colour="RGB" if normal.get("to_rgb", normal.get("bgr_to_rgb", rgb)) else "BGR",
        )
    except (ResNeXtError, TypeError, KeyError):
        notes.append(_OTHER)
        return None
    if resize.get("backend", "cv2") != "pillow":
        notes.append("images were resized by OpenCV without antialiasing; here Pillow resizes them")
    return preprocessing


def _pipeline(settings: Values) -> list[Values]:
    """Steps of the test pipeline, wherever the version of the config keeps them."""
    data, loader = settings.get("data"), settings.get("test_dataloader")
    test = data.get("test") if isinstance(data, Mapping) else None
    inner = loader.get("dataset") if isinstance(loader, Mapping) else None
    for dataset in (test, inner, {"pipeline": settings.get("test_pipeline")}):
        steps = dataset.get("pipeline") if isinstance(dataset, Mapping) else None
        if isinstance(steps, list):
            return [step for step in steps if isinstance(step, Mapping)]
    return []


def _kind(step: Values) -> str:
    """Type of a step, without the name of its library."""
    return str(step.get("type")).rpartition(".")[2]


def _unknown_step(pipeline: list[Values]) -> str:
    """The first step or argument that is not understood; empty if all are."""
    seen = set[str]()
    for step in pipeline:
        kind = _kind(step)
        if kind in _PACKING:
            continue
        if kind not in _STEPS or kind in seen:
            return f"{kind} twice" if kind in seen else kind
        if problem := _unknown_argument(kind, step, _STEPS[kind]):
            return problem
        seen.add(kind)
    return ""


def _unknown_argument(what: str, given: Values, known: Mapping[str, Any]) -> str:
    """The first argument that is not known, or has another value; empty if there is none."""
    for name, value in given.items():
        if (
            name != "type"
            and known.get(name) is not _ANY
            and (name not in known or (value is not None and value != known[name]))
        ):
            return f"{name}={value!r} of {what}"
    return ""
