"""Accuracy of a student of a larger network on CIFAR-10's test images, beside its teacher.

`python benchmarks/distill.py FOLDER [TEACHER_EPOCHS STUDENT_EPOCHS]`, by default 5 and 15. CIFAR
names a folder of CIFAR-10 JPEGs with train and test. FOLDER keeps the models: the same command
continues where it was stopped. The target is 98 % of the teacher's accuracy with at most a third of
its operations; the same student, trained on labels for as many epochs, shows what the teacher adds.
Nothing is timed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import resnext
from resnext.summary import summarize
from resnext.system.cpu import cpu_name

TEACHER, STUDENT = "resnext_tiny_32px", "resnext_nano_32px"
PATIENT: dict[str, Any] = {  # the rate, decay and optimizer of the recipe `quick`
    "recipe": "distill",
    "batch_size": 32,
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "weight_decay": 0.2,
    "min_area": 0.5,
    "zero_init_residual": False,
}


def main(folder: str, teacher_epochs: int = 5, student_epochs: int = 15) -> None:
    """Train the teacher and both students, and print their accuracy and cost."""
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    data = os.environ["CIFAR"]
    teacher_file = Path(folder) / "teacher.safetensors"

    def measured(name: str, train: Callable[..., Any], *given: Any, **options: Any) -> float:
        """Accuracy on the test images."""
        out = Path(folder) / f"{name}.safetensors"
        shared: dict[str, Any] = {"size": 32, "val_fraction": 0.04, "resume": True}
        model = train(*given, out=out, **shared, **options)
        result, cost = resnext.evaluate(model, data), summarize(model.config, 32)
        low, high = result.interval()
        print(
            f"{name}: {result.accuracy:.2%} of {result.count:,} test images ({low:.2%} to "
            f"{high:.2%}), {cost.macs / 1e6:.1f} million MACs, {cost.parameters:,} parameters",
            flush=True,
        )
        return result.accuracy

    teacher = measured(
        "teacher", resnext.train, data, TEACHER, recipe="quick", epochs=teacher_epochs
    )
    student = measured(
        "student", resnext.distill, teacher_file, data, STUDENT, epochs=student_epochs, **PATIENT
    )
    costs = [summarize(resnext.variant(name), 32).macs for name in (STUDENT, TEACHER)]
    print(f"{student / teacher:.1%} of the teacher's accuracy (target: at least 98 %)")
    print(f"{costs[0] / costs[1]:.1%} of its operations (target: at most 33.3 %)")
    measured(
        "student on labels", resnext.train, data, STUDENT, recipe="quick", epochs=student_epochs
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
