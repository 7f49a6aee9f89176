"""Predictions on every kind of picture, and the sheet they are drawn on."""

from __future__ import annotations

import io
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_cli, tiny_network
from oracles.recorded import fill
from PIL import Image

from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig, predict, save
from resnext.data.decoding import open_image
from resnext.data.open import open_for_evaluation, open_splits
from resnext.data.transforms import prepare
from resnext.errors import CheckpointError, DataError, InputError, ResNeXtError
from resnext.inference.opener import open_runner
from resnext.prediction.contact_sheet import draw_sheet, save_sheet
from resnext.prediction.images import Prediction, held_out_images

TINY = ResNeXtConfig(
    (1, 1), 2, 8, channels=(16, 32), num_stages=2, small_stem=True, num_classes=4, stem_channels=16
)
LABELS = ("ant", "bee", "cat", "dog")
HOW = Preprocessing(12, 14)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> ResNeXt:
    """A network that gives different predictions for different pictures."""
    network = ResNeXt(TINY)
    fill(network)
    with torch.no_grad():
        network.fc.bias.sub_(network.eval()(torch.zeros(1, 3, 12, 12))[0])
    network.card = Card(LABELS, HOW)
    return network


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Seven pictures of different sizes, sorted by name."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    paths = []
    for i in range(7):
        pixels = rng.integers(0, 120, (15 + i, 24 - i, 3), dtype=np.uint8)
        pixels[..., i % 3] += 130
        paths.append(tmp_path / "pictures" / ("deep/x.png" if i == 6 else f"{i}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return paths


def naive(model: ResNeXt, image: Image.Image) -> dict[str, float]:
    """One picture by itself: the probability of each class."""
    with torch.no_grad():
        logits = model.eval()(prepare(image, HOW)[None]).double()[0]
    likely = logits.exp() / logits.exp().sum()
    return dict(zip(LABELS, likely.tolist(), strict=True))


def agree(got: Prediction, wanted: dict[str, float], top: int = 1) -> None:
    """Labels in order of their probabilities, and these to float's precision."""
    ranked = sorted(wanted, key=wanted.__getitem__, reverse=True)[:top]
    assert got.labels == tuple(ranked)
    assert got.label == ranked[0]
    assert got.probabilities == pytest.approx([wanted[label] for label in ranked], rel=1e-5)


# -- inputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
@pytest.mark.parametrize("top", [1, 3, 4])
def test_files(model: ResNeXt, files: list[Path], batch_size: int, top: int) -> None:
    """Order and numbers must not depend on how pictures are put into batches."""
    backwards = files[::-1]
    wanted = [naive(model, open_image(file, "RGB")) for file in backwards]
    got = predict(model, backwards, top=top, batch_size=batch_size, device="cpu")
    assert [prediction.name for prediction in got] == [str(file) for file in backwards]
    for prediction, probabilities in zip(got, wanted, strict=True):
        agree(prediction, probabilities, top)
        assert all(type(p) is float for p in prediction.probabilities)
    assert len({prediction.label for prediction in got}) > 1


def test_one_by_one_is_exact(model: ResNeXt, files: list[Path]) -> None:
    """The answer is the softmax of what the model gives, not of something like it."""
    for file in files:
        x = prepare(open_image(file, "RGB"), HOW)[None]
        with torch.no_grad():
            wanted = model.eval()(x).softmax(1)[0].sort(descending=True).values
        got = predict(model, file, top=4, device="cpu")
        assert got[0].probabilities == pytest.approx(tuple(wanted.tolist()), rel=1e-6)


def test_folders_are_searched_at_any_depth(model: ResNeXt, files: list[Path]) -> None:
    """By name, whatever order the disk lists them in; notes and hidden files are left out."""
    folder = files[0].parent
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "0.png").write_text("no image")
    for given in (folder, str(folder), [folder]):
        got = predict(model, given, device="cpu")
        assert [prediction.name for prediction in got] == [str(file) for file in files]


def test_images_and_arrays(model: ResNeXt, files: list[Path]) -> None:
    """One picture or several, of every kind, in the order given; names say which is which."""
    image = open_image(files[1], "RGB")
    array = np.asarray(open_image(files[2], "RGB"))
    grey = np.asarray(open_image(files[3], "L"))
    for picture in (image, array, grey):
        (got,) = predict(model, picture, device="cpu")
        agree(got, naive(model, Image.fromarray(np.array(picture)).convert("RGB")))
    files[4].rename(files[6].parent / "y.png")
    mixed = [array, str(files[0]), image, files[6].parent, grey]
    got = predict(model, mixed, device="cpu", batch_size=2)
    inside = [files[6], files[6].parent / "y.png"]
    assert [p.name for p in got] == ["0", str(files[0]), "2", *map(str, inside), "4"]
    same = [Image.fromarray(array), files[0], image, *inside, Image.fromarray(grey)]
    for prediction, picture in zip(got, same, strict=True):
        opened = picture if isinstance(picture, Image.Image) else open_image(picture, "RGB")
        agree(prediction, naive(model, opened.convert("RGB")))
    assert [p[1:] for p in predict(model, tuple(mixed), device="cpu")] == [p[1:] for p in got]


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_pillow_images_of_any_mode(model: ResNeXt, files: list[Path], mode: str) -> None:
    """They must be seen as the file they could be saved to would be."""
    image = open_image(files[0], "RGB")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    path = files[0].with_suffix(".tif")
    image.save(path)
    in_memory, on_disk = predict(model, [image, path], top=4, device="cpu")
    assert in_memory[1:] == on_disk[1:]


def test_pillow_images_are_seen_upright(model: ResNeXt, files: list[Path]) -> None:
    """`Image.open` does not turn a phone's photograph; the same file gave two answers."""
    path = files[0].with_name("held.jpg")
    exif = Image.Exif()
    exif[0x112] = 6
    open_image(files[0], "RGB").save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        in_memory, on_disk = predict(model, [image, path], top=4, device="cpu")
        assert image.getexif()[0x112] == 6  # the caller's image stays as it is
    assert in_memory[1:] == on_disk[1:]


def test_inputs_are_left_alone(model: ResNeXt, files: list[Path]) -> None:
    """Modes, weights and pixels stay, so that training can continue afterwards."""
    model.train()
    model.get_submodule("layer1").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    array = np.array(open_image(files[0], "RGB"))
    array.flags.writeable = False
    predict(model, [array, *files], device="cpu")
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_training_mode_makes_no_difference(model: ResNeXt, files: list[Path]) -> None:
    """Batch statistics would make the answer depend on the other pictures."""
    wanted = predict(model.eval(), files, device="cpu")
    assert predict(model.train(), files, device="cpu") == wanted


def test_model_files(model: ResNeXt, files: list[Path], tmp_path: Path) -> None:
    """One file is enough: labels and preprocessing come with it."""
    save(model, tmp_path / "a.safetensors")
    wanted = predict(model, files, top=2, device="cpu")
    for path in (tmp_path / "a.safetensors", str(tmp_path / "a.safetensors")):
        assert predict(path, files, top=2, device="cpu") == wanted


def test_grey_models(files: list[Path]) -> None:
    """The card decides how pictures are decoded."""
    network = ResNeXt(TINY.replace(in_channels=1))
    how = Preprocessing(12, 12, "nearest", (0.5,), (0.25,), "L")
    network.card = Card(LABELS, how)
    x = prepare(open_image(files[0], "L"), how)[None]
    with torch.no_grad():
        wanted = network.eval()(x).softmax(1).max().item()
    for picture in (files[0], open_image(files[0], "RGB"), np.asarray(Image.open(files[0]))):
        got = predict(network, picture, device="cpu")[0]
        assert got.probabilities == pytest.approx((wanted,), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_weights_of_other_types(model: ResNeXt, files: list[Path], dtype: torch.dtype) -> None:
    """`save` and `load` keep a model's type; float images then met double weights."""
    wanted = predict(model, files, top=4, device="cpu")
    got = predict(model.to(dtype), files, top=4, device="cpu")
    for mine, theirs in zip(got, wanted, strict=True):
        a = dict(zip(mine.labels, mine.probabilities, strict=True))
        b = dict(zip(theirs.labels, theirs.probabilities, strict=True))
        tolerance = 1e-5 if dtype == torch.float64 else 0.1
        assert [a[label] for label in LABELS] == pytest.approx(
            [b[label] for label in LABELS], abs=tolerance
        )


# -- confidence -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3, 20.0])
def test_probabilities_are_calibrated(
    model: ResNeXt, files: list[Path], temperature: float
) -> None:
    """The card's temperature divides logits; probabilities would order the same, and be wrong."""
    assert model.card
    model.card = replace(model.card, temperature=temperature)
    x = torch.stack([prepare(open_image(file, "RGB"), HOW) for file in files])
    with torch.no_grad():
        wanted = (model.eval()(x).double() / temperature).softmax(1).sort(descending=True).values
    got = predict(model, files, top=4, device="cpu")
    for prediction, row in zip(got, wanted.tolist(), strict=True):
        assert prediction.probabilities == pytest.approx(row, abs=1e-5)


def test_answers_that_are_sure(model: ResNeXt, files: list[Path]) -> None:
    """An answer exactly at the threshold was right often enough; without one all are sure."""
    assert model.card
    plain = predict(model, files, device="cpu")
    assert all(prediction.sure for prediction in plain)
    middle = sorted(prediction.probabilities[0] for prediction in plain)[3]
    model.card = replace(model.card, threshold=middle)
    got = predict(model, files, top=2, device="cpu")
    assert [p.sure for p in got] == [p.probabilities[0] >= middle for p in plain]
    assert sum(p.sure for p in got) == 4
    model.card = replace(model.card, threshold=0.0)
    assert all(prediction.sure for prediction in predict(model, files, device="cpu"))


# -- what it refuses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((5, 5), np.float32),
        np.zeros((5, 5, 3), np.int64),
        np.zeros((5, 5), bool),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 1), np.uint8),
        np.zeros((3, 5, 5), np.uint8),
        np.zeros((2, 5, 5, 3), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0), np.uint8),
        np.array(["cat.jpg"]),
        Image.new("RGB", (0, 4)),
        torch.zeros(5, 5),
        torch.zeros(2, 5, 5),
        torch.zeros(4, 5, 5),
        torch.zeros(5, 5, 3),
        torch.zeros(1, 1, 3, 5, 5),
        torch.zeros(3, 5, 5, dtype=torch.int64),
        torch.zeros(2, 3, 5, 5, dtype=torch.bool),
        torch.zeros(3, 5, 0),
        ["cat.jpg"],
        {"image": "cat.jpg"},
        7,
        None,
    ],
    ids=lambda x: f"{type(x).__name__} {getattr(x, 'shape', '')} {getattr(x, 'dtype', '')}",
)
def test_pictures_of_the_wrong_kind(model: ResNeXt, picture: Any) -> None:
    """Floats from 0 to 1 cast to bytes are a black picture; channels first is a thin one."""
    with pytest.raises(DataError, match="image must") as caught:
        predict(model, [picture], device="cpu")
    text = str(caught.value)
    assert "\n" not in text
    assert "cat.jpg" not in text
    if 0 not in getattr(picture, "shape", ()) and not isinstance(picture, Image.Image):
        assert type(picture).__name__.removesuffix("Type") in text
        if hasattr(picture, "shape"):
            shape = picture.shape[1:] if picture.ndim == 4 and torch.is_tensor(picture) else None
            assert f"{tuple(shape or picture.shape)} and {picture.dtype}" in text


@pytest.mark.parametrize("images", [7, None, {"a": "b.jpg"}, {"a.jpg"}, object()], ids=type)
def test_images_of_the_wrong_kind(model: ResNeXt, images: Any) -> None:
    """They failed as 'not iterable', or a set was read in an order of its own."""
    with pytest.raises(DataError, match=rf"or a list of these, not .*{type(images).__name__[:4]}"):
        predict(model, images, device="cpu")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (torch.full((3, 5, 5), 255.0), "from 255 to 255"),
        (torch.linspace(-2, 2, 75).view(3, 5, 5), "from -2 to 2"),
        (torch.full((3, 5, 5), torch.nan), "from nan to nan"),
        (torch.full((1, 3, 5, 5), torch.inf, dtype=torch.float16), "from inf to inf"),
    ],
)
def test_floats_that_are_no_pixels(model: ResNeXt, values: torch.Tensor, shown: str) -> None:
    """Normalized twice, or 255 times too bright, an image has a class as well."""
    with pytest.raises(
        DataError, match=rf"values from 0 to 1, before normalization, not {shown}\."
    ):
        predict(model, values, device="cpu")


@pytest.mark.parametrize(
    "address",
    [
        "https://name:word@example.org/cat.jpg?key=word",
        "http://example.org/cat.jpg",
        Path("https://name:word@example.org/cat.jpg?key=word"),
        "s3://bucket/cat.jpg",
        "data:image/png;base64,word" + "A" * 500,
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_addresses(model: ResNeXt, address: Any, several: bool) -> None:
    """'No such file' sends people to look for one; keys in an address belong in no log."""
    with pytest.raises(DataError, match="URL") as caught:
        predict(model, [address] if several else address, device="cpu")
    assert "word" not in str(caught.value)
    assert str(caught.value).startswith((f"{str(address)[:4]}", "A data:"))
    assert "data" in str(address) or "://" in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text", ["A" * 5000, "A" * 400 + ".jpg", "a\nb" * 100, "a\0b", "\0" * 300], ids=len
)
def test_text_that_is_no_path(model: ResNeXt, text: str) -> None:
    """The content of a file as text was printed to the end, or failed as 'File name too long'."""
    with pytest.raises(DataError, match=r": no such file\.$") as caught:
        predict(model, text, device="cpu")
    assert len(str(caught.value)) < 120
    assert "\n" not in str(caught.value)


def test_an_empty_path(model: ResNeXt) -> None:
    """`resnext predict model "$UNSET"` classified the current folder."""
    for images in ("", ["", "a.jpg"]):
        with pytest.raises(DataError, match="empty path"):
            predict(model, images, device="cpu")


# -- the content of files, and tensors --------------------------------------------------------


def test_contents_of_files(model: ResNeXt, files: list[Path]) -> None:
    """A server has bytes and open files, not paths; each gives what the file gives."""
    content = files[0].read_bytes()
    wanted = predict(model, files[0], top=4, batch_size=1)[0][1:]
    with files[0].open("rb") as opened, zipfile.ZipFile(io.BytesIO(), "w") as archive:
        archive.writestr("a.png", content)
        written = io.BytesIO()
        written.write(content)  # its position is at the end
        opened.read(5)
        with archive.open("a.png") as member:
            kinds = [content, bytearray(content), memoryview(content), opened, written, member]
            for picture in kinds:
                (got,) = predict(model, picture, top=4, batch_size=1)
                assert (got.name, *got[1:]) == ("0", *wanted), type(picture)
        assert opened.tell() == 5
        assert written.tell() == len(content)
        got = predict(model, [opened, files[0], content], top=4, batch_size=1)
    assert [(p.name, *p[1:]) for p in got] == [(n, *wanted) for n in ("0", str(files[0]), "2")]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_contents_that_are_no_image(model: ResNeXt, kind: Any) -> None:
    """Their bytes are not printed: they may be long, binary, or private."""
    for content, reason in ((b"secret" * 99, "unknown format"), (b"", "the file is empty")):
        with pytest.raises(DataError, match=reason) as caught:
            predict(model, [kind(content)], device="cpu")
        assert str(caught.value).startswith("Image 0 (")
        assert kind.__name__ in str(caught.value)
        assert "secret" not in str(caught.value)


def test_files_opened_wrongly(model: ResNeXt, files: list[Path]) -> None:
    """As text, closed, or for writing: said in one line."""
    with (
        pytest.raises(DataError, match=r"binary mode \('rb'\)"),
        files[0].open(encoding="latin-1") as opened,
    ):
        predict(model, opened, device="cpu")
    with pytest.raises(DataError, match=r"cannot be read: .*closed"):
        predict(model, opened, device="cpu")
    with pytest.raises(DataError, match="binary mode"):
        predict(model, io.StringIO("secret"), device="cpu")
    with pytest.raises(DataError, match="cannot be read"), files[1].open("wb") as opened:
        predict(model, opened, device="cpu")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
def test_tensors(model: ResNeXt, files: list[Path], dtype: torch.dtype) -> None:
    """One or a batch, in the range of its type, gives what the same pixels in a file give."""
    images = [open_image(file, "RGB").resize((20, 18)) for file in files]
    batch = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    if dtype.is_floating_point:
        batch = (batch.double() / 255).to(dtype)
    wanted = predict(model, images, top=4, batch_size=1)
    assert predict(model, batch, top=4, batch_size=1) == wanted
    assert (
        predict(model, batch[:1].requires_grad_(dtype.is_floating_point), top=4, batch_size=1)
        == wanted[:1]
    )
    for image, known in zip(batch, wanted, strict=True):
        assert predict(model, image, top=4, batch_size=1)[0][1:] == known[1:]
    mixed = predict(model, [batch[:2], batch[2], files[0], batch[3:4]], top=4, batch_size=1)
    assert [p.name for p in mixed] == ["0[0]", "0[1]", "1", str(files[0]), "3[0]"]
    known = [wanted[0], wanted[1], wanted[2], wanted[3]]
    assert [p[1:] for p in (*mixed[:3], mixed[4])] == [p[1:] for p in known]


def test_grey_tensors(model: ResNeXt, files: list[Path]) -> None:
    """One channel is a grey image, for networks of either kind."""
    grey = open_image(files[0], "L")
    tensor = torch.from_numpy(np.array(grey))[None]
    wanted = predict(model, grey, top=4, batch_size=1)
    assert predict(model, tensor, top=4, batch_size=1) == wanted
    assert predict(model, tensor / 255, top=4, batch_size=1) == wanted
    assert predict(model, torch.stack([tensor] * 2), top=4, batch_size=1)[1][1:] == wanted[0][1:]


def test_no_tensors(model: ResNeXt) -> None:
    """An empty batch is an error, not an empty answer."""
    with pytest.raises(DataError, match="No images were given"):
        predict(model, torch.zeros(0, 3, 5, 5), device="cpu")


def test_generators_are_read_batch_by_batch(model: ResNeXt, files: list[Path]) -> None:
    """All frames of a video at once do not fit into memory."""
    held: list[int] = []
    given = 0

    def frames() -> Iterator[Image.Image]:
        nonlocal given
        for file in files:
            given += 1
            yield open_image(file, "RGB")

    runner = open_runner(model, device="cpu")
    pixels = runner.pixels

    class Counting:
        card, config, batch = model.card, model.config, 2

        def pixels(self, x: np.ndarray) -> Any:
            held.append(given)
            return pixels(x)

    got = predict(Counting(), frames(), top=4, batch_size=2, progress=True)
    assert held == [2, 4, 6, 7]
    wanted = predict(model, files, top=4, batch_size=2, device="cpu")
    assert [p[1:] for p in got] == [p[1:] for p in wanted]
    assert [p.name for p in predict(model, map(str, files), device="cpu")] == [*map(str, files)]
    with pytest.raises(DataError, match="No images were given"):
        predict(model, iter(()), device="cpu")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_outputs_that_are_no_numbers(model: ResNeXt, files: list[Path], value: float) -> None:
    """A label with a probability of NaN looks like an answer."""
    with torch.no_grad():
        model.fc.bias[1] = value
    for top in (1, 4):
        with pytest.raises(ResNeXtError, match=rf"output for image {files[0]} is NaN or inf"):
            predict(model, files, top=top, device="cpu")
    with pytest.raises(ResNeXtError, match="output for image 0 is NaN or inf"):
        predict(model, torch.zeros(3, 20, 20), device="cpu")


def test_there_must_be_pictures(model: ResNeXt, tmp_path: Path) -> None:
    """An empty answer looks like success."""
    (tmp_path / "empty").mkdir()
    for nothing in ([], ()):
        with pytest.raises(DataError, match="No images were given"):
            predict(model, nothing, device="cpu")
    with pytest.raises(DataError, match="holds no image"):
        predict(model, tmp_path / "empty", device="cpu")


def test_files_that_cannot_be_read(model: ResNeXt, files: list[Path]) -> None:
    """The one bad file among many is named."""
    with pytest.raises(DataError, match=r"gone.png: no such file"):
        predict(model, [*files, files[0].with_name("gone.png")], device="cpu")
    files[4].write_text("no image")
    model.train()
    with pytest.raises(DataError, match=r"4.png: not a readable image"):
        predict(model, files, batch_size=2, device="cpu")
    assert model.training


def test_a_pillow_image_that_cannot_be_decoded(model: ResNeXt, files: list[Path]) -> None:
    """`Image.open` reads the header only, so the damage shows inside `predict`."""
    path = files[0].with_suffix(".jpg")
    open_image(files[0], "RGB").resize((90, 90)).save(path)
    path.write_bytes(path.read_bytes()[:1200])
    with Image.open(path) as image, pytest.raises(DataError, match="truncated"):
        predict(model, image, device="cpu")


@pytest.mark.parametrize("top", [0, -1, 5, 100])
def test_top_is_a_number_of_classes(model: ResNeXt, files: list[Path], top: int) -> None:
    """Torch's own message speaks of k."""
    with pytest.raises(InputError, match=f"top must be from 1 to the 4 classes, not {top}"):
        predict(model, files, top=top, device="cpu")


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_is_positive(model: ResNeXt, files: list[Path], batch_size: int) -> None:
    """-3 would answer nothing at all."""
    with pytest.raises(InputError, match="batch_size"):
        predict(model, files, batch_size=batch_size, device="cpu")


@pytest.mark.parametrize("labels", [(), LABELS[:3], (*LABELS, "eel")])
def test_labels_must_fit(model: ResNeXt, files: list[Path], labels: tuple[str, ...]) -> None:
    """A label too few is an IndexError on some pictures only."""
    model.card = Card(labels, HOW)
    with pytest.raises(InputError, match="labels"):
        predict(model, files, device="cpu")


def test_models_that_are_none(files: list[Path], tmp_path: Path) -> None:
    """A missing file is named, and so is what a network without a card lacks."""
    with pytest.raises(CheckpointError, match="does not exist"):
        predict(tmp_path / "a.safetensors", files)
    with pytest.raises(InputError, match="no labels"):
        predict(ResNeXt(TINY), files)
    with pytest.raises(InputError, match="'gpu' cannot be used"):
        predict(ResNeXt(TINY), files, device="gpu")


# -- images for a demonstration ---------------------------------------------------------------


def test_unseen_images_are_unseen_and_spread(model: ResNeXt, tmp_path: Path) -> None:
    """A demonstration on training images, or on one class only, shows nothing."""
    for name in LABELS:
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("RGB", (2, 2)).save(tmp_path / name / f"{i}.png")
    splits = open_splits(tmp_path, seed=3, val_fraction=0.5)
    note: dict[str, Any] = {"fingerprint": splits.fingerprint, "seed": 3, "val_fraction": 0.5}
    model.card = Card(LABELS, HOW, provenance=note)
    held_out = {Path(str(path)) for path in open_for_evaluation(tmp_path, LABELS, note).images}
    for limit in (4, 7, 20, 1000):
        chosen = [Path(str(path)) for path in held_out_images(model, str(tmp_path), limit)]
        assert len(chosen) == len({*chosen}) == min(limit, 20)
        assert {*chosen} <= held_out
        assert len({path.parent.name for path in chosen}) == 4
    assert {Path(str(path)) for path in held_out_images(model, str(tmp_path))} == held_out


# -- the sheet --------------------------------------------------------------------------------

PAPER = (255, 255, 255)


def answers(count: int, label: str = "cat", probability: float = 0.5) -> list[Prediction]:
    """The same prediction for each picture."""
    return [Prediction(str(i), (label,), (probability,)) for i in range(count)]


def places(sheet: Image.Image, colours: set[tuple[int, ...]]) -> dict[tuple[int, ...], Any]:
    """The box (left, top, right, bottom) that each of some colours covers."""
    pixels = np.asarray(sheet)
    boxes = {}
    for colour in colours:
        rows, columns = np.nonzero((pixels == colour).all(2))
        if len(rows):
            boxes[colour] = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return boxes


@pytest.mark.parametrize(
    ("count", "columns", "grid"),
    [(1, 5, (1, 1)), (3, 5, (3, 1)), (7, 3, (3, 3)), (6, 3, (3, 2)), (5, 1, (1, 5))],
)
def test_a_sheet_is_a_grid(count: int, columns: int, grid: tuple[int, int]) -> None:
    """A last row that is cut off, or a column too many, only shows when one looks."""
    one = draw_sheet([Image.new("RGB", (9, 9))], answers(1))
    two = draw_sheet([Image.new("RGB", (9, 9))] * 2, answers(2))
    step = two.width - one.width
    gap = one.width - step
    assert 0 < gap < step
    shades = [(10 * i, 255 - 10 * i, 77) for i in range(count)]
    sheet = draw_sheet(
        [Image.new("RGB", (8, 8), shade) for shade in shades], answers(count), columns=columns
    )
    tall = draw_sheet([Image.new("RGB", (9, 9))] * 2, answers(2), columns=1).height - one.height
    assert sheet.mode == "RGB"
    assert sheet.size == (grid[0] * step + gap, grid[1] * tall + one.height - tall)
    boxes = places(sheet, {*shades})
    assert len(boxes) == count  # every picture is there, each in its own place
    for i, shade in enumerate(shades):
        left, top, right, bottom = boxes[shade]
        assert (left - 1, top - 1) == (gap + i % columns * step, gap + i // columns * tall)
        assert right - left == bottom - top == step - gap - 2  # a frame of one pixel around


@pytest.mark.parametrize("size", [(30, 10), (10, 30), (500, 300), (1, 40)])
def test_pictures_are_cut_not_squeezed(size: tuple[int, int]) -> None:
    """A wide picture shows its middle: here a blue square between red margins."""
    side = min(size)
    picture = Image.new("RGB", size, RED)
    corner = ((size[0] - side) // 2, (size[1] - side) // 2)
    picture.paste(BLUE, (*corner, corner[0] + side, corner[1] + side))
    boxes = places(draw_sheet([picture], answers(1)), {RED, BLUE})
    assert {*boxes} == {BLUE}


def test_tiny_pictures_keep_their_pixels() -> None:
    """Digits of 8×8 pixels must not be smeared: four colours stay four colours."""
    pixels = np.array([[RED, GREEN], [BLUE, (255, 255, 0)]], np.uint8)
    sheet = draw_sheet([pixels], answers(1))
    boxes = places(sheet, {RED, GREEN, BLUE, (255, 255, 0)})
    assert len(boxes) == 4
    assert len({(right - left, bottom - top) for left, top, right, bottom in boxes.values()}) == 1
    (left, top, *_), (_, _, right, bottom) = boxes[RED], boxes[(255, 255, 0)]
    inside = np.asarray(sheet.crop((int(left), int(top), int(right), int(bottom))))
    assert len(np.unique(inside.reshape(-1, 3), axis=0)) == 4


@pytest.mark.parametrize(
    "label",
    [
        "W" * 80,
        "a very long label, with spaces, as ImageNet has them",
        "",
        "two\nlines",
        "Löwe",
        "x",
    ],
)
@pytest.mark.parametrize("probability", [0.0, 0.007, 1.0])
def test_labels_fit_beside_their_probability(label: str, probability: float) -> None:
    """Long labels ran over the number, and into the next picture."""
    pictures = [Image.new("RGB", (9, 9), RED)] * 2
    empty = np.asarray(draw_sheet(pictures, answers(2, "", probability)))
    sheet = np.asarray(draw_sheet(pictures, answers(2, label, probability)))
    taken = (empty != PAPER).any(2)  # pictures, numbers and bars
    assert taken[190:].any()
    assert np.array_equal(sheet[taken], empty[taken])
    columns = np.nonzero((sheet != empty).any((0, 2)))[0]
    left, right = (columns[columns < 200], columns[columns >= 200])
    assert np.array_equal(left, right - 188)  # both the same, so none reaches into the other
    if label:
        assert left.min() >= 18  # letters may lean out a little
        assert left.max() < 188 - 35
    else:
        assert not columns.size


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_bars_are_as_long_as_their_probability(probability: float) -> None:
    """A bar is read before a number is."""
    sheet = draw_sheet([Image.new("RGB", (9, 9), RED)], answers(1, "x", probability))
    full = draw_sheet([Image.new("RGB", (9, 9), RED)], answers(1, "x", 1.0))
    picture, bar = places(full, {RED})[RED], {(0x2F, 0x6F, 0xDE)}
    (left, top, right, bottom), (a, b, c, d) = (
        next(iter(places(each, bar).values())) for each in (sheet, full)
    )
    assert (left, top, bottom) == (a, b, d)
    assert (a, c) == (picture[0] - 1, picture[2] + 1)  # as wide as the picture and its frame
    assert (right - left) / (c - a) == pytest.approx(probability, abs=0.01)


def test_bars_are_grey_where_the_model_is_not_sure() -> None:
    """The table marks these predictions; the picture of them did not."""
    bar, grey = (0x2F, 0x6F, 0xDE), (0x8B, 0x93, 0xA3)
    picture, long = [Image.new("RGB", (9, 9), RED)], []
    for threshold in (None, 0.5, 0.6):
        sheet = draw_sheet(picture, [Prediction("0", ("",), (0.5,), threshold)])
        boxes = places(sheet.crop((0, 200, *sheet.size)), {bar, grey})
        long.append([boxes[c][2] - boxes[c][0] if c in boxes else 0 for c in (bar, grey)])
    assert [blue > 80 for blue, _ in long] == [True, True, False]
    assert long[2][1] > 80


def test_sheets_of_files(files: list[Path]) -> None:
    """What `predict` was given can be drawn: paths, arrays and images."""
    pictures = [files[0], str(files[1]), open_image(files[2], "RGB"), np.zeros((8, 8), np.uint8)]
    sheet = draw_sheet(pictures, answers(4))
    images = [open_image(path, "RGB") for path in files[:3]] + [Image.new("RGB", (8, 8))]
    assert sheet.tobytes() == draw_sheet(images, answers(4)).tobytes()


@pytest.mark.parametrize(
    ("pictures", "predictions", "columns"), [(0, 0, 5), (2, 1, 5), (1, 2, 5), (1, 1, 0), (1, 1, -2)]
)
def test_sheets_that_cannot_be_drawn(pictures: int, predictions: int, columns: int) -> None:
    """Nothing to draw was a division by zero."""
    with pytest.raises((DataError, InputError), match=r"columns must|A sheet needs"):
        draw_sheet([Image.new("RGB", (9, 9))] * pictures, answers(predictions), columns=columns)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".pdf"])
def test_sheets_are_written(tmp_path: Path, ending: str) -> None:
    """The ending decides the format."""
    sheet = draw_sheet([Image.new("RGB", (9, 9), RED)], answers(1))
    save_sheet(sheet, tmp_path / f"a{ending}")
    save_sheet(sheet, str(tmp_path / f"b{ending}"))
    content = (tmp_path / f"a{ending}").read_bytes()
    if ending == ".pdf":
        assert content.startswith(b"%PDF")
        return
    with Image.open(tmp_path / f"a{ending}") as image:
        assert (image.format, image.size) == (ending[1:].upper().replace("JPG", "JPEG"), sheet.size)


@pytest.mark.parametrize("name", ["a", "a.", "a.xyz", "a.txt", "a.psd", "a.fits", "a.h5", "a.xbm"])
def test_suffixes_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    """Pillow raises ValueError, KeyError or OSError, after the predictions were made."""
    sheet = draw_sheet([Image.new("RGB", (9, 9))], answers(1))
    with pytest.raises(DataError, match=rf"{name} cannot be written"):
        save_sheet(sheet, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_folders_that_do_not_exist(tmp_path: Path) -> None:
    """The file is named, not only the reason."""
    sheet = draw_sheet([Image.new("RGB", (9, 9))], answers(1))
    save_sheet(sheet, tmp_path / "new" / "a.png")
    for path in (tmp_path / "new" / "a.png" / "b.png", tmp_path):
        with pytest.raises(DataError, match=f"{path} cannot be written"):
            save_sheet(sheet, path)


def test_an_image_on_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`curl … | resnext predict MODEL -`, as users of other commands expect it."""
    network = tiny_network(card=Card(("cat", "dog", "fish"), Preprocessing(32, 32)))
    save(network, tmp_path / "m.safetensors")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")

    def told(*arguments: object, content: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        given = ("predict", tmp_path / "m.safetensors", *arguments, "--device=cpu")
        return run_cli(capsys, monkeypatch, *given)

    _, wanted, _ = told(tmp_path / "a.png")
    code, out, err = told("-", content=(tmp_path / "a.png").read_bytes())
    assert code == 0, err
    assert re.findall(r"(cat|dog|fish) +([0-9.]+)", out) == re.findall(
        r"(cat|dog|fish) +([0-9.]+)", wanted
    )
    assert re.search(r"^ *- +(cat|dog|fish)", out, re.MULTILINE)
    code, _, err = told("-")
    assert (code, err.count("\n")) == (2, 1)
    assert "the file is empty" in err
    code, _, err = told("-", "--out", tmp_path / "a.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "not - for standard input" in err
