"""A U-Net whose encoder is a `Backbone` learns to mark the bright half."""

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders._base import EncoderMixin
from toy import CONFIG, images

from resnext import Backbone


class Encoder(torch.nn.Module, EncoderMixin):
    """As smp's documentation says an encoder must be."""

    def __init__(self, depth: int = 5, **_: object) -> None:
        super().__init__()
        self.backbone = Backbone(CONFIG, with_stem=True)
        self._depth, self._in_channels = depth, 3
        self._out_channels = [3, *self.backbone.feature_info.channels()]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The image, then maps of stride 2 to 32."""
        return [x, *self.backbone(x)]

    def load_state_dict(self, state: dict, **options: object) -> None:
        """A model file's weights."""
        self.backbone.load_state_dict(state, **options)


smp.encoders.encoders["ours"] = {"encoder": Encoder, "pretrained_settings": {}, "params": {}}
torch.manual_seed(0)
model = smp.Unet("ours", encoder_weights=None, decoder_channels=(32, 24, 16, 16, 8), classes=1)
x, labels = images(8)
mask = torch.zeros(8, 1, 32, 32)
for i, label in enumerate(labels.tolist()):
    mask[i, :, :, label * 16 : (label + 1) * 16] = 1
x = x + 0.5 * mask
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
loss = smp.losses.DiceLoss("binary")
losses = []
for _ in range(20):
    optimizer.zero_grad()
    value = loss(model(x), mask)
    value.backward()
    optimizer.step()
    losses.append(value.item())
assert losses[-1] < 0.5 * losses[0], losses
assert all(p.grad is not None for p in model.encoder.parameters())
