"""Signals and overload: whatever was let in is answered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import serving_process
from helpers import tiny_network, wait_until
from serving_cases import Gated, photo, served
from serving_process import Load, process

import resnext
from resnext import Card, Preprocessing

SCRIPT = str(Path(serving_process.__file__))
TWICE_OR_OFTEN = pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])


@TWICE_OR_OFTEN
def test_sigterm_under_load(tmp_path: Path, times: int) -> None:
    """Every request that was let in is answered; then the process ends with 0."""
    for i in range(times):
        with process(SCRIPT, "0.02", log=tmp_path / "log") as server:
            load = Load(server.port, photo(), clients=8)
            wait_until(lambda load=load, i=i: load.counts["answered"] > 20 + 3 * i)
            server.signal(signal.SIGTERM)
            load.end()
            assert server.end() == 0, (tmp_path / "log").read_text()
            assert load.unanswered == []
            assert len(load.answers) == 1
            assert "Traceback" not in (tmp_path / "log").read_text()


@TWICE_OR_OFTEN
def test_sighup_under_load(tmp_path: Path, times: int) -> None:
    """Every request is answered by the version that its answer names; a damaged file is refused."""
    versions = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for i, version in enumerate(versions):
        card = Card(("a", "b", "c"), Preprocessing(size=32, resize=36), temperature=1 + i)
        resnext.save(tiny_network(card=card), version)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(versions[1].read_bytes()[:-1000])
    model, log = tmp_path / "model.safetensors", tmp_path / "log"

    def replace(source: Path) -> None:
        shutil.copy(source, tmp_path / "next")
        (tmp_path / "next").replace(model)

    replace(versions[0])
    arguments = ("-m", "resnext", "serve", str(model), "--port", "0")
    with process(*arguments, log=log) as server:
        load = Load(server.port, photo(level=7), clients=4)
        for i in range(times):
            before = load.counts["answered"]
            replace(damaged)
            server.signal(signal.SIGHUP)
            server.line("The model stays as it is.")
            replace(versions[(i + 1) % 2])
            server.signal(signal.SIGHUP)
            server.line("has replaced version")
            wait_until(lambda before=before: load.counts["answered"] > before + 10)
        server.signal(signal.SIGTERM)
        load.end()
        assert server.end() == 0, log.read_text()
    assert load.unanswered == []
    by_version = {json.loads(one)["model"]["version"]: one for one in load.answers}
    assert len(load.answers) == len(by_version) == 2
    assert "Traceback" not in log.read_text()


def test_sigterm_while_a_model_is_loaded(tmp_path: Path) -> None:
    """HUP and TERM together: the old model answers what was let in, and the process ends with 0."""
    model = tmp_path / "model.safetensors"
    resnext.save(tiny_network(card=Card(("a", "b"), Preprocessing(32, 36))), model)
    arguments = ("-m", "resnext", "serve", str(model), "--port", "0")
    with process(*arguments, log=tmp_path / "log") as server:
        load = Load(server.port, photo(), clients=4)
        wait_until(lambda: load.counts["answered"] > 10)
        for _ in range(5):
            server.signal(signal.SIGHUP)
        server.signal(signal.SIGTERM)
        load.end()
        assert server.end() == 0, (tmp_path / "log").read_text()
        assert load.unanswered == []


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority")
def test_threads_that_compute_give_way_to_refusals() -> None:
    """On two cores, refusals waited for half a second behind decoders and the engine."""
    usual = os.getpriority(os.PRIO_PROCESS, os.getpid())
    with served():
        threads = [x for x in threading.enumerate() if x.name.startswith("resnext-")]
        ids = [x.native_id for x in threads if x.native_id is not None]
        assert len(ids) > 1
        assert min(os.getpriority(os.PRIO_PROCESS, one) for one in ids) > usual


def test_overload_at_ten_times_the_capacity() -> None:
    """What exceeds the queue is refused while the engine is busy; nothing is computed in vain."""
    model = Gated(batch=4, shut=True)
    with served(model, images=12, plan=False) as server, ThreadPoolExecutor(120) as clients:
        model.opened.set()
        assert server.ask("/v1/predict", photo())[0] == 200
        model.opened.clear()
        warm = sum(map(len, model.batches))
        asked = [clients.submit(server.send, "/v1/predict", photo(i)) for i in range(120)]
        wait_until(lambda: sum(one.done() for one in asked) == 108)
        early = [one.result() for one in asked if one.done()]
        assert {status for status, _, _ in early} == {429}
        assert all(1 <= int(headers["retry-after"]) <= 60 for _, headers, _ in early)
        assert server.send("/healthz")[0] == 200
        model.opened.set()
        assert sorted(one.result()[0] for one in asked) == [200] * 12 + [429] * 108
        assert sum(map(len, model.batches)) - warm == 12
        assert len(model.batches) <= 3 + 4  # not one image at a time
        assert server.metric("resnext_queue_images") == 0


def test_an_overloaded_engine_computes_only_what_is_answered() -> None:
    """Clients that retry at once, ten times as many as fit: each computed image is a 200."""
    model = Gated(batch=4)
    with served(model, images=8) as server, ThreadPoolExecutor(80) as clients:
        warm = sum(map(len, model.batches))

        def ask(number: int) -> list[int]:
            return [server.send("/v1/predict", photo(number))[0] for _ in range(5)]

        found = [status for one in clients.map(ask, range(80)) for status in one]
        assert set(found) <= {200, 429}
        assert found.count(200) == sum(map(len, model.batches)) - warm
        assert server.metric('resnext_images_total{outcome="answered"}') == found.count(200)
