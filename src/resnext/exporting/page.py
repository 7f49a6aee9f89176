"""The page of `--to page`: template, worker, ONNX Runtime Web and network in one HTML file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import shutil
import subprocess
import tarfile
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from filelock import FileLock

from resnext.card import Card
from resnext.errors import InputError
from resnext.system.cache import cache_folder
from resnext.system.digest import file_sha256
from resnext.system.download import is_offline

MOST_BYTES = 64_000_000
"""Largest page that is written."""

PACKAGE = "onnxruntime-web@1.30.0"
_ARCHIVE = f"{PACKAGE.replace('@', '-')}.tgz"
_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
_TO_TEXT = bytes.maketrans(b"<", b",")  # so that no data looks like the end of a script


class Runtime(NamedTuple):
    """ONNX Runtime Web, packed as text."""

    script: str
    wasm: str


def check_node() -> None:
    """Require Node.js, which proves a page.

    Raises:
        InputError: It is not installed.
    """
    if shutil.which("node") is None:
        raise InputError("A page is proven with Node.js, which is not installed. Install it.")


@cache
def runtime() -> Runtime:
    """ONNX Runtime Web from the cache folder, where `npm` puts it the first time.

    Raises:
        InputError: It is neither there nor can be downloaded, or it is not the known file.
    """
    path = cache_folder() / "npm" / _ARCHIVE
    by_hand = f"Or run `npm pack {PACKAGE}` elsewhere and move {_ARCHIVE} into {path.parent}."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                _download(path, by_hand)
        if file_sha256(path) != _SHA256:
            raise InputError(f"{path} is not the published {PACKAGE}. Delete it and try again.")
    except OSError as error:
        raise InputError(f"{PACKAGE} cannot be kept in {path.parent}: {error}.") from error
    with tarfile.open(path) as archive:
        script, wasm = (
            _content(archive, f"package/dist/{name}")
            for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
        )
    return Runtime(packed(script), packed(wasm))


def _download(path: Path, by_hand: str) -> None:
    npm = shutil.which("npm")
    if is_offline() or npm is None:
        reason = "npm is not installed" if npm is None else "downloads are off (RESNEXT_OFFLINE)"
        raise InputError(
            f"A page needs {PACKAGE}, which is not in the cache, and {reason}. {by_hand}"
        )
    with TemporaryDirectory(dir=path.parent) as folder:
        command = [npm, "pack", PACKAGE, "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        made = Path(folder) / path.name
        if done.returncode or not made.exists():
            lines = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
            reason = lines[0].removeprefix("npm error").strip() if lines else "no file came"
            raise InputError(f"npm cannot download {PACKAGE}: {reason}. {by_hand}")
        made.replace(path)


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    assert member is not None
    return member.read()


def packed(content: bytes) -> str:
    """Bytes as text for a page: gzip, then 85 digits, a quarter longer."""
    small = gzip.compress(content, mtime=0)
    return base64.b85encode(small).translate(_TO_TEXT).decode("ascii")


def write_page(path: Path, graph: bytes, own: str, card: Card) -> None:
    """Write the page of a network.

    Args:
        path: The file.
        graph: The network as an ONNX file: "pixels" in, "logits" and "maps" out.
        own: Our metadata.
        card: Labels and licence.

    Raises:
        InputError: The page would be too large.
    """
    folder = files("resnext.exporting")
    template, worker = (
        folder.joinpath(name).read_text(encoding="utf-8")
        for name in ("page.html", "page_worker.js")
    )
    style, script = (
        _between(template, "<style>", "</style>"),
        _between(template, "<script>", "</script>"),
    )
    parts = {
        "policy": _policy(style, script),
        "title": escape(_title(card.labels)),
        "licence": escape(card.licence or "not stated"),
        "version": PACKAGE.partition("@")[2],
        "resnext": own.replace("</", "<\\/"),
        "worker": worker,
        "model": packed(graph),
        **runtime()._asdict(),
    }
    pieces = template.split("{{ ")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition(" }}")
        filled += [parts[name], rest]
    page = "".join(filled).encode()
    if len(page) > MOST_BYTES:
        raise InputError(
            f"The page would have {len(page) / 1e6:.0f} MB; at most {MOST_BYTES / 1e6:.0f} MB are "
            f"useful in a browser. Take a smaller network, or --to onnx and a server."
        )
    path.write_bytes(page)


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0]


def _policy(style: str, script: str) -> str:
    """What the page may do: its own script and style, WebAssembly, and a worker from memory."""
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; "
        f"script-src 'sha256-{script_hash}' 'wasm-unsafe-eval' blob:; worker-src blob:; "
        f"img-src data:; base-uri 'none'; form-action 'none'"
    )


def _title(labels: tuple[str, ...]) -> str:
    """A question that the page answers."""
    names = ", ".join(labels[:-1]) + f" or {labels[-1]}?"
    return (
        names if 1 < len(labels) < 8 and len(names) <= 60 else f"Which of {len(labels):,} classes?"
    )
