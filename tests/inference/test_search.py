"""The search: the fastest form that agrees, and why others were not chosen."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers import tiny_network
from inference_cases import (
    BATCH,
    CARD,
    CONFIG,
    INSTALLED,
    SIZE,
    Clock,
    agree,
    chosen,
    images,
    spoil,
)

from resnext import ResNeXt, optimize
from resnext.errors import InputError
from resnext.inference import search as searching
from resnext.inference.engines import base
from resnext.inference.engines.base import Engine, EngineConfig
from resnext.inference.optimize import patterns
from resnext.inference.plan import Measurement
from resnext.inference.runner import Session
from resnext.inference.search import Examples, Search
from resnext.system.progress import SilentReporter

pytestmark = pytest.mark.usefixtures("one_thread", "quick_search")


@pytest.mark.parametrize("engine", INSTALLED)
def test_the_fastest_that_agrees_is_chosen(network: ResNeXt, clock: Clock, engine: Any) -> None:
    """The table has every timed form once, fastest first."""
    clock.fastest(engine)
    quick = optimize(network, batch=BATCH, precision="fp32")
    plan, row = quick.plan, chosen(quick.plan)
    assert plan.form.engine == engine
    forms = [row.form for row in plan.rows]
    assert len(set(forms)) == len(forms)
    assert forms[-1] is None  # the unmodified network
    assert {form.engine for form in forms if form} == set(INSTALLED)
    speeds = [row.images_per_second for row in plan.rows[:-1]]
    assert speeds == sorted(speeds, reverse=True)
    assert row.images_per_second == max(speeds) == pytest.approx(BATCH / clock.seconds(plan.form))
    assert {row.verdict for row in plan.rows} == {"", "chosen"}
    text = quick.explain()
    for name in ("PyTorch, unmodified", "ONNX Runtime", "OpenVINO"):
        assert name in text
    lines = [line for line in text.splitlines() if line.endswith("chosen")]
    assert len(lines) == 1
    assert f"{row.images_per_second:,.1f}" in lines[0]
    assert str(row.form) in lines[0]
    base = plan.rows[-1].images_per_second
    assert f" {row.images_per_second / base:.2f} " in lines[0]
    assert f"{BATCH} images of {SIZE}×{SIZE} pixels" in text
    agree(quick, network, images(5))


def test_wider_groups_are_tried_and_taken(
    network: ResNeXt, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine must be built with the width of the form."""
    monkeypatch.setattr(searching, "_WIDTHS", (8, 16))
    clock.seconds = lambda form: 0.05 if (form.engine, form.width) == ("onnxruntime", 8) else 0.06
    quick = optimize(network, batch=BATCH, precision="fp32")
    assert (quick.plan.form.engine, quick.plan.form.width) == ("onnxruntime", 8)
    assert "groups of 8" in quick.explain()
    assert quick.plan.graph("images").exists()
    agree(quick, network, images(5))


def test_of_equally_fast_forms_the_simplest_is_preferred() -> None:
    """A form that was faster by chance would multiply zeros on every later call."""
    plain, cut = EngineConfig("onnxruntime", piece=16), EngineConfig("onnxruntime", streams=2)
    wide = EngineConfig("openvino", piece=16, width=32)
    search = object.__new__(Search)

    def order(*rates: float) -> list[EngineConfig]:
        forms = dict(zip((plain, cut, wide), rates, strict=True))
        search.sessions = dict.fromkeys(forms, lambda x: (x, x))
        search.rows = {form: Measurement(form, rate) for form, rate in forms.items()}
        return search.preferred()

    assert order(100, 101, 102) == [plain, cut, wide]
    assert order(90, 100, 101) == [cut, wide, plain]
    assert order(90, 80, 101) == [wide, plain, cut]


# -- which engines, precisions and widths -----------------------------------------------------


def search(network: ResNeXt, device: str = "cpu", batch: int = BATCH, real: bool = True) -> Search:
    """A search that takes the processor for another device."""
    some = patterns(3, 3, SIZE)
    found = Search(
        network, SIZE, torch.device("cpu"), batch, Examples(some, real), SilentReporter()
    )
    found.device = torch.device(device)
    return found


@pytest.mark.parametrize(
    ("wanted", "precision", "device", "missing", "engines"),
    [
        ("auto", "fp32", "cpu", "", "openvino onnxruntime torch"),
        ("auto", "bf16", "cpu", "", "openvino torch"),
        ("auto", "int8", "cpu", "", "openvino"),
        ("auto", "fp32", "cpu", "onnxruntime", "openvino torch"),
        ("auto", "fp32", "cpu", "onnxruntime openvino", "compile torch"),
        ("auto", "int8", "cpu", "openvino", "openvino"),  # whose error says what to install
        ("auto", "fp16", "cuda", "tensorrt", "compile torch"),
        ("auto", "bf16", "cuda", "", "tensorrt compile torch"),
        ("compile", "fp32", "cpu", "", "compile"),
        ("onnxruntime", "fp32", "cpu", "", "onnxruntime"),
        ("onnxruntime", "bf16", "cpu", "", ""),
        ("torch", "int8", "cpu", "", ""),
    ],
)
def test_engines_that_are_timed(
    wanted: str,
    precision: str,
    device: str,
    missing: str,
    engines: str,
    network: ResNeXt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Installed ones that have the precision; slow compilers only if little else is left."""
    absent = missing.split()
    monkeypatch.setattr(Engine, "installed", property(lambda self: self.name not in absent))
    found = search(network, device).engines(wanted, precision)
    assert [engine.name for engine in found] == engines.split()


def test_precisions_that_are_tried(network: ResNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 needs real images, bf16 a processor that supports it."""
    assert search(network).precisions("auto") == ["fp32", "int8"]
    assert search(network, real=False).precisions("auto") == ["fp32"]
    assert search(network).precisions("bf16") == ["bf16"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        assert search(network).precisions("auto") == ["fp32", "bf16", "int8"]
    for supported, precision in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)  # noqa: B023
        assert search(network, "cuda").precisions("auto") == [precision]


def test_widths_that_are_tried(network: ResNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that some groups can be merged to."""
    monkeypatch.setattr(searching, "_WIDTHS", (4, 6, 8, 16, 32))
    assert search(network).widths() == [8, 16]  # of 4 groups of 4 channels
    assert search(tiny_network(CONFIG.replace(cardinality=1))).widths() == []


def tried(clock: Clock, network: ResNeXt, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths that were timed with ONNX Runtime."""
    monkeypatch.setattr(searching, "_WIDTHS", (8, 16, 32))
    rows = optimize(network, batch=1, precision="fp32").plan.rows
    return [r.form.width for r in sorted(rows, key=lambda r: r.form.width if r.form else 0)
            if r.form and r.form.engine == "onnxruntime"]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "widths"),
    [
        ({0: 1.0, 8: 0.9, 16: 0.8, 32: 0.7}, [0, 8, 16, 32]),
        ({0: 1.0, 8: 1.2, 16: 0.5, 32: 0.4}, [0, 8, 16, 32]),
        ({0: 1.0, 8: 1.3, 16: 0.5, 32: 0.4}, [0, 8]),  # wider ones multiply even more zeros
        ({0: 1.0, 8: 0.5, 16: 0.7, 32: 0.1}, [0, 8, 16]),
        ({0: 1.3, 8: 0.1, 16: 0.1, 32: 0.1}, [0]),  # torch takes 1.0: not worth improving
        ({0: 1.2, 8: 1.2, 16: 1.2, 32: 1.2}, [0, 8, 16, 32]),
    ],
)
def test_wider_groups_are_tried_as_long_as_they_help(
    seconds: dict[int, float], widths: list[int], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes seconds to build."""
    network = tiny_network(CONFIG.replace(cardinality=16), CARD)
    monkeypatch.setattr(Engine, "installed", property(lambda self: self.name != "openvino"))
    clock.seconds = lambda form: seconds[form.width] if form.engine == "onnxruntime" else 1.0
    assert tried(clock, network, monkeypatch) == widths


# -- timing -----------------------------------------------------------------------------------


def test_speed_is_that_of_the_fastest_call(
    network: ResNeXt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes only slow a call down; a form that is far too slow is called once."""
    found = search(network)
    calls = iter([0.5, 0.25, 1.0])
    monkeypatch.setattr(Search, "seconds", lambda self, session: next(calls))
    assert found.speed(lambda x: (x, x)) == BATCH / 0.25
    assert next(calls, None) is None
    found.rows[None] = Measurement(None, 100.0)
    calls = iter([BATCH / 29.0, 0.001])
    assert found.speed(lambda x: (x, x)) == pytest.approx(29)
    calls = iter([BATCH / 31.0, 0.25, 0.125])
    assert found.speed(lambda x: (x, x)) == BATCH / 0.125


def rows_of(found: Search, **rates: float) -> dict[str, EngineConfig]:
    """Give a search forms of these speeds; capital names stand for plain forms."""
    forms = {
        name: EngineConfig(name.lower(), piece=BATCH if name.isupper() else 1) for name in rates
    }
    for name, form in forms.items():
        found.rows[form] = Measurement(form, rates[name])
        found.sessions[form] = lambda x: (x, x)
    return forms


def test_finals_time_the_fastest_in_turns(
    network: ResNeXt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three fastest, and plain forms, if they are nearly as fast."""
    found = search(network)
    forms = rows_of(found, a=100, b=99, c=98, d=97, E=82, F=79)
    order: list[str] = []
    names = {}
    for name, form in forms.items():
        session: Session = lambda x, name=name: (x, x)  # noqa: E731
        found.sessions[form] = session
        names[id(session)] = name

    def seconds(self: Search, session: Session) -> float:
        order.append(names[id(session)])
        return 1.0 / (1 + len(order))

    monkeypatch.setattr(Search, "seconds", seconds)
    found.finals()
    assert order == ["a", "b", "c", "E"] * 6
    assert found.rate(forms["E"]) == pytest.approx(BATCH * 25)
    assert found.rate(forms["a"]) == pytest.approx(BATCH * 22)
    assert (found.rate(forms["d"]), found.rate(forms["F"])) == (97, 79)


def test_engines_that_will_not_be_chosen_are_unloaded(network: ResNeXt) -> None:
    """Kept are the four fastest, the best of each engine, and plain forms."""
    found = search(network)
    forms = rows_of(found, a=100, b=99, c=98, d=97, e=96, F=1)
    slow = EngineConfig("a", streams=3)
    found.rows[slow], found.sessions[slow] = Measurement(slow, 50.0), lambda x: (x, x)
    plain = EngineConfig("a", piece=BATCH)
    found.rows[plain], found.sessions[plain] = Measurement(plain, 10.0), lambda x: (x, x)
    found.forget()
    assert set(found.sessions) == {*forms.values(), plain}


def test_the_best_of_each_precision_is_kept(network: ResNeXt) -> None:
    """With many fast forms in int8, the fp32 form that accuracy is compared with was unloaded."""
    found = search(network)
    rows_of(found, a=100, b=99, c=98, d=97)
    slow = {EngineConfig("a", p, streams=n): 50.0 / n for p in ("int8", "bf16") for n in (2, 3)}
    for form, rate in slow.items():
        found.rows[form], found.sessions[form] = Measurement(form, rate), lambda x: (x, x)
    found.forget()
    assert [form.precision for form in found.sessions if form in slow] == ["int8", "bf16"]
    assert found.preferred("int8") == [EngineConfig("a", "int8", streams=2)]
    assert len(found.preferred()) == 6


# -- Answers that are wrong -------------------------------------------------------------------


WRONG = (
    "a thousandth",
    "one image",
    "not a number",
    "infinite",
    "other images",
    "other classes",
    "nothing",
)


@pytest.mark.parametrize("how", WRONG)
def test_wrong_answers_are_refused(
    network: ResNeXt, clock: Clock, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next form that agrees is chosen, and the table says why."""
    clock.fastest("openvino", "torch")
    spoil(monkeypatch, clock, how, "openvino")
    quick = optimize(network, batch=BATCH, precision="fp32")
    assert chosen(quick.plan).form == quick.plan.form
    assert quick.plan.form.engine == "torch"
    refused = [row for row in quick.plan.rows if row.verdict.startswith("refused")]
    assert refused
    assert {row.form.engine for row in refused if row.form} == {"openvino"}
    words = "not finite" if how in ("not a number", "infinite") else "logits differ by"
    assert all(words in row.verdict for row in refused)
    text = " ".join(quick.explain().split())
    assert "refused" in text
    assert text.count("chosen") == 1
    agree(quick, network, images(5))
    assert "refused" in optimize(network, batch=BATCH, precision="fp32").explain()  # remembered


def test_many_fast_forms_may_all_be_wrong(
    network: ResNeXt, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many cores, one engine has more forms than are kept; the right one was unloaded."""
    monkeypatch.setattr(base, "core_count", lambda: 4)
    monkeypatch.setattr(searching, "_WIDTHS", (8, 16))
    clock.fastest("openvino", "torch")
    spoil(monkeypatch, clock, "a thousandth", "openvino")
    quick = optimize(network, batch=BATCH, precision="fp32")
    forms = [row.form for row in quick.plan.rows if row.form]
    assert sum(form.engine == "openvino" for form in forms) > 4
    assert quick.plan.form.engine == "torch"


@pytest.mark.parametrize("how", ["it fails", "ONNX Runtime fails"])
def test_engines_that_fail_are_rows(
    network: ResNeXt, clock: Clock, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine without a kernel for one layer must not end the search of the others."""
    clock.fastest("openvino", "torch")
    spoil(monkeypatch, clock, how, "openvino", "onnxruntime")
    quick = optimize(network, batch=BATCH, precision="fp32")
    assert quick.plan.form.engine == "torch"
    failed = [row for row in quick.plan.rows if row.verdict.startswith("failed")]
    assert {row.form.engine for row in failed if row.form} == {"openvino", "onnxruntime"}
    assert all("no kernel for this" in row.verdict for row in failed)
    assert "no kernel for this" in quick.explain()


@pytest.mark.parametrize("how", ["a thousandth", "not a number", "it fails"])
def test_nothing_agrees(
    network: ResNeXt, clock: Clock, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error lists each form with the reason, in one line."""
    spoil(monkeypatch, clock, how, *INSTALLED)
    with pytest.raises(InputError) as info:
        optimize(network, batch=BATCH, precision="fp32")
    for engine in INSTALLED:
        why = "failed" if how == "it fails" else "refused"
        assert re.search(rf"[:;] {engine} fp32: {why}", str(info.value)), engine
    assert "\n" not in str(info.value)


def test_networks_that_are_broken(network: ResNeXt) -> None:
    """NaN is not equal to NaN: every form of a broken network is refused."""
    with torch.no_grad():
        network.fc.bias[1] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        optimize(network, batch=BATCH, engine="torch")


# -- 16 bits ----------------------------------------------------------------------------------


def test_bf16_without_the_arithmetic(network: ResNeXt) -> None:
    """OpenVINO would compute in single precision under another name: its row has no speed.

    That row must be printed, too.
    """
    with torch.no_grad():
        network.fc.bias[2] += 100  # every image has the same class, in any precision
    quick = optimize(network, batch=BATCH, precision="bf16")
    assert quick.plan.form == EngineConfig("torch", "bf16", BATCH)
    (row,) = [r for r in quick.plan.rows if r.form and r.form.engine == "openvino"]
    assert (row.images_per_second, "no bf16 arithmetic" in row.verdict) == (0, True)
    text = quick.explain()
    assert "no bf16 arithmetic" in text
    assert "100.0% same" in text


def test_bf16_must_keep_the_class(
    network: ResNeXt, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """99.5 % of 64 images are all of them."""
    with torch.no_grad():
        network.fc.bias[2] += 100
    clock.fastest("torch")
    spoil(monkeypatch, clock, "other classes", "torch")
    with pytest.raises(InputError, match="% of the images keep their class"):
        optimize(network, batch=BATCH, precision="bf16")
