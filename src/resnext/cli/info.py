"""`resnext info`: the parameters, cost and receptive field of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from resnext.cli.options import whole, with_given


def info(
    name: str | None = None,
    /,
    *,
    size: Annotated[int | None, Parameter(name=["--size", "-s"], converter=whole)] = None,
    labels: str | None = None,
    mean: str | None = None,
    std: str | None = None,
) -> None:
    """Show the parameters, GMACs and receptive field of a network by stage, or list all variants.

    Args:
        name: A variant (`resnext50_32x4d`, spelled as in torchvision, timm, Lucid or mmcls), a
            catalog name, a model file from any library or of `export`, or a config file
            (`.json`, or OpenMMLab's `.py`). Without a name, all variants are listed.
        size: Image size in pixels. Default: the model's own; for a variant 224, or 32 if it is
            made for small images.
        labels: For an ONNX or OpenVINO file from another program: its class names, as a text file
            with one name a line, or imagenet-1k.
        mean: Its means of each channel, for values from 0 to 1: 0.485,0.456,0.406.
        std: Its standard deviations of each channel.
    """
    from resnext.architectures import variant, variants
    from resnext.cli.tables import diagnosis_table, network_table, plain, variants_table
    from resnext.exporting.examine import examine
    from resnext.inference.exported import Exported, is_exported
    from resnext.inference.foreign import ForeignConfig
    from resnext.summary import summarize
    from resnext.system.terminal import new_console
    from resnext.weights.description import Description, describe

    console = new_console()
    if name is None:
        console.print(variants_table([(x, summarize(variant(x), size)) for x in variants()]))
        return
    if is_exported(name):
        given = with_given(name, labels, None if labels is None else size, mean, std)
        exported = given if isinstance(given, Exported) else Exported(Path(name))
        if isinstance(exported.config, ForeignConfig):
            console.print(diagnosis_table(examine(exported)))
            return
        model = Description(name, exported.config, exported.card)
    else:
        model = describe(name, progress=True)
    if size is None and model.card is not None:
        size = model.card.preprocessing.size
    summary = summarize(model.config, size)
    height, width = summary.size
    console.print(f"[bold]{plain(name)}[/] for images of {width}×{height} pixels")
    console.print(f"{model.config!r}\n", highlight=False)
    console.print(network_table(summary, classifier=model.classifier))
