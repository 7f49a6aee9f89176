"""timm's, torchvision's and Lucid's methods, attributes and factories."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_network
from oracles.originals import timm
from torch import Tensor, nn

import resnext
from resnext import Backbone, ResNeXt, ResNeXtConfig, load_backbone, lucid, save
from resnext.errors import CheckpointError, ConfigError, ConfigTypeError

CONFIG = ResNeXtConfig((2, 1, 1, 1), 4, 8, num_classes=5, channels=(16, 32, 64, 128))
X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def output(run: Any, *inputs: Any, **options: Any) -> Any:
    with torch.no_grad():
        return run(*inputs, **options)


def timms(**changes: Any) -> Any:
    """timm's network of the same sizes."""
    resnet = timm.models.resnet
    settings = {"num_classes": 5, "cardinality": 4, "base_width": 8, "channels": CONFIG.channels}
    return resnet.ResNet(resnet.Bottleneck, (2, 1, 1, 1), **{**settings, **changes}).eval()


def test_the_parts_of_forward() -> None:
    """With timm's weights, timm's features, head and embeddings."""
    ours, theirs = ResNeXt(CONFIG).eval(), timms()
    ours.load_state_dict(theirs.state_dict())
    features = output(theirs.forward_features, X)
    assert torch.allclose(output(ours.forward_features, X), features, atol=1e-5)
    for pre_logits in (False, True):
        wanted = output(theirs.forward_head, features, pre_logits=pre_logits)
        got = output(ours.forward_head, features, pre_logits=pre_logits)
        assert torch.allclose(got, wanted, atol=1e-5)
    assert torch.equal(output(ours.forward_head, output(ours.forward_features, X)), output(ours, X))


def test_classifiers() -> None:
    """`reset_classifier(0)` makes embeddings, and can be undone; a replaced layer counts."""
    model = tiny_network(CONFIG)
    assert model.get_classifier() is model.fc
    assert model.get_classifier(name_only=True) == "fc"
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(output(model, X), output(model.embed, X))
    three: Any = np.int64(3)
    model.reset_classifier(three, global_pool="avg")
    assert (model.num_classes, model.config.num_classes, type(model.config.num_classes)) == (
        3,
        3,
        int,
    )
    assert not any(m.training for m in model.modules())
    model.fc = nn.Linear(512, 9)
    assert model.num_classes == 9
    with pytest.raises(ConfigError, match="global_pool must be None or 'avg', not 'max'"):
        model.reset_classifier(4, "max")
    assert model.num_classes == 9


def test_networks_without_classifier(tmp_path: Path) -> None:
    """timm's `num_classes=0`, where a network is built and where it is loaded."""
    zero: Any = np.int64(0)
    for model in (
        resnext.create("resnext_nano", num_classes=0),
        resnext.create("resnext_nano", num_classes=zero),
    ):
        assert model.num_classes == 0
        assert torch.equal(output(model.eval(), X), output(model.embed, X))
    card = resnext.Card(tuple("abcde"), resnext.Preprocessing(size=96, resize=96), {"top1": 0.5})
    whole = tiny_network(CONFIG, card)
    save(whole, tmp_path / "a.safetensors")
    loaded = resnext.load(tmp_path / "a.safetensors", num_classes=0)
    assert torch.equal(output(loaded, X), output(whole.embed, X))
    assert loaded.card is not None
    assert (loaded.card.labels, loaded.card.metrics) == ((), {})
    assert loaded.card.preprocessing == card.preprocessing  # the images stay the same
    trunk = {k: v for k, v in whole.state_dict().items() if not k.startswith("fc.")}
    assert torch.equal(output(resnext.load(trunk, num_classes=0), X), output(whole.embed, X))
    no: Any = False
    with pytest.raises(ConfigTypeError, match="num_classes must be a positive integer, not False"):
        resnext.create("resnext_nano", num_classes=no)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"indices": 2},
        {"indices": [-1, 0]},
        {"indices": np.array([3, 1])},
        {"indices": (0, 1), "stop_early": True},
        {"indices": [2], "intermediates_only": True, "norm": True},
    ],
    ids=str,
)
def test_intermediate_maps(options: dict[str, Any]) -> None:
    """timm's way to several maps of a classifier."""
    ours, theirs = ResNeXt(CONFIG).eval(), timms()
    ours.load_state_dict(theirs.state_dict())
    got = output(ours.forward_intermediates, X, **options)
    if isinstance(options.get("indices"), np.ndarray):
        options = {"indices": options["indices"].tolist()}
    wanted = output(theirs.forward_intermediates, X, **options)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("indices", [1, [4], [2], [0, 3], [0]], ids=str)
def test_pruned_networks(indices: Any) -> None:
    """timm's `FeatureGetterNet` takes out what its maps do not need, and describes them."""
    ours, theirs = ResNeXt(CONFIG).eval(), timms()
    ours.load_state_dict(theirs.state_dict())
    wrap = import_module("timm.models._features").FeatureGetterNet
    got, wanted = wrap(ours, indices), wrap(theirs, indices)
    torch.testing.assert_close(output(got, X), output(wanted, X), rtol=1e-4, atol=1e-4)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert ours.num_features == theirs.num_features
    for name in ("channels", "reduction"):
        assert getattr(got.feature_info, name)() == getattr(wanted.feature_info, name)()
    last = output(got, X)[-1]
    assert torch.equal(output(ours.forward_features, X), last)
    assert torch.allclose(output(ours, X), last.mean((2, 3)), atol=1e-5)
    ours.reset_classifier(7)
    assert output(ours, X).shape == (2, 7)
    whole = ResNeXt(CONFIG)
    assert whole.prune_intermediate_layers([4], prune_head=False) == [4]
    assert whole.num_classes == CONFIG.num_classes


def test_pruned_networks_are_not_saved(tmp_path: Path) -> None:
    """Their config describes stages that they do not have."""
    model = ResNeXt(CONFIG)
    model.prune_intermediate_layers([2])
    model.reset_classifier(7)
    with pytest.raises(CheckpointError, match=r"layer3\.0\.conv1\.weight should be"):
        save(model, tmp_path / "a.safetensors")


@pytest.mark.parametrize("indices", ["all", [5], 6, 0, [], -1, [0.5]], ids=str)
def test_wrong_intermediate_maps(indices: Any) -> None:
    """A map that does not exist must not become another one."""
    with pytest.raises(ConfigError, match=r"indices must be of maps from 0 \(the stem\) to 4, or"):
        ResNeXt(CONFIG).forward_intermediates(X, indices)


def test_timms_preprocessing() -> None:
    """The transform that timm makes for a model must be the card's."""
    timms()  # imports timm
    resolve = import_module("timm.data").resolve_data_config
    model = ResNeXt(CONFIG)
    assert resolve(model=model)["input_size"] == (3, 224, 224)
    model.card = resnext.Card(
        preprocessing=resnext.Preprocessing(160, 200, "bicubic", mean=(0.5,) * 3, std=(0.25,) * 3)
    )
    found = resolve({}, model=model)
    assert {k: found[k] for k in ("input_size", "interpolation", "mean", "std", "crop_pct")} == {
        "input_size": (3, 160, 160),
        "interpolation": "bicubic",
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "crop_pct": 0.8,
    }
    cfg, names = model.default_cfg, model.state_dict()
    assert {f"{cfg['first_conv']}.weight", f"{cfg['classifier']}.weight"} <= set(names)
    assert (model.in_chans, model.head_hidden_size) == (3, 512)


@pytest.mark.parametrize("build", [ResNeXt, Backbone])
def test_grad_checkpointing(build: Any) -> None:
    """The same gradients; every block recomputes."""
    model = build(CONFIG).train()
    grads: list[list[Tensor]] = []
    for enable in (False, True, False):
        model.set_grad_checkpointing(enable)
        assert {b.checkpointing for stage in model.stages for b in stage} == {enable}
        model.zero_grad()
        answer = model(X)
        (answer if build is ResNeXt else answer[-1]).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for before, after in zip(grads[0], grads[1], strict=True):
        assert torch.allclose(before, after, rtol=1e-3, atol=1e-4)


def test_timms_layer_decay() -> None:
    """All layers had the same rate: timm asks `group_matcher` which belong together."""
    groups: dict[str, dict[str, float]] = {}
    timms()  # imports timm
    for name, model in (("ours", ResNeXt(CONFIG)), ("timm", timms())):
        names = {id(p): n for n, p in model.named_parameters()}
        found = import_module("timm.optim").param_groups_layer_decay(model, layer_decay=0.5)
        groups[name] = {names[id(p)]: g["lr_scale"] for g in found for p in g["params"]}
    assert groups["ours"] == groups["timm"]
    assert len(set(groups["ours"].values())) > 4
    assert ResNeXt(CONFIG).group_matcher(coarse=True)["blocks"] == r"^layer(\d+)"


def test_feature_info(tmp_path: Path) -> None:
    """timm's `features_only` gives five maps, the stem's first, and describes them."""
    theirs = timm.create_model("resnext50_32x4d", features_only=True)
    ours = Backbone(resnext.variant("resnext50_32x4d"), with_stem=True).eval()
    info, wanted = ours.feature_info, theirs.feature_info
    assert info.channels() == wanted.channels()
    assert info.reduction() == wanted.reduction()
    assert info.module_name()[1:] == wanted.module_name()[1:]
    assert info.module_name()[0] == "relu"  # act1 of timm
    ours.load_state_dict(theirs.state_dict(), strict=False)
    for got, map_ in zip(output(ours, X), output(theirs.eval(), X), strict=True):
        assert torch.allclose(got, map_, rtol=1e-3, atol=1e-3)
    model = tiny_network(CONFIG)
    save(model, tmp_path / "a.safetensors")
    indices: Any = np.array([1, 3])
    part = load_backbone(tmp_path / "a.safetensors", out_indices=indices, with_stem=True)
    maps = output(part, X)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 32, 32), (128, 8, 8), (512, 2, 2)]
    assert part.feature_info.reduction() == [2, 8, 32]
    assert torch.equal(maps[-1], output(model.features, X)[-1])
    with pytest.raises(ConfigError, match="with_stem must be True or False, not 1"):
        Backbone(CONFIG, with_stem=1)  # pyright: ignore[reportArgumentType]


def test_a_small_stem_has_no_stride() -> None:
    """Its map is as large as the image."""
    backbone = Backbone(CONFIG.replace(small_stem=True), with_stem=True).eval()
    first = output(backbone, X)[0]
    assert (first.shape[2], backbone.feature_info[0].stride) == (64, 1)


def test_blocks_have_no_empty_modules() -> None:
    """captum's LRP has no rule for Identity, which stood for no drop path."""
    assert not any(isinstance(m, nn.Identity) for m in ResNeXt(CONFIG).modules())


def test_no_parameter_is_added() -> None:
    """A state dict of timm must load as it is."""
    assert list(ResNeXt(CONFIG).state_dict()) == list(timms().state_dict())


# -- Lucid -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "blocks", "cardinality", "base_width"),
    [
        ("resnext_50_32x4d", 16, 32, 4),
        ("resnext_101_32x4d", 33, 32, 4),
        ("resnext_101_32x8d", 33, 32, 8),
        ("resnext_101_32x16d", 33, 32, 16),
        ("resnext_101_32x32d", 33, 32, 32),
        ("resnext_101_64x4d", 33, 64, 4),
    ],
)
def test_lucids_factories(name: str, blocks: int, cardinality: int, base_width: int) -> None:
    """`from lucid.models import resnext_50_32x4d` becomes `from resnext import …`."""
    with torch.device("meta"):
        model = getattr(resnext, name)(np.int64(7), in_channels=np.int32(1))
    assert sum(model.config.layers) == blocks
    assert (model.cardinality, model.base_width) == (cardinality, base_width)
    assert (model.num_classes, model.config.in_channels) == (7, 1)
    for field in ("layers", "cardinality", "base_width"):
        with pytest.raises(TypeError, match=f"does not allow overriding its preset {field}"):
            getattr(resnext, name)(**{field: 4})


def test_lucids_weights(monkeypatch: pytest.MonkeyPatch, fresh_cache: Path) -> None:
    """Lucid's `weights=` loads; where there are none, its silent default is refused."""
    monkeypatch.setenv("RESNEXT_OFFLINE", "1")
    with pytest.raises(resnext.ResNeXtError, match="is not in the cache"):
        lucid.resnext_50_32x4d(weights="IMAGENET1K")
    with pytest.raises(resnext.ResNeXtError, match="No public checkpoint"):
        lucid.resnext_101_32x16d(weights="DEFAULT")
    with pytest.raises(ConfigTypeError, match="in_channels cannot be changed"):
        lucid.resnext_50_32x4d(weights="DEFAULT", in_channels=1)
