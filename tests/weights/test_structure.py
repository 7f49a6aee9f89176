"""Networks read by structure: the same as by their names, or a refusal, never another network."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
from helpers import tiny_network
from oracles.originals import timm
from torch import Tensor

from resnext import ResNeXtConfig
from resnext.architectures import variant, variants
from resnext.dialects.dialect import Dialect
from resnext.dialects.table import DIALECTS
from resnext.errors import CheckpointError
from resnext.network import ResNeXt
from resnext.weights.structure import may_hold_structure, read_structure

State = dict[str, Tensor]

SAMPLE = ("resnext_nano", "resnext11_8x16d", "resnext_tiny_32px", "seresnext26t_32x4d")
CONFIGS = {
    "shortcut as conv1": ResNeXtConfig((2, 2), 4, 16, num_stages=2, channels=(64, 128)),
    "one block": ResNeXtConfig((1,), 4, 16, num_stages=1, channels=(32,)),
    "shortcut only for its stride": ResNeXtConfig(
        (2, 2), 4, 16, num_stages=2, channels=(16, 16), stem_channels=64
    ),
    "wide groups": ResNeXtConfig((1, 2), 2, 128, num_stages=2, channels=(32, 64)),
    "depthwise": ResNeXtConfig((1, 2), 64, 1, num_stages=2, channels=(64, 128), widths=(64, 64)),
    "grey": ResNeXtConfig((2, 1), 4, 16, num_stages=2, channels=(32, 64), in_channels=1),
    "shortcut as conv3": ResNeXtConfig(
        (2, 2), 4, 16, num_stages=2, channels=(64, 128), expansion=1
    ),
    "eca": ResNeXtConfig((1, 2), 4, 16, num_stages=2, channels=(16, 32), attention="eca"),
    "se": ResNeXtConfig((1, 2), 4, 16, num_stages=2, channels=(16, 32), attention="se"),
}

# A shortcut before or after its block fits, as its shape is that of a convolution beside it
AMBIGUOUS = ("shortcut as conv3", "one block", "shortcut only for its stride")


class Renamed:
    """Gives every text a random word, always the same."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.words: dict[str, str] = {}

    def new(self) -> str:
        """A word that was not there before."""
        return "".join(self.random.choices("abcdefghijkmnopqrtuv", k=9))

    def of(self, text: str) -> str:
        """The word for a text."""
        return self.words.setdefault(text, self.new())

    def tensor(self, name: str) -> str:
        """Every tensor has a name of its own."""
        return self.new()

    def layer(self, name: str) -> str:
        """Only the names of parameters stay."""
        layer, _, parameter = name.rpartition(".")
        return f"{self.of(layer)}.{parameter}"

    def parts(self, name: str) -> str:
        """Every part is replaced, so that names still group layers, but do not number them."""
        return ".".join(map(self.of, name.split(".")))

    def words_only(self, name: str) -> str:
        """Numbers stay."""
        return re.sub(r"[a-z_]+", lambda word: self.of(word[0]), name)


KINDS = ("tensor", "layer", "parts", "words_only")


@cache
def network(name: str) -> ResNeXt:
    """A network with random weights and statistics."""
    return tiny_network(CONFIGS.get(name) or variant(name, num_classes=3))


def written(name: str, dialect: Dialect) -> State | None:
    """Its state dict under a library's names; None if the library does not have it."""
    model = network(name)
    try:
        return dialect.write(model.state_dict(), model.config)
    except CheckpointError:
        return None


def reading(state: State, name: str) -> str:
    """How a state of the network `name` is read: same, refused, or the first wrong tensor."""
    try:
        found = read_structure(state).state
    except CheckpointError:
        return "refused"
    wanted = {k: x for k, x in network(name).state_dict().items() if not k.startswith("fc.")}
    if found.keys() != wanted.keys():
        return str(sorted(found.keys() ^ wanted.keys())[0])
    for key, x in wanted.items():
        if x.ndim and not torch.equal(found[key].flatten(), x.flatten()):
            return key
    return "same"


def checked(name: str, dialect: Dialect, expected: Callable[[str], bool]) -> None:
    """Read the network under random names, in order, shuffled and sorted."""
    state = written(name, dialect)
    for seed, kind in enumerate(KINDS if state else ()):
        assert state is not None
        renamed = {
            getattr(rename, kind)(n): x for rename in [Renamed(seed)] for n, x in state.items()
        }
        shuffled = list(renamed.items())
        random.Random(seed).shuffle(shuffled)
        answer = reading(renamed, name)
        assert answer == "same" if expected(kind) else answer in ("same", "refused"), (kind, answer)
        for other in (dict(shuffled), dict(sorted(shuffled))):
            answer = reading(other, name)
            assert answer in ("same", "refused"), (kind, answer)


def is_plain(config: ResNeXtConfig) -> bool:
    """Whether nothing about a network is invisible: one convolution as stem, no SE, groups."""
    return config.stem_type is None and config.gate != "se" and config.cardinality > 1


@pytest.mark.parametrize("name", [*SAMPLE, *CONFIGS])
def test_random_names(name: str) -> None:
    """Order kept: the same network where nothing is invisible; else the same or a refusal."""
    plain = is_plain(network(name).config) and name not in AMBIGUOUS
    for dialect in DIALECTS.values():
        checked(name, dialect, lambda kind: plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", [x for x in variants() if x not in SAMPLE])
def test_random_names_of_all_variants(name: str) -> None:
    """As above, for all that are not in the sample."""
    if "32x32d" in name or "32x48d" in name or "32x16d" in name:
        return  # the structure of 32x8d, with 1 to 3 GB of weights
    plain = is_plain(network(name).config)
    for dialect in DIALECTS.values():
        checked(name, dialect, lambda kind: plain)


@pytest.mark.parametrize("dialect", ["torchvision", "mmcls", "lucid", "lucid3", "torch7"])
@pytest.mark.parametrize("name", ["resnext_tiny_32px", "shortcut as conv1", "eca"])
def test_shuffled_where_names_group(name: str, dialect: str) -> None:
    """Numbers order blocks and pair norms, so the order of the file is not needed."""
    state = written(name, DIALECTS[dialect])
    if state is None:
        return
    for seed in range(4):
        shuffled = list(state.items())
        random.Random(seed).shuffle(shuffled)
        assert reading(dict(shuffled), name) == "same"
        assert reading(dict(sorted(shuffled)), name) == "same"


def ordered_state() -> State:
    """A small network in torchvision's names."""
    return dict(network("shortcut as conv1").state_dict())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer1.0.": "layer1.1.", "layer1.1.": "layer1.0."}, "two orders fit"),
        ({"layer1.1.": "layer1.2.", "layer1.0.": "layer1.0."}, None),
        ({"downsample.0": "conv9", "downsample.1": "bn9", ".conv3": ".downsample"}, "disagree"),
        ({"layer2.0.bn1": "layer2.0.bn2", "layer2.0.bn2": "layer2.0.bn1"}, "disagree"),
    ],
)
def test_names_that_contradict_structure(change: dict[str, str], said: str | None) -> None:
    """They are refused, and both are named."""
    pattern = re.compile("|".join(map(re.escape, change)))
    state = {pattern.sub(lambda x: change[x[0]], n): x for n, x in ordered_state().items()}
    if said is None:
        assert reading(state, "shortcut as conv1") == "same"
    else:
        with pytest.raises(CheckpointError, match=said):
            read_structure(state)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("layer1.1.spatial.weight", (1, 2, 7, 7), "in none of its blocks"),
        ("layer1.0.gate.weight", (16, 256, 1, 1), "1×1"),
        ("layer1.0.attn.weight", (256, 256), "no role in a ResNeXt"),
        ("layer1.0.bn4.weight", (256,), "no role in a ResNeXt"),
    ],
)
def test_other_layers_in_blocks(name: str, shape: tuple[int, ...], said: str) -> None:
    """A block with anything else computes something else."""
    with pytest.raises(CheckpointError, match=said):
        read_structure({**ordered_state(), name: torch.ones(shape)})


def test_missing_parts() -> None:
    """An incomplete network is none."""
    for start in ("layer1.0.conv1", "layer1.0.bn1", "conv1", "layer2.0.downsample"):
        state = {n: x for n, x in ordered_state().items() if not n.startswith(f"{start}.")}
        with pytest.raises(CheckpointError):
            read_structure(state)
    three = tiny_network(ResNeXtConfig((4,), 4, 16, num_stages=1, channels=(16,))).state_dict()
    state = {n: x for n, x in three.items() if not n.startswith("layer1.1.")}
    with pytest.raises(CheckpointError, match="a block is missing"):
        read_structure(state)


FOREIGN = (
    "resnet26d",
    "densenet121",
    "regnetx_002",
    "regnety_002",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "efficientnet_b0",
    "res2next50",
    "resnest26d",
    "mobilenetv2_100",
    "eca_resnext26ts",
    "seresnext26ts",
)
MORE = (
    "resnet50",
    "res2net50_26w_4s",
    "resnest50d_4s2x40d",
    "cspresnext50",
    "skresnext50_32x4d",
    "resnetv2_50",
    "xception41",
    "gcresnext50ts",
    "bat_resnext26ts",
    "resnext26ts",
    "ese_vovnet39b",
    "hrnet_w18",
    "dpn68",
    "ghostnet_100",
    "nf_regnet_b0",
    "regnetz_b16",
    "regnetx_032",
    "regnety_016",
    "seresnet50",
    "resnetrs50",
    "mixnet_s",
    "lcnet_050",
    "legacy_senet154",
    "legacy_seresnet50",
)


def refused(name: str) -> None:
    """No reading of a network is a ResNeXt, under its own or random names."""
    state = timm.create_model(name).state_dict()
    for key, x in state.items():
        if key.endswith("running_mean"):
            x.normal_()
    for kind in ("", *KINDS):
        rename = Renamed(0)
        renamed = {getattr(rename, kind)(n) if kind else n: x for n, x in state.items()}
        with pytest.raises(CheckpointError):
            read_structure(renamed)


@pytest.mark.parametrize("name", FOREIGN)
def test_other_networks(name: str) -> None:
    """timm's other networks are never taken for a ResNeXt."""
    refused(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_other_networks(name: str) -> None:
    """As above."""
    refused(name)


@pytest.mark.slow
def test_networks_of_timm_at_random() -> None:
    """A sample of all others. Values are ones; only statistics are random."""
    own = {*variants(), "legacy_seresnext26_32x4d", "legacy_seresnext50_32x4d"}
    names = sorted({*timm.list_models(exclude_filters=["*vit*", "*swin*", "*eva*"])} - own)
    grouped = 0
    for name in random.Random(0).sample(names, 150):
        with torch.device("meta"):
            shapes = timm.create_model(name).state_dict()
        if not may_hold_structure(shapes) or sum(x.numel() for x in shapes.values()) > 5e7:
            continue
        grouped += 1
        state = {key: torch.ones(x.shape, dtype=x.dtype) for key, x in shapes.items()}
        for key, x in state.items():
            if key.endswith("running_mean"):
                x.normal_()
        for kind in KINDS:
            renamed = {
                getattr(rename, kind)(n): x for rename in [Renamed(0)] for n, x in state.items()
            }
            with pytest.raises(CheckpointError):
                read_structure(renamed)
    assert grouped > 10


def test_plain_networks_have_no_structure() -> None:
    """A ResNet has no groups, so its dictionary is not a candidate."""
    assert may_hold_structure(ordered_state())
    assert not may_hold_structure(network("resnext29_1x64d").state_dict())
    assert not may_hold_structure({})
