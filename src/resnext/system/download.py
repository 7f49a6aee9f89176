"""Downloads: a file is in the cache completely and unchanged, or not at all."""

from __future__ import annotations

import http.client
import json
import os
import re
import string
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

from filelock import FileLock

from resnext.errors import CheckpointError
from resnext.system.atomic import write_bytes_atomically
from resnext.system.cache import cache_folder
from resnext.system.digest import file_sha256, short_digest
from resnext.system.progress import reporter

_CHUNK = 1 << 20
_LARGEST = 16 << 30
_LOCAL = ("localhost", "127.0.0.1", "::1")


def hub() -> str:
    """Address of the Hugging Face Hub: `HF_ENDPOINT`, else its own."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_offline() -> bool:
    """Whether `RESNEXT_OFFLINE` or `HF_HUB_OFFLINE` forbids downloads."""
    given = [os.environ.get(name, "") for name in ("RESNEXT_OFFLINE", "HF_HUB_OFFLINE")]
    return any(value.lower() not in ("", "0", "false", "no") for value in given)


def fetch(
    url: str,
    *,
    sha256: str = "",
    check: Callable[[Path], object] | None = None,
    progress: bool = False,
    timeout: float = 30.0,
    tries: int = 4,
) -> Path:
    """A file from the cache, downloaded if it is not there.

    What was downloaded before a failure is kept and continued. Processes that want the same file
    wait for the one that downloads it. Proxies are used as the environment says.

    Args:
        url: Where it is; https, except on this machine.
        sha256: Its SHA-256 in hexadecimal, or the first digits; empty if nobody published it. Then
            the first download's is remembered, and later ones must be the same.
        check: Raises `CheckpointError` for a file that cannot be used. Called before a file
            without a published hash is kept.
        progress: Whether to show how far it is, on standard error.
        timeout: Seconds without an answer or a byte, after which it is tried again.
        tries: Number of failures in a row that end it.

    Raises:
        CheckpointError: It cannot be had, or is not what was published. The cache is unchanged.
    """
    _check_url(url)
    folder = cache_folder() / short_digest(url)
    path = folder / _file_name(url)
    try:
        if path.exists() and _is_unchanged(path, sha256):
            return path  # without a lock, so that a shared cache may be read-only
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.exists() and _is_unchanged(path, sha256):
                return path
            if is_offline():
                raise CheckpointError(
                    f"{url} is not in the cache ({cache_folder()}), and downloads are off. "
                    f"Unset RESNEXT_OFFLINE, or load a local file."
                )
            return _Download(url, path, sha256, check, progress, timeout, tries).run()
    except OSError as error:
        raise CheckpointError(f"{url} cannot be kept in {cache_folder()}: {error}.") from error


class _Download:
    """One file on its way into the cache."""

    def __init__(
        self,
        url: str,
        path: Path,
        sha256: str,
        check: Callable[[Path], object] | None,
        progress: bool,
        timeout: float,
        tries: int,
    ) -> None:
        self.url = url
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self.note = path.with_name(f"{path.name}.json")
        self.sha256 = sha256.lower() or str(_noted(self.note).get("sha256", ""))
        self.check = check
        self.timeout = timeout
        self.tries = tries
        self.report = reporter(progress, unit="MB")

    def run(self) -> Path:
        """Download, verify, and only then put the file in its place."""
        try:
            continued = self.part.exists()
            self.receive()
            digest = file_sha256(self.part)
            if continued and self.sha256 and not digest.startswith(self.sha256):
                self.part.unlink()  # the old part may have been of another version
                self.receive()
                digest = file_sha256(self.part)
        finally:
            self.report.stop()
        if self.sha256 and not digest.startswith(self.sha256):
            self.part.unlink()
            raise CheckpointError(
                f"{self.url}: sha256 is {digest[: max(len(self.sha256), 8)]}, expected "
                f"{self.sha256}. It was not kept; try again. If its publisher replaced it, delete "
                f"{self.path.parent}."
            )
        if not self.sha256 and self.check is not None:
            try:
                self.check(self.part)
            except CheckpointError:
                self.part.unlink()
                raise
        self.part.replace(self.path)
        stat = self.path.stat()
        about = {"url": self.url, "sha256": digest, "size": stat.st_size, "time": stat.st_mtime_ns}
        write_bytes_atomically(self.note, json.dumps(about).encode())
        self.same_as_file().unlink(missing_ok=True)
        return self.path

    def same_as_file(self) -> Path:
        """Where the server's mark of the part's version is kept."""
        return self.part.with_name(f"{self.part.name}.json")

    def size(self) -> int:
        """Bytes that are there."""
        return self.part.stat().st_size if self.part.exists() else 0

    def receive(self) -> None:
        """Fill the part, as often as it takes."""
        failures, reason, most = 0, "", self.size()
        while failures < self.tries:
            try:
                if self.attempt(self.size()):
                    return
                reason = "the connection ended early"
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416:  # nothing is left of what we have, or it is longer
                    self.part.unlink(missing_ok=True)
                elif error.code < 500 and error.code not in (408, 429):
                    raise CheckpointError(
                        f"{self.url} cannot be downloaded: the server answers {error.code} "
                        f"{error.reason}."
                    ) from error
                reason = f"the server answers {error.code} {error.reason}"
            except (urllib.error.URLError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", "") or error)
            failures = 0 if self.size() > most else failures + 1
            most = max(most, self.size())  # what was thrown away and comes again is no progress
            if failures < self.tries:
                time.sleep(0.2 * 2**failures)
        raise CheckpointError(
            f"{self.url} cannot be downloaded: {reason}, {self.tries} times in a row. "
            f"{self.size():,} bytes are kept and will be continued."
        )

    def attempt(self, have: int) -> bool:
        """Ask once for what is missing; whether the file is complete then."""
        url = quote(self.url, safe=string.punctuation)
        request = urllib.request.Request(url, headers={"User-Agent": "resnext"})
        token = os.environ.get("HF_TOKEN", "").strip()
        if token and self.url.startswith(f"{hub()}/"):  # not https://huggingface.co.example.com
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        mark = str(_noted(self.same_as_file()).get("mark", "")) if have else ""
        if mark:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", mark)
        with _network():
            answer = _opener().open(request, timeout=self.timeout)
        with answer:
            _check_url(answer.url)
            headers: Any = answer.headers
            continued = answer.status == 206
            start, total = _extent(headers, continued)
            now = headers.get("ETag") or headers.get("Last-Modified") or ""
            if continued and (start != have or now not in ("", mark)):
                self.part.unlink(missing_ok=True)
                return False
            if not continued:
                mark = "" if now.startswith("W/") else now
            with self.part.open("ab" if continued else "wb") as out:
                version = json.dumps({"mark": mark}).encode()
                write_bytes_atomically(self.same_as_file(), version)  # after the old part is gone
                done = self.copy(answer, out, have if continued else 0, total)
        return total is None or done == total

    def copy(self, answer: Any, out: IO[bytes], done: int, total: int | None) -> int:
        """Write what comes, up to what was announced."""
        self.report.start(self.path.name, (total or 0) // 1_000_000)
        if done >= 1_000_000:  # half a minute without one has no rate
            self.report.advance(done // 1_000_000)
        while True:
            with _network():
                block = answer.read1(_CHUNK)  # `read` loses what came before a failure
            if not block:
                return done
            out.write(block)
            if more := (done + len(block)) // 1_000_000 - done // 1_000_000:
                self.report.advance(more)
            done += len(block)
            if done > _LARGEST:
                out.truncate(0)
                raise CheckpointError(f"{self.url} is larger than any ResNeXt; it was not kept.")


@contextmanager
def _network() -> Iterator[None]:
    """Tell its errors from those of the disk, which are not tried again."""
    try:
        yield
    except urllib.error.URLError:
        raise
    except OSError as error:
        raise urllib.error.URLError(str(error) or type(error).__name__) from error


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_OnlySafely)


class _OnlySafely(urllib.request.HTTPRedirectHandler):
    """Follows no redirection away from https."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The request that follows, if it may be followed."""
        _check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
        (host or "").encode("idna")  # fails, as the port does, for what no request can be made to
    except ValueError as error:
        raise CheckpointError(f"{url!r} is no URL: {error}.") from error
    if not host:
        raise CheckpointError(f"{url!r} is no URL: it names no host.")
    if not (parts.scheme == "https" or (parts.scheme == "http" and host in _LOCAL)):
        raise CheckpointError(f"{url!r} is not downloaded: only https URLs are.")


def _file_name(url: str) -> str:
    name = urlsplit(url).path.rpartition("/")[2]
    return re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII)[-120:].lstrip(".") or "file"


def _extent(headers: Any, continued: bool) -> tuple[int, int | None]:
    """First byte that comes, and length of the whole file if it is told."""
    if continued:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range") or "")
        if found is None:
            return -1, None
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = headers.get("Content-Length") or ""
    return 0, int(length) if length.isdigit() else None


def _is_unchanged(path: Path, sha256: str) -> bool:
    """Whether a cached file is what was downloaded; one that was touched is read again."""
    note, stat = _noted(path.with_name(f"{path.name}.json")), path.stat()
    known = str(note.get("sha256", ""))
    if not known or not known.startswith(sha256.lower()) or note.get("size") != stat.st_size:
        return False
    return note.get("time") == stat.st_mtime_ns or file_sha256(path) == known


def _noted(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        about = json.loads(path.read_text(encoding="utf-8"))
        return about if isinstance(about, dict) else {}
    return {}
