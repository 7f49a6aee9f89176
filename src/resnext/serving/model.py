"""An opened model: from images to answers. Knows neither HTTP nor threads."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from resnext.card import card_of
from resnext.data.decoding import decode_image
from resnext.errors import DataError, InputError
from resnext.explanation.explanation import Explanation
from resnext.explanation.images import explain
from resnext.inference.exported import Exported
from resnext.inference.opener import open_runner
from resnext.inference.optimized import Optimized
from resnext.inference.runner import Outputs, Runner, returns_maps, top_classes
from resnext.neighbours.index import Index, find_index
from resnext.prediction.images import read_pixels
from resnext.serving.problems import Problem, damaged, unavailable
from resnext.system.digest import file_sha256, short_digest
from resnext.system.limits import DecodingRoom

if TYPE_CHECKING:
    from collections.abc import Callable

    from resnext.network import ResNeXt

_NAME = "The image"
_VERSION = 12  # digits
_SIGNIFICANT = 6  # digits of a probability behind the point


@dataclass(frozen=True)
class Answer:
    """What a model says about an image.

    Args:
        top: The most likely classes with their probabilities, most likely first.
        unsure: Whether the first is below the model's threshold.
        unknown: Whether the image is like none of the classes; None if that is not known.
        logits: All logits.
        embedding: The embedding.
    """

    top: list[tuple[str, float]]
    unsure: bool
    unknown: bool | None
    logits: Float32[np.ndarray, " k"] = field(repr=False)
    embedding: Float32[np.ndarray, " d"] = field(repr=False)

    def to_dict(self, *, embedding: bool = False) -> dict[str, Any]:
        """The answer as JSON values."""
        label, probability = self.top[0]
        values: dict[str, Any] = {
            "label": label,
            "probability": probability,
            "unsure": self.unsure,
            "unknown": self.unknown,
            "top": [{"label": label, "probability": p} for label, p in self.top],
        }
        if embedding:
            values["embedding"] = self.embedding.tolist()
        return values


class Model:
    """A model that is served.

    Args:
        source: A network, a runner, a model file or a catalog name.
        device: "auto", or a torch device.
        plan: Whether to use the plan next to the model file.
        most_pixels: Pixels of the largest image.
        report: Takes lines about what was opened.

    Attributes:
        name: Its name: that of the file, without suffix.
        version: Differs between files.

    Raises:
        CheckpointError: The file holds no usable model.
        InputError: The model has no labels.
    """

    def __init__(
        self,
        source: ResNeXt | Runner | str | Path,
        *,
        device: str = "auto",
        plan: bool = True,
        most_pixels: int = 50_000_000,
        report: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.runner = open_runner(source, device=device, plan=plan)
        self.card = card_of(self.runner)
        self.labels = self.card.labels
        self.batch = self.runner.batch
        self.index: Index | None = find_index(source, self.runner, report)
        self.unknown = None if self.index is None else self.index.unknown_score(self.card)
        file = Path(source) if isinstance(source, str | Path) else None
        if file is not None and file.is_file():
            self.version = file_sha256(file)[:_VERSION]
        else:
            digest = short_digest(str(getattr(self.runner, "fingerprint", source)))
            self.version = digest[:_VERSION]
        self.name = "model" if file is None else file.stem
        self._most_pixels, self._room = most_pixels, DecodingRoom()

    @cached_property
    def engine(self) -> str:
        """What it runs on, in a few words."""
        if isinstance(self.runner, Optimized):
            return self.runner.plan.summary
        if isinstance(self.runner, Exported):
            return f"exported {self.runner.path.suffix.removeprefix('.')}"
        return "torch"

    @property
    def explains(self) -> bool:
        """Whether it can say why: an exported file can if it has the output "map"."""
        return returns_maps(self.runner)

    def describe(self) -> dict[str, Any]:
        """Name, version, labels and what else a client may need, as JSON values."""
        return {
            "name": self.name,
            "version": self.version,
            "labels": list(self.labels),
            "preprocessing": self.card.preprocessing.to_dict(),
            "threshold": self.card.threshold,
            "unknown": self.unknown is not None,
            "neighbours": self.index is not None,
            "explain": self.explains,
            "engine": self.engine,
            "batch": self.batch,
            "licence": self.card.licence,
        }

    def warm(self) -> None:
        """Compute a single image and a whole batch, so that the first request need not wait."""
        rule, channels = self.card.preprocessing, self.runner.config.in_channels
        for count in {1, self.batch}:
            self.runner.pixels(np.zeros((count, rule.size, rule.size, channels), np.uint8))

    def pixels(self, source: bytes | UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
        """An image as the runner takes it.

        Args:
            source: The content of an image file, or pixels that are ready.

        Raises:
            Problem: The image is damaged or too large.
        """
        if isinstance(source, np.ndarray):
            return source
        rule, reserve = self.card.preprocessing, self._reserve
        try:
            content = BytesIO(source)
            return read_pixels(content, rule, reserve, name=_NAME, most=self._most_pixels)
        except DataError as error:
            raise damaged(str(error)) from error

    def outputs(self, x: UInt8[np.ndarray, "n h w c"]) -> Outputs:
        """Logits and embeddings."""
        return self.runner.pixels(x)

    def answers(self, outputs: Outputs, tops: Sequence[int]) -> list[Answer | Problem]:
        """What the model says about each image.

        Args:
            outputs: Logits and embeddings.
            tops: Number of classes to report for each.
        """
        logits, embeddings = outputs
        finite: Any = np.isfinite(logits).all(1)
        classes, probabilities = top_classes(
            np.where(finite[:, None], logits, 0), self.card.temperature, max(tops)
        )
        unknown: list[bool | None] = [None] * len(logits)
        if self.unknown is not None:
            unknown = (self.unknown(*outputs) > self.unknown.threshold).tolist()
        found: list[Answer | Problem] = []
        for i, top in enumerate(tops):
            if not finite[i]:
                found.append(unavailable("The model's output is NaN or infinite.", "engine"))
                continue
            likely = [self.labels[j] for j in classes[i, :top]]
            shares = [round(p, _SIGNIFICANT) for p in probabilities[i, :top].tolist()]
            threshold = self.card.threshold
            unsure = threshold is not None and bool(probabilities[i, 0] < threshold)
            top_list = list(zip(likely, shares, strict=True))
            found.append(Answer(top_list, unsure, unknown[i], logits[i], embeddings[i]))
        return found

    def explain(self, content: bytes, label: str | None, against: str | None) -> Explanation:
        """Why an image got a class.

        Args:
            content: The image file.
            label: The class to explain; None for the most likely one.
            against: A class to compare it with; None for none.

        Raises:
            Problem: The image is damaged or too large, or a class is unknown.
        """
        rule = self.card.preprocessing
        try:
            image = decode_image(content, _NAME, rule.colour, rule.value_range, self._most_pixels)
            other = False if against is None else against
            return explain(self.runner, image, label=label, against=other)
        except DataError as error:
            raise damaged(str(error)) from error
        except InputError as error:
            raise Problem(422, str(error), "class") from error

    def neighbours(self, answer: Answer, count: int) -> list[dict[str, Any]]:
        """The most similar images of the index, of all classes.

        Args:
            answer: The answer for the image.
            count: How many.
        """
        assert self.index is not None
        return [
            {
                "label": one.label,
                "distance": round(one.distance, _SIGNIFICANT),
                "jpeg": base64.b64encode(one.jpeg).decode(),
            }
            for one in self.index.nearest(answer.embedding[None], count)[0]
        ]

    def _reserve(self, pixels: int) -> AbstractContextManager[None]:
        return self._room.reserve(pixels)
