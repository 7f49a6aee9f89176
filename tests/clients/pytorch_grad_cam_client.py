"""grad-cam's map is the one that its formula gives for our last stage."""

import numpy as np
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from toy import images, network

model = network().eval()
x, _ = images(3, size=128)
with GradCAM(model=model, target_layers=[model.layer4[-1]]) as cam:
    found = cam(input_tensor=x, targets=[ClassifierOutputTarget(1)] * 3)
maps = model.features(x)[-1].detach().requires_grad_()
model.forward_head(maps)[:, 1].sum().backward()
wanted = (maps.grad.mean((2, 3), keepdim=True) * maps).sum(1).relu().detach().numpy()
assert found.shape == (3, 128, 128)
for small, large in zip(wanted, found, strict=True):
    row, column = np.unravel_index(small.argmax(), small.shape)
    centre = large[row * 32 + 16, column * 32 + 16]
    assert centre >= 0.9 * large.max()
