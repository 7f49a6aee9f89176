"""What users have in files, caches and scripts, word for word: no renaming may touch it.

Every expected value is written out here. Whoever has to change one breaks files that exist: then
the format needs a new version, a reader for the old one and a line in the changelog.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import http.server
import inspect
import io
import json
import pickle
import re
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import pytest
import torch
from PIL import Image

import resnext
from resnext import Backbone, Card, Preprocessing, ResNeXt, ResNeXtConfig, mmcls
from resnext.benchmark import bench, timing
from resnext.cli.app import app, main
from resnext.data import open_splits
from resnext.inference import open_runner
from resnext.inference.engines.base import EngineConfig
from resnext.inference.plan import FrontierRow, Tradeoff, read_plans, write_plans
from resnext.prediction import predict_files
from resnext.training import RECIPES, Recipe
from resnext.weights.hub import save_pretrained

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = {
    "layers": [1, 1],
    "cardinality": 2,
    "base_width": 8,
    "num_classes": 2,
    "in_channels": 3,
    "stem_width": 64,
    "stem_type": None,
    "avg_down": False,
    "channels": [16, 32],
    "block_args": {},
    "num_stages": 2,
    "strides": None,
    "dilations": None,
    "style": "pytorch",
    "expansion": 4,
    "widths": None,
    "stem_channels": None,
    "small_stem": True,
    "norm": "batch",
    "norm_groups": 32,
    "norm_eps": 1e-05,
    "norm_momentum": 0.1,
    "norm_affine": True,
    "norm_track": True,
    "conv": "standard",
    "conv_eps": 1e-05,
    "padding_mode": "zeros",
    "attention": None,
    "se_reduction": 16,
    "se_rounding": "timm",
    "anti_alias": None,
    "drop_path_rate": 0.0,
    "drop_path_decay": "linear",
    "dropout": 0.0,
    "zero_init_residual": False,
}
PREPROCESSING = {
    "size": 16,
    "resize": 16,
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "colour": "RGB",
}
RECIPE = {
    "epochs": 1,
    "batch_size": 8,
    "learning_rate": 0.05,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 0.0005,
    "schedule": "cosine",
    "milestones": [],
    "warmup": 0.1,
    "accumulate": 1,
    "clip": 0.0,
    "ema": 0.9,
    "loss": "cross_entropy",
    "label_smoothing": 0.1,
    "min_area": 0.25,
    "padding": 0,
    "flip": True,
    "repeats": 1,
    "policy": "none",
    "operations": 2,
    "magnitude": 9,
    "erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "balance": "none",
    "drop_path": 0.0,
    "zero_init_residual": True,
    "layer_decay": 0.5,
    "head_epochs": 0,
    "probe": False,
    "frozen_norms": False,
    "frozen_stages": -1,
    "cached_views": 0,
    "train_size": None,
    "first_size": 1.0,
    "distill_temperature": 1.0,
}
ROW = [  # of metrics.jsonl, and of the history in a checkpoint
    "epoch",
    "loss",
    "val_accuracy",
    "val_nll",
    "ema_accuracy",
    "rate",
    "images_per_second",
    "size",
    "threads",
    "steps",
    "seconds",
    "validating",
    "waiting_data",
    "waiting_checkpoint",
]
PETS = ResNeXtConfig(
    (1,), 2, 8, num_classes=4, num_stages=1, channels=(16,), stem_channels=8, small_stem=True
)
PETS_DIGEST = "2a45b3b07572a2c56ce8b0c6f6ddb51d3e82bf868b5eeaf4bd44e66076276cef"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes of images, of which one is broken, and an untrained model."""
    folder = tmp_path_factory.mktemp("work")
    for k, label in enumerate(("blue", "red")):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(24):
            pixels = np.full((16, 20, 3), 60 * k + 4 * i, np.uint8)
            pixels[:8, :, 2 * (1 - k)] += 50
            pixels[i % 16, :, 1] = 7
            Image.fromarray(pixels).save(folder / "photos" / label / f"{i:02}.bmp")
    (folder / "photos" / "red" / "07.bmp").write_bytes(b"broken")
    resnext.save(pets(), folder / "pets.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _here(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in files are relative, and the cache is a fresh one."""
    monkeypatch.chdir(work)
    monkeypatch.setenv("RESNEXT_HOME", str(work / "cache"))


def pets() -> ResNeXt:
    """A network that gives every image the logits 0, 1, 2, 3."""
    network = ResNeXt(PETS)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            value.fill_(1 if name.endswith("running_var") else 0)
        network.fc.bias.copy_(torch.arange(4))
    network.card = Card(("ant", "bee", "cat", "dog"), Preprocessing(12, 14), threshold=0.5)
    return network.eval()


def header_of(content: bytes) -> dict[str, Any]:
    """The JSON at the start of a safetensors file."""
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


class Saved(NamedTuple):
    """A checkpoint, read without our code."""

    first: dict[str, Any]
    content: bytes
    tensors: dict[str, Any]
    about: dict[str, Any]


def read_saved(path: Path) -> Saved:
    """Read one: a line of JSON, then a safetensors file."""
    first, _, content = path.read_bytes().partition(b"\n")
    tensors = header_of(content)
    text = tensors.pop("__metadata__")
    assert list(text) == ["resnext"]
    return Saved(json.loads(first), content, tensors, json.loads(text["resnext"]))


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["resnext", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


@contextlib.contextmanager
def terminated() -> Iterator[None]:
    """SIGTERM comes in the middle of every step of training."""
    step = torch.optim.SGD.step

    def last_step(*args: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return step(*args, **options)

    def lost(*_: object) -> None:
        raise AssertionError("training does not listen for SIGTERM")

    before = signal.signal(signal.SIGTERM, lost)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.SGD, "step", last_step)
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- a training run ---------------------------------------------------------------------------


class Run(NamedTuple):
    """A run that was interrupted after its first step, then resumed."""

    folder: Path
    interrupted: Saved
    forms: dict[str, Any]
    done: Saved


@pytest.fixture(scope="module")
def run(work: Path) -> Iterator[Run]:
    """Train twice: the second time with measurements that say to merge groups."""
    config = ResNeXtConfig.from_dict(CONFIG)
    recipe = Recipe(1, 8, 0.05, ema=0.9, layer_decay=0.5)
    out, folder = Path("model.safetensors"), work / "model.run"
    usual: dict[str, Any] = {"out": out, "recipe": recipe, "size": 16, "workers": 0}
    usual |= {"precision": "fp32", "device": "cpu", "progress": False}
    with contextlib.chdir(work), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNEXT_HOME", str(work / "cache"))
        with terminated(), pytest.raises(KeyboardInterrupt):
            resnext.train("photos", config, **usual)
        (measured,) = (work / "cache" / "forms").iterdir()
        forms = json.loads(measured.read_text())
        measured.write_text(json.dumps(dict.fromkeys(forms, 2)))
        with terminated(), pytest.raises(KeyboardInterrupt):
            resnext.train("photos", config, overwrite=True, **usual)
        interrupted = read_saved(folder / "checkpoint-0000000001.state")
        resnext.train("photos", config, resume=True, **usual)
        yield Run(folder, interrupted, forms, read_saved(folder / "checkpoint-0000000004.state"))


def test_model_file(run: Run) -> None:
    """Models that are shared could not be loaded any more, or would lose labels or origin."""
    content = run.folder.with_name("model.safetensors").read_bytes()
    inside = header_of(content).pop("__metadata__")
    assert list(inside) == ["resnext"]
    about = json.loads(inside["resnext"])
    assert sorted(about) == ["card", "config", "version"]
    assert about["version"] == 1
    assert about["config"] == CONFIG
    card = about["card"]
    assert sorted(card) == [
        "labels",
        "licence",
        "metrics",
        "preprocessing",
        "provenance",
        "temperature",
        "threshold",
    ]
    assert (card["labels"], card["licence"]) == (["blue", "red"], "")
    assert card["preprocessing"] == PREPROCESSING
    assert sorted(card["metrics"]) == ["val_accuracy", "val_ece", "val_nll"]
    origin = card["provenance"]
    assert sorted(origin) == [
        "averaged_weights",
        "complete_epoch",
        "data",
        "epoch",
        "fingerprint",
        "python",
        "recipe",
        "resnext",
        "seed",
        "torch",
        "val_fraction",
    ]
    assert origin["recipe"] == RECIPE
    assert (origin["data"], origin["epoch"], origin["complete_epoch"]) == ("photos", 1, True)
    assert (origin["seed"], origin["val_fraction"]) == (0, 0.2)
    assert origin["fingerprint"] == "90cd06020b8c822e"


def test_old_model_file_is_read(tmp_path: Path) -> None:
    """A file of the first version, with as few fields as it may have, must always load."""
    from safetensors.torch import save_file

    card = {"labels": ["a", "b"], "preprocessing": PREPROCESSING, "licence": "mit", "threshold": 1}
    few = {k: CONFIG[k] for k in ("layers", "cardinality", "base_width", "channels", "num_stages")}
    about = {"version": 1, "config": {**few, "num_classes": 2, "small_stem": True}, "card": card}
    state = ResNeXt(ResNeXtConfig.from_dict(CONFIG)).state_dict()
    save_file(state, tmp_path / "old.safetensors", metadata={"resnext": json.dumps(about)})
    network = resnext.load(tmp_path / "old.safetensors")
    assert network.card is not None
    assert (network.card.licence, network.card.preprocessing.colour) == ("mit", "RGB")
    assert network.config == ResNeXtConfig.from_dict(CONFIG)


def test_value_range_in_a_card() -> None:
    """Models of 12-bit images scale by it; cards without it are as they were before it came."""
    values = {**PREPROCESSING, "value_range": [0, 4095]}
    card = Card.from_dict({"preprocessing": values})
    assert json.loads(json.dumps(card.to_dict()))["preprocessing"] == values
    assert repr(Preprocessing()) == (
        "Preprocessing(size=224, resize=256, interpolation='bilinear', mean=(0.485, 0.456, 0.406), "
        "std=(0.229, 0.224, 0.225), colour='RGB')"
    )


def test_run_folder(run: Run) -> None:
    """Scripts that watch a run, and `--resume`, look for files of these names."""
    names = sorted(re.sub(r"tfevents\..*", "tfevents", path.name) for path in run.folder.iterdir())
    assert names == [
        "checkpoint-0000000001.state",
        "checkpoint-0000000004.state",
        "events.out.tfevents",
        "label_doubts.csv",
        "metrics.jsonl",
        "quarantine.csv",
        "report.html",
    ]


def test_checkpoint(run: Run) -> None:
    """A run that was interrupted before an upgrade could not be resumed after it."""
    saved = run.interrupted
    assert saved.first == {
        "sha256": hashlib.sha256(saved.content).hexdigest(),
        "bytes": len(saved.content),
    }
    assert sorted(saved.about) == ["forms", "identity", "optimizer", "position", "scaler"]
    assert saved.about["scaler"] == {}
    position = saved.about["position"]
    seconds = position.pop("seconds")
    assert sorted(seconds) == ["checkpoints", "training", "validating", "waiting for images"]
    assert position.pop("total") > 0
    assert position == {
        "epoch": 1,
        "step": 1,
        "factor": 1.0,
        "retries": 0,
        "first": None,
        "best": None,
        "history": [],
        "bad": {},
        "resumes": [],
        "budget": None,
        "kept": 0.0,
        "threads": None,
        "choice": None,
        "replans": [],
    }


def test_checkpoint_at_the_end(run: Run) -> None:
    """A finished run must still give the same report when resumed."""
    position = run.done.about["position"]
    assert sorted(position["best"]) == ["accuracy", "averaged", "epoch", "nll"]
    (row,) = position["history"]
    assert list(row) == ROW
    assert (position["epoch"], position["step"], len(position["resumes"])) == (2, 0, 1)


def test_checkpoint_identity(run: Run) -> None:
    """A field under another name is taken for another run, which is refused."""
    assert run.interrupted.about["identity"] == {
        "seed": 0,
        "val_fraction": 0.2,
        "minutes": None,
        "weights": None,
        "teacher": None,
        "classes": ["blue", "red"],
        **{f"config.{name}": value for name, value in CONFIG.items()},
        **{f"preprocessing.{name}": value for name, value in PREPROCESSING.items()},
        **{f"recipe.{name}": value for name, value in RECIPE.items()},
        "images": "7f556b84e2117ddb",
    }


def test_checkpoint_tensors(run: Run) -> None:
    """Weights, their average and the momentum of each parameter are found by name and number.

    The optimizer's numbers follow the order of its groups: in another order, a run resumes with
    the momentum of other weights, and nothing says so if their shapes are equal.
    """
    names = set(run.interrupted.tensors)
    network = {name for name in names if name.startswith("network.")}
    assert len(network) == 50
    assert {"network.conv1.weight", "network.bn1.num_batches_tracked"} < network
    assert {"network.layer2.0.downsample.1.running_var", "network.fc.bias"} < network
    average = {name.replace("network.", "average.", 1) for name in network}
    momentum = {
        int(name.split(".")[1]): run.interrupted.tensors[name]["shape"]
        for name in names
        if re.fullmatch(r"optimizer\.\d+\.momentum_buffer", name)
    }
    dynamics = {f"dynamics.{x}" for x in ("count", "given", "other", "rival", "votes")}
    dynamics |= {f"dynamics.unseen_{x}" for x in ("given", "other", "rival")}
    buffers = {f"optimizer.{i}.momentum_buffer" for i in momentum}
    assert names == network | average | buffers | dynamics
    assert [momentum[i] for i in range(len(momentum))] == [
        [2, 128],  # classifier
        [2],
        [8, 64, 1, 1],  # second stage: weights, then norms
        [8, 4, 3, 3],
        [128, 8, 1, 1],
        [128, 64, 1, 1],
        *[[8]] * 4,
        *[[128]] * 4,
        [4, 64, 1, 1],  # first stage
        [4, 2, 3, 3],
        [64, 4, 1, 1],
        *[[4]] * 4,
        *[[64]] * 2,
        [64, 3, 3, 3],  # stem
        *[[64]] * 2,
    ]


def test_checkpoint_optimizer(run: Run) -> None:
    """Rates of the groups are computed from `scale`, which torch does not know."""
    about = run.interrupted.about["optimizer"]
    assert sorted(about) == ["groups", "numbers"]
    assert about["numbers"] == {}
    assert [(group["scale"], group["weight_decay"]) for group in about["groups"]] == [
        (1.0, 0.0005),
        (1.0, 0.0),
        (0.5, 0.0005),
        (0.5, 0.0),
        (0.25, 0.0005),
        (0.25, 0.0),
        (0.125, 0.0005),
        (0.125, 0.0),
    ]
    assert {"lr", "momentum", "nesterov", "scale", "weight_decay"} <= set(about["groups"][0])
    assert "params" not in about["groups"][0]


def test_checkpoint_forms(run: Run) -> None:
    """How a run is computed is part of it: a form that is forgotten changes the last bits."""
    forms = run.interrupted.about["forms"]
    assert type(forms.pop("fast_jpeg")) is bool
    assert forms == {
        "dtype": "float32",
        "merged": {"layer1.0.conv2": 2, "layer2.0.conv2": 2},
        "compiled": False,
    }


def test_the_first_step_is_the_same(run: Run) -> None:
    """Order, crops and rates follow from the seed: other draws after an upgrade, another run."""
    from safetensors.torch import load

    state = load(run.interrupted.content)
    found = [float(state[f"optimizer.{i}.momentum_buffer"].norm()) for i in (0, 15, 16)]
    assert found == pytest.approx([2.026737, 0.349288, 0.850590], rel=1e-3)


def test_metrics(run: Run) -> None:
    """Dashboards read these columns."""
    (line,) = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert list(json.loads(line)) == ROW


def test_tensorboard_tags(run: Run) -> None:
    """A curve under another name stands apart from those of earlier runs."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    (path,) = run.folder.glob("events.out.tfevents.*")
    events = list(loader.EventFileLoader(str(path)).Load())
    tags = {(value.tag, event.step) for event in events for value in event.summary.value}
    assert sorted(tags) == [
        ("train/images_per_second", 1),
        ("train/loss", 1),
        ("train/rate", 1),
        ("val/accuracy", 1),
        ("val/accuracy_of_average", 1),
        ("val/nll", 1),
    ]


def test_quarantine(run: Run) -> None:
    """The list of images to repair is read by scripts."""
    with (run.folder / "quarantine.csv").open(newline="") as file:
        head, row = csv.reader(file)
    assert head == ["part", "image", "label", "reason"]
    assert row[:3] == ["train", "photos/red/07.bmp", "red"]
    assert row[3]


def test_report(run: Run) -> None:
    """Links into a report name its sections."""
    text = (run.folder / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="([^"]+)"', text) == [
        "progress",
        "confusion",
        "classes",
        "examples",
        "confidence",
        "mistakes",
        "doubts",
        "data",
        "time",
        "again",
    ]


# -- what is remembered in RESNEXT_HOME -------------------------------------------------------


def test_measured_forms(run: Run, work: Path) -> None:
    """Measurements under another key are made again, and a run may be computed otherwise."""
    (path,) = (work / "cache" / "forms").iterdir()
    assert re.fullmatch(r"[0-9a-f]{16}\.json", path.name)
    assert list(run.forms) == [
        "(8, 4, 16, 16) 4 2 (3, 3) (1, 1) (1, 1) (1, 1) torch.float32",
        "(8, 8, 16, 16) 8 2 (3, 3) (2, 2) (1, 1) (1, 1) torch.float32",
    ]
    assert all(type(merged) is int for merged in run.forms.values())


def test_probe(run: Run, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probed model is resumed and evaluated like any other, and computes nothing twice."""
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path / "cache"))
    out = tmp_path / "probed.safetensors"
    weights = run.folder.with_name("model.safetensors")
    with contextlib.chdir(work):
        model = resnext.train(
            "photos",
            weights=weights,
            recipe="probe",
            out=out,
            workers=0,
            device="cpu",
            precision="fp32",
            progress=False,
        )
    assert model.card is not None
    origin = model.card.provenance
    assert sorted(origin) == [
        "data",
        "epoch",
        "fingerprint",
        "python",
        "recipe",
        "resnext",
        "seed",
        "torch",
        "val_fraction",
        "weights",
    ]
    assert (origin["epoch"], origin["fingerprint"]) == (0, "90cd06020b8c822e")
    assert sorted(origin["recipe"]) == ["balance", "name", "strength"]
    assert (origin["recipe"]["name"], origin["recipe"]["balance"]) == ("probe", "none")
    saved = read_saved(tmp_path / "probed.run" / "checkpoint-0000000000.state")
    assert saved.about == {
        "identity": {
            "recipe": "probe",
            "seed": 0,
            "val_fraction": 0.2,
            "minutes": None,
            "weights": str(weights),
            "teacher": None,
            "classes": ["blue", "red"],
            **{f"config.{name}": value for name, value in CONFIG.items()},
            **{f"preprocessing.{name}": value for name, value in PREPROCESSING.items()},
            "recipe.balance": "none",
            "images": "7f556b84e2117ddb",
        }
    }
    (file,) = (tmp_path / "cache" / "embeddings").iterdir()
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]{16}\.safetensors", file.name)
    assert set(header_of(file.read_bytes())) == {"keys", "embeddings"}


def test_scans(run: Run, work: Path) -> None:
    """A scan that is not found again takes hours for millions of images."""
    photos = Path.cwd() / "photos"
    name = hashlib.sha256(str(photos).encode()).hexdigest()[:16]
    assert [path.name for path in (work / "cache" / "scans").iterdir()] == [f"{name}.npy"]
    records = np.load(work / "cache" / "scans" / f"{name}.npy", allow_pickle=False)
    assert records.dtype == np.dtype(
        [
            ("key", "<u8"),
            ("content", "<u8"),
            ("width", "<u4"),
            ("height", "<u4"),
            ("look", "u1", (9, 9)),
        ]
    )
    path = photos / "blue" / "00.bmp"
    stat = path.stat()
    about = f"1\0{path}\0{(stat.st_size, stat.st_mtime_ns)}\0"
    key, content = (
        int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        for data in (about.encode(), path.read_bytes())
    )
    (record,) = records[records["key"] == key]
    assert (record["content"], record["width"], record["height"]) == (content, 20, 16)


NAMES = {  # in the cache, of two addresses; hashes of the whole address
    "https://example.org/weights/pets.safetensors": "c5797f357f8b871d/pets.safetensors",
    "hf://owner/pets": "f64e7dea6b4e2895/model.safetensors",
}


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("variable", ["RESNEXT_HOME", "XDG_CACHE_HOME"])
def test_weights_in_the_cache(
    source: str, variable: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters without internet are given a cache that was filled elsewhere."""
    monkeypatch.delenv("RESNEXT_HOME")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("RESNEXT_OFFLINE", "1")
    home = tmp_path if variable == "RESNEXT_HOME" else tmp_path / "resnext"
    path = home / NAMES[source]
    path.parent.mkdir(parents=True)
    path.write_bytes((work / "pets.safetensors").read_bytes())
    stat = path.stat()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    note = {"url": "", "sha256": sha256, "size": stat.st_size, "time": stat.st_mtime_ns}
    path.with_name(f"{path.name}.json").write_text(json.dumps(note))
    network = resnext.load(source)
    assert network.card is not None
    assert network.card.labels == ("ant", "bee", "cat", "dog")


def test_downloads(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a download is continued after an upgrade, and a whole one is trusted."""
    content = (work / "pets.safetensors").read_bytes()
    half, whole = len(content) // 2, threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            if start:
                assert self.headers["If-Range"] == '"one"'
                self.send_response(206)
                extent = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", extent)
            else:
                self.send_response(200)
            self.send_header("ETag", '"one"')
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:] if whole.is_set() else content[start:half])

        def log_message(self, format: str, *args: Any) -> None:
            pass

    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/pets.safetensors"
        folder = tmp_path / hashlib.sha256(url.encode()).hexdigest()[:16]
        with pytest.raises(resnext.ResNeXtError):
            resnext.load(url)
        assert sorted(path.name for path in folder.iterdir()) == [
            "pets.safetensors.lock",
            "pets.safetensors.part",
            "pets.safetensors.part.json",
        ]
        assert (folder / "pets.safetensors.part").read_bytes() == content[:half]
        mark = json.loads((folder / "pets.safetensors.part.json").read_text())
        assert mark == {"mark": '"one"'}
        whole.set()
        resnext.load(url)
        server.shutdown()
    assert sorted(path.name for path in folder.iterdir()) == [
        "pets.safetensors",
        "pets.safetensors.json",
        "pets.safetensors.lock",
    ]
    stat = (folder / "pets.safetensors").stat()
    assert json.loads((folder / "pets.safetensors.json").read_text()) == {
        "url": url,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": stat.st_size,
        "time": stat.st_mtime_ns,
    }


def test_shards_in_the_cache(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terabytes of shards must not be downloaded again, nor their samples read differently."""
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path))
    monkeypatch.setenv("RESNEXT_OFFLINE", "1")
    shard = tmp_path / "shards" / "e14aa35932ff1938" / "train-0.tar"
    names = tmp_path / "shards" / "49efa8475e8a5c8e" / "classnames.txt"
    shard.parent.mkdir(parents=True)
    names.parent.mkdir(parents=True)
    names.write_text("ant\nbee\n")
    image = (work / "photos" / "blue" / "00.bmp").read_bytes()
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i, (end, label) in enumerate((("cls", b"0"), ("json", b'{"label": 1}')) * 2):
            for name, content in ((f"{i}.bmp", image), (f"{i}.{end}", label)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    splits = open_splits("https://example.org/data/train-0.tar")
    assert splits.train.labels == ("ant", "bee")
    assert [*splits.train.counts()] == [1, 1]
    assert splits.fingerprint == "956f485116e1f22f"


def test_parquet_in_the_cache(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of Parquet files are copied once: a copy that is not found doubles the disk used."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path / "cache"))
    image = (work / "photos" / "blue" / "00.bmp").read_bytes()
    rows = [{"bytes": image, "path": None}] * 4 + [None]
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": rows, "label": ["b", "a", "b", "a", "a"]}), path)
    splits = open_splits(path)
    end = path.read_bytes()[-8:-4]
    footer = path.read_bytes()[-8 - int.from_bytes(end, "little") : -8]
    key = f"{path.stat().st_size} {hashlib.sha256(footer).hexdigest()}"
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = tmp_path / "cache" / "images"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{name}.bin",
        f"{name}.bin.lock",
        f"{name}.npz",
    ]
    assert (folder / f"{name}.bin").read_bytes() == 4 * image
    with np.load(folder / f"{name}.npz", allow_pickle=False) as saved:
        arrays = {name: saved[name] for name in saved.files}
    about = json.loads(arrays.pop("about").tobytes())
    assert about == {"texts": ["b", "a"], "known": None, "lacking": [[4, "image"]]}
    assert {name: (x.dtype.str, x.tolist()) for name, x in arrays.items()} == {
        "rows": ("<i8", [0, 1, 2, 3]),
        "offsets": ("<i8", [i * len(image) for i in range(4)]),
        "sizes": ("<i8", [len(image)] * 4),
        "classes": ("<i8", [0, 1, 0, 1]),
    }
    assert splits.fingerprint == hashlib.sha256(name.encode()).hexdigest()[:16]


def test_fingerprints_of_data() -> None:
    """By its fingerprint, `evaluate` knows the data of the training and holds the same images out.

    Another one lets old models be measured on images they were trained on.
    """
    photos = open_splits("photos")
    assert photos.fingerprint == "90cd06020b8c822e"
    assert [photos.val.title(i) for i in range(len(photos.val))] == [
        *(f"photos/blue/{i}.bmp" for i in ("04", "10", "11", "18", "21")),
        *(f"photos/red/{i}.bmp" for i in ("02", "04", "13", "18", "19")),
    ]
    rows = [f"photos/{label}/0{i}.bmp,{label}" for i in range(3) for label in ("blue", "red")]
    Path("list.csv").write_text("\n".join(["path,label", *rows, ""]))
    assert open_splits("list.csv").fingerprint == "b756303099aa6a4e"  # in the order of paths
    pytest.importorskip("sklearn")
    assert open_splits("digits").fingerprint == "scikit-learn digits"


# -- plans ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned(work: Path) -> Path:
    """A model in a folder of its own, after `resnext optimize`; its cache is beside it."""
    folder = work / "planned"
    folder.mkdir()
    path = folder / "pets.safetensors"
    path.write_bytes((work / "pets.safetensors").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNEXT_HOME", str(folder / "cache"))
        how = ("--engine", "torch", "--precision", "fp32", "--batch-size", 2, "--device", "cpu")
        assert typed(patch, "optimize", path, *how) == 0
    return path


def test_plan(planned: Path) -> None:
    """A plan that is not understood any more leaves the model many times slower."""
    assert sorted(path.name for path in planned.parent.iterdir()) == [
        "cache",
        "pets.plan.json",
        "pets.safetensors",
    ]
    about = json.loads(planned.with_name("pets.plan.json").read_text())
    assert sorted(about) == ["format", "plans"]
    assert about["format"] == 1
    (plan,) = about["plans"]
    chosen, plain = plan.pop("rows")
    form = {"engine": "torch", "precision": "fp32", "piece": 2, "streams": 1, "width": 0}
    machine = plan.pop("machine")
    assert plan == {
        "model": PETS_DIGEST,
        "form": form,
        "batch": 2,
        "size": 12,
        "device": "cpu",
        "request": '["fp32", "torch", null]',
        "version": metadata.version("torch"),
        "file": hashlib.sha256(planned.read_bytes()).hexdigest(),
    }
    assert re.fullmatch(r".+, \d+ threads", machine)
    assert list(chosen) == [
        "form",
        "images_per_second",
        "verdict",
        "difference",
        "agreement",
        "accuracy",
    ]
    assert (chosen["form"], chosen["verdict"], chosen["agreement"]) == (form, "chosen", 1.0)
    assert list(plain) == list(chosen)
    assert plain["form"] is None
    versions = []
    for package in ("torch", "torch", "torch-tensorrt", "onnxruntime", "openvino"):
        try:
            versions.append(metadata.version(package))
        except metadata.PackageNotFoundError:
            versions.append("")
    key = json.dumps([PETS_DIGEST, machine, 2, 12, '["fp32", "torch", null]', versions])
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    (path,) = (planned.parent / "cache").rglob("*.*")
    assert path == planned.parent / "cache" / "plans" / PETS_DIGEST[:16] / f"{name}.plan.json"
    (kept,) = json.loads(path.read_text())["plans"]
    assert kept["file"] == ""


def tradeoff(form: EngineConfig) -> Tradeoff:
    """One row in the middle, and the reference."""
    rows = (
        FrontierRow(form, 12, 13, 5.0, "chosen", 0.5, (0.25, 0.75), 0.125, (-0.25, 0.5)),
        FrontierRow(None, 16, 18, 1.0, "reference", 0.625, (0.5, 0.75), 0.0),
    )
    return Tradeoff(12.5, 13, 1.5, None, "photos", 8, 4, rows)


def test_plan_that_gives_up_accuracy(planned: Path, tmp_path: Path) -> None:
    """Without its size and crop, images would be prepared wrongly and nothing would say so."""
    (plain,) = read_plans(planned.with_name("pets.plan.json"))
    path = tmp_path / "a.plan.json"
    write_plans(path, [replace(plain, tradeoff=tradeoff(plain.form))])
    (about,) = json.loads(path.read_text())["plans"]
    row = {
        "form": {"engine": "torch", "precision": "fp32", "piece": 2, "streams": 1, "width": 0},
        "size": 12,
        "resize": 13,
        "images_per_second": 5.0,
        "verdict": "chosen",
        "accuracy": 0.5,
        "interval": [0.25, 0.75],
        "loss": 0.125,
        "loss_interval": [-0.25, 0.5],
    }
    last = {"form": None, "size": 16, "resize": 18, "images_per_second": 1.0}
    last |= {"verdict": "reference", "accuracy": 0.625, "interval": [0.5, 0.75]}
    assert about["tradeoff"] == {
        "max_loss": 12.5,
        "resize": 13,
        "temperature": 1.5,
        "threshold": None,
        "data": "photos",
        "deciding": 8,
        "calibrating": 4,
        "rows": [row, {**last, "loss": 0.0, "loss_interval": None}],
    }
    assert read_plans(path)[0].tradeoff == tradeoff(plain.form)


@pytest.mark.parametrize("engine", ["torch", "compile", "tensorrt", "onnxruntime", "openvino"])
def test_names_of_engines(
    engine: str,
    planned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A plan of another machine is left alone; one whose engine is unknown is called damaged."""
    plan = json.loads(planned.with_name("pets.plan.json").read_text())["plans"][0]
    plan["machine"] = "Pentium, 1 threads"
    plan["form"] = {"engine": engine, "precision": "bf16", "piece": 1, "streams": 4, "width": 16}
    plan["rows"][0]["form"]["precision"] = "int8"
    (tmp_path / "a.safetensors").write_bytes(planned.read_bytes())
    text = json.dumps({"format": 1, "plans": [plan]})
    (tmp_path / "a.plan.json").write_text(text)
    assert typed(monkeypatch, "predict", tmp_path / "a.safetensors", "photos/blue/00.bmp") == 0
    assert "Pentium" in capsys.readouterr().err


@cache
def openvino_core() -> Any:
    """One that is never freed."""
    return import_module("openvino").Core()


def graph(kind: str) -> bytes:
    """An ONNX file that answers "bee", whatever it sees."""
    from onnx import TensorProto, helper

    def constant(name: str, values: list[list[float]]) -> Any:
        flat = [x for row in values for x in row]
        return helper.make_tensor(name, TensorProto.FLOAT, (len(values), len(values[0])), flat)

    side = 12
    if kind == "pixels":
        images = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", side, side, 3])
        nodes = [
            helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["x"], ["planes"], perm=[0, 3, 1, 2]),
        ]
    else:
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, side, side])
        nodes = [helper.make_node("Identity", ["images"], ["planes"])]
    nodes += [
        helper.make_node("GlobalAveragePool", ["planes"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "bias"], ["logits"]),
        helper.make_node("MatMul", ["flat", "wide"], ["embedding"]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", count])
        for name, count in (("logits", 4), ("embedding", 64))
    ]
    fixed = [
        constant("zero", [[0.0] * 4] * 3),
        constant("bias", [[0.0, 9.0, 0.0, 0.0]]),
        constant("wide", [[1.0] * 64] * 3),
    ]
    made = helper.make_graph(nodes, "g", [images], outputs, fixed)
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(made, opset_imports=opset, ir_version=8).SerializeToString()


@pytest.mark.parametrize(
    ("engine", "precision", "name"),
    [
        ("onnxruntime", "fp32", "{kind}-12-16-{version}.onnx"),
        ("openvino", "fp32", "{kind}-12-16-{version}.xml"),
        ("openvino", "int8", "{kind}-12-16-{version}-int8-a68086c7.xml"),
    ],
)
def test_names_of_graphs(
    engine: str,
    precision: str,
    name: str,
    planned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph under another name is made again, which takes minutes; in 8 bits it is lost."""
    pytest.importorskip(engine)
    pytest.importorskip("onnx")
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path / "cache"))
    path = tmp_path / "pets.safetensors"
    path.write_bytes(planned.read_bytes())
    plan = json.loads(planned.with_name("pets.plan.json").read_text())["plans"][0]
    form = {"engine": engine, "precision": precision, "piece": 1, "streams": 1, "width": 16}
    plan |= {"form": form, "version": metadata.version(engine)}
    path.with_name("pets.plan.json").write_text(json.dumps({"format": 1, "plans": [plan]}))
    folder = tmp_path / "cache" / "plans" / PETS_DIGEST[:16]
    folder.mkdir(parents=True)
    for kind in ("images", "pixels"):
        file = folder / name.format(kind=kind, version=resnext.__version__)
        if engine == "onnxruntime":
            file.write_bytes(graph(kind))
        else:
            ov = import_module("openvino")
            ov.save_model(openvino_core().read_model(graph(kind)), file, compress_to_fp16=False)
    (answer,) = resnext.predict(path, ["photos/blue/00.bmp"])
    assert answer.labels == ("bee",)


def test_fingerprints_of_models(planned: Path) -> None:
    """Predictions that were interrupted are continued only with the model they were begun with.

    The text of config and preprocessing is part of these hashes, so no word of it may change.
    """
    plain: Any = open_runner("pets.safetensors", device="cpu")
    assert plain.fingerprint == PETS_DIGEST
    fast: Any = open_runner(planned, device="cpu")
    assert fast.fingerprint == f"{PETS_DIGEST} torch fp32 1 × 2 images"
    fast.plan = replace(
        fast.plan, form=replace(fast.plan.form, precision="int8"), tradeoff=tradeoff(fast.plan.form)
    )
    digest = hashlib.sha256(b'["fp32", "torch", null] 2').hexdigest()[:8]
    assert fast.fingerprint == (f"{PETS_DIGEST} torch int8 {digest} 1 × 2 images 12 of 13 pixels")


def test_reprs_that_are_hashed() -> None:
    """Plans, graphs and interrupted predictions are found by hashes of these texts."""
    config = ResNeXtConfig(
        (3, 4, 6, 3),
        32,
        4,
        stem_type="deep",
        attention="se",
        strides=(1, 2, 2, 2),
        block_args={"se_args": {"reduction": 8}},
        drop_path_rate=0.1,
    )
    assert repr(config) == (
        "ResNeXtConfig(layers=(3, 4, 6, 3), cardinality=32, base_width=4, stem_type='deep', "
        "block_args={'se_args': {'reduction': 8}}, strides=(1, 2, 2, 2), attention='se', "
        "drop_path_rate=0.1)"
    )
    assert repr(Preprocessing(16, 18, mean=(0.5,), std=(0.25,), colour="L")) == (
        "Preprocessing(size=16, resize=18, interpolation='bilinear', mean=(0.5,), std=(0.25,), "
        "colour='L')"
    )
    text = ResNeXtConfig.from_dict(CONFIG).to_json()
    assert list(json.loads(text).items()) == list(CONFIG.items())


# -- answers ----------------------------------------------------------------------------------


@pytest.fixture
def some_images(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three images in the working directory, of which the second is broken."""
    monkeypatch.chdir(tmp_path)
    for name, label in (("a.bmp", "blue"), ("c.bmp", "red")):
        Path(name).write_bytes((work / "photos" / label / "00.bmp").read_bytes())
    Path("b.bmp").write_bytes(b"broken")
    return ["a.bmp", "b.bmp", "c.bmp"]


def test_predictions(work: Path, some_images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of answers are read by programs of others."""
    for kind in ("csv", "jsonl", "parquet"):
        how = ("--top", 2, "--out", f"p.{kind}", "--embeddings", f"{kind}.npy", "--device", "cpu")
        assert typed(monkeypatch, "predict", work / "pets.safetensors", *some_images, *how) == 0
    with Path("p.csv").open(newline="") as file:
        rows = [*csv.reader(file)]
    assert rows[0] == [
        "path",
        "error",
        "label",
        "probability",
        "label_2",
        "probability_2",
        "sure",
    ]
    assert rows[1] == ["a.bmp", "", "dog", "0.643914", "cat", "0.236883", "true"]
    assert [rows[2][0], *rows[2][2:]] == ["b.bmp", "", "", "", "", ""]
    assert rows[2][1]
    first, bad, _ = map(json.loads, Path("p.jsonl").read_text().splitlines())
    assert list(first.items()) == [
        ("path", "a.bmp"),
        ("labels", ["dog", "cat"]),
        ("probabilities", [0.643914, 0.236883]),
        ("sure", True),
    ]
    assert list(bad) == ["path", "error"]
    table = pytest.importorskip("pyarrow.parquet").read_table("p.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("path", "string"),
        ("error", "string"),
        ("label", "string"),
        ("probability", "double"),
        ("label_2", "string"),
        ("probability_2", "double"),
        ("sure", "bool"),
    ]
    embeddings = np.load("csv.npy")
    assert (embeddings.dtype.str, embeddings.shape) == ("<f4", (3, 64))
    assert np.isnan(embeddings[1]).all()


def test_journal_of_predictions(work: Path, some_images: list[str]) -> None:
    """Millions of answers that were interrupted before an upgrade would have to start over."""
    runner: Any = open_runner(work / "pets.safetensors", device="cpu")

    class Failing:
        card, config, batch, fingerprint = runner.card, runner.config, 1, runner.fingerprint
        left = 1

        def pixels(self, x: np.ndarray) -> Any:
            if not self.left:
                raise RuntimeError("the power fails")
            self.left -= 1
            return runner.pixels(x)

    how: dict[str, Any] = {"top": 2, "embeddings": "e.npy", "batch_size": 1}
    with pytest.raises(RuntimeError, match="the power fails"):
        predict_files(Failing(), some_images, "p.csv", **how)
    assert not {"p.csv", "e.npy"} & {path.name for path in Path().iterdir()}
    head, *rows = map(json.loads, Path("p.csv.part").read_text().splitlines())
    assert head == {
        "resnext": 1,
        "model": "62a99ba368229691904572ff7983b95e0669e03ec7dae061f6b25a0c438327dc",
        "top": 2,
        "images": "0b92c4b92a0f57f69178e16618c8041ed74856815ae25d8cf75962b158d1d104",
        "count": 3,
        "embeddings": str(Path.cwd() / "e.npy"),
    }
    assert rows[0] == {
        "path": "a.bmp",
        "labels": ["dog", "cat"],
        "probabilities": [0.643914, 0.236883],
        "sure": True,
    }
    assert Path("e.npy.part").read_bytes()[:6] == b"\x93NUMPY"
    done = predict_files(runner, some_images, "p.csv", **how)
    assert (done.count, done.resumed, done.unreadable) == (3, len(rows), 1)


def test_evaluation(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of quality are made from this JSON."""
    out = tmp_path / "e.json"
    model = run.folder.with_name("model.safetensors")
    given = ("evaluate", model, "photos", "--json", out, "--device", "cpu")
    assert typed(monkeypatch, *given) == 0
    about = json.loads(out.read_text())
    names = [
        "data",
        "count",
        "accuracy",
        "top5",
        "nll",
        "ece",
        "interval",
        "skipped",
        "classes",
        "confusions",
    ]
    assert list(about) == names
    assert [list(row) for row in about["classes"]] == [
        ["label", "images", "recall", "precision", "f1"]
    ] * 2
    assert (about["count"], about["top5"], len(about["interval"])) == (10, None, 2)
    assert typed(monkeypatch, *given, "--against", model) == 0
    about = json.loads(out.read_text())
    assert list(about) == ["a", "b", "only_a", "only_b", "p"]
    assert list(about["a"]) == list(about["b"]) == names


def test_benchmark(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts of speed over time are drawn from this JSON."""
    for package in ("torchvision", "timm", "onnxruntime", "openvino", "nncf"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(timing, "_SIDE", 128)  # the peak takes seconds
    model = work / "pets.safetensors"
    how: dict[str, Any] = {"seconds": 0.001, "memory": False}
    about = json.loads(json.dumps(bench(model, batches=[1], precision="fp32", **how).to_dict()))
    assert list(about) == [
        "machine",
        "threads",
        "versions",
        "name",
        "size",
        "peaks",
        "rows",
        "ratios",
    ]
    assert (about["threads"], about["size"], list(about["peaks"])) == (1, 12, ["fp32"])
    assert {"resnext", "torch"} <= set(about["versions"])
    assert about["ratios"] == []
    assert [row["who"] for row in about["rows"]] == [
        "torchvision",
        "timm",
        "timm, channels-last",
        "ONNX Runtime",
        "OpenVINO",
        "resnext",
    ]
    for row in about["rows"]:
        assert list(row) == [
            "who",
            "precision",
            "batch",
            "images_per_second",
            "p50",
            "p99",
            "fraction",
            "memory",
            "difference",
            "how",
            "note",
        ]


# -- files for others -------------------------------------------------------------------------


def test_hub_folder(tmp_path: Path) -> None:
    """The Hub and timm read these files; `resnext` and `label_names` are what they look for."""
    network = pets()
    folder = save_pretrained(network, tmp_path / "pets", repo="me/pets")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert json.loads((folder / "config.json").read_text()) == {
        "library": "resnext",
        "label_names": ["ant", "bee", "cat", "dog"],
        "num_classes": 4,
    }
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    assert head.splitlines() == [
        "library_name: resnext",
        "pipeline_tag: image-classification",
        "tags:",
        "- image-classification",
        "- resnext",
        "- pytorch",
    ]
    assert 'model = resnext.load("hf://me/pets")' in text


def test_hub_folder_for_timm(tmp_path: Path) -> None:
    """What timm builds the network from, and prepares its images with."""
    network = resnext.create("resnext50_32x4d", num_classes=2).half()
    network.card = Card(("a", "b"), Preprocessing(224, 256), licence="mit")
    folder = save_pretrained(network, tmp_path / "pets")
    assert json.loads((folder / "config.json").read_text()) == {
        "architecture": "resnext50_32x4d",
        "num_classes": 2,
        "num_features": 2048,
        "model_args": {"in_chans": 3},
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": 2,
            "license": "mit",
            "first_conv": "conv1",
            "classifier": "fc",
        },
        "library": "resnext",
        "label_names": ["a", "b"],
    }
    head = (folder / "README.md").read_text().split("---\n", 2)[1].splitlines()
    assert {"license: mit", "- timm"} <= set(head)


def test_converted_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries find weights, classes and config under these names only."""
    from safetensors import safe_open

    network = ResNeXt(ResNeXtConfig((1, 1, 1, 1), 2, 4, num_classes=2))
    network.card = Card(("a", "b"), Preprocessing(32, 32))
    monkeypatch.chdir(tmp_path)
    resnext.save(network.eval(), "a.safetensors")
    done = resnext.convert("a.safetensors", "t.safetensors", to="torchvision")
    assert done._fields == ("path", "source", "target", "config", "parity")
    assert done.parity._fields == ("difference", "largest", "through", "images", "photographs")
    assert (done.source, done.target) == ("resnext", "torchvision")
    with safe_open("t.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(network.state_dict())
    resnext.convert("a.safetensors", "l.lcd", to="lucid")
    lucid = pickle.loads(Path("l.lcd").read_bytes())
    assert list(lucid) == ["type", "format_version", "content"]
    assert (lucid["type"], lucid["format_version"]) == ("OrderedDict", 1.1)
    assert {"stem.0.weight", "layer4.0.conv1.conv.weight", "layer4.0.conv3.1.weight"} < set(
        lucid["content"]
    )


MMCLS_CONFIG = (
    "model = {'type': 'ImageClassifier', 'backbone': {'type': 'SEResNeXt', 'depth': 50, "
    "'groups': 2, 'width_per_group': 2, 'in_channels': 3, 'stem_channels': 64, "
    "'base_channels': 16, 'expansion': 4, 'num_stages': 1, 'strides': (1,), 'dilations': (1,), "
    "'out_indices': (0,), 'style': 'pytorch', 'deep_stem': False, 'avg_down': False, "
    "'conv_cfg': {'type': 'Conv2d'}, 'norm_cfg': {'type': 'BN', 'eps': 1e-05}, 'se_ratio': 16}, "
    "'neck': {'type': 'GlobalAveragePooling'}, 'head': {'type': 'LinearClsHead', "
    "'num_classes': 2, 'in_channels': 64}}\n"
)


def test_converted_files_for_mmcls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools of OpenMMLab build the network from the text in the file."""
    config = ResNeXtConfig(
        (3,), 2, 8, num_classes=2, num_stages=1, channels=(16,), attention="se", se_rounding="mmcls"
    )
    network = ResNeXt(config)
    network.card = Card(("a", "b"), Preprocessing(32, 32))
    monkeypatch.chdir(tmp_path)
    resnext.save(network.eval(), "a.safetensors")
    resnext.convert("a.safetensors", "m.pth", to="mmcls")
    content = torch.load("m.pth", weights_only=True)
    assert list(content) == ["meta", "state_dict"]
    assert content["meta"] == {"CLASSES": ("a", "b"), "config": MMCLS_CONFIG}
    assert {"backbone.conv1.weight", "head.fc.bias"} < set(content["state_dict"])
    network = ResNeXt(config.replace(attention=None))
    network.card = Card(("a", "b"), Preprocessing(32, 32))
    resnext.save(network.eval(), "b.safetensors")
    resnext.convert("b.safetensors", "d.pth", to="mmdet")
    content = torch.load("d.pth", weights_only=True)
    assert (list(content), list(content["meta"])) == (["meta", "state_dict"], ["CLASSES"])
    assert {"conv1.weight", "bn1.bias", "layer1.0.conv2.weight"} < set(content["state_dict"])


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norm(name: str) -> list[str]:
    """Keys of a batch norm."""
    return [f"{name}.{key}" for key in NORM]


def test_state_dict_keys() -> None:
    """`torch.load` of weights that were saved by hand would fail."""
    config = ResNeXtConfig(
        (1,),
        2,
        8,
        num_classes=3,
        num_stages=1,
        channels=(8,),
        stem_type="deep",
        attention="se",
        avg_down=True,
    )
    backbone = [
        "conv1.0.weight",
        *norm("conv1.1"),
        "conv1.3.weight",
        *norm("conv1.4"),
        "conv1.6.weight",
        *norm("bn1"),
        "layer1.0.conv1.weight",
        *norm("layer1.0.bn1"),
        "layer1.0.conv2.weight",
        *norm("layer1.0.bn2"),
        "layer1.0.conv3.weight",
        *norm("layer1.0.bn3"),
        "layer1.0.se.fc1.weight",
        "layer1.0.se.fc1.bias",
        "layer1.0.se.fc2.weight",
        "layer1.0.se.fc2.bias",
        "layer1.0.downsample.1.weight",
        *norm("layer1.0.downsample.2"),
    ]
    assert list(ResNeXt(config).state_dict()) == [*backbone, "fc.weight", "fc.bias"]
    assert list(Backbone(config).state_dict()) == backbone


def test_state_dict_keys_of_mmcls() -> None:
    """Checkpoints of mmcls and mmdet load strictly, so every key counts."""
    one: dict[str, Any] = {"num_stages": 1, "strides": (1,), "dilations": (1,), "out_indices": (0,)}
    with torch.device("meta"):
        plain = mmcls.ResNeXt(50, **one)
        group = {"type": "GN", "num_groups": 4}
        gated = mmcls.SEResNeXt(50, deep_stem=True, norm_cfg=group, **one)
    assert [key for key in plain.state_dict() if not key.startswith(("layer1.1", "layer1.2"))] == [
        "conv1.weight",
        *norm("bn1"),
        "layer1.0.conv1.weight",
        *norm("layer1.0.bn1"),
        "layer1.0.conv2.weight",
        *norm("layer1.0.bn2"),
        "layer1.0.conv3.weight",
        *norm("layer1.0.bn3"),
        "layer1.0.downsample.0.weight",
        *norm("layer1.0.downsample.1"),
    ]
    assert [key for key in gated.state_dict() if key.endswith("weight")][:11] == [
        "stem.0.conv.weight",
        "stem.0.gn.weight",
        "stem.1.conv.weight",
        "stem.1.gn.weight",
        "stem.2.conv.weight",
        "stem.2.gn.weight",
        "layer1.0.conv1.weight",
        "layer1.0.gn1.weight",
        "layer1.0.conv2.weight",
        "layer1.0.gn2.weight",
        "layer1.0.conv3.weight",
    ]
    assert [key for key in gated.state_dict() if key.startswith("layer1.0.se")] == [
        "layer1.0.se_layer.conv1.conv.weight",
        "layer1.0.se_layer.conv1.conv.bias",
        "layer1.0.se_layer.conv2.conv.weight",
        "layer1.0.se_layer.conv2.conv.bias",
    ]


def test_dilations_of_blocks() -> None:
    """A nested list; the field that timm's dilated networks need is there only if it is set."""
    config = ResNeXtConfig((1, 2), 2, 8, num_stages=2, channels=(16, 32), dilations=(1, (1, 2)))
    assert config.to_dict()["dilations"] == [1, [1, 2]]
    assert repr(config).endswith("num_stages=2, dilations=(1, (1, 2)))")
    pooling = config.replace(keep_pooling=True).to_dict()
    assert pooling == {**config.to_dict(), "keep_pooling": True}
    assert ResNeXtConfig.from_dict(pooling).keep_pooling


# -- what scripts are written with ------------------------------------------------------------

FUNCTIONS = {  # a star stands before what is given by name only
    "catalog": "*licence *min_top1 *max_gmacs *variant",
    "convert": "source path *to *images *labels *config *overwrite *progress",
    "create": "name *output_stride *dilation_convention overrides",
    "diagnose": "path",
    "evaluate": "model data *batch_size *workers *device *views *keep_logits *plan *progress",
    "export": "model path *to *input *outputs *sizes *precision *max_batch *index *overwrite",
    "explain": "model image *label *against *how *stage *fine *gamma *check *like *index *device "
    "*plan",
    "load": "source *num_classes *in_channels *config *output_stride *dilation_convention *device "
    "*progress",
    "load_backbone": "source *out_indices *frozen_stages *norm_eval *checkpointing *with_stem "
    "*in_channels *config *output_stride *dilation_convention *device *progress",
    "optimize": "model *precision *engine *batch *data *max_loss *device *again *progress",
    "predict": "model images *top *batch_size *device *plan *like *index *unreadable *progress",
    "save": "model path",
    "serve": "model *host *port *token *allow_hosts *allow_origins *open_to_all *gate *reference "
    "*watch *device *plan *max_images *max_megabytes *replicas",
    "distill": "teacher data model *unlabelled options",
    "train": "data model *weights *teacher *unlabelled *out *recipe *size *seed *val_fraction "
    "*workers *device *precision *compile *sync_norms *resume *retries *checkpoint_minutes "
    "*minutes *dry_run "
    "*overwrite *index *progress changes",
    "variant": "name overrides",
    "variants": "",
}


def test_public_names() -> None:
    """Programs of others import these names and give these arguments."""
    classes = {"Backbone", "Card", "Preprocessing", "ResNeXt", "ResNeXtConfig", "ResNeXtError"}
    assert set(resnext.__all__) == {*classes, "mmcls", *FUNCTIONS}
    for name, wanted in FUNCTIONS.items():
        parameters = inspect.signature(getattr(resnext, name)).parameters.values()
        found = [("*" if p.kind is p.KEYWORD_ONLY else "") + p.name for p in parameters]
        assert found == wanted.split(), name
    assert mmcls.__all__ == [
        "BACKBONES",
        "Bottleneck",
        "ConvModule",
        "ImageClassifier",
        "ResLayer",
        "ResNeXt",
        "SEBottleneck",
        "SELayer",
        "SEResNeXt",
        "build",
        "read_config",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "resnext.benchmark.bench",
        "resnext.prediction.predict_files",
        "resnext.prediction.drift.DriftMonitor",
        "resnext.prediction.drift.find_drift",
        "resnext.prediction.drift.read_answers",
        "resnext.data.open_splits",
        "resnext.evaluation.compare",
        "resnext.weights.hub.push",
        "resnext.weights.hub.save_pretrained",
        "resnext.training.RECIPES",
        "resnext.training.Recipe",
        "resnext.training.train",
    ],
)
def test_documented_paths(name: str) -> None:
    """README, docs and changelog tell people to import them from there."""
    module, _, attribute = name.rpartition(".")
    assert hasattr(import_module(module), attribute)


def test_names_people_type() -> None:
    """Recipes, variants and checkpoints are chosen by name, in scripts and old provenance."""
    assert list(RECIPES) == [
        "small",
        "quick",
        "large",
        "finetune",
        "paper",
        "torchvision_v2",
        "rsb_a1",
        "rsb_a2",
        "rsb_a3",
        "cifar",
        "digits",
        "distill",
    ]
    variants, rows = resnext.variants(), sorted(row.name for row in resnext.catalog())
    hashes = [hashlib.sha256("\n".join(x).encode()).hexdigest()[:16] for x in (variants, rows)]
    assert (len(variants), hashes[0]) == (40, "941c90457cf1b61f")
    assert (len(rows), hashes[1]) == (67, "c0b1111408c0dbb7")


OPTIONS = {  # choices stand behind a colon
    "info": "NAME --size,-s --labels --mean --std",
    "train": "DATA --model,-m --config --weights,-w --out,-o --recipe,-r --epochs --batch-size "
    "--learning-rate,--lr --set --size --seed --val-fraction --workers --device "
    "--precision:auto|fp32|bf16|fp16 --compile,--no-compile --sync-norms --resume --retries "
    "--checkpoint-minutes --minutes --dry-run --overwrite --index,--no-index",
    "distill": "TEACHER --data --unlabelled --model,-m --config --weights,-w --out,-o --recipe,-r "
    "--epochs --batch-size --learning-rate,--lr --set --size --seed --val-fraction --workers "
    "--device --precision:auto|fp32|bf16|fp16 --compile,--no-compile --sync-norms --resume "
    "--retries --checkpoint-minutes --minutes --dry-run --overwrite --index,--no-index",
    "evaluate": "FILE DATA --views:1|2|10 --against --json --batch-size --workers --device "
    "--plan,--no-plan --labels --size --mean --std",
    "compare": "A B DATA --max-loss --sheet --views:1|2|10 --json --batch-size --workers --device "
    "--plan,--no-plan",
    "predict": "FILE IMAGES --top --out,-o --embeddings --sheet --limit --batch-size --workers "
    "--device --plan,--no-plan --like --similar --index --ray --overwrite --labels --size --mean "
    "--std",
    "drift": "ANSWERS --reference,-r --alpha --json",
    "explain": "FILE IMAGES --class --against --how --stage --fine "
    "--check,--no-check --sanity --html --out,-o --json --limit --like --device --plan,--no-plan",
    "index": "PHOTOS --model,-m --out,-o --device --plan,--no-plan",
    "review": "DATA --model,-m --out,-o --doubts --apply --undo --map --port "
    "--browser,--no-browser --device --plan,--no-plan",
    "serve": "FILE --host --port --token-file --no-token --allow-host --allow-origin --watch "
    "--gate --reference --device --plan,--no-plan --max-images --max-megabytes "
    "--ray --replicas --example",
    "export": "FILE --to:onnx|openvino|torch|executorch|page --out,-o --input --outputs --sizes "
    "--precision --max-batch --index --no-index --overwrite",
    "optimize": "FILE --precision:auto|fp32|bf16|fp16|int8 "
    "--engine:auto|torch|compile|tensorrt|onnxruntime|openvino --batch-size,-b --data --max-loss "
    "--device --labels --size --mean --std --again",
    "bench": "MODEL --batch-size --precision:auto|fp32|bf16|int8 --data --compiled --plot --json",
    "catalog": "--licence --min-top1 --max-gmacs --variant --plot",
    "convert": "SOURCE PATH --to:torchvision|timm|mmcls|mmdet|lucid|resnext --images --labels "
    "--overwrite",
    "doctor": "FILE",
    "push": "FILE REPO --private",
}


def test_commands() -> None:
    """A command line in somebody's script must mean the same tomorrow."""
    assert [name for name in app if not name.startswith("-")] == list(OPTIONS)
    for command, wanted in OPTIONS.items():
        found: list[str] = []
        for argument in app[command].assemble_argument_collection().filter_by(parse=True):
            hint = argument.hint
            choices = get_args(hint) if get_origin(hint) is Literal else ()
            end = f":{'|'.join(map(str, choices))}" if choices else ""
            found.append(",".join(argument.names) + end)
        assert found == wanted.split(), command
    assert {"--debug"} <= {
        name for a in app.meta.assemble_argument_collection() for name in a.names
    }


def test_exit_codes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers tell by them what to do next: repair, give up, or start again with --resume."""
    assert typed(monkeypatch, "info") == 0
    assert typed(monkeypatch, "train", "nowhere") == 2
    assert typed(monkeypatch, "train", "--colour") == 2
    network = pets()
    with torch.no_grad():
        network.fc.bias.fill_(float("nan"))
    resnext.save(network, tmp_path / "sick.safetensors")
    assert typed(monkeypatch, "doctor", tmp_path / "sick.safetensors") == 1
    assert typed(monkeypatch, "doctor", run.folder.with_name("model.safetensors")) == 0

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", interrupted)
        assert typed(patch, "predict", "pets.safetensors", "photos/blue/00.bmp") == 130
    how = ("--model", "resnext11_8x16d", "--batch-size", 8, "--size", 32, "--precision", "fp32")
    out = ("--out", tmp_path / "m.safetensors", "--workers", 0, "--device", "cpu")
    with terminated():
        assert typed(monkeypatch, "train", "photos", *how, *out, "--epochs", 1) == 143
