"""Maps that add up to the logit in every form of a network, and arguments of `explain`."""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explanation_cases import (
    FORMS,
    SessionRunner,
    cornered_digits,
    in_form,
    trained_on_corners,
)
from helpers import tiny_network
from inference_cases import CARD, CONFIG
from oracles.originals import captum, randomize
from PIL import Image

import resnext
from resnext import Card, Preprocessing, ResNeXt, explain
from resnext.data.decoding import resize_and_crop
from resnext.data.transforms import normalized
from resnext.errors import DataError, InputError
from resnext.explanation.images import crop_box
from resnext.inference import open_runner, search
from resnext.inference.engines.base import Engine, EngineConfig
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.engines.quantization import quantize

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network() -> ResNeXt:
    """A small network with random weights."""
    return tiny_network(CONFIG, CARD)


@pytest.fixture(scope="module")
def corners() -> ResNeXt:
    """A network that tells digits with a red corner from those with a green one."""
    return trained_on_corners()


def photo(seed: int = 0, size: tuple[int, int] = (30, 40)) -> np.ndarray:
    """A picture of noise."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def adds_up(model: Any, picture: Any, tolerance: float, **options: Any) -> None:
    """Map and bias add up to the model's own number, computed by another way."""
    one = explain(model, picture, **options)
    assert one.completeness_error is not None
    assert one.completeness_error <= tolerance
    assert one.map.std() > 0
    card = model.card
    x = np.asarray(resize_and_crop(Image.fromarray(picture), card.preprocessing))[None]
    logits = open_runner(model).pixels(x)[0][0].astype(np.float64)
    wanted = logits[one.target.label]
    if one.target.against is not None:
        wanted -= one.target.gamma * logits[one.target.against]
    total = one.map.sum(dtype=np.float64) + one.bias
    assert abs(total - wanted) <= tolerance * abs(logits).max()


@pytest.mark.parametrize("form", FORMS)
def test_maps_add_up(network: ResNeXt, form: str) -> None:
    """A map that does not add up shows something else than the reasons for the logit."""
    runner = in_form(network, form)
    for seed in range(3):
        adds_up(runner, photo(seed), 1e-4)
        adds_up(runner, photo(seed), 1e-4, label="cat", against="dog", gamma=0.3)


# Above 100 million parameters; they repeat the blocks of others.
LARGEST = {"resnext101_32x16d", "resnext101_32x32d", "resnext101_32x48d", "seresnextaa201d_32x8d"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in resnext.variants() if name not in LARGEST])
def test_maps_of_other_variants_add_up(name: str) -> None:
    """Every stem, norm, attention and pooling, in every form."""
    size = 64
    model = resnext.create(name, num_classes=4)
    randomize(model)
    colour = "L" if model.config.in_channels == 1 else "RGB"
    channels = model.config.in_channels
    preprocessing = Preprocessing(
        size, size, mean=(0.5,) * channels, std=(0.3,) * channels, colour=colour
    )
    model.eval().card = Card(CARD.labels, preprocessing)
    for form in FORMS:
        runner = in_form(model, form)
        one = explain(runner, photo(size=(80, 70)))
        assert one.completeness_error is not None
        assert one.completeness_error <= 1e-4, form


def test_maps_in_int8_add_up(network: ResNeXt) -> None:
    """Eight bits round the classifier, so there the sum is only nearly the logit."""
    builder = EngineBuilder(network, 12, torch.device("cpu"), CARD.preprocessing)
    x = torch.from_numpy(np.stack([photo(i, (12, 12)) for i in range(8)]))
    images = normalized(x, CARD.preprocessing).numpy()
    model = builder.graph()
    import openvino

    core = openvino.Core()
    builder.quantized["openvino", 0] = quantize(core.read_model(model.SerializeToString()), images)
    form = EngineConfig("openvino", precision="int8")
    runner = SessionRunner(network, builder.map_session(form, "pixels"))
    for seed in range(3):
        adds_up(runner, photo(seed), 2e-2)


def test_the_map_is_grad_cam(network: ResNeXt) -> None:
    """Captum computes the same from gradients."""
    pytest.importorskip("captum", reason="captum is not installed: pip install 'resnext[dev]'")
    picture = photo(4)
    x = np.asarray(resize_and_crop(Image.fromarray(picture), CARD.preprocessing))
    images = normalized(torch.from_numpy(x.copy())[None], CARD.preprocessing)
    for target, label in enumerate(CARD.labels):
        cam = captum.attr.LayerGradCam(network, network.layer1)
        wanted = cam.attribute(images, target=target, relu_attributions=False)[0, 0]
        got = explain(network, picture, label=label, against=False).map
        difference = np.abs(got - wanted.detach().numpy()).max()
        assert difference <= 1e-5 * np.abs(got).max()


def test_layercam_against_captum_gradients(network: ResNeXt) -> None:
    """At the last stage all gradients are the classifier's weights over the number of places."""
    picture = photo(5)
    runner = open_runner(network)
    x = np.asarray(resize_and_crop(Image.fromarray(picture), CARD.preprocessing))
    features = runner.maps(x[None])[1][0]  # pyright: ignore[reportAttributeAccessIssue]
    weight = network.fc.weight[2].detach().numpy().clip(min=0) / features[0].size
    wanted = np.tensordot(weight, features, 1).clip(min=0)
    got = explain(network, picture, label="cat", how="layercam", against=False)
    assert (got.bias, got.completeness_error, got.stage) == (0.0, None, 1)
    np.testing.assert_allclose(got.map, wanted, rtol=1e-4, atol=1e-6)


def test_integrated_gradients_add_up(network: ResNeXt) -> None:
    """The shares of all pixels and the number of the mean colour make the logit."""
    one = explain(network, photo(6), how="ig", against=False)
    assert one.completeness_error is not None
    assert one.completeness_error <= 5e-3
    assert one.map.shape == (12, 12)
    with torch.no_grad():
        start = network(torch.zeros(1, 3, 12, 12))[0, one.target.label]
    assert one.bias == pytest.approx(float(start), rel=1e-5)


@pytest.mark.parametrize("how", ["map", "occlusion", "layercam", "ig"])
def test_the_reason_is_found(corners: ResNeXt, how: Any) -> None:
    """Only the corner tells the classes apart, so the evidence must lie there."""
    shares = []
    for picture, right in zip(*cornered_digits(12, 1), strict=True):
        one = explain(corners, picture, how=how, against=False)
        assert one.target.label == right
        if one.label == "none":
            continue
        evidence = one.map.clip(min=0)
        corner = len(evidence) // 4 + len(evidence) // 16  # and the places next to it, which see it
        shares.append(evidence[:corner, :corner].sum() / evidence.sum())
    assert len(shares) >= 5
    assert min(shares) >= 0.8


def test_a_good_map_passes_its_check_and_is_lost_with_the_weights(corners: ResNeXt) -> None:
    """A check that fails good maps, or passes maps of random networks, is worth nothing."""
    from resnext.explanation.images import check_sanity

    pictures, classes = cornered_digits(8, 2)
    picture = pictures[classes < 3][0]
    one = explain(corners, picture, check=True)
    assert one.check is not None
    assert (one.reliable, one.check.beaten) == (True, 20)
    assert one.check.curve[1] < one.check.random[1] < one.check.curve[0]
    before = {name: value.clone() for name, value in corners.state_dict().items()}
    sanity = check_sanity(corners, picture, one)
    assert sanity.layers == ("fc", "layer2", "layer1", "bn1", "conv1")
    assert sanity.passed
    assert all(torch.equal(value, before[name]) for name, value in corners.state_dict().items())


def test_a_map_that_ignores_the_weights_is_found(network: ResNeXt) -> None:
    """Edges of the image look like an explanation, whatever the network learned."""
    from resnext.explanation.sanity import check_by_randomizing

    few = np.arange(4, dtype=np.float32).reshape(2, 2)
    assert not check_by_randomizing(network, lambda _: few).conclusive
    edges = np.abs(np.diff(photo(1, (12, 13)).astype(np.float32).mean(2), axis=1))
    assert not check_by_randomizing(network, lambda _: edges).passed


def test_a_constant_map_is_not_reliable(network: ResNeXt) -> None:
    """It points nowhere."""
    from resnext.explanation.deletion import check_by_deletion
    from resnext.explanation.images import score_of

    runner = open_runner(network)
    target = explain(network, photo()).target
    flat = np.ones((3, 3), np.float32)
    check = check_by_deletion(photo(1, (12, 12)), flat, score_of(runner, target))
    assert (check.beaten, check.passed) == (0, False)


def test_against(network: ResNeXt) -> None:
    """The second class is the default only where the model is not sure."""
    picture = photo()
    plain = explain(network, picture)
    assert (plain.against, plain.score) == (None, plain.logit)
    second = resnext.predict(network, [picture], top=2)[0].labels
    unsure = tiny_network(CONFIG, replace(CARD, threshold=1.0))
    for model, against in ((network, True), (unsure, None)):
        one = explain(model, picture, against=against)
        assert (one.label, one.against) == second
    assert explain(unsure, picture, against=False).against is None
    other = explain(network, picture, label=second[1], against=True)
    assert (other.label, other.against, other.predicted) == (*second[::-1], second[0])


def test_fine(network: ResNeXt) -> None:
    """Twice the size makes twice the places, of the same part of the image."""
    coarse, fine = (explain(network, photo(), fine=fine) for fine in (False, True))
    assert fine.map.shape == (24, 24)
    assert coarse.map.shape == (12, 12)
    np.testing.assert_allclose(fine.crop, coarse.crop, atol=0.03)
    assert fine.completeness_error is not None
    assert fine.completeness_error <= 1e-4


@pytest.mark.parametrize("size", [(30, 40), (41, 30), (9, 9), (12, 30), (5, 50)])
@pytest.mark.parametrize("how", [(12, 14), (12, 12), (12, 9), (13, 10), (8, 21)])
def test_crop_box(size: tuple[int, int], how: tuple[int, int]) -> None:
    """The outline must be what was cut out: a picture of its own coordinates tells."""
    w, h = size
    preprocessing = Preprocessing(*how, interpolation="nearest")
    left, top, right, bottom = crop_box(w, h, preprocessing)
    columns, rows = np.meshgrid(np.arange(w), np.arange(h))
    values = np.stack([columns, rows, np.full_like(rows, 255)], -1).astype(np.uint8)
    seen = np.asarray(resize_and_crop(Image.fromarray(values), preprocessing))
    inside = seen[..., 2] == 255  # the rest is padding
    for axis, (low, high, length) in enumerate(((left, right, w), (top, bottom, h))):
        line = np.linspace(low, high, len(seen), endpoint=False) + (high - low) / len(seen) / 2
        got = seen[..., axis].max(axis).astype(float)
        known = inside.any(axis)
        assert (np.abs(line * length - 0.5 - got)[known] <= 1.0).all()
        assert ((line < 0) | (line > 1))[~known].all()


@pytest.mark.parametrize("how", ["map", "occlusion"])
def test_a_map_comes_with_the_logits(network: ResNeXt, how: Any) -> None:
    """A second pass would double the cost of an explanation, which is to be on everywhere."""
    passes = []
    runner = open_runner(network)
    handle = network.conv1.register_forward_hook(lambda *x: passes.append(len(x[1][0])))
    try:
        explain(runner, photo(), how=how)
    finally:
        handle.remove()
    assert (passes == [1]) == (how == "map")


def test_a_thousand_calls_leave_nothing(network: ResNeXt) -> None:
    """Hooks that stay make every later prediction slower; memory that stays ends a server."""
    picture = photo()
    runner = open_runner(network)

    def run(times: int) -> int:
        for _ in range(times):
            explain(runner, picture)
        explain(network, picture, how="layercam")
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        run(50)
        tensors = count_tensors()
        sizes = [run(250) for _ in range(5)]
        growth = min(after - before for before, after in itertools.pairwise(sizes))
        assert growth < 50 * 250  # bytes; what stays of every call shows in every round
        assert count_tensors() == tensors
    finally:
        tracemalloc.stop()
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert all(parameter.grad is None for parameter in network.parameters())


def count_tensors() -> int:
    """Tensors that are alive."""
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_training_mode_is_restored(network: ResNeXt) -> None:
    """A callback in training must be able to explain."""
    model = tiny_network(CONFIG, CARD).train()
    one = explain(model, photo())
    assert model.training
    np.testing.assert_array_equal(one.map, explain(network, photo()).map)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "cow"}, "no class 'cow'. It has ant, bee, cat, dog"),
        ({"label": "catt"}, "Did you mean cat?"),
        ({"label": 4}, "from 0 to 3, not 4"),
        ({"label": True}, "not True"),
        ({"label": "cat", "against": 2}, "cannot be compared with itself"),
        ({"how": "lime"}, "map, occlusion, layercam, ig, not 'lime'"),
        ({"stage": 2}, "from 1 to 1, the network's last, not 2"),
        ({"stage": 0}, "stage must be"),
        ({"how": "ig", "stage": 1}, "shows pixels, not a stage"),
        ({"gamma": 1.5}, "gamma must be from 0 to 1, not 1.5"),
        ({"gamma": float("nan")}, "gamma must be from 0 to 1"),
    ],
)
def test_wrong_arguments(network: ResNeXt, options: dict[str, Any], message: str) -> None:
    """Each says what was wanted, in one line."""
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        explain(network, photo(), **options)


def test_classes_by_number(network: ResNeXt) -> None:
    """`argmax` gives NumPy's integers."""
    int_like: Any = np.int64(2)
    names = [explain(network, photo(), label=x).label for x in (2, int_like, "2", "cat")]
    assert names == ["cat"] * 4
    twins = tiny_network(CONFIG, replace(CARD, labels=("crane", "bee", "crane", "dog")))
    with pytest.raises(InputError, match="Classes 0 and 2 are both called crane"):
        explain(twins, photo(), label="crane")
    assert explain(twins, photo(), label=2).target.label == 2


def test_logits_that_are_not_finite(network: ResNeXt) -> None:
    """A picture of NaN would look like a picture without evidence."""
    broken = tiny_network(CONFIG, CARD)
    broken.fc.bias.data[1] = float("nan")
    with pytest.raises(InputError, match="contain NaN or infinity"):
        explain(broken, photo())


def test_an_engine_without_maps() -> None:
    """Engines that users wrote for an earlier version still predict, and say what to do."""

    class Bare(Engine):
        name, title, package, install_hint = "bare", "Bare", "numpy", "numpy"

        def precisions(self, device: str) -> tuple[str, ...]:
            return ("fp32",)

        def build(self, source: Any, form: EngineConfig, kind: Any) -> Any:
            raise NotImplementedError

    for call in (
        lambda: Bare().build_maps(None, EngineConfig("bare"), "pixels"),  # pyright: ignore
        lambda: Bare().open_maps(Path(), EngineConfig("bare")),
    ):
        with pytest.raises(InputError, match=r"Bare returns no feature maps.*--no-plan"):
            call()


def test_pictures_that_cannot_be_explained(network: ResNeXt, tmp_path: Path) -> None:
    """A folder, a missing file, several images at once."""
    for picture in (tmp_path, tmp_path / "none.png", [photo()], photo().astype(float)):
        with pytest.raises(DataError):
            explain(network, picture)  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("fresh_cache")
def test_a_plan_explains_without_torch(
    network: ResNeXt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading torch takes longer than the whole answer."""
    monkeypatch.setattr(search, "_SECONDS", 0.0)
    monkeypatch.setattr(search, "_WIDTHS", ())
    file, image = tmp_path / "pets.safetensors", tmp_path / "photo.png"
    resnext.save(network, file)
    Image.fromarray(photo()).save(image)
    wanted = explain(file, image, label="cat", plan=False)
    for engine in ("onnxruntime", "openvino"):
        resnext.optimize(file, engine=engine, batch=1).save_plan(file)
        program = (
            "import sys, json, resnext\n"
            f"one = resnext.explain({str(file)!r}, {str(image)!r}, label='cat', check=True)\n"
            "assert 'torch' not in sys.modules, 'torch was loaded'\n"
            "print(json.dumps(one.map.tolist()))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        got = np.array(json.loads(done.stdout.splitlines()[-1]))
        assert np.abs(got - wanted.map).max() <= 1e-5 * np.abs(wanted.map).max()
    planned = open_runner(file)
    assert explain(planned, image, how="ig").how == "ig"  # the network behind it
    assert explain(planned, image, fine=True).map.shape == (24, 24)


def test_a_runner_without_maps(network: ResNeXt) -> None:
    """Any runner can be explained by occlusion; others are refused in one line."""
    inner = open_runner(network)

    class Plain:
        card, config, batch = inner.card, inner.config, 4

        def pixels(self, x: np.ndarray) -> Any:
            return inner.pixels(x)

    one = explain(Plain(), photo(), how="occlusion")
    np.testing.assert_array_equal(one.map, explain(network, photo(), how="occlusion").map)
    refused: list[dict[str, Any]] = [{}, {"how": "ig"}, {"fine": True}]
    for options in refused:
        with pytest.raises(InputError, match="occlusion"):
            explain(Plain(), photo(), **options)
