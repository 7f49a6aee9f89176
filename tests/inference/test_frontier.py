"""Accuracy for speed: the fastest form inside the bound, chosen by images of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import run_cli, tiny_network
from inference_cases import BATCH, CARD, CONFIG, SIZE, images, pictures
from PIL import Image

import resnext
from resnext import Preprocessing, ResNeXt, ResNeXtConfig, optimize
from resnext.calibration import fit_temperature
from resnext.data.loader import eval_loader
from resnext.data.open import open_for_evaluation
from resnext.errors import DataError, InputError
from resnext.inference import open_runner
from resnext.inference.engines.base import EngineConfig
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.engines.torch import Torch
from resnext.inference.frontier import FrontierSearch, crops, smaller_sizes
from resnext.inference.optimized import Optimized
from resnext.inference.plan import FrontierRow, Plan, Tradeoff, plan_path, read_plans, save_beside
from resnext.inference.runner import Session
from resnext.inference.search import Search
from resnext.prediction import predict_files
from resnext.prediction.ray import _open

pytestmark = pytest.mark.usefixtures("one_thread", "quick_search")

PLAIN: dict[str, Any] = {"batch": BATCH, "engine": "torch", "precision": "fp32"}


# -- the ladder -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "small_stem", "size", "sizes"),
    [
        (4, False, 224, [128, 160, 192]),
        (4, False, 96, [48, 64, 80]),
        (4, False, 64, [32, 48]),
        (4, False, 32, []),  # the stride is 32
        (3, True, 32, [16, 20, 24, 28]),
        (3, True, 28, [16, 20, 24]),
        (1, True, 12, [6, 8, 9, 10]),
        (1, True, 1, []),
    ],
)
def test_sizes_of_the_ladder(stages: int, small_stem: bool, size: int, sizes: list[int]) -> None:
    """Multiples of the stride or its half: in between, maps are rounded up."""
    layers, channels = (1,) * stages, (8, 16, 32, 64)[:stages]
    config = ResNeXtConfig(
        layers, 2, 16, num_stages=stages, channels=channels, small_stem=small_stem
    )
    assert smaller_sizes(config, size) == sizes


def test_a_size_is_never_too_small_for_the_network() -> None:
    """Reflection needs at least two pixels of every map; a smaller image raised an error."""
    config = CONFIG.replace(padding_mode="reflect")
    assert config.min_size > 1
    for size in range(1, 40):
        assert all(config.min_size <= s < size for s in smaller_sizes(config, size))


def test_crops_of_a_size() -> None:
    """As much is cut off as before, nothing, or more; two are one if nothing was before."""
    usual, whole = Preprocessing(224, 256), Preprocessing(32, 32)
    assert [p.resize for p in crops(usual, 160)] == [183, 160, 219]
    assert [p.resize for p in crops(usual, 224)] == [256, 224, 288]
    assert [p.resize for p in crops(whole, 32)] == [32, 36]
    assert [p.resize for p in crops(whole, 28)] == [28, 30, 36]
    assert [p.resize for p in crops(whole, 24)] == [24, 28]
    assert crops(usual, 160)[0] == replace(usual, size=160, resize=183)


# -- the rule ---------------------------------------------------------------------------------

Form = tuple[str, int, int]  # precision, size, resize
AT = {  # sizes up to 12 of 14 pixels, with their crops in the order they are measured
    6: [(6, 7), (6, 6), (6, 10)],
    8: [(8, 9), (8, 8), (8, 11)],
    9: [(9, 10), (9, 9), (9, 12)],
    10: [(10, 12), (10, 10), (10, 13)],
    12: [(12, 12), (12, 16)],  # the third is the reference
}
ALL = [form for crops_of_size in AT.values() for form in crops_of_size]


class World:
    """Speeds and accuracies that a test decides, of the forms of one engine."""

    def __init__(self) -> None:
        self.seconds: Callable[[str, int], float] = lambda precision, size: size / 100
        self.wrong: dict[Form, int] = {}  # of 100 images; those not named have 20
        self.measured: list[Form] = []


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """A hundred and twenty images, and a network of which only speed and accuracy are known."""
    world = World()
    built: dict[int, tuple[str, int]] = {}
    kept: list[Session] = []  # the id of a deleted object is given to another
    session, timed = EngineBuilder.session, Search.seconds

    def tagged(self: EngineBuilder, form: EngineConfig, kind: Any = "images") -> Session:
        made = session(self, form, kind)
        built[id(made)] = form.precision, self.size
        kept.append(made)
        return made

    def seconds(self: Search, run: Session) -> float:
        precision, size = built.get(id(run), ("plain", self.builder.size))
        timed(self, run)
        return world.seconds(precision, size)

    def outputs(self: FrontierSearch, run: Session, preprocessing: Preprocessing) -> Any:
        precision, _ = built.get(id(run), ("plain", 0))
        form = precision, preprocessing.size, preprocessing.resize
        world.measured.append(form)
        targets = np.arange(100) % 4
        logits = 4 * np.eye(4, dtype=np.float32)[targets]
        logits[: world.wrong.get(form, 20)] *= -1
        return logits, targets

    monkeypatch.setattr(EngineBuilder, "session", tagged)
    monkeypatch.setattr(Search, "seconds", seconds)
    monkeypatch.setattr(FrontierSearch, "outputs", outputs)
    return world


@pytest.fixture
def calibrating(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Gives torch an int8 that computes in fp32; what it was calibrated with."""
    calibrating: list[np.ndarray] = []
    build = Torch.build

    def quantize(
        self: Torch, source: EngineBuilder, width: int, some: np.ndarray, accuracy: Any = None
    ) -> None:
        assert accuracy is None  # layers must not be chosen by accuracy
        assert some.shape[1:] == (3, source.size, source.size)
        calibrating.append(some)

    def in_floats(self: Torch, source: EngineBuilder, form: EngineConfig, kind: Any) -> Session:
        return build(self, source, replace(form, precision="fp32"), kind)

    monkeypatch.setattr(Torch, "quantize", quantize)
    monkeypatch.setattr(Torch, "precisions", lambda self, device: ("fp32", "int8"))
    monkeypatch.setattr(Torch, "build", in_floats)
    return calibrating


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A hundred and twenty pictures in four classes."""
    return pictures(tmp_path / "many", 30)


def chosen(plan: Plan) -> Form:
    """What the plan says to run, in the one row that was chosen and in its own fields."""
    assert plan.tradeoff is not None
    (row,) = [row for row in plan.tradeoff.rows if row.verdict == "chosen"]
    assert plan.tradeoff.chosen == row
    assert (row.form, row.size, row.resize) == (plan.form, plan.size, plan.tradeoff.resize)
    return plan.form.precision, plan.size, plan.tradeoff.resize


@pytest.mark.parametrize(
    ("wrong", "max_loss", "wanted", "measured"),
    [
        # the fastest is inside: only its crops are measured; the most accurate one is taken
        ({}, 0.5, (6, 7), AT[6]),
        ({(6, 7): 21}, 0.5, (6, 6), AT[6]),
        ({(6, 10): 19}, 0.5, (6, 10), AT[6]),
        ({(6, 7): 21, (6, 6): 20, (6, 10): 21}, 1, (6, 6), AT[6]),
        # exactly at the bound is inside, one image more is not
        (
            dict.fromkeys(AT[6], 23) | {(8, 9): 22, (8, 8): 23, (8, 11): 23},
            2,
            (8, 9),
            AT[6] + AT[8],
        ),
        # a larger image may be more accurate; still the faster one is taken
        (dict.fromkeys(AT[6], 22) | dict.fromkeys(AT[8], 0), 2, (6, 7), AT[6]),
        # full size in another crop is as fast, and more accurate
        (dict.fromkeys(ALL, 21) | {(12, 16): 19}, 0.99, (12, 16), ALL),
        # nothing smaller is inside: full size, and every other form was measured
        (dict.fromkeys(ALL, 21), 0.99, (12, 14), ALL),
    ],
)
def test_the_fastest_inside_the_bound(
    wrong: dict[tuple[int, int], int],
    max_loss: float,
    wanted: tuple[int, int],
    measured: list[tuple[int, int]],
    world: World,
    network: ResNeXt,
    many: Path,
) -> None:
    """Accuracy is measured from the fastest form down, and not for slower ones."""
    world.wrong = {("fp32", *form): count for form, count in wrong.items()}
    quick = optimize(network, data=many, max_loss=max_loss, **PLAIN)
    assert chosen(quick.plan) == ("fp32", *wanted)
    reference, *others = world.measured
    assert reference == ("fp32", 12, 14)
    assert others == [("fp32", *form) for form in measured]
    tradeoff = quick.plan.tradeoff
    assert tradeoff is not None
    assert (tradeoff.max_loss, tradeoff.deciding, tradeoff.calibrating) == (max_loss, 100, 30)
    assert len(tradeoff.rows) == 15
    assert tradeoff.reference.size == 12
    assert tradeoff.reference.accuracy == pytest.approx(0.8)
    by_form = {(row.size, row.resize): row for row in tradeoff.rows}
    for size, resize in measured:
        row, loss = by_form[size, resize], wrong.get((size, resize), 20) - 20
        assert row.loss == pytest.approx(loss / 100)
        assert (loss > max_loss) == row.verdict.startswith("loses more than")
    slower = [row for row in tradeoff.rows if row.verdict == "slower"]
    assert all(row.accuracy is None for row in slower)
    assert len(slower) + len(measured) == 14


def test_eight_bits_and_sizes_together(
    world: World, network: ResNeXt, many: Path, calibrating: list[np.ndarray]
) -> None:
    """int8 is timed with few images, and calibrated with all only where it is measured."""
    world.seconds = lambda precision, size: size / (200 if precision == "int8" else 100)
    world.wrong = {("int8", *form): 30 for form in AT[6]} | {("int8", 8, 9): 21}
    quick = optimize(network, data=many, max_loss=0.5, batch=BATCH, engine="torch")
    assert chosen(quick.plan) == ("int8", 8, 8)
    assert world.measured[1:] == [("int8", *form) for form in AT[6] + AT[8]]
    shapes = [(len(some), some.shape[-1]) for some in calibrating]
    assert shapes == [(8, 12), (8, 6), (8, 8), (8, 9), (8, 10), (30, 6), (30, 8)]


def test_eight_bits_that_are_slow(
    world: World, network: ResNeXt, many: Path, calibrating: list[np.ndarray]
) -> None:
    """Quantizing at every size takes minutes; fp32 is faster and more accurate at each."""
    world.seconds = lambda precision, size: size / (99 if precision == "int8" else 100)
    quick = optimize(network, data=many, max_loss=0.5, batch=BATCH, engine="torch")
    assert chosen(quick.plan) == ("fp32", 6, 7)
    assert {some.shape[-1] for some in calibrating} == {12}


@pytest.mark.usefixtures("calibrating")
def test_eight_bits_only(world: World, network: ResNeXt, many: Path) -> None:
    """The network itself is what losses are relative to, and no fallback."""
    asked: dict[str, Any] = {"data": many, "batch": BATCH, "engine": "torch", "precision": "int8"}
    world.wrong = {("int8", 12, 14): 20}
    quick = optimize(network, max_loss=0, **asked)
    assert chosen(quick.plan)[0] == "int8"
    assert world.measured[0] == ("plain", 12, 14)
    assert quick.plan.tradeoff is not None
    assert quick.plan.tradeoff.reference.form is None
    world.wrong = {("int8", *form): 25 for form in [*ALL, (12, 14)]}
    with pytest.raises(InputError, match=r"at most 4.5 points of accuracy; the best loses 5\.00"):
        optimize(network, max_loss=4.5, **asked)


def test_forms_that_fail_at_a_size(
    world: World, network: ResNeXt, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine without a kernel for a size must not end the search of the others."""
    tagged = EngineBuilder.session

    def fail(self: EngineBuilder, form: EngineConfig, kind: Any = "images") -> Session:
        if self.size == 6:
            raise RuntimeError("no kernel for 6 pixels")
        return tagged(self, form, kind)

    monkeypatch.setattr(EngineBuilder, "session", fail)
    quick = optimize(network, data=many, max_loss=0.5, **PLAIN)
    assert chosen(quick.plan) == ("fp32", 8, 9)
    assert "no kernel for 6 pixels" in quick.explain()


def test_logits_that_are_not_finite_are_refused(
    world: World, network: ResNeXt, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class with the highest logit may be right by chance."""
    usual = FrontierSearch.outputs

    def outputs(self: FrontierSearch, run: Session, preprocessing: Preprocessing) -> Any:
        logits, targets = usual(self, run, preprocessing)
        if preprocessing.size < 9:
            logits[-1, 0] = -np.inf
        return logits, targets

    monkeypatch.setattr(FrontierSearch, "outputs", outputs)
    quick = optimize(network, data=many, max_loss=50, **PLAIN)
    assert chosen(quick.plan) == ("fp32", 9, 10)
    assert "refused: logits are not finite" in quick.explain()


# -- confidences ------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [(6, 7), (12, 16)])
@pytest.mark.parametrize("threshold", [None, 0.9])
def test_confidences_are_fitted_again(
    threshold: float | None, crop: tuple[int, int], world: World, many: Path
) -> None:
    """The card's temperature was fitted to logits at another size, or of another crop."""
    network = tiny_network(CONFIG, replace(CARD, temperature=3.0, threshold=threshold))
    world.wrong = {("fp32", *form): 22 for form in ALL if form != crop} | {("fp32", 12, 14): 21}
    quick = optimize(network, data=many, max_loss=0.5, **PLAIN)
    targets = np.arange(100) % 4
    logits = 4 * np.eye(4)[targets]
    logits[:20] *= -1
    wanted = fit_temperature(logits, targets)
    assert wanted != pytest.approx(3.0, rel=0.1)
    card = quick.card
    assert card is not None
    assert card.temperature == pytest.approx(wanted)
    p = np.exp(4 / wanted) / (np.exp(4 / wanted) + 3)
    assert card.threshold == (None if threshold is None else pytest.approx(p))
    assert card.preprocessing == replace(CARD.preprocessing, size=crop[0], resize=crop[1])
    assert network.card == replace(CARD, temperature=3.0, threshold=threshold)


def test_confidences_of_full_size_are_kept(world: World, many: Path) -> None:
    """They were fitted to exactly these logits, on more images."""
    network = tiny_network(CONFIG, replace(CARD, temperature=3.0, threshold=0.4))
    world.seconds = lambda precision, size: 1 / size
    quick = optimize(network, data=many, max_loss=0.5, **PLAIN)
    assert chosen(quick.plan) == ("fp32", 12, 14)
    assert quick.card == network.card


# -- with real networks and images ------------------------------------------------------------


@pytest.fixture
def small(
    network: ResNeXt, file: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Optimized, ResNeXt]:
    """The file with a plan for smaller images, and an oracle: the network with the plan's card."""
    monkeypatch.setattr(Search, "seconds", lambda self, run: self.builder.size / 100)
    quick = optimize(file, data=many, max_loss=99, **PLAIN)
    assert chosen(quick.plan)[1] == 6
    quick.save_plan(file)
    network.card = quick.card
    return quick, network


def test_predict_and_evaluate_use_the_plans_images(
    small: tuple[Optimized, ResNeXt], file: Path, many: Path, tmp_path: Path
) -> None:
    """With images of full size, the plan's engine fails or gives other answers."""
    quick, oracle = small
    wanted = resnext.predict(oracle, many, top=4, device="cpu")
    for model in (quick, file):
        for got, right in zip(resnext.predict(model, many, top=4), wanted, strict=True):
            assert (got.name, got.labels) == (right.name, right.labels)
            assert got.probabilities == pytest.approx(right.probabilities, rel=1e-4)
        measured = resnext.evaluate(model, many)
        assert measured.nll == pytest.approx(resnext.evaluate(oracle, many).nll, rel=1e-4)
    full = resnext.predict(file, many, plan=False)
    assert [p.probabilities for p in full] != [p.probabilities for p in wanted]
    predict_files(open_runner(file), many, tmp_path / "p.csv")
    predict_files(open_runner(oracle, device="cpu"), many, tmp_path / "w.csv")
    columns = [
        [line.split(",")[2] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("p.csv", "w.csv")
    ]
    assert columns[0] == columns[1]


def test_the_accuracy_is_that_of_evaluate(
    network: ResNeXt, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured by another path, on the same images: all but those that calibrate."""
    monkeypatch.setattr(Search, "seconds", lambda self, run: 12 / self.builder.size)
    calibrating: list[bytes] = []
    search = FrontierSearch.search

    def spy(self: FrontierSearch, preprocessing: Preprocessing) -> Search:
        found = search(self, preprocessing)
        if preprocessing.size == SIZE:
            calibrating.extend(x.tobytes() for x in found.examples.images)
        return found

    monkeypatch.setattr(FrontierSearch, "search", spy)
    plan = optimize(network, data=many, max_loss=0, **PLAIN).plan
    assert plan.tradeoff is not None
    whole = resnext.evaluate(network, many, device="cpu")
    dataset = open_for_evaluation(many, CARD.labels, {})
    loader = eval_loader(dataset, CARD.preprocessing, batch_size=1, workers=0)
    others = [x.numpy()[0].tobytes() not in calibrating for x, _ in loader]
    assert (len(calibrating), sum(others)) == (30, 90)
    assert plan.tradeoff.reference.accuracy == pytest.approx(whole.right[others].mean())
    low, high = plan.tradeoff.reference.interval or (1.0, 0.0)
    assert low < whole.right[others].mean() < high


def test_images_that_calibrate_do_not_decide(
    network: ResNeXt,
    many: Path,
    calibrating: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """int8 looked better than it is on images whose ranges it knows."""
    deciding: list[np.ndarray] = []
    batches = FrontierSearch.batches

    def spy(self: FrontierSearch, preprocessing: Preprocessing, indices: Any) -> Any:
        for x, targets in batches(self, preprocessing, indices):
            if indices is self.deciding:
                deciding.append(x)
            yield x, targets

    monkeypatch.setattr(FrontierSearch, "batches", spy)
    optimize(network, data=many, batch=BATCH, max_loss=99, engine="torch", precision="int8")
    known = {one.tobytes() for some in calibrating for one in some}
    asked = {one.tobytes() for some in deciding for one in some}
    assert len(known) >= 30
    assert len(asked) >= 90
    assert not known & asked


def test_images_of_full_size_are_refused(small: tuple[Optimized, ResNeXt]) -> None:
    """Python code that prepares images itself would get logits with another temperature."""
    quick, _ = small
    for call in (quick, quick.embed):
        with pytest.raises(InputError, match=r"\(n, 3, 6, 6\).*card\.preprocessing"):
            call(images(2))
    with pytest.raises(InputError, match=r"\(n, 6, 6, 3\).*card\.preprocessing"):
        quick.pixels(np.zeros((2, SIZE, SIZE, 3), np.uint8))
    assert quick(images(2, size=6)).shape == (2, 4)


def test_results_are_cached(
    small: tuple[Optimized, ResNeXt], file: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the bound too: with another one, another form may be the fastest."""
    quick, oracle = small
    monkeypatch.setattr(Search, "measure", lambda *_: pytest.fail("timed again"))
    again = optimize(file, data=many, max_loss=99.0, **PLAIN)
    assert (again.plan, again.card) == (quick.plan, oracle.card)
    assert again.explain() == quick.explain()
    for bound in (98, None):
        with pytest.raises(pytest.fail.Exception, match="timed again"):
            optimize(file, data=many, max_loss=bound, **PLAIN)


def replaced(photos: Path) -> None:
    Image.new("RGB", (20, 20)).save(photos / "ant" / "0.png")


def relabelled(photos: Path) -> None:
    (photos / "ant" / "0.png").rename(photos / "bee" / "a.png")


def removed(photos: Path) -> None:
    (photos / "ant" / "0.png").unlink()


@pytest.mark.parametrize(
    ("change", "bound"), [(replaced, 99.0), (relabelled, 99.0), (removed, None)]
)
def test_other_images_in_the_same_folder_are_measured(
    file: Path,
    many: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    bound: float | None,
) -> None:
    """A plan was looked up by the name of the folder, also after its labels were corrected."""
    monkeypatch.setattr(Search, "seconds", lambda self, run: self.builder.size / 100)
    optimize(file, data=many, max_loss=bound, **PLAIN)
    change(many)
    monkeypatch.setattr(Search, "measure", lambda *_: pytest.fail("timed again"))
    with pytest.raises(pytest.fail.Exception, match="timed again"):
        optimize(file, data=many, max_loss=bound, **PLAIN)


def test_later_plans_replace_it(small: tuple[Optimized, ResNeXt], file: Path) -> None:
    """With both, one image would be predicted at full size and nine of them smaller."""
    quick, _ = small
    optimize(file, **{**PLAIN, "batch": 1}).save_plan(file)
    (kept,) = read_plans(plan_path(file))
    assert (kept.batch, kept.tradeoff, kept.size) == (1, None, SIZE)
    save_beside(file, replace(kept, batch=64))
    save_beside(file, replace(kept, machine="Abacus"))
    quick.save_plan(file)
    plans = read_plans(plan_path(file))
    assert [(p.machine == quick.plan.machine, p.size) for p in plans] == [(False, SIZE), (True, 6)]


def test_an_interrupted_table_is_not_continued(
    small: tuple[Optimized, ResNeXt], file: Path
) -> None:
    """Half of it would be from images of another size, or in another precision."""
    quick, _ = small
    plan = quick.plan
    assert plan.tradeoff is not None
    form = plan.form
    others = [
        plan,
        replace(plan, tradeoff=None),
        replace(plan, size=8),
        replace(plan, tradeoff=replace(plan.tradeoff, resize=6)),
        replace(plan, form=replace(form, engine="openvino")),
        replace(plan, form=replace(form, precision="bf16")),
        replace(plan, form=replace(form, precision="int8")),
        replace(plan, form=replace(form, precision="int8"), request="other images"),
        replace(plan, form=replace(form, piece=1)),
    ]
    prints = {Optimized(p, CARD, CONFIG, tiny_network).fingerprint for p in others}
    assert len(prints) == len(others)


def test_ray_does_not_use_it(small: tuple[Optimized, ResNeXt], file: Path) -> None:
    """Machines without the plan would predict the same image differently."""
    assert _open(str(file), True).card == CARD
    optimize(file, **PLAIN).save_plan(file)
    assert isinstance(_open(str(file), True), Optimized)


def test_unreadable_images_are_left_out(network: ResNeXt, many: Path) -> None:
    """At every size the same ones; a file that vanishes in between is an error."""
    for i in range(0, 30, 2):
        (many / "cat" / f"{i}.png").write_text("not an image")
    plan = optimize(network, data=many, max_loss=99, **PLAIN).plan
    assert plan.tradeoff is not None
    assert plan.tradeoff.deciding + plan.tradeoff.calibrating == 105
    assert all(row.loss is not None for row in plan.tradeoff.rows if row.verdict == "chosen")


def test_images_that_change_meanwhile(
    network: ResNeXt, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of predictions would be of different images."""
    usual = FrontierSearch.measure_reference

    def vanish(self: FrontierSearch, *arguments: Any) -> None:
        usual(self, *arguments)
        for picture in (many / "cat").iterdir():
            picture.unlink()

    monkeypatch.setattr(FrontierSearch, "measure_reference", vanish)
    monkeypatch.setattr(Search, "seconds", lambda self, run: self.builder.size / 100)
    with pytest.raises(DataError, match="has changed while it was read"):
        optimize(network, data=many, max_loss=99, **PLAIN)


def test_few_images(network: ResNeXt, tmp_path: Path) -> None:
    """Two are enough to run, one is not; nothing is divided by zero."""
    folder = tmp_path / "few" / "ant"
    folder.mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(folder / "0.png")
    with pytest.raises(DataError, match="no image that can be read"):
        optimize(network, data=tmp_path / "few", max_loss=1, **PLAIN)
    Image.new("RGB", (20, 20), "red").save(folder / "1.png")
    plan = optimize(network, data=tmp_path / "few", max_loss=1, **PLAIN).plan
    assert plan.tradeoff is not None
    assert (plan.tradeoff.deciding, plan.tradeoff.calibrating) == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_loss": 1}, "give data"),
        ({"max_loss": -0.5, "data": "photos"}, "from 0 to less than 100.*not -0.5"),
        ({"max_loss": 100, "data": "photos"}, "less than 100 percentage points, not 100"),
        ({"max_loss": float("nan"), "data": "photos"}, "not nan"),
        ({"max_loss": True, "data": "photos"}, "not True"),
        ({"max_loss": "1", "data": "photos"}, "not '1'"),
    ],
)
def test_bounds_that_are_refused(network: ResNeXt, options: Any, message: str) -> None:
    """At once, not after minutes of timing."""
    with pytest.raises(InputError, match=message):
        optimize(network, **options)


def test_the_command(
    file: Path,
    many: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both tables are printed, and predict says which images it uses."""
    monkeypatch.setattr(Search, "seconds", lambda self, run: self.builder.size / 100)
    asked = ("optimize", file, "--engine", "torch", "--precision", "fp32", "--max-loss", "99")
    code, out, err = run_cli(capfd, monkeypatch, *asked)
    assert (code, out) == (2, "")
    assert err == ("resnext: --max-loss needs --data: labelled images to measure accuracy on.\n")
    assert not plan_path(file).exists()
    code, out, err = run_cli(capfd, monkeypatch, *asked, "--data", many)
    assert code == 0, err
    assert "at most 99 points of accuracy less than the last row, on 90 images" in out
    assert out.count("chosen") == 1
    (plan,) = read_plans(plan_path(file))
    assert plan.size == 6
    code, out, err = run_cli(capfd, monkeypatch, "predict", file, many / "ant")
    assert code == 0, err
    assert "torch, fp32, images of 6×6 pixels: accuracy" in " ".join(err.split())
    code, out, err = run_cli(capfd, monkeypatch, "optimize", file, "--engine", "torch")
    assert code == 0, err
    assert read_plans(plan_path(file))[0].tradeoff is None


# -- the table --------------------------------------------------------------------------------


def test_the_table_of_the_frontier(small: tuple[Optimized, ResNeXt]) -> None:
    """Speed is relative to the reference, and a wide interval is pointed out."""
    quick, _ = small
    form = quick.plan.form
    rows = (
        FrontierRow(form, 6, 7, 20.0, "chosen", 0.875, (0.8, 0.95), 0.0025, (-0.01, 0.0125)),
        FrontierRow(form, 12, 14, 8.0, "reference", 0.8775, (0.805, 0.95), 0.0),
    )
    tradeoff = Tradeoff(0.5, 7, 1.0, None, "photos", 1234, 256, rows)

    def lines(plan: Plan) -> list[str]:
        text = Optimized(plan, CARD, CONFIG, tiny_network).explain()
        return [" ".join(line.split()) for line in text.splitlines()]

    shown = lines(replace(quick.plan, tradeoff=tradeoff))
    assert (
        "PyTorch fp32 6 7 20.0 2.50 200.0 87.50% 80.00 to 95.00 0.25 -1.00 to 1.25 chosen" in shown
    )
    assert "PyTorch fp32 12 14 8.0 1.00 500.0 87.75% 80.50 to 95.00 0.00 reference" in shown
    assert any("may reach 1.25 points" in line for line in shown)
    assert shown[0].endswith(f"4 images of {SIZE}×{SIZE} pixels")
    calm = replace(tradeoff, max_loss=1.25)
    assert not any("may reach" in line for line in lines(replace(quick.plan, tradeoff=calm)))


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": 0},
        {"resize": "7"},
        {"temperature": 0},
        {"threshold": 2},
        {"max_loss": "much"},
        {"max_loss": -1},
        {"rows": ()},
    ],
    ids=str,
)
def test_damaged_plans_are_not_used(
    small: tuple[Optimized, ResNeXt], file: Path, changes: dict[str, Any]
) -> None:
    """A size of text would only fail while images are prepared."""
    plan = small[0].plan
    assert plan.tradeoff is not None
    save_beside(file, replace(plan, tradeoff=replace(plan.tradeoff, **changes)))
    runner = open_runner(file, device="cpu")
    assert not isinstance(runner, Optimized)
    assert runner.card == CARD
