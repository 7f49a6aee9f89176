"""captum's attributions: complete where they claim to be, and LRP has a rule for every layer."""

import torch
from captum.attr import LRP, GuidedGradCam, IntegratedGradients, LayerActivation, Occlusion
from toy import images, network

model = network()
x, labels = images(4)
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(20):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), labels).backward()
    optimizer.step()
model.eval()

found = IntegratedGradients(model).attribute(x, target=labels, n_steps=200)
with torch.no_grad():
    rise = (model(x) - model(torch.zeros_like(x))).gather(1, labels[:, None])[:, 0]
torch.testing.assert_close(found.sum((1, 2, 3)).float(), rise, rtol=0.05, atol=0.05)

occluded = Occlusion(model).attribute(x, (3, 8, 8), target=labels, strides=(3, 8, 8))
assert occluded.shape == x.shape
assert GuidedGradCam(model, model.layer4).attribute(x, target=labels).shape == x.shape
with torch.no_grad():
    torch.testing.assert_close(
        LayerActivation(model, model.layer2).attribute(x), model.features(x)[1]
    )
relevance = LRP(model).attribute(x, target=labels)
assert relevance.isfinite().all()
assert relevance.abs().sum() > 0
