"""fastai's Learner with fit_one_cycle; prints the best accuracy as JSON."""

from __future__ import annotations

import time

import shared

LIBRARY = shared.declare_operators()

from fastai.vision.all import (  # noqa: E402
    ImageDataLoaders,
    Resize,
    accuracy,
    aug_transforms,
    resnet18,
    vision_learner,
)

began = time.perf_counter()
data, minutes = shared.arguments()
loaders = ImageDataLoaders.from_folder(
    data,
    train="train",
    valid="val",
    item_tfms=Resize(shared.SIZE),
    bs=32,
    num_workers=2,
    batch_tfms=aug_transforms(max_warp=0.0),
)
learner = vision_learner(loaders, resnet18, pretrained=False, metrics=accuracy)
start = time.perf_counter()
learner.fit_one_cycle(1, 3e-3)
each = time.perf_counter() - start
epochs = max(int((60 * minutes - (time.perf_counter() - began)) / each), 1)
learner.fit_one_cycle(epochs, 3e-3)
best = max(row[2] for row in learner.recorder.values)
shared.finish(float(best), epochs + 1)
