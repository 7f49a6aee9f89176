"""The process that proves a file: the target's runtime, NumPy and Pillow, nothing of this library.

    python client.py TARGET FILE PICTURES RESULT

It reads the preprocessing from the file, classifies the pictures from file to label in batches of
several sizes, and writes the outputs, the labels and the preprocessing it found to RESULT (`.npz`).
It is also the example of a client, so it repeats rules that the library has elsewhere.
"""

import json
import subprocess
import sys
import tempfile
from itertools import chain, cycle, islice, repeat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
BATCHES = 1, 2, 17
LARGEST = 44  # of files that take any number
UNCROPPED = 8  # pictures that files for any size are also given whole


def open_onnx(path):
    """Our metadata, and a function from a batch to a dictionary of outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name, names = session.get_inputs()[0].name, [x.name for x in session.get_outputs()]
    own = session.get_modelmeta().custom_metadata_map["resnext"]
    return own, lambda x: dict(zip(names, session.run(None, {name: x}), strict=True))


def open_openvino(path):
    """Our metadata, and a function from a batch to a dictionary of outputs."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", precise)
    own = model.get_rt_info(["model_info", "resnext"]).value
    names = [output.get_any_name() for output in compiled.outputs]
    return own, lambda x: dict(zip(names, compiled(x).values(), strict=True))


def open_torch(path):
    """Our metadata, and a function from a batch to a dictionary of outputs."""
    import torch

    extra = {"resnext": ""}
    module = torch.export.load(path, extra_files=extra).module()

    def run(x):
        with torch.inference_mode():
            return {name: value.numpy() for name, value in module(torch.from_numpy(x)).items()}

    return extra["resnext"], run


def open_executorch(path):
    """Our metadata, and a function from a batch to a dictionary of outputs."""
    import torch
    from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]

    program = Runtime.get().load_program(path)
    own = program.load_method("resnext").execute([])[0]
    names, method = json.loads(own)["outputs"], program.load_method("forward")

    def run(x):
        found = method.execute([torch.from_numpy(np.ascontiguousarray(x))])  # it ignores strides
        # The next call writes into the same memory.
        return {name: value.numpy().copy() for name, value in zip(names, found, strict=True)}

    return own, run


def upright(path, mode):
    """A picture in a mode of Pillow."""
    with Image.open(path) as opened:
        return ImageOps.exif_transpose(opened).convert(mode)


def answered_by_page(path, files):
    """Our metadata and the outputs, from the script of the page in Node.js."""
    html = (path / "index.html" if path.is_dir() else path).read_text(encoding="utf-8")
    own = html.partition('<script id="resnext"')[2]
    own = own.partition(">")[2].partition("</script>")[0]
    pictures = [upright(file, "RGBA") for file in files]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sizes.json").write_text(json.dumps([image.size for image in pictures]))
        (folder / "pixels.bin").write_bytes(b"".join(image.tobytes() for image in pictures))
        client = Path(__file__).with_name("page_client.mjs")
        command = ["node", str(client), str(path), name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        shape = json.loads(done.stdout)
        logits, embedding, maps = (
            np.fromfile(folder / f"{output}.bin", np.float32).reshape(len(files), -1)
            for output in ("logits", "embedding", "maps")
        )
    maps = maps.reshape(*logits.shape, *shape)
    return own, {"logits": logits, "embedding": embedding, "maps": maps}


def resized(image, rule):
    """A picture whose shorter side has the length that the model wants."""
    short, (width, height) = rule["resize"], image.size
    long = int(short * max(width, height) / min(width, height))
    wanted = (short, long) if width <= height else (long, short)
    return image.resize(wanted, FILTERS[rule["interpolation"]])


def cropped(image, size):
    """The square at the centre."""
    width, height = image.size
    if min(width, height) < size:  # black around it
        wide = Image.new(image.mode, (max(width, size), max(height, size)))
        wide.paste(image, (max(size - width, 0) // 2, max(size - height, 0) // 2))
        image, (width, height) = wide, wide.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def prepared(path, rule, kind, whole=False):
    """A picture as the file takes it."""
    image = upright(path, "L" if rule["colour"] == "L" else "RGB")
    if kind != "picture":
        image = resized(image, rule)
        image = image if whole else cropped(image, rule["size"])
    values = np.array(image, np.uint8).reshape(image.height, image.width, -1)
    if rule["colour"] == "BGR":
        values = np.ascontiguousarray(values[..., ::-1])
    if kind != "images":
        return values
    mean, std = (np.array(rule[name], np.float32) for name in ("mean", "std"))
    return ((values.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)


def batch_sizes(largest, count):
    """Sizes of batches up to the largest, in which every one of so many pictures is."""
    sizes = [*(size for size in BATCHES if size < largest), largest]
    while (rest := count - sum(sizes)) > 0:
        sizes.append(min(rest, largest))
    return sizes


def batches(described, files):
    """The pictures in batches of several sizes."""
    rule, kind = described["card"]["preprocessing"], described["input"]
    if kind == "picture":  # each has a size of its own
        for file, count in zip(files, chain(BATCHES, repeat(1)), strict=False):
            yield np.repeat(prepared(file, rule, kind)[None], count, 0)
        return
    again = cycle(files)
    for size in batch_sizes(described["max_batch"] or LARGEST, len(files)):
        yield np.stack([prepared(file, rule, kind) for file in islice(again, size)])
    if described["sizes"] == "dynamic":
        for file in files[:UNCROPPED]:
            yield prepared(file, rule, kind, whole=True)[None]


def main(target, path, pictures, result):
    """Run everything and write the result."""
    files = sorted(Path(pictures).iterdir())
    if target == "page":
        own, outputs = answered_by_page(Path(path), files)
        described, found = json.loads(own), [outputs]
    else:
        opener = {
            "onnx": open_onnx,
            "openvino": open_openvino,
            "torch": open_torch,
            "executorch": open_executorch,
        }[target]
        own, run = opener(path)
        described = json.loads(own)
        found = [run(x) for x in batches(described, files)]
    described["modules"] = sorted({name.partition(".")[0] for name in sys.modules})
    outputs = {f"{i} {name}": x for i, batch in enumerate(found) for name, x in batch.items()}
    np.savez(result, **{"described": np.array(json.dumps(described)), **outputs})  # pyright: ignore


if __name__ == "__main__":
    main(*sys.argv[1:])
