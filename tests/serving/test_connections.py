"""Slow, large and strange requests, as bytes on a socket."""

from __future__ import annotations

import socket
import tempfile
from contextlib import suppress
from typing import Any

import pytest
from helpers import wait_until
from serving_cases import WAIT, Gated, Served, form, photo, read_response, served

HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"


def test_too_large_is_said_before_the_body() -> None:
    """A client that asks first must not be told to go on."""
    with served() as server, server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 20000001\r\nExpect: 100-continue\r\n\r\n")
        answer = connection.makefile("rb").read()  # to the end of the connection
        assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    with served() as server, server.connect() as connection:
        body = photo()
        length = b"Content-Length: %d\r\n" % len(body)
        connection.sendall(HEAD + length + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_response(connection)[0] == 200


def test_a_body_of_unknown_length_has_a_limit() -> None:
    with served(body=1000) as server, server.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"1f4\r\n" + bytes(500) + b"\r\n" + b"1f5\r\n" + bytes(501) + b"\r\n")
        status, headers, _ = read_response(connection)
        assert (status, headers["connection"]) == (413, "close")


@pytest.mark.parametrize("path", ["/nowhere", "/v1/predict"])
def test_a_client_that_sends_first_can_read_the_answer(path: str) -> None:
    """A connection that is closed with bytes unread is reset, and the answer is lost."""
    with served(body=1_000_000) as server:
        for _ in range(5):
            status, _ = server.ask(path, bytes(8_000_000))
            assert status == (404 if path == "/nowhere" else 413)


def test_a_refused_request_keeps_its_connection() -> None:
    """Else a server that is full would also have to greet everybody anew."""
    with served() as server, server.connect() as connection:
        body = photo()
        for path, status in (("/nowhere", 404), ("/predict?top=99", 422), ("/predict", 200)):
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            got, headers, _ = read_response(connection)
            assert got == status
            assert "connection" not in headers


@pytest.mark.parametrize("limits", [{"idle": 0.2}, {"whole": 0.2}])
def test_a_body_that_does_not_come(limits: dict[str, Any]) -> None:
    """uvicorn waited for it until the end of the server."""
    with served(**limits) as server, server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n12345")
        status, headers, _ = read_response(connection)
        assert (status, headers["connection"]) == (408, "close")
        assert connection.recv(1) == b""
        assert server.service.admission.images == 0


def test_a_body_that_comes_in_drops() -> None:
    """Each byte comes in time, the whole does not."""
    with served(idle=5.0, whole=0.3) as server, server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n")
        connection.settimeout(0.02)
        answer = b""
        while not answer:
            connection.sendall(b"x")
            try:
                answer = connection.recv(12)
            except TimeoutError:
                continue
        assert answer == b"HTTP/1.1 408"


@pytest.mark.parametrize(
    "start", [b"", b"POST /v1/pre", b"GET / HTTP/1.1\r\nHost: x\r\nA", b"\r\n"]
)
def test_a_header_that_does_not_come(start: bytes) -> None:
    """uvicorn has no limit for it: a few thousand such connections used up all descriptors."""
    with served(header=0.2) as server, server.connect() as connection:
        connection.sendall(start)
        assert connection.makefile("rb").read() == b""
        wait_until(lambda: not server.server.server_state.connections)


def test_a_second_header_that_does_not_come() -> None:
    with served() as server, server.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_response(connection)[0] == 200
        server.hurry(1, header=0.2)
        connection.sendall(b"GET /heal")
        assert connection.makefile("rb").read() == b""


@pytest.mark.parametrize("line", [b"A: " + bytes(20_000).replace(b"\0", b"a"), b"B: b\r\n" * 4000])
def test_a_header_that_does_not_end(line: bytes) -> None:
    """It was kept in memory, however long."""
    with served() as server, server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        answer = b""
        try:
            for _ in range(1000):
                connection.sendall(line)
        except OSError:
            pass
        else:
            raise AssertionError("it took 20 MB")
        assert answer == b""
        assert server.send("/healthz")[0] == 200


def test_connections_have_a_limit() -> None:
    with served(connections=2) as server:
        idle = [server.connect() for _ in range(2)]
        wait_until(lambda: len(server.server.server_state.connections) == 2)
        assert server.ask("/healthz")[1]["type"] == "urn:resnext:connections"
        more = [server.connect() for _ in range(2)]
        wait_until(lambda: len(server.server.server_state.connections) == 4)
        with server.connect() as refused:
            assert refused.makefile("rb").read() == b""
        for connection in (*idle, *more):
            connection.close()
        wait_until(lambda: not server.server.server_state.connections)
        assert server.send("/healthz")[0] == 200


def test_forms_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starlette's own parser writes parts above 1 MB to disk."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    for name in ("TemporaryFile", "NamedTemporaryFile", "mkstemp", "_TemporaryFileWrapper"):
        monkeypatch.setattr(tempfile, name, refuse)
    large = photo(kind="BMP", side=1000)
    assert len(large) > 2_000_000
    body, kind = form([large])
    with served() as server:
        assert server.ask("/v1/predict", body, Content_Type=kind)[0] == 200


def test_a_client_that_reads_nothing() -> None:
    """It asks for more and more: its connection ends, and with it what is kept for it."""
    with served(whole=0.3) as server:
        server.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection = server.connect()
        connection.settimeout(0.1)
        request = b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
        with suppress(TimeoutError, ConnectionError):
            for _ in range(1000):
                connection.sendall(request)
        wait_until(lambda: not server.server.server_state.connections)
        connection.close()
        assert server.send("/healthz")[0] == 200


def test_what_was_let_in_is_answered_at_the_end() -> None:
    """Not ready at once; no new work; a body that does not come has a last deadline."""
    model = Gated(shut=True)
    with served(model, last_bytes=0.2) as server:
        held, half, idle = server.connect(), server.connect(), server.connect()
        body = photo()
        held.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert model.entered.acquire(timeout=WAIT)
        half.sendall(HEAD + b"Content-Length: 100\r\n\r\n12345")
        wait_until(lambda: server.service.admission.images == 2)
        server.call(server.service.drain)
        for path in (b"/readyz", b"/v1/predict"):
            idle.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
            assert read_response(idle)[0] == (503 if path == b"/readyz" else 405)
        idle.sendall(HEAD + b"Content-Length: 5\r\n\r\n12345")
        assert b"draining" in read_response(idle)[2]
        assert read_response(half)[0] == 408
        server.server.should_exit = True
        wait_until(lambda: not server.server.servers or not server.server.servers[0].sockets)
        model.opened.set()
        assert read_response(held)[0] == 200
        for connection in (held, half, idle):
            connection.close()


def test_an_engine_that_hangs_does_not_stop_the_end() -> None:
    """Who still waits when the time is over is told; uvicorn said 500."""
    model = Gated(shut=True)
    with served(model, drain=1.0) as server, server.connect() as connection:
        body = photo()
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert model.entered.acquire(timeout=WAIT)
        server.call(server.service.drain)
        server.server.should_exit = True
        status, _, content = read_response(connection)
        assert (status, b"had to end" in content) == (503, True)
    model.opened.set()


def assert_refused(server: Served, status: int, **headers: Any) -> None:
    assert server.ask("/v1/model", **headers)[0] == status


def test_a_token() -> None:
    with served(token="a long secret") as server:
        for given in ("", "Bearer", "Bearer a long secre", "Basic a long secret", "Bearer ä"):
            status, headers, _ = server.send("/v1/model", Authorization=given)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert server.ask("/v1/model", Authorization="bearer a long secret")[0] == 200
        assert server.ask("/v1/predict", photo())[0] == 401
        assert server.send("/metrics")[0] == 401
        assert [server.send(path)[0] for path in ("/healthz", "/readyz")] == [200, 200]


def test_names_of_the_server() -> None:
    """A page whose name points here (DNS rebinding) could read answers."""
    with served(hosts=("photos.example.org",)) as server:
        for host in ("localhost", "127.0.0.1:1", "[::1]:8000", "10.0.0.7", "photos.example.org:80"):
            assert_refused(server, 200, Host=host)
        for host in (
            "evil.example",
            "localhost.evil.example",
            "",
            "127.0.0.1.evil.example",
            "[",
            "a b",
        ):
            assert_refused(server, 403, Host=host)


def test_pages_of_other_servers() -> None:
    with served(origins=("https://good.example",)) as server:
        own = f"http://127.0.0.1:{server.port}"
        for origin, status in ((own, 200), ("https://good.example", 200), ("null", 403)):
            assert_refused(server, status, Origin=origin)
        assert_refused(server, 403, Origin="https://evil.example")
        assert_refused(server, 403, Origin="http://[")
        _, headers, _ = server.send("/v1/model", Origin="https://good.example")
        assert headers["access-control-allow-origin"] == "https://good.example"
        _, headers, _ = server.send("/nowhere", Origin="https://good.example")
        assert headers["access-control-allow-origin"] == "https://good.example"
        asked: dict[str, Any] = {
            "Origin": "https://good.example",
            "Access-Control-Request-Method": "POST",
        }
        assert server.send("/v1/predict", method="OPTIONS", **asked)[0] == 200
    with served() as server:
        _, headers, _ = server.send("/v1/model")
        assert "access-control-allow-origin" not in headers
        assert_refused(server, 403, Origin="https://good.example")
