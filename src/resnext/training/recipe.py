"""The types `Recipe` and `Probe`: how to train, as data; and changes to their fields."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from resnext.checks import between, boolean, literals, one_of, plain
from resnext.errors import ConfigError
from resnext.training.augmentation import Augmentation

Optimizer = Literal["sgd", "adamw", "lamb"]
Schedule = Literal["cosine", "step"]
Loss = Literal["cross_entropy", "binary"]
Balance = Literal["none", "sampling", "weights"]


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a training run, except data, network and seed.

    Norms and biases have no weight decay.

    Args:
        epochs: Passes over the training images.
        batch_size: Images per step, summed over all processes and accumulated parts.
        learning_rate: Highest learning rate, for `batch_size` images.
        optimizer: "sgd" (with Nesterov momentum), "adamw" or "lamb" (arXiv:1904.00962).
        momentum: Momentum of sgd.
        weight_decay: On the weights of convolutions and linear layers.
        schedule: "cosine" down to zero (arXiv:1608.03983), or "step".
        milestones: For "step": fractions of the run after which the learning rate is divided by
            ten.
        warmup: Fraction of the steps in which the learning rate rises linearly (arXiv:1706.02677).
        accumulate: Parts that a batch is split into to save memory; batch norm sees each part
            separately.
        clip: Largest gradient norm; 0 turns clipping off.
        ema: Decay of the moving average of the weights, validated along with them; 0 turns it off.
        loss: "cross_entropy", or "binary" for each class separately (arXiv:2110.00476).
        label_smoothing: Probability spread evenly over all classes (arXiv:1512.00567).
        min_area: Smallest fraction of an image that a random crop keeps.
        padding: If above 0, images are shifted by up to this many pixels instead of cropped.
        flip: Whether to mirror images with probability 1/2. Turn it off for digits and text.
        repeats: Times an image is drawn within one epoch, augmented differently each time; each
            epoch then draws only one in `repeats` images (arXiv:1902.05509).
        policy: "none", "rand" (arXiv:1909.13719) or "trivial" (arXiv:2103.10158).
        operations: For "rand": operations per image.
        magnitude: For "rand": strength, 0 to 30.
        erasing: Probability that a rectangle is erased (arXiv:1708.04896).
        mixup: Alpha of mixup (arXiv:1710.09412); 0 turns it off.
        cutmix: Alpha of CutMix (arXiv:1905.04899); 0 turns it off.
        balance: For skewed data: "sampling" draws each class equally often, "weights" gives rare
            classes more weight in the loss.
        drop_path: Probability of skipping a block in training (arXiv:1603.09382), for named
            variants, `weights` and networks, but not for a config.
        zero_init_residual: Whether the blocks of a named variant start as their shortcuts, which
            keeps the first steps of deep networks stable (arXiv:1706.02677).
        layer_decay: Factor on the learning rate from each stage to the one before it; 1 turns it
            off.
        head_epochs: First epochs, in which only the classifier is trained.
        probe: Whether the new classifier of `weights` starts as the recipe `probe` fits it
            (arXiv:2202.10054), and the network before the first step counts as epoch 0.
        frozen_norms: Whether batch norms keep their initial statistics and weights.
        frozen_stages: Keep the stem and the first stages as they are, norms included, as in
            `Backbone`: -1 for none, 0 for the stem, i for the stem and i stages.
        cached_views: With frozen stages: views of each image, whose maps are computed once and kept
            in memory. 0 draws a new view, and computes its map, in each epoch.
        train_size: Image size in training, pixels; by default the run's image size.
        first_size: Image size of the first quarter of the run, as a fraction of that in training,
            which the last quarter has (arXiv:2104.00298).
        distill_temperature: With a teacher: divisor of the logits of teacher and student.

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
    probe: bool = False
    frozen_norms: bool = False
    frozen_stages: int = -1
    cached_views: int = 0
    train_size: int | None = None
    first_size: float = 1.0
    distill_temperature: float = 1.0

    def __post_init__(self) -> None:
        """Validate every field."""
        kinds = get_type_hints(type(self))
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        if isinstance(self.milestones, list):  # from JSON
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
                        f"milestones must be increasing fractions of the run, between 0 and 1, "
                        f"not {value!r}."
                    )
            elif choices := literals(kind):
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
                f"images per part, and batch norm needs two. Lower accumulate."
            )
        self._check_cached_views()
        if self.head_epochs >= self.epochs:
            raise ConfigError(
                f"head_epochs must be less than epochs, which is {self.epochs}, not "
                f"{self.head_epochs}. Lower it (--set head_epochs=0), or raise epochs."
            )

    def _check_cached_views(self) -> None:
        if not self.cached_views:
            return
        if self.frozen_stages < 0:
            raise ConfigError(
                "cached_views needs frozen_stages, whose maps are kept. Set both, or neither."
            )
        for name in ("repeats", "policy", "erasing", "mixup", "cutmix", "first_size"):
            usual = next(field.default for field in fields(self) if field.name == name)
            if getattr(self, name) != usual:
                raise ConfigError(
                    f"With cached_views, {name} must be {usual!r}: anything else needs new views. "
                    f"Set {name}={usual}, or cached_views=0."
                )

    def side(self, size: int, smallest: int, part: float) -> int:
        """Size of the training images, pixels: a multiple of four while it grows.

        Args:
            size: Image size of the run.
            smallest: Smallest size for the network.
            part: Fraction of the run that is done.
        """
        full, stage = self.train_size or size, min(int(_STAGES * part), _STAGES - 1)
        if self.first_size == 1 or stage == _STAGES - 1:
            return full
        share = self.first_size + (1 - self.first_size) * stage / (_STAGES - 1)
        return min(max(4 * round(share * full / 4), smallest), full)

    def augmentation(self) -> Augmentation:
        """The fields that augment whole batches."""
        shared = {f.name for f in fields(Augmentation)} & {f.name for f in fields(self)}
        return Augmentation(**{name: getattr(self, name) for name in sorted(shared)})

    def required_packages(self) -> dict[str, str]:
        """Optional packages that the recipe needs, each with the feature that needs it."""
        packages: dict[str, str] = {}
        if self.optimizer == "lamb":
            packages["pytorch_optimizer"] = "The optimizer lamb"
        if self.policy != "none":
            packages["kornia"] = f"The policy {self.policy}"
        return packages

    def changed(self, **changes: Any) -> Recipe:
        """The recipe with other values.

        Without a `learning_rate`, the rate is scaled with the batch size (arXiv:1706.02677).

        Raises:
            ConfigError: A field does not exist, or a value is invalid.
        """
        for name in changes:
            _check_field(name)
        images = changes.get("batch_size", self.batch_size)
        if "learning_rate" not in changes and type(images) is int and images > 0:
            changes["learning_rate"] = self.learning_rate * images / self.batch_size
        return replace(self, **changes)


@dataclass(frozen=True)
class Probe:
    """The recipe `probe`: only the classifier is trained, by logistic regression on embeddings.

    It has no epochs, steps or augmentation, so it shares nothing but `balance` with `Recipe`.

    Args:
        balance: For skewed data: with "sampling" or "weights" all classes weigh the same.

    Raises:
        ConfigError: A value is invalid.
    """

    balance: Balance = "none"

    def __post_init__(self) -> None:
        """Validate `balance`."""
        one_of("balance", self.balance, get_args(Balance))

    def changed(self, **changes: Any) -> Probe:
        """The recipe with another `balance`.

        Raises:
            ConfigError: Another field is given, or the value is invalid.
        """
        for name in changes:
            _check_field(name)
            if name != "balance":
                raise ConfigError(
                    f"The recipe probe has no {name}: it fits the classifier once, by logistic "
                    f"regression. Leave out {name}, or use the recipe finetune."
                )
        return replace(self, **changes)


def parse_changes(settings: Sequence[str]) -> dict[str, Any]:
    """Parse settings such as "mixup=0.2" into fields of a recipe.

    Raises:
        ConfigError: A setting has another form, an unknown field, or a field that is set twice.
    """
    changes: dict[str, Any] = {}
    types = get_type_hints(Recipe)
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise ConfigError(f"A setting must be name=value, such as mixup=0.2, not {setting!r}.")
        _check_field(name)
        if name in changes:
            raise ConfigError(f"{name} is set twice. Set it once.")
        value: Any = text.strip("'\"")
        if not literals(types.get(name)):
            word = text.capitalize() if text.lower() in ("true", "false", "none") else text
            with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                value = ast.literal_eval(word)
        changes[name] = value
    return changes


def _check_field(name: str) -> None:
    known = [field.name for field in fields(Recipe)]
    if name not in known:
        raise ConfigError(f"A recipe has no field {name!r}; it has {', '.join(known)}.")


_STAGES = 4  # image sizes of a run that starts with smaller ones

_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 1_000_000),
    "batch_size": (2, 1_000_000),  # batch norm needs two images
    "learning_rate": (1e-12, 1e3),
    "accumulate": (1, 1_000_000),
    "clip": (0, 1e9),
    "label_smoothing": (0, 0.99),  # with 1, there is nothing to learn
    "min_area": (0.01, 1.0),
    "padding": (0, 1000),
    "repeats": (1, 100),
    "operations": (1, 14),
    "magnitude": (0, 30),
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "drop_path": (0, 0.99),
    "layer_decay": (0.01, 1.0),
    "head_epochs": (0, 1_000_000),
    "frozen_stages": (-1, 100),
    "cached_views": (0, 1000),
    "train_size": (1, 10_000),
    "first_size": (0.25, 1.0),
    "distill_temperature": (0.1, 100),
}
