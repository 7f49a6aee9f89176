"""`export`: files of other runtimes that answer as the network does, or no file at all."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import photo_folder, tiny_network
from inference_cases import CONFIG, pictures
from PIL import Image

import resnext
from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig
from resnext.cli.app import main
from resnext.data.decoding import resize_and_crop
from resnext.errors import CheckpointError, InputError, ResNeXtError
from resnext.exporting import targets
from resnext.exporting.export import export
from resnext.exporting.gate import check, reference
from resnext.exporting.graph import ExportedModule
from resnext.exporting.picture import resized_and_cropped, with_picture_input
from resnext.inference.engines.openvino import openvino_core
from resnext.inference.exported import Exported
from resnext.inference.optimize import patterns
from resnext.inference.runner import returns_maps

OUTPUTS = "probabilities", "embedding", "map"
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
SOME_SLOW = ["onnx", *(pytest.param(to, marks=pytest.mark.slow) for to in ("openvino", "torch"))]


needs_npm = pytest.mark.skipif(
    shutil.which("npm") is None or shutil.which("node") is None, reason="needs Node.js and npm"
)


@pytest.fixture(scope="module")
def network() -> ResNeXt:
    """A network whose labels, temperature and threshold are not the usual ones."""
    labels = ("a cat", "Löwe, der", "c")
    card = Card(labels, Preprocessing(size=32, resize=36), temperature=1.7, threshold=0.6)
    return tiny_network(replace(CONFIG, num_classes=3), card)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, network: ResNeXt) -> Path:
    """One file of each format, of pixels and with probabilities."""
    folder = tmp_path_factory.mktemp("exported")
    for suffix in SUFFIXES.values():
        export(network, folder / f"net{suffix}", input="pixels", outputs=OUTPUTS)
    return folder


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_predict_takes_an_exported_file(
    suffix: str, folder: Path, network: ResNeXt, tmp_path: Path
) -> None:
    """It gave "not a file of weights"; labels, temperature and threshold come from the file."""
    photos = pictures(tmp_path / "photos", 3)
    wanted = resnext.predict(network, photos, top=3)
    found = resnext.predict(folder / f"net{suffix}", photos, top=3)
    for mine, theirs in zip(wanted, found, strict=True):
        assert mine.labels == theirs.labels
        assert mine.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)
        assert mine.sure == theirs.sure


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_evaluate_takes_an_exported_file(
    suffix: str, folder: Path, network: ResNeXt, tmp_path: Path
) -> None:
    """On the images that training held out, as for the model's own file."""
    photos = photo_folder(tmp_path / "photos", network.card.labels if network.card else ())
    wanted, found = (resnext.evaluate(x, photos) for x in (network, folder / f"net{suffix}"))
    assert np.array_equal(found.predicted, wanted.predicted)
    assert np.allclose(found.confidence, wanted.confidence, atol=1e-5)


@pytest.mark.parametrize("to", SOME_SLOW)
def test_the_same_model_gives_the_same_bytes(
    to: str, folder: Path, network: ResNeXt, tmp_path: Path
) -> None:
    """Also under another name, and nothing in them tells where they were made."""
    path = folder / f"net{SUFFIXES[to]}"
    other = export(network, tmp_path / f"b{SUFFIXES[to]}", input="pixels", outputs=OUTPUTS)
    for one, two in zip(
        targets.TARGETS[to].files(path), targets.TARGETS[to].files(other), strict=True
    ):
        assert one.read_bytes() == two.read_bytes()
        for place in (str(Path(resnext.__file__).parents[2]), sys.prefix, str(Path.home())):
            assert place.encode() not in one.read_bytes()


def test_onnx_says_what_it_is(folder: Path) -> None:
    """Other runtimes read labels, size and colour from the conventions that they know."""
    import onnx
    import onnxruntime

    graph = onnx.load(folder / "net.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert graph.opset_import[0].version == 18
    session = onnxruntime.InferenceSession(folder / "net.onnx")
    found = session.get_modelmeta().custom_metadata_map
    assert found["names"] == "{0: 'a cat', 1: 'Löwe, der', 2: 'c'}"
    assert (found["task"], found["imgsz"]) == ("classify", "[32, 32]")
    assert found["Image.BitmapPixelFormat"] == "Rgb8"
    assert session.get_inputs()[0].shape == ["n", 32, 32, 3]
    assert [x.name for x in session.get_outputs()] == ["probabilities", "embedding", "map"]
    proof = json.loads(found["resnext"])["proof"]
    assert proof["images"] == 64
    assert max(proof["difference"].values()) < 1e-4


def test_openvino_says_what_it_is(folder: Path) -> None:
    """Its Model API separates labels by spaces."""
    import openvino

    model = openvino.Core().read_model(folder / "net.xml")
    info = {key: model.get_rt_info(["model_info", key]).value for key in ("labels", "model_type")}
    assert info == {"labels": "a_cat Löwe,_der c", "model_type": "Classification"}


@pytest.mark.parametrize("to", SOME_SLOW)
def test_half_precision_halves_the_weights(to: str, tmp_path: Path) -> None:
    """A phone downloads the file, so its size is what counts."""
    network = tiny_network(
        ResNeXtConfig((1, 1), 4, 32, num_classes=300, num_stages=2, channels=(64, 128)), None
    )
    network.card = Card(tuple(map(str, range(300))), Preprocessing(size=32, resize=32))
    path = export(network, tmp_path / f"net{SUFFIXES[to]}", precision="fp16")
    size = sum(file.stat().st_size for file in targets.TARGETS[to].files(path))
    assert size < 0.62 * 4 * sum(x.numel() for x in network.parameters())
    assert network.fc.weight.dtype is torch.float32


@pytest.mark.parametrize(
    ("break_module", "message"),
    [
        (lambda module: module.network.fc.bias.data.add_(0.1), "logits by"),
        (lambda module: module.mean.mul_(1.02), "logits by"),
    ],
    ids=["weights", "normalization"],
)
def test_a_file_that_answers_differently_is_not_kept(
    break_module: Any, message: str, network: ResNeXt, tmp_path: Path, monkeypatch: Any
) -> None:
    """Half of the exported models elsewhere differ, mostly by their preprocessing."""
    build = targets.Onnx.build

    def broken(self: Any, module: ExportedModule, *rest: Any) -> Any:
        with torch.no_grad():
            break_module(module)
        return build(self, module, *rest)

    monkeypatch.setattr(targets.Onnx, "build", broken)
    with pytest.raises(ResNeXtError, match=f"ONNX answers differently: {message}"):
        export(network, tmp_path / "net.onnx", input="pixels")
    assert not list(tmp_path.iterdir())


def test_a_file_with_wrong_labels_is_not_kept(
    network: ResNeXt, tmp_path: Path, monkeypatch: Any
) -> None:
    """The labels are compared too, as the client reads them."""
    from resnext.exporting import export as module

    told = module.own_metadata
    monkeypatch.setattr(module, "own_metadata", lambda *a: told(*a).replace("a cat", "a dog"))
    with pytest.raises(ResNeXtError, match="Labels, preprocessing"):
        export(network, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_the_network_is_left_as_it_was(network: ResNeXt, tmp_path: Path) -> None:
    """Export folds and halves a copy."""
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    export(network, tmp_path / "net.onnx", precision="fp16")
    assert network.training
    assert all(torch.equal(before[key], x) for key, x in network.state_dict().items())
    network.eval()


def test_refusals(network: ResNeXt, tmp_path: Path) -> None:
    """One line that says what to do, before any work."""
    taken = tmp_path / "taken.onnx"
    taken.write_bytes(b"mine")
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (CheckpointError, "taken.onnx exists", {"path": taken}),
        (InputError, "the suffix must be one of .onnx", {"path": tmp_path / "net.engine"}),
        (InputError, "the suffix must be", {"path": tmp_path / "net.onnx", "to": "torch"}),
        (InputError, "to must be onnx", {"path": tmp_path / "net.onnx", "to": "tensorrt"}),
        (ResNeXtError, "input must be", {"path": tmp_path / "net.onnx", "input": "photo"}),
        (InputError, "outputs must be some of", {"path": tmp_path / "a.onnx", "outputs": ["c9"]}),
        (InputError, "each once", {"path": tmp_path / "a.onnx", "outputs": ["map", "map"]}),
        (
            InputError,
            "not for pixels",
            {"path": tmp_path / "a.onnx", "sizes": "dynamic", "input": "pixels"},
        ),
        (CheckpointError, "is a folder", {"path": tmp_path}),
    ]
    for kind, message, arguments in cases:
        path = arguments.pop("path")
        if path == tmp_path:
            arguments["to"], path = "onnx", tmp_path / "folder.onnx"
            path.mkdir()
        with pytest.raises(kind, match=message):
            export(network, path, **arguments)
    assert taken.read_bytes() == b"mine"
    with pytest.raises(InputError, match="no labels"):
        export(tiny_network(CONFIG, None), tmp_path / "other.onnx")


@pytest.mark.parametrize("to", SUFFIXES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pictures_of_any_size(to: str, interpolation: Any, tmp_path: Path) -> None:
    """Resized inside within one level of Pillow; OpenVINO ignores `antialias` of ONNX's Resize."""
    rule = Preprocessing(size=33, resize=36, interpolation=interpolation)
    rng = np.random.default_rng(0)
    waves = patterns(1, 3, 400)[0].transpose(1, 2, 0)
    source = Image.fromarray(np.clip(128 + 60 * waves, 0, 255).astype(np.uint8))
    run = cropper(to, rule, tmp_path)
    sizes = [(1, 1), (2, 3), (36, 36), (36, 91), (35, 37), (100, 61), (311, 400), (700, 20)]
    for size in [*sizes, *rng.integers(1, 300, (8, 2)).tolist()]:
        image = source.resize(size)
        wanted = np.asarray(resize_and_crop(image, rule)).astype(int)
        found = run(np.array(image)[None]).astype(int)[0]
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= (1 if to != "torch" else 3), size
    two = np.array(source.resize((50, 70)))[None].repeat(2, 0)
    two[1] = 255 - two[1]
    assert np.array_equal(run(two)[1], run(two[1:])[0])


def cropper(to: str, rule: Preprocessing, folder: Path) -> Any:
    """What stands before the network in a file of pictures, in its runtime."""
    if to == "torch":
        return lambda x: resized_and_cropped(torch.from_numpy(x), rule).numpy()
    from onnx import TensorProto, helper

    shape = ["n", rule.size, rule.size, 3]
    start, end = (
        [helper.make_tensor_value_info(name, TensorProto.UINT8, shape)]
        for name in ("pixels", "out")
    )
    same = helper.make_node("Identity", ["pixels"], ["out"])
    graph = helper.make_graph([same], "same", start, end)
    opset = helper.make_opsetid("", targets.OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    content = with_picture_input(model, rule, 3).SerializeToString()
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"picture": x})[0]
    core = openvino_core()
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(content), "CPU", precise)
    return lambda x: compiled(x)[0]


@pytest.mark.parametrize("to", SOME_SLOW)
def test_predict_takes_a_file_for_pictures(to: str, network: ResNeXt, tmp_path: Path) -> None:
    """It must not resize what is resized already."""
    photos = pictures(tmp_path / "photos", 2)
    path = export(network, tmp_path / f"net{SUFFIXES[to]}", input="picture")
    wanted, found = resnext.predict(network, photos, top=3), resnext.predict(path, photos, top=3)
    for mine, theirs in zip(wanted, found, strict=True):
        assert mine.labels == theirs.labels
        assert mine.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)


@pytest.mark.parametrize("to", SOME_SLOW)
def test_images_of_other_sizes(to: str, network: ResNeXt, tmp_path: Path) -> None:
    """The batch is called n, heights h and widths w; predict takes such files too."""
    path = export(network, tmp_path / f"net{SUFFIXES[to]}", sizes="dynamic")
    photos = pictures(tmp_path / "photos", 1)
    assert [x.label for x in resnext.predict(path, photos)] == [
        x.label for x in resnext.predict(network, photos)
    ]
    if to == "onnx":
        import onnxruntime

        session: Any = onnxruntime.InferenceSession(path)
        assert session.get_inputs()[0].shape == ["n", 3, "h", "w"]
        x = torch.rand(3, 3, 40, 57)
        logits = session.run(["logits"], {"images": x.numpy()})[0]
        with torch.inference_mode():
            assert np.allclose(logits, network(x), atol=1e-4)


@pytest.mark.parametrize("to", SOME_SLOW)
def test_backbones(to: str, network: ResNeXt, tmp_path: Path) -> None:
    """Their maps are called c2 to c5; no labels are needed."""
    backbone = resnext.Backbone(network.config, with_stem=True).eval()
    backbone.card = Card(preprocessing=Preprocessing(size=32, resize=36))
    path = export(backbone, tmp_path / f"net{SUFFIXES[to]}")
    exported = Exported(path)
    assert exported.outputs == ("c1", "c2")
    assert max(exported.proof["difference"].values()) <= 1e-4
    with pytest.raises(InputError, match="no labels"):
        resnext.predict(path, np.zeros((40, 40, 3), np.uint8))


def test_outputs_that_are_asked_for(network: ResNeXt, tmp_path: Path) -> None:
    """Only these, in this order."""
    import onnxruntime

    asked = ["map", "probabilities", "logits", "c2"]
    path = export(network, tmp_path / "net.onnx", outputs=asked)
    session: Any = onnxruntime.InferenceSession(path)
    assert [x.name for x in session.get_outputs()] == asked
    x = torch.rand(2, 3, 32, 32)
    found = dict(zip(asked, session.run(None, {"images": x.numpy()}), strict=True))
    with torch.inference_mode():
        logits = network(x)
    assert np.allclose(found["logits"], logits, atol=1e-4)
    assert np.allclose(found["probabilities"], (logits / 1.7).softmax(1), atol=1e-5)
    assert np.array_equal(found["map"], found["c2"])
    assert exported_without_embedding(path)


def exported_without_embedding(path: Path) -> bool:
    """Whether the file predicts all the same, without embeddings."""
    logits, embeddings = Exported(path).pixels(np.zeros((3, 32, 32, 3), np.uint8))
    return logits.shape == (3, 3) and embeddings.shape == (3, 0)


@pytest.mark.parametrize("to", SOME_SLOW)
def test_the_kept_file_passes_too(to: str, folder: Path, network: ResNeXt, tmp_path: Path) -> None:
    """What was measured is written into it after the proof."""
    card, asked = network.card, {"input": "pixels", "sizes": "fixed", "batches": [1, 2, 17, 44]}
    assert card is not None
    wanted = reference(network, card, OUTPUTS, asked, tmp_path)
    path = folder / f"net{SUFFIXES[to]}"
    proof = check(targets.TARGETS[to], path, wanted, card, 1e-4)
    assert proof == Exported(path).proof


def test_files_that_export_did_not_write(tmp_path: Path, folder: Path) -> None:
    """A damaged one and a missing one: one line each."""
    (tmp_path / "cut.onnx").write_bytes((folder / "net.onnx").read_bytes()[:1000])
    (tmp_path / "cut.xml").write_bytes((folder / "net.xml").read_bytes()[:1000])
    (tmp_path / "cut.pt2").write_bytes((folder / "net.pt2").read_bytes()[:1000])
    pictures(tmp_path, 1)
    for name, message in (
        ("cut.onnx", "cannot be opened"),
        ("cut.xml", "cannot be opened"),
        ("cut.pt2", "cannot be opened"),
        ("none.onnx", "does not exist"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            resnext.predict(tmp_path / name, next(tmp_path.rglob("*.png")))
        assert "\n" not in str(caught.value)


def test_an_exported_file_travels_to_another_process(folder: Path) -> None:
    """Sessions cannot be pickled; the file is opened again."""
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    for suffix in SUFFIXES.values():
        runner = Exported(folder / f"net{suffix}")
        again = pickle.loads(pickle.dumps(runner))
        assert np.array_equal(runner.pixels(pixels)[0], again.pixels(pixels)[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("name", "code"),
    [("net.onnx", 0), ("net.xml", 3), pytest.param("net.pt2", 0, marks=pytest.mark.slow)],
)
def test_a_forked_process_answers_or_refuses(
    name: str, code: int, folder: Path, tmp_path: Path
) -> None:
    """It waited for ever for threads that it does not have; OpenVINO cannot go on at all."""
    program = """
import os, signal, sys
from resnext.errors import ResourceError
from resnext.inference.exported import Exported
from resnext.inference.optimize import patterns
import numpy as np
from pathlib import Path

runner, x = Exported(Path(sys.argv[1])), np.zeros((20, 32, 32, 3), np.uint8)
wanted = runner.pixels(x)[0]
if (child := os.fork()) == 0:
    signal.alarm(60)
    try:
        os._exit(0 if np.allclose(runner.pixels(x)[0], wanted, atol=1e-5) else 1)
    except ResourceError:
        os._exit(3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", program, str(folder / name)]
    assert subprocess.run(command, env=env).returncode == code


def test_an_exported_file_answers_without_torch(folder: Path, tmp_path: Path) -> None:
    """ONNX and OpenVINO files are for machines without torch."""
    photos = pictures(tmp_path / "photos", 1)
    program = (
        "import sys, resnext; resnext.predict(sys.argv[1], sys.argv[2]); "
        "assert 'torch' not in sys.modules"
    )
    explained = program.replace("predict(", "explain(")
    for name in ("net.onnx", "net.xml"):
        for source, given in ((program, photos), (explained, next(photos.rglob("*.png")))):
            command = [sys.executable, "-c", source, str(folder / name), str(given)]
            subprocess.run(command, check=True)


@pytest.mark.parametrize(
    ("output", "precision", "tolerance"),
    [
        ("probabilities", "fp32", 1e-4),
        pytest.param("logits", "fp32", 1e-4, marks=pytest.mark.slow),
        pytest.param("probabilities", "fp16", 1e-2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("to", SOME_SLOW)
def test_the_class_map_of_an_exported_file(
    to: str, output: str, precision: Any, tolerance: float, network: ResNeXt, tmp_path: Path
) -> None:
    """The exact map needs the output "map" and the file's own last layer."""
    photo = next(pictures(tmp_path / "photos", 1).rglob("*.png"))
    options: dict[str, Any] = {"label": "c", "against": "a cat"}
    wanted = resnext.explain(network, photo, **options)
    path = tmp_path / f"net{SUFFIXES[to]}"
    export(network, path, outputs=[output, "map"], precision=precision)
    found = resnext.explain(path, photo, check=True, **options)
    assert np.abs(found.map - wanted.map).max() <= tolerance * np.abs(wanted.map).max()
    assert found.bias == pytest.approx(wanted.bias, abs=tolerance)
    assert found.probability == pytest.approx(wanted.probability, abs=tolerance)
    assert found.completeness_error is not None
    assert found.completeness_error <= tolerance


@pytest.mark.parametrize("to", SOME_SLOW)
def test_explanations_that_need_more_than_the_file(
    to: str, folder: Path, network: ResNeXt, tmp_path: Path
) -> None:
    """Without the output "map", no exact map; without the network, no gradients."""
    suffix = SUFFIXES[to]
    photo = next(pictures(tmp_path / "photos", 1).rglob("*.png"))
    plain = export(network, tmp_path / f"plain{suffix}")
    advice = r"\(--how occlusion\), or export it again with --outputs logits embedding map"
    with pytest.raises(InputError, match=advice):
        resnext.explain(plain, photo)
    assert resnext.explain(plain, photo, how="occlusion").how == "occlusion"
    path = folder / f"net{suffix}"
    assert not returns_maps(Exported(plain))  # to ask so raised an error, and a server failed
    assert returns_maps(Exported(path))
    refused: list[dict[str, Any]] = [{"how": "layercam"}, {"how": "ig"}, {"fine": True}]
    for other in refused:
        with pytest.raises(InputError, match=rf"behind .*net\{suffix} is not known.* model file"):
            resnext.explain(path, photo, **other)


def test_the_command(
    network: ResNeXt, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes beside the user, says what it did, and `doctor` and `info` read it."""
    monkeypatch.chdir(tmp_path)
    resnext.save(network, tmp_path / "pets.safetensors")
    pictures(tmp_path / "photos", 1)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["resnext", *arguments])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    for arguments, code, words in (
        (
            ("export", "pets.safetensors", "--input", "pixels", "--outputs", "logits", "map"),
            0,
            ("pets.onnx: ONNX", "64 pic"),
        ),
        (("export", "pets.safetensors"), 2, ("pets.onnx exists",)),
        (("doctor", "pets.onnx"), 0, ("written by resnext export", "Löwe")),
        (("info", "pets.onnx"), 0, ("32×32",)),
        (("optimize", "pets.onnx", "--precision", "int8"), 2, ("exported file",)),
        (("explain", "pets.onnx", "photos", "--how", "ig"), 2, ("pets.onnx is not known",)),
        (("explain", "pets.onnx", "photos", "--sanity"), 2, ("pets.onnx is not known",)),
        (("explain", "pets.onnx", "photos", "--html"), 0, ("explanation.html: 4 images",)),
    ):
        found, text = run(*arguments)
        assert found == code, text
        for word in words:
            assert word in text


@pytest.mark.slow
@pytest.mark.parametrize("to", [*SUFFIXES, pytest.param("page", marks=needs_npm)])
@pytest.mark.parametrize(
    "name",
    [
        *("resnext_nano_32px", "resnext_tiny", "resnext11_8x16d", "resnext26_32x4d"),
        *("resnext50_32x4d", "resnext50d_32x4d", "seresnext26t_32x4d", "seresnext50_32x4d"),
        *("ecaresnext26t_32x4d", "resnext101_32x4d", "seresnextaa101d_32x8d", "resnext29_32x4d"),
    ],
)
def test_every_kind_of_network(name: str, to: str, tmp_path: Path) -> None:
    """Every variant passes the gate in every format."""
    network = tiny_network(resnext.variant(name), None)
    labels = tuple(map(str, range(network.config.num_classes)))
    large = sum(x.numel() for x in network.parameters()) > 27e6
    size = 32 if large else 64
    network.card = Card(labels, Preprocessing(size=size, resize=size * 9 // 8))
    page = "" if large else ".html"  # a large one is a folder
    export(network, tmp_path / f"net{SUFFIXES.get(to, page)}", to=to, input="pixels")
