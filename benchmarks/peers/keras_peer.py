"""Keras' compile and fit with the network of TensorFlow's tutorial; prints the accuracy as JSON.

The tutorial "Image classification" is the one for small data: a small network, trained on 3,670
photographs. The network of Keras' guide "Image classification from scratch" needs a minute for an
epoch of 1,400 images here.
"""

from __future__ import annotations

import time
from typing import Any

import keras
import shared
import tensorflow as tf
from keras import layers

BATCH = 32


def build(classes: int) -> Any:
    """Pixels of 0 to 255 to logits: three convolutions with poolings and a hidden layer."""
    stack = [layers.Rescaling(1 / 255)]
    for width in (16, 32, 64):
        stack += [layers.Conv2D(width, 3, padding="same", activation="relu"), layers.MaxPooling2D()]
    stack += [layers.Dropout(0.2), layers.Flatten(), layers.Dense(128, activation="relu")]
    return keras.Sequential([*stack, layers.Dense(classes)])


class Budget(keras.callbacks.Callback):
    """End before an epoch that would not fit any more; remember the best accuracy."""

    def __init__(self, began: float, minutes: float) -> None:
        super().__init__()
        self.end = began + 60 * minutes
        self.best = 0.0
        self.epochs = 0
        self.start = began

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Note when the epoch began."""
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stop when the next epoch would end too late."""
        now = time.perf_counter()
        self.best, self.epochs = max(self.best, logs["val_accuracy"]), self.epochs + 1
        self.model.stop_training = now + (now - self.start) > self.end  # pyright: ignore


began = time.perf_counter()
data, minutes = shared.arguments()
parts = [
    keras.utils.image_dataset_from_directory(
        str(data / part),
        image_size=(shared.SIZE, shared.SIZE),
        batch_size=BATCH,
        shuffle=part == "train",
        seed=0,
    )
    for part in ("train", "val")
]
classes = len(parts[0].class_names)
augment = keras.Sequential(
    [layers.RandomFlip("horizontal"), layers.RandomRotation(0.1), layers.RandomZoom(0.1)]
)
train = parts[0].map(lambda x, y: (augment(x, training=True), y), tf.data.AUTOTUNE)
network = build(classes)
network.compile(
    keras.optimizers.Adam(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
budget = Budget(began, minutes)
network.fit(
    train.prefetch(tf.data.AUTOTUNE),
    validation_data=parts[1].prefetch(tf.data.AUTOTUNE),
    epochs=10_000,
    callbacks=[budget],
    verbose=0,
)
shared.finish(budget.best, budget.epochs)
