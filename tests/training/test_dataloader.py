"""Batches of training images: the same whatever the number of processes, workers and restarts."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnext.card import Preprocessing
from resnext.data.dataset import ImageSet
from resnext.data.workers import Loading, loaded_batches
from resnext.errors import DataError
from resnext.training import Recipe
from resnext.training.dataloader import (
    Batch,
    SampleKey,
    TrainDataset,
    TrainSampler,
    collate,
    training_loader,
)
from resnext.training.distributed import ProcessGroup

PLAIN = Recipe(epochs=3, batch_size=4, learning_rate=0.1)
HOW = Preprocessing(6, 6)
CPU = torch.device("cpu")


def images(targets: list[int] | np.ndarray, labels: int = 2) -> ImageSet:
    """Only their number and classes matter."""
    pixels = [np.zeros((2, 2), np.uint8)] * len(targets)
    return ImageSet(pixels, [int(t) for t in targets], tuple(map(str, range(labels))), "set")


def keys(order: TrainSampler, epoch: int = 1, start: int = 0) -> list[list[SampleKey]]:
    """An epoch's keys, batch by batch."""
    order.epoch, order.start = epoch, start
    found = list(order)
    assert len(found) == len(order)
    return found


@st.composite
def plans(draw: st.DrawFn) -> tuple[ImageSet, Recipe, int]:
    """Images, a recipe and a number of processes that fit together."""
    world, accumulate = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    batch = world * accumulate * draw(st.integers(2, 4))
    count = draw(st.integers(batch, 5 * batch))
    recipe = Recipe(
        epochs=2,
        batch_size=batch,
        learning_rate=0.1,
        accumulate=accumulate,
        repeats=draw(st.integers(1, 4)),
        balance=draw(st.sampled_from(["none", "sampling", "weights"])),
    )
    return images(np.arange(count) % 2), recipe, world


# -- order ------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(plan=plans(), seed=st.integers(0, 2**40), epoch=st.integers(1, 1000))
def test_processes_share_every_batch(
    plan: tuple[ImageSet, Recipe, int], seed: int, epoch: int
) -> None:
    """Processes that see the same images, or each its own order, train on less than they say."""
    data, recipe, world = plan
    alone = keys(TrainSampler(data, recipe, seed, ProcessGroup()), epoch)
    parts = [
        keys(TrainSampler(data, recipe, seed, ProcessGroup(rank, world)), epoch)
        for rank in range(world)
    ]
    assert {len(part) for part in parts} == {len(alone)}
    for whole, *shares in zip(alone, *parts, strict=True):
        assert len({len(share) for share in shares}) == 1  # or processes wait for each other
        assert sorted(key for share in shares for key in share) == whole


@settings(max_examples=50)
@given(plan=plans(), data=st.data())
def test_starting_in_the_middle_gives_the_rest(
    plan: tuple[ImageSet, Recipe, int], data: st.DataObject
) -> None:
    """A run that was interrupted must not see images twice, or the later ones never."""
    source, recipe, world = plan
    order = TrainSampler(source, recipe, 5, ProcessGroup(world - 1, world))
    start = data.draw(st.integers(0, order.steps))
    whole = keys(order, 2)
    assert keys(order, 2, start) == whole[start * recipe.accumulate :]
    assert keys(order, 2) == whole


@settings(max_examples=50)
@given(plan=plans(), seed=st.integers(0, 2**40))
def test_batches_are_the_epoch_cut_in_pieces(plan: tuple[ImageSet, Recipe, int], seed: int) -> None:
    """Accumulating must not change which images a step sees; only the last few are left over."""
    data, recipe, _ = plan
    order = TrainSampler(data, recipe, seed, ProcessGroup())
    found = keys(order, 3)
    assert {len(part) for part in found} == {recipe.batch_size // recipe.accumulate}
    flat = [key for part in found for key in part]
    steps = len(data) // recipe.batch_size
    assert len(found) == steps * recipe.accumulate
    assert [key.place for key in flat] == list(range(steps * recipe.batch_size))
    assert [key.image for key in flat] == order.whole(3)[: len(flat)].tolist()
    assert {key.epoch for key in flat} == {3}


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    """An order that repeats itself lets the network learn the order."""
    order = TrainSampler(images([0] * 50), PLAIN, 7, ProcessGroup())
    epochs = [order.whole(epoch).tolist() for epoch in range(1, 21)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 20
    assert epochs == [order.whole(epoch).tolist() for epoch in range(1, 21)]
    other = TrainSampler(images([0] * 50), PLAIN, 8, ProcessGroup())
    assert other.whole(1).tolist() != epochs[0]
    first = np.bincount([epoch[0] // 10 for epoch in epochs], minlength=5)
    assert first.max() < 12  # of 20: no image is always the first


@settings(max_examples=40)
@given(count=st.integers(4, 60), repeats=st.integers(1, 6))
def test_images_are_repeated_in_neighbouring_places(count: int, repeats: int) -> None:
    """Repeats that lie far apart are other epochs; repeats beyond the epoch's length cost time."""
    recipe = PLAIN.changed(repeats=repeats)
    whole = TrainSampler(images([0] * count), recipe, 3, ProcessGroup()).whole(1).tolist()
    assert len(whole) == count
    groups = [(image, len(list(same))) for image, same in itertools.groupby(whole)]
    assert all(times == repeats for _, times in groups[:-1])
    assert 1 <= groups[-1][1] <= repeats
    assert len({image for image, _ in groups}) == len(groups)


def test_repeats_are_different_views() -> None:
    """Two equal views of an image are one view at twice the price."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    data = ImageSet([pixels] * 8, [0] * 8, ("a", "b"), "set")
    recipe = PLAIN.changed(repeats=2)
    views = TrainDataset(data, HOW, recipe, 1, fast=False)
    (first, second, *_), *_ = keys(TrainSampler(data, recipe, 1, ProcessGroup()))
    assert first.image == second.image
    assert not torch.equal(views[first][0], views[second][0])


def test_rare_classes_are_drawn_as_often_as_others() -> None:
    """A network that sees one class in a hundred images learns to say the others."""
    targets = np.array([0] * 2000 + [1] * 200 + [2] * 20)
    recipe = PLAIN.changed(balance="sampling")
    order = TrainSampler(
        images(targets, 4), recipe, 1, ProcessGroup()
    )  # of the fourth class there is none
    drawn = np.concatenate([order.whole(epoch) for epoch in (1, 2, 3)])
    assert len(drawn) == 3 * 2220
    counts = np.bincount(targets[drawn], minlength=4)
    assert counts[3] == 0
    assert np.abs(counts[:3] / len(drawn) - 1 / 3).max() < 0.02  # 3.5 standard deviations
    rare = np.bincount(drawn, minlength=2220)[2200:]
    assert rare.min() > 50  # each of them, not one
    assert order.whole(1).tolist() != order.whole(2).tolist()
    plain = TrainSampler(images(targets, 4), PLAIN, 1, ProcessGroup())
    assert np.bincount(targets[plain.whole(1)]).tolist() == [2000, 200, 20]


# -- views ------------------------------------------------------------------------------------


@pytest.fixture
def flat(tmp_path: Path) -> ImageSet:
    """A dozen files; each is a ramp of its own brightness, and its class tells which it is."""
    files = []
    for i in range(12):
        ramp = np.arange(16, dtype=np.uint8)[:, None, None] // 2 + np.full((1, 16, 3), 20 * i)
        file = tmp_path / f"{i}.png"
        Image.fromarray(ramp.astype(np.uint8)).save(file)
        files.append(file)
    return ImageSet(files, list(range(12)), tuple(f"class {i}" for i in range(12)), "ramps")


def batches(data: ImageSet, *, workers: int = 0, epoch: int = 1, start: int = 0) -> list[Batch]:
    """An epoch's batches."""
    order = TrainSampler(data, PLAIN, 9, ProcessGroup())
    order.epoch, order.start = epoch, start
    views = TrainDataset(data, HOW, PLAIN, 9, fast=False)
    with loading(views, order, workers) as loader:
        return list(loaded_batches(loader))


@contextmanager
def loading(views: TrainDataset, order: TrainSampler, workers: int) -> Iterator[Any]:
    """A loader whose workers end now; left to the garbage collector, each takes five seconds."""
    loading = Loading(workers, 2 if workers else None)
    loader = training_loader(views, order, loading=loading, device=CPU)
    try:
        yield loader
    finally:
        loader._iterator = None


def same(a: list[Batch], b: list[Batch]) -> bool:
    """Whether they are, to the last bit."""
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and torch.equal(x.targets, y.targets) and x.bad == y.bad
        for x, y in zip(a, b, strict=True)
    )


def test_views_depend_on_their_key_alone(flat: ImageSet) -> None:
    """Chance that workers draw for themselves makes no run repeatable, and none resumable."""
    alone = batches(flat)
    assert len(alone) == 3
    assert same(alone, batches(flat))
    assert same(alone, batches(flat, workers=2))
    assert same(alone[1:], batches(flat, start=1))
    assert same(alone[2:], batches(flat, workers=2, start=2))
    assert not same(alone, batches(flat, epoch=2))
    torch.manual_seed(1)
    np.random.seed(1)
    assert same(alone, batches(flat))


def test_workers_follow_the_next_epoch(flat: ImageSet) -> None:
    """Workers that live on must not go on with the order they were started with."""
    order = TrainSampler(flat, PLAIN, 9, ProcessGroup())
    views = TrainDataset(flat, HOW, PLAIN, 9, fast=False)
    with loading(views, order, 1) as loader:
        for epoch, start in ((1, 0), (2, 1), (3, 0)):
            order.epoch, order.start = epoch, start
            assert same(list(loaded_batches(loader)), batches(flat, epoch=epoch, start=start))


def test_views_show_the_image_of_their_class(flat: ImageSet) -> None:
    """Images and classes that come apart are learnt without a word."""
    for batch in batches(flat):
        assert batch.images.shape == (4, 6, 6, 3)
        assert batch.images.dtype == torch.uint8
        assert (batch.images[:, 0, 0, 0] // 20).tolist() == batch.targets.tolist()
        assert batch.bad == []
    seen = torch.cat([batch.targets for batch in batches(flat)])
    assert sorted(seen.tolist()) == list(range(12))


def test_views_are_cut_as_the_recipe_says() -> None:
    """An option that does not arrive changes nothing, and nobody sees it."""
    coordinates = np.zeros((30, 30, 3), np.uint8)
    coordinates[..., 0] = np.arange(1, 31)[:, None]
    coordinates[..., 1] = np.arange(1, 31)[None]
    data = ImageSet([coordinates] * 40, [0] * 40, ("a", "b"), "set")
    how = Preprocessing(30, 30, "nearest")

    def shown(**changes: Any) -> list[torch.Tensor]:
        views = TrainDataset(data, how, PLAIN.changed(**changes), 0, fast=False)
        return [views[SampleKey(1, i, i)][0] for i in range(40)]

    mirrored = [bool((x[..., 1].int().diff(dim=1) < 0).any()) for x in shown(min_area=1.0)]
    assert 8 < sum(mirrored) < 32
    for x in shown(min_area=1.0, flip=False):
        assert int(x[..., 0].max()) - int(x[..., 0].min()) > 24
        assert not (x[..., 1].int().diff(dim=1) < 0).any()
    small = [int(x[..., 0].max()) - int(x[..., 0].min()) for x in shown(min_area=0.05)]
    assert min(small) < 12
    rims = [int((x[:, 15, 0] == 0).sum()) for x in shown(padding=3, flip=False)]
    assert set(rims) == {0, 1, 2, 3}


def test_what_cannot_be_read_is_replaced_and_told(flat: ImageSet) -> None:
    """One file that rots while a run goes on must not end it, nor be left out in silence."""
    whole = batches(flat)
    damaged, missing = flat.images[3], flat.images[7]
    assert isinstance(damaged, Path)
    assert isinstance(missing, Path)
    damaged.write_bytes(damaged.read_bytes()[:60])
    missing.unlink()
    alone = batches(flat)
    told = dict(x for batch in alone for x in batch.bad)
    assert set(told) == {3, 7}
    assert told[3].startswith(f"{flat.images[3]}: not a readable image")
    assert told[7] == f"{flat.images[7]}: no such file."
    for before, after in zip(whole, alone, strict=True):
        for i, target in enumerate(before.targets.tolist()):
            if target not in (3, 7):  # all others are as they were
                assert torch.equal(before.images[i], after.images[i])
                assert int(after.targets[i]) == target
            else:
                assert int(after.targets[i]) not in (3, 7)
        assert (after.images[:, 0, 0, 0] // 20).tolist() == after.targets.tolist()
    assert same(alone, batches(flat, workers=2))
    assert same(alone[1:], batches(flat, start=1))


def test_an_image_that_stays_bad_is_told_each_time() -> None:
    """Whoever counts them decides when it is too much, so all of it must arrive."""
    views = [(torch.zeros(2, 2, 3, dtype=torch.uint8), 1, [(5, "a"), (6, "b")])]
    batch = collate([*views, (torch.ones(2, 2, 3, dtype=torch.uint8), 0, [(5, "a")])])
    assert batch.bad == [(5, "a"), (6, "b"), (5, "a")]
    assert batch.targets.tolist() == [1, 0]
    assert batch.images.sum((1, 2, 3)).tolist() == [0, 12]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_is_gone_ends_the_run_in_one_line(flat: ImageSet, workers: int) -> None:
    """Searching for ever for an image that can be read looks like a hang."""
    for file in flat.images:
        assert isinstance(file, Path)
        file.unlink()
    with pytest.raises(DataError) as caught:
        batches(flat, workers=workers)
    text = str(caught.value)
    assert text.startswith("10 images in a row cannot be read; the last one: ")
    assert text.endswith(".png: no such file.")
    assert "\n" not in text
    assert "Traceback" not in text
    assert caught.value.__cause__ is None


def test_nine_bad_ones_in_a_row_are_survived() -> None:
    """The tenth try is still one."""
    pixels = np.full((6, 6, 3), 77, np.uint8)

    class Rotten(ImageSet):
        """Fails so many times."""

        def read(self, index: int) -> np.ndarray:
            left.append(index)
            if len(left) < 10:
                raise DataError(f"{index}: gone.")
            return pixels

    left: list[int] = []
    views = TrainDataset(
        Rotten([pixels] * 100, [0] * 100, ("a", "b"), "s"), HOW, PLAIN, 0, fast=False
    )
    view, _, bad = views[SampleKey(1, 0, 42)]
    assert (view == 77).all()
    assert [index for index, _ in bad] == left[:9]
    assert left[0] == 42
    assert len(set(left)) > 5  # others, not the same again and again


def test_own_errors_passes_other_batches_on(flat: ImageSet) -> None:
    """What was read before the failure is still to be learnt from."""
    order = TrainSampler(flat, PLAIN, 9, ProcessGroup())

    class First(TrainDataset):
        """Fails in the second batch, whatever stands in."""

        def __getitem__(self, key: SampleKey) -> Any:
            if key.place >= 4:
                raise DataError("rotten, in: one line")
            return super().__getitem__(key)

    for workers in (0, 1):
        views = First(flat, HOW, PLAIN, 9, fast=False)
        with loading(views, order, workers) as loader:
            feed = loaded_batches(loader)
            assert len(next(feed).images) == 4
            with pytest.raises(DataError) as caught:
                next(feed)
            assert str(caught.value) == "rotten, in: one line"


def test_workers_leave_signals_to_the_main_process() -> None:
    """A signal to the group reaches every process; workers that die first end the run badly."""

    class Handlers(TrainDataset):
        """Tells how a worker takes signals."""

        def __getitem__(self, key: SampleKey) -> Any:
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            also = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            return torch.zeros(1, 1, 3, dtype=torch.uint8), int(ignored and also), []

    before = signal.getsignal(signal.SIGINT)
    data = images([0] * 8)
    order = TrainSampler(data, PLAIN, 0, ProcessGroup())
    with loading(Handlers(data, HOW, PLAIN, 0, fast=False), order, 1) as loader:
        assert [batch.targets.tolist() for batch in loaded_batches(loader)] == [[1] * 4] * 2
    assert signal.getsignal(signal.SIGINT) is before
