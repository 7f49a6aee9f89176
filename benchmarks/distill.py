"""Accuracy of a student of a larger network on CIFAR-10's test images, beside its teacher.

Run alone on the machine: `python benchmarks/distill.py [TEACHER_EPOCHS STUDENT_EPOCHS]`, by default
12 and 60. CIFAR names a folder of CIFAR-10 JPEGs with train and test. The target is 98 % of the
teacher's accuracy with at most a third of its operations; the same student, trained on labels for
as many epochs, shows what the teacher adds.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import resnext
from resnext.config import ResNeXtConfig
from resnext.summary import summarize
from resnext.system.cpu import cpu_name

TEACHER = ResNeXtConfig(
    (2, 2, 2),
    2,
    32,
    channels=(64, 128, 256),
    expansion=1,
    num_stages=3,
    strides=(2, 2, 2),
    num_classes=10,
    small_stem=True,
    stem_channels=48,
)
STUDENT = TEACHER.replace(base_width=20, channels=(48, 96, 192), stem_channels=32)
ON_LABELS: dict[str, Any] = {  # as benchmarks/training.py trains on CIFAR-10
    "recipe": "cifar",
    "schedule": "cosine",
    "milestones": (),
    "warmup": 0.1,
    "label_smoothing": 0.05,
    "weight_decay": 3e-4,
    "batch_size": 32,
    "learning_rate": 0.05,
    "ema": 0.999,
    "padding": 3,
}
PATIENT: dict[str, Any] = {
    "recipe": "distill",
    "batch_size": 64,
    "learning_rate": 0.05,
    "ema": 0.999,
}


def main(teacher_epochs: int = 12, student_epochs: int = 60) -> None:
    """Train the teacher and both students, and print their accuracy and cost."""
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    data = os.environ["CIFAR"]
    with tempfile.TemporaryDirectory() as folder:
        shared: dict[str, Any] = {"size": 32, "val_fraction": 0.05}

        def measured(name: str, train: Any, *arguments: Any, **options: Any) -> tuple[float, int]:
            """Accuracy on the test images, and multiply-accumulates per image."""
            began = time.perf_counter()
            out = Path(folder) / f"{name}.safetensors"
            model = train(*arguments, out=out, **shared, **options)
            minutes = (time.perf_counter() - began) / 60
            result, cost = resnext.evaluate(model, data), summarize(model.config, 32)
            low, high = result.interval()
            print(
                f"{name}: {result.accuracy:.2%} of {result.count:,} test images ({low:.2%} to "
                f"{high:.2%}), {cost.macs / 1e6:.1f} million MACs, {cost.parameters:,} parameters, "
                f"{minutes:.1f} minutes",
                flush=True,
            )
            return result.accuracy, cost.macs

        teacher, cost = measured(
            "teacher", resnext.train, data, TEACHER, epochs=teacher_epochs, **ON_LABELS
        )
        measured(
            "student on labels", resnext.train, data, STUDENT, epochs=student_epochs, **ON_LABELS
        )
        file = Path(folder) / "teacher.safetensors"
        student, cheaper = measured(
            "student", resnext.distill, file, data, STUDENT, epochs=student_epochs, **PATIENT
        )
    print(f"{student / teacher:.1%} of the teacher's accuracy (target: at least 98 %)")
    print(f"{cheaper / cost:.1%} of its operations (target: at most 33.3 %)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
