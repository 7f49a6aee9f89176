"""`resnext optimize` and `resnext bench`: the fastest way to run a model, and how fast it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from resnext.cli.options import (
    Flag,
    OptionalWhole,
    Several,
    check_outputs,
    whole,
    wholes,
    with_given,
    write_json,
)
from resnext.errors import ResNeXtError


def optimize(
    file: str,
    /,
    *,
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto",
    engine: Literal["auto", "torch", "compile", "tensorrt", "onnxruntime", "openvino"] = "auto",
    batch_size: Annotated[int, Parameter(name=["--batch-size", "-b"], converter=whole)] = 16,
    data: str | None = None,
    max_loss: float | None = None,
    device: str = "auto",
    labels: str | None = None,
    size: OptionalWhole = None,
    mean: str | None = None,
    std: str | None = None,
    again: Flag = False,
) -> None:
    """Find the fastest way to run a model on this machine, and save it as a plan next to the file.

    The predictions must agree with those of the unmodified network. From then on, evaluate and
    predict use the plan.

    Args:
        file: A model file, or an ONNX or OpenVINO file, for which engines and divisions of a batch
            are compared.
        precision: Compute precision; auto uses the fastest that agrees with the network.
        engine: Inference engine; auto times all that are installed, but on a CPU compile only if
            neither OpenVINO nor ONNX Runtime is.
        batch_size: Batch size to optimize for; the result accepts any batch size.
        data: Labelled images the model was not trained on, in any form that evaluate accepts, to
            compare predictions on and to calibrate int8 with.
        max_loss: With --data, accept a loss of this many percentage points of accuracy for speed:
            smaller images, tighter crops and int8 are measured together, and the fastest within
            the bound is chosen.
        device: auto, cpu, cuda, cuda:1, …
        labels: For an ONNX or OpenVINO file from another program, as for predict; as size, mean
            and std.
        size: Side of its images, pixels.
        mean: Mean of each channel, for values from 0 to 1.
        std: Deviation of each channel, for values from 0 to 1.
        again: Measure again even if a result is cached.
    """
    if not Path(file).is_file():
        raise ResNeXtError(f"{file} is not a file. A plan is saved next to a model file.")
    from resnext.inference.exported import check_processor, is_exported

    if is_exported(file):
        given = labels, size, mean, std
        if precision != "auto" or data is not None or max_loss is not None:
            raise ResNeXtError(
                f"{file} is an exported file, whose precision and size are fixed. --precision, "
                f"--data and --max-loss are for the model that it was made from."
            )
        check_processor(file, device)
        _optimize_file(file, given, engine, batch_size)
        return
    with_given(file, labels, size, mean, std)  # refuses them: a model file has its own
    if max_loss is not None and data is None:
        raise ResNeXtError("--max-loss needs --data: labelled images to measure accuracy on.")
    from resnext.inference.optimize import optimize
    from resnext.inference.plan import plan_path

    check_outputs(plan_path(Path(file)))

    optimized = optimize(
        file,
        precision=precision,
        engine=engine,
        batch=batch_size,
        data=data,
        max_loss=max_loss,
        device=device,
        again=again,
        progress=True,
    )
    print(optimized.explain())
    print(f"\n{optimized.save_plan(file)}: the plan; predict and evaluate now use it")


def _optimize_file(
    file: str, given: tuple[str | None, int | None, str | None, str | None], engine: str, batch: int
) -> None:
    """Find the fastest way to run a file of another runtime."""
    from resnext.inference.exported import Exported
    from resnext.inference.optimize_file import optimize_file
    from resnext.inference.plan import plan_path, save_beside
    from resnext.inference.plan_table import plan_table

    check_outputs(plan_path(Path(file)))
    opened = with_given(file, *given, plan=False)
    exported = opened if isinstance(opened, Exported) else Exported(Path(file))
    plan = optimize_file(exported, engine=engine, batch=batch, progress=True)
    print(plan_table(plan))
    print(f"\n{save_beside(Path(file), plan)}: the plan; predict and evaluate now use it")


def bench(
    model: str = "resnext50_32x4d",
    /,
    *,
    batch_size: Annotated[tuple[int, ...], Several, Parameter(converter=wholes)] = (),
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto",
    data: str | None = None,
    compiled: Flag = False,
    plot: Path | None = None,
    json: Path | None = None,
) -> None:
    """Time a model in resnext, torchvision, timm, ONNX Runtime and OpenVINO side by side.

    Args:
        model: A variant, a model file, a config file or a catalog name.
        batch_size: Batch size to time; repeat the option for several. Default: 1 and 16.
        precision: Compute precision of resnext.
        data: Labelled images to calibrate int8 with.
        compiled: Also time torch.compile, which takes minutes.
        plot: Draw a chart of the results (.png, .svg or .pdf).
        json: Write the results to this JSON file.
    """
    from resnext.benchmark.timing import bench

    check_outputs(json, plot)
    if plot is not None:
        from resnext.cli.plots import check_plot

        check_plot(plot)
    result = bench(
        model,
        batches=batch_size or (1, 16),
        precision=precision,
        data=data,
        compiled=compiled,
        progress=True,
    )
    print(result.table())
    if json is not None:
        write_json(json, result.to_dict())
        print(f"{json}: the results")
    if plot is not None:
        from resnext.cli.plots import plot_benchmark

        plot_benchmark(result, plot)
        print(f"{plot}: a chart of the results")
