"""What dialects read in the documents beside weights, and how several statements are merged."""

from __future__ import annotations

from typing import Any

import pytest

from resnext.architectures import variant
from resnext.card import Card, Preprocessing
from resnext.dialects.dialect import CheckpointMetadata, Documents, label_names
from resnext.dialects.table import DIALECTS
from resnext.errors import CheckpointError

TIMM = {
    "input_size": [3, 64, 64],
    "crop_pct": 0.8,
    "interpolation": "bicubic",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
TRANSFORMERS = {
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}


def read(dialect: str, **documents: Any) -> CheckpointMetadata:
    """What one dialect reads."""
    return DIALECTS[dialect].metadata(Documents(**documents))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_nothing_is_stated_by_nothing(dialect: str) -> None:
    """Every dialect is asked about every checkpoint."""
    assert read(dialect) == CheckpointMetadata()
    assert read(dialect, file={"meta": 5, "format": "pt"}) == CheckpointMetadata()
    assert CheckpointMetadata().card == Card()


def test_merging() -> None:
    """Each statement is taken from the first that makes it."""
    first = CheckpointMetadata(
        ("a",), Preprocessing(32, 32), {"x": 1}, "mit", variant("resnext50_32x4d"), 0, ("one",)
    )
    second = CheckpointMetadata(
        ("b",),
        Preprocessing(64, 64),
        {"x": 2, "y": 3},
        "apache-2.0",
        variant("resnext101_32x4d"),
        7,
        ("two",),
    )
    both = first.merge(second)
    assert both.labels == ("a",)
    assert both.preprocessing == Preprocessing(32, 32)
    assert both.provenance == {"x": 1, "y": 3}
    assert both.licence == "mit"
    assert both.config == first.config
    assert both.num_classes == 0
    assert both.notes == ("one", "two")
    assert CheckpointMetadata().merge(second) == second
    assert second.merge(CheckpointMetadata()) == second
    assert both.card == Card(("a",), Preprocessing(32, 32), {}, {"x": 1, "y": 3}, "mit")


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["a", "b"], ("a", "b")),
        (("a", 2), ("a", "2")),
        ([], ()),
        (None, ()),
        ("ab", ()),
        ([1.5], ()),
        (["a", None], ()),
        ({"a": 1}, ()),
    ],
)
def test_names_of_classes(names: Any, labels: tuple[str, ...]) -> None:
    """Only a list of names is one."""
    assert label_names(names) == labels


# -- timm ------------------------------------------------------------------------------------------


def test_timm() -> None:
    """Architecture, classes, labels, licence and preprocessing."""
    config = {
        "architecture": "resnext50_32x4d",
        "num_classes": 2,
        "label_names": ["n1", "n2"],
        "label_descriptions": {"n1": "cat"},
        "model_args": {"in_chans": 1, "drop_rate": 0.2, "output_stride": None},
        "pretrained_cfg": {**TIMM, "license": "mit"},
    }
    metadata = read("timm", config=config)
    assert metadata.config == variant("resnext50_32x4d", num_classes=2, in_channels=1)
    assert metadata.num_classes == 2
    assert metadata.labels == ("cat", "n2")
    assert metadata.licence == "mit"
    assert metadata.provenance == {"architecture": "resnext50_32x4d"}
    assert metadata.preprocessing == Preprocessing(64, 80, "bicubic", MEAN, STD)
    assert metadata.notes == ()


@pytest.mark.parametrize(
    ("changes", "size", "resize", "colour"),
    [
        ({}, 64, 80, "RGB"),
        ({"test_input_size": [3, 96, 96]}, 96, 120, "RGB"),
        ({"test_crop_pct": 1.0}, 64, 64, "RGB"),
        ({"crop_pct": None}, 64, 64, "RGB"),
        ({"crop_mode": "center"}, 64, 80, "RGB"),
        ({"input_size": [1, 64, 64], "mean": [0.1], "std": [0.4]}, 64, 80, "L"),
    ],
    ids=str,
)
def test_timms_preprocessing(changes: Any, size: int, resize: int, colour: str) -> None:
    """The test size and its crop win; one channel is grey."""
    preprocessing = read("timm", config={"pretrained_cfg": {**TIMM, **changes}}).preprocessing
    assert preprocessing is not None
    assert (preprocessing.size, preprocessing.resize) == (size, resize)
    assert preprocessing.colour == colour


@pytest.mark.parametrize(
    "changes",
    [
        {"input_size": [3, 64, 96]},
        {"input_size": None},
        {"crop_mode": "squash"},
        {"interpolation": "random"},
        {"std": [0, 0, 0]},
        {"crop_pct": "x"},
    ],
    ids=str,
)
def test_preprocessing_of_timm_that_is_not_ours(changes: Any) -> None:
    """It is noted, and nothing is used in its place."""
    metadata = read("timm", config={"pretrained_cfg": {**TIMM, **changes}})
    assert metadata.preprocessing is None
    assert metadata.notes == ("the preprocessing in config.json is of another kind, so it is "
                              "not used",)  # fmt: skip
    assert read("timm", config={"pretrained_cfg": {**TIMM, "mean": None}}).notes == ()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_classes": True}, "num_classes must be an integer, not True"),
        ({"architecture": "resnet50"}, "names resnet50, which is not a ResNeXt"),
        ({"architecture": "resnext50_32x4d", "model_args": {"aa_layer": 1}}, "'aa_layer' of timm"),
        ({"architecture": "resnext50_32x4d", "model_args": 5}, "'model_args' of timm"),
        ({"architecture": "resnext50_32x4d", "global_pool": ""}, "global_pool '' is not supported"),
        ({"architecture": "resnext50_32x4d", "num_classes": -1}, "config.json: num_classes"),
    ],
    ids=str,
)
def test_timm_configs_that_are_not_supported(config: Any, said: str) -> None:
    """Names and shapes would be the same, and the answers others."""
    with pytest.raises(CheckpointError, match=said):
        read("timm", config=config)


# -- Transformers ----------------------------------------------------------------------------------


def test_transformers() -> None:
    """Labels by number, and the image processor."""
    config = {"num_labels": 3, "id2label": {"2": "c", "0": "a", 1: "b"}, "hidden_act": "relu"}
    metadata = read("transformers", config=config, preprocessor=TRANSFORMERS)
    assert metadata.num_classes == 3
    assert metadata.labels == ("a", "b", "c")
    assert metadata.preprocessing == Preprocessing(224, 256, "bicubic", MEAN, STD)
    assert metadata.notes == ()


@pytest.mark.parametrize(
    ("changes", "size", "resize", "interpolation"),
    [
        ({"size": 288}, 224, 288, "bicubic"),
        ({"crop_size": 96}, 96, 256, "bicubic"),
        ({"crop_size": None}, 256, 256, "bicubic"),
        ({"crop_size": None, "crop_pct": 0.5}, 256, 512, "bicubic"),
        ({"crop_pct": 0.5}, 224, 256, "bicubic"),
        ({"resample": 0}, 224, 256, "nearest"),
        ({"resample": 1}, 224, 256, "lanczos"),
        ({"resample": 2}, 224, 256, "bilinear"),
        ({"rescale_factor": 1 / 255, "do_resize": True}, 224, 256, "bicubic"),
    ],
    ids=str,
)
def test_image_processors(changes: Any, size: int, resize: int, interpolation: str) -> None:
    """As ConvNeXt's reads the settings."""
    metadata = read("transformers", preprocessor={**TRANSFORMERS, **changes})
    assert metadata.preprocessing == Preprocessing(size, resize, interpolation, MEAN, STD)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"do_resize": False},
        {"do_flip_channel_order": True},
        {"do_pad": True},
        {"crop_pct": 0.875, "size": {"shortest_edge": 384}},
        {"size": {"height": 224, "width": 224}},
        {"size": {"shortest_edge": 256, "longest_edge": 300}},
        {"crop_size": {"height": 224, "width": 192}},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_center_crop": False},
        {"rescale_factor": 1 / 127.5},
        {"resample": 4},
        {"image_std": [0, 0, 0]},
        {"size": {"height": 3}},
    ],
    ids=str,
)
def test_image_processors_that_are_not_ours(changes: Any) -> None:
    """They are noted, and nothing is used in their place."""
    changed = {**TRANSFORMERS, **changes}
    if "size" in changes:
        changed["crop_size"] = None
    metadata = read("transformers", preprocessor=changed)
    assert metadata.preprocessing is None
    assert "preprocessor_config.json is of another kind" in metadata.notes[0]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_labels": "3"}, "num_labels must be an integer, not '3'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only relu"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage True is not supported"),
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck True is not supported"),
        ({"id2label": {"0": "a", "2": "b"}}, "must number the classes"),
    ],
    ids=str,
)
def test_transformers_configs_that_are_not_supported(config: Any, said: str) -> None:
    """Names and shapes would be the same, and the answers others."""
    with pytest.raises(CheckpointError, match=said):
        read("transformers", config=config)


# -- OpenMMLab -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meta", "labels"),
    [
        ({"CLASSES": ("a", "b")}, ("a", "b")),
        ({"dataset_meta": {"classes": ["a", "b"]}}, ("a", "b")),
        ({"CLASSES": None, "dataset_meta": {"classes": ["a"]}}, ("a",)),
        ({"CLASSES": ("a",), "dataset_meta": {"classes": ["b"]}}, ("a",)),
        ({"dataset_meta": 5}, ()),
    ],
    ids=str,
)
def test_classes_of_mmcv_and_mmengine(meta: Any, labels: tuple[str, ...]) -> None:
    """Old and new files keep them in different entries."""
    assert read("mmcls", file={"meta": meta}).labels == labels


def test_openmmlabs_provenance_and_configs() -> None:
    """Versions and epoch, if plain; a config of another network is not used."""
    meta = {"mmcls_version": "0.25.0", "epoch": 7, "mmengine_version": None, "time": "now"}
    assert read("mmcls", file={"meta": meta}).provenance == {"mmcls_version": "0.25.0", "epoch": 7}
    for key in ("config", "cfg"):
        text = "model = dict(type='ImageClassifier', backbone=dict(type='{}', depth=50))"
        metadata = read("mmcls", file={"meta": {key: text.format("mmcls.ResNeXt")}})
        assert metadata.config is not None
        assert metadata.config.layers == (3, 4, 6, 3)
        plain = read("mmcls", file={"meta": {key: text.format("ResNet")}}).config
        assert plain is not None
        assert {stage.groups for stage in plain.stages} == {1}
        shallow = text.format("ResNet").replace("50", "18")
        assert read("mmcls", file={"meta": {key: shallow}}).config is None
        with pytest.raises(CheckpointError, match="does not describe a valid network"):
            read("mmcls", file={"meta": {key: text.format("ResNeXt").replace("50", "51")}})
    unreadable = read("mmcls", file={"meta": {"config": "model = build()"}})
    assert unreadable.notes == ("the config in the file could not be read, so it is not used",)
