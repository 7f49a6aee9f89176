"""Accuracy of a student of a larger network on CIFAR-10's test images, beside its teacher.

`python benchmarks/distill.py FOLDER [TEACHER_EPOCHS STUDENT_EPOCHS]`, by default 8 and 6. CIFAR
names a folder of CIFAR-10 JPEGs with train and test. The teacher is trained on 500 labelled images
of each class, as `benchmarks/family.py` does it; the student learns from it on the same images and
on 20,000 others without labels. The target is 98 % of the teacher's accuracy with at most a third
of its operations. Nothing is timed. FOLDER keeps images and models: the same command continues
where it was stopped.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from family import draw

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


def main(folder: str, teacher_epochs: int = 8, student_epochs: int = 6) -> None:
    """Train the teacher and its student, and print their accuracy and cost."""
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    root, source = Path(folder), Path(os.environ["CIFAR"])
    data, others = draw(source, root / "labelled", 500), unlabelled(source, root)
    shared: dict[str, Any] = {"size": 32, "val_fraction": 0.05, "resume": True, "workers": 0}

    def measured(name: str, train: Callable[..., Any], *given: Any, **options: Any) -> float:
        """Accuracy on the test images."""
        model = train(*given, out=root / f"{name}.safetensors", **shared, **options)
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
        "student",
        resnext.distill,
        root / "teacher.safetensors",
        data,
        STUDENT,
        unlabelled=others,
        epochs=student_epochs,
        **PATIENT,
    )
    costs = [summarize(resnext.variant(name), 32).macs for name in (STUDENT, TEACHER)]
    print(f"{student / teacher:.1%} of the teacher's accuracy (target: at least 98 %)")
    print(f"{costs[0] / costs[1]:.1%} of its operations (target: at most 33.3 %)")


def unlabelled(source: Path, root: Path) -> Path:
    """A folder with 2,000 training images of each class that are not among the labelled."""
    folder = root / "unlabelled"
    if not folder.exists():
        folder.mkdir()
        for label in sorted((source / "train").iterdir()):
            taken = {path.name for path in (root / "labelled" / "train" / label.name).iterdir()}
            others = [path for path in sorted(label.iterdir()) if path.name not in taken]
            for path in others[:2000]:
                shutil.copy(path, folder / f"{label.name}-{path.name}")
    return folder


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
