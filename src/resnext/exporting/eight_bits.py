"""int8: the 8-bit graph of a plan as a file. `optimize` measured its accuracy on the user's images.

Nothing is quantized here: the file computes what the plan computes.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resnext.card import Preprocessing
from resnext.errors import CheckpointError, InputError
from resnext.exporting.graph import FileInput, Network
from resnext.exporting.picture import picture_front
from resnext.inference.engines.openvino import openvino_core, with_map
from resnext.inference.engines.quantization import MAX_DROP, with_pixel_input
from resnext.inference.plan import Plan, plan_path, read_plans
from resnext.system.digest import file_sha256

OUTPUTS = "logits", "probabilities", "embedding", "map"
"""Outputs that a file in 8 bits can have."""

_OPSET, _IR_VERSION = 18, 10  # of the graph that resizes pictures, which OpenVINO converts


class EightBits:
    """The 8-bit network of the plan next to a model file.

    Args:
        model: The model file.

    Attributes:
        plan: The plan.
        accuracy: Accuracy in 8 bits and of the network, on the images that the plan was made with.

    Raises:
        InputError: There is no such plan, or its 8 bits lose more than half a point of accuracy.
        CheckpointError: The plan or its graph cannot be read.
    """

    def __init__(self, model: Network | str | Path) -> None:
        if isinstance(model, Network) or not Path(model).is_file():
            raise InputError("int8 needs a model file and its plan: run resnext optimize FILE.")
        self.plan = _plan_in_8_bits(Path(model))
        traded = self.plan.tradeoff
        rows = self.plan.rows if traded is None else traded.rows
        best, usual = next(row for row in rows if row.verdict == "chosen"), rows[-1]
        assert best.accuracy is not None
        assert usual.accuracy is not None
        self.accuracy = {"int8": best.accuracy, "network": usual.accuracy}
        if best.accuracy < usual.accuracy - MAX_DROP:
            raise InputError(
                f"The plan's 8 bits lose {100 * (usual.accuracy - best.accuracy):.2f} points of "
                f"accuracy; half a point is allowed in a file. Run resnext optimize {model} "
                f"--precision int8 --max-loss {100 * MAX_DROP:g} --data FOLDER, or take fp16."
            )
        self._graph = self.plan.graph("images")
        if not self._graph.exists():
            raise CheckpointError(
                f"{self._graph}, which holds the 8-bit network, is missing. Run resnext optimize "
                f"{model} --again --precision int8 --data FOLDER."
            )
        graph = self._model()
        graph.reshape([1, *list(graph.input(0).partial_shape)[1:]])
        precise = {"INFERENCE_PRECISION_HINT": "f32"}
        self._compiled = openvino_core().compile_model(graph, "CPU", precise)

    def answers(self, image: Float[Tensor, "1 c h w"], temperature: float) -> dict[str, Tensor]:
        """What the plan's graph says about a normalized image, by name."""
        values = self._compiled(image.numpy()).values()
        logits, embedding, last = (torch.from_numpy(x.copy()) for x in values)
        probabilities = (logits / temperature).softmax(1)
        return dict(zip(OUTPUTS, (logits, probabilities, embedding, last), strict=True))

    def model(
        self, kind: FileInput, rule: Preprocessing, temperature: float, outputs: tuple[str, ...]
    ) -> Any:
        """An `openvino.Model` for any number of images.

        Args:
            kind: Kind of the input.
            rule: Built in for pixels and pictures.
            temperature: Divisor of the logits before softmax.
            outputs: Names of the outputs.
        """
        from openvino import Type
        from openvino import opset13 as ops

        openvino: Any = import_module("openvino")  # whose types do not fit together
        model = self._model()
        model.reshape([-1, *list(model.input(0).partial_shape)[1:]])
        logits, embedding, last = (port.get_node().input_value(0) for port in model.outputs)
        scaled = ops.divide(logits, ops.constant(temperature, Type.f32))
        ports = (logits, ops.softmax(scaled, 1), embedding, last)
        found: dict[str, Any] = dict(zip(OUTPUTS, ports, strict=True))
        results = [ops.result(found[name]) for name in outputs]
        model = openvino.Model(results, model.get_parameters(), "resnext")
        if kind != "images":
            model = with_pixel_input(model, rule)
        if kind == "picture":
            channels = len(rule.mean)
            resizing = picture_front(rule, channels, _OPSET, _IR_VERSION).SerializeToString()
            front = openvino_core().read_model(resizing)
            cropped = front.output(0).get_node().input_value(0)
            for port in model.input(0).get_node().output(0).get_target_inputs():
                port.replace_source_output(cropped)
            model = openvino.Model(model.get_results(), front.get_parameters(), "resnext")
        names = [kind, *(f"{name}/result" for name in outputs)]  # the usual ones are counted
        for name, port in zip(names, [model.input(0), *model.outputs], strict=True):
            port.get_node().set_friendly_name(name)
            port.get_tensor().set_names({name.partition("/")[0]})
        return model

    def _model(self) -> Any:
        """The graph: normalized images in; logits, embedding and last feature map out."""
        return with_map(openvino_core().read_model(self._graph))


def check_outputs_in_8_bits(outputs: tuple[str, ...]) -> None:
    """Refuse outputs that the graph of a plan does not have.

    Raises:
        InputError: It has no such output.
    """
    if others := sorted(set(outputs) - set(OUTPUTS)):
        raise InputError(
            f"A file in 8 bits has no output {', '.join(others)}. Take some of "
            f"{', '.join(OUTPUTS)}, or --precision fp16."
        )


def _plan_in_8_bits(file: Path) -> Plan:
    """The plan of a model file that computes in 8 bits on this machine.

    Raises:
        InputError: There is none.
        CheckpointError: The plans cannot be read.
    """
    digest, path = file_sha256(file), plan_path(file)
    plans = [plan for plan in read_plans(path) if plan.file == digest]
    eight = [plan for plan in plans if plan.form.precision == "int8"]
    if found := next((plan for plan in eight if not plan.mismatch()), None):
        return found
    why = "there is none"
    if eight:
        why = eight[0].mismatch()
    elif plans:
        rows = [row for plan in plans for row in plan.rows if row.form is not None]
        verdicts = [row.verdict for row in rows if row.form and row.form.precision == "int8"]
        refused = (verdict for verdict in verdicts if verdict.startswith("refused"))
        why = next(refused, "another precision was faster" if verdicts else "8 bits were not tried")
    raise InputError(
        f"int8 needs a plan for 8 bits ({path}): {why}. Run resnext optimize {file} --precision "
        f"int8 --data FOLDER, or take --precision fp16."
    )
