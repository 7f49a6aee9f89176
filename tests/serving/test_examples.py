"""`--example`: files that other programs read, checked with those programs where they are."""

from __future__ import annotations

import configparser
import http.client
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers import run_cli, wait_until
from serving_cases import photo, served
from serving_process import listens

from resnext.serving.examples import EXAMPLES, Example, example

FILE = "my models/100% photos.safetensors"


def units(text: str) -> dict[str, str]:
    """The unit files in an example, by name."""
    parts = re.split(r"# /etc/systemd/system/(\S+)\n", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_all_examples_have_a_name() -> None:
    """The choices of --example are those that can be printed."""
    assert get_args(Example) == EXAMPLES
    for kind in get_args(Example):
        assert example(kind, FILE).endswith("\n")


def test_the_command_prints_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And serves nothing; the file need not be there."""
    code, out, _ = run_cli(capsys, monkeypatch, "serve", FILE, "--example", "nginx")
    assert (code, out) == (0, example("nginx", FILE))
    code, _, err = run_cli(capsys, monkeypatch, "serve", FILE, "--example", "windows")
    assert code == 2
    assert "systemd" in err


def test_systemd_starts_the_file_given() -> None:
    """Also with spaces and percent signs, which are special in units."""
    found = units(example("systemd", FILE))
    assert list(found) == ["resnext.socket", "resnext.service"]
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(found["resnext.service"])
    service = parser["Service"]
    command = shlex.split(service["ExecStart"].replace("%%", "%"))
    assert command[1:] == ["serve", str(Path(FILE).absolute())]
    assert service["Type"] == "notify"
    assert int(service["TimeoutStopSec"]) > 30  # the server ends by itself within 30 s
    name = example("systemd", "resnext50_32x4d.a1_in1k")
    assert "serve resnext50_32x4d.a1_in1k\n" in name.replace(str(Path.cwd()) + "/", "")


def test_docker_starts_what_it_copies() -> None:
    """The command is JSON; one wrong quote makes it a shell line."""
    text = example("docker", FILE).replace("\\\n", "")
    command = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0])
    copied = json.loads(re.findall(r"^COPY (.*)$", text, re.MULTILINE)[0])
    assert copied == ["100% photos.safetensors", "/models/"]
    assert command[:3] == ["resnext", "serve", "/models/100% photos.safetensors"]
    assert "--token-file" in command
    health = json.loads(re.findall(r"^HEALTHCHECK .*?CMD (.*)$", text, re.MULTILINE)[0])
    compile(health[2], "health", "exec")


def test_compose_and_kubernetes_are_yaml() -> None:
    """What they say to the server fits what the image does."""
    yaml: Any = pytest.importorskip("yaml")
    service = yaml.safe_load(example("compose", FILE))["services"]["resnext"]
    assert service["volumes"] == ["./my models:/models:ro"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    parts = {one["kind"]: one for one in yaml.safe_load_all(example("kubernetes", FILE))}
    assert list(parts) == ["Deployment", "Service", "PodDisruptionBudget"]
    pod = parts["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    for selector in (
        parts["Deployment"]["spec"]["selector"]["matchLabels"],
        parts["Service"]["spec"]["selector"],
        parts["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    (container,) = pod["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert {one["name"] for one in container["volumeMounts"]} == {
        one["name"] for one in pod["spec"]["volumes"]
    }
    assert pod["spec"]["terminationGracePeriodSeconds"] > 30 + 5


def test_nginx_lets_through_what_the_server_takes() -> None:
    """Its own limits must not be lower than the server's, or above them without need."""
    text = example("nginx", FILE)
    assert "client_max_body_size 20m;" in text
    assert f"serve {shlex.quote(FILE)} --allow-host photos.example.org" in text
    assert text.count("{") == text.count("}")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_takes_it(tmp_path: Path) -> None:
    """Every setting exists; only the programs may be missing here."""
    paths = []
    for name, text in units(example("systemd", "photos.safetensors")).items():
        paths.append(tmp_path / name)
        paths[-1].write_text(text)
    command = ["systemd-analyze", "verify", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert [line for line in lines if "is not executable" not in line] == []


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program: installed, or unpacked from Debian's package."""
    if program := shutil.which("nginx"):
        return program
    if shutil.which("apt-get") is None:
        pytest.skip("needs nginx, or apt-get to fetch it")
    folder = tmp_path_factory.mktemp("nginx")
    subprocess.run(["apt-get", "download", "nginx"], cwd=folder, check=True, capture_output=True)
    subprocess.run(["dpkg-deb", "-x", *folder.glob("*.deb"), folder], check=True)
    return str(folder / "usr/sbin/nginx")


@pytest.mark.slow
def test_nginx_serves_as_the_example_says(nginx: str, tmp_path: Path) -> None:
    """Answers, limits, and /metrics that stays inside, through https and a real nginx."""
    files = f"-keyout {tmp_path}/key -out {tmp_path}/certificate"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x {files}"
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)
    user = "" if os.getuid() else "user root root;"  # whose the temporary folders are
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with served(hosts=("photos.example.org",)) as server:
        site = example("nginx", "x").replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        site = site.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
        site = re.sub(r"(ssl_certificate) \S+;", rf"\1 {tmp_path}/certificate;", site)
        site = re.sub(r"(ssl_certificate_key) \S+;", rf"\1 {tmp_path}/key;", site)
        text = f"{user} daemon off; pid {tmp_path}/pid; events {{}}\n"
        text += f"http {{ access_log off; {folders}\n{site} }}"
        (tmp_path / "nginx.conf").write_text(text)
        command = [nginx, "-e", str(tmp_path / "log"), "-c", str(tmp_path / "nginx.conf")]
        checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        context = ssl.create_default_context(cafile=str(tmp_path / "certificate"))
        context.check_hostname = False

        def ask(path: str, body: bytes | None = None) -> tuple[int, bytes]:
            method, host = "GET" if body is None else "POST", {"Host": "photos.example.org"}
            with closing(http.client.HTTPSConnection("127.0.0.1", port, context=context)) as one:
                one.request(method, path, body, host)
                response = one.getresponse()
                return response.status, response.read()

        with subprocess.Popen(command) as running:
            try:
                wait_until(lambda: listens(port))
                image = photo(7, side=400, kind="BMP")  # larger than nginx's buffer
                assert ask("/v1/predict", image) == server.send("/v1/predict", image)[::2]
                assert ask("/healthz") == (200, b"ok\n")
                assert ask("/metrics")[0] == 403
                assert ask("/v1/predict", bytes(20_000_001))[0] == 413
                assert 429 in (ask("/healthz")[0] for _ in range(1000))
            finally:
                running.terminate()
