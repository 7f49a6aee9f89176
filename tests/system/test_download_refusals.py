"""What is not downloaded, and who sees a token: refusals, disks, addresses, proxies."""

from __future__ import annotations

import errno
import resource
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from file_server import (
    HALF,
    OLD,
    SHA256,
    SMALL,
    Answer,
    Server,
    get,
    kept,
    serving,
)

from resnext.errors import CheckpointError
from resnext.system import download as module
from resnext.system.cache import cache_folder

pytestmark = pytest.mark.usefixtures("waits")

# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_is_final(server: Server, status: int, waits: list[float]) -> None:
    """What is not there does not come by asking again."""
    server.usual = Answer(status=status)
    with pytest.raises(CheckpointError, match=f"{server.url} cannot be .* answers {status} "):
        get(server.url)
    assert len(server.asked) == 1
    assert not waits
    assert not kept()


@pytest.mark.parametrize("status", [500, 503, 429, 408, 416])
def test_a_bad_moment_is_not(server: Server, status: int, waits: list[float]) -> None:
    """Servers that are busy or restarted say so, and mean: later."""
    server.plan = [Answer(status=status)]
    assert get(server.url).read_bytes() == OLD
    assert waits == [0.4]
    server.usual = Answer(status=status)
    with pytest.raises(CheckpointError, match=f"answers {status} .*, 3 times in a row"):
        get(f"{server.url}?other", tries=3)
    assert len(server.asked) == 5
    assert waits == [0.4, 0.4, 0.8]


def test_a_part_that_is_already_complete(server: Server) -> None:
    """Stopped just before the end, it has nothing left to ask for: 416, today and every day."""
    server.plan = [Answer(cut=HALF), Answer(status=404)]
    with pytest.raises(CheckpointError, match="404"):
        get(server.url)
    (part,) = kept(".part")
    part.write_bytes(OLD)
    assert get(server.url).read_bytes() == OLD
    assert server.asked[2].range == f"bytes={len(OLD)}-"
    assert not kept(".part")


@pytest.mark.parametrize(
    "target",
    [
        "http://example.com/model.pth",
        "http://127.0.0.2/model.pth",
        "http://localhost.example.com/model.pth",
        "//example.com/model.pth",
        "ftp://127.0.0.1/model.pth",
        "file:///etc/passwd",
        "data:text/plain,model",
        "https:///model.pth",
    ],
)
def test_a_redirection_that_is_not_followed(
    server: Server, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sits on the line replaces the model as soon as one step is not encrypted."""
    connect, ports = socket.create_connection, []

    def create_connection(address: tuple[str, int], *args: Any, **options: Any) -> Any:
        ports.append(address[1])
        return connect(address, *args, **options)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    server.usual = Answer(status=302, headers={"Location": target})
    with pytest.raises(CheckpointError, match=r"only https URLs are|cannot be downloaded|no host"):
        get(server.url)
    assert len(server.asked) == 1
    assert ports == [server.server_port]
    assert not kept()


def test_a_redirection_to_itself(server: Server) -> None:
    """A server that wants a cookie redirects for ever."""
    server.usual = Answer(status=302, headers={"Location": "/models/model.pth"})
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        get(server.url)
    assert len(server.asked) < 15


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/model.pth",
        "http://127.0.0.1@example.com/model.pth",
        "http://127.0.0.1.example.com/model.pth",
        "http://10.0.0.1/model.pth",
        "HTTP://example.com/model.pth",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "ftp://127.0.0.1/model.pth",
        "data:text/plain,model",
        "javascript:1",
        "https://",
        "https:///model.pth",
        "https://[::1/model.pth",
        "https://a..b/model.pth",
        "http://127.0.0.1:port/model.pth",
        "http://127.0.0.1:99999/model.pth",
        "http://127.0.0.1:-1/model.pth",
        "//example.com/model.pth",
        "model.pth",
        "\0",
        "",
    ],
)
def test_no_such_url(url: str, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    """`load` of somebody's text must read no local file, and fail with an error of ours."""
    monkeypatch.setattr(socket, "create_connection", None)
    with pytest.raises(CheckpointError):
        get(url)
    assert not waits
    assert not kept("")


@pytest.mark.parametrize("name", ["RESNEXT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(server: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster's nodes every attempt to connect waits for minutes."""
    monkeypatch.setenv(name, "1")
    with pytest.raises(CheckpointError, match=r"not in the cache .* downloads are off"):
        get(server.url)
    assert not server.asked
    monkeypatch.setenv(name, "0")
    path = get(server.url)
    monkeypatch.setenv(name, "1")
    server.asked.clear()
    assert get(server.url) == path
    assert get(server.url, sha256=SHA256) == path
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="downloads are off"):
        get(server.url)
    assert not server.asked


# -- disks ------------------------------------------------------------------------------------


def test_a_home_that_is_no_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache folder that cannot be written to ends in a traceback of filelock."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckpointError, match=r"cannot be kept in .*file/cache"):
        get(server.url)
    assert not server.asked


@pytest.mark.parametrize("failing", ["mkdir", "open", "replace"])
def test_a_home_that_cannot_be_written(
    server: Server, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails there, it is an error of ours, and no half of a file stays."""

    def fail(*args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, failing, fail)
        with pytest.raises(CheckpointError, match=r"cannot be kept in .* Permission denied"):
            get(server.url)
    assert not kept()
    assert get(server.url).read_bytes() == OLD


def test_a_full_disk(server: Server) -> None:
    """What fits is kept, and continued when there is room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be kept in .* File too large"):
            get(server.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not kept()
    assert len(server.asked) == 1
    assert get(server.url).read_bytes() == OLD
    assert server.asked[1].range == f"bytes={HALF}-"


@pytest.mark.parametrize(
    "rest",
    [
        "..",
        ".",
        "",
        "/",
        "a/../../../../m.pth",
        "..%2f..%2f..%2fm.pth",
        "%2e%2e",
        "..\\..\\m.pth",
        ".hidden",
        "m.pth?name=../../../x",
        "m.pth#../../../x",
        "a b.pth",
        "C:m.pth",
        "nul\0m.pth",
        "m\n.pth",
        "~root",
        "$HOME",
        "Löwe 🦁.pth",
        "%F0%9F%A6%81.pth",
        "獅" * 300 + ".pth",
        "m" * 5000 + ".pth",
        "-rf",
        "*",
    ],
    ids=lambda rest: ascii(rest[:24]),
)
def test_names_stay_in_the_cache(server: Server, tmp_path: Path, rest: str) -> None:
    """A URL that ends in dots writes somewhere else; one in Unicode fails, or is too long."""
    server.usual = Answer(SMALL)
    url = f"{server.address}/{rest}"
    path = get(url)
    assert path.read_bytes() == SMALL
    assert path.resolve().parent.parent == cache_folder().resolve()
    assert path.name.isascii()
    assert path.name.strip(". ") == path.name
    assert len(path.name) <= 120
    assert path.suffix == ".pth" or not rest.endswith(".pth")
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]
    assert get(url) == path
    assert len(server.asked) == 1
    assert server.asked[0].path.isascii()


# -- proxies and tokens -----------------------------------------------------------------------


def test_proxies_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a company's proxy nothing else can be reached."""
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:2")
    url = "http://localhost:1/model.pth"
    assert get(url).read_bytes() == OLD
    assert [asked.path for asked in server.asked] == [url]
    (handler,) = (
        h for h in vars(module._opener())["handlers"] if isinstance(h, urllib.request.ProxyHandler)
    )
    assert vars(handler)["proxies"] == {"http": server.address, "https": "http://127.0.0.1:2"}
    monkeypatch.setenv("no_proxy", "localhost")
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        get(f"{url}?directly")
    assert len(server.asked) == 1


def test_the_token_is_for_the_hub_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that follows a redirection, or is sent to everybody, is everybody's."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    with serving() as other:
        server.plan = [Answer(status=302, headers={"Location": f"{other.address}/blob"})]
        assert get(server.url).read_bytes() == OLD
        assert server.asked[0].headers["authorization"] == "Bearer hf_secret"
        assert get(other.url).read_bytes() == OLD
        assert [asked.path for asked in other.asked] == ["/blob", "/models/model.pth"]
        assert not any("hf_secret" in str(asked) for asked in other.asked)


@pytest.mark.parametrize(
    ("endpoint", "sent"),
    [
        ("{}", True),
        ("{}/", True),
        ("{}/models", True),
        ("{}/mod", False),
        ("{:.17}", False),
        ("https://huggingface.co", False),
        ("", False),
        (None, False),
    ],
)
def test_who_gets_the_token(
    server: Server, endpoint: str | None, sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://huggingface.co.example.com begins like the Hub, and everything begins with ""."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    if endpoint is not None:
        monkeypatch.setenv("HF_ENDPOINT", endpoint.format(server.address))
    get(server.url)
    assert server.asked[0].headers.get("authorization") == ("Bearer hf_secret" if sent else None)
