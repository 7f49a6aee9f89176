"""Speed, memory and manners of `resnext serve` under load; the clients are on the same machine.

Run alone on the machine: `python benchmarks/serving.py PART…`, by default all but `litserve`. What
all parts need is made first: JPEGs of 500×375, a resnext50_32x4d and a small network, with plans.
FOLDER keeps them. SECONDS_EACH is how long each load lasts, by default 30. Parts:

    load       64 clients, resnext50_32x4d: throughput relative to `predict --out` on the same
               JPEGs, latency, /healthz meanwhile, memory
    small      CPU time of a request to a server whose decoding and engine cost nothing
    memory     memory after 2,000 and 22,000 requests of mixed sizes and formats
    start      seconds until it is ready, with a plan
    overload   ten times as many clients, which is more than the queue takes: good answers a second,
               and how quickly the others are refused; with both networks
    litserve   the same load as in the first part, but forms, for `resnext serve` and for LitServe
               with the same engine; LITSERVE names the Python of an environment with litserve and
               resnext
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from inference import model, photographs
from PIL import Image

from resnext.system.cpu import core_count, cpu_name

SECONDS = float(os.environ.get("SECONDS_EACH", "30"))
CLIENTS = 64
IMAGES = 600
BATCH = 16
SPAWN = multiprocessing.get_context("spawn")


def main(parts: Sequence[str]) -> None:
    """Measure the given parts, or all of them but LitServe's."""
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"There is no part {', '.join(sorted(unknown))}, only {', '.join(PARTS)}.")
    with tempfile.TemporaryDirectory() as temporary:
        measure(Path(os.environ.get("FOLDER", temporary)), parts)


def measure(folder: Path, parts: Sequence[str]) -> None:
    """Measure the given parts with the files in a folder."""
    prepare(folder)
    names = ("uvicorn", "starlette", "torch", "onnxruntime", "openvino")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    for part in parts or [name for name in PARTS if name != "litserve"]:
        print(f"\n== {part}\n{cpu_name()}, {core_count()} threads, {versions}", flush=True)
        PARTS[part](folder)


def prepare(folder: Path) -> None:
    """Photos and models, unless they are there."""
    photos = folder / "photos"
    if not photos.is_dir():
        photos.mkdir(parents=True)
        photographs(photos, IMAGES)
    if not (folder / "model.safetensors").is_file():
        model(folder, BATCH)
    if not (folder / "small.safetensors").is_file():
        import resnext

        network = resnext.create("resnext29_8x64d", num_classes=10, channels=(8, 16, 32)).eval()
        network.card = resnext.Card(tuple("0123456789"), resnext.Preprocessing(size=32, resize=32))
        resnext.save(network, folder / "small.safetensors")
        resnext.optimize(folder / "small.safetensors", batch=BATCH).save_plan(
            folder / "small.safetensors"
        )


# -- servers ---------------------------------------------------------------------------------------


class Server:
    """A server in a process of its own."""

    def __init__(self, popen: subprocess.Popen[str], port: int, ready: float) -> None:
        self.popen, self.port, self.ready = popen, port, ready

    def get(self, path: str) -> bytes:
        """The body of a response."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as response:
            return response.read()

    def metric(self, line: str) -> float:
        """A metric by its name with labels."""
        found = re.search(f"^{re.escape(line)} (.*)$", self.get("/metrics").decode(), re.M)
        return float(found[1]) if found else 0.0

    @property
    def processes(self) -> list[int]:
        """The process and its descendants."""
        found = [self.popen.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return found

    @property
    def megabytes(self) -> float:
        """Memory of all its processes."""
        pages = sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.processes
        )
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all its processes."""
        found = 0
        for pid in self.processes:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found += int(fields[11]) + int(fields[12])
        return found / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def started(command: Sequence[str], port: int | None = None, **env: str) -> Iterator[Server]:
    """A server, once it is ready. Its log is thrown away; none of its processes is left."""
    began = time.perf_counter()
    popen = subprocess.Popen(
        [*command],
        stdout=subprocess.PIPE if port is None else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **env},
    )
    try:
        if port is None:
            assert popen.stdout is not None
            port = int(popen.stdout.readline().rstrip().rpartition(":")[2])
            path = "/readyz"
        else:
            path = "/health"
        server = Server(popen, port, 0.0)
        while True:
            try:
                server.get(path)
                break
            except OSError:
                if popen.poll() is not None:
                    raise
                time.sleep(0.02)
        server.ready = time.perf_counter() - began
        yield server
    finally:
        children = Server(popen, 0, 0.0).processes[1:] if popen.poll() is None else []
        popen.terminate()
        popen.wait(60)
        for pid in children:  # LitServe leaves those that compute
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def ours(folder: Path, name: str = "model") -> contextlib.AbstractContextManager[Server]:
    """`resnext serve`."""
    file = str(folder / f"{name}.safetensors")
    return started([sys.executable, "-m", "resnext", "serve", file, "--port", "0"])


# -- clients ---------------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    """Sends one request after another over a connection: little work for each."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.got = b""

    def connection_made(self, transport: Any) -> None:
        """Send the first request."""
        self.transport = transport
        self.load.open.add(self)
        self.ask()

    def ask(self) -> None:
        """Send a request."""
        self.got, self.began = b"", time.perf_counter()
        self.transport.write(next(self.load.requests))

    def data_received(self, data: bytes) -> None:
        """Read a response; send the next request."""
        self.got += data
        head, found, body = self.got.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if length is None or len(body) < int(length[1]):
            return
        now = time.perf_counter()
        self.load.done(int(head[9:12]), now - self.began, now)
        if self.load.running(now):
            if head[9:12] == b"429":
                pause = self.load.pause * random.uniform(0.5, 1.5)
                asyncio.get_running_loop().call_later(pause, self.ask)
            else:
                self.ask()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count a connection that the server closed."""
        self.load.open.discard(self)
        if self.load.running(time.perf_counter()):
            self.load.done(0, 0.0, time.perf_counter())
        if not self.load.open:
            self.load.end.set()


class Load:
    """Clients on one machine.

    Args:
        port: Where the server listens.
        requests: What they send, without end.
        clients: Their number.
        seconds: How long; the first tenth is not measured.
        count: End after so many requests instead.
        pause: Mean of the seconds after which a client that was refused comes again; with equal
            pauses all clients would always come at once.
    """

    def __init__(
        self,
        port: int,
        requests: Iterator[bytes],
        clients: int = CLIENTS,
        seconds: float = SECONDS,
        count: int | None = None,
        pause: float = 0.0,
    ) -> None:
        self.port, self.requests, self.clients = port, requests, clients
        self.seconds, self.count, self.pause = seconds, count, pause
        self.open: set[Client] = set()
        self.codes: Counter[int] = Counter()
        self.latencies: dict[int, list[float]] = {}
        self.all = 0

    def run(self) -> Load:
        """Send until the end."""
        import uvloop

        began = time.process_time(), time.perf_counter()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._run())
        self.cores = (time.process_time() - began[0]) / (time.perf_counter() - began[1])
        return self

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self.end = asyncio.Event()
        self.began = time.perf_counter()
        for _ in range(self.clients):  # not all at the same moment
            await loop.create_connection(lambda: Client(self), "127.0.0.1", self.port)
            await asyncio.sleep(0.05 * self.seconds / self.clients)
        await self.end.wait()

    def running(self, now: float) -> bool:
        """Whether to send more."""
        if self.count is not None:
            return self.all < self.count
        return now - self.began < self.seconds

    def done(self, code: int, seconds: float, now: float) -> None:
        """Note a response; code 0 is a lost connection."""
        self.all += 1
        if self.count is None and not 0.1 < (now - self.began) / self.seconds <= 1:
            return
        self.codes[code] += 1
        self.latencies.setdefault(code, []).append(seconds)

    @property
    def throughput(self) -> float:
        """Good answers a second."""
        return self.codes[200] / (0.9 * self.seconds)

    def quantile(self, share: float, code: int = 200) -> float:
        """Milliseconds of a response."""
        return 1000 * float(np.quantile(self.latencies[code], share))


def raw(images: Sequence[bytes], path: str = "/v1/predict?top=1") -> Iterator[bytes]:
    """Requests whose body is the image, in turn."""
    wholes = [
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: %d"
        b"\r\n\r\n%s" % (path.encode(), len(image), image)
        for image in images
    ]
    while True:
        yield from wholes


def forms(
    images: Sequence[bytes], path: str = "/v1/predict?top=1", field: str = "images"
) -> Iterator[bytes]:
    """Requests with one image in a form, in turn."""
    wholes = []
    for image in images:
        body = (
            b'--edge\r\nContent-Disposition: form-data; name="%s"; filename="a.jpg"\r\n'
            b"Content-Type: image/jpeg\r\n\r\n%s\r\n--edge--\r\n" % (field.encode(), image)
        )
        wholes.append(
            b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; "
            b"boundary=edge\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)
        )
    while True:
        yield from wholes


def photos(folder: Path) -> list[bytes]:
    """The JPEGs."""
    return [path.read_bytes() for path in sorted((folder / "photos").iterdir())]


class Probe(threading.Thread):
    """Asks for /healthz ten times a second."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server, self.found, self.stop = server, list[float](), threading.Event()

    def run(self) -> None:
        """Ask until `stop` is set."""
        with socket.create_connection(("127.0.0.1", self.server.port)) as connection:
            while not self.stop.wait(0.1):
                began = time.perf_counter()
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                got = b""
                while not got.endswith(b"\r\n\r\nok\n"):
                    got += connection.recv(4096)
                assert got.startswith(b"HTTP/1.1 200")
                self.found.append(1000 * (time.perf_counter() - began))


# -- parts -----------------------------------------------------------------------------------------


def load(folder: Path) -> None:
    """Throughput, latency, /healthz and memory."""
    images = photos(folder)
    alone = [predicted(folder)]
    with ours(folder) as server:
        Load(server.port, raw(images), seconds=5).run()
        probe = Probe(server)
        probe.start()
        found = Load(server.port, raw(images)).run()
        probe.stop.set()
        probe.join()
        memory = server.megabytes
        sums, counts = (server.metric(f"resnext_batch_images_{name}") for name in ("sum", "count"))
    alone.append(predicted(folder))
    report(found, alone)
    print(f"/healthz: p99 {np.quantile(probe.found, 0.99):.0f} ms of {len(probe.found)}")
    print(f"memory: {memory:.0f} MB; {sums / counts:.1f} images in a batch")


def report(found: Load, alone: Sequence[float]) -> None:
    """Print throughput and latency."""
    base = float(np.mean(alone))
    each = ", ".join(f"{one:.2f}" for one in alone)
    print(f"predict --out: {base:.2f} images/s ({each})")
    print(
        f"{found.clients} clients for {found.seconds:g} s: {found.throughput:.2f} images/s, "
        f"{found.throughput / base:.1%} of predict --out; codes {dict(found.codes)}"
    )
    half, most = found.quantile(0.5), found.quantile(0.99)
    share = most / 1000 * found.throughput / found.clients
    print(f"p50 {half:.0f} ms, p99 {most:.0f} ms, which is {share:.2f} × clients / throughput")


def predicted(folder: Path) -> float:
    """Images per second of `predict --out`, without its start."""
    code = (
        "import sys; from pathlib import Path\n"
        "from resnext.inference.opener import open_runner\n"
        "from resnext.prediction.files import predict_files\n"
        "folder = Path(sys.argv[1]); runner = open_runner(folder / 'model.safetensors')\n"
        "done = predict_files(runner, [folder / 'photos'], folder / 'out.csv', overwrite=True)\n"
        "print(done.images_per_second)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


FREE = """
import sys
import numpy as np
from resnext.serving.model import Model
from resnext.serving.run import serve

blank, outputs, known = np.zeros((32, 32, 3), np.uint8), Model.outputs, {}

def constant(self, x):
    if not known:
        known[0] = outputs(self, np.stack([blank] * self.batch))
    return tuple(values[: len(x)] for values in known[0])

Model.pixels, Model.outputs = lambda self, source: blank, constant
serve(sys.argv[1], port=0)
"""
"""A server whose decoding and engine cost nothing."""


def small(folder: Path) -> None:
    """CPU time of a request but for decoding and the engine: of a server without them."""
    images = photos(folder)
    for title, requests in (("raw", raw(images)), ("multipart", forms(images))):
        with started([sys.executable, "-c", FREE, str(folder / "small.safetensors")]) as server:
            Load(server.port, requests, clients=16, seconds=2).run()
            cpu = server.cpu_seconds
            found = Load(server.port, requests, clients=16, seconds=SECONDS / 2).run()
            cpu = (server.cpu_seconds - cpu) / found.all
            sums, counts = (
                server.metric(f"resnext_batch_images_{name}") for name in ("sum", "count")
            )
        print(
            f"{title}: {1000 * cpu:.2f} ms CPU of a request; {found.throughput:.0f} requests/s, "
            f"{sums / counts:.1f} images in a batch"
        )


def mixed() -> list[bytes]:
    """Images of many sizes and formats."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(60):
        side = int(rng.integers(20, 500))
        noise = rng.integers(0, 256, (side // 8 + 1, side // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((side, int(rng.integers(20, 500))))
        file = io.BytesIO()
        image.save(file, ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")[i % 6])
        found.append(file.getvalue())
    return found


def memory(folder: Path) -> None:
    """Memory of the process, which must not grow."""
    images = mixed()
    with ours(folder, "small") as server:
        first = Load(server.port, raw(images), clients=16, count=2_000).run()
        at_first = server.megabytes
        more = Load(server.port, raw(images), clients=16, count=20_000).run()
        at_last = server.megabytes
    print(f"codes {dict(first.codes + more.codes)}")
    print(
        f"{at_first:.0f} MB after 2,000 requests, {at_last:.0f} MB after 22,000: "
        f"{at_last / at_first - 1:+.1%}"
    )


def start(folder: Path) -> None:
    """Seconds from the start of the process until /readyz says so."""
    for name in ("model", "small"):
        seconds, held = list[float](), list[float]()
        for _ in range(5):
            with ours(folder, name) as server:
                seconds.append(server.ready)
                held.append(server.megabytes)
        print(f"{name}: ready after {min(seconds):.2f} s, the least of five; {held[-1]:.0f} MB")


def overload(folder: Path, names: Sequence[str] = ("model", "small")) -> None:
    """Good answers a second with ten times as many clients."""
    images = photos(folder)
    for name in names:
        with ours(folder, name) as server, ProcessPoolExecutor(1, SPAWN) as beside:
            Load(server.port, raw(images), seconds=3).run()
            began = server.cpu_seconds
            peak = Load(server.port, raw(images), seconds=SECONDS / 2).run()
            cost = (server.cpu_seconds - began) / peak.all
            print(
                f"{name}: {peak.throughput:.1f}/s with {peak.clients} clients, {dict(peak.codes)}; "
                f"{1000 * cost:.2f} ms CPU each, clients take {peak.cores:.2f} cores"
            )
            for pause in (1.0, 0.25):
                single = beside.submit(refusals, server.port, images[0], SECONDS / 2)
                found = Load(server.port, raw(images), 10 * CLIENTS, SECONDS / 2, pause=pause).run()
                offered = sum(found.codes.values()) / (0.9 * found.seconds)
                print(
                    f"  {found.clients} clients that come again after {pause:g} s: "
                    f"{offered:.0f}/s, {offered / peak.throughput:.1f} × the peak, of which good "
                    f"{found.throughput:.1f}/s, {found.throughput / peak.throughput:.1%} of it; "
                    f"{dict(found.codes)}; clients take {found.cores:.2f} cores"
                )
                print(f"    they see refusals after {spread(found.latencies.get(429, []))}")
                print(
                    f"    a client in a process of its own: {spread(single.result())}", flush=True
                )


def refusals(port: int, image: bytes, seconds: float) -> list[float]:
    """How long each refusal takes that one client gets, which asks fifty times a second."""
    found: list[float] = []
    request, end = next(raw([image])), time.perf_counter() + seconds
    with socket.create_connection(("127.0.0.1", port)) as connection:
        time.sleep(0.1 * seconds)
        while time.perf_counter() < end:
            time.sleep(random.uniform(0.01, 0.03))
            began = time.perf_counter()
            connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            response.begin()
            response.read()
            if response.status == 429:
                found.append(time.perf_counter() - began)
    return found


def spread(seconds: Sequence[float]) -> str:
    """Quantiles as text."""
    if not seconds:
        return "none"
    half, most = (1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.99))
    return f"p50 {half:.1f} ms, p99 {most:.1f} ms of {len(seconds):,}"


def litserve(folder: Path) -> None:
    """LitServe and `resnext serve` with the same engine, decoder and clients, which send forms."""
    images = photos(folder)
    python = os.environ["LITSERVE"]
    version = "from importlib import metadata; print(metadata.version('litserve'))"
    known = subprocess.run([python, "-c", version], stdout=subprocess.PIPE, text=True, check=True)
    script = str(Path(__file__).parent / "peers" / "litserve_peer.py")
    alone = [predicted(folder)]

    def measured(title: str, server: Server, *form: str) -> None:
        Load(server.port, forms(images, *form), seconds=5).run()
        found = Load(server.port, forms(images, *form)).run()
        print(f"{title}: {server.megabytes:.0f} MB; ready after {server.ready:.1f} s")
        report(found, alone)

    with ours(folder) as server:
        measured("resnext serve", server)
    for workers in (1, 2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [python, script, str(folder / "model.safetensors"), str(port), str(workers)]
        with started(command, port) as server:
            title = f"LitServe {known.stdout.strip()}, {workers} process(es) of the engine"
            measured(title, server, "/predict", "request")


PARTS = {
    "load": load,
    "small": small,
    "memory": memory,
    "start": start,
    "overload": overload,
    "litserve": litserve,
}

if __name__ == "__main__":
    main(sys.argv[1:])
