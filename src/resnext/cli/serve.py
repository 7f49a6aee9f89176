"""`resnext serve`: a model over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from resnext.checks import at_least
from resnext.cli.options import Flag, OptionalWhole, Several, Whole
from resnext.errors import InputError


def serve(
    file: str,
    /,
    *,
    host: str = "127.0.0.1",
    port: Whole = 8000,
    token_file: Path | None = None,
    no_token: Flag = False,
    allow_host: Annotated[tuple[str, ...], Several] = (),
    allow_origin: Annotated[tuple[str, ...], Several] = (),
    watch: Flag = False,
    gate: Path | None = None,
    reference: Path | None = None,
    device: str = "auto",
    plan: bool = True,
    max_images: Whole = 256,
    max_megabytes: float = 20.0,
    ray: Flag = False,
    replicas: OptionalWhole = None,
    example: Literal["systemd", "docker", "compose", "kubernetes", "nginx"] | None = None,
) -> None:
    """Answer requests over HTTP, and show a page for photos in the browser.

    SIGTERM or Ctrl-C ends it once all accepted requests are answered. SIGHUP loads the file
    again and replaces the model without a gap.

    Args:
        file: A model file from any library that contains the class names, a file that
            `resnext export` wrote, or a catalog name.
        host: Address to listen on. Other machines can reach 0.0.0.0.
        port: Port to listen on; 0 for any free one.
        token_file: File with the secret that clients must send as "Authorization: Bearer …".
            Default: the variable RESNEXT_TOKEN.
        no_token: Let other machines use the model without a secret.
        allow_host: Name of this server in requests, besides IP addresses, localhost and the name of
            the machine. Can be repeated.
        allow_origin: Origin of a page of another server that may call this one, such as
            https://example.org. Can be repeated.
        watch: Load the file again when it changes.
        gate: Labelled images, as for compare. A new version of the file that is worse on them does
            not replace the old one.
        reference: Table that `predict --out` wrote for images as they should be, as for drift. The
            metrics then say whether the answers have changed.
        device: auto, cpu, cuda, cuda:1, …
        plan: Use the plan that `resnext optimize` saved next to the model file.
        max_images: Images that may wait or be computed at once; more are refused with 429.
        max_megabytes: Largest request, in millions of bytes.
        ray: Serve with Ray, on the cluster of RAY_ADDRESS or on this machine. All its machines need
            the file at the same path.
        replicas: With --ray, the number of processes that have the model. Default: 1.
        example: Serve nothing; print files that run this server elsewhere.
    """
    if example is not None:
        from resnext.serving.examples import example as text

        print(text(example, file), end="")
        return
    from importlib.util import find_spec

    if not all(map(find_spec, ("starlette", "uvicorn", "httptools", "python_multipart"))):
        raise InputError('resnext serve needs pip install "resnext[serve]".')
    from resnext.serving.run import serve

    serve(
        file,
        host=host,
        port=port,
        token=None if no_token else _token(token_file),
        allow_hosts=allow_host,
        allow_origins=allow_origin,
        open_to_all=no_token,
        gate=gate,
        reference=reference,
        watch=watch,
        device=device,
        plan=plan,
        max_images=max_images,
        max_megabytes=max_megabytes,
        replicas=_replicas(ray, replicas, watch or gate is not None),
    )


def _replicas(ray: bool, replicas: int | None, replaces: bool) -> int | None:
    """The number of replicas on Ray; None without Ray.

    Raises:
        InputError: The options contradict each other.
    """
    if not ray:
        if replicas is not None:
            raise InputError("--replicas needs --ray: without it there is one process.")
        return None
    if replaces:
        raise InputError(
            "--ray cannot replace a model while it runs: leave out --watch and --gate."
        )
    if replicas is None:
        return 1
    at_least("--replicas", replicas, 1, error=InputError)
    return replicas


def _token(file: Path | None) -> str | None:
    """The secret in a file, else in RESNEXT_TOKEN; None without one.

    Raises:
        InputError: The file cannot be read, or is empty.
    """
    if file is None:
        return os.environ.get("RESNEXT_TOKEN", "").strip() or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"--token-file {file} is not UTF-8 text.") from error
    except OSError as error:
        raise InputError(f"--token-file {file} cannot be read: {error.strerror}.") from error
    if not token:
        raise InputError(f"--token-file {file} is empty. Write a long random text into it.")
    return token
