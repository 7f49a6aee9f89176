"""How to train, as data. A recipe is a function of the number of images that returns a `Recipe`."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from resnext.checks import between, boolean, one_of
from resnext.errors import ConfigError
from resnext.training.augmentation import Augmentation

Optimizer = Literal["sgd", "adamw", "lamb"]
Schedule = Literal["cosine", "step"]
Loss = Literal["cross_entropy", "binary"]
Balance = Literal["none", "sampling", "weights"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, besides data, network and seed.

    Weight decay spares norms and biases.

    Args:
        epochs: Passes over the training images.
        batch_size: Images of a step, over all processes and accumulated parts together.
        learning_rate: Highest rate, for `batch_size` images.
        optimizer: "sgd" (with Nesterov's momentum), "adamw" or "lamb" (arXiv:1904.00962).
        momentum: Of sgd.
        weight_decay: On the weights of convolutions and linear layers.
        schedule: "cosine" down to zero (arXiv:1608.03983), or "step".
        milestones: For "step": parts of the run after which the rate is divided by ten.
        warmup: Part of all steps in which the rate rises linearly (arXiv:1706.02677).
        accumulate: Parts that a batch is computed in, to save memory. Batch norm sees the parts.
        clip: Largest norm of the gradient; 0 does not clip.
        ema: Decay of the moving average of the weights, measured beside them; 0 keeps none.
        loss: "cross_entropy", or "binary" for each class by itself (arXiv:2110.00476).
        label_smoothing: Probability shared among all classes (arXiv:1512.00567).
        min_area: Smallest part of an image that a random crop keeps.
        padding: If above 0, images are shifted by up to so many pixels in place of being cropped.
        flip: Whether every other image is mirrored. Wrong for digits and letters.
        repeats: How often an image is drawn, differently augmented, within one epoch; of each
            epoch's images only one in so many is then drawn (arXiv:1902.05509).
        policy: "none", "rand" (arXiv:1909.13719) or "trivial" (arXiv:2103.10158).
        operations: For "rand": how many on each image.
        magnitude: For "rand": how strong, 0 to 30.
        erasing: Probability that a rectangle is erased (arXiv:1708.04896).
        mixup: Alpha of mixup (arXiv:1710.09412); 0 for none.
        cutmix: Alpha of CutMix (arXiv:1905.04899); 0 for none.
        balance: For skewed data: "sampling" draws each class equally often, "weights" weighs
            the loss of a class by how rare it is.
        drop_path: Probability of leaving out a block of a named variant (arXiv:1603.09382).
        zero_init_residual: Whether blocks start as their shortcuts, which keeps the first steps of
            deep networks stable (arXiv:1706.02677).
        layer_decay: Factor on the rate from each stage to the one before it; 1 for none.
        head_epochs: Epochs at the start in which only the classifier learns.
        frozen_norms: Whether batch norms keep the statistics and weights they came with.
        train_size: Side of the training images, pixels; by default that of the run.

    Raises:
        ConfigError: A value is out of range.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = ()
    warmup: float = 0.1
    accumulate: int = 1
    clip: float = 0.0
    ema: float = 0.0
    loss: Loss = "cross_entropy"
    label_smoothing: float = 0.1
    min_area: float = 0.25
    padding: int = 0
    flip: bool = True
    repeats: int = 1
    policy: Literal["none", "rand", "trivial"] = "none"
    operations: int = 2
    magnitude: int = 9
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    balance: Balance = "none"
    drop_path: float = 0.0
    zero_init_residual: bool = True
    layer_decay: float = 1.0
    head_epochs: int = 0
    frozen_norms: bool = False
    train_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        kinds = get_type_hints(type(self))
        if isinstance(self.milestones, list):  # as JSON has it
            object.__setattr__(self, "milestones", tuple(self.milestones))
        for field in fields(self):
            value = getattr(self, field.name)
            kind = kinds[field.name]
            if field.name == "milestones":
                numbers = isinstance(value, tuple) and all(
                    type(x) is float and 0 < x < 1 for x in value
                )
                if not numbers or list(value) != sorted(set(value)):
                    raise ConfigError(
                        f"milestones must be rising parts of the run, from 0 to 1, not {value!r}."
                    )
            elif choices := _choices(kind):
                one_of(field.name, value, choices)
            elif kind is bool:
                boolean(field.name, value)
            elif not (field.name == "train_size" and value is None):
                low, high = _RANGES.get(field.name, (0, 1))
                between(field.name, value, low, high, whole=kind is not float)
        if self.schedule == "step" and not self.milestones:
            raise ConfigError("schedule 'step' needs milestones, such as (0.5, 0.75).")
        if self.batch_size // self.accumulate < 2:
            raise ConfigError(
                f"A batch of {self.batch_size} in {self.accumulate} parts leaves less than two "
                f"images for a part, and batch norm needs two. Lower accumulate."
            )
        if self.head_epochs >= self.epochs:
            raise ConfigError(
                f"head_epochs must be less than epochs, which is {self.epochs}, not "
                f"{self.head_epochs}. Lower it (--set head_epochs=0), or take more epochs."
            )

    def augmentation(self) -> Augmentation:
        """What happens to whole batches."""
        shared = {f.name for f in fields(Augmentation)} & {f.name for f in fields(self)}
        return Augmentation(**{name: getattr(self, name) for name in sorted(shared)})

    def changed(self, **changes: Any) -> Recipe:
        """The recipe with other values; the rate follows the batch size unless it is given.

        Twice the images of a step go with twice the rate (arXiv:1706.02677).

        Raises:
            ConfigError: There is no such field, or a value makes no sense.
        """
        for name in changes:
            _check_field(name)
        images = changes.get("batch_size", self.batch_size)
        if "learning_rate" not in changes and type(images) is int and images > 0:
            changes["learning_rate"] = self.learning_rate * images / self.batch_size
        return replace(self, **changes)


def parse_changes(settings: Sequence[str]) -> dict[str, Any]:
    """Fields of a recipe from texts such as "mixup=0.2".

    Raises:
        ConfigError: One is no such text.
    """
    changes: dict[str, Any] = {}
    kinds = get_type_hints(Recipe)
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise ConfigError(f"A setting must be name=value, such as mixup=0.2, not {setting!r}.")
        _check_field(name)
        if name in changes:
            raise ConfigError(f"{name} is set twice. Set it once.")
        value: Any = text.strip("'\"")
        if not _choices(kinds.get(name)):
            plain = text.capitalize() if text.lower() in ("true", "false", "none") else text
            with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                value = ast.literal_eval(plain)
        changes[name] = value
    return changes


def _check_field(name: str) -> None:
    known = [field.name for field in fields(Recipe)]
    if name not in known:
        raise ConfigError(f"A recipe has no field {name!r}; it has {', '.join(known)}.")


def _choices(kind: Any) -> list[str]:
    """The texts that a field may hold; none if it holds something else."""
    return [choice for choice in get_args(kind) if isinstance(choice, str)]


_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 1_000_000),
    "batch_size": (2, 1_000_000),  # batch norm needs two images
    "learning_rate": (1e-12, 1e3),
    "accumulate": (1, 1_000_000),
    "clip": (0, 1e9),
    "min_area": (0.01, 1.0),
    "padding": (0, 1000),
    "repeats": (1, 100),
    "operations": (1, 14),
    "magnitude": (0, 30),
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "layer_decay": (0.01, 1.0),
    "head_epochs": (0, 1_000_000),
    "train_size": (1, 10_000),
}


def small(images: int) -> Recipe:
    """For a few hundred to twenty thousand photographs, from scratch.

    Source: the ResNeXt paper's optimizer (section 4: rate 0.1 for 256 images, so 0.0125 for 32)
    with a cosine schedule (arXiv:1608.03983), and wider random crops than ImageNet's, which cut
    away too much of few images. Not measured on a public data set.
    """
    return Recipe(epochs=60, batch_size=32, learning_rate=0.0125)


def large(images: int) -> Recipe:
    """For more than twenty thousand images, from scratch.

    Source: that of `small`, with the paper's batch of 256 and rate of 0.1, an average of the
    weights, and TrivialAugment as torchvision's references have it. Not measured on ImageNet.
    """
    return Recipe(
        epochs=90,
        batch_size=256,
        learning_rate=0.1,
        weight_decay=1e-4,
        min_area=0.08,
        warmup=0.05,
        ema=0.9998,
        policy="trivial",
    )


def digits(images: int) -> Recipe:
    """For scikit-learn's 8×8 digits: mild crops, no mirroring.

    `benchmarks/digits.py` measures it.
    """
    return Recipe(
        epochs=20,
        batch_size=64,
        learning_rate=0.2,
        min_area=0.7,
        flip=False,
        zero_init_residual=False,
    )


def paper(images: int) -> Recipe:
    """The ResNeXt paper's ImageNet training: 77.8 % for resnext50_32x4d (arXiv:1611.05431).

    Source: section 4 of the paper, which follows fb.resnet.torch: 90 epochs of 256 images, rate
    0.1 divided by ten after 30 and 60 epochs. Different from it: colour and lighting are not
    varied, and weight decay spares norms and biases. Not measured here, where there is no
    ImageNet.
    """
    return Recipe(
        epochs=90,
        batch_size=256,
        learning_rate=0.1,
        weight_decay=1e-4,
        schedule="step",
        milestones=(1 / 3, 2 / 3),
        warmup=0.0,
        label_smoothing=0.0,
        min_area=0.08,
        zero_init_residual=False,
    )


def torchvision_v2(images: int) -> Recipe:
    """torchvision's newer recipe: 81.2 % for resnext50_32x4d at 232 → 224.

    Source: torchvision's classification references and the blog post "How to train
    state-of-the-art models using TorchVision's latest primitives": 600 epochs of 1,024 images,
    trained at 176 pixels. Different from it: the average is updated at every step and not every
    32nd, with the decay that makes it as long. Not measured here, where there is no ImageNet.
    """
    return Recipe(
        epochs=600,
        batch_size=1024,
        learning_rate=0.5,
        weight_decay=2e-5,
        warmup=5 / 600,
        ema=0.999966,
        label_smoothing=0.1,
        min_area=0.08,
        repeats=4,
        policy="trivial",
        erasing=0.1,
        mixup=0.2,
        cutmix=1.0,
        zero_init_residual=False,
        train_size=176,
    )


def rsb_a1(images: int) -> Recipe:
    """The longest procedure of "ResNet strikes back" (arXiv:2110.00476, table 2): 600 epochs.

    Source: the paper; 80.4 % for ResNet-50. LAMB on binary cross-entropy. Different from it:
    RandAugment's strength does not vary from image to image, and LAMB is pytorch_optimizer's,
    which decays weights apart from the trust ratio. Not measured here, where there is no ImageNet.
    """
    return Recipe(
        epochs=600,
        batch_size=2048,
        learning_rate=5e-3,
        optimizer="lamb",
        weight_decay=0.01,
        warmup=5 / 600,
        clip=1.0,
        loss="binary",
        label_smoothing=0.1,
        min_area=0.08,
        repeats=3,
        policy="rand",
        operations=2,
        magnitude=21,  # timm's 7 of 10
        mixup=0.2,
        cutmix=1.0,
        drop_path=0.05,
    )


def rsb_a2(images: int) -> Recipe:
    """The middle procedure of "ResNet strikes back" (arXiv:2110.00476, table 2): 300 epochs.

    Source: the paper; 79.8 % for ResNet-50. Otherwise as `rsb_a1`.
    """
    return replace(
        rsb_a1(images),
        epochs=300,
        warmup=5 / 300,
        weight_decay=0.02,
        label_smoothing=0.0,
        mixup=0.1,
    )


def rsb_a3(images: int) -> Recipe:
    """The short procedure of "ResNet strikes back" (arXiv:2110.00476, table 2): 100 epochs.

    Source: the paper; 78.1 % for ResNet-50, trained at 160 pixels, tested at 224. Otherwise as
    `rsb_a2`.
    """
    return replace(
        rsb_a2(images),
        epochs=100,
        learning_rate=8e-3,
        warmup=5 / 100,
        repeats=1,
        magnitude=18,  # timm's 6 of 10
        drop_path=0.0,
        train_size=160,
    )


def cifar(images: int) -> Recipe:
    """The ResNeXt paper's training of ResNeXt-29 on CIFAR (arXiv:1611.05431, section 5.3).

    Source: the paper: 300 epochs of 128 images, rate 0.1 divided by ten after 150 and 225,
    images shifted by up to four pixels and mirrored; 3.65 % error with 8×64d. Different from it:
    weight decay spares norms and biases. A short form, 12 epochs of a network of 48 million MACs
    (`benchmarks/training.py`), gets 84.8 % of CIFAR-10's test images as JPEGs right, 85.4 % with
    two views.
    """
    return Recipe(
        epochs=300,
        batch_size=128,
        learning_rate=0.1,
        schedule="step",
        milestones=(0.5, 0.75),
        warmup=0.0,
        label_smoothing=0.0,
        padding=4,
        zero_init_residual=False,
    )


def finetune(images: int) -> Recipe:
    """From weights that were trained on other images: the default with `--weights`.

    The classifier learns alone for one epoch, then everything, earlier stages more slowly
    (arXiv:1801.06146, section 3.2, discriminative fine-tuning). As many epochs as give about
    4,000 steps, at least 5 and at most 60, so that few images are seen often and many seldom.
    Source: the rate is ours, two fifths of `small`'s. Not measured here, where no public weights
    can be had.
    """
    epochs = min(max(round(4000 * 32 / max(images, 1)), 5), 60)
    return Recipe(
        epochs=epochs,
        batch_size=32,
        learning_rate=0.005,
        weight_decay=1e-4,
        layer_decay=0.7,
        head_epochs=1,
        zero_init_residual=False,
    )


RECIPES: dict[str, Callable[[int], Recipe]] = {
    "small": small,
    "large": large,
    "finetune": finetune,
    "paper": paper,
    "torchvision_v2": torchvision_v2,
    "rsb_a1": rsb_a1,
    "rsb_a2": rsb_a2,
    "rsb_a3": rsb_a3,
    "cifar": cifar,
    "digits": digits,
}


def choose(recipe: str | Recipe | None, *, usual: str | None, images: int, weights: bool) -> Recipe:
    """The recipe of a name, of `file.py:name`, or the one that fits the data.

    Args:
        recipe: A recipe, a name, or a Python file and a function in it. The file is executed.
        usual: What suits the kind of data; None as for photographs.
        images: How many there are to learn from.
        weights: Whether training starts from weights.

    Raises:
        ConfigError: There is no such recipe.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is None:
        by_count = "small" if images < 20_000 else "large"
        recipe = usual or ("finetune" if weights else by_count)
    if recipe in RECIPES:
        return RECIPES[recipe](images)
    file, colon, name = recipe.rpartition(":")
    if not colon:
        raise ConfigError(
            f"No recipe is called {recipe!r}. There are {', '.join(RECIPES)}; one's own is "
            f"file.py:name."
        )
    if not Path(file).is_file():
        raise ConfigError(f"{file} does not exist. Give a recipe as file.py:name.")
    try:
        function = runpy.run_path(file).get(name)
        if not callable(function):
            raise ConfigError(f"{file} has no function {name!r}.")
        found = function(images)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever somebody's own file ends with
        raise ConfigError(f"{recipe} failed: {type(error).__name__}: {error}.") from error
    if not isinstance(found, Recipe):
        raise ConfigError(f"{recipe} must return a resnext.training.Recipe, not {found!r}.")
    return found
