"""Which dialect a state dict is in, and which of several networks is taken: each rule by itself."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resnext.config import ResNeXtConfig
from resnext.dialects.dialect import Dialect, NameRule
from resnext.dialects.table import DIALECTS
from resnext.errors import CheckpointError
from resnext.weights.formats.reading import Contents
from resnext.weights.recognise import choose_weights, recognise

ANCHOR = "layer1.0.conv2.weight"
PLAIN = ("conv1.weight", "bn1.weight", ANCHOR, "layer1.0.bn1.weight")


def tensors(*names: str) -> dict[str, Tensor]:
    """A state dict of which only the names matter."""
    return {name: torch.zeros(1) for name in names}


def head(name: str, dimensions: int = 2) -> dict[str, Tensor]:
    """Weight and bias of a last layer."""
    return {f"{name}.weight": torch.zeros((2,) * dimensions), f"{name}.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("names", "dialect"),
    [
        (PLAIN, "torchvision"),
        ((*PLAIN, "layer2.0.downsample.0.weight", "layer2.0.downsample.1.weight"), "torchvision"),
        ((*PLAIN, "conv1.0.weight"), "timm"),
        ((*PLAIN, "layer1.0.se.fc1.weight"), "timm"),
        ((*PLAIN, "layer1.0.se.conv.weight"), "timm"),
        ((*PLAIN, "layer3.0.downsample.2.weight"), "timm"),
        ((*PLAIN, "layer1.0.se_layer.conv1.conv.weight"), "mmcls"),
        ((*PLAIN, "stem.0.conv.weight"), "mmcls"),
        ((*PLAIN, "stem.2.conv.weight", "layer3.0.downsample.2.weight"), "mmcls"),
        ((*PLAIN, "layer1.0.gn1.weight"), "mmcls"),
        ((*PLAIN, "layer1.0.in1.weight"), "mmcls"),
        ((*PLAIN, "layer1.0.ln1.weight"), "mmcls"),
        ((*PLAIN, "head.fc.weight"), "mmcls"),
        ((*PLAIN, "fc.weight"), "torchvision"),
        ((*PLAIN, "stem.0.weight", "stem.3.weight"), "mmdet"),
        ((*PLAIN, "stem.0.weight", "stem.3.weight", "head.fc.weight"), "mmdet"),
        ((*PLAIN, "stem.0.weight"), "lucid3"),
        ((*PLAIN, "stem.0.weight", "classifier.weight"), "lucid3"),
        (("stem.0.weight", "layer1.0.conv2.conv.weight"), "lucid"),
        (("stem.conv1.weight", "res2.0.conv2.weight"), "detectron2"),
        (("encoder.stages.0.layers.0.layer.1.convolution.weight",), "transformers"),
    ],
)
def test_dialect_of_names(names: tuple[str, ...], dialect: str) -> None:
    """Libraries that share names inside of blocks differ in stem, norms, gates and head."""
    detected = recognise(tensors(*names))
    assert detected.dialect is DIALECTS[dialect]
    assert detected.prefix == ""


@pytest.mark.parametrize(
    "part",
    ["neck", "rpn_head", "roi_head", "bbox_head", "mask_head", "decode_head", "auxiliary_head"],
)
def test_other_parts_of_a_detector(part: str) -> None:
    """They are outside of the backbone; inside of it the word means nothing."""
    backbone = [f"backbone.{name}" for name in PLAIN]
    detected = recognise(tensors(*backbone, f"{part}.conv.weight"))
    assert detected.dialect.name == "mmdet"
    assert detected.left == (f"{part}.conv.weight",)
    assert recognise(tensors(*backbone, f"backbone.{part}.x")).dialect.name == "torchvision"
    inside = recognise(tensors(*backbone, f"bottle{part}.weight"))  # re-identification's bottleneck
    assert inside.dialect.name == "torchvision"
    gated = recognise(tensors(*backbone, "backbone.layer1.0.se_layer.x", f"{part}.conv.weight"))
    assert gated.dialect.name == "mmcls"
    grouped = recognise(tensors(*backbone, "backbone.layer1.0.gn1.weight", f"{part}.x"))
    assert grouped.dialect.name == "mmdet"


def test_a_deep_stem_of_lucid_is_refused() -> None:
    """It has no norm after the last convolution, so that its names would leave ours without one."""
    with pytest.raises(CheckpointError, match="Lucid 2 computes networks with a deep stem"):
        recognise(tensors("stem.0.weight", "stem.3.weight", "layer1.0.conv2.conv.weight"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("layer1.0.bn2.weight", "batch"),
        ("layer1.0.gn2.weight", "group"),
        ("layer1.0.in2.weight", "instance"),
        ("layer1.0.ln2.weight", "layer"),
        ("layer2.0.gn2.weight", "batch"),
    ],
)
def test_kind_of_norm(name: str, kind: str) -> None:
    """mmcls's letters show it, in the first block."""
    state = tensors(*PLAIN, name, "stem.0.conv.weight")
    assert recognise(state).norm == kind


def test_the_lowest_row_that_recognises_a_file_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new row can be more special than those above it, and leaves other files to them."""
    one = Dialect("one", "One", recognises=lambda names: "a" in names.network)
    two = Dialect("two", "Two", recognises=lambda names: "b" in names.outside)
    monkeypatch.setitem(DIALECTS, "one", one)
    monkeypatch.setitem(DIALECTS, "two", two)
    both = {f"backbone.{name}": x for name, x in tensors(*PLAIN, "a").items()}
    assert recognise({**both, **tensors("b")}).dialect is two
    assert recognise(both).dialect is one
    assert recognise(tensors(*PLAIN)).dialect.name == "torchvision"


def test_a_longer_anchor_is_not_taken_for_a_shorter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its names end with the other's, which would be found under a prefix."""
    rules = (NameRule("conv2.", "inner.layer1.0.conv2."),)
    longer = Dialect("longer", "Longer", block=rules, block_prefix="b{stage}.{block}.")
    monkeypatch.setitem(DIALECTS, "longer", longer)
    assert longer.anchor == f"b1.0.inner.{ANCHOR}"
    detected = recognise(tensors(longer.anchor))
    assert (detected.dialect, detected.prefix) == (longer, "")
    assert list(detected.state) == [ANCHOR]


def test_names_that_no_row_recognises(monkeypatch: pytest.MonkeyPatch) -> None:
    """An anchor alone is not enough."""
    shy = Dialect("shy", "Shy", block_prefix="b{stage}.{block}.", recognises=lambda names: False)
    monkeypatch.setitem(DIALECTS, "shy", shy)
    with pytest.raises(CheckpointError, match=r"No known library uses b1\.0\.conv2\.weight"):
        recognise(tensors("b1.0.conv2.weight"))


def test_a_dialect_can_be_given() -> None:
    """Modules of Torch7 are named by us, so their names do not show where they come from."""
    assert recognise(tensors(*PLAIN), DIALECTS["torch7"]).dialect.name == "torch7"


# -- several networks ------------------------------------------------------------------------------

WRAPPERS = ("module", "_orig_mod", "model", "network", "net", "backbone", "bottom_up", "resnet")
WRAPPERS += ("timm_model", "encoder_q", "encoder", "state_dict")


def networks(*prefixes: str) -> dict[str, Tensor]:
    """Networks beside each other."""
    return tensors(*(prefix + name for prefix in prefixes for name in PLAIN))


@pytest.mark.parametrize("word", WRAPPERS)
def test_usual_words_count_for_nothing(word: str) -> None:
    """So the network under them is preferred to one under a word that is not known."""
    detected = recognise(networks("teacher.", f"{word}."))
    assert (detected.prefix, detected.passed_over) == (f"{word}.", ("teacher.",))
    with pytest.raises(CheckpointError, match=f"under '{word}.' and ''. Save one of them"):
        recognise(networks(f"{word}.", ""))


@pytest.mark.parametrize("word", ["ema_model", "model_ema", "ema"])
def test_averages_come_first(word: str) -> None:
    """They are what was evaluated; usual words around them change nothing, others do."""
    assert recognise(networks("", f"{word}.")).prefix == f"{word}."
    assert recognise(networks("model.", f"{word}.module.")).prefix == f"{word}.module."
    assert recognise(networks("model.", f"{word}.student.")).prefix == "model."


def test_fewer_unusual_words_are_better() -> None:
    """And as many are an error."""
    assert recognise(networks("a.b.", "c.")).prefix == "c."
    with pytest.raises(CheckpointError, match=r"Several networks are in it, under 'a\.' and 'c\.'"):
        recognise(networks("a.", "c."))


def test_a_prefix_ends_with_a_point() -> None:
    """`player1.0.conv2.weight` is another name."""
    with pytest.raises(CheckpointError, match=r"No ResNeXt is in it.*its first tensor is 'p"):
        recognise(tensors("p" + ANCHOR))
    with pytest.raises(CheckpointError, match=r"No ResNeXt is in it.*it holds no tensors"):
        recognise({})
    with pytest.raises(CheckpointError, match=r"no tensor has a name that a library gives"):
        recognise({})


# -- classifiers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["head.fc", "head", "classifier", "fc", "last_linear", "fc.1", "classifier.12"]
)
@pytest.mark.parametrize("prefix", ["", "a.", "a.backbone."])
def test_classifiers_in_the_network_and_around_it(name: str, prefix: str) -> None:
    """Beside each word of the prefix there can be a head."""
    trunk = {prefix + each: x for each, x in tensors(*PLAIN).items()}
    words = prefix.split(".")[:-1]
    for i in range(len(words) + 1):
        root = "".join(f"{word}." for word in words[:i])
        detected = recognise({**trunk, **head(root + name)})
        assert set(detected.state) == {*PLAIN, "fc.weight", "fc.bias"}
        assert not detected.left
        assert not detected.heads


def test_what_is_not_a_classifier() -> None:
    """Other roots, other depths, more than one layer, and a bias alone."""
    trunk = {f"a.{name}": x for name, x in tensors(*PLAIN).items()}
    elsewhere = recognise({**trunk, **head("b.fc")})
    assert set(elsewhere.left) == {"b.fc.weight", "b.fc.bias"}
    assert "fc.weight" not in elsewhere.state
    for heads, weights in (
        ({**head("fc.0"), **head("fc.2")}, ("fc.0.weight", "fc.2.weight")),
        (head("fc", dimensions=4), ("fc.weight",)),
    ):
        detected = recognise({**trunk, **heads})
        assert detected.heads == weights
        assert set(detected.state) == set(PLAIN)
        assert not detected.left
    with pytest.raises(
        CheckpointError, match=r"fc\.bias exists, but not the weight that belongs to it"
    ):
        recognise({**trunk, "fc.bias": torch.zeros(2)})


# -- dictionaries in a file ------------------------------------------------------------------------

KEYS = ("model_ema", "state_dict_ema", "ema", "", "state_dict", "model", "model_state_dict", "net")
KEYS += ("network", "weights", "content", "params", "ema_state_dict", "something")


def contents(**dictionaries: Mapping[str, Any]) -> Contents:
    """A file with these dictionaries; `_` stands for its outermost one."""
    arrays = {"" if key == "_" else key: value for key, value in dictionaries.items()}
    return Contents(Path("a.pth"), "torch", arrays, {})


@pytest.mark.parametrize(("better", "worse"), [*itertools.pairwise(KEYS)])
def test_keys_of_dictionaries_in_order(better: str, worse: str) -> None:
    """Averages first, then usual names, then any other."""
    state = tensors(*PLAIN)
    for outer in ("", ".inner"):
        file = contents(**{worse + outer or "_": state, better + outer or "_": dict(state)})
        if outer and not (better and worse):
            continue
        weights = choose_weights(file)
        assert weights.key == better + outer
        assert weights.passed_over == (worse + outer,)
        assert weights.dialect is None


def test_dictionaries_without_a_network_are_not_chosen() -> None:
    """Whatever their key; if there is no network at all, the largest is shown."""
    weights = choose_weights(contents(model_ema=tensors("x", "y"), other=tensors(*PLAIN)))
    assert (weights.key, weights.passed_over) == ("other", ())
    weights = choose_weights(contents(_=tensors("x"), model=tensors("x", "y"), ema=tensors("x")))
    assert (weights.key, set(weights.state)) == ("model", {"x", "y"})


def test_two_unknown_keys_are_an_error() -> None:
    """Nothing says which is meant."""
    with pytest.raises(CheckpointError, match=r"a\.pth: several networks .* 'best' and 'last'"):
        choose_weights(contents(best=tensors(*PLAIN), last=tensors(*PLAIN)))


def test_every_anchor_makes_a_candidate() -> None:
    """Also that of a dialect which is not torchvision's."""
    for dialect in DIALECTS.values():
        weights = choose_weights(contents(ema=tensors("x"), other=tensors("m." + dialect.anchor)))
        assert weights.key == "other"


def test_objects_that_are_not_dictionaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dialects are asked in turn; arrays become tensors, and errors name the file."""

    def unpack(root: object) -> dict[str, np.ndarray[Any, Any]] | None:
        if root == "broken":
            raise CheckpointError("It is broken.")
        return {ANCHOR: np.ones(3, np.float32)} if root == "mine" else None

    mine = Dialect("mine", "Mine", unpack=unpack)
    monkeypatch.setitem(DIALECTS, "mine", mine)
    file = contents()
    weights = choose_weights(file._replace(root="mine"))
    assert weights.dialect is mine
    assert weights.state[ANCHOR].tolist() == [1, 1, 1]
    with pytest.raises(CheckpointError, match=r"^a\.pth: It is broken\.$"):
        choose_weights(file._replace(root="broken"))
    with pytest.raises(CheckpointError, match=r"^a\.pth holds one int, not a dictionary"):
        choose_weights(file._replace(root=5))


# -- which networks are refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "changes", "said"),
    [
        ("lucid", {"avg_down": True}, "Lucid 2 computes networks with avg_down differently"),
        ("lucid3", {"avg_down": True}, "Lucid 3 computes networks with avg_down differently"),
        ("transformers", {"cardinality": 1}, "Transformers wrote a plain ResNet"),
    ],
)
def test_unreadable_networks(dialect: str, changes: dict[str, Any], said: str) -> None:
    """Their files have our names and shapes, and other answers."""
    config = ResNeXtConfig((1, 1, 1, 1), 4, 8)
    DIALECTS[dialect].check_readable(config)
    with pytest.raises(CheckpointError, match=said):
        DIALECTS[dialect].check_readable(config.replace(**changes))


def test_what_cannot_be_written_can_be_read() -> None:
    """Code that uses torchvision's names is not restricted to torchvision's networks."""
    config = ResNeXtConfig((1, 1, 1, 1), 4, 8, attention="se")
    with pytest.raises(
        CheckpointError, match="torchvision does not support this network's attention"
    ):
        DIALECTS["torchvision"].check(config)
    DIALECTS["torchvision"].check_readable(config)
