"""The same application behind Ray Serve: many replicas, on one machine or a cluster.

Each replica has its own batcher. Ray's own (`serve.batch`) has waited for ever for requests that
were cancelled.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

from starlette.applications import Starlette

from resnext.errors import CheckpointError, InputError
from resnext.serving.app import build_app
from resnext.serving.run import start_lines, url
from resnext.serving.service import Service
from resnext.serving.settings import Settings
from resnext.system.text import counted

_NAME = "resnext"
_HEALTH = 5.0  # seconds between checks of a replica's health


class Replica:
    """The application in one of Ray's processes.

    Args:
        source: A model file that all machines see, or a catalog name.
        settings: Options and limits; each replica has its own queue.
    """

    async def __init__(self, source: str, settings: Settings) -> None:
        self.service = Service(source, settings)
        await asyncio.to_thread(self.service.load, asyncio.get_running_loop())

    def __serve_build_asgi_app__(self) -> Starlette:
        """The application; Ray calls this once the model is loaded."""
        return build_app(self.service, self.service.settings)

    def check_health(self) -> None:
        """Raise unless requests are answered; Ray then replaces the replica."""
        self.service.refuse_unless_ready()


def deployment(serve: Any, source: str, settings: Settings, replicas: int) -> Any:
    """The application as Ray Serve deploys it.

    Args:
        serve: The module `ray.serve`.
        source: A model file that all machines see, or a catalog name.
        settings: Options and limits of each replica, which Ray gets too.
        replicas: Their number.
    """
    options = {
        "name": _NAME,
        "num_replicas": replicas,
        "max_ongoing_requests": settings.images,
        "max_queued_requests": settings.images * replicas,
        "graceful_shutdown_timeout_s": settings.drain,
        "health_check_period_s": _HEALTH,
    }
    return serve.deployment(**options)(serve.ingress()(Replica)).bind(source, settings)


def serve_with_ray(
    source: str,
    settings: Settings,
    replicas: int,
    report: Callable[[str], object] = lambda line: print(line, flush=True),
) -> None:
    """Serve with Ray until a signal asks to end.

    It uses the cluster of RAY_ADDRESS, or starts one on this machine.

    Args:
        source: A model file that all machines see, or a catalog name.
        settings: Options and limits of each replica.
        replicas: Number of replicas.
        report: Takes lines for the terminal.

    Raises:
        CheckpointError: No replica could open the model.
        InputError: Ray Serve is not installed.
    """
    try:
        ray, serve = import_module("ray"), import_module("ray.serve")
    except ImportError as error:
        raise InputError('Ray Serve is not installed: pip install "resnext[ray]".') from error
    ended = threading.Event()
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set handlers of its own
        signal.signal(number, lambda *_: ended.set())
    try:
        http = {
            "host": settings.host,
            "port": settings.port,
            "request_timeout_s": settings.whole + settings.deadline,
        }
        serve.start(proxy_location="EveryNode", http_options=http)
        try:
            application = deployment(serve, source, settings, replicas)
            serve.run(application, name=_NAME, route_prefix="/")
        except RuntimeError as error:
            raise CheckpointError(f"Ray could not start {source}: {error}") from error
        what = f"{source}, {counted(replicas, 'replica')} on Ray"
        for line in start_lines(what, url(settings.host, settings.port), settings):
            report(line)
        ended.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
