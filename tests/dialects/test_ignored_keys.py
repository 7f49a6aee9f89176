"""Every key of a foreign config that is ignored: it changes no output, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.originals import randomize
from oracles.originals import timm as library
from torch import Tensor

from resnext.dialects import openmmlab_images, timm
from resnext.dialects.dialect import Documents
from resnext.dialects.openmmlab import _HEAD_ARGS, head_problem
from resnext.dialects.table import DIALECTS
from resnext.errors import ResNeXtError
from resnext.mmcls import build, registry

HEAD: dict[str, Any] = {"type": "LinearClsHead", "num_classes": 3, "in_channels": 64}
CLASSIFIER: dict[str, Any] = {
    "type": "ImageClassifier",
    "backbone": {"type": "ResNeXt", "depth": 50, "groups": 2, "width_per_group": 4,
                 "base_channels": 8, "stem_channels": 8, "num_stages": 2, "strides": (1, 2),
                 "dilations": (1, 1), "out_indices": (1,)},
    "neck": {"type": "GlobalAveragePooling"},
    "head": HEAD,
}  # fmt: skip
# Values that are no default, and concern training, measuring or loading
OF_HEAD: dict[str, Any] = {"topk": (1, 2), "cal_acc": True, "init_cfg": None}
OF_CLASSIFIER: dict[str, Any] = {
    "pretrained": "nowhere.pth",
    "init_cfg": {"type": "Pretrained", "checkpoint": "nowhere.pth"},
    "train_cfg": {"augments": [{"type": "BatchMixup", "alpha": 0.2, "num_classes": 3, "prob": 1}]},
    "data_preprocessor": {"mean": [9.0, 9.0, 9.0], "std": [9.0, 9.0, 9.0], "to_rgb": True},
}
LOSSES: list[dict[str, Any]] = [
    {"type": "CrossEntropyLoss", "class_weight": [1.0, 2.0, 3.0]},
    {"type": "CrossEntropyLoss", "use_sigmoid": True},
    {"type": "CrossEntropyLoss", "use_soft": True},
    {"type": "CrossEntropyLoss", "reduction": "sum"},
    {"type": "CrossEntropyLoss", "pos_weight": 2.0},
    *({"type": "LabelSmoothLoss", "label_smooth_val": 0.1, "mode": mode}
      for mode in ("original", "classy_vision", "multi_label")),
    {"type": "FocalLoss", "gamma": 2.0},
    {"type": "AsymmetricLoss", "gamma_pos": 0.0},
    {"type": "SeesawLoss", "num_classes": 3},
]  # fmt: skip


def answers(config: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and probabilities in evaluation, and the loss, of a network with fixed weights."""
    network = build(config)
    randomize(network)
    network.eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        loss = network(x, torch.tensor([0, 2]), return_loss=True)["loss"]
        return (
            network(x),
            torch.stack([*map(torch.from_numpy, network(x, return_loss=False))]),
            loss,
        )


@pytest.mark.parametrize("name", [*OF_HEAD, *OF_CLASSIFIER])
def test_of_a_classifier_of_mmcls(name: str) -> None:
    """`build` takes them, and gives the same answers."""
    assert {*registry._TRAINING_ARGS} == {*OF_HEAD, "loss"}
    assert {*registry._CLASSIFIER_ARGS} == {*OF_CLASSIFIER, "backbone", "neck", "head"}
    changed = dict(CLASSIFIER)
    if name in OF_CLASSIFIER:
        changed[name] = OF_CLASSIFIER[name]
    else:
        changed["head"] = {**HEAD, name: OF_HEAD[name]}
    pairs = zip(answers(CLASSIFIER), answers(changed), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_losses_of_mmcls(loss: dict[str, Any]) -> None:
    """Every loss but mean cross-entropy is refused when it is asked for, in one line."""
    network = build({**CLASSIFIER, "head": {**HEAD, "loss": loss}}).eval()
    x = torch.rand(2, 3, 32, 32)
    assert network(x).shape == (2, 3)
    with pytest.raises(ResNeXtError, match="computes mean CrossEntropyLoss only") as caught:
        network(x, torch.tensor([0, 2]), return_loss=True)
    assert "\n" not in str(caught.value)


def test_heads_of_checkpoints() -> None:
    """What a checkpoint's head may have is what `build` takes; anything else is left out."""
    assert {*_HEAD_ARGS} == {"type", "num_classes", "in_channels", *registry._TRAINING_ARGS}
    assert not head_problem({**HEAD, **OF_HEAD, "loss": LOSSES[0]})
    assert "'with_avg_pool', which is not known here" in head_problem({**HEAD, "with_avg_pool": 1})


# Arguments of image pipelines that are not used: where files are, how they are decoded, and what
# only happens when images are padded or sampled for training
OF_IMAGES: dict[str, dict[str, Any]] = {
    "LoadImageFromFile": {
        "to_float32": True,
        "file_client_args": {"backend": "disk"},
        "backend_args": {"backend": "local"},
        "imdecode_backend": "pillow",
        "ignore_empty": True,
    },
    "Resize": {"keep_ratio": True},
    "ResizeEdge": {},
    "CenterCrop": {"interpolation": "bicubic", "backend": "cv2"},
    "Normalize": {},
}
USED: dict[str, set[str]] = {
    "LoadImageFromFile": set(),
    "Resize": {"size", "scale", "interpolation", "backend"},
    "ResizeEdge": {"scale", "interpolation", "backend"},
    "CenterCrop": {"crop_size"},
    "Normalize": {"mean", "std", "to_rgb"},
}
STEPS: list[dict[str, Any]] = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "size": (80, -1), "backend": "pillow"},
    {"type": "CenterCrop", "crop_size": 64},
    {"type": "Normalize", "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "to_rgb": True},
]


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in OF_IMAGES.items() for name in names]
)
def test_of_image_pipelines(kind: str, name: str) -> None:
    """The preprocessing is the same; every other argument is used, or bound to one value."""
    free = {
        step: {key for key, value in known.items() if value is openmmlab_images._ANY}
        for step, known in openmmlab_images._STEPS.items()
    }
    assert free == {step: {*OF_IMAGES[step], *USED[step]} for step in OF_IMAGES}
    steps = [{**x, name: OF_IMAGES[kind][name]} if x["type"] == kind else x for x in STEPS]
    plain, changed = (
        DIALECTS["mmcls"].metadata(
            Documents(file={"meta": {"config": f"test_pipeline = {pipeline!r}\n"}})
        )
        for pipeline in (STEPS, steps)
    )
    assert plain.preprocessing is not None
    assert (changed.preprocessing, changed.notes) == (plain.preprocessing, plain.notes)


@pytest.mark.parametrize(("name", "value"), {"drop_rate": 0.5, "drop_path_rate": 0.5,
                         "drop_block_rate": 0.5, "zero_init_last": False}.items())  # fmt: skip
def test_arguments_of_timm(name: str, value: Any) -> None:
    """timm's own network gives the same logits with them."""
    assert {*timm._TRAINING} == {"drop_rate", "drop_path_rate", "drop_block_rate", "pretrained",
                                 "zero_init_last"}  # fmt: skip
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found: list[Tensor] = []
    for arguments in ({}, {name: value}):
        network = library.create_model("resnext50_32x4d", num_classes=3, **arguments).eval()
        randomize(network)
        with torch.no_grad():
            found.append(network(x))
        config = {"architecture": "resnext50_32x4d", "model_args": arguments}
        assert DIALECTS["timm"].metadata(Documents(config=config)).config is not None
    assert torch.equal(*found)
