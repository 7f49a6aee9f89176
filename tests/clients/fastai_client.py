"""A Learner trains our network; fastai cuts it where it cuts torchvision's; its file loads."""

import fastai.callback.schedule  # noqa: F401 (gives Learner its fit_one_cycle)
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.vision.learner import create_body
from toy import accuracy, images, loads_as, network

data = torch.utils.data.TensorDataset(*images())
loader = torch.utils.data.DataLoader(data, 8, shuffle=True)
model = network()
learner = Learner(DataLoaders(loader, loader), model, loss_func=torch.nn.functional.cross_entropy)
with learner.no_logging():
    learner.fit_one_cycle(12, 1e-2)
assert accuracy(model) == 1
loads_as(learner.save("fastai"), model)

body = create_body(model).eval()
x, _ = images(2)
with torch.no_grad():
    torch.testing.assert_close(body(x), model.eval().forward_features(x))
