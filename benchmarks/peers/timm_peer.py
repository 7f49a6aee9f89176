"""timm's loader, augmentation, optimizer and schedule; prints the best accuracy as JSON."""

from __future__ import annotations

import time
from typing import Any

import shared
import torch

LIBRARY = shared.declare_operators()

import timm  # noqa: E402
from timm.data import create_dataset, create_loader  # noqa: E402
from timm.loss import LabelSmoothingCrossEntropy  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.scheduler import CosineLRScheduler  # noqa: E402

began = time.perf_counter()
data, minutes = shared.arguments()
classes = len(list((data / "train").iterdir()))
model: Any = timm.create_model("resnet18", num_classes=classes, pretrained=False)
model = model.to(memory_format=torch.channels_last)
loaders = [
    create_loader(
        create_dataset("", root=str(data), split=part),
        batch_size=32,
        is_training=part == "train",
        num_workers=2,
        scale=(0.35, 1.0) if part == "train" else None,
        persistent_workers=True,
        input_size=(3, shared.SIZE, shared.SIZE),
        device=torch.device("cpu"),
        use_prefetcher=False,
    )
    for part in ("train", "val")
]
optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05, weight_decay=5e-4, momentum=0.9)
criterion = LabelSmoothingCrossEntropy(0.1)
bf16 = torch.cpu._is_avx512_bf16_supported()
best, epoch, epochs = 0.0, 0, 1000
scheduler = CosineLRScheduler(optimizer, t_initial=epochs, warmup_t=1, warmup_lr_init=0.005)
while True:
    start = time.perf_counter()
    model.train()
    for x, y in loaders[0]:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = criterion(model(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        best, epoch = max(best, shared.validate(model, loaders[1])), epoch + 1
    now = time.perf_counter()
    left = 60 * minutes - (now - began)
    if epoch == 1:  # the schedule ends with the budget
        epochs = 1 + int(left / (now - start))
        scheduler = CosineLRScheduler(optimizer, t_initial=epochs, warmup_t=1, warmup_lr_init=0.005)
    if left < now - start:
        break
    scheduler.step(min(epoch, epochs))
shared.finish(best, epoch)
