"""Names of parameters: read from and written for every library, and configs rebuilt from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.originals import timm, torchvision
from oracles.recorded import images, manifest, relative_error, samples, thin, weight
from torch import Tensor

from resnext.architectures import differences, variant, variants
from resnext.backbone import Backbone
from resnext.config import ResNeXtConfig
from resnext.dialects.table import DIALECTS
from resnext.dialects.timm import original as timms
from resnext.dialects.torchvision import original as torchvisions
from resnext.errors import CheckpointError
from resnext.network import ResNeXt
from resnext.weights.catalog import catalog
from resnext.weights.infer_config import infer_config
from resnext.weights.recognise import recognise

WRITTEN = ("torchvision", "timm", "mmcls", "mmdet", "lucid")
MMDET: dict[str, Any] = manifest("mmdet")["cases"]
MMPRETRAIN: dict[str, Any] = manifest("mmpretrain")["cases"]
PLUGINS = ("ctxblock", "nonlocal_ga")
HIDDEN = {  # what names and shapes do not show, by a part of the case's name
    "caffe": {"style": "caffe"},
    "dilated": {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)},
}


def state_of(config: ResNeXtConfig) -> dict[str, Tensor]:
    """Names and shapes of a network, without values."""
    with torch.device("meta"):
        return ResNeXt(config).state_dict()


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape by name."""
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize("dialect", WRITTEN)
@pytest.mark.parametrize("name", variants())
def test_round_trip_of_every_variant(name: str, dialect: str) -> None:
    """Whatever a library can hold must come back under our names, with the config it had."""
    config = variant(name)
    state = state_of(config)
    try:
        theirs = DIALECTS[dialect].write(state, config)
    except CheckpointError:
        assert DIALECTS[dialect].problem(config)
        return
    detected = recognise(theirs)
    assert shapes(detected.state) == shapes(state)
    assert list(detected.state) == list(state)
    rebuilt = infer_config(shapes(detected.state), detected.norm)
    assert rebuilt.classifier
    assert set(differences(rebuilt.config, config)) <= {"anti_alias"}  # pooling has no weights
    assert not detected.heads
    assert not detected.left


def test_what_can_be_written() -> None:
    """If everything were refused, the round trip would pass without comparing anything."""
    published = [name for name in variants() if not name.startswith("resnext_")]
    able = {
        dialect: {name for name in published if not DIALECTS[dialect].problem(variant(name))}
        for dialect in WRITTEN
    }
    classic = {name for name in published if name.startswith("resnext") and "d_" not in name}
    imagenet = {name for name in classic if "29_" not in name and "11_" not in name}
    assert able["torchvision"] == imagenet
    assert able["timm"] == {x for x in published if "29_" not in x and "11_" not in x}
    assert able["mmdet"] == {x for x in published if x.startswith(("resnext50", "resnext1"))} - {
        "resnext11_8x16d"
    }
    assert {"seresnext50_32x4d", "resnext50d_32x4d", "resnext152_32x4d"} <= able["mmcls"]
    assert imagenet | {"seresnext50_32x4d"} <= able["lucid"]


@pytest.mark.parametrize(
    "name", [x for x in variants() if not DIALECTS["timm"].problem(variant(x))]
)
def test_keys_are_timms(name: str) -> None:
    """timm itself is the oracle: names, order and shapes."""
    config = variant(name)
    with torch.device("meta"):
        theirs = timms(config).state_dict()
    ours = DIALECTS["timm"].write(state_of(config), config)
    assert list(ours) == list(theirs)
    assert shapes(ours) == shapes(theirs)


@pytest.mark.parametrize("row", catalog(), ids=lambda row: row.name)
def test_every_checkpoint_of_the_catalog(row: Any) -> None:
    """The architecture in the table must be the one of the library that published the weights."""
    config = row.config
    if row.dialect == "timm":
        with torch.device("meta"):
            theirs = timm.create_model(row.variant, num_classes=len(row.labels)).state_dict()
        assert list(theirs) == list(state_of(config))
    elif row.dialect == "torchvision" and hasattr(torchvision.models, row.variant):
        with torch.device("meta"):
            theirs = getattr(torchvision.models, row.variant)().state_dict()
        assert list(theirs) == list(state_of(config))
    elif row.dialect == "torch7":  # names are given to modules by their order: test_torch7.py
        theirs = state_of(config)
    else:
        assert row.dialect in {"mmcls", "mmdet", "lucid", "lucid3"} or "48d" in row.name
        theirs = DIALECTS[row.dialect].write(state_of(config), config)
    detected = recognise(theirs)
    assert shapes(detected.state) == shapes(state_of(config))


def filled(case: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """A case's weights under the library's names."""
    return {prefix + key: weight(key, tuple(shape)) for key, shape in case["keys"]}


@pytest.mark.parametrize("name", [x for x in MMDET if x not in PLUGINS])
def test_mmdet(name: str) -> None:
    """Backbones of detectors give mmdet's own maps, to the precision they were recorded in."""
    case = MMDET[name]
    state = filled(case, "module.backbone.")
    detected = recognise({**state, "module.neck.lateral_convs.0.conv.weight": torch.zeros(1)})
    if detected.norm == "group":
        config = ResNeXtConfig(
            (3, 4, 6, 3), 8, 4, norm="group", norm_groups=8, conv="weight_standardized"
        )
    else:
        config = infer_config(shapes(detected.state)).config
    hidden = [fields for part, fields in HIDDEN.items() if part in name]
    config = config.replace(**hidden[0]) if hidden else config
    check(config, detected.state, case, name, "mmdet")
    assert detected.dialect.name in ("mmdet", "mmcls")
    assert detected.prefix == "module.backbone."
    assert "fc.weight" not in detected.state


@pytest.mark.parametrize("name", [x for x in MMPRETRAIN if "se_ratio8" not in x])
def test_mmpretrain(name: str) -> None:
    """mmpretrain's deep stems and shortcuts are mmcls's."""
    case = MMPRETRAIN[name]
    detected = recognise(filled(case))
    if detected.norm == "group":
        config = ResNeXtConfig(
            (3, 4, 6, 3), 8, 4, norm="group", norm_groups=8, conv="weight_standardized"
        )
    else:
        config = infer_config(shapes(detected.state)).config
    check(config, detected.state, case, name, "mmpretrain")


def check(
    config: ResNeXtConfig, state: dict[str, Tensor], case: dict[str, Any], name: str, library: str
) -> None:
    """Compare the maps with those that the library recorded in float64."""
    backbone = Backbone(config)
    backbone.load_state_dict(state, strict=True)
    backbone.double().eval()
    with torch.no_grad():
        maps = backbone(images(case["input"], torch.float64))
    wanted = case["eval64"]
    for i, about in enumerate(wanted):
        recorded = samples(library)[f"{name}/eval64.{i}"]
        matching = [m for m in maps if list(m.shape) == about["shape"]]
        assert matching, about["shape"]
        assert relative_error(thin(matching[0], about["stride"]), recorded) < 1e-9


@pytest.mark.parametrize("name", PLUGINS)
def test_plugins_are_not_dropped(name: str) -> None:
    """Leaving out a context block would silently change every answer."""
    detected = recognise(filled(MMDET[name]))
    config = infer_config(shapes(detected.state)).config
    extra = set(detected.state) - set(state_of(config))
    assert any("block" in key or "attention" in key for key in extra)


TINY = {"layers": (1, 1, 1, 1), "cardinality": 4, "base_width": 8, "channels": (16, 32, 64, 128)}


@pytest.mark.parametrize(
    ("prefix", "extra"),
    [
        ("module.", {}),
        ("_orig_mod.", {}),
        ("module._orig_mod.", {}),
        ("model.", {"criterion.weight": (5,)}),
        ("state_dict.module.", {}),
        ("timm_model.", {}),
        ("model.backbone.", {"neck.weight": (3,)}),
        ("student.", {}),
        ("", {"ema_layer1_0_conv2_weight": (1,)}),
    ],
)
def test_wrappers(prefix: str, extra: dict[str, tuple[int, ...]]) -> None:
    """Data parallelism, compiling and Lightning put words before every name."""
    state = state_of(ResNeXtConfig(**TINY))
    others = {name: torch.zeros(shape) for name, shape in extra.items()}
    detected = recognise({**{prefix + name: x for name, x in state.items()}, **others})
    if prefix:
        assert list(detected.state) == list(state)
        assert set(detected.left) == set(extra)
    assert detected.prefix == prefix


@pytest.mark.parametrize("head", ["head.fc", "classifier", "classifier.1", "head", "last_linear"])
def test_classifiers_beside_the_backbone(head: str) -> None:
    """mmcls, Transformers and users' own modules keep the last layer outside."""
    state = state_of(ResNeXtConfig(**TINY))
    moved = {
        name.replace("fc.", f"{head}.") if name.startswith("fc.") else f"backbone.{name}": x
        for name, x in state.items()
    }
    detected = recognise(moved)
    assert shapes(detected.state) == shapes(state)


def test_a_classifier_of_two_layers_is_reported() -> None:
    """Taking one of them would give wrong answers of the right shape."""
    state = state_of(ResNeXtConfig(**TINY))
    state["fc.0.weight"], state["fc.2.weight"] = torch.zeros(64, 512), torch.zeros(5, 64)
    del state["fc.weight"], state["fc.bias"]
    detected = recognise(state)
    assert detected.heads == ("fc.0.weight", "fc.2.weight")
    assert "fc.weight" not in detected.state


def test_two_networks_are_not_mixed() -> None:
    """Nothing shows whether student or teacher is meant; one without a prefix is preferred."""
    state = state_of(ResNeXtConfig(**TINY))
    two = {f"{who}.{name}": x for who in ("student", "teacher") for name, x in state.items()}
    with pytest.raises(CheckpointError, match=r"'student\.' and 'teacher\.'"):
        recognise(two)
    assert recognise({**two, **state}).prefix == ""


LETTERS = {"group": "gn", "layer": "ln", "instance": "in"}


@pytest.mark.parametrize("norm", LETTERS)
def test_other_norms(norm: Any) -> None:
    """mmcls calls a norm by its kind."""
    config = ResNeXtConfig((3, 4, 6, 3), 32, 4, norm=norm)
    state = state_of(config)
    theirs = DIALECTS["mmcls"].write(state, config)
    assert f"backbone.layer1.0.{LETTERS[norm]}2.weight" in theirs
    assert {"head.fc.weight", "head.fc.bias"} < set(theirs)
    detected = recognise(theirs)
    assert detected.norm == norm
    assert shapes(detected.state) == shapes(state)


def test_group_norms_are_not_guessed() -> None:
    """GN and GN+WS files have the same names and shapes, and their networks other answers."""
    config = ResNeXtConfig((3, 4, 6, 3), 32, 4, norm="group")
    with pytest.raises(CheckpointError, match=r"Pass its config"):
        infer_config(shapes(state_of(config)), "group")
    with pytest.raises(CheckpointError, match=r"no running statistics"):
        infer_config(shapes(state_of(config)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("layer2.0.conv1.weight"), None),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("layer2.")], "stages [1, 3, 4]"),
        (
            lambda s: s.update({"layer3.2.conv2.weight": (8, 2, 3, 3)}),
            "Block 1 of stage 3",
        ),
        (lambda s: s.update({"conv1.weight": (64, 3, 5, 5)}), "5×5"),
        (lambda s: s.pop("conv1.weight"), "conv1.weight is missing"),
        (lambda s: s.update({"layer2.0.conv2.weight": (64, 64, 3, 3)}), "groups"),
        (lambda s: s.update({"layer2.0.conv2.weight": (64, 3)}), "dimensions"),
        (lambda s: s.update({"layer2.0.conv2.weight": (0, 0, 3, 3)}), "dimensions"),
        (
            lambda s: s.update(
                {f"layer{i}.0.se.fc1.weight": (7 * i, 64 * 2**i, 1, 1) for i in (1, 2, 3, 4)}
            ),
            "squeeze",
        ),
    ],
)
def test_what_is_not_a_resnext(change: Any, said: str | None) -> None:
    """Each message must say what is wrong, because nothing else can."""
    state = shapes(state_of(ResNeXtConfig(**TINY)))
    change(state)
    if said is None:  # found when the network is compared
        infer_config(state)
        return
    with pytest.raises(CheckpointError) as caught:
        infer_config(state)
    assert said in str(caught.value)


@settings(max_examples=60)
@given(
    layers=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    cardinality=st.sampled_from([1, 2, 8]),
    per_group=st.sampled_from([8, 16, 24]),
    width=st.sampled_from([16, 64, 96]),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "num_classes": st.integers(1, 20),
            "in_channels": st.integers(1, 5),
            "avg_down": st.booleans(),
            "stem_type": st.sampled_from([None, "deep"]),
            "attention": st.sampled_from([None, "se", "eca"]),
            "se_reduction": st.sampled_from([4, 16]),
            "norm_affine": st.booleans(),
            "expansion": st.sampled_from([1, 2, 4]),
        },
    ),
)
def test_any_config_is_rebuilt(
    layers: list[int], cardinality: int, per_group: int, width: int, fields: dict[str, Any]
) -> None:
    """From names and shapes alone: a network that computes the same."""
    channels = tuple(width * 2**i for i in range(len(layers)))
    config = ResNeXtConfig(
        layers, cardinality, per_group, channels=channels, num_stages=len(layers), **fields
    )
    state = state_of(config)
    detected = recognise(dict(state))
    rebuilt = infer_config(shapes(detected.state)).config
    assert shapes(state_of(rebuilt)) == shapes(state)
    same_stride = {"avg_down"} if len(layers) == 1 else set()
    assert set(differences(rebuilt, config)) <= same_stride


def test_originals_are_the_libraries_own() -> None:
    """The parity report would prove nothing if both sides were ours."""
    assert type(timms(variant("resnext26d_32x4d"))).__module__.startswith("timm")
    assert type(torchvisions(variant("resnext26_32x4d"))).__module__.startswith("torchvision")
