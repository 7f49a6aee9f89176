"""`serve`: sockets, signals, and the life of the server from start to end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from resnext.checks import at_least
from resnext.errors import InputError
from resnext.inference.runner import Runner
from resnext.serving.app import build_app
from resnext.serving.connection import Connection
from resnext.serving.guard import LOG
from resnext.serving.service import Service
from resnext.serving.settings import Settings
from resnext.serving.systemd import notify, passed_sockets
from resnext.system.allocator import few_arenas

if TYPE_CHECKING:
    from resnext.network import ResNeXt

_KEEP_ALIVE = 30  # seconds between two requests on a connection
_MOST_MEGABYTES = 1000  # a body is in memory
_POLL = 2.0  # seconds between looks at the model file


def serve(
    model: ResNeXt | Runner | str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    allow_hosts: Sequence[str] = (),
    allow_origins: Sequence[str] = (),
    open_to_all: bool = False,
    gate: str | Path | None = None,
    reference: str | Path | None = None,
    watch: bool = False,
    device: str = "auto",
    plan: bool = True,
    max_images: int = Settings.images,
    max_megabytes: float = Settings.body / 1e6,
    replicas: int | None = None,
) -> None:
    """Serve a model over HTTP until the process is asked to end (SIGTERM or Ctrl-C).

    Args:
        model: A network with a card, the result of `resnext.optimize`, a model file or a catalog
            name.
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        token: Secret that clients must send as `Authorization: Bearer TOKEN`; None for none.
        allow_hosts: Names of the server in the header Host, besides IP addresses, localhost and
            the machine's name.
        allow_origins: Origins of pages of other servers that may call this one.
        open_to_all: Whether other machines may use it without a token.
        gate: Labelled images on which a new version of the model file must not be worse.
        reference: Table that `predict --out` wrote for images as they should be. Metrics then say
            whether the answers have drifted from it.
        watch: Whether to load the model file again when it changes; SIGHUP does so at any time.
        device: "auto", or a torch device.
        plan: Whether to use the plan that `resnext optimize` saved next to the model file.
        max_images: Images that may wait or be computed at once; more are refused.
        max_megabytes: Largest request body, in millions of bytes.
        replicas: Number of processes that have the model, with Ray Serve; None for this process.

    Raises:
        CheckpointError: The file holds no usable model.
        InputError: The model has no labels, another machine could use it without a token, or the
            address or a limit cannot be used.
    """
    at_least("--max-images", max_images, 1, error=InputError)
    if not 0 < max_megabytes <= _MOST_MEGABYTES:
        raise InputError(
            f"--max-megabytes must be above 0 and at most {_MOST_MEGABYTES}, not {max_megabytes}."
        )
    body = int(1e6 * max_megabytes)
    settings = Settings(
        host=host,
        port=port,
        token=token,
        hosts=tuple(allow_hosts),
        origins=tuple(allow_origins),
        gate=None if gate is None else Path(gate),
        reference=None if reference is None else Path(reference),
        watch=watch,
        device=device,
        plan=plan,
        images=max_images,
        queue_bytes=max(body, Settings.queue_bytes),
        body=body,
    )
    if not (is_loopback(host) or token or open_to_all):
        raise InputError(
            f"Other machines can reach {host}. Give a secret that clients must send (--token-file "
            f"or RESNEXT_TOKEN), or --no-token to let everybody use the model."
        )
    if replicas is not None:
        from resnext.serving.ray import serve_with_ray

        if not isinstance(model, str | Path):
            raise InputError("Ray needs a model file or a catalog name, which its machines open.")
        serve_with_ray(str(model), settings, replicas)
        return
    few_arenas()
    sockets = passed_sockets() or [listen(host, port)]
    with logging_to_stderr(), asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run(Service(model, settings), sockets))


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's event loop where it exists, else Python's."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: The address cannot be used.
    """
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port must be from 0 to 65535, not {port}.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise InputError(
            f"{host}, port {port} cannot be used: {reason}. Give others with --host and --port."
        ) from error


class Server(uvicorn.Server):
    """uvicorn's server, whose signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave all signals as they are."""
        yield


def new_server(service: Service) -> Server:
    """A server of a service with its limits, not started yet."""
    settings = service.settings
    for parser in ("python_multipart", "PIL"):  # they would quote what clients send
        logging.getLogger(parser).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module=parser)
    return Server(
        uvicorn.Config(
            build_app(service, settings),
            http=partial(Connection, service),  # pyright: ignore[reportArgumentType]
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=int(settings.drain),
        )
    )


async def run(
    service: Service,
    sockets: Sequence[socket.socket],
    report: Callable[[str], object] = lambda line: print(line, flush=True),
) -> None:
    """Serve until a signal asks to end. All accepted requests are answered.

    Args:
        service: The service, not loaded yet.
        sockets: Where to listen.
        report: Takes lines for the terminal.

    Raises:
        ResNeXtError: The model cannot be used.
    """
    settings, loop = service.settings, asyncio.get_running_loop()
    server = new_server(service)
    reloading = asyncio.Lock()

    async def reload() -> None:
        async with reloading:
            notify("RELOADING=1")
            report(await asyncio.to_thread(service.reload, loop))
            notify("READY=1")

    def end() -> None:
        if server.should_exit:
            os._exit(128 + signal.SIGTERM)
        notify("STOPPING=1")
        service.drain()
        server.should_exit = True

    tasks: set[asyncio.Task[None]] = set()

    def begin_reload() -> None:
        task = loop.create_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    terminal = sys.stdout.isatty()

    def hang_up() -> None:
        if terminal and not sys.stdout.isatty():  # the terminal was closed
            end()
        elif not server.should_exit:
            begin_reload()

    handlers = {signal.SIGTERM: end, signal.SIGINT: end}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = hang_up
    for number, handler in handlers.items():
        with contextlib.suppress(NotImplementedError):  # on Windows, where Ctrl-C cancels
            loop.add_signal_handler(number, handler)
    serving = loop.create_task(server.serve([*sockets]))
    try:
        model = await asyncio.to_thread(service.load, loop)
        if not server.should_exit:
            what = f"{model.name} ({len(model.labels)} classes) on {model.engine}"
            address = next((at for at in map(_url, sockets) if at), "a Unix socket")
            for line in start_lines(what, address, settings):
                report(line)
            notify("READY=1")
        if settings.watch and isinstance(service.source, str | Path):
            watching = loop.create_task(_watch(Path(service.source), begin_reload))
            tasks.add(watching)
        await serving
    finally:
        server.should_exit = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(serving, *tasks, return_exceptions=True)
        for number in handlers:
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)


def start_lines(what: str, address: str, settings: Settings) -> Iterator[str]:
    """What a person at the terminal wants to know: what runs where, and how to try it."""
    token = "" if settings.token is None else ' -H "Authorization: Bearer $RESNEXT_TOKEN"'
    yield f"{what}: {address}"
    yield f"  curl{token} --data-binary @photo.jpg {address}/v1/predict"
    yield "Ctrl-C ends"


def url(host: str, port: int) -> str:
    """The address of a server on this machine, from where it listens."""
    shown: str = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host) or host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _url(listening: socket.socket) -> str:
    """The address of a socket; empty if it is none of IP."""
    if listening.family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    return url(*listening.getsockname()[:2])


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """In a `with` block, one line for each request on standard error, and uvicorn's own errors.

    A program that has a handler of its own for them keeps it.
    """
    if LOG.handlers:
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    levels = {LOG: logging.INFO, logging.getLogger("uvicorn.error"): logging.ERROR}
    before = {logger: (logger.level, logger.propagate) for logger in levels}
    for logger, level in levels.items():
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, logger.propagate) in before.items():
            logger.removeHandler(handler)
            logger.setLevel(level)


async def _watch(file: Path, changed: Callable[[], object]) -> None:
    """Call a function whenever a file has changed and rests."""
    seen = used = _stamp(file)
    while True:
        await asyncio.sleep(_POLL)
        now = _stamp(file)
        if now == seen and now not in (used, None):
            used = now
            changed()
        seen = now


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino
