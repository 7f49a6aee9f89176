"""`resnext export`: a model as a file of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from resnext.cli.options import Flag


def export(
    file: str,
    /,
    *,
    to: Literal["onnx", "openvino", "torch", "page"] = "onnx",
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    input: Literal["images", "pixels", "picture"] | None = None,
    outputs: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    sizes: Literal["fixed", "dynamic"] | None = None,
    precision: Literal["fp32", "fp16"] | None = None,
    overwrite: Flag = False,
) -> None:
    """Write a model as a file of another runtime, and prove it there.

    The file is kept only if that runtime, in a fresh process without this library, gives the same
    outputs and classes as the network for 64 pictures, from JPEG file to label.

    Args:
        file: A model file or a catalog name.
        to: onnx; openvino (an .xml and a .bin file); torch (a .pt2 file of torch.export); or page
            (one .html file that classifies pictures in the browser, without a network).
        out: The file to write; by default the model's name with the suffix of the format.
        input: images (default): normalized floats (n, c, h, w); pixels: 8-bit values (n, h, w, c),
            which the file normalizes itself; picture: the same of any size, which the file also
            resizes and crops. Not for a page.
        outputs: One or more of logits, probabilities (calibrated), embedding, map (the last feature
            map), c2, c3, c4 and c5 (maps of the stages). Default: logits embedding; of a backbone,
            its maps. Not for a page.
        sizes: fixed (default); dynamic to accept images of other heights and widths.
        precision: fp32 (default); fp16 (default for a page) stores weights in half the space and
            computes in fp32.
        overwrite: Replace an existing file.
    """
    from resnext.exporting.export import export
    from resnext.exporting.targets import TARGETS

    path = out or Path(Path(file).name).with_suffix(TARGETS[to].suffix)
    export(
        file,
        path,
        to=to,
        input=input,
        outputs=outputs or None,
        sizes=sizes,
        precision=precision,
        overwrite=overwrite,
    )
    size = sum(part.stat().st_size for part in TARGETS[to].files(path)) / 1e6
    print(f"{path}: {TARGETS[to].title}, {size:.1f} MB; agrees with the network on 64 pictures")
