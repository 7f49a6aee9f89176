"""What checkpoints say about themselves beside their weights: labels, preprocessing, architecture.

What is missing is left open and nothing is guessed. What contradicts our network is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from resnext.architectures import variant, variants
from resnext.card import Card, Preprocessing
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, ResNeXtError
from resnext.mmcls.classifier import build
from resnext.mmcls.config_file import parse_config

Values = Mapping[str, Any]

_TRAINING = ("drop_rate", "drop_path_rate", "drop_block_rate", "pretrained", "zero_init_last")
_UNUSED = ("pretrained", "init_cfg", "dcn", "plugins", "stage_with_dcn", "with_cp", "norm_eval")
_UNUSED += ("frozen_stages", "out_indices", "multi_grid", "contract_dilation", "drop_path_rate")


class CheckpointMetadata(NamedTuple):
    """What a checkpoint says about itself."""

    card: Card = Card()
    config: ResNeXtConfig | None = None
    """The architecture, if it is told completely."""
    num_classes: int | None = None
    preprocessing: bool = False
    """Whether the card's preprocessing was told."""
    notes: tuple[str, ...] = ()
    """What is said and could not be used."""


# -- OpenMMLab -------------------------------------------------------------------------------------


def from_openmmlab(meta: Values) -> CheckpointMetadata:
    """From `meta` of a file that mmcv or mmengine wrote.

    Raises:
        CheckpointError: The config that it holds is of no ResNeXt that can be built.
    """
    data = meta.get("dataset_meta")
    classes = meta.get("CLASSES") or (data.get("classes") if isinstance(data, Mapping) else None)
    text = meta.get("config") or meta.get("cfg")
    config, how, notes = None, None, list[str]()
    if isinstance(text, str):
        try:
            settings = parse_config(text)
        except ResNeXtError:
            settings = {}
            notes.append("the config in the file could not be read, so it is not used")
        model = settings.get("model")
        config = _openmmlab_network(model) if isinstance(model, Mapping) else None
        how = _openmmlab_preprocessing(settings, notes)
    provenance = {
        name: meta[name]
        for name in ("mmcls_version", "mmengine_version", "mmcv_version", "exp_name", "epoch")
        if isinstance(meta.get(name), str | int)
    }
    card = Card(_labels(classes), how or Preprocessing(), provenance=provenance)
    return CheckpointMetadata(card, config, None, how is not None, tuple(notes))


def _openmmlab_network(model: Values) -> ResNeXtConfig | None:
    """The config of its backbone if that is a ResNeXt, else None."""
    backbone = model.get("backbone")
    kind = str(backbone.get("type")).rpartition(".")[2] if isinstance(backbone, Mapping) else ""
    if not isinstance(backbone, Mapping) or kind not in ("ResNeXt", "SEResNeXt"):
        return None
    classifier = str(model.get("type")).endswith("ImageClassifier")
    args = {**backbone, "type": kind}
    for name in ("dcn", "plugins"):
        if args.get(name):
            raise CheckpointError(f"Its config has {name}, which are not built here.")
    for name in _UNUSED:
        args.pop(name, None)
    stages = args.get("num_stages", 4)
    args["out_indices"] = (stages - 1,) if isinstance(stages, int) else (3,)
    if not classifier:  # mmdet's and mmseg's own class
        args["groups"] = args.get("groups", 1)
        args["width_per_group"] = args.pop("base_width", 4)
        args["stem_channels"] = args.get("stem_channels") or args.get("base_channels", 64)
    neck, head = model.get("neck"), model.get("head")
    if classifier and isinstance(neck, Mapping) and neck.get("type") != "GlobalAveragePooling":
        raise CheckpointError(f"Its neck is {neck.get('type')}, not GlobalAveragePooling.")
    try:
        network = build({**args, "init_cfg": None}).config
    except (ResNeXtError, TypeError, KeyError) as error:
        raise CheckpointError(f"The config in it is of no network that exists: {error}") from error
    assert isinstance(network, ResNeXtConfig)
    classes = head.get("num_classes") if isinstance(head, Mapping) and classifier else None
    return network.replace(num_classes=classes) if isinstance(classes, int) else network


def _openmmlab_preprocessing(settings: Values, notes: list[str]) -> Preprocessing | None:
    """From the pipeline for testing: Resize, CenterCrop, Normalize."""
    model = settings.get("model")
    inner = model.get("data_preprocessor") if isinstance(model, Mapping) else None
    processor = settings.get("data_preprocessor") or inner
    steps = {str(step.get("type")): step for step in _pipeline(settings)}
    normal, rgb = steps.get("Normalize") or settings.get("img_norm_cfg"), True
    if not normal and isinstance(processor, Mapping):
        normal, rgb = processor, False  # MMPretrain's default
    resize, crop = steps.get("Resize") or steps.get("ResizeEdge"), steps.get("CenterCrop")
    if not isinstance(normal, Mapping) or not resize or not crop:
        return None
    wanted: Any = resize.get("scale", resize.get("size"))
    edge = wanted
    by_edge = resize.get("type") == "ResizeEdge" and resize.get("edge", "short") == "short"
    if isinstance(wanted, list | tuple) and len(wanted) == 2 and wanted[1] == -1:
        edge, by_edge = wanted[0], True
    try:
        if not by_edge:
            raise TypeError
        how = Preprocessing(
            size=crop["crop_size"],
            resize=edge,
            interpolation=resize.get("interpolation", "bilinear"),
            mean=tuple(x / 255 for x in normal["mean"]),
            std=tuple(x / 255 for x in normal["std"]),
            colour="RGB" if normal.get("to_rgb", rgb) else "BGR",
        )
    except (ResNeXtError, TypeError, KeyError):
        notes.append("the preprocessing in the file's config is of another kind and not used")
        return None
    if resize.get("backend", "cv2") != "pillow":
        notes.append("images were resized by OpenCV there, without antialiasing; here by Pillow")
    return how


def _pipeline(settings: Values) -> Iterable[Values]:
    data, loader = settings.get("data"), settings.get("test_dataloader")
    test = data.get("test") if isinstance(data, Mapping) else None
    inner = loader.get("dataset") if isinstance(loader, Mapping) else None
    for place in (test, inner, {"pipeline": settings.get("test_pipeline")}):
        steps = place.get("pipeline") if isinstance(place, Mapping) else None
        if isinstance(steps, list):
            return [step for step in steps if isinstance(step, Mapping)]
    return []


# -- folders of timm and Transformers --------------------------------------------------------------


def from_folder(config: Values, preprocessor: Values) -> CheckpointMetadata:
    """From `config.json` and `preprocessor_config.json`, as timm and Transformers write them.

    Raises:
        CheckpointError: They name another network, or one that is not built here.
    """
    notes: list[str] = []
    count = config.get("num_classes", config.get("num_labels"))
    if count is not None and type(count) is not int:
        raise CheckpointError(f"config.json: num_classes must be an integer, not {count!r}.")
    named = config.get("architecture")
    network = _timm_network(str(named), config, count) if named is not None else None
    if network is None:
        _check_transformers(config)
    about = config.get("pretrained_cfg")
    told, how = about if isinstance(about, Mapping) else {}, None
    if told.get("mean") is not None:
        how = _timm_preprocessing(told)
    elif preprocessor:
        how = _transformers_preprocessing(preprocessor)
    if how is None and (told.get("mean") is not None or preprocessor):
        notes.append("the preprocessing beside the file is of another kind and not used")
    licence = told.get("license")
    card = Card(
        _labels_of_folder(config),
        how or Preprocessing(),
        provenance={"architecture": named} if isinstance(named, str) else {},
        licence=licence if isinstance(licence, str) else "",
    )
    return CheckpointMetadata(card, network, count, how is not None, tuple(notes))


def _timm_network(name: str, config: Values, count: int | None) -> ResNeXtConfig:
    """The architecture that timm was asked for.

    Raises:
        CheckpointError: It is not built here, or with arguments that are not.
    """
    if name not in variants():
        raise CheckpointError(f"config.json names {name}, which is no ResNeXt that is built here.")
    args = config.get("model_args") or {}
    args = dict(args) if isinstance(args, Mapping) else {"model_args": args}
    pool = args.pop("global_pool", config.get("global_pool"))
    if pool not in (None, "avg"):
        raise CheckpointError(f"config.json: global_pool {pool!r} is not built here, only 'avg'.")
    fields = {"num_classes": args.pop("num_classes", count), "in_channels": args.pop("in_chans", 3)}
    if other := [key for key, value in args.items() if key not in _TRAINING and value is not None]:
        raise CheckpointError(f"config.json: the argument {other[0]!r} of timm is not built here.")
    try:
        return variant(name, **{key: x for key, x in fields.items() if x is not None})
    except ResNeXtError as error:
        raise CheckpointError(f"config.json: {error}") from error


def _check_transformers(config: Values) -> None:
    """Refuse what Transformers' ResNet can be and names do not tell."""
    for name, usual in (
        ("hidden_act", "relu"),
        ("downsample_in_first_stage", False),
        ("downsample_in_bottleneck", False),
    ):
        if (value := config.get(name, usual)) != usual:
            raise CheckpointError(f"config.json: {name} {value!r} is not built here, only {usual}.")


def _labels_of_folder(config: Values) -> tuple[str, ...]:
    names, descriptions = config.get("label_names"), config.get("label_descriptions")
    if isinstance(names, list) and isinstance(descriptions, Mapping):
        names = [descriptions.get(x, x) if isinstance(x, str) else x for x in names]
    numbered = config.get("id2label")
    if not names and isinstance(numbered, Mapping):
        order = [str(i) for i in range(len(numbered))]
        if sorted(order) != sorted(map(str, numbered)):
            raise CheckpointError("config.json: id2label must number the classes 0, 1, 2, …")
        by_number = {str(number): name for number, name in numbered.items()}
        names = [by_number[number] for number in order]
    return _labels(names)


def _labels(names: object) -> tuple[str, ...]:
    """Names of classes, if that is what it is."""
    if not isinstance(names, list | tuple) or not all(isinstance(x, str | int) for x in names):
        return ()
    return tuple(str(name) for name in names)


def _timm_preprocessing(about: Values) -> Preprocessing | None:
    """From `pretrained_cfg`, at the size for testing; None for another kind."""
    try:
        channels, height, width = about.get("test_input_size") or about["input_size"]
        part = about.get("test_crop_pct") or about.get("crop_pct") or 1.0
        if height != width or about.get("crop_mode") not in (None, "center"):
            return None
        return Preprocessing(
            size=height,
            resize=int(height / part),
            interpolation=about.get("interpolation", "bilinear"),
            mean=tuple(about["mean"]),
            std=tuple(about["std"]),
            colour="L" if channels == 1 else "RGB",
        )
    except (ResNeXtError, TypeError, KeyError, ValueError, ArithmeticError):
        return None


def _transformers_preprocessing(about: Values) -> Preprocessing | None:
    """From Transformers' image processor, as ConvNeXt's reads it; None for another kind."""
    kinds = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    usual = ("do_resize", "do_normalize", "do_rescale", "do_center_crop")
    if not all(about.get(name, True) for name in usual):
        return None
    if abs(about.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        return None
    size, crop = about.get("size"), about.get("crop_size")
    edge: Any = size.get("shortest_edge") if isinstance(size, Mapping) else size
    inner: Any = crop.get("height") if isinstance(crop, Mapping) else crop
    try:
        part = about.get("crop_pct")
        return Preprocessing(
            size=inner or edge,
            resize=int(edge / part) if part and not inner else edge,
            interpolation=kinds[about.get("resample", 2)],  # type: ignore[arg-type]
            mean=tuple(about["image_mean"]),
            std=tuple(about["image_std"]),
        )
    except (ResNeXtError, TypeError, KeyError, ValueError, ArithmeticError):
        return None
