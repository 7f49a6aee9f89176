"""Arguments of other libraries, and what they are called here. Loads no torch.

Sources: the ResNet builders of torchvision 0.28 and timm 1.0 with their `create_model`, mmcls 0.25,
transformers' ResNetConfig, Keras' applications and fastai's learners.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import fields
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from resnext.checks import scalar
from resnext.errors import ConfigTypeError

Config = TypeVar("Config")
P = ParamSpec("P")
T = TypeVar("T")

_FIELDS = {  # theirs → the field
    "groups": "cardinality",
    "width_per_group": "base_width",
    "in_chans": "in_channels",
    "num_channels": "in_channels",
    "num_labels": "num_classes",
    "nb_classes": "num_classes",
    "n_classes": "num_classes",
    "classes": "num_classes",
    "n_out": "num_classes",
    "c_out": "num_classes",
    "n_in": "in_channels",
    "c_in": "in_channels",
    "drop_rate": "dropout",
    "dropout_rate": "dropout",
    "ps": "dropout",
    "drop_connect_rate": "drop_path_rate",
    "drop_path": "drop_path_rate",
    "zero_init_last": "zero_init_residual",
    "zero_init_last_bn": "zero_init_residual",
    "depths": "layers",
    "hidden_sizes": "channels",
    "se_ratio": "se_reduction",
    "reduction_ratio": "se_reduction",
    "rd_ratio": "se_reduction",
    "reduction": "se_reduction",
    "stem_szs": "stem_channels",
    "bn_eps": "norm_eps",
    "eps": "norm_eps",
    "momentum": "norm_momentum",
    "bn_momentum": "norm_momentum",
    "embedding_size": "stem_channels",
}
_ARGUMENTS = {  # theirs → the argument of a function
    "map_location": "device",
    "verbose": "progress",
    "batch": "batch_size",
    "bs": "batch_size",
    "num_workers": "workers",
    "topk": "top",
    "top_k": "top",
    "k": "top",
    "target": "label",
    "category": "label",
    "target_category": "label",
    "method": "how",
    "layer": "stage",
    "imgsz": "size",
    "img_size": "size",
    "image_size": "size",
    "input_size": "size",
    "output": "out",
    "out_path": "out",
    "save_path": "out",
    "return_layers": "out_indices",
    "out_features": "out_indices",
    "return_idx": "out_indices",
    "with_cp": "checkpointing",
    "freeze": "frozen_stages",
}
_WEIGHTS = "Networks are built untrained; resnext.load(name) gives one with its weights."
_BACKBONE = "It is an argument of resnext.Backbone(config, …), which returns feature maps."
_STRIDES = (
    "resnext.create, load and Backbone take output_stride=8, 16 or 32 and dilation_convention; a "
    "config has strides and dilations, for a stride of 16 strides=(1, 2, 2, 1), "
    "dilations=(1, 1, 1, (1, 2, 2))."
)
_RELU = "The activation is always ReLU."
_PLAIN = "ResNeXts are built without it."
_TORCH = "Use the network's to(device, dtype)."
_CONFIG_FIELDS: list[str] = []  # `answering` adds them
_ADVICE = {
    **dict.fromkeys(
        ("weights", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"),
        _WEIGHTS,
    ),
    **dict.fromkeys(("pretrained_strict", "progress", "cache_dir", "init_cfg"), _WEIGHTS),
    **dict.fromkeys(("out_indices", "frozen_stages", "norm_eval"), _BACKBONE),
    "features_only": "resnext.Backbone(config) returns feature maps.",
    "feature_cls": "resnext.Backbone(config) returns feature maps.",
    "feature_cfg": "resnext.Backbone(config) returns feature maps.",
    "out_features": "resnext.Backbone(config, out_indices=…) returns feature maps.",
    "with_cp": "It is checkpointing of resnext.Backbone(config, …); a ResNeXt has "
    "set_grad_checkpointing().",
    "output_stride": _STRIDES,
    "replace_stride_with_dilation": _STRIDES,
    "dilated": _STRIDES,
    "contract_dilation": _STRIDES,
    "norm_layer": "Give norm, one of 'batch', 'sync', 'group', 'layer' and 'instance'.",
    "norm_cfg": "Give norm, one of 'batch', 'sync', 'group', 'layer' and 'instance'; "
    "resnext.mmcls.ResNeXt takes norm_cfg.",
    "conv_cfg": "Give conv, such as 'weight_standardized'; resnext.mmcls.ResNeXt takes conv_cfg.",
    "aa_layer": "Give anti_alias, 'avg' or 'blur'.",
    "attn_layer": "Give attention, 'se' or 'eca'.",
    "se": "Give attention='se'.",
    "se_layer": "Give attention='se'.",
    "deep_stem": "Give stem_type='deep'.",
    "base_channels": "Give channels, the width of each stage.",
    "depth": "Give layers, the blocks of each stage, such as (3, 4, 6, 3) for depth 50.",
    "global_pool": "The last map is always averaged; resnext.Backbone(config) returns maps.",
    "act_layer": _RELU,
    "hidden_act": _RELU,
    "block": "Every block is a bottleneck.",
    "layer_type": "Every block is a bottleneck.",
    **dict.fromkeys(
        (
            "drop_block_rate",
            "block_reduce_first",
            "down_kernel_size",
            "replace_stem_pool",
            "plugins",
        ),
        _PLAIN,
    ),
    **dict.fromkeys(("downsample_in_first_stage", "downsample_in_bottleneck", "dcn"), _PLAIN),
    "include_top": "num_classes=0 leaves it out; resnext.Backbone(config) returns maps.",
    "input_shape": "A network takes images of any size; in_channels is the number of channels.",
    "input_tensor": "Call the network with the images.",
    "pooling": "The last map is always averaged; resnext.Backbone(config) returns maps.",
    "concat_pool": "The last map is always averaged; resnext.Backbone(config) returns maps.",
    "classifier_activation": "Networks return logits; apply softmax to them.",
    "norm_type": "Give norm, one of 'batch', 'sync', 'group', 'layer' and 'instance'.",
    "act_cls": _RELU,
    **dict.fromkeys(("sa", "sym", "nh1", "nh2", "dw", "ndim", "ks", "custom_head"), _PLAIN),
    "id2label": "Labels are in the card: model.card = resnext.Card(labels=…).",
    "label2id": "Labels are in the card: model.card = resnext.Card(labels=…).",
    "strict": "A file always fills the whole network.",
    "weights_only": "No code in a file is ever executed.",
    "trust_remote_code": "No code in a file is ever executed.",
    "device": _TORCH,
    "dtype": _TORCH,
    "scriptable": "Every network can be traced and exported as it is.",
    "exportable": "Every network can be traced and exported as it is.",
    "no_jit": "No layer is scripted.",
    "img_size": "A network takes images of any size.",
    "pruned": _PLAIN,
}


def refuse_unknown(names: Iterable[str], config: type[Any]) -> None:
    """Refuse names that are not fields of a config class.

    Args:
        names: The names that were given.
        config: The class.

    Raises:
        ConfigTypeError: With the field of another library's argument, or the nearest field.
    """
    known = [field.name for field in fields(config)]
    for name in names:
        if name in known:
            continue
        field = _FIELDS.get(name)
        near = [field] if field else difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(known)}."
        raise ConfigTypeError(f"ResNeXtConfig has no field {name!r}. {_ADVICE.get(name, hint)}")


def answering_call(call: Callable[P, T]) -> Callable[P, T]:
    """Make a function or constructor take NumPy's numbers, and answer other libraries' arguments.

    The decorated one raises `ConfigTypeError` for an unknown argument, with the one that is meant.
    """
    parameters = inspect.signature(call).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    is_method = call.__name__ == "__init__"
    title = call.__qualname__.split(".")[0] if is_method else call.__name__

    @wraps(call)
    def answered(*args: P.args, **given: P.kwargs) -> T:
        for name in () if takes_any else given:
            if name not in parameters:
                raise ConfigTypeError(
                    f"{title} has no argument {name!r}. {_meant(name, list(parameters))}"
                )
        return call(*map(scalar, args), **{k: scalar(v) for k, v in given.items()})  # pyright: ignore

    return answered


def _meant(name: str, known: Collection[str]) -> str:
    """What an unknown argument of a function is here."""
    for theirs in (_ARGUMENTS, _FIELDS):
        if theirs.get(name) in known:
            return f"Did you mean {theirs[name]!r}?"
    if "config" in known and (name in _CONFIG_FIELDS or name in _FIELDS):
        return f"It is a field of the config: config.replace({_FIELDS.get(name, name)}=…)."
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]!r}?" if near else None
    return _ADVICE.get(name, hint) or f"It has {', '.join(x for x in known if x != 'self')}."


def answering(config: type[Config]) -> type[Config]:
    """Make a frozen config class answer other libraries' arguments, and let Trainers leave notes.

    transformers' Trainer writes `config.use_cache`, which no field has and no network reads.
    """
    build, write = config.__init__, config.__setattr__
    _CONFIG_FIELDS.extend(field.name for field in fields(config))  # pyright: ignore

    @wraps(build)
    def __init__(self: Config, *args: Any, **values: Any) -> None:
        refuse_unknown(values, config)
        build(self, *args, **values)

    def __setattr__(self: Config, name: str, value: Any) -> None:
        (object.__setattr__ if name == "use_cache" else write)(self, name, value)

    config.__init__, config.__setattr__ = __init__, __setattr__
    return config
