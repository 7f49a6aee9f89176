"""The named recipes: functions of the number of training images that return a `Recipe`."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from resnext.checks import brief
from resnext.errors import ConfigError
from resnext.training.recipe import Recipe


def small(images: int) -> Recipe:
    """For a few hundred to twenty thousand photographs, from scratch.

    Source: the ResNeXt paper's optimizer (section 4: rate 0.1 for 256 images, so 0.0125 for 32)
    with a cosine schedule (arXiv:1608.03983), and wider random crops than ImageNet's, which would
    remove too much where images are few. Not measured on a public data set.
    """
    return Recipe(epochs=60, batch_size=32, learning_rate=0.0125)


def quick(images: int) -> Recipe:
    """For the small networks, and for runs with a time budget, from scratch.

    AdamW with a strong decay (arXiv:1711.05101), milder crops and no zero initialization, which
    help most where epochs are few: after twelve of resnext_tiny_32px on 5,000 CIFAR-10 images, 60 %
    of 2,000 others are classified correctly, and 57 % with SGD (`benchmarks/recipes.py`).
    """
    return Recipe(
        epochs=60,
        batch_size=32,
        learning_rate=0.003,
        optimizer="adamw",
        weight_decay=0.2,
        min_area=0.5,
        zero_init_residual=False,
    )


def large(images: int) -> Recipe:
    """For more than twenty thousand images, from scratch.

    Source: the ResNeXt paper's batch of 256 and rate of 0.1 (section 4), a cosine schedule, a
    weight average, and TrivialAugment as in torchvision's references. Not measured on ImageNet.
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
    0.1 divided by ten after 30 and 60 epochs. Differences: no colour or lighting
    augmentation, and no weight decay on norms and biases. Not measured here: this project
    has no ImageNet.
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
    trained at 176 pixels. Differences: the average is updated at every step instead of every
    32nd, with a decay of equal length. Not measured here: this project
    has no ImageNet.
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

    Source: the paper; 80.4 % for ResNet-50. LAMB on binary cross-entropy. Differences:
    RandAugment's strength is the same for all images, and LAMB is pytorch_optimizer's, which
    applies weight decay separately from the trust ratio. Not measured here: this project
    has no ImageNet.
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

    Source: the paper; 79.8 % for ResNet-50. All other fields are those of `rsb_a1`.
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

    Source: the paper; 78.1 % for ResNet-50, trained at 160 pixels, tested at 224. All other
    fields are those of `rsb_a2`.
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
    images shifted by up to four pixels and mirrored; 3.65 % error with 8×64d. Differences:
    no weight decay on norms and biases. A short version, 12 epochs of a network of 48 million MACs
    (`benchmarks/training.py`), classifies 84.8 % of CIFAR-10's test images, stored as JPEGs,
    correctly, and 85.4 % with two views.
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
    """For fine-tuning weights trained on other images: the default with `--weights`.

    The classifier starts as the recipe `probe` fits it (arXiv:2202.10054); then all layers train,
    earlier stages with lower rates (arXiv:1801.06146, section 3.2, discriminative fine-tuning).
    About 4,000 steps, in 5 to 60 epochs. Source: the rate is ours, two fifths of `small`'s.
    Measured only from weights that `benchmarks/probe.py` trains itself for 8 epochs, where it
    helps no more than other settings: no public weights are available here.
    """
    epochs = min(max(round(4000 * 32 / max(images, 1)), 5), 60)
    return Recipe(
        epochs=epochs,
        batch_size=32,
        learning_rate=0.005,
        weight_decay=1e-4,
        layer_decay=0.7,
        probe=True,
        zero_init_residual=False,
    )


def distill(images: int) -> Recipe:
    """For a student of a trained teacher: the default with a teacher.

    Source: "Knowledge distillation: A good teacher is patient and consistent" (arXiv:2106.05237)
    and its authors' configs: mixup with a uniform share in every batch, clipped gradients,
    temperature 1, a cosine schedule, and hundreds to thousands of epochs. Differences: crops, batch
    size and SGD are those of `small`, or of `large` from 20,000 images on; the authors crop as
    little as 5 % of an image and use Adam. Not measured here as it is; `benchmarks/distill.py` has
    the optimizer, rate, decay and crops of `quick`.
    """
    return replace(
        small(images) if images < 20_000 else large(images),
        epochs=300,
        clip=1.0,
        label_smoothing=0.0,
        policy="none",
        mixup=1.0,
    )


RECIPES: dict[str, Callable[[int], Recipe]] = {
    "small": small,
    "quick": quick,
    "large": large,
    "finetune": finetune,
    "paper": paper,
    "torchvision_v2": torchvision_v2,
    "rsb_a1": rsb_a1,
    "rsb_a2": rsb_a2,
    "rsb_a3": rsb_a3,
    "cifar": cifar,
    "digits": digits,
    "distill": distill,
}


def choose(
    recipe: str | Recipe | None, *, default: str | None, images: int, weights: bool
) -> Recipe:
    """A recipe by its name, from `file.py:name`, or the default for the data.

    Args:
        recipe: A recipe, a name, or a Python file and a function in it. The file is executed.
        default: Recipe of this data source; None chooses by weights and number of images.
        images: Number of training images.
        weights: Whether weights are fine-tuned.

    Raises:
        ConfigError: The recipe does not exist, or its file fails.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is None:
        by_count = "small" if images < 20_000 else "large"
        recipe = default or ("finetune" if weights else by_count)
    if not isinstance(recipe, str):
        raise ConfigError(f"A recipe must be a Recipe or a name, not {brief(recipe)}.")
    if recipe in RECIPES:
        return RECIPES[recipe](images)
    file, colon, name = recipe.rpartition(":")
    if not file or not colon:
        raise ConfigError(
            f"No recipe is called {recipe!r}. Available are {', '.join([*RECIPES, 'probe'])}; give "
            f"your own as file.py:name."
        )
    if not Path(file).is_file():
        raise ConfigError(f"{file} does not exist. Give a recipe as file.py:name.")
    try:
        function = runpy.run_path(file).get(name)
        if not callable(function):
            raise ConfigError(f"{file} has no function {name!r}.")
        result = function(images)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a user's file can raise anything
        raise ConfigError(f"{recipe} failed: {type(error).__name__}: {error}.") from error
    if not isinstance(result, Recipe):
        raise ConfigError(f"{recipe} must return a resnext.training.Recipe, not {brief(result)}.")
    return result
