"""torchvision's reference loop: its transforms, SGD, cosine; prints the best accuracy as JSON."""

from __future__ import annotations

import time
from typing import Any

import shared
import torch
from torch import nn

LIBRARY = shared.declare_operators()

import torchvision  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import transforms as T  # noqa: E402

began = time.perf_counter()
data, minutes = shared.arguments()
normal = [T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
train = torchvision.datasets.ImageFolder(
    str(data / "train"),
    T.Compose([T.RandomResizedCrop(shared.SIZE), T.RandomHorizontalFlip(), *normal]),
)
val = torchvision.datasets.ImageFolder(
    str(data / "val"), T.Compose([T.Resize(shared.SIZE), T.CenterCrop(shared.SIZE), *normal])
)
loaders: list[Any] = [
    DataLoader(train, 32, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True),
    DataLoader(val, 64, num_workers=2, persistent_workers=True),
]
model = torchvision.models.resnet18(num_classes=len(train.classes))
criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
optimizer = torch.optim.SGD(model.parameters(), 0.0125, momentum=0.9, weight_decay=1e-4)
best, epoch = 0.0, 0
scheduler: Any = None
while True:
    start = time.perf_counter()
    model.train()
    for x, y in loaders[0]:
        loss = criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    best, epoch = max(best, shared.validate(model, loaders[1])), epoch + 1
    now = time.perf_counter()
    left = 60 * minutes - (now - began)
    if scheduler is None:  # the schedule ends with the budget
        epochs = max(int(left / (now - start)), 1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    if left < now - start:
        break
    scheduler.step()
shared.finish(best, epoch)
