"""Recipes: where their numbers come from, what they refuse, and one's own."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnext.errors import ConfigError, ResNeXtError
from resnext.training import RECIPES, Recipe
from resnext.training.augmentation import Augmentation
from resnext.training.recipe import parse_changes
from resnext.training.recipes import choose

PLAIN = Recipe(epochs=3, batch_size=32, learning_rate=0.1)
SIZES = (10, 1_000, 100_000, 1_000_000)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_name_their_source(name: str) -> None:
    """A recipe without source or measurement is folklore."""
    text = RECIPES[name].__doc__ or ""
    assert "Source" in text or "benchmarks/" in text


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("images", SIZES)
def test_recipes_can_be_built_for_any_number_of_images(name: str, images: int) -> None:
    """A formula that divides by the images, or rounds to no epoch, fails on somebody's data."""
    recipe = RECIPES[name](images)
    assert recipe == RECIPES[name](images)
    assert recipe == Recipe(**asdict(recipe))  # as a checkpoint writes it down
    assert recipe.changed() == recipe
    assert recipe.augmentation().mixup == recipe.mixup


PUBLISHED: dict[str, dict[str, Any]] = {
    # Xie et al., section 4: "start from a learning rate of 0.1, divide by 10 for three times";
    # with fb.resnet.torch's schedule of 90 epochs
    "paper": {
        "epochs": 90,
        "batch_size": 256,
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "step",
        "milestones": (30 / 90, 60 / 90),
        "warmup": 0.0,
        "label_smoothing": 0.0,
        "min_area": 0.08,
        "flip": True,
        "mixup": 0.0,
        "ema": 0.0,
    },
    # section 5.3: 300 epochs, batch 128, rate 0.1 divided after 150 and 225, decay 0.0005
    "cifar": {
        "epochs": 300,
        "batch_size": 128,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "step",
        "milestones": (150 / 300, 225 / 300),
        "warmup": 0.0,
        "label_smoothing": 0.0,
        "padding": 4,
        "flip": True,
    },
    # pytorch/vision, references/classification, "ResNeXt-50 32x4d" of the new weights: 8 GPUs,
    # --batch-size=128 --lr 0.5 --lr-scheduler cosineannealinglr --lr-warmup-epochs 5
    # --auto-augment ta_wide --epochs 600 --random-erase 0.1 --label-smoothing 0.1 --mixup-alpha 0.2
    # --cutmix-alpha 1.0 --weight-decay 0.00002 --norm-weight-decay 0.0 --train-crop-size 176
    # --model-ema --ra-sampler --ra-reps 4
    "torchvision_v2": {
        "epochs": 600,
        "batch_size": 8 * 128,
        "learning_rate": 0.5,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 2e-5,
        "schedule": "cosine",
        "warmup": 5 / 600,
        "policy": "trivial",
        "erasing": 0.1,
        "label_smoothing": 0.1,
        "mixup": 0.2,
        "cutmix": 1.0,
        "train_size": 176,
        "repeats": 4,
    },
    # arXiv:2110.00476, table 2
    "rsb_a1": {
        "epochs": 600,
        "batch_size": 2048,
        "optimizer": "lamb",
        "learning_rate": 5e-3,
        "schedule": "cosine",
        "weight_decay": 0.01,
        "warmup": 5 / 600,
        "label_smoothing": 0.1,
        "drop_path": 0.05,
        "repeats": 3,
        "flip": True,
        "policy": "rand",
        "magnitude": 7 / 10 * 30,
        "mixup": 0.2,
        "cutmix": 1.0,
        "loss": "binary",
        "train_size": None,
        "erasing": 0.0,
        "ema": 0.0,
    },
    "rsb_a2": {
        "epochs": 300,
        "batch_size": 2048,
        "optimizer": "lamb",
        "learning_rate": 5e-3,
        "weight_decay": 0.02,
        "warmup": 5 / 300,
        "label_smoothing": 0.0,
        "drop_path": 0.05,
        "repeats": 3,
        "policy": "rand",
        "magnitude": 7 / 10 * 30,
        "mixup": 0.1,
        "cutmix": 1.0,
        "loss": "binary",
        "train_size": None,
    },
    "rsb_a3": {
        "epochs": 100,
        "batch_size": 2048,
        "optimizer": "lamb",
        "learning_rate": 8e-3,
        "weight_decay": 0.02,
        "warmup": 5 / 100,
        "label_smoothing": 0.0,
        "drop_path": 0.0,
        "repeats": 1,
        "policy": "rand",
        "magnitude": 6 / 10 * 30,
        "mixup": 0.1,
        "cutmix": 1.0,
        "loss": "binary",
        "train_size": 160,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_the_published_ones(name: str) -> None:
    """A typing error in a recipe costs somebody a week of eight GPUs."""
    recipe = asdict(RECIPES[name](1_281_167))
    for key, value in PUBLISHED[name].items():
        assert recipe[key] == pytest.approx(value), key


@pytest.mark.parametrize(
    ("images", "epochs"), [(1, 60), (2_000, 60), (5_120, 25), (12_800, 10), (25_600, 5), (10**6, 5)]
)
def test_fine_tuning_takes_about_4000_steps(images: int, epochs: int) -> None:
    """Few images need many epochs, many images few."""
    recipe = RECIPES["finetune"](images)
    assert recipe.epochs == epochs
    if 5 < epochs < 60:
        assert epochs * images / recipe.batch_size == pytest.approx(4000)
    assert recipe.head_epochs < recipe.epochs


@pytest.mark.parametrize(("images", "like"), [(500, "small"), (50_000, "large")])
def test_distillation_is_patient_and_mixes(images: int, like: str) -> None:
    """Beyer et al.: mixup in every batch, no smoothing, no policy that needs a package."""
    recipe, plain = RECIPES["distill"](images), RECIPES[like](images)
    assert (recipe.batch_size, recipe.learning_rate) == (plain.batch_size, plain.learning_rate)
    assert (recipe.mixup, recipe.label_smoothing, recipe.epochs) == (1.0, 0.0, 300)
    assert recipe.required_packages() == {}


def test_digits_are_never_mirrored() -> None:
    """A mirrored 2 is not a digit."""
    assert not RECIPES["digits"](1500).flip


# -- changed ----------------------------------------------------------------------------------


def test_the_rate_follows_the_batch_unless_it_is_given() -> None:
    """Half the images of a step at the same rate diverge; a rate that is given is meant."""
    assert PLAIN.changed(batch_size=64).learning_rate == pytest.approx(0.2)
    assert PLAIN.changed(batch_size=8).learning_rate == pytest.approx(0.025)
    assert PLAIN.changed(batch_size=64, learning_rate=0.3).learning_rate == 0.3
    assert PLAIN.changed(learning_rate=0.3).learning_rate == 0.3
    assert PLAIN.changed(epochs=7, mixup=0.2).learning_rate == 0.1
    assert PLAIN.changed(batch_size=64).changed(batch_size=32) == PLAIN
    assert PLAIN.batch_size == 32  # the recipe itself stays


def test_augmentation_is_that_of_the_recipe() -> None:
    """A field that is not handed on augments nothing, without a word."""
    values = {
        "policy": "rand",
        "operations": 3,
        "magnitude": 7,
        "erasing": 0.3,
        "mixup": 0.4,
        "cutmix": 0.5,
        "label_smoothing": 0.2,
    }
    assert PLAIN.changed(**values).augmentation() == Augmentation(**values)
    left = {f.name for f in fields(Augmentation)} - set(values)
    assert left == {"mix_probability", "switch_probability"}


def refused(message: str, **changes: Any) -> None:
    """Changing a recipe so fails with one line."""
    with pytest.raises(ConfigError, match=message) as caught:
        PLAIN.changed(**changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200 or "has no field" in message


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("epochs", (0, -1, 1.5, "3", True, None, 10**7)),
        ("batch_size", (1, 0, -32, 32.0, "32", None, 10**7)),
        ("learning_rate", (0, 0.0, -0.1, math.nan, math.inf, "0.1", None, True)),
        ("optimizer", ("adam", "SGD", None, 1, ["sgd"])),
        ("momentum", (-0.1, 1.1, "0.9")),
        ("weight_decay", (-1e-4, 2, math.nan, None)),
        ("schedule", ("linear", None)),
        ("milestones", ((0.5, 0.2), (0.0,), (1.0,), (-0.5,), 0.5, "0.5", (True,), {0.5})),
        ("warmup", (-0.1, 1.5, 5, None)),
        ("accumulate", (0, -1, 1.0, 17, 100)),
        ("clip", (-1, math.nan)),
        ("ema", (-0.1, 1.1)),
        ("loss", ("mse", None)),
        ("label_smoothing", (-0.1, 1.0, 1.1, math.nan)),
        ("min_area", (0, 0.0, 1.1, -1)),
        ("padding", (-1, 1.5, None)),
        ("flip", (1, 0, "no", None)),
        ("repeats", (0, 1.5, 101)),
        ("policy", ("auto", None)),
        ("operations", (0, 15, 1.0)),
        ("magnitude", (-1, 31, 9.5)),
        ("erasing", (-0.1, 1.1)),
        ("mixup", (-0.1, 101, math.nan)),
        ("cutmix", (-0.1, "1")),
        ("balance", ("class", None)),
        ("drop_path", (-0.1, 1.0, 1.1)),
        ("zero_init_residual", (0, "yes")),
        ("layer_decay", (0, 0.0, 1.1, -0.5)),
        ("head_epochs", (-1, 3, 4, 0.5)),
        ("probe", (1, "yes", None)),
        ("frozen_norms", (0, None)),
        ("train_size", (0, -1, 224.0, "224", True, 10**6)),
        ("frozen_stages", (-2, 0.5, True, None, 101)),
        ("cached_views", (-1, 0.5, True, None, 1001)),
        ("first_size", (0, 0.2, 1.1, 16, None)),
        ("distill_temperature", (0, 0.0, 101, math.nan, None)),
    ],
)
def test_what_is_out_of_range_is_refused(name: str, values: tuple[Any, ...]) -> None:
    """What is not refused here ends in a traceback, or trains for a day on nonsense."""
    for value in values:
        refused(name, **{name: value})


def test_every_field_is_checked() -> None:
    """A new field without a check would be the one that is mistyped."""
    marks: Any = test_what_is_out_of_range_is_refused
    tested = {name for name, _ in marks.pytestmark[0].args[1]}
    assert tested == {f.name for f in fields(Recipe)}


def test_what_does_not_go_together_is_refused() -> None:
    """Each value alone is fine."""
    refused("'step' needs milestones", schedule="step")
    refused("less than two images per part", accumulate=17)
    refused("head_epochs must be less than epochs, which is 3", head_epochs=3)
    refused("has no field 'nesterov'; it has epochs, batch_size", nesterov=True)
    assert PLAIN.changed(accumulate=16).accumulate == 16
    assert PLAIN.changed(milestones=[0.5, 0.75]).milestones == (0.5, 0.75)  # as JSON has it


# -- parse_changes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("mixup=0.2", 0.2),
        ("mixup = 0.2 ", 0.2),
        ("epochs=10", 10),
        ("learning_rate=1e-3", 1e-3),
        ("learning_rate=1E-3", 1e-3),
        ("flip=false", False),
        ("flip=False", False),
        ("flip=TRUE", True),
        ("policy=trivial", "trivial"),
        ("policy='trivial'", "trivial"),
        ("loss=binary", "binary"),
        ("train_size=none", None),
        ("train_size=None", None),
        ("train_size=176", 176),
        ("milestones=(0.5,0.75)", (0.5, 0.75)),
        ("milestones=[0.5, 0.75]", [0.5, 0.75]),
        ("milestones=()", ()),
        ("mixup=-1", -1),
        ("mixup=", ""),
        ("policy=a=b", "a=b"),
        ("mixup=__import__('os')", "__import__('os')"),
        ("mixup=1+", "1+"),
        ("mixup=" + "(" * 500, "(" * 500),
    ],
)
def test_settings_are_read_as_they_are_typed(text: str, value: Any) -> None:
    """Nobody types Python's capitals in a shell; and nothing that is typed is executed."""
    (name,) = (changes := parse_changes([text]))
    assert name == text.partition("=")[0].strip()
    assert changes[name] == value
    assert type(changes[name]) is type(value)


def test_several_settings_make_a_recipe() -> None:
    """The command line and Python must give the same recipe."""
    texts = ["mixup=0.2", "flip=false", "policy=trivial", "train_size=none"]
    recipe = PLAIN.changed(**parse_changes(texts))
    assert recipe == PLAIN.changed(mixup=0.2, flip=False, policy="trivial", train_size=None)
    assert parse_changes([]) == {}


@pytest.mark.parametrize("text", ["mixup", "", "mixup:0.2", "--mixup"])
def test_a_setting_without_a_value_is_refused(text: str) -> None:
    """It would be taken for another option, or for nothing."""
    with pytest.raises(ConfigError, match="must be name=value, such as mixup") as caught:
        parse_changes([text])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["mixup=strong", "epochs=2.5", "flip=maybe", "=3", "train_size=big"]
)
def test_nonsense_is_told_by_the_recipe(text: str) -> None:
    """Text where a number belongs must not come as a traceback."""
    with pytest.raises(ConfigError) as caught:
        PLAIN.changed(**parse_changes([text]))
    assert "\n" not in str(caught.value)


# -- choose -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("digits", "images", "weights", "name"),
    [
        (False, 2, False, "small"),
        (False, 19_999, False, "small"),
        (False, 20_000, False, "large"),
        (False, 10**6, False, "large"),
        (False, 500, True, "finetune"),
        (False, 10**6, True, "finetune"),
        (True, 1_437, False, "digits"),
        (True, 1_437, True, "digits"),
    ],
)
def test_the_usual_recipe_fits_the_data(
    digits: bool, images: int, weights: bool, name: str
) -> None:
    """Ninety epochs with strong augmentation overfit nothing and learn nothing from 500 images."""
    chosen = choose(None, default="digits" if digits else None, images=images, weights=weights)
    assert chosen == RECIPES[name](images)


def pick(recipe: Any, images: int = 100) -> Recipe:
    """What is given, for photographs and from scratch."""
    return choose(recipe, default=None, images=images, weights=False)


def test_a_recipe_or_its_name_is_taken_as_it_is() -> None:
    """Data must not overrule what was asked for."""
    assert pick(PLAIN) is PLAIN
    for name, recipe in RECIPES.items():
        assert pick(name, 7_000) == recipe(7_000)


def not_found(recipe: str, message: str) -> None:
    """It is refused in one line."""
    with pytest.raises(ConfigError, match=message) as caught:
        pick(recipe)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ResNeXtError)


def test_unknown_names_list_what_there_is(tmp_path: Path) -> None:
    """A name from another library, or a file without function."""
    names = ", ".join(RECIPES)
    not_found(
        "best",
        f"No recipe is called 'best'. Available are {names}, probe; give your own as file.py:name",
    )
    not_found("", "No recipe is called ''")
    not_found(str(tmp_path / "own.py"), "No recipe is called")
    not_found("rsb_a1:", "rsb_a1 does not exist")
    not_found(str(tmp_path / "own.py") + ":mine", "own.py does not exist")
    not_found(f"{tmp_path}:mine", "does not exist")  # a folder
    not_found(r"C:\recipes\own.py:mine", r"C:\\recipes\\own.py does not exist")
    not_found(r"C:\recipes\own.py", "does not exist. Give a recipe as file.py:name")


OWN = '''
from __future__ import annotations
import math
from dataclasses import dataclass, replace
from resnext.training import RECIPES, Recipe

FACTOR = 2

@dataclass
class Helper:
    """Classes in such a file need their module to exist."""
    epochs: int = 4

def helper(images):
    return FACTOR * math.ceil(images / 100)

def mine(images: int) -> Recipe:
    return Recipe(epochs=helper(images), batch_size=8, learning_rate=0.01)

def changed(images):
    return replace(RECIPES["small"](images), mixup=0.3)

def raises(images):
    return 1 / 0

def refuses(images):
    return Recipe(epochs=0, batch_size=8, learning_rate=0.01)

def nothing(images):
    pass

def number(images):
    return 7

def two(images, more):
    return None

constant = Recipe(epochs=1, batch_size=8, learning_rate=0.01)
'''


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A file of one's own, in a folder whose name has a colon, as Windows' paths have."""
    folder = tmp_path / "D: my files"
    folder.mkdir()
    (folder / "own.py").write_text(OWN)
    return str(folder / "own.py")


def test_own_recipes(own: str) -> None:
    """Helpers, imports and constants of the file must still be there when it is called."""
    assert pick(f"{own}:mine", 250) == Recipe(epochs=6, batch_size=8, learning_rate=0.01)
    assert pick(f"{own}:changed", 250) == RECIPES["small"](250).changed(mixup=0.3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "failed: ZeroDivisionError: division by zero"),
        ("refuses", "epochs must be a whole number from 1"),
        ("nothing", "must return a resnext.training.Recipe, not None"),
        ("number", "must return a resnext.training.Recipe, not 7"),
        ("two", r"failed: TypeError: two\(\) missing 1 required positional argument"),
        ("constant", "has no function 'constant'"),
        ("absent", "has no function 'absent'"),
        ("", "has no function ''"),
    ],
)
def test_own_recipes_that_are_wrong(own: str, name: str, message: str) -> None:
    """Somebody's own mistake is told as such, not as a traceback through this library."""
    not_found(f"{own}:{name}", message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"def mine(:", "failed: SyntaxError"),
        (b"import nothing_of_that_name", "failed: ModuleNotFoundError: No module named"),
        (b"raise RuntimeError('no')", "failed: RuntimeError: no"),
        (b"\xff\xfe\x00 not text", "failed: "),
        (b"", "has no function 'mine'"),
    ],
)
def test_files_that_cannot_be_executed(tmp_path: Path, content: bytes, message: str) -> None:
    """A wrong file is named, and is not looked for elsewhere."""
    (tmp_path / "own.py").write_bytes(content)
    not_found(f"{tmp_path / 'own.py'}:mine", message)


def test_numpys_numbers() -> None:
    """`batch_size=np.int64(32)` was refused; a run's state is JSON, so it becomes Python's."""
    given: dict[str, Any] = {
        "batch_size": np.int64(8),
        "epochs": np.int32(2),
        "mixup": np.float32(0),
    }
    recipe = Recipe(learning_rate=0.1, **given)
    assert (recipe.batch_size, recipe.epochs, recipe.mixup) == (8, 2, 0.0)
    assert {type(recipe.batch_size), type(recipe.epochs), type(recipe.mixup)} == {int, float}


@pytest.mark.parametrize(
    ("size", "train_size", "smallest", "sides"),
    [
        (32, None, 8, [16, 20, 28, 32]),
        (32, None, 24, [24, 24, 28, 32]),
        (224, 190, 32, [96, 128, 160, 190]),
        (32, 6, 8, [6, 6, 6, 6]),
    ],
)
def test_images_grow(size: int, train_size: int | None, smallest: int, sides: list[int]) -> None:
    """A quarter of the run each, never below what the network can take, in the end in full."""
    recipe = PLAIN.changed(first_size=0.5, train_size=train_size)
    parts = [0.0, 0.249, 0.25, 0.499, 0.5, 0.749, 0.75, 1.0]
    got = [recipe.side(size, smallest, part) for part in parts]
    assert got == [side for side in sides for _ in range(2)]
    assert {PLAIN.side(31, 8, part) for part in parts} == {31}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen_stages": -1}, "cached_views needs frozen_stages"),
        ({"mixup": 0.2}, "With cached_views, mixup must be 0.0"),
        ({"policy": "trivial"}, "With cached_views, policy must be 'none'"),
        ({"repeats": 2}, "With cached_views, repeats must be 1"),
        ({"first_size": 0.5}, "With cached_views, first_size must be 1.0"),
    ],
)
def test_cached_views_need_equal_views(changes: dict[str, Any], message: str) -> None:
    """What changes the images after their view would be lost, or seen again and again."""
    refused(message, **{"cached_views": 2, "frozen_stages": 1, **changes})
