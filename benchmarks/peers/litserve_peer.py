"""A LitServe server with our engine and decoder, for benchmarks/serving.py.

Arguments: the model file, the port, the number of processes that compute.
"""

from __future__ import annotations

import sys
from io import BytesIO
from typing import Any

import litserve
import numpy as np

from resnext.card import card_of
from resnext.inference.opener import open_runner
from resnext.inference.runner import top_classes
from resnext.prediction.images import read_pixels


class Api(litserve.LitAPI):
    """Decodes an image, and computes what has arrived as a batch."""

    def __init__(self, file: str, **options: Any) -> None:
        super().__init__(**options)
        self.file = file

    def setup(self, device: str) -> None:
        """Open the model."""
        self.runner = open_runner(self.file)
        self.card = card_of(self.runner)

    def decode_request(self, request):  # an annotation would become a parameter of the query
        """Pixels of an uploaded image."""
        return read_pixels(BytesIO(request["request"].file.read()), self.card.preprocessing)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """A batch of images."""
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> list[tuple[int, float]]:
        """The most likely class of each image."""
        logits, _ = self.runner.pixels(x)
        classes, probabilities = top_classes(logits, self.card.temperature, 1)
        return list(zip(classes[:, 0].tolist(), probabilities[:, 0].tolist(), strict=True))

    def unbatch(self, output: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """The answers one by one."""
        return output

    def encode_response(self, output: tuple[int, float]) -> dict[str, Any]:
        """An answer as JSON."""
        return {"label": self.card.labels[output[0]], "probability": output[1]}


if __name__ == "__main__":
    file, port, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    api = Api(file, max_batch_size=16, batch_timeout=0.05)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=60)
    server.run(host="127.0.0.1", port=port, generate_client_file=False)
