"""`resnext export`: a model as a file of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from resnext.cli.options import Flag, OptionalWhole


def export(
    file: str,
    /,
    *,
    to: Literal["onnx", "openvino", "torch", "executorch", "page"] = "onnx",
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    input: Literal["images", "pixels", "picture"] | None = None,
    outputs: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    sizes: Literal["fixed", "dynamic"] | None = None,
    precision: Literal["fp32", "fp16", "int8"] | None = None,
    max_batch: OptionalWhole = None,
    index: Path | None = None,
    no_index: Flag = False,
    overwrite: Flag = False,
) -> None:
    """Write a model as a file of another runtime, and prove it there.

    The file is kept only if that runtime, in a fresh process without this library, gives the same
    outputs and classes as the network for 64 pictures, from JPEG file to label.

    Args:
        file: A model file or a catalog name.
        to: onnx; openvino (an .xml and a .bin file); torch (a .pt2 file of torch.export);
            executorch (a .pte file for phones); or page (one .html file that classifies pictures in
            the browser, without a network; above 64 MB, a folder for a web server).
        out: The file to write; by default the model's name with the suffix of the format. For a
            page, a name without suffix is a folder.
        input: images (default): normalized floats (n, c, h, w); pixels: 8-bit values (n, h, w, c),
            which the file normalizes itself; picture: the same of any size, which the file also
            resizes and crops. Not for a page.
        outputs: One or more of logits, probabilities (calibrated), embedding, map (the last feature
            map), c2, c3, c4 and c5 (maps of the stages). Default: logits embedding; of a backbone,
            its maps. Not for a page.
        sizes: fixed (default); dynamic to accept images of other heights and widths.
        precision: fp32 (default); fp16 (default for a page) stores weights in half the space and
            computes in fp32; int8, for openvino, computes as the plan that resnext optimize
            --precision int8 wrote next to the file, and is compared with that.
        max_batch: For executorch, the largest batch of the file; 16 by default.
        index: For a page, an index whose images it shows as similar, and by which it says "none of
            these"; by default the one next to the model file. The page holds small copies of them.
        no_index: Leave the index out.
        overwrite: Replace an existing file.
    """
    from resnext.exporting.export import export
    from resnext.exporting.targets import TARGETS

    path = export(
        file,
        out,
        to=to,
        input=input,
        outputs=outputs or None,
        sizes=sizes,
        precision=precision,
        max_batch=max_batch,
        index=None if no_index else index or "auto",
        overwrite=overwrite,
    )
    size = sum(part.stat().st_size for part in TARGETS[to].files(path)) / 1e6
    agrees = "the plan's 8 bits" if precision == "int8" else "the network"
    print(f"{path}: {TARGETS[to].title}, {size:.1f} MB; agrees with {agrees} on 64 pictures")
