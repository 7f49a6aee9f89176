"""The recipe probe: what it writes, what it refuses, and that it looks at each image once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import photo_folder, run_cli, tiny_network
from oracles.originals import sklearn
from PIL import Image
from sample_data import trained_on
from training_runs import TINY, scripted, sha, stop_after

import resnext
from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig, ResNeXtError
from resnext.data import open_splits
from resnext.errors import CheckpointError, DataError
from resnext.system.atomic import locked
from resnext.training.embeddings import Embedder
from resnext.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_cache")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A model file for other classes than those of the photos."""
    card = Card(("x", "y", "z"), Preprocessing(16, 18))
    resnext.save(tiny_network(card=card), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def probe(data: Path | str, weights: Path | None, out: Path, **changes: Any) -> ResNeXt:
    """Train with the recipe probe."""
    given = {"recipe": "probe", "workers": 0, "progress": False, "precision": "fp32", **changes}
    return resnext.train(data, weights=weights, out=out, **given)


def test_the_file_is_an_ordinary_model(photos: Path, weights: Path, tmp_path: Path) -> None:
    """It loads, evaluates and predicts as any other; only the classifier is new."""
    out = tmp_path / "probed.safetensors"
    model, before, loaded = probe(photos, weights, out), resnext.load(weights), resnext.load(out)
    card = loaded.card
    assert card is not None
    assert card.labels == ("blue", "red")
    assert card.preprocessing == Preprocessing(16, 18)
    assert card.metrics["val_accuracy"] == 1.0  # red and blue are easily told apart
    result = resnext.evaluate(out, photos)
    assert (result.count, result.accuracy) == (4, 1.0)
    assert result.nll == pytest.approx(card.metrics["val_nll"], abs=1e-4)
    assert resnext.predict(out, photos / "red" / "0.png")[0].label == "red"
    for name, x in before.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(x, loaded.state_dict()[name])
    assert torch.equal(model(torch.ones(1, 3, 16, 16)), loaded(torch.ones(1, 3, 16, 16)))
    assert card.provenance["weights"] == "weights.safetensors"
    assert card.provenance["recipe"]["name"] == "probe"
    assert (tmp_path / "probed.run" / "report.html").exists()


def test_the_report_speaks_of_no_epochs(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A curve without epochs is empty, and no epoch was chosen."""
    monkeypatch.setattr(sys, "argv", ["program"])  # the report shows the command
    model = probe(photos, weights, tmp_path / "m.safetensors")
    text = (tmp_path / "m.run" / "report.html").read_text()
    assert model.card is not None
    strength = model.card.provenance["recipe"]["strength"]
    for words in ("Strength of the penalty", f"{strength:.3g}", "(chosen)", "computing embeddings"):
        assert words.casefold() in text.casefold()
    assert "epoch" not in text.replace("without epochs", "")


def test_a_second_run_computes_nothing(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another seed, balance or name uses the embeddings of the first, and equal ones the file."""
    first = tmp_path / "first.safetensors"
    probe(photos, weights, first)

    def refuse(*_: object) -> None:
        pytest.fail("the network was run")

    monkeypatch.setattr(Embedder, "_session", refuse)
    second = tmp_path / "second.safetensors"
    probe(photos, weights, second)
    assert sha(first) == sha(second)
    probe(photos, weights, second, seed=1, balance="weights", overwrite=True)
    assert sha(first) != sha(second)


def test_resuming_gives_the_same_file(photos: Path, weights: Path, tmp_path: Path) -> None:
    """A scheduler always passes --resume; a run of other weights must not be replaced."""
    out = tmp_path / "m.safetensors"
    probe(photos, weights, out, resume=True)
    before = sha(out)
    probe(photos, weights, out, resume=True)
    assert sha(out) == before
    with pytest.raises(CheckpointError, match="seed was 0, now 3"):
        probe(photos, weights, out, resume=True, seed=3)
    with pytest.raises(CheckpointError, match="with the recipe probe"):
        probe(photos, weights, out, resume=True, recipe="finetune")
    with pytest.raises(CheckpointError, match="exists"):
        probe(photos, weights, out)
    assert sha(out) == before


def test_a_second_run_in_the_same_place_is_refused(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    """Two runs wrote one file, and the second one deleted the checkpoint of the first."""
    out = tmp_path / "m.safetensors"
    with locked(tmp_path / "m.run"), pytest.raises(CheckpointError, match="Another run is writing"):
        probe(photos, weights, out)
    probe(photos, weights, out)


def test_an_interrupted_run_is_resumed(
    photos: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C leaves no model, but says how to continue."""
    out, whole = tmp_path / "m.safetensors", tmp_path / "whole.safetensors"

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("resnext.training.probe.fit_head", interrupt)
        with pytest.raises(KeyboardInterrupt):
            probe(photos, weights, out, progress=True)
    assert "run the same command with --resume" in capsys.readouterr().err.casefold()
    assert not out.exists()
    probe(photos, weights, out, resume=True)
    probe(photos, weights, whole)
    assert sha(out) == sha(whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": None}, "recipe probe needs weights"),
        ({"model": "resnext50_32x4d"}, "a model or weights, not both"),
        ({"epochs": 5}, "recipe probe has no epochs: .* Leave out epochs, or use .* finetune"),
        ({"learning_rate": 0.1}, "recipe probe has no learning_rate"),
        ({"mixup": 0.1}, "recipe probe has no mixup"),
        ({"nesterov": True}, "A recipe has no field 'nesterov'"),
        ({"balance": "fair"}, "balance must be one of none, sampling, weights, not 'fair'"),
        ({"compile": True}, "so leave out compile"),
        ({"sync_norms": True}, "so leave out sync_norms"),
        ({"retries": 2}, "so leave out retries"),
        ({"minutes": 5}, "so leave out minutes"),
        ({"dry_run": True}, "so leave out dry_run"),
        ({"size": 0}, "size must be at least"),
        ({"weights": Path("nowhere.pth")}, "nowhere.pth"),
    ],
)
def test_wrong_arguments_leave_an_existing_file_alone(
    photos: Path, weights: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    """Nothing is ignored, and nothing is written before all is checked."""
    out = tmp_path / "m.safetensors"
    out.write_text("precious")
    given = {"data": photos, "weights": weights, "out": out, "overwrite": True, **arguments}
    with pytest.raises(ResNeXtError, match=message):
        probe(**given)
    assert out.read_text() == "precious"
    assert not (tmp_path / "m.run").exists()


def test_grey_images(tmp_path: Path) -> None:
    """Colour weights see grey images through an adapted first convolution."""
    config = ResNeXtConfig((1, 1), 4, 16, num_stages=2, channels=(16, 32), small_stem=True)
    resnext.save(tiny_network(config), tmp_path / "colour.safetensors")
    out, digits = tmp_path / "m.safetensors", idx_folder(tmp_path / "idx", range(4))
    model = probe(digits, tmp_path / "colour.safetensors", out, size=8)
    assert model.card is not None
    assert (model.config.in_channels, model.card.preprocessing.colour) == (1, "L")
    assert (
        resnext.evaluate(out, digits).accuracy > 0.7
    )  # random convolutions, but a good classifier


def test_a_class_without_training_images(weights: Path, tmp_path: Path) -> None:
    """Its bias would fall without end."""
    folder = idx_folder(tmp_path / "fashion", range(3))  # the names are known, all ten of them
    with pytest.raises(DataError, match=r"'Dress' .* has no training image"):
        probe(folder, weights, tmp_path / "m.safetensors", size=16)


@pytest.mark.parametrize("count", [2, 3])
def test_few_images_of_each_class(weights: Path, tmp_path: Path, count: int) -> None:
    """One image of each class is left for training if there are two, two if there are three."""
    folder = photo_folder(tmp_path / "few", ("a", "b", "c"), count)
    model = probe(folder, weights, tmp_path / "m.safetensors")
    assert model.card is not None
    assert model.card.metrics["val_accuracy"] == 1.0
    text = (tmp_path / "m.run" / "report.html").read_text()
    assert ("every class has one training image" in text) is (count == 2)


def test_unreadable_images_are_left_out(photos: Path, weights: Path, tmp_path: Path) -> None:
    """The scan and its quarantine are those of any training."""
    for i in range(12, 40):
        Image.new("RGB", (20, 20), (200 + i, i, 7)).save(photos / "red" / f"{i}.png")
    (photos / "red" / "12.png").write_bytes(b"no image")
    probe(photos, weights, tmp_path / "m.safetensors")
    assert "12.png" in (tmp_path / "m.run" / "quarantine.csv").read_text()


def test_weights_that_may_know_validation_images(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Their accuracy is that of memory, and nothing said so."""
    provenance = trained_on(open_splits(photos))

    def told(data: Path, **changes: Any) -> bool:
        card = Card(("blue", "red"), Preprocessing(16, 18), provenance=provenance)
        resnext.save(tiny_network(card=card), tmp_path / "weights.safetensors")
        out = tmp_path / "out.safetensors"
        given = {"progress": True, "overwrite": True, "index": False, **changes}
        probe(data, tmp_path / "weights.safetensors", out, **given)
        return "may know some of the validation images" in capfd.readouterr().err

    assert not told(photos)
    assert told(photos, seed=1)
    assert told(photos, val_fraction=0.3)
    (photos / "red" / "0.png").unlink()
    assert told(photos)
    provenance["data"] = "others"
    assert not told(photos)


def test_balance_is_as_asked(photos: Path, weights: Path, tmp_path: Path) -> None:
    """Sampling and weights mean the same here: all classes weigh the same."""
    for i in range(8):
        (photos / "red" / f"{i}.png").unlink()
    none, sampling, weighted = (
        probe(photos, weights, tmp_path / f"by {balance}.safetensors", balance=balance)
        for balance in ("none", "sampling", "weights")
    )
    assert torch.equal(sampling.fc.weight, weighted.fc.weight)
    assert not torch.allclose(none.fc.bias, weighted.fc.bias)


def tune(data: Path, weights: Path, out: Path, **changes: Any) -> ResNeXt:
    """Fine-tune for two epochs."""
    quick = {"recipe": "finetune", "epochs": 2, "batch_size": 4, "learning_rate": 0.002}
    return probe(data, weights, out, **{**quick, **changes})


def test_fine_tuning_keeps_the_classifier_if_no_epoch_is_better(
    photos: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Epochs that spoil the weights must not cost what the classifier alone reaches."""
    probed = probe(photos, weights, tmp_path / "probed.safetensors")
    scripted(monkeypatch, [0.5, 0.75])
    spoilt = tune(photos, weights, tmp_path / "m.safetensors", progress=True)
    assert spoilt.card is not None
    assert (spoilt.card.provenance["epoch"], spoilt.card.metrics["val_accuracy"]) == (0, 1.0)
    for name, x in probed.state_dict().items():
        assert torch.equal(x, spoilt.state_dict()[name]), name
    assert "epoch   0  val accuracy 100.00%" in capsys.readouterr().err
    assert "None was better than the classifier" in (tmp_path / "m.run/report.html").read_text()


def test_fine_tuning_starts_from_the_classifier(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step, and the first average, must be of the fitted classifier."""
    probed = probe(photos, weights, tmp_path / "probed.safetensors")
    seen: list[torch.Tensor] = []
    original = Trainer.begin

    def look(self: Trainer, *arguments: Any) -> None:
        average = self.train_step.average
        assert average is not None
        seen.extend(x.fc.weight.detach().clone() for x in (self.network, average.network))
        original(self, *arguments)

    monkeypatch.setattr(Trainer, "begin", look)
    tune(photos, weights, tmp_path / "m.safetensors", ema=0.9, epochs=1)
    assert all(torch.equal(x, probed.fc.weight) for x in seen)
    assert len(seen) == 2


def test_fine_tuning_keeps_weights_of_the_same_classes_if_no_epoch_is_better(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A few epochs made a good model worse, and its file was replaced by that."""
    good = probe(photos, None, tmp_path / "good.safetensors", recipe="quick", model=TINY, epochs=1)
    scripted(monkeypatch, [1.0, 0.5, 0.75])
    spoilt = tune(photos, tmp_path / "good.safetensors", tmp_path / "m.safetensors", progress=True)
    assert spoilt.card is not None
    assert spoilt.card.provenance["epoch"] == 0
    for name, x in good.state_dict().items():
        assert torch.equal(x, spoilt.state_dict()[name]), name
    assert "epoch   0  val accuracy 100.00%, by the weights as" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("recipe", ["probe", "finetune"])
def test_files_of_other_precisions_are_trained_in_single(
    photos: Path, weights: Path, tmp_path: Path, dtype: torch.dtype, recipe: str
) -> None:
    """Steps of 16 bits are lost in rounding; those of fp16 ended in a traceback."""
    network = resnext.load(weights)
    assert isinstance(network, ResNeXt)
    resnext.save(network.to(dtype), weights)
    changes = {} if recipe == "probe" else {"epochs": 1, "batch_size": 4}
    model = probe(photos, weights, tmp_path / "m.safetensors", recipe=recipe, **changes)
    assert {x.dtype for x in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("changed", [{"probe": False}, {"weights of the same classes": True}])
def test_fine_tuning_without_the_fitted_classifier(
    photos: Path, weights: Path, tmp_path: Path, changed: dict[str, bool]
) -> None:
    """It can be turned off, and a classifier of the same classes is kept."""
    if "probe" not in changed:
        card = Card(("blue", "red"), Preprocessing(16, 18))
        resnext.save(tiny_network(card=card), weights)
        changed = {}
    model = tune(photos, weights, tmp_path / "m.safetensors", epochs=1, **changed)
    assert model.card is not None
    assert model.card.provenance["epoch"] == 1


@pytest.mark.parametrize("stop", [1, 7])
def test_fine_tuning_resumes_exactly(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """The classifier is fitted once; a resumed run has it in its checkpoint."""
    whole, out = tmp_path / "whole.safetensors", tmp_path / "m.safetensors"
    tune(photos, weights, whole)
    stop_after(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        tune(photos, weights, out)
    assert resnext.load(out).card is not None  # the classifier alone, or the first epoch
    monkeypatch.setattr("resnext.training.probe.fit_head", lambda *_, **__: pytest.fail("again"))
    tune(photos, weights, out, resume=True)
    assert sha(out) == sha(whole)


def test_from_the_command_line(
    photos: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says what it does and where the result is, without epochs."""
    out = tmp_path / "m.safetensors"
    command = ("train", photos, "--weights", weights, "--recipe", "probe", "--workers", 0)
    code, printed, shown = run_cli(capsys, monkeypatch, *command, "--out", out)
    assert code == 0
    assert f"{out}: validation accuracy 100.00%" in printed
    assert "Images: 20 train, 4 val; 12 of each class" in shown
    assert "Computing embeddings with PyTorch" in shown
    code, _, shown = run_cli(capsys, monkeypatch, *command, "--out", out, "--epochs", 3)
    assert (code, shown.count("\n")) == (2, 1)


def idx_folder(folder: Path, classes: range) -> Path:
    """Some of scikit-learn's digits in MNIST's format, to train on and to test on."""
    values, targets = map(np.asarray, sklearn.datasets.load_digits(return_X_y=True))
    folder.mkdir()
    for split, part in (("train", slice(300)), ("t10k", slice(300, 400))):
        chosen = np.isin(targets[part], classes)
        images = (values[part][chosen] * 15.9).astype(np.uint8).reshape(-1, 8, 8)
        labels = targets[part][chosen].astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
            header = bytes([0, 0, 8, array.ndim]) + sizes
            (folder / f"{split}-{name}-ubyte").write_bytes(header + array.tobytes())
    return folder
