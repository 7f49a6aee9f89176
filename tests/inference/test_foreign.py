"""Classifiers in ONNX and OpenVINO files that others exported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from inference_cases import pictures
from PIL import Image
from torch import nn

import resnext
from resnext.cli.app import main
from resnext.errors import CheckpointError, InputError
from resnext.inference.engines.base import silenced
from resnext.inference.engines.openvino import openvino_core
from resnext.inference.exported import Exported
from resnext.inference.foreign import Given
from resnext.prediction import predict_files

BILINEAR = Image.Resampling.BILINEAR

LABELS = ("ant", "bee", "cat", "dog")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
GIVEN = Given(LABELS, None, MEAN, STD)


class Net(nn.Module):
    """Somebody's network."""

    def __init__(self, *, softmax: bool = False, last: bool = False, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(channels, 8, 3, 2), nn.Linear(8, len(LABELS))
        self.softmax, self.last = softmax, last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits or probabilities."""
        if self.last:
            x = x.permute(0, 3, 1, 2).float() / 255
        y = self.fc(self.conv(x).relu().mean((2, 3)) * 4)
        return y.softmax(1) if self.softmax else y


def exported(net: nn.Module, *x: torch.Tensor, shapes: Any = None) -> Any:
    """What torch.onnx makes of a network."""
    with silenced("torch.onnx"):
        program = torch.onnx.export(
            net.eval(), x, dynamo=True, dynamic_shapes=shapes, verbose=False, opset_version=18
        )
    assert program is not None
    return program.model_proto


def written(
    path: Path,
    net: nn.Module,
    x: torch.Tensor,
    *,
    fixed: bool = False,
    metadata: dict[str, str] | None = None,
) -> Path:
    """An ONNX file as other libraries write it, with metadata."""
    shapes = None if fixed else ({0: torch.export.Dim("batch")},)
    model = exported(net, x, shapes=shapes)
    onnx.helper.set_model_props(model, metadata or {})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_predict(softmax: bool, fixed: bool, tmp_path: Path) -> None:
    """Batches of three are padded; a softmax inside is found and taken back."""
    net = Net(softmax=softmax)
    path = written(tmp_path / "net.onnx", net, torch.rand(3, 3, 24, 24), fixed=fixed)
    photos = pictures(tmp_path / "photos", 2)
    model = Exported(path, GIVEN)
    found = resnext.predict(model, photos, top=4)
    images = [*model_inputs(photos)]
    with torch.inference_mode():
        p = torch.stack([net(x[None])[0] for x in images])
        p = p if softmax else p.softmax(1)
    for row, one in zip(p.tolist(), found, strict=True):
        assert dict(zip(one.labels, one.probabilities, strict=True)) == pytest.approx(
            dict(zip(LABELS, row, strict=True)), abs=1e-5
        )
    assert any("Softmax is inside" in note for note in model.notes) == softmax
    assert resnext.evaluate(model, photos).accuracy == np.mean(
        [one.label == Path(one.name).parent.name for one in found]
    )


def model_inputs(folder: Path) -> Iterator[torch.Tensor]:
    """The pictures of a folder, resized, cropped and normalized by hand."""
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as opened:
            scale = 24 / min(opened.size)
            image = opened.resize([int(side * scale) for side in opened.size], BILINEAR)
        left, top = (round((side - 24) / 2) for side in image.size)
        x = np.asarray(image.crop((left, top, left + 24, top + 24))) / 255
        yield torch.tensor(((x - MEAN) / STD).transpose(2, 0, 1)).float()


def test_metadata_of_ultralytics(tmp_path: Path) -> None:
    """Labels and size are in the file; its images have values from 0 to 1."""
    metadata = {
        "task": "classify",
        "names": repr(dict(enumerate(LABELS))),
        "imgsz": "[24, 24]",
        "stride": "1",
    }
    net = Net(softmax=True)
    path = written(tmp_path / "yolo.onnx", net, torch.rand(2, 3, 24, 24), metadata=metadata)
    model = Exported(path)
    assert model.card is not None
    rule = model.card.preprocessing
    assert (model.card.labels, rule.size, rule.resize) == (LABELS, 24, 24)
    assert (rule.mean, rule.std) == ((0.0,) * 3, (1.0,) * 3)
    x = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), np.uint8)
    with torch.inference_mode():
        wanted = net(torch.tensor(x.transpose(0, 3, 1, 2)) / 255)
    assert np.allclose(torch.tensor(model.pixels(x)[0]).softmax(1), wanted, atol=1e-5)


def test_pixels_of_8_bits(tmp_path: Path) -> None:
    """Channels last, and ONNX's own properties for colours; mean and deviation are not asked."""
    x = torch.zeros(2, 24, 24, 3, dtype=torch.uint8)
    net = Net(last=True)
    colours = {"Image.BitmapPixelFormat": "Bgr8"}
    path = written(tmp_path / "net.onnx", net, x, metadata=colours)
    model = Exported(path, Given(LABELS))
    assert model.card is not None
    assert (model.input, model.card.preprocessing.colour) == ("pixels", "BGR")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), np.uint8)
    with torch.inference_mode():
        assert np.allclose(model.pixels(pixels)[0], net(torch.tensor(pixels)), atol=1e-5)


def test_openvino(tmp_path: Path) -> None:
    """`model_info` has labels, means and deviations of values up to 255."""
    import openvino

    net = Net()
    graph = written(tmp_path / "net.onnx", net, torch.rand(2, 3, 24, 24))
    model = openvino_core().read_model(graph)
    info = {
        "model_type": "Classification",
        "labels": " ".join(LABELS),
        "mean_values": " ".join(str(255 * x) for x in MEAN),
        "scale_values": " ".join(str(255 * x) for x in STD),
    }
    for key, value in info.items():
        model.set_rt_info(value, ["model_info", key])
    openvino.save_model(model, tmp_path / "net.xml", compress_to_fp16=False)
    photos = pictures(tmp_path / "photos", 1)
    found = resnext.predict(tmp_path / "net.xml", photos, top=4)
    wanted = resnext.predict(Exported(graph, GIVEN), photos, top=4)
    for mine, theirs in zip(wanted, found, strict=True):
        assert mine.labels == theirs.labels
        assert mine.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)


class Detector(Net):
    """Returns boxes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Six numbers for each of eight places."""
        return self.conv(x).mean(3).repeat(1, 1, 2)


class Two(Net):
    """Takes two images."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        """Of their sum."""
        return super().forward(x + y)


def test_refusals(tmp_path: Path) -> None:
    """One line that says what to give, or what the file is instead."""
    x = torch.rand(2, 3, 24, 24)
    plain = written(tmp_path / "plain.onnx", Net(), x)
    detector = written(tmp_path / "detector.onnx", Detector(), x)
    named = written(
        tmp_path / "named.onnx", Net(), x, metadata={"task": "detect", "names": "{0: 'a'}"}
    )
    two = tmp_path / "two.onnx"
    onnx.save(exported(Two(), x, x), two)
    free = tmp_path / "free.onnx"
    sides = {2: torch.export.Dim("h", min=9), 3: torch.export.Dim("w", min=9)}
    onnx.save(exported(Net(), x, shapes=(sides,)), free)
    cases: list[tuple[type[Exception], str, Path, Given | None]] = [
        (InputError, "Give --labels FILE with 4 lines", plain, None),
        (InputError, "Give --mean and --std", plain, Given(LABELS)),
        (InputError, "4 values .* 3 labels", plain, GIVEN._replace(labels=LABELS[:3])),
        (InputError, "24 pixels, not 32", plain, GIVEN._replace(size=32)),
        (InputError, "3 channels, but --std has 1", plain, GIVEN._replace(std=(0.5,))),
        (InputError, "Give --size", free, GIVEN),
        (CheckpointError, "not a classifier: it returns", detector, GIVEN),
        (CheckpointError, "its task detect", named, GIVEN),
        (CheckpointError, "has 2 inputs", two, GIVEN),
    ]
    for kind, message, path, given in cases:
        with pytest.raises(kind, match=message) as caught:
            Exported(path, given)
        assert "\n" not in str(caught.value)
    model = Exported(plain, GIVEN)
    with pytest.raises(InputError, match="Use the method occlusion"):
        resnext.explain(model, np.zeros((30, 30, 3), np.uint8))
    with pytest.raises(InputError, match="no embeddings"):
        predict_files(
            model, pictures(tmp_path / "p", 1), tmp_path / "out.csv", embeddings=tmp_path / "e.npy"
        )


def test_the_command(tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`predict`, `evaluate` and `info` take labels and preprocessing as options."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "net.onnx", Net(softmax=True), torch.rand(1, 3, 24, 24), fixed=True)
    Path("names.txt").write_text("\n".join(LABELS))
    pictures(tmp_path / "photos", 1)
    given = ["--labels", "names.txt", "--mean", "0.4,0.5,0.6", "--std", "0.2,0.25,0.3"]
    for arguments, code, words in (
        (["predict", "net.onnx", "photos", *given], 0, ("png",)),
        (["predict", "net.onnx", "photos", "--out", "out.csv", *given], 0, ("4 images",)),
        (["evaluate", "net.onnx", "photos", *given], 0, ("ccuracy",)),
        (["info", "net.onnx", *given], 0, ("not written by", "Softmax is inside", "ant")),
        (["predict", "net.onnx", "photos"], 2, ("--labels",)),
        (["predict", "net.onnx", "photos", "--mean", "a"], 2, ("separated by commas",)),
        (["predict", "net.pth", "photos", *given], 2, ("files from other programs",)),
    ):
        monkeypatch.setattr("sys.argv", ["resnext", *arguments])
        found = 0
        try:
            main()
        except SystemExit as error:
            found = int(error.code or 0)
        captured = capsys.readouterr()
        text = " ".join((captured.out + captured.err).split())
        assert found == code, text
        for word in words:
            assert word in text


@pytest.mark.slow
def test_networks_of_torchvision_and_timm(tmp_path: Path) -> None:
    """As these libraries' users export them; ours is the oracle of the preprocessing only."""
    from oracles.originals import timm, torchvision

    names = tuple(map(str, range(10)))
    rule = Given(names, None, MEAN, STD)
    x = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    images = torch.tensor(((x / 255 - MEAN) / STD).transpose(0, 3, 1, 2)).float()
    for net in (
        torchvision.models.resnet18(num_classes=10),
        timm.create_model("resnet18d", num_classes=10),
        timm.create_model("mobilenetv3_small_050", num_classes=10),
    ):
        model = Exported(written(tmp_path / "net.onnx", net, images[:2]), rule)
        with torch.inference_mode():
            wanted = net.eval()(images)
        assert np.allclose(model.pixels(x)[0], wanted, atol=1e-4 * float(wanted.abs().max()))
