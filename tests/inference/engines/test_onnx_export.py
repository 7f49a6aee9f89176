"""Exported graphs, and edits of them, compute the same function as the network."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from oracles.originals import randomize
from PIL import Image

from resnext import Preprocessing, ResNeXt, ResNeXtConfig
from resnext.data.decoding import pixels
from resnext.errors import InputError
from resnext.inference.engines.onnx_export import (
    can_merge,
    export_graph,
    graph_with_pixel_input,
    widen_groups,
)
from resnext.inference.fold import fold

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 16
BASE = ResNeXtConfig(
    (1, 1),
    6,
    16,
    num_classes=5,
    num_stages=2,
    channels=(8, 12),
    widths=(24, 18),  # groups of 4 channels, and of 3
    stem_channels=8,
    small_stem=True,
)
ONE = BASE.replace(layers=(1,), num_stages=1, channels=(8,), widths=(24,))
CONFIGS = {
    "grouped": BASE,
    "same padding": BASE.replace(small_stem=False, conv="same_padding"),
    "grey": BASE.replace(in_channels=1, padding_mode="reflect"),
    "twins": ONE.replace(layers=(3,)),
    "blur": ONE.replace(strides=(2,), stem_channels=24, small_stem=False, anti_alias="blur"),
    "tiny": ONE,
}
PREPROCESSING = {
    "grouped": Preprocessing(SIZE, SIZE, mean=(3.1, -2.0, 0.456), std=(0.031, 4.7, 0.225)),
    "same padding": Preprocessing(
        SIZE, SIZE, mean=(-1.7, 0.9, 5.0), std=(1.3, 0.17, 0.6), colour="BGR"
    ),
    "grey": Preprocessing(SIZE, SIZE, mean=(2.9,), std=(0.37,), colour="L"),
}


@cache
def network(kind: str) -> ResNeXt:
    """A network in double precision, the oracle."""
    made = ResNeXt(CONFIGS[kind])
    randomize(made)
    if kind == "twins":
        twin = made.get_submodule("layer1.1")
        made.get_submodule("layer1.2").load_state_dict(twin.state_dict())
    return made.double().eval()


@pytest.fixture(scope="module")
def graph() -> Callable[[str], Any]:
    """Exports each kind once, for all tests."""
    return cache(lambda kind: export_graph(fold(network(kind)), SIZE))


def run(graph: Any, x: np.ndarray) -> list[np.ndarray]:
    """Outputs of ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    answers: Any = session.run(None, {session.get_inputs()[0].name: x})
    return answers


def images(kind: str, count: int = 3) -> np.ndarray:
    """Normalized images."""
    shape = (count, CONFIGS[kind].in_channels, SIZE, SIZE)
    return np.random.default_rng(count).normal(size=shape).astype(np.float32)


def agree(got: list[np.ndarray], kind: str, x: np.ndarray, tolerance: float = 1e-6) -> None:
    """Logits and embeddings are those of the network in double precision."""
    with torch.no_grad():
        tensor = torch.from_numpy(x).double()
        wanted = network(kind)(tensor).numpy(), network(kind).embed(tensor).numpy()
    for mine, theirs in zip(got, wanted, strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, np.float32)
        if len(theirs):
            assert abs(mine - theirs).max() <= tolerance * abs(theirs).max()


def convolutions(graph: Any) -> dict[str, tuple[int, np.ndarray]]:
    """Groups and weights of each convolution."""
    weights = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    return {
        node.name: (
            next((a.i for a in node.attribute if a.name == "group"), 1),
            weights[node.input[1]],
        )
        for node in graph.graph.node
        if node.op_type == "Conv"
    }


# -- the graph --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grouped", "same padding", "grey"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_images(graph: Callable[[str], Any], kind: str, count: int) -> None:
    """An exporter that was shown two images may make graphs for two images."""
    x = images(kind, count)
    agree(run(graph(kind), x), kind, x)


def test_names_and_types(graph: Callable[[str], Any]) -> None:
    """Sessions rely on the order of the outputs."""
    inside = graph("grouped").graph
    assert [x.name for x in inside.input] == ["images"]
    assert [x.name for x in inside.output] == ["logits", "embedding"]
    kinds = {x.type.tensor_type.elem_type for x in (*inside.input, *inside.output)}
    assert kinds == {onnx.TensorProto.FLOAT}
    assert not {node.op_type for node in inside.node} & {"BatchNormalization", "Dropout"}


def test_exporting_is_silent(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """torch.onnx prints its steps, and warnings about its own code, between our progress lines."""
    level = logging.getLogger("torch.onnx").level
    filters = list(warnings.filters)
    export_graph(fold(network("tiny")), SIZE)
    assert capfd.readouterr() == ("", "")
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert logging.getLogger("torch.onnx").level == level
    assert warnings.filters == filters


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's message names one package; ours names the extra that has all of them."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        InputError, match=rf'{missing} is not installed.*pip install "resnext\[onnx\]"'
    ):
        export_graph(fold(network("tiny")), SIZE)


# -- wider groups -----------------------------------------------------------------------------


def spread_by_hand(weight: np.ndarray, groups: int, merged: int) -> np.ndarray:
    """Weights of the wider convolution, one number at a time."""
    k, c, h, w = weight.shape
    wide = np.zeros((k, c * merged, h, w), weight.dtype)
    for out in range(k):
        group = out // (k // groups)
        for channel in range(c):
            wide[out, group % merged * c + channel] = weight[out, channel]
    return wide


@pytest.mark.parametrize(
    ("width", "groups"),
    [  # of the first stage, which has 6 groups of 4, and of the second, which has 6 of 3
        (0, (6, 6)),
        (2, (6, 6)),
        (4, (6, 6)),
        (5, (6, 6)),
        (6, (6, 3)),
        (8, (3, 6)),
        (9, (6, 2)),
        (12, (2, 6)),
        (16, (6, 6)),  # 6 groups do not come out even in fours
        (18, (6, 1)),
        (24, (1, 6)),
        (32, (6, 6)),
        (48, (6, 6)),
    ],
)
def test_wider_groups_are_the_same_function(
    graph: Callable[[str], Any], width: int, groups: tuple[int, int]
) -> None:
    """With a weight in the wrong block, the network still runs but is wrong."""
    plain = graph("grouped")
    before = plain.SerializeToString(deterministic=True)
    wide = widen_groups(plain, width)
    assert plain.SerializeToString(deterministic=True) == before
    x = images("grouped")
    agree(run(wide, x), "grouped", x)
    seen = set()
    old, new = convolutions(plain), convolutions(wide)
    assert list(old) == list(new)
    for name, (count, weight) in old.items():
        if count == 1:
            assert new[name][0] == 1
            assert np.array_equal(new[name][1], weight)
            continue
        stage = 0 if weight.shape[1] == 4 else 1
        seen.add(stage)
        assert new[name][0] == groups[stage]
        wanted = spread_by_hand(weight, count, count // groups[stage])
        assert np.array_equal(new[name][1], wanted)
    assert seen == {0, 1}


@pytest.mark.parametrize("width", [8, 24])
def test_convolutions_that_share_their_weights(graph: Callable[[str], Any], width: int) -> None:
    """Exporters store equal weights once, such as those of two equal blocks.

    Widening such weights once for each convolution makes them too wide.
    """
    x = images("twins")
    agree(run(graph("twins"), x), "twins", x)
    agree(run(widen_groups(graph("twins"), width), x), "twins", x)


@pytest.mark.parametrize("edit", ["none", "wider", "pixels", "both"])
@pytest.mark.parametrize("kind", PREPROCESSING)
def test_edited_graphs_are_sound(graph: Callable[[str], Any], kind: str, edit: str) -> None:
    """Recorded shapes of weights did not match the edited weights; strict readers refuse that."""
    made = graph(kind)
    if edit in ("wider", "both"):
        made = widen_groups(made, 24)
        assert max(weight.shape[1] for count, weight in convolutions(made).values()) >= 24
    if edit in ("pixels", "both"):
        made = graph_with_pixel_input(made, PREPROCESSING[kind])
    onnx.checker.check_model(made, full_check=True)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 80))
def test_what_can_be_merged(own: int, groups: int, width: int) -> None:
    """Groups must divide evenly, and grow."""
    possible = [
        own * n for n in range(2, groups + 1) if groups % n == 0
    ]  # so many neighbours become one
    assert can_merge(own, groups, width) == (width in possible)


# -- pixels -----------------------------------------------------------------------------------


def normalized_by_hand(values: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """In double precision, one channel after the other."""
    planes = [
        (values[..., i] / 255 - mean) / std
        for i, (mean, std) in enumerate(zip(preprocessing.mean, preprocessing.std, strict=True))
    ]
    return np.stack(planes, axis=1)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("kind", PREPROCESSING)
def test_pixels_are_normalized_inside(graph: Callable[[str], Any], kind: str, count: int) -> None:
    """Padding is zero after normalization: with means folded into the bias, borders are wrong.

    The means are far from zero, so that this shows in every answer.
    """
    rng, preprocessing = np.random.default_rng(7), PREPROCESSING[kind]
    values = rng.integers(0, 256, (count, SIZE, SIZE, len(preprocessing.mean)), dtype=np.uint8)
    plain = graph(kind)
    before = plain.SerializeToString(deterministic=True)
    direct = graph_with_pixel_input(plain, preprocessing)
    assert plain.SerializeToString(deterministic=True) == before
    assert [x.name for x in direct.graph.input] == ["pixels"]
    assert direct.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    agree(run(direct, values), kind, normalized_by_hand(values, preprocessing), 1e-5)
    wide = graph_with_pixel_input(widen_groups(plain, 24), preprocessing)
    agree(run(wide, values), kind, normalized_by_hand(values, preprocessing), 1e-5)


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("kind", PREPROCESSING)
def test_the_ends_of_the_range(graph: Callable[[str], Any], kind: str, level: int) -> None:
    """255 as a signed byte is −1."""
    preprocessing = PREPROCESSING[kind]
    values = np.full((2, SIZE, SIZE, len(preprocessing.mean)), level, np.uint8)
    got = run(graph_with_pixel_input(graph(kind), preprocessing), values)
    agree(got, kind, normalized_by_hand(values, preprocessing), 1e-5)


@pytest.mark.parametrize("kind", PREPROCESSING)
def test_pictures_in_the_order_of_the_card(graph: Callable[[str], Any], kind: str) -> None:
    """BGR networks got red for blue, which costs only a few points of accuracy."""
    preprocessing = PREPROCESSING[kind]
    values = np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    image = Image.fromarray(values).convert("L" if preprocessing.colour == "L" else "RGB")
    seen = np.asarray(image).reshape(SIZE, SIZE, -1)
    if preprocessing.colour == "BGR":
        seen = np.stack([seen[..., 2], seen[..., 1], seen[..., 0]], axis=-1)
    got = run(
        graph_with_pixel_input(graph(kind), preprocessing), pixels(image, preprocessing)[None]
    )
    agree(got, kind, normalized_by_hand(seen[None], preprocessing), 1e-5)
