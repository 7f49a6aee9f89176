"""Admission and batches: what is computed together, in which order, and what is left out.

The engine of these tests waits at a gate, so that nothing depends on speed.
"""

from __future__ import annotations

import json
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import wait_until
from serving_cases import WAIT, Gated, Served, form, photo, read_response, served

from resnext.serving import admission as admission_module


def held(server: Served, model: Gated, pool: ThreadPoolExecutor, level: int = 1) -> Future[Any]:
    """A request whose image is in the engine, which is shut."""
    first = pool.submit(server.ask, "/v1/predict", photo(level))
    assert model.entered.acquire(timeout=WAIT)
    return first


def decoded(server: Served, count: int) -> None:
    """Wait until so many images are ready for the engine."""
    wait_until(lambda: len(server.service._batcher._decoded) == count)  # pyright: ignore


def test_batches_fill_by_themselves() -> None:
    """The engine takes what is there, oldest first, up to its batch; it waits for nothing."""
    model = Gated(batch=4, shut=True)
    with served(model) as server, ThreadPoolExecutor(16) as pool:
        answers = [held(server, model, pool)]
        for i in range(9):
            answers.append(pool.submit(server.ask, "/v1/predict", photo(10 * i)))
            decoded(server, i + 1)
        model.opened.set()
        assert [one.result()[0] for one in answers] == [200] * 10
    assert model.batches == [[1], [0, 10, 20, 30], [40, 50, 60, 70], [80]]


def test_a_request_is_spread_over_batches() -> None:
    model = Gated(batch=4, shut=True)
    body, kind = form([photo(10 * i) for i in range(10)])
    with served(model) as server, ThreadPoolExecutor(2) as pool:
        first = held(server, model, pool)
        large = pool.submit(server.ask, "/v1/predict", body, Content_Type=kind)
        decoded(server, 10)
        model.opened.set()
        assert first.result()[0] == large.result()[0] == 200
    assert model.batches[1:] == [[0, 10, 20, 30], [40, 50, 60, 70], [80, 90]]


def test_few_pixels_are_decoded_ahead() -> None:
    """Waiting images are kept as files: pixels of a hundred would be gigabytes."""
    model = Gated(batch=1, shut=True)
    with served(model) as server, ThreadPoolExecutor(16) as pool:
        first = held(server, model, pool)
        rest = [pool.submit(server.ask, "/v1/predict", photo()) for _ in range(9)]
        decoded(server, 4)
        batcher: Any = server.service._batcher
        wait_until(lambda: len(batcher._waiting) == 5)
        assert batcher._ahead == 4
        model.opened.set()
        assert {one.result()[0] for one in [first, *rest]} == {200}


def test_who_left_is_not_computed() -> None:
    model = Gated(shut=True)
    with served(model) as server, ThreadPoolExecutor(2) as pool:
        first = held(server, model, pool)
        with server.connect() as connection:
            send_raw(connection, photo(50))
            decoded(server, 1)
        wait_until(lambda: server.service.admission.images == 1)
        model.opened.set()
        assert first.result()[0] == 200
        wait_until(lambda: server.metric('resnext_dropped_total{reason="left"}') == 1)
        assert server.metric('resnext_requests_total{route="/v1/predict",code="499"}') == 1
    assert model.batches == [[1]]


def test_who_waits_too_long_is_told() -> None:
    """The answer comes at the deadline, even while the engine hangs."""
    model = Gated(shut=True)
    with served(model, deadline=0.2) as server, ThreadPoolExecutor(2) as pool:
        first = held(server, model, pool)
        status, headers, _ = server.send("/v1/predict", photo(50))
        assert (status, first.result()[0]) == (503, 503)
        assert int(headers["retry-after"]) >= 1
        assert first.result()[1]["type"] == "urn:resnext:deadline"
        model.opened.set()
        wait_until(lambda: server.metric('resnext_dropped_total{reason="deadline"}') == 1)
        assert server.ask("/v1/predict", photo(70))[0] == 200
    assert model.batches == [[1], [70]]


def test_a_poisonous_image_fails_alone() -> None:
    class Choking(Gated):
        def pixels(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            logits = super().pixels(x)
            if x.max() > 200:
                raise MemoryError
            return logits

    model = Choking(shut=True)
    with served(model) as server, ThreadPoolExecutor(8) as pool:
        first = held(server, model, pool)
        rest: list[Future[Any]] = []
        for i, level in enumerate([10, 250, 20, 30]):
            rest.append(pool.submit(server.ask, "/v1/predict", photo(level)))
            decoded(server, i + 1)
        model.opened.set()
        assert first.result()[0] == 200
        assert [one.result()[0] for one in rest] == [200, 503, 200, 200]
        assert rest[1].result()[1]["type"] == "urn:resnext:engine"
        assert server.ask("/v1/predict", photo())[0] == 200
        assert server.metric('resnext_images_total{outcome="failed"}') == 1
    assert model.batches[1:] == [[10, 250, 20, 30], [10], [250], [20], [30], [100]]


def test_the_server_says_when_it_is_full() -> None:
    """Before the body is read; a client must not send 20 MB to hear that."""
    model = Gated(shut=True)
    with served(model, images=2) as server, ThreadPoolExecutor(4) as pool:
        first = held(server, model, pool)
        second = pool.submit(server.ask, "/v1/predict", photo())
        decoded(server, 1)
        with server.connect() as connection:
            connection.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n"
            )
            status, headers, _ = read_response(connection)
        assert status == 429
        assert 1 <= int(headers["retry-after"]) <= 60
        assert server.send("/healthz")[0] == 200
        model.opened.set()
        assert (first.result()[0], second.result()[0]) == (200, 200)
        wait_until(lambda: server.service.admission.images == 0)
        assert server.ask("/v1/predict", photo())[0] == 200


def test_a_full_server_refuses_without_its_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most requests are refused under overload: what that costs, the others lose."""
    model = Gated(shut=True)
    with (
        served(model, images=1) as server,
        ThreadPoolExecutor(1) as pool,
        server.connect() as connection,
    ):
        first = held(server, model, pool)
        with monkeypatch.context() as patch:
            patch.setattr(server.service.admission, "enter", None)  # what routes call
            for _ in range(2):
                send_raw(connection, photo())
                status, headers, content = read_response(connection)
                assert (status, json.loads(content)["type"]) == (429, "urn:resnext:overloaded")
                assert headers["x-content-type-options"] == "nosniff"
                assert "connection" not in headers
        counted = 'resnext_requests_total{route="/v1/predict",code="429"}'
        assert server.metric(counted) == 2
        model.opened.set()
        assert first.result()[0] == 200
        wait_until(lambda: server.service.admission.images == 0)
        send_raw(connection, photo())
        assert read_response(connection)[0] == 200
        send_raw(connection, b"")
        assert read_response(connection)[0] == 422


def test_a_refused_body_that_does_not_come() -> None:
    model = Gated(shut=True)
    with served(model, images=1) as server, ThreadPoolExecutor(1) as pool:
        first = held(server, model, pool)
        with server.connect() as connection:
            server.hurry(2, header=0.2)
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n1"
            connection.sendall(head)
            assert read_response(connection)[0] == 429
            assert connection.recv(1) == b""
        model.opened.set()
        assert first.result()[0] == 200


def test_images_of_a_form_count() -> None:
    body, kind = form([photo()] * 3)
    with served(images=2) as server:
        assert server.ask("/v1/predict", body, Content_Type=kind)[0] == 429
        assert server.service.admission.images == server.service.admission.bytes == 0


@pytest.mark.parametrize("chunked", [False, True])
def test_bytes_count(chunked: bool) -> None:
    """Also those of a body whose length is not said before."""
    with served(queue_bytes=1000) as server, server.connect() as connection:
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1001"
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + length + b"\r\n\r\n")
        if chunked:
            connection.sendall(b"3e9\r\n" + bytes(1001) + b"\r\n")
        assert read_response(connection)[0] == 429
        wait_until(lambda: server.service.admission.bytes == 0)


def test_when_to_come_again() -> None:
    """It follows from what is waiting and from the time that an image takes."""
    clock = iter([10.0, 12.0, 14.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        admission = admission_module.Admission(100, 100)
        for _ in range(3):
            admission.computed(4, busy=True) if admission._last else admission.computed(4, False)
    admission.images = 20
    assert admission.retry_after() == 10  # 4 images in 2 s


def test_nothing_is_answered_before_the_model_is_there() -> None:
    with served(load=False) as server:
        for path in ("/readyz", "/v1/model"):
            status, headers, _ = server.send(path)
            assert (status, headers["retry-after"]) == (503, "1")
        assert server.ask("/v1/predict", photo())[1]["type"] == "urn:resnext:loading"
        assert server.send("/healthz")[0] == 200
        assert server.metric("resnext_ready") == 0


def send_raw(connection: socket.socket, body: bytes) -> None:
    head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
