"""`prepare` wraps the network and its forward; `save` takes what it returns."""

import accelerate
import torch
from toy import CONFIG, accuracy, images, loads_as, network

import resnext

with accelerate.init_empty_weights():
    empty = resnext.ResNeXt(CONFIG)
assert {p.device.type for p in empty.parameters()} == {"meta"}

accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
model = network()
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images()), 8, shuffle=True)
model, optimizer, loader = accelerator.prepare(
    model, torch.optim.Adam(model.parameters(), 3e-3), loader
)
for _ in range(12):
    for x, labels in loader:
        optimizer.zero_grad()
        accelerator.backward(torch.nn.functional.cross_entropy(model(x), labels))
        optimizer.step()
assert accuracy(model) == 1
resnext.save(model, "accelerate.safetensors")
loads_as("accelerate.safetensors", accelerator.unwrap_model(model, keep_fp32_wrapper=False))
accelerator.save_model(model, "saved")
loads_as("saved/model.safetensors", accelerator.unwrap_model(model, keep_fp32_wrapper=False))

filled = accelerate.load_checkpoint_and_dispatch(empty, "saved/model.safetensors")
assert accuracy(filled) == 1
