"""Accuracy for speed: smaller images, tighter crops and int8, within a bound on the loss.

Speed is measured first, at every size. Then accuracy is measured from the fastest form down, until
one is inside the bound: slower forms cannot be chosen any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int

from resnext.calibration import fit_temperature, interval, loss_interval, recommend_threshold
from resnext.card import Preprocessing, card_of
from resnext.config import ResNeXtConfig
from resnext.data.dataset import ImageSet
from resnext.data.loader import eval_loader
from resnext.errors import DataError, InputError
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import PRECISIONS, EngineConfig
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.plan import FrontierRow, Measurement, Tradeoff
from resnext.inference.runner import Session, top_classes
from resnext.inference.search import EQUAL, Examples, Search
from resnext.network import ResNeXt
from resnext.system.progress import Reporter
from resnext.system.text import counted

Logits = Float32[np.ndarray, "n k"]
Batches = Iterator[tuple[Float32[np.ndarray, "n c h w"], Int[np.ndarray, " n"]]]
Inside = tuple[FrontierRow, Logits]

_FRACTIONS = (1 / 2, 5 / 8, 3 / 4, 7 / 8)
_CLOSER = 9 / 8
_FEW_STRIDES = 6  # images with fewer strides per side come in steps of half a stride


def smaller_sizes(config: ResNeXtConfig, size: int) -> list[int]:
    """At most four image sizes worth measuring, from half of `size` upwards.

    They are multiples of the network's stride, or of half of it for small images: in between, maps
    are rounded up, so that a smaller image costs as much as a larger one.

    Args:
        config: The architecture. No size is below its `min_size` and `stride`.
        size: Image size, pixels. Only smaller ones are returned.
    """
    few = size < _FEW_STRIDES * config.stride
    step = max(config.stride // 2, 1) if few else config.stride
    sizes = {round(size * fraction / step) * step for fraction in _FRACTIONS}
    return sorted(s for s in sizes if max(config.min_size, config.stride) <= s < size)


def crops(preprocessing: Preprocessing, size: int) -> list[Preprocessing]:
    """Crops of one size: the same part of the image as before, all of it, and smaller parts.

    In the smaller parts, objects are larger: halfway to their size in pixels before, and, if half
    of the image is left, `_CLOSER` than before. Networks that were trained on random crops expect
    larger objects than they are tested on (arXiv:1906.06423).
    """
    usual = preprocessing.resize
    scaled, closer = round(usual * size / preprocessing.size), round(_CLOSER * usual)
    resizes = [scaled, size, (scaled + usual) // 2]
    if 2 * size**2 >= closer**2:
        resizes.append(closer)
    return [replace(preprocessing, size=size, resize=each) for each in dict.fromkeys(resizes)]


def tell_left_out(unreadable: int, progress: Reporter) -> None:
    """Print how many images could not be read, if any."""
    if unreadable:
        progress.line(f"{counted(unreadable, 'image')} left out as unreadable.")


class Choice(NamedTuple):
    """The result of a `FrontierSearch`."""

    form: EngineConfig
    """How to compute."""
    rows: list[Measurement]
    """All measurements at full size."""
    builder: EngineBuilder
    """Builds sessions of the form."""
    tradeoff: Tradeoff
    """The image size, and all measurements of accuracy."""


class FrontierSearch:
    """Finds the fastest form and image size that lose at most `max_loss` of accuracy.

    The loss is the accuracy of the reference minus that of the form, on the same images. The
    reference is the fastest fp32 form at the size of the card; if no fp32 is timed, the network
    itself. A form is taken if its loss is at most `max_loss`; of forms equally fast, the most
    accurate. The interval of the loss is reported but does not decide: with a few hundred images
    it is wider than a useful bound, and nothing would be taken. Several forms are compared on the
    same images, so on new ones the loss is on average a little larger.

    The images that calibrate int8 are not among those that decide, and no layer is returned to
    floating point by looking at accuracy.

    Args:
        network: A classifier with a card, in evaluation mode and single precision.
        device: Where to run.
        batch: Batch size to optimize for.
        images: Labelled images that the network was not trained on.
        calibrating: Positions of the images that time and calibrate.
        deciding: Positions of the images that decide.
        max_loss: Largest accepted loss of accuracy, percentage points.
        progress: Shows the steps.
    """

    def __init__(
        self,
        network: ResNeXt,
        device: torch.device,
        batch: int,
        images: ImageSet,
        calibrating: Sequence[int],
        deciding: Sequence[int],
        max_loss: float,
        progress: Reporter,
    ) -> None:
        self.network, self.device, self.batch = network, device, batch
        self.images, self.calibrating, self.deciding = images, calibrating, list(deciding)
        self.max_loss, self.progress = max_loss, progress
        self.card = card_of(network)
        self.searches: dict[int, Search] = {}
        self.calibrated: set[int] = set()  # sizes at which int8 is ready

    def run(self, precision: str, engine: str) -> Choice:
        """The fastest form inside the bound.

        Args:
            precision: A precision, or "auto".
            engine: Name of an engine, or "auto".

        Raises:
            DataError: The images cannot be read.
            InputError: No form runs, agrees with the network, or is inside the bound.
        """
        full = self.search(self.card.preprocessing)
        full.measure(precision, engine)
        forms = self.forms(full)
        self.measure_reference(full, forms.get("fp32"))
        full.sessions.clear()  # they hold memory
        rows, inside = self.walk(self.candidates(full, list(forms.values())))
        if not inside:
            least = min((row.loss for row in rows[:-1] if row.loss is not None), default=1.0)
            raise InputError(
                f"No form loses at most {self.max_loss:g} points of accuracy; the best loses "
                f"{100 * least:.2f}. Allow a larger loss, or precision auto."
            )
        best, logits = max(inside, key=lambda pair: pair[0].accuracy or 0.0)
        assert best.form is not None
        rows = [replace(row, verdict="chosen") if row is best else row for row in rows]
        temperature, threshold = self.confidence(best, logits)
        tradeoff = Tradeoff(
            max_loss=float(self.max_loss),
            resize=best.resize,
            temperature=temperature,
            threshold=threshold,
            data=self.images.name,
            deciding=len(self.targets),
            calibrating=len(full.examples.images),
            rows=tuple(rows),
        )
        return Choice(best.form, full.table(), self.searches[best.size].builder, tradeoff)

    def search(self, preprocessing: Preprocessing) -> Search:
        """A search at an image size; its examples are the images that calibrate, at this size.

        Raises:
            DataError: None of these images can be read.
        """
        images = [x for x, _ in self.batches(preprocessing, self.calibrating)]
        if not images:
            raise DataError(f"{self.images.name} has no image that can be read.")
        examples = Examples(np.concatenate(images), real=True)
        size = preprocessing.size
        search = Search(self.network, size, self.device, self.batch, examples, self.progress)
        self.searches[size] = search
        return search

    def batches(self, preprocessing: Preprocessing, indices: Sequence[int]) -> Batches:
        """Inputs and targets of some images, without unreadable ones."""
        loader = eval_loader(
            self.images, preprocessing, batch_size=self.batch, workers=0, indices=indices
        )
        return ((x.numpy(), targets.numpy()) for x, targets in loader)

    def forms(self, full: Search) -> dict[str, EngineConfig]:
        """The best form of each precision; int8 is judged later, by its accuracy.

        Those slower than fp32 are left out: they would not be more accurate either, at any size.

        Raises:
            InputError: No form agrees with the network.
        """
        forms: dict[str, EngineConfig] = {}
        for precision in PRECISIONS:
            usable = (
                form
                for form in full.preferred(precision)
                if precision == "int8" or full.agrees(form)
            )
            if form := next(usable, None):
                forms[precision] = form
        if not forms:
            raise full.nothing_agrees()
        least = full.rate(forms["fp32"]) if "fp32" in forms else 0.0
        return {name: form for name, form in forms.items() if full.rate(form) >= least}

    def measure_reference(self, full: Search, form: EngineConfig | None) -> None:
        """Measure what losses are relative to.

        Args:
            full: The search at the size of the card.
            form: The fastest form in fp32; None for the unmodified network.

        Raises:
            DataError: No image can be read.
        """
        preprocessing = self.card.preprocessing
        session = full.plain if form is None else full.sessions[form]
        self.reference_logits, self.targets = self.outputs(session, preprocessing)
        tell_left_out(len(self.deciding) - len(self.targets), self.progress)
        self.reference_right = self.reference_logits.argmax(1) == self.targets
        self.reference = FrontierRow(
            form,
            preprocessing.size,
            preprocessing.resize,
            full.rate(form),
            "reference",
            float(self.reference_right.mean()),
            interval(self.reference_right),
            0.0,
        )

    def outputs(
        self, session: Session, preprocessing: Preprocessing
    ) -> tuple[Logits, Int[np.ndarray, " n"]]:
        """Logits and targets of the images that decide.

        Raises:
            DataError: No image can be read.
        """
        self.progress.start("Measuring accuracy", len(self.deciding))
        logits, targets = [], []
        for x, right in self.batches(preprocessing, self.deciding):
            logits.append(session(x)[0])
            targets.append(right)
            self.progress.advance(len(x))
        if not logits:
            raise DataError(f"{self.images.name} has no image that can be read.")
        return np.concatenate(logits), np.concatenate(targets)

    def candidates(self, full: Search, forms: list[EngineConfig]) -> list[FrontierRow]:
        """All forms at all sizes, fastest first, without accuracy; a failed one has a verdict."""
        preprocessing = self.card.preprocessing
        rows = [
            FrontierRow(form, each.size, each.resize, full.rate(form))
            for form in forms
            for each in crops(preprocessing, preprocessing.size)
        ]
        known = self.reference.form, self.reference.resize
        rows = [self.reference if (row.form, row.resize) == known else row for row in rows]
        for size in smaller_sizes(self.network.config, preprocessing.size):
            self.progress.line(f"Images of {size}×{size} pixels:")
            options = crops(preprocessing, size)
            search = self.search(options[0])
            for form in forms:
                speed, why = self.speed(search, form)
                rows += [FrontierRow(form, size, each.resize, speed, why) for each in options]
        return sorted(rows, key=lambda row: -row.images_per_second)

    def speed(self, search: Search, form: EngineConfig) -> tuple[float, str]:
        """Images per second of a form at a size; 0 and the reason if it cannot run."""
        try:
            if form.precision == "int8":
                search.quantize_roughly(ENGINES[form.engine], form.width)
            search.timed(form)
        except (InputError, RuntimeError) as error:
            return 0.0, str(error)
        search.sessions.clear()
        return search.rate(form), search.rows[form].verdict

    def walk(self, rows: list[FrontierRow]) -> tuple[list[FrontierRow], list[Inside]]:
        """Measure accuracy, fastest first, until a form is inside the bound.

        Returns:
            The rows, the reference last, and those inside the bound that are equally fast.
        """
        done: list[FrontierRow] = []
        inside: list[Inside] = []
        for row in rows:
            if inside and row.images_per_second < EQUAL * inside[0][0].images_per_second:
                done.append(row if row.verdict else replace(row, verdict="slower"))
                continue
            if row is self.reference:
                inside.append((row, self.reference_logits))
            elif not row.verdict:
                row, logits = self.judged(row)
                if not row.verdict:
                    inside.append((row, logits))
            done.append(row)
        return [*(row for row in done if row is not self.reference), self.reference], inside

    def judged(self, row: FrontierRow) -> tuple[FrontierRow, Logits]:
        """A row with its accuracy, and the logits; the verdict is empty inside the bound.

        Raises:
            DataError: Images have changed since the reference was measured.
        """
        assert row.form is not None
        preprocessing = replace(self.card.preprocessing, size=row.size, resize=row.resize)
        logits, targets = self.outputs(self.session(row.form, row.size), preprocessing)
        if not np.array_equal(targets, self.targets):
            raise DataError(f"{self.images.name} has changed while it was read. Start again.")
        right = logits.argmax(1) == targets
        loss = float(self.reference_right.mean() - right.mean())
        verdict = ""
        if not np.isfinite(logits).all():
            verdict = "refused: logits are not finite"
        elif 100 * loss > self.max_loss + 1e-9:
            verdict = f"loses more than {self.max_loss:g} points"
        row = replace(
            row,
            verdict=verdict,
            accuracy=float(right.mean()),
            interval=interval(right),
            loss=loss,
            loss_interval=loss_interval(self.reference_right, right),
        )
        return row, logits

    def session(self, form: EngineConfig, size: int) -> Session:
        """A session of a form at a size; int8 is calibrated with all images first."""
        search = self.searches[size]
        if form.precision == "int8" and size not in self.calibrated:
            images = search.examples.images
            self.progress.line(f"Calibrating int8 with {len(images)} images of {size} pixels …")
            ENGINES[form.engine].quantize(search.builder, form.width, images)
            self.calibrated.add(size)
        return search.builder.session(form)

    def confidence(self, row: FrontierRow, logits: Logits) -> tuple[float, float | None]:
        """Temperature and threshold for a form.

        They are fitted again on the images that decided, unless the form computes what the card's
        were fitted to. A card without a threshold gets none.
        """
        assert row.form is not None
        usual = self.card.preprocessing
        same = (row.size, row.resize) == (usual.size, usual.resize)
        if same and row.form.precision != "int8":
            return self.card.temperature, self.card.threshold
        temperature = fit_temperature(logits, self.targets)
        if self.card.threshold is None:
            return temperature, None
        classes, probabilities = top_classes(logits, temperature, 1)
        right = classes[:, 0] == self.targets
        return temperature, recommend_threshold(probabilities[:, 0], right)
