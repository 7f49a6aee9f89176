"""The rate, the optimizers, the average of the weights and the loss, against plain formulas."""

from __future__ import annotations

import copy
import itertools
import math
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import resnext
from resnext import ResNeXtConfig
from resnext.architectures import variant
from resnext.backbone import Backbone
from resnext.errors import ConfigError
from resnext.network import ResNeXt
from resnext.training import Recipe
from resnext.training.optim import (
    EMA,
    freeze_norms,
    loss,
    lr_schedule,
    optimizer,
    parameter_groups,
)

TINY = ResNeXtConfig((1, 1), 2, 8, num_classes=3, channels=(8, 16), num_stages=2, small_stem=True)
PLAIN = Recipe(epochs=2, batch_size=4, learning_rate=0.05)

pytestmark = pytest.mark.usefixtures("one_thread")


# -- rate -------------------------------------------------------------------------------------


def test_rate_rises_linearly_and_falls_to_zero() -> None:
    """The paper's optimizer with warm-up; a jump or a negative rate would show here."""
    rates = [lr_schedule(PLAIN, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 2))
    assert all(a >= b > 0 for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 1e-3
    assert lr_schedule(PLAIN, 0, 1) == 1


def by_torch(schedule: Any, steps: int, **arguments: Any) -> list[float]:
    """The rates of one of torch's schedulers."""
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is optimized
        course = schedule(sgd, **arguments)
        for _ in range(steps):
            rates.append(sgd.param_groups[0]["lr"])
            course.step()
    return rates


@settings(max_examples=30)
@given(st.integers(1, 60), st.sampled_from([0.0, 0.05, 0.3, 1.0]))
def test_cosine_is_torchs(steps: int, warmup: float) -> None:
    """A schedule that is stretched by its warm-up ends above zero, or below."""
    recipe = PLAIN.changed(warmup=warmup)
    rise = round(steps * warmup)
    falling = by_torch(
        torch.optim.lr_scheduler.CosineAnnealingLR, steps - rise, T_max=max(steps - rise, 1)
    )
    wanted = [(i + 1) / rise for i in range(rise)] + falling
    assert [lr_schedule(recipe, step, steps) for step in range(steps)] == pytest.approx(wanted)


@pytest.mark.parametrize("milestones", [(1 / 3, 2 / 3), (0.5, 0.75), (0.1,)])
def test_steps_are_torchs(milestones: tuple[float, ...]) -> None:
    """A third of 90 epochs is step 30 exactly; rounding down makes it one too early."""
    recipe = PLAIN.changed(schedule="step", milestones=milestones, warmup=0.0)
    multi = torch.optim.lr_scheduler.MultiStepLR
    for steps in (90, 300, 12):
        at = [round(x * steps) for x in milestones]
        wanted = by_torch(multi, steps, milestones=at, gamma=0.1)
        assert [lr_schedule(recipe, i, steps) for i in range(steps)] == pytest.approx(wanted)
    assert [round(x * 90) for x in (1 / 3, 2 / 3)] == [30, 60]  # as the paper has it
    warm = recipe.changed(warmup=0.05)
    assert lr_schedule(warm, 0, 100) == 0.2
    assert lr_schedule(warm, 5, 100) == 1


# -- parameter groups -------------------------------------------------------------------------


VARIANTS = {
    "resnext50": variant("resnext50_32x4d", layers=(1, 2, 1, 1)),
    "deep stem, SE": variant("seresnext26t_32x4d", layers=(1, 1, 1, 1)),
    "ECA": variant("ecaresnext26t_32x4d", layers=(1, 1, 1, 1)),
    "three stages": variant("resnext29_8x64d", layers=(1, 1, 1)),
    "two stages": TINY,
    "group norm": TINY.replace(norm="group", norm_groups=2),
    "norms without weights": TINY.replace(norm_affine=False),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_norms_and_biases_are_not_decayed(name: str, decay: float) -> None:
    """Decaying them costs accuracy; no parameter may be left out or counted twice."""
    with torch.device("meta"):
        network = ResNeXt(VARIANTS[name])
    groups = parameter_groups(network, 1e-4, decay)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    modules = nn.Conv2d | nn.Conv1d | nn.Linear
    weights = {id(m.weight) for m in network.modules() if isinstance(m, modules)}
    decayed = {id(p) for g in groups for p in g["params"] if g["weight_decay"] == 1e-4}
    assert decayed == weights
    assert all(g["weight_decay"] in (0.0, 1e-4) for g in groups)
    if decay == 1:
        assert len(groups) == 2
        assert {g["scale"] for g in groups} == {1.0}


@pytest.mark.parametrize("name", VARIANTS)
def test_each_stage_learns_more_slowly_than_the_next(name: str) -> None:
    """A stem at full rate forgets what it was trained for; so does a part nobody named."""
    with torch.device("meta"):
        network = ResNeXt(VARIANTS[name])
    n = network.config.num_stages
    wanted = {"fc": 1.0} | {f"layer{n - i}": 0.7 ** (i + 1) for i in range(n)}
    scales = {
        id(p): group["scale"]
        for group in parameter_groups(network, 0.1, 0.7)
        for p in group["params"]
    }
    for key, parameter in network.named_parameters():
        scale = wanted.get(key.split(".")[0], 0.7 ** (n + 1))
        assert scales[id(parameter)] == pytest.approx(scale), key


def test_a_backbone_has_groups_too() -> None:
    """A backbone has no classifier, and maybe not all stages."""
    backbone = Backbone(TINY, out_indices=(0,))
    groups = parameter_groups(backbone, 0.1, 0.5)
    scales = {id(p): g["scale"] for g in groups for p in g["params"]}
    names = {key: scales[id(p)] for key, p in backbone.named_parameters()}
    assert {s for key, s in names.items() if key.startswith("layer1.")} == {0.5}
    assert {s for key, s in names.items() if not key.startswith("layer1.")} == {0.25}
    assert len(scales) == len(list(backbone.parameters()))


# -- optimizers -------------------------------------------------------------------------------


def gradients(network: nn.Module, seed: int) -> None:
    """Random ones."""
    torch.manual_seed(seed)
    for p in network.parameters():
        p.grad = torch.randn_like(p)


def sgd_by_hand(values: dict[str, Tensor], grads: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Nesterov's momentum as Sutskever and others write it, for rate 0.05 and decay 5e-4."""
    speed = {k: torch.zeros_like(v) for k, v in values.items()}
    for g in grads:
        for k, v in values.items():
            slope = g[k] + (5e-4 * v if v.ndim > 1 else 0)
            speed[k] = 0.9 * speed[k] + slope
            values[k] = v - 0.05 * (slope + 0.9 * speed[k])
    return values


def adamw_by_hand(values: dict[str, Tensor], grads: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Algorithm 2 of arXiv:1711.05101."""
    m = {k: torch.zeros_like(v) for k, v in values.items()}
    s = {k: torch.zeros_like(v) for k, v in values.items()}
    for t, g in enumerate(grads, 1):
        for k, v in values.items():
            m[k] = 0.9 * m[k] + 0.1 * g[k]
            s[k] = 0.999 * s[k] + 0.001 * g[k] ** 2
            step = (m[k] / (1 - 0.9**t)) / ((s[k] / (1 - 0.999**t)).sqrt() + 1e-8)
            values[k] = v - 0.05 * (step + (5e-4 * v if v.ndim > 1 else 0))
    return values


@pytest.mark.parametrize(("name", "by_hand"), [("sgd", sgd_by_hand), ("adamw", adamw_by_hand)])
def test_optimizers_follow_their_papers(name: Any, by_hand: Any) -> None:
    """Rate, momentum or decay that does not arrive trains, only worse."""
    network = ResNeXt(TINY)
    made = optimizer(network, PLAIN.changed(optimizer=name))
    values = {k: p.detach().double() for k, p in network.named_parameters()}
    grads = []
    for seed in range(3):
        gradients(network, seed)
        grads.append(
            {k: p.grad.double() for k, p in network.named_parameters() if p.grad is not None}
        )
        made.step()
    wanted = by_hand(values, grads)
    for key, p in network.named_parameters():
        assert torch.allclose(p.double(), wanted[key], atol=1e-5, rtol=1e-4), key


def test_momentum_may_be_zero() -> None:
    """torch refuses Nesterov's momentum without momentum."""
    network = ResNeXt(TINY)
    made = optimizer(network, PLAIN.changed(momentum=0.0, weight_decay=0.0))
    before = network.fc.weight.detach().clone()
    gradients(network, 0)
    made.step()
    assert network.fc.weight.grad is not None
    assert torch.allclose(network.fc.weight, before - 0.05 * network.fc.weight.grad)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_every_optimizer_keeps_scales_and_learns(name: Any) -> None:
    """The loop multiplies the rate by each group's scale; a group that lost it stops the run."""
    torch.manual_seed(0)
    network = ResNeXt(TINY).train()
    recipe = PLAIN.changed(optimizer=name, layer_decay=0.5, learning_rate=0.02)
    made = optimizer(network, recipe)
    assert sorted({g["scale"] for g in made.param_groups}) == [0.125, 0.25, 0.5, 1.0]
    assert {g["lr"] for g in made.param_groups} == {0.02}
    x, y = torch.randn(12, 3, 8, 8), torch.arange(12) % 3
    values = []
    for _ in range(15):
        value = nn.functional.cross_entropy(network(x), y)
        made.zero_grad()
        value.backward()
        made.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_what_has_no_gradient_stays(name: Any) -> None:
    """While only the classifier learns, decay must not shrink the rest."""
    network = ResNeXt(TINY)
    made = optimizer(network, PLAIN.changed(optimizer=name, weight_decay=0.5, layer_decay=0.9))
    before = {k: p.detach().clone() for k, p in network.named_parameters()}
    network.requires_grad_(False).fc.requires_grad_(True)
    for _ in range(2):
        network.fc.weight.grad = torch.ones_like(network.fc.weight)
        network.fc.bias.grad = torch.ones_like(network.fc.bias)
        made.step()
        made.zero_grad()
    for key, p in network.named_parameters():
        assert torch.equal(p, before[key]) != key.startswith("fc."), key


def test_lamb_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ImportError from the middle of a library names no remedy."""
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ConfigError, match=r'pip install "resnext\[train\]"'):
        optimizer(ResNeXt(TINY), PLAIN.changed(optimizer="lamb"))


# -- average ----------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.5, 0.9998])
def test_the_average_is_a_running_mean(decay: float) -> None:
    """Statistics of norms left out of it, or a decay that starts high, spoil short runs."""
    torch.manual_seed(0)
    network = ResNeXt(TINY).train()
    average = EMA(network, decay)
    naive = {k: v.double().numpy().copy() for k, v in network.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            network(torch.randn(3, 3, 8, 8) * 5 + 1)  # changes statistics and counts
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        average.update(network, step)
        now = min(decay, (1 + step) / (10 + step))
        for key, value in network.state_dict().items():
            new = value.double().numpy()
            naive[key] = now * naive[key] + (1 - now) * new if value.is_floating_point() else new
    for key, value in average.network.state_dict().items():
        assert np.allclose(value.double().numpy(), naive[key], rtol=1e-4, atol=1e-5), key
    assert average.network.state_dict()["bn1.num_batches_tracked"] == 12
    assert not average.network.training
    assert not any(p.requires_grad for p in average.network.parameters())
    assert all(p.requires_grad for p in network.parameters())


def test_the_average_shares_nothing_with_the_network() -> None:
    """One that shares memory is the network itself, and one that changes it stops the training."""
    network = ResNeXt(TINY)
    average = EMA(network, 0.9)
    before = {k: v.clone() for k, v in average.network.state_dict().items()}
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    assert all(torch.equal(v, before[k]) for k, v in average.network.state_dict().items())
    average.update(network, 5)
    assert not any(p.any() for p in network.parameters())
    assert average.network.fc.weight.any()


# -- loss -------------------------------------------------------------------------------------


def soft_batch(seed: int, n: int = 6, k: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets that sum to one, and weights of the classes."""
    rng = np.random.default_rng(seed)
    targets = rng.dirichlet(np.ones(k), n)
    numbers = (rng.normal(0, 4, (n, k)), targets, rng.uniform(0, 3, k))
    logits, targets, weights = (torch.from_numpy(x) for x in numbers)
    return logits, targets, weights


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_torchs(weighted: bool) -> None:
    """A mean over classes instead of images would make the rate a hundred times too small."""
    for seed in range(5):
        logits, targets, weights = soft_batch(seed)
        weight = weights if weighted else None
        got = loss(PLAIN, logits, targets, weight)
        wanted = nn.functional.cross_entropy(logits, targets, weight)
        assert float(got) == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_binary_loss_is_that_of_each_class_by_itself(weighted: bool) -> None:
    """The loss of "ResNet strikes back" is summed over classes, and a mean over images."""
    recipe = PLAIN.changed(loss="binary")
    for seed in range(5):
        logits, targets, weights = soft_batch(seed)
        weight = weights if weighted else None
        total = 0.0
        for row, wanted in zip(logits.tolist(), targets.tolist(), strict=True):
            for k, (x, t) in enumerate(zip(row, wanted, strict=True)):
                p = 1 / (1 + math.exp(-x))
                each = -(t * math.log(p) + (1 - t) * math.log(1 - p))
                total += each * (float(weights[k]) if weighted else 1.0)
        got = loss(recipe, logits, targets, weight)
        assert float(got) == pytest.approx(total / len(logits), rel=1e-9)


@pytest.mark.parametrize("kind", ["cross_entropy", "binary"])
def test_a_class_that_weighs_twice_counts_twice(kind: Any) -> None:
    """Weights that are normalised by the batch make a batch of one rare class count like any."""
    recipe = PLAIN.changed(loss=kind)
    logits, _, _ = soft_batch(0)
    targets = torch.eye(5, dtype=torch.float64)[[0, 0, 1, 2, 3, 4]]
    ones = torch.ones(5, dtype=torch.float64)
    values = [loss(recipe, logits, targets, w * ones) for w in (1.0, 2.0)]
    assert float(values[1]) == pytest.approx(2 * float(values[0]))
    assert float(values[0]) == pytest.approx(float(loss(recipe, logits, targets, None)))


@pytest.mark.parametrize("kind", ["cross_entropy", "binary"])
def test_large_logits_give_a_finite_loss_and_gradient(kind: Any) -> None:
    """A logarithm of an underflown probability is -inf, and 0 × inf is NaN."""
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    value = loss(PLAIN.changed(loss=kind), logits, torch.tensor([[0.0, 0.0, 1.0]]), None)
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# -- frozen norms -----------------------------------------------------------------------------


def test_frozen_norms_keep_statistics_and_weights() -> None:
    """Small batches would overwrite the statistics that weights came with."""
    network = ResNeXt(TINY.replace(stem_type=None)).train()
    before = copy.deepcopy(network.state_dict())
    freeze_norms(network)
    network(torch.randn(4, 3, 16, 16) * 3 + 2).sum().backward()
    for key, value in network.state_dict().items():
        if "running" in key or "num_batches" in key:
            assert torch.equal(value, before[key]), key
    norms = {n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for key, p in network.named_parameters():
        assert p.requires_grad != (key.rpartition(".")[0] in norms), key
        assert (p.grad is None) == (key.rpartition(".")[0] in norms), key
    assert network.training
    assert len(norms) == 9


def test_other_norms_go_on_learning() -> None:
    """Group norms have no statistics to keep."""
    network = resnext.ResNeXt(TINY.replace(norm="group", norm_groups=2))
    freeze_norms(network)
    assert all(p.requires_grad for p in network.parameters())
