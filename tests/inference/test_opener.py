"""What opens a model: every way in, and that nothing is changed or hidden on the way."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import agree, photo_folder, tiny_network

from resnext import Backbone, Card, Preprocessing, ResNeXt, evaluate, predict, save
from resnext.errors import CheckpointError, InputError
from resnext.evaluation import compare
from resnext.inference import opener
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import EngineConfig
from resnext.inference.engines.torch import TorchRunner
from resnext.inference.opener import evaluation_mode, open_model, open_planned, open_runner
from resnext.inference.optimized import Optimized
from resnext.inference.plan import Plan, machine_id, save_beside, write_plans

pytestmark = pytest.mark.usefixtures("one_thread")
CARD = Card(("ant", "bee", "cat", "dog"), Preprocessing(12, 14))


@pytest.fixture
def network() -> ResNeXt:
    """A network with labels."""
    return tiny_network(card=CARD)


@pytest.fixture
def file(tmp_path: Path, network: ResNeXt) -> Path:
    """A model file without a plan."""
    save(network, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def plan(batch: int = 16, **changes: Any) -> Plan:
    """A plan for this machine that runs in torch."""
    values: dict[str, Any] = {
        "model": "0" * 64,
        "form": EngineConfig("torch"),
        "batch": batch,
        "size": 12,
        "device": "cpu",
        "request": "",
        "machine": machine_id("cpu"),
        "version": ENGINES["torch"].version,
        "rows": (),
    }
    return Plan(**values | changes)


class Other:
    """A runner of some other kind."""

    card = CARD
    config = tiny_network().config
    batch = 3

    def pixels(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nothing anybody asks for here."""
        raise NotImplementedError


def images() -> torch.Tensor:
    """Three random images."""
    return torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))


# -- what comes out ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_without_a_plan_is_a_network(file: Path, network: ResNeXt, kind: Any) -> None:
    """With the weights of the file, ready to use: in evaluation mode, on the device."""
    opened = open_model(kind(file), device="cpu")
    assert isinstance(opened, ResNeXt)
    assert not any(module.training for module in opened.modules())
    agree(opened(images()), network(images()))
    runner = open_runner(kind(file), device="cpu")
    assert isinstance(runner, TorchRunner)
    assert (runner.card, runner.config) == (CARD, network.config)


@pytest.mark.parametrize("open_it", [open_model, open_runner])
def test_a_plan_is_used_unless_told_not_to(file: Path, open_it: Any) -> None:
    """`--no-plan` is how one finds out whether a plan is to blame."""
    save_beside(file, plan())
    opened = open_it(file)
    assert isinstance(opened, Optimized)
    assert (opened.card, opened.plan.form) == (CARD, EngineConfig("torch"))
    assert isinstance(open_it(file, device="cpu"), Optimized)
    assert not isinstance(open_it(file, plan=False), Optimized)


def test_a_plan_computes_what_the_network_does(file: Path, network: ResNeXt) -> None:
    """The file is read only when the engine is built, and it must be the right one."""
    save_beside(file, plan())
    opened = open_model(file)
    assert isinstance(opened, Optimized)
    agree(opened(images()), network(images()))


def test_the_plan_of_the_nearest_batch_is_used(file: Path) -> None:
    """Batches of 64 by a plan for single images take several times as long."""
    for batch in (1, 16, 200):
        save_beside(file, plan(batch))
    for wanted, used in ((1, 1), (3, 1), (17, 16), (64, 16), (199, 200)):
        for runner in (open_runner(file, batch=wanted), open_model(file, batch=wanted)):
            assert isinstance(runner, Optimized)
            assert runner.batch == used
    by_default = open_runner(file)
    assert by_default.batch == 16
    assert open_planned(file, "auto", 190, False).batch == 200  # pyright: ignore


@pytest.mark.parametrize(
    ("made_for", "device", "used"),
    [("cpu", "auto", True), ("cpu", "cpu", True), ("cuda", "cpu", False)],
)
def test_a_plan_for_another_device_is_not_used(
    file: Path, made_for: str, device: str, used: bool
) -> None:
    """Asked for the processor, a GPU must stay free."""
    save_beside(file, plan(device=made_for))
    assert isinstance(open_runner(file, device=device), Optimized) == used
    assert (open_planned(file, device, 1, False) is not None) == used


@pytest.mark.parametrize("open_it", [open_model, open_runner])
def test_a_plan_for_the_processor_is_not_used_on_a_gpu(
    file: Path, open_it: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for a GPU, a model must not run on the processor because a plan was made for that."""
    save_beside(file, plan())
    monkeypatch.setattr("resnext.system.device.pick_device", lambda name: torch.device("cpu"))
    assert open_planned(file, "cuda", 16, False) is None
    assert not isinstance(open_it(file, device="cuda"), Optimized)


def test_a_plan_for_another_machine_is_not_used_and_the_reason_is_shown(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Silence would leave people with a slow model and a plan beside it."""
    save_beside(file, plan(machine="Abacus"))
    assert isinstance(open_runner(file, device="cpu", progress=True), TorchRunner)
    assert "it was made for Abacus" in " ".join(capfd.readouterr().err.split())
    open_runner(file, device="cpu")
    assert capfd.readouterr().err == ""


def test_the_choice_of_plan_is_shown_once(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Precision is not what the file holds; without `progress` nothing is printed."""
    save_beside(file, plan(form=EngineConfig("torch", "bf16")))
    open_runner(file, progress=True)
    shown = " ".join(capfd.readouterr().err.split())
    assert shown.endswith("a.plan.json: torch, bf16")
    open_runner(file)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("machine", [machine_id("cpu"), "Abacus"])
def test_progress_ends(file: Path, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar that is not stopped garbles the terminal."""
    calls: list[str] = []

    class Keeps:
        def line(self, text: str) -> None:
            calls.append("line")

        def stop(self) -> None:
            calls.append("stop")

    monkeypatch.setattr(opener, "reporter", lambda show: Keeps())
    save_beside(file, plan(machine=machine))
    open_planned(file, "auto", 16, True)
    assert calls == ["line", "stop"]


def test_without_a_plan_nothing_is_said_of_one(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Most models have none."""
    open_runner(file, device="cpu", progress=True)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("progress", [False, True])
def test_downloads_are_shown_on_request(
    network: ResNeXt, progress: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gigabyte takes minutes; a script may want silence."""
    calls: list[Any] = []

    def load(source: Any, **options: Any) -> ResNeXt:
        calls.append((source, options))
        return network

    monkeypatch.setattr("resnext.weights.load.load_classifier", load)
    open_model("some-name", device="cpu", progress=progress)
    assert calls == [("some-name", {"progress": progress})]


@pytest.mark.parametrize("open_it", [open_model, open_runner])
def test_a_runner_is_passed_through(open_it: Any, file: Path) -> None:
    """Whatever computes it, it is ready: a second wrapper would only cost time."""
    save_beside(file, plan())
    for runner in (Other(), open_runner(file), open_runner(file, plan=False)):
        assert open_it(runner, device="not looked at") is runner


def test_a_network_is_passed_through(network: ResNeXt) -> None:
    """Copied, it would take its memory twice."""
    assert open_model(network, device="cpu") is network
    runner = open_runner(network, device="cpu")
    assert isinstance(runner, TorchRunner)
    assert runner.card is CARD
    x = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    before = runner.pixels(x)[0]
    with torch.no_grad():
        network.fc.bias.add_(1)
    np.testing.assert_allclose(runner.pixels(x)[0], before + 1, rtol=1e-5)


@pytest.mark.parametrize("open_it", [open_model, open_runner])
def test_a_network_computes_in_evaluation_mode(network: ResNeXt, open_it: Any) -> None:
    """Batch statistics would make an answer depend on the other images."""
    open_it(network.train(), device="cpu")
    assert not any(module.training for module in network.modules())


def test_a_network_goes_to_the_device(network: ResNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is the one asked for, checked before a file of gigabytes is read."""
    asked: list[str] = []
    moved: list[Any] = []

    def pick(name: str) -> torch.device:
        asked.append(name)
        return torch.device("cpu")

    to = ResNeXt.to
    monkeypatch.setattr("resnext.system.device.pick_device", pick)
    monkeypatch.setattr(ResNeXt, "to", lambda self, *a: (moved.append(a), to(self, *a))[1])
    open_model(network, device="cuda:7")
    open_runner(network, device="cuda:8")
    assert asked == ["cuda:7", "cuda:8"]
    assert moved == [(torch.device("cpu"),)] * 2


def test_names_are_loaded(network: ResNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name has no plan; whether the download is shown is the caller's choice."""
    calls: list[Any] = []

    def load(source: Any, progress: bool) -> ResNeXt:
        calls.append((source, progress))
        return network

    monkeypatch.setattr(opener, "_load", load)
    assert open_model("resnext50_32x4d.a1_in1k", device="cpu", progress=True) is network
    open_runner("hf://owner/repo", device="cpu")
    assert calls == [("resnext50_32x4d.a1_in1k", True), ("hf://owner/repo", False)]


def test_files_of_other_libraries_can_have_a_plan(tmp_path: Path, network: ResNeXt) -> None:
    """Their config is not in a header, so the network is built to know it."""
    path = tmp_path / "a.pth"
    torch.save({"state_dict": network.state_dict(), "meta": {"CLASSES": CARD.labels}}, path)
    save_beside(path, plan())
    opened = open_model(path)
    assert isinstance(opened, Optimized)
    assert opened.card is not None
    assert opened.card.labels == CARD.labels
    assert opened.config == network.config
    agree(opened(images()), network(images()))


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("open_it", [open_model, open_runner])
@pytest.mark.parametrize("model", [None, 7, Backbone(Other.config), torch.nn.ReLU()], ids=type)
def test_what_is_not_a_model_is_named(open_it: Any, model: Any) -> None:
    """A detector's checkpoint loads as a `Backbone`, which failed deep inside with `fc`."""
    with pytest.raises(
        InputError, match=rf"must be a ResNeXt with a classifier.*, not {type(model).__name__}\."
    ):
        open_it(model, device="cpu")


@pytest.mark.parametrize("open_it", [open_model, open_runner])
def test_a_device_that_does_not_exist(
    file: Path, network: ResNeXt, open_it: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before anything is read, moved or changed."""
    with pytest.raises(InputError, match="'toaster' cannot be used"):
        open_it(network.train(), device="toaster")
    assert network.training
    monkeypatch.setattr(opener, "_load", lambda *_: pytest.fail("the file was read"))
    with pytest.raises(InputError, match="'toaster' cannot be used"):
        open_it(file, device="toaster")


@pytest.mark.parametrize("card", [None, Card(), Card(preprocessing=CARD.preprocessing)])
def test_a_model_without_labels(card: Card | None, tmp_path: Path) -> None:
    """A runner answers with names. A network need not have any: its card may come later."""
    network = tiny_network(card=card)
    with pytest.raises(InputError, match="no labels"):
        open_runner(network, device="cpu")
    assert open_model(network, device="cpu") is network
    save(network, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no labels"):
        open_runner(tmp_path / "a.safetensors", device="cpu")


@pytest.mark.parametrize("open_it", [open_model, open_runner])
def test_files_that_cannot_be_opened(open_it: Any, tmp_path: Path) -> None:
    """Missing, damaged, without a classifier: each in one line."""
    with pytest.raises(CheckpointError, match="does not exist"):
        open_it(tmp_path / "missing.safetensors", device="cpu")
    (tmp_path / "notes.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"notes\.pth"):
        open_it(tmp_path / "notes.pth", device="cpu")
    state = tiny_network().state_dict()
    trunk = {f"backbone.{k}": v for k, v in state.items() if not k.startswith("fc.")}
    torch.save(trunk, tmp_path / "trunk.pth")
    with pytest.raises(CheckpointError, match="no classifier"):
        open_it(tmp_path / "trunk.pth", device="cpu")


def test_names_and_folders_have_no_plan(tmp_path: Path) -> None:
    """A folder of weights can lie beside the plan of a file of nearly the same name."""
    (tmp_path / "pets").mkdir()
    write_plans(tmp_path / "pets.plan.json", [plan()])
    for source in (tmp_path / "pets", "pets", tmp_path / "missing.safetensors", ""):
        assert open_planned(source, "auto", 1, False) is None


# -- evaluation mode --------------------------------------------------------------------------


def test_evaluation_mode_is_taken_back(network: ResNeXt) -> None:
    """Of every module: frozen parts of a network in training stay frozen, even after an error."""
    network.train()
    network.get_submodule("layer1").eval()
    modes = {name: module.training for name, module in network.named_modules()}
    with evaluation_mode(network):
        assert not any(module.training for module in network.modules())
    assert {name: module.training for name, module in network.named_modules()} == modes
    with pytest.raises(RuntimeError, match="broken"), evaluation_mode(network):
        raise RuntimeError("broken")
    assert {name: module.training for name, module in network.named_modules()} == modes


def test_evaluation_mode_survives_opening(network: ResNeXt) -> None:
    """Opening sets evaluation mode too, and must not make it the mode to go back to."""
    network.train()
    with evaluation_mode(network):
        open_runner(network, device="cpu")
    assert all(module.training for module in network.modules())


def modes_of(network: torch.nn.Module) -> dict[str, bool]:
    """The mode of each module."""
    return {name: module.training for name, module in network.named_modules()}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_evaluation_modes_that_overlap(network: ResNeXt, order: tuple[int, ...]) -> None:
    """The second to enter took evaluation for the network's own mode, and left it behind."""
    network.train()
    network.get_submodule("layer1").eval()
    modes = modes_of(network)
    contexts = [evaluation_mode(network) for _ in order]
    for context in contexts:
        context.__enter__()
    for number in order:
        assert not any(modes_of(network).values())
        contexts[number].__exit__(None, None, None)
    assert modes_of(network) == modes
    with evaluation_mode(network.eval()):
        pass
    assert not any(modes_of(network).values())


def test_evaluation_mode_of_shared_modules(network: ResNeXt) -> None:
    """A layer in two networks stays in evaluation mode until both are done with it."""
    shared, other = network.get_submodule("layer1"), torch.nn.Sequential()
    other.append(shared)
    network.train()
    first, second = evaluation_mode(network), evaluation_mode(other)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert network.training
    assert not any(modes_of(shared).values())
    second.__exit__(None, None, None)
    assert all((*modes_of(network).values(), *modes_of(other).values()))


def test_threads_restore_the_mode(network: ResNeXt, tmp_path: Path) -> None:
    """Threads that predict, evaluate and fail at the same time leave a network as it was."""
    photos = photo_folder(tmp_path / "photos", CARD.labels[:2], count=2)
    network.train()
    network.get_submodule("layer1").eval()
    modes, array = modes_of(network), np.zeros((15, 15, 3), np.uint8)
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    gate = threading.Barrier(4)

    def work(number: int) -> None:
        gate.wait()
        for _ in range(10):
            if number == 0:
                evaluate(network, photos, device="cpu")
            elif number == 1:
                with pytest.raises(InputError, match="top"):
                    predict(network, array, top=9, device="cpu")
            else:
                predict(network, [array] * number, batch_size=1, device="cpu")

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(work, range(4))] == [None] * 4
    assert modes_of(network) == modes
    for name, value in network.named_buffers():
        assert torch.equal(value, buffers[name]), name


def test_a_runner_of_a_network_in_training(network: ResNeXt) -> None:
    """Trained on after it was opened, it answered with the statistics of the batch."""
    runner = open_runner(network, device="cpu")
    x = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    wanted = runner.pixels(x)[0]
    network.train()
    for _ in range(2):
        np.testing.assert_array_equal(runner.pixels(x)[0], wanted)
    assert all(modes_of(network).values())


def test_other_models_have_no_mode(file: Path) -> None:
    """Files, names and runners pass through, and the block runs."""
    ran = []
    for model in (file, "resnext50_32x4d.a1_in1k", Other(), None):
        with evaluation_mode(model):
            ran.append(model)
    assert len(ran) == 4


def test_a_planned_model_opens_without_torch(file: Path) -> None:
    """Importing torch takes longer than a prediction, and a small server has no room for it."""
    save_beside(file, plan(form=EngineConfig("onnxruntime"), version=""))
    code = (
        "import sys\n"
        "from resnext.inference.opener import evaluation_mode, open_model, open_runner\n"
        "from resnext.inference.engines import ENGINES\n"
        "type(ENGINES['onnxruntime']).version = ''\n"
        f"model = open_runner({str(file)!r})\n"
        "with evaluation_mode(model):\n"
        "    assert open_model(model) is model\n"
        "assert type(model).__name__ == 'Optimized'\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- who uses it ------------------------------------------------------------------------------


def test_predict_opens_for_the_images_it_has(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image by a plan for one, not by the plan for sixteen; and what is asked is passed on."""
    asked: list[dict[str, Any]] = []
    usual = opener.open_runner

    def spy(model: Any, **options: Any) -> Any:
        asked.append(options)
        return usual(model, **options)

    monkeypatch.setattr("resnext.prediction.images.open_runner", spy)
    array = np.zeros((15, 15, 3), np.uint8)
    predict(file, array)
    predict(file, [array] * 5, batch_size=4, device="cpu", plan=False)
    wanted = {"device": "auto", "batch": 1, "plan": True, "progress": False}
    assert asked[0] == wanted
    assert asked[1] == wanted | {"device": "cpu", "batch": 4, "plan": False}


def test_evaluate_and_compare_open_as_they_are_asked(
    file: Path, network: ResNeXt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that is refused must not be used, nor one for another number of images."""
    photos = photo_folder(tmp_path / "photos", CARD.labels[:2], count=2)
    save_beside(file, plan())
    opened: list[tuple[Any, dict[str, Any]]] = []
    usual = opener.open_model

    def spy(model: Any, **options: Any) -> Any:
        opened.append((usual(model, **options), options))
        return opened[-1][0]

    monkeypatch.setattr("resnext.evaluation.classification.open_model", spy)
    by_plan = evaluate(file, photos, device="cpu", batch_size=3)
    by_network = evaluate(file, photos, plan=False, device="cpu")
    compare(file, network.train(), photos, device="cpu", batch_size=5)
    assert [type(model) for model, _ in opened] == [Optimized, ResNeXt, Optimized, ResNeXt]
    wanted = {"device": "cpu", "batch": 3, "plan": True, "progress": False}
    assert [options for _, options in opened] == [
        wanted,
        wanted | {"batch": 64, "plan": False},
        *[wanted | {"batch": 5}] * 2,
    ]
    assert by_plan.nll == pytest.approx(by_network.nll, rel=1e-5)
    assert network.training


def test_defaults() -> None:
    """Both ways to open a model are documented with the same ones."""
    wanted = {"device": "auto", "batch": 64, "plan": True, "progress": False}
    for function in (open_model, open_runner):
        parameters = inspect.signature(function).parameters
        assert {name: parameters[name].default for name in wanted} == wanted


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "toaster"])
def test_files_of_other_runtimes_run_on_the_processor(device: str) -> None:
    """The device was passed over, and the answers came from the processor."""
    with pytest.raises(InputError, match=f"a.onnx runs on the processor only, not on '{device}'"):
        open_model("a.onnx", device=device)
