"""What can be passed to `train` as a model: its weights are used, its object is left alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_network
from torch import nn
from training_runs import QUICK, TINY, sha, stop_after

import resnext
from resnext import Card, Preprocessing, ResNeXt, ResNeXtError
from resnext.errors import CheckpointError, ConfigError
from resnext.training import preparation
from resnext.training.given_model import network_copy, read_model
from resnext.training.recipes import finetune

GIVEN: dict[str, Any] = {"recipe": QUICK, "size": 16, "workers": 0, "progress": False}
STILL: dict[str, Any] = {**GIVEN, "learning_rate": 1e-9, "epochs": 1}
"""So slow that the weights of the first step can be seen in those of the last."""


def filters(network: nn.Module) -> torch.Tensor:
    """Weights of the first convolution."""
    return network.state_dict()["conv1.weight"]


def assert_kept(before: dict[str, Any], after: dict[str, Any], *, but: tuple[str, ...]) -> None:
    """All weights are what they were, except those whose names begin with `but`.

    The statistics of norms follow the images.
    """
    for name, value in before.items():
        if "running" in name or "num_batches" in name:
            continue
        same = value.shape == after[name].shape and torch.allclose(value, after[name], atol=1e-5)
        assert same == (not name.startswith(but)), name


def test_a_network_is_trained_from_its_weights(photos: Path, tmp_path: Path) -> None:
    """It ended in "No variant is called ResNeXt(…", with the whole network in the message."""
    network = tiny_network(TINY)
    trained = resnext.train(photos, network, out=tmp_path / "m.safetensors", **STILL)
    assert_kept(network.state_dict(), trained.state_dict(), but=())
    assert trained.config == TINY
    assert trained.card is not None
    assert trained.card.provenance["weights"] == "a network in memory"
    page = (tmp_path / "m.run" / "report.html").read_text()
    assert "ResNeXt(1, 1), 2×8d" in page


def test_the_network_that_was_passed_is_left_alone(photos: Path, tmp_path: Path) -> None:
    """Half-trained, frozen, moved or in another mode, it would surprise whoever holds it."""
    network = tiny_network(TINY, Card(("blue", "red"), Preprocessing(16, 16)))
    network.train()
    network.stages[0].eval()
    before = copy.deepcopy(network.state_dict())
    modes = {name: module.training for name, module in network.named_modules()}
    trained = resnext.train(
        photos, network, out=tmp_path / "m.safetensors", head_epochs=1, ema=0.9, **GIVEN
    )
    assert not torch.equal(filters(trained), filters(network))
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert network.card == Card(("blue", "red"), Preprocessing(16, 16))


def test_a_classifier_of_other_classes_is_replaced() -> None:
    """ImageNet's thousand classes are of no use for two."""
    network = tiny_network(TINY.replace(num_classes=5))
    built = built_from(network, ("a", "b"))
    assert_kept(network.state_dict(), built.state_dict(), but=("fc.",))
    assert built.config == TINY
    assert network.config.num_classes == 5


def test_labels_decide_whether_a_classifier_is_kept() -> None:
    """The same number of classes, but other ones, would start from wrong answers."""
    kept, plain = tiny_network(TINY, Card(("blue", "red"))), tiny_network(TINY)
    other = tiny_network(TINY, Card(("cat", "dog")))
    for network, same in ((kept, True), (plain, True), (other, False)):
        built = built_from(network, ("blue", "red"))
        assert torch.equal(built.fc.weight, network.fc.weight) == same


def built_from(network: ResNeXt, labels: tuple[str, ...], colour: str = "RGB") -> ResNeXt:
    """The network that a run on images of these classes starts from."""
    request: Any = type("Request", (), {"model": network, "weights": None})
    images = type("Images", (), {"labels": labels})
    splits: Any = type("Splits", (), {"train": images, "colour": colour})
    return preparation.build_network(request, splits, QUICK, False)


def test_a_linear_layer_put_in_place_of_the_classifier() -> None:
    """The usual way in torch; the config still says five classes."""
    network = tiny_network(TINY.replace(num_classes=5))
    network.fc = nn.Linear(network.num_features, 2)
    built = built_from(network, ("a", "b"))
    assert_kept(network.state_dict(), built.state_dict(), but=())
    assert built.config == TINY


def test_grey_images_and_a_network_for_colours() -> None:
    """The first convolution is adapted as by `load`, and the preprocessing with it."""
    card = Card(("a", "b"), Preprocessing(32, 32, mean=(0.3, 0.4, 0.5), std=(0.1, 0.2, 0.3)))
    network = tiny_network(TINY, card)
    built = built_from(network, ("a", "b"), "L")
    assert torch.allclose(filters(built), filters(network).sum(1, keepdim=True))
    assert built.card is not None
    assert built.card.preprocessing.colour == "L"
    assert built.card.preprocessing.mean == pytest.approx((0.4,))
    assert network.config.in_channels == 3
    rigid = TINY.replace(conv="weight_standardized")
    with pytest.raises(CheckpointError, match="in_channels cannot be changed"):
        built_from(tiny_network(rigid), ("a", "b"), "L")


def test_a_card_brings_preprocessing_and_the_recipe_for_loaded_weights(
    photos: Path, tmp_path: Path
) -> None:
    """As with `weights`; a network without a card need not be trained, so its recipe is another."""
    how = Preprocessing(16, 18, "bicubic", mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    quiet: dict[str, Any] = {"epochs": 2, "workers": 0, "progress": False}
    for card in (Card(("blue", "red"), how), None):
        out, size = tmp_path / f"{card is None}.safetensors", 16 if card is None else None
        trained = resnext.train(photos, tiny_network(TINY, card), out=out, size=size, **quiet)
        assert trained.card is not None
        assert (trained.card.preprocessing == how) == (card is not None)
        head_epochs = trained.card.provenance["recipe"]["head_epochs"]
        assert head_epochs == (0 if card is None else finetune(20).head_epochs)


def test_half_precision_and_other_layouts_are_trained_in_single() -> None:
    """A network that was made small or fast to run must still be trainable."""
    network: Any = tiny_network(TINY)
    network.to(torch.bfloat16, memory_format=torch.channels_last)
    built = network_copy(network, 2, 3)
    assert {p.dtype for p in built.parameters()} == {torch.float32}
    assert torch.equal(filters(built), filters(network).float())
    network.to(torch.float32)
    assert filters(network_copy(network, 2, 3)).data_ptr() != filters(network).data_ptr()


def test_a_passed_network_resumes_exactly(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint has the weights, so the network only says which run it is."""
    resnext.train(photos, tiny_network(TINY), out=tmp_path / "left_alone.safetensors", **GIVEN)
    out = tmp_path / "m.safetensors"
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        resnext.train(photos, tiny_network(TINY), out=out, **GIVEN)
    with pytest.raises(CheckpointError, match="weights was a network in memory, now None"):
        resnext.train(photos, TINY, out=out, resume=True, **GIVEN)
    resnext.train(photos, tiny_network(TINY, seed=1), out=out, resume=True, **GIVEN)
    assert sha(out) == sha(tmp_path / "left_alone.safetensors")


def test_a_config_can_be_a_dictionary_or_a_file(tmp_path: Path) -> None:
    """Four spellings of one network."""
    path = tmp_path / "net.json"
    path.write_text(TINY.to_json())
    for model in (TINY, TINY.to_dict(), path, str(path)):
        assert read_model(model) == TINY


def surgery(change: str) -> ResNeXt:
    """A network with a part that its config does not have."""
    network: Any = tiny_network(TINY)
    if change == "layer":
        network.relu = nn.SiLU()
    elif change == "setting":
        network.bn1.momentum = 0.5
    elif change == "head":
        network.fc = nn.Sequential(nn.Linear(network.num_features, 2))
    elif change == "frozen":
        network.conv1.requires_grad_(False)
    elif change == "meta":
        network.to("meta")
    return network


class Subclass(ResNeXt):
    """Its `forward` could be anything."""


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (surgery("layer"), r"relu is SiLU\(\), not ReLU\(inplace=True\)"),
        (surgery("setting"), r"bn1 is BatchNorm2d\(.*momentum=0.5.*, not BatchNorm2d\(.*=0.1"),
        (surgery("head"), "what its config says: fc.weight should be"),
        (surgery("frozen"), "conv1.weight has requires_grad=False, but a recipe trains all layers"),
        (surgery("meta"), "conv1.weight is on the meta device, without values"),
        (Subclass(TINY), "not an object of type Subclass. Save its state_dict with torch.save"),
        (resnext.Backbone(TINY), "not an object of type Backbone. Save its state_dict"),
        (nn.Linear(2, 2), "not Linear.*. Save its state_dict with torch.save, and give that file"),
        (50, "a config file or a ResNeXt, not 50"),
        ({"layers": [1], "cardinalty": 2}, "no field 'cardinalty'. Did you mean 'cardinality'"),
        ("net.json", "net.json does not exist"),
        ("m.safetensors", r"m.safetensors is not a config file, .*as weights \(--weights\)"),
        (Path("resnext50_32x4d"), "resnext50_32x4d is not a config file"),
    ],
)
def test_what_cannot_be_trained_gets_one_line(
    photos: Path, tmp_path: Path, model: Any, message: str
) -> None:
    """No message may print a whole network, and nothing may be written."""
    with pytest.raises((ConfigError, CheckpointError), match=message) as caught:
        resnext.train(photos, model, out=tmp_path / "m.safetensors", **GIVEN)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "m.run").exists()


def test_names_and_nothing_are_passed_on() -> None:
    """They are looked up once the data, whose default they override, is open."""
    for model in (None, "resnext50_32x4d", "resnext50-32x4d_8xb32_in1k", TINY):
        assert read_model(model) is model


def test_the_advice_for_other_modules_works(photos: Path, tmp_path: Path) -> None:
    """The message sends people to `weights`; that must accept what they then have."""
    backbone = resnext.Backbone(resnext.variant("resnext26_32x4d")).eval()
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    loaded = resnext.load(tmp_path / "backbone.pth", num_classes=2)
    assert isinstance(loaded, ResNeXt)
    assert torch.equal(filters(loaded), filters(backbone))


@pytest.mark.parametrize(
    "call",
    [
        lambda network: resnext.train(network, "digits"),
        lambda network: resnext.train("digits", weights=network),
        lambda network: resnext.create(network),
        lambda network: resnext.variant(network),
        lambda network: resnext.evaluate(network, network),
        lambda network: resnext.predict(network, [network]),
        lambda network: resnext.optimize(nn.Sequential(network)),  # pyright: ignore
        lambda network: resnext.create("resnext50_32x4d", num_classes=network),
        lambda network: resnext.create("resnext50_32x4d", norm=network),
        lambda network: resnext.ResNeXt(network),
        lambda network: resnext.ResNeXtConfig.from_dict(network),
        lambda network: resnext.train("digits", recipe=network),
        lambda network: resnext.train("digits", epochs=network),
        lambda network: resnext.train("digits", workers=network),
        lambda network: resnext.train("digits", size=network),
    ],
)
def test_no_message_prints_a_network(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments in the wrong place: hundreds of lines of layers hid what was wrong."""
    monkeypatch.chdir(tmp_path)
    card = Card(("0", "1"), Preprocessing(32, 32))
    with pytest.raises(ResNeXtError) as caught:
        call(tiny_network(TINY, card))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
