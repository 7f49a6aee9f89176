"""Networks compiled, exported, traced, in several processes, and with checked shapes."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from network_cases import TINY, VARIANTS, filled, gradients, images, loss, same, tiny
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from resnext import Backbone, ResNeXt

FAST = {"plain", "resnext-d of timm"}
EXPORTED_FAST = FAST | {"blur", "instance norm"}
WARN_IN_TORCH = {"group norm", "instance norm", "untracked norm", "same padding"}  # when traced
COMPILED, EXPORTED = (
    [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS]
    for fast in (FAST, EXPORTED_FAST)
)


# -- compiled, exported, traced ---------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def agrees_when_compiled(model: Any, backend: str, tolerance: float) -> None:
    """Outputs, gradients and statistics are those of the plain network."""
    x = images(2, 3, 24, 40)
    for training in (False, True):
        plain, other = (copy.deepcopy(model).train(training) for _ in range(2))
        compiled = torch.compile(other, fullgraph=True, backend=backend)
        outputs = []
        for run in (plain, compiled):
            torch.manual_seed(0)
            outputs.append(run(x))
            loss(outputs[-1]).backward()
        same(outputs[1], outputs[0], tolerance)
        same(gradients(other), gradients(plain), tolerance)
        same(other.state_dict(), plain.state_dict(), tolerance)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", COMPILED)
def test_compiles_whole(name: str) -> None:
    """Python that the compiler cannot follow would break the graph, or stop `fullgraph=True`."""
    agrees_when_compiled(filled(ResNeXt(tiny(**VARIANTS[name]))), "aot_eager", 1e-10)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    "arguments", [{"out_indices": (0, 1)}, {"frozen_stages": 1}, {"checkpointing": True}], ids=str
)
def test_backbone_compiles_whole(arguments: dict[str, Any]) -> None:
    """Detection trains compiled backbones, with frozen stages and checkpoints."""
    agrees_when_compiled(filled(Backbone(tiny(), **arguments)), "aot_eager", 1e-10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", ["plain", "resnext-d of timm"])
def test_compiles_to_machine_code(name: str) -> None:
    """The default backend must agree, too: it fuses and reorders."""
    agrees_when_compiled(filled(ResNeXt(tiny(**VARIANTS[name]))), "inductor", 1e-8)


@pytest.mark.parametrize("name", EXPORTED)
def test_exports_for_every_size(name: str) -> None:
    """A size that is baked in fails only at the first image of another size."""
    model, dynamic = filled(ResNeXt(tiny(**VARIANTS[name]))).eval(), torch.export.Dim.AUTO
    shapes = {"x": {0: dynamic, 2: dynamic, 3: dynamic}}
    exported = torch.export.export(model, (images(2, 3, 24, 40),), dynamic_shapes=shapes).module()
    for shape in ((2, 3, 24, 40), (1, 3, 33, 65), (3, 3, 70, 18)):
        x = images(*shape)
        with torch.no_grad():
            same(exported(x), model(x))


@pytest.mark.parametrize("build", [ResNeXt, Backbone])
def test_exports_with_named_sizes(build: Any) -> None:
    """Named ranges are a promise: an export that narrows them silently must not happen."""
    height, width = (torch.export.Dim(name, min=16, max=2048) for name in ("height", "width"))
    shapes = {"x": {0: torch.export.Dim("batch"), 2: height, 3: width}}
    model = filled(build(tiny())).eval()
    exported = torch.export.export(model, (images(2, 3, 24, 40),), dynamic_shapes=shapes).module()
    for shape in ((1, 3, 16, 16), (5, 3, 33, 129)):
        x = images(*shape)
        with torch.no_grad():
            same(exported(x), model(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in WARN_IN_TORCH])
def test_traces(name: str) -> None:
    """Deployments still trace; a trace must warn of nothing and hold for other sizes."""
    model = filled(ResNeXt(tiny(**VARIANTS[name]))).eval()
    traced: Any = torch.jit.trace(model, images(2, 3, 24, 40))
    for shape in ((1, 3, 33, 65), (3, 3, 70, 18)):
        x = images(*shape)
        with torch.no_grad():
            same(traced(x), model(x))


# -- several processes ------------------------------------------------------------------------


@pytest.fixture
def _one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (ResNeXt, {}),
        (Backbone, {}),
        (Backbone, {"out_indices": (0,)}),
        (Backbone, {"checkpointing": True}),
        (Backbone, {"frozen_stages": 1}),
    ],
    ids=str,
)
def test_distributed_wrapper(build: Any, arguments: dict[str, Any]) -> None:
    """A parameter without a gradient, such as one of an unused stage, stops the second step."""
    model = filled(build(tiny(), **arguments))
    plain, x = copy.deepcopy(model), images(2, 3, 32, 32)
    wrapped = DistributedDataParallel(model)
    for _ in range(3):
        for run in (plain, wrapped):
            loss(run(x)).backward()
    same(gradients(model), gradients(plain))
    same(model.state_dict(), plain.state_dict())


def train_one_of_two(rank: int, folder: str) -> None:
    """What each process of the next test does: its half of the batch, then its gradients."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = filled(ResNeXt(tiny()), seed=rank)  # process 0 sends its weights to the other
    wrapped = DistributedDataParallel(model.eval())
    wrapped(images(4, 3, 32, 32)[2 * rank : 2 * rank + 2]).square().sum(1).mean().backward()
    torch.save(gradients(model), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_average_their_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two halves of a batch on two processes must learn what the whole batch teaches one."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])  # they import this module as tests.…
    spawn(train_one_of_two, (str(tmp_path),), nprocs=2)
    model = filled(ResNeXt(tiny())).eval()
    model(images(4, 3, 32, 32)).square().sum(1).mean().backward()
    for rank in range(2):
        same(torch.load(tmp_path / f"{rank}.pt"), gradients(model))


# -- annotated shapes -------------------------------------------------------------------------


CHECK_SHAPES = """
import jaxtyping
with jaxtyping.install_import_hook("resnext", "beartype.beartype"):
    from resnext.backbone import Backbone
    from resnext.config import ResNeXtConfig
    from resnext.network import ResNeXt

import torch
torch.set_num_threads(1)

for fields in {variants!r}:
    config = ResNeXtConfig(**{{**{tiny!r}, **fields}})
    model, x = ResNeXt(config), torch.rand(2, 3, 24, 40)
    model(x), model.eval()(x), model.embed(x), model.features(x), model.features(x, depth=1)
    model.bfloat16()(x.bfloat16())
    Backbone(config, out_indices=(1,), checkpointing=True)(x)[0].sum().backward()

model, wrong = model.float(), 0
for call, x in (
    (model, torch.rand(3, 24, 40)),
    (model, torch.ones(2, 3, 24, 40, dtype=torch.int64)),
    (model.embed, torch.rand(2, 3, 24)),
    (model.features, torch.rand(24, 40)),
    (model.layer1[0], torch.rand(2, 8, 9, 9, 9)),
    (model.layer1[0].residual, torch.rand(8, 9, 9)),
):
    try:
        call(x)
    except jaxtyping.TypeCheckError:
        wrong += 1
assert wrong == 6, wrong
"""


def test_annotated_shapes_are_true() -> None:
    """A shape in a signature that is wrong misleads every reader; here it stops the test."""
    code = CHECK_SHAPES.format(variants=list(VARIANTS.values()), tiny=TINY)
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
