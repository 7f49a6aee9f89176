"""Downloads: a file is in the cache completely and unchanged, or not at all.

`fetch` downloads model files: over https only, continued after a failure, verified by hash.
`fetch_shard` downloads shards of data from any address WebDataset can read, such as s3://.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import string
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

from filelock import FileLock

from resnext.errors import CheckpointError, DataError, ResNeXtError
from resnext.system.atomic import write_atomically, write_bytes_atomically
from resnext.system.cache import cache_folder
from resnext.system.digest import file_sha256, short_digest
from resnext.system.progress import reporter

_CHUNK = 1 << 20
_LARGEST = 16 << 30
_LOCAL = ("localhost", "127.0.0.1", "::1")


def hub() -> str:
    """Address of the Hugging Face Hub: `HF_ENDPOINT`, else https://huggingface.co."""
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
    """A model file from the cache, downloaded if it is not there.

    A download that failed is continued later. Processes that want the same file wait for the one
    that downloads it. Proxies are used as the environment says.

    Args:
        url: Its address: https, or http on this machine.
        sha256: Its SHA-256 in hexadecimal, or the first digits; empty if none was published. Then
            the hash of the first download is remembered, and later downloads must match it.
        check: Raises `CheckpointError` for a file that cannot be used. Called before a file
            without a published hash is kept.
        progress: Whether to show progress on standard error.
        timeout: Seconds without a response or data, after which the download is retried.
        tries: Number of consecutive failures that end the download.

    Raises:
        CheckpointError: The file cannot be downloaded, or does not match its hash. The cache is
            unchanged.
    """
    _check_url(url)
    path = cache_folder() / short_digest(url) / _file_name(url)
    download = partial(_Download, url, path, sha256, check, progress, timeout, tries)
    return _cached(
        path,
        url,
        is_cached=lambda: path.exists() and _is_unchanged(path, sha256),
        download=lambda: download().run(),
        error=CheckpointError,
    )


def fetch_shard(
    url: str, *, check: Callable[[Path], object] | None = None, optional: bool = False
) -> Path:
    """A file of a data set from the cache, downloaded by WebDataset if it is not there.

    Args:
        url: Its address, of any scheme that WebDataset can read.
        check: Raises `DataError` for a file that cannot be used. Called before it is kept.
        optional: Whether a file missing on the server is replaced by an empty one.

    Raises:
        DataError: The file cannot be downloaded or used. The cache is unchanged.
    """
    path = cache_folder() / "shards" / short_digest(url) / _file_name(url)

    def download() -> None:
        try:
            write_atomically(path, partial(_receive, url, check, optional))
        except CheckpointError as error:
            raise DataError(f"{url} cannot be kept in {cache_folder()}: {error}") from error

    return _cached(path, url, is_cached=path.exists, download=download, error=DataError)


def _cached(
    path: Path,
    url: str,
    *,
    is_cached: Callable[[], bool],
    download: Callable[[], object],
    error: type[ResNeXtError],
) -> Path:
    """`path`, after one process has filled it while the others that want it wait.

    Raises:
        ResNeXtError: Downloads are off, or the cache cannot be written; of the type `error`.
    """
    try:
        if is_cached():
            return path  # without a lock, so that a shared cache may be read-only
        if is_offline():
            raise error(
                f"{url} is not in the cache ({cache_folder()}), and downloads are off. "
                f"Unset RESNEXT_OFFLINE and HF_HUB_OFFLINE, or use a local file."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not is_cached():
                download()
        return path
    except OSError as cause:
        raise error(f"{url} cannot be kept in {cache_folder()}: {cause}.") from cause


def _receive(
    url: str, check: Callable[[Path], object] | None, optional: bool, temporary: str
) -> None:
    """Download a shard into a temporary file."""
    try:
        with _stream(url) as stream, Path(temporary).open("wb") as out:
            shutil.copyfileobj(stream, out, _CHUNK)
    except (OSError, ValueError, ImportError) as error:
        missing = "exit 22 " in str(error)  # curl reports HTTP errors such as 404
        if missing and optional:
            return
        reason = "the server has no such file" if missing else str(error).partition("\n")[0]
        raise DataError(f"{url} cannot be downloaded: {reason}. Check the address.") from error
    if check is not None:
        check(Path(temporary))


def _stream(url: str) -> Any:
    """The content at a URL, to be used in `with`, which raises if it was incomplete."""
    try:
        from webdataset.gopen import Pipe, gopen, gopen_schemes
    except ImportError as error:
        raise DataError('This data needs webdataset: pip install "resnext[shards]".') from error
    scheme = urlsplit(url).scheme
    if scheme == "s3" and scheme not in gopen_schemes:  # WebDataset leaves it to AIStore
        return Pipe(["aws", "s3", "cp", "--quiet", url, "-"], mode="rb")
    return gopen(url)


class _Download:
    """The download of one model file into the cache."""

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
        self.sha256 = sha256.lower() or str(_read_note(self.note).get("sha256", ""))
        self.check = check
        self.timeout = timeout
        self.tries = tries
        self.progress = reporter(progress, unit="MB")

    def run(self) -> Path:
        """Download and verify the file, and only then move it into the cache."""
        try:
            continued = self.part.exists()
            self.receive()
            digest = file_sha256(self.part)
            if continued and self.sha256 and not digest.startswith(self.sha256):
                self.part.unlink()  # its beginning may be from another version
                self.receive()
                digest = file_sha256(self.part)
        finally:
            self.progress.stop()
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
        note = {"url": self.url, "sha256": digest, "size": stat.st_size, "time": stat.st_mtime_ns}
        _write_note(self.note, note)
        self.version_file().unlink(missing_ok=True)
        return self.path

    def version_file(self) -> Path:
        """Path of the server's version mark for the part: its ETag or modification time."""
        return self.part.with_name(f"{self.part.name}.json")

    def size(self) -> int:
        """Bytes downloaded so far."""
        return self.part.stat().st_size if self.part.exists() else 0

    def receive(self) -> None:
        """Download the rest of the part, with retries."""
        failures, reason, most = 0, "", self.size()
        while failures < self.tries:
            try:
                if self.attempt(self.size()):
                    return
                reason = "the connection ended early"
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416:  # the part is complete or longer than the file
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
            most = max(most, self.size())  # downloading discarded bytes again is not progress
            if failures < self.tries:
                time.sleep(0.2 * 2**failures)
        raise CheckpointError(
            f"{self.url} cannot be downloaded: {reason}, {self.tries} times in a row. "
            f"{self.size():,} bytes are kept and will be continued."
        )

    def attempt(self, have: int) -> bool:
        """Request the missing bytes once; returns whether the part is complete."""
        url = quote(self.url, safe=string.punctuation)
        request = urllib.request.Request(url, headers={"User-Agent": "resnext"})
        token = os.environ.get("HF_TOKEN", "").strip()
        if token and self.url.startswith(f"{hub()}/"):  # not https://huggingface.co.example.com
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        mark = str(_read_note(self.version_file()).get("mark", "")) if have else ""
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
                _write_note(self.version_file(), {"mark": mark})  # once the old part is empty
                done = self.copy(answer, out, have if continued else 0, total)
        return total is None or done == total

    def copy(self, answer: Any, out: IO[bytes], done: int, total: int | None) -> int:
        """Write the response to the part; returns the bytes the part has then."""
        self.progress.start(self.path.name, (total or 0) // 1_000_000)
        if done >= 1_000_000:  # count what an earlier attempt downloaded
            self.progress.advance(done // 1_000_000)
        while True:
            with _network():
                block = answer.read1(_CHUNK)  # `read` loses what came before a failure
            if not block:
                return done
            out.write(block)
            if more := (done + len(block)) // 1_000_000 - done // 1_000_000:
                self.progress.advance(more)
            done += len(block)
            if done > _LARGEST:
                out.truncate(0)
                raise CheckpointError(f"{self.url} is larger than any ResNeXt; it was not kept.")


@contextmanager
def _network() -> Iterator[None]:
    """Turn errors of the network into `URLError`; those of the disk are not retried."""
    try:
        yield
    except urllib.error.URLError:
        raise
    except OSError as error:
        raise urllib.error.URLError(str(error) or type(error).__name__) from error


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_SafeRedirects)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirections away from https."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The redirected request, if its address is allowed."""
        _check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
        (host or "").encode("idna")  # like the port, raises for an address that cannot be requested
    except ValueError as error:
        raise CheckpointError(f"{url!r} is not a URL: {error}.") from error
    if not host:
        raise CheckpointError(f"{url!r} is not a URL: it names no host.")
    if not (parts.scheme == "https" or (parts.scheme == "http" and host in _LOCAL)):
        raise CheckpointError(f"{url!r} is not downloaded: only https URLs are.")


def _file_name(url: str) -> str:
    name = urlsplit(url).path.rpartition("/")[2]
    return re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII)[-120:].lstrip(".") or "file"


def _extent(headers: Any, continued: bool) -> tuple[int, int | None]:
    """Offset of the first byte in a response, and length of the whole file, None if unknown."""
    if continued:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range") or "")
        if match is None:
            return -1, None
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = headers.get("Content-Length") or ""
    return 0, int(length) if length.isdigit() else None


def _is_unchanged(path: Path, sha256: str) -> bool:
    """Whether a cached file is unchanged; if its modification time differs, it is hashed."""
    note, stat = _read_note(path.with_name(f"{path.name}.json")), path.stat()
    known = str(note.get("sha256", ""))
    if not known or not known.startswith(sha256.lower()) or note.get("size") != stat.st_size:
        return False
    return note.get("time") == stat.st_mtime_ns or file_sha256(path) == known


def _read_note(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        note = json.loads(path.read_text(encoding="utf-8"))
        return note if isinstance(note, dict) else {}
    return {}


def _write_note(path: Path, note: dict[str, Any]) -> None:
    """Write JSON; a failure is the disk's, as for the file itself, which names URL and cache."""
    try:
        write_bytes_atomically(path, json.dumps(note).encode())
    except CheckpointError as error:
        raise OSError(str(error)) from error
