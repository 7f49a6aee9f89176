"""A LightningModule trains our network, and its checkpoint is a file that `load` reads."""

import lightning
import torch
from toy import accuracy, images, loads_as, network


class Module(lightning.LightningModule):
    """As its documentation writes a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """The loss of a batch."""
        return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Any."""
        return torch.optim.Adam(self.parameters(), 3e-3)


module = Module()
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images()), 8, shuffle=True)
trainer = lightning.Trainer(
    max_epochs=12, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=True,
)  # fmt: skip
trainer.fit(module, loader)
trainer.save_checkpoint("lightning.ckpt")
assert accuracy(module.model) == 1
loads_as("lightning.ckpt", module.model)
