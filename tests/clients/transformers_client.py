"""transformers' Trainer trains our network and writes what `load` reads."""

import torch
from toy import accuracy, images, loads_as, network
from transformers import Trainer, TrainingArguments


class ImageTrainer(Trainer):
    """The usual way to train a model that is not theirs."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        """Cross-entropy."""
        logits = model(inputs["images"])
        loss = torch.nn.functional.cross_entropy(logits, inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss


x, labels = images()
model = network()
arguments = TrainingArguments(
    "out", num_train_epochs=12, per_device_train_batch_size=8, learning_rate=3e-3, use_cpu=True,
    report_to="none", save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
    lr_scheduler_type="constant", logging_steps=1,
)  # fmt: skip
trainer = ImageTrainer(
    model,
    arguments,
    train_dataset=[{"images": a, "labels": b} for a, b in zip(x, labels, strict=True)],
)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert losses[-1] < 0.5 * losses[0], losses
assert accuracy(model) == 1
trainer.save_model("out")
loads_as("out/model.safetensors", model)
