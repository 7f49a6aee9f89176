"""`ResNeXt(config)` and `dialects.lucid` against what Lucid 2 computed (float32, numpy)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.recorded import images, manifest, relative_error, samples, thin, weight
from torch import Tensor

from resnext.config import ResNeXtConfig
from resnext.dialects.lucid import LUCID
from resnext.errors import CheckpointError
from resnext.network import ResNeXt

CASES: dict[str, dict[str, Any]] = manifest("lucid")["cases"]
TRAINED = [name for name in CASES if f"{name}/train_logits" in samples("lucid")]
TOLERANCE = 1e-4  # both sides computed in float32, in another order


def lucids_weights(name: str) -> dict[str, Tensor]:
    """A case's weights under Lucid's names and in Lucid's shapes."""
    return {key: weight(key, tuple(shape)) for key, shape in CASES[name]["keys"]}


def built(name: str) -> ResNeXt:
    """A case's network with Lucid's weights."""
    config = ResNeXtConfig(**CASES[name]["cfg"])
    model = ResNeXt(config)
    model.load_state_dict(LUCID.read(lucids_weights(name)), strict=True)
    return model.eval()


def agree(got: Tensor, name: str, stride: int = 1) -> None:
    """Compare with a recorded tensor."""
    wanted = samples("lucid")[name].flatten()
    assert relative_error(thin(got, stride), wanted) < TOLERANCE, name


@pytest.mark.parametrize("name", CASES)
def test_logits_and_maps(name: str) -> None:
    """Another width, stride, padding or squeeze than Lucid's shows in the first map after it."""
    case, model = CASES[name], built(name)
    maps: dict[str, Tensor] = {}
    with torch.no_grad():
        x = images(case["input"])
        maps["stem"] = model.relu(model.bn1(model.conv1(x)))
        maps["maxpool"] = model.enter(x)
        maps.update(zip(model.stage_names, model.features(x), strict=True))
        logits = model(x)
    assert list(logits.shape) == case["out_shape"]
    agree(logits, f"{name}/logits")
    assert {key: list(value.shape) for key, value in maps.items()} == case["feat_shapes"]
    for key, value in maps.items():
        agree(value, f"{name}/feat.{key}", case["feat_stride"][key])


@pytest.mark.parametrize("name", CASES)
def test_attributes_and_parameters(name: str) -> None:
    """Code written for Lucid reads these."""
    case, model = CASES[name], built(name)
    assert sum(p.numel() for p in model.parameters()) == case["n_params"]
    assert isinstance(model.config, ResNeXtConfig)
    assert list(model.config.layers) == case["attrs"]["config_layers"]
    for field in ("cardinality", "base_width", "num_classes", "avg_down"):
        assert getattr(model.config, field) == case["attrs"][field]


@pytest.mark.parametrize("name", CASES)
def test_names_of_parameters(name: str) -> None:
    """Lucid loads files by name without looking at shapes, so both must be exact, in order."""
    model, weights = built(name), lucids_weights(name)
    theirs = LUCID.write(model.state_dict(), model.config)
    assert [[key, list(value.shape)] for key, value in theirs.items()] == CASES[name]["keys"]
    for key, value in theirs.items():
        assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name: str) -> None:
    """Our state dict must come back unchanged, with the batch counters that Lucid has not."""
    model = built(name)
    state = model.state_dict()
    back = LUCID.read(LUCID.write(state, model.config))
    assert list(back) == list(state)
    for key, value in back.items():
        assert value.dtype == state[key].dtype, key
        assert torch.equal(value, state[key]), key


def test_training_cases_exist() -> None:
    """Without one, the test below would compare nothing."""
    assert TRAINED == ["plain"]


@pytest.mark.parametrize("name", TRAINED)
def test_training_outputs_and_statistics(name: str) -> None:
    """In training both use the batch's own statistics, and remember them at the same pace.

    Lucid remembers the biased variance, torch the unbiased one: n/(n-1) times as large.
    """
    case, model = CASES[name], built(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        agree(model.train()(images(case["input"])), f"{name}/train_logits")
    state, recorded = model.state_dict(), samples("lucid")
    batch = case["input"][0]
    for theirs, ours, side in (
        ("stem.1", "bn1", case["feat_shapes"]["stem"][2]),
        ("layer4.0.conv2.bn", "layer4.0.bn2", case["feat_shapes"]["layer4"][2]),
    ):
        mean = recorded[f"{name}/trained.{theirs}.running_mean"]
        assert relative_error(state[f"{ours}.running_mean"].numpy(), mean) < TOLERANCE
        count = batch * side**2
        old = 0.9 * before[f"{ours}.running_var"]
        biased = old + (state[f"{ours}.running_var"] - old) * (count - 1) / count
        variance = recorded[f"{name}/trained.{theirs}.running_var"]
        assert relative_error(biased.numpy(), variance) < TOLERANCE
        assert state[f"{ours}.num_batches_tracked"] == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stem_type": "deep"}, "deep stem"),
        ({"avg_down": True}, "avg_down"),
        ({"stem_type": "deep", "stem_width": 32, "avg_down": True}, "deep stem"),
    ],
)
def test_what_lucid_computes_otherwise_is_refused(changes: dict[str, Any], named: str) -> None:
    """Its deep stem has no last norm and its pools pad with zeros: weights would load and lie."""
    config = ResNeXtConfig((1, 1, 1, 1), 8, 4, **changes)
    with pytest.raises(CheckpointError, match=named):
        LUCID.write({}, config)


@pytest.mark.parametrize(
    "changes",
    [
        {"block_args": {"dilation": 2}},
        {"dilations": (1, 1, 2, 4)},
        {"strides": (1, 2, 2, 1)},
        {"style": "caffe"},
        {"expansion": 2},
        {"widths": (32, 64, 128, 128)},
        {"stem_channels": 32},
        {"small_stem": True},
        {"norm": "group"},
        {"norm_eps": 1e-3},
        {"norm_track": False},
        {"conv": "weight_standardized"},
        {"padding_mode": "reflect"},
        {"attention": "eca"},
        {"anti_alias": "avg"},
        {"num_stages": 3, "layers": (1, 1, 1), "channels": (64, 128, 256)},
    ],
    ids=str,
)
def test_what_lucid_has_not_is_refused(changes: dict[str, Any]) -> None:
    """A caffe-style or dilated network's file would load in Lucid, and give other logits."""
    config = ResNeXtConfig(**{"layers": (1, 1, 1, 1), "cardinality": 8, "base_width": 4, **changes})
    with pytest.raises(CheckpointError, match=r"Lucid 2"):
        LUCID.write({}, config)


def test_what_only_training_sees_is_not_refused() -> None:
    """Dropout and the like leave a trained network's logits alone, so it can go to Lucid."""
    config = ResNeXtConfig(
        (1, 1, 1, 1),
        8,
        4,
        drop_path_rate=0.1,
        drop_path_decay="constant",
        dropout=0.5,
        norm_momentum=0.01,
        zero_init_residual=True,
    )
    state = ResNeXt(config).state_dict()
    assert list(LUCID.read(LUCID.write(state, config))) == list(state)
