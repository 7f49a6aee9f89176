"""Ultralytics classify with its time budget; prints the best accuracy as JSON."""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path

import shared

LIBRARY = shared.declare_operators()

from ultralytics import YOLO  # noqa: E402
from ultralytics.utils import torch_utils  # noqa: E402

torch_utils.NUM_THREADS = os.cpu_count()  # it leaves one core idle, which is half of two

data, minutes = shared.arguments()
project = tempfile.mkdtemp()
model = YOLO("yolo11n-cls.yaml")
model.train(
    data=str(data),
    time=minutes / 60,
    imgsz=shared.SIZE,
    batch=32,
    pretrained=False,
    device="cpu",
    project=project,
    name="run",
    plots=False,
    workers=2,
)
with next(Path(project).rglob("results.csv")).open() as file:
    rows = list(csv.DictReader(file))
best = max(float(row["metrics/accuracy_top1"]) for row in rows)
shared.finish(best, len(rows))
