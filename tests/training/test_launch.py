"""From arguments to a model file: what is refused, what comes out, what a run leaves behind."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import QUICK, TINY, quick

import resnext
from resnext import ResNeXtError
from resnext.data.dataset import ImageSet
from resnext.errors import CheckpointError, ConfigError, DataError
from resnext.training import Recipe, identity, preparation
from resnext.training.distributed import ProcessGroup, peer_errors
from resnext.training.run_state import ExecutionConfig


def test_digits_are_learnt(tmp_path: Path) -> None:
    """The demo promises 98 % of digits it has not seen."""
    model = resnext.train(
        "digits", "resnext11_8x16d", out=tmp_path / "model.safetensors", progress=False
    )
    assert resnext.evaluate(model, "digits").accuracy >= 0.98


def test_the_file_is_all_one_needs(photos: Path, tmp_path: Path) -> None:
    """Labels, preprocessing and measured accuracy must be those of the run, not defaults."""
    out = tmp_path / "model.safetensors"
    trained = resnext.train(photos, TINY, out=out, recipe=QUICK, size=16, progress=False)
    loaded = resnext.load(out)
    assert loaded.card is not None
    assert loaded.card.labels == ("blue", "red")
    assert loaded.card.preprocessing.size == 16
    assert loaded.config == TINY.replace(num_classes=2)
    result = resnext.evaluate(out, photos)
    assert result.count == 4  # a fifth of each dozen, held out
    assert result.accuracy == pytest.approx(loaded.card.metrics["val_accuracy"])
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(x), trained(x))


def test_same_seed_same_file(photos: Path, tmp_path: Path) -> None:
    """Chance must come from the seed alone: not from workers, time or memory."""
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for file, workers, seed in zip(files, (0, 0, 2, 0), (1, 1, 1, 2), strict=True):
        resnext.train(
            photos,
            TINY,
            out=file,
            recipe=QUICK,
            size=16,
            workers=workers,
            seed=seed,
            progress=False,
        )
    first, again, with_workers, other_seed = (file.read_bytes() for file in files)
    assert first == again
    assert first == with_workers
    assert first != other_seed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnext5"}, "No variant is called 'resnext5'"),
        ({"model": "resnext50_32x4d", "size": 16}, "size must be at least 32"),
        ({"size": 0}, "size must be at least"),
        ({"size": 1_000_000}, "size must be at most 10,000 pixels"),
        ({"size": "96", "model": None}, "size must be a whole number of pixels, not '96'"),
        ({"val_fraction": "0.2"}, "val_fraction must be between 0 and 1, not '0.2'"),
        ({"device": None}, "device None cannot be used: it is not the name of a torch device"),
        ({"train_size": 1}, "train_size must be at least 2 pixels .* Raise train_size"),
        ({"padding": 32, "size": 32}, "padding must be less than the images' 32 pixels"),
        ({"distill_temperature": 2.0}, "distill_temperature needs a teacher"),
        ({"recipe": "distill"}, "needs a teacher, and none is given. Use resnext distill TEACHER"),
        ({"recipe": "finetune"}, "The recipe finetune needs weights to start from"),
        ({"probe": True}, "^probe needs weights to start from, and none are given. Give --weights"),
        ({"drop_path": 0.1}, "no effect with a config, whose drop_path_rate is used. Leave it out"),
        ({"zero_init_residual": True}, "zero_init_residual has no effect with a config"),
        (
            {"momentum": 0.5, "optimizer": "adamw"},
            "no effect with optimizer=adamw, only with .*sgd",
        ),
        ({"milestones": (0.5,)}, "milestones has no effect with schedule=cosine"),
        ({"operations": 3}, "operations has no effect with policy=none, only with policy=rand"),
        ({"magnitude": 3}, "magnitude has no effect with policy=none"),
        ({"min_area": 0.5, "padding": 2}, "min_area has no effect with padding=2, only with .*=0"),
        ({"seed": 2**63}, r"seed must be 0 or a positive integer below 2\^63"),
        ({"minutes": 1e6}, "minutes must be more than 0 and less than a million"),
        ({"recipe": "probe"}, r"The recipe probe needs weights"),
        ({"recipe": ":a"}, "No recipe is called ':a'"),
        ({"retries": 1.5}, "retries must be a whole number, 0 or more"),
        ({"recipe": "best"}, "No recipe is called 'best'. Available are small, quick, large"),
        ({"epochs": 0}, "epochs must be a whole number from 1"),
        ({"batch_size": 1}, "batch_size must be a whole number from 2|at least 2"),
        ({"learning_rate": -1.0}, "learning_rate must be a number from"),
        ({"nesterov": True}, "A recipe has no field 'nesterov'"),
        ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"precision": "fp8"}, "precision must be auto, fp32, bf16 or fp16"),
        ({"precision": "fp16", "device": "cpu"}, "needs a GPU"),
        ({"retries": -1}, "retries must be a whole number, 0 or more"),
        ({"workers": -1}, "workers must be a whole number, 0 or more"),
        ({"weights": "nowhere.pth", "model": None}, "nowhere.pth"),
        ({"weights": "x.pth"}, "a model or weights, not both"),
        ({"accumulate": 3}, "cannot be divided into 3|leaves less than two"),
    ],
)
def test_wrong_arguments_leave_an_existing_file_alone(
    photos: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    """A mistake must be told before anything is written or trained."""
    out = tmp_path / "m.safetensors"
    out.write_text("precious")
    checkpoint = tmp_path / "m.run" / "checkpoint-0000000007.state"
    checkpoint.parent.mkdir()
    checkpoint.write_text("precious too")
    given = {
        "data": photos,
        "model": TINY,
        "size": 16,
        "recipe": QUICK,
        "overwrite": True,
        **arguments,
    }
    with pytest.raises(ResNeXtError, match=message):
        resnext.train(out=out, progress=False, **given)
    assert out.read_text() == "precious"
    assert checkpoint.exists()


def test_existing_files_are_not_overwritten_unasked(photos: Path, tmp_path: Path) -> None:
    """A second run with the default name would destroy the first one's result."""
    out = tmp_path / "m.safetensors"
    out.write_text("precious")
    with pytest.raises(ResNeXtError, match="exists"):
        quick(photos, out)
    with pytest.raises(ResNeXtError, match=r"cannot be written: .*Not a directory"):
        quick(photos, out / "m.safetensors")
    out.unlink()
    quick(photos, out)
    out.unlink()
    with pytest.raises(ResNeXtError, match="continue with --resume"):
        quick(photos, out)  # its checkpoints are still there
    quick(photos, out, overwrite=True)
    shutil.rmtree(tmp_path / "m.run")
    with pytest.raises(ResNeXtError, match="no checkpoint to resume from"):
        quick(photos, out, resume=True)  # would begin anew, and replace a finished model


def test_what_is_not_installed_is_told_before_anything_is_removed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with --overwrite emptied the folder of the run before, and then could not begin."""
    out = tmp_path / "m.safetensors"
    quick(photos, out)
    files = {path.name for path in (tmp_path / "m.run").iterdir()}
    for missing, change in (("kornia", {"policy": "rand"}), ("pytorch_optimizer", LAMB)):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(ConfigError, match=rf"{missing}.*resnext\[train\]"):
            quick(photos, out, overwrite=True, **change)
    assert {path.name for path in (tmp_path / "m.run").iterdir()} == files


LAMB: dict[str, Any] = {"optimizer": "lamb"}


@pytest.mark.parametrize("name", ["m.run", "m.index"])
def test_a_model_file_has_a_name_of_its_own(photos: Path, tmp_path: Path, name: str) -> None:
    """The folder of the run took its place, and the model could not be written after training."""
    with pytest.raises(CheckpointError, match=r"such as .*m\.safetensors"):
        quick(photos, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_only_files_of_runs_are_removed(photos: Path, tmp_path: Path) -> None:
    """A list of images in the folder was deleted, before the first step of the run that read it."""
    folder, out = tmp_path / "m.run", tmp_path / "m.safetensors"
    quick(photos, out)
    written = {path.name for path in folder.iterdir()}
    (folder / ".report.html.x7").touch()  # of a run that was killed
    (folder / "list.csv").write_text("precious")
    preparation.prepare_folder(folder, (), empty=True)
    assert [path.name for path in folder.iterdir()] == ["list.csv"]
    assert written >= {"metrics.jsonl", "report.html", "label_doubts.csv"}


def test_fewer_images_than_a_batch(photos: Path, tmp_path: Path) -> None:
    """Dropping the last incomplete batch would leave nothing to learn from."""
    model = quick(photos, tmp_path / "m.safetensors", batch_size=500)
    assert model.card is not None
    assert model.card.provenance["recipe"]["batch_size"] == 20


def test_weights_are_what_training_starts_from(photos: Path, tmp_path: Path) -> None:
    """Fine-tuning that silently starts from scratch looks like poor data."""
    first = quick(photos, tmp_path / "first.safetensors")
    for name in ("red", "blue"):
        (photos / name).rename(photos / f"{name}dish")
    out = tmp_path / "second.safetensors"
    given: dict[str, Any] = {"size": 16, "progress": False, "workers": 0}
    tuned = resnext.train(
        photos,
        weights=tmp_path / "first.safetensors",
        out=out,
        epochs=2,
        head_epochs=1,
        learning_rate=1e-9,
        batch_size=4,
        frozen_norms=True,
        **given,
    )
    assert tuned.config == first.config
    assert tuned.card is not None
    assert tuned.card.labels == ("bluedish", "reddish")
    assert tuned.card.provenance["weights"] == "first.safetensors"
    before, after = first.state_dict(), tuned.state_dict()
    for name, value in before.items():
        if not name.startswith("fc."):
            assert torch.allclose(value, after[name], atol=1e-6), name
    assert not torch.allclose(before["fc.weight"], after["fc.weight"])  # other classes: untrained


def test_a_run_tells_what_happened(photos: Path, tmp_path: Path) -> None:
    """Figures for people and programs: the page, the lines, the events, the calibration."""
    model = quick(photos, tmp_path / "m.safetensors", epochs=3)
    folder = tmp_path / "m.run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(row["loss"] > 0 and 0 <= row["val_accuracy"] <= 1 for row in rows)
    assert list(folder.glob("events.out.tfevents.*"))
    page = (folder / "report.html").read_text()
    assert "blue" in page
    assert model.card is not None
    assert model.card.temperature > 0
    assert model.card.metrics["val_nll"] > 0
    assert not identity.check_identity({}, {})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_a_compiled_network_learns_the_same(photos: Path, tmp_path: Path) -> None:
    """Compiling changes names of parameters and of the module; the file must not show it."""
    plain = quick(photos, tmp_path / "plain.safetensors", epochs=1)
    compiled = quick(photos, tmp_path / "compiled.safetensors", epochs=1, compile=True)
    for name, value in plain.state_dict().items():
        assert torch.allclose(value.float(), compiled.state_dict()[name].float(), atol=1e-3), name


def test_bf16_is_taken_only_where_the_hardware_has_it(photos: Path, tmp_path: Path) -> None:
    """Emulated bf16 is a hundred times slower than fp32; asked for, it must work all the same."""
    model = quick(photos, tmp_path / "m.safetensors", epochs=1, precision="bf16")
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    assert model.card is not None


@pytest.mark.parametrize(
    ("changes", "packages"),
    [
        ({}, []),
        ({"optimizer": "lamb"}, ["pytorch_optimizer"]),
        ({"policy": "rand"}, ["kornia"]),
        ({"policy": "trivial", "optimizer": "lamb"}, ["pytorch_optimizer", "kornia"]),
        ({"optimizer": "adamw", "mixup": 0.2}, []),
    ],
)
def test_recipes_name_the_packages_they_need(changes: dict[str, Any], packages: list[str]) -> None:
    """A package that is not listed here fails only after the old run's folder was emptied."""
    assert list(QUICK.changed(**changes).required_packages()) == packages


def test_missing_packages_are_found_without_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check must ask only for what the recipe needs."""
    asked: list[str] = []
    monkeypatch.setattr(preparation, "find_spec", asked.append)  # which returns None: not there
    with pytest.raises(ConfigError, match=r"optimizer lamb needs pytorch_optimizer, which is not"):
        preparation.check_packages(QUICK.changed(optimizer="lamb", policy="rand"))
    with pytest.raises(ConfigError, match=r"policy rand needs kornia, which is not installed"):
        preparation.check_packages(QUICK.changed(policy="rand"))
    preparation.check_packages(QUICK)
    assert asked == ["pytorch_optimizer", "kornia"]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("refusal", ["minutes", "package", "resumed precision", "unreadable"])
def test_a_refused_run_changes_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str, old: bool
) -> None:
    """With `overwrite`, a run without enough minutes had emptied the folder of the run before."""
    out = tmp_path / "new" / "m.safetensors"
    if old:
        quick(photos, out)
    arguments: dict[str, Any] = {"overwrite": True}
    match refusal:
        case "minutes":
            arguments |= {"minutes": 1e-4}
        case "package":
            (tmp_path / "kornia.py").write_text("raise RuntimeError('built for another torch')")
            monkeypatch.setattr(sys, "dont_write_bytecode", True)
            monkeypatch.syspath_prepend(tmp_path)
            for name in [name for name in sys.modules if name.partition(".")[0] == "kornia"]:
                monkeypatch.delitem(sys.modules, name)
            arguments |= {"policy": "rand"}
        case "resumed precision":
            arguments |= {"resume": True, "epochs": 7, "overwrite": False}
            if not old:
                return
        case "unreadable":
            for path in sorted((photos / "red").iterdir())[:6]:
                path.write_bytes(b"no image")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ResNeXtError):
        quick(photos, out, **arguments)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    listed = after.pop(tmp_path / "new" / "m.run" / "quarantine.csv", None)
    assert after == before
    assert (listed is not None) == (refusal == "unreadable")
    assert old or refusal == "unreadable" or not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": ".", "retries": -1}, "is a folder. Give the name of a file"),
        ({"out": "no/m.safetensors", "retries": -1}, "retries must be"),
        ({"retries": -1, "device": "toaster"}, "retries must be"),
        ({"device": "toaster", "precision": "fp8"}, "device 'toaster'"),
        ({"precision": "fp8", "data": "nowhere"}, "precision must be"),
        ({"data": "nowhere", "recipe": "best"}, "nowhere does not exist"),
        ({"recipe": "best", "model": "resnext5"}, "No recipe is called"),
        ({"batch_size": 7, "accumulate": 2, "model": "resnext5"}, "cannot be divided into 2"),
        ({"model": "resnext5", "size": 0}, "No variant is called"),
    ],
)
def test_arguments_are_checked_in_order_and_nothing_is_created(
    photos: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    """Cheap checks come first: no one waits for a download to hear of a misspelt device."""
    before = {path.name for path in tmp_path.iterdir()}
    given = {"data": photos, "out": tmp_path / "m.safetensors", "recipe": QUICK, **arguments}
    if isinstance(given["out"], str):
        given["out"] = tmp_path / given["out"]
    with pytest.raises(ResNeXtError, match=message):
        resnext.train(progress=False, **{"model": TINY, **given})
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("images", "world", "accumulate", "batch", "fitted"),
    [(100, 1, 1, 32, 32), (20, 1, 1, 32, 20), (21, 2, 1, 32, 20), (23, 2, 2, 32, 20)],
)
def test_batches_are_no_larger_than_the_data(
    images: int, world: int, accumulate: int, batch: int, fitted: int
) -> None:
    """The batch must divide among processes and parts, and its rate follows."""
    recipe = Recipe(epochs=1, batch_size=batch, learning_rate=0.1, accumulate=accumulate)
    data = ImageSet([Path("x.png")] * images, [0] * images, ("a",), "data")
    got = preparation.fit_batch_size(recipe, data, ProcessGroup(0, world))
    assert got.batch_size == fitted
    assert got.learning_rate == pytest.approx(0.1 * fitted / batch)


def test_every_process_needs_two_images() -> None:
    """Batch norm of one image is undefined."""
    data = ImageSet([Path("x.png")] * 3, [0] * 3, ("a",), "data")
    with pytest.raises(DataError, match="data has 3 training images; at least 4 are needed"):
        preparation.fit_batch_size(QUICK, data, ProcessGroup(0, 2))


def test_a_resumed_run_keeps_its_execution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another precision or decoder gives another file than the run that was left alone."""
    saved = ExecutionConfig("float32", {}, fast_jpeg=True, compiled=False)
    for precision in ("auto", "fp32"):
        assert preparation.resumed_execution(saved, precision) is saved
    with pytest.raises(CheckpointError, match="started in float32, not bf16"):
        preparation.resumed_execution(saved, "bf16")
    monkeypatch.setattr(preparation, "fast_decoder", lambda: None)
    with pytest.raises(CheckpointError, match="simplejpeg, which is not installed"):
        preparation.resumed_execution(saved, "auto")
    without = replace(saved, fast_jpeg=False)
    assert preparation.resumed_execution(without, "auto") is without


@pytest.mark.parametrize(
    ("world", "text", "kind"),
    [
        (2, "[gloo] Connection closed\nmore", ResNeXtError),
        (2, "NCCL error", ResNeXtError),
        (1, "[gloo] Connection closed", RuntimeError),
        (2, "out of memory", RuntimeError),
    ],
)
def test_only_errors_of_other_processes_are_translated(world: int, text: str, kind: Any) -> None:
    """A full memory must not be reported as another process's death."""
    with pytest.raises(kind) as caught, peer_errors(ProcessGroup(0, world)):
        raise RuntimeError(text)
    assert caught.type is kind
    assert "more" not in str(caught.value)
