"""The page of `--to page`: template, worker, ONNX Runtime Web and network in one HTML file.

A large one is a folder for a web server, with a service worker that keeps it for offline use.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
from functools import cache
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from filelock import FileLock

from resnext.card import Card
from resnext.errors import InputError
from resnext.pages.template import digests, fill, read_template
from resnext.system.cache import cache_folder
from resnext.system.digest import file_sha256
from resnext.system.download import is_offline

SUFFIX = ".html"
MOST_BYTES = 64_000_000
"""Largest page that is one file."""

FILES = {
    "runtime.mjs": "script",
    "runtime.wasm": "wasm",
    "model.onnx": "model",
    "index.bin": "index",
}
"""Files of a page that is a folder, and what the page calls them."""

PACKAGE = "onnxruntime-web@1.30.0"
_ARCHIVE = f"{PACKAGE.replace('@', '-')}.tgz"
_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
_DIGITS = np.frombuffer(  # those of base64.b85encode, but no "<", which might end a script
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~",
    np.uint8,
)


class Runtime(NamedTuple):
    """ONNX Runtime Web."""

    script: bytes
    wasm: bytes


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
    return Runtime(script, wasm)


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
    """Bytes as text for a page: gzip, then 85 digits, a quarter longer.

    As `base64.b85encode`, which takes ten times as long, and 30 bytes of memory for each byte.
    """
    small = gzip.compress(content, compresslevel=6, mtime=0)
    padding = -len(small) % 4
    words = np.frombuffer(small + bytes(padding), ">u4").astype(np.uint32)
    text = np.empty((len(words), 5), np.uint8)
    for place in reversed(range(5)):
        words, digits = np.divmod(words, 85)
        text[:, place] = _DIGITS[digits]
    return text.tobytes()[: text.size - padding].decode("ascii")


def page_files(path: Path) -> list[Path]:
    """The files of a page: itself, or those of a folder."""
    if path.suffix.lower() == SUFFIX:
        return [path]
    return [path / name for name in ("index.html", "sw.js", *FILES)]


def write_page(path: Path, graph: bytes, own: str, card: Card, index: bytes) -> None:
    """Write the page of a network.

    Args:
        path: The file; without its suffix, a folder for a web server.
        graph: The network as an ONNX file: "pixels" in, "logits", "embedding" and "maps" out.
        own: Our metadata.
        card: Labels and licence.
        index: What `index_of_page` returns.

    Raises:
        InputError: The page would be too large for one file.
    """
    parts = dict(zip(FILES.values(), (*runtime(), graph, index), strict=True))
    if path.suffix.lower() == SUFFIX:
        page = _page(own, card, {name: packed(content) for name, content in parts.items()})
        if len(page) > MOST_BYTES:
            raise InputError(
                f"The page would have {len(page) / 1e6:.0f} MB; browsers open files of at most "
                f"{MOST_BYTES / 1e6:.0f} MB well. Write a folder for a web server, with a name "
                f"without a suffix: --out {path.stem}-page."
            )
        path.write_bytes(page)
        return
    content = {"index.html": _page(own, card, {})}
    content |= {name: parts[part] for name, part in FILES.items()}
    digest = hashlib.sha256(b"".join(content.values())).hexdigest()
    shown = json.dumps(["./", *FILES])
    service = read_template("resnext.exporting", "page_service.js")
    content["sw.js"] = fill(service, {"version": digest[:16], "files": shown}).encode()
    path.mkdir(exist_ok=True)
    for name, part in content.items():
        (path / name).write_bytes(part)


def _page(own: str, card: Card, parts: dict[str, str]) -> bytes:
    """The HTML, with the packed parts in it; without them, that of a folder."""
    template = read_template("resnext.exporting", "page.html")
    scripts = [
        f'<script id="{name}" type="text/plain">{text}</script>' for name, text in parts.items()
    ]
    promise = "This page needs no network." if parts else "Later visits need no network."
    values = {
        "promise": promise,
        "policy": _policy(template, whole=bool(parts)),
        "title": escape(_title(card.labels)),
        "licence": escape(card.licence or "not stated"),
        "version": PACKAGE.partition("@")[2],
        "resnext": own.replace("</", "<\\/"),
        "files": json.dumps({part: name for name, part in FILES.items()}),
        "worker": read_template("resnext.exporting", "page_worker.js"),
        "parts": "\n".join(scripts),
    }
    return fill(template, values).encode()


def _policy(template: str, *, whole: bool) -> str:
    """What the page may do: its own script and style, WebAssembly, and a worker from memory.

    Of a folder, also what makes it work offline: its own files.
    """
    own = "" if whole else "'self' "
    connect = "" if whole else "connect-src 'self'; "
    return (
        f"default-src 'none'; style-src {digests(template, 'style')}; "
        f"script-src {digests(template, 'script')} 'wasm-unsafe-eval' blob:; "
        f"worker-src {own}blob:; "
        f"{connect}img-src data:; base-uri 'none'; form-action 'none'"
    )


def _title(labels: tuple[str, ...]) -> str:
    """A question that the page answers."""
    names = ", ".join(labels[:-1]) + f" or {labels[-1]}?"
    return (
        names if 1 < len(labels) < 8 and len(names) <= 60 else f"Which of {len(labels):,} classes?"
    )
