"""What clients send that mean harm, or are broken. Only addresses of this machine are used."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_until
from hostile_bodies import damaged, encoded, fuzzed, png, sound_images
from PIL import Image
from sample_images import noise
from serving_cases import Gated, Served, form, served

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

WORST = {429, 503}
WAIT = 60  # seconds after which a test that hangs fails
SHORT: dict[str, Any] = {
    "header": 0.3,
    "idle": 0.3,
    "whole": 0.8,
}  # deadlines of a server for slow clients
PNG = encoded(Image.fromarray(noise(30, 30)), "PNG")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as one:
        yield one


def answers(server: Served) -> list[bytes]:
    """The whole answers to sound requests, byte for byte."""
    several, kind = form(sound_images())
    requests = [(PNG, "image/png"), *((one, "") for one in sound_images()), (several, kind)]
    found = []
    for body, kind in requests:
        status, _, content = server.send("/v1/predict?top=3&embedding=1", body, Content_Type=kind)
        assert status == 200, content
        found.append(content)
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def settle(server: Served, before: int) -> None:
    """Wait until the server has as many descriptors, images and bytes as before."""
    whole = server.service.admission
    wait_until(lambda: descriptors() <= before and whole.images == whole.bytes == 0)


@contextlib.contextmanager
def unharmed(server: Served) -> Iterator[None]:
    """Nothing that happens in this block changes answers or leaves anything behind."""
    first, before = answers(server), descriptors()
    yield
    settle(server, before)
    assert answers(server) == first


def allowed(status: int, content: bytes) -> None:
    """Whether a client may be answered so: never as if the server were at fault."""
    assert status <= 422 or status in WORST, (status, content)
    assert b"urn:resnext:internal" not in content
    assert b"urn:resnext:engine" not in content


# -- bodies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzzed_bodies(server: Served, count: int) -> None:
    """All are answered; memory does not grow with their number."""
    paths = ("/v1/predict", "/v1/predict?top=2&embedding=1", "/v1/embed", "/v1/explain")
    found: Counter[int] = Counter()

    def ask(request: tuple[int, tuple[bytes, str]]) -> int:
        number, (body, kind) = request
        path = paths[number % 4 if number % 8 < 4 else 0]
        status, _, content = server.send(path, body, Content_Type=kind)
        allowed(status, content)
        return status

    with unharmed(server), ThreadPoolExecutor(4) as clients:
        bodies = enumerate(fuzzed(count))
        memory: list[float] = []
        while portion := [one for _, one in zip(range(500), bodies, strict=False)]:
            found.update(clients.map(ask, portion))
            memory.append(server.metric("process_resident_memory_bytes"))
    assert found[200] > count // 20
    assert found[422] > count // 4
    assert found[400] > count // 50
    assert memory[-1] - memory[0] < 200e6


def test_long_images_need_no_more_memory_than_large_ones() -> None:
    """A hundred bytes became half a gigabyte where the shorter side, 1 here, was enlarged."""
    with served(pixels=100_000) as server:
        for length, status in ((100, 200), (1_000, 200), (3_000, 422)):
            line = png(1, length, zlib.compress(bytes(2 * length), 9))
            assert server.ask("/v1/predict", line)[0] == status


# -- what is sent instead of HTTP ------------------------------------------------------------------

OK = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
CLOSE = b"Connection: close\r\n"
SIZE = b"Content-Length: %d\r\n" % len(PNG)


def exchange(server: Served, sent: bytes, *, half: bool = False) -> bytes:
    """All that the server answers until it closes the connection."""
    with server.connect() as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
            if half:
                connection.shutdown(socket.SHUT_WR)
        return rest(connection)


def rest(connection: socket.socket) -> bytes:
    """What comes until the end of a connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


def statuses(content: bytes) -> list[int]:
    """The status codes of all responses."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", content)]


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n", [200]),
        (HEAD.replace(b"1.1", b"1.0") + SIZE + b"\r\n" + PNG, [200]),
        (b"GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n" + CLOSE + b"\r\n", [200]),
        (b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n" + CLOSE + b"\r\n", [403]),
        (b"GET /healthz HTTP/1.1\r\nHost: [::1\r\n" + CLOSE + b"\r\n", [403]),
        (b"GET /healthz HTTP/1.1\r\nHost: [oops]\r\n" + CLOSE + b"\r\n", [403]),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost:port\r\n" + CLOSE + b"\r\n", None),
        (b"GET /healthz HTTP/1.1\r\nHost: \xff\xfe\r\n" + CLOSE + b"\r\n", [403]),
        (b"GET /healthz HTTP/1.1\r\n" + CLOSE + b"\r\n", [403]),
        (HEAD + CLOSE + SIZE + b"Origin: http://[\r\n\r\n" + PNG, [403]),
        (HEAD + CLOSE + SIZE + b"Origin: null\r\n\r\n" + PNG, [403]),
        (HEAD + CLOSE + SIZE + b"Origin: https://evil.example\r\n\r\n" + PNG, [403]),
        (HEAD + b"Content-Length: -1\r\n\r\n" + PNG, [400]),
        (HEAD + b"Content-Length: +5\r\n\r\n" + PNG, [400]),
        (HEAD + b"Content-Length: 1e3\r\n\r\n" + PNG, [400]),
        (HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n" + PNG, [400]),
        (HEAD + SIZE + b"Content-Length: 1\r\n\r\n" + PNG, [400]),
        (HEAD + SIZE + b"Transfer-Encoding: chunked\r\n\r\n" + PNG, [400]),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n" + PNG, [400]),
        (HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + PNG, [400]),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", [400]),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", [400]),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n", [400]),
        (HEAD + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [422]),
        (HEAD + b"Content-Length: 20000001\r\n\r\n", [413]),
        (HEAD + b"Content-Length: 20000001\r\nExpect: 100-continue\r\n\r\n", [413]),
        (HEAD + CLOSE + SIZE + b"Expect: 100-continue\r\n\r\n" + PNG, [100, 200]),
        (HEAD + CLOSE + SIZE + b"Expect: a miracle\r\n\r\n" + PNG, [200]),
        (OK * 3 + LAST, [200] * 4),
        (HEAD + SIZE + b"\r\n" + PNG + LAST, [200, 200]),
        (b"\r\n\r\n" + LAST, [200]),
        (b"\0", [400]),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n X: folded\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX\0: y\r\n\r\n", [400]),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", [400]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", [400]),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n" + CLOSE + b"\r\n", None),
        (b"TRACE / HTTP/1.1\r\nHost: localhost\r\n" + CLOSE + b"\r\n", [405]),
        (b"GET //evil.example/%2e%2e/etc HTTP/1.1\r\nHost: localhost\r\n" + CLOSE + b"\r\n", None),
        (b"GET /%00%ff%ed%a0%80 HTTP/1.1\r\nHost: localhost\r\n" + CLOSE + b"\r\n", [404]),
        (b"GET /v1/model?\xff=%ff HTTP/1.1\r\nHost: localhost\r\n" + CLOSE + b"\r\n", None),
        (b"HEAD /v1/model HTTP/1.1\r\nHost: localhost\r\n" + CLOSE + b"\r\n", [200]),
        (
            b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade, close\r\n\r\n",
            [200],
        ),
    ],
)  # fmt: skip
def test_odd_requests(server: Served, sent: bytes, wanted: list[int] | None) -> None:
    """Each is answered, and the connection then ends; None: any answer that blames the client."""
    with unharmed(server):
        content = exchange(server, sent)
        found = statuses(content)
        assert found == wanted if wanted is not None else len(found) == 1
        allowed(max(found), content)
        assert b"Traceback" not in content


@pytest.mark.parametrize(
    "flood",
    [
        b"A" * 1_000_000,
        b"GET /" + b"a" * 1_000_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Y: z\r\n" * 200_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"z" * 1_000_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"z" * 1_000_000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"z" * 1_000_000,
        OK * 10_000 + b"GET /" + b"a" * 1_000_000,
    ],
)
def test_floods(server: Served, flood: bytes) -> None:
    """A header has an end; the connection of one that has none is closed early."""
    with unharmed(server):
        assert set(statuses(exchange(server, flood))) <= {200, 400}


def test_a_refused_body_leaves_the_connection_usable(server: Served) -> None:
    """The rest of a body that nobody reads was counted as the header of the next request."""
    body = bytes(500_000)
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with server.connect() as connection:
        connection.sendall(head + body[:1000])
        first = connection.recv(65536)
        assert statuses(first) == [404]
        connection.sendall(body[1000:] + LAST)
        assert statuses(rest(connection)) == [200]


def test_trailers_have_a_limit(server: Served) -> None:
    """They stand behind a body in chunks, and were kept without end."""
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%s\r\n" % (len(PNG), PNG)
    flood = b"X-Y: " + b"z" * 1000 + b"\r\n"
    sent = 0
    with unharmed(server), server.connect() as connection:
        connection.sendall(head + chunk + b"0\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 64_000_000:
                connection.sendall(flood * 100)
                sent += len(flood) * 100
        assert sent < 64_000_000
        assert statuses(rest(connection)) in ([], [400])


def test_what_follows_an_upgrade_is_ignored(server: Served) -> None:
    """A WebSocket is refused, and its frames do no harm."""
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n"
    with unharmed(server), server.connect() as connection:
        connection.sendall(ask)
        assert statuses(connection.recv(65536)) == [200]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(10):
                connection.sendall(b"\x81\x05hello" * 100)
        content = rest(connection)
        assert set(statuses(content)) <= {400}


def test_random_bytes_instead_of_http(server: Served) -> None:
    """Requests with a few bytes changed anywhere in their header."""
    rng = random.Random(0)
    sound = [LAST, HEAD + CLOSE + SIZE + b"\r\n" + PNG, OK + LAST]
    with unharmed(server):
        for _ in range(150):
            sent = bytearray(rng.choice(sound))
            for _ in range(rng.choice((1, 2, 5))):
                sent[rng.randrange(min(len(sent), 100))] = rng.choice(
                    b"\0\r\n :;,/\x7f\xff" + b"1a%"
                )
            content = exchange(server, bytes(sent), half=True)
            for status in statuses(content):
                allowed(status, content)


# -- sockets that are slow, cut or half closed ----------------------------------------------------


def misuse(server: Served, number: int) -> None:
    """One connection that is used in one of several bad ways, until the server has ended it."""
    body, kind = form([PNG] * 3)
    whole = HEAD + b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind.encode(), len(body))
    whole += body
    with server.connect() as connection:
        match number % 10:
            case 0:  # says nothing
                rest(connection)
            case 1:  # half a header
                connection.sendall(whole[:40])
                rest(connection)
            case 2:  # a header, byte by byte
                trickle(connection, whole[:60])
            case 3:  # half a body, and nothing more
                connection.sendall(whole[:-50])
                content = rest(connection)
                assert statuses(content) in ([408], [])  # none if the header came too late
            case 4:  # a body, byte by byte
                connection.sendall(whole[:-200])
                trickle(connection, whole[-200:-1])
            case 5:  # leaves in the middle of the body
                connection.sendall(whole[:-50])
            case 6:  # leaves without waiting for the answer
                connection.sendall(whole)
            case 7:  # resets the connection
                connection.sendall(whole)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            case 8:  # half closed in the middle of the body
                connection.sendall(whole[:-50])
                connection.shutdown(socket.SHUT_WR)
                rest(connection)
            case 9:  # asks for more than it reads
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)


def trickle(connection: socket.socket, content: bytes) -> None:
    """Send a byte at a time until the server has had enough."""
    connection.settimeout(0.02)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for byte in content:
            connection.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                if not connection.recv(65536):
                    return
        connection.settimeout(WAIT)
        rest(connection)


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_slow_cut_and_half_closed_sockets(count: int) -> None:
    """The server ends each of them by itself, and serves others meanwhile."""
    with (
        served(**SHORT) as server,
        unharmed(server),
        ThreadPoolExecutor(count) as clients,
    ):
        bad = [clients.submit(misuse, server, i) for i in range(count)]
        wait_until(lambda: statuses(exchange(server, LAST)) == [200])  # late headers end unanswered
        for one in bad:
            one.result(WAIT)


def test_clients_that_leave_are_not_computed() -> None:
    """Ten images wait behind a shut engine; their clients go, and only the last is computed."""
    model = Gated(batch=1, shut=True)
    with served(model) as server:
        before = descriptors()
        leaving = [server.connect() for _ in range(10)]
        for connection in leaving:
            connection.sendall(HEAD + SIZE + b"\r\n" + PNG)
        assert model.entered.acquire(timeout=WAIT)
        wait_until(lambda: server.service.admission.images == 10)
        for connection in leaving:
            connection.close()
        wait_until(lambda: server.service.admission.images == 0)
        model.opened.set()
        assert server.ask("/v1/predict", PNG)[0] == 200
        assert len(model.batches) <= 3  # warmed up, the one inside, and the last
        settle(server, before)


def test_more_sockets_than_descriptors(tmp_path: Path) -> None:
    """Nothing is left to accept with; the server goes on once there is."""
    with served() as server:
        resource = pytest.importorskip("resource")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        first = answers(server)
        many = [socket.socket() for _ in range(40)]
        highest = max(one.fileno() for one in many)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 6, hard))
            for one in many:
                one.settimeout(WAIT)
                one.connect(("127.0.0.1", server.port))
        finally:
            for one in many:
                one.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert answers(server) == first


# -- the Open Inference Protocol -------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"id": "\\ud800", "inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", '
        b'"data": ["%s"]}]}' % b64encode(PNG),
        b'{"inputs": [{"name": "\\ud800"}]}',
        b'{"inputs": [{"name": "images", "shape": [1], "datatype": "\\udfff"}]}',
        b'{"id": %s}' % (b"[" * 100_000 + b"]" * 100_000),
        b"[" * 1_000_000,
        b'{"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": '
        + b"[" * 900
        + b"]" * 900
        + b"}]}",
        b'{"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": ['
        + b",".join([b"1e400"] * 192)
        + b"]}]}",
        b'{"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": ['
        + b",".join([b"9" * 4000] * 192)
        + b"]}]}",
        b'{"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": ['
        + b",".join([b"NaN"] * 192)
        + b"]}]}",
        b'{"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": '
        b'{"a": 1}}]}',
        b'{"inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [[1], '
        b"[1, 2]]}]}",
        b'{"inputs": [{"name": "images", "datatype": ["BYTES"], "shape": [1], "data": []}]}',
        b'{"inputs": [{"name": "images", "datatype": {}, "shape": [1], "data": []}]}',
        b'{"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1e999], "data": []}]}',
        b'{"inputs": [{"name": "images", "datatype": "BYTES", "shape": [true], "data": []}]}',
        b"\xff\xfe{\x00}\x00",
        b"9" * 5000,
        b'"' + b"a" * 1_000_000 + b'"',
    ],
)
def test_strange_tensors(server: Served, body: bytes) -> None:
    """Values of other types, texts that are no Unicode, depths without end."""
    with unharmed(server):
        status, _, content = server.send(
            "/v2/models/model/infer", body, Content_Type="application/json"
        )
        allowed(status, content)
        assert status in (200, 400, 422)


def test_fuzzed_tensors(server: Served) -> None:
    """Bodies of the protocol, damaged, with any length of their JSON."""
    rng = random.Random(0)
    sound = (
        b'{"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "parameters": '
        b'{"binary_data_size": %d}}]}' % (len(PNG) + 4)
    )
    whole = sound + len(PNG).to_bytes(4, "little") + PNG
    with unharmed(server):
        for _ in range(150):
            length = str(rng.choice((len(sound), 0, rng.randrange(3000), -1, "x", "9" * 30)))
            status, _, content = server.send(
                "/v2/models/model/infer",
                damaged(whole, rng),
                Content_Type="application/octet-stream",
                Inference_Header_Content_Length=length,
            )
            allowed(status, content)
