"""Download one large file: resumed, verified, by one process at a time. Standard library and tqdm alone."""

from __future__ import annotations

import datetime
import errno
import http.client
import json
import logging
import os
import shutil
import socket
import ssl
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindsearch.errors import InputError, WeightsError

CHUNK_BYTES = 1 << 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
AGENT = "bindsearch"


def silent(sentence: str) -> None:
    """Tell nobody."""
    del sentence


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the hub's client from writing a line for each of its tries; that it failed is what it raises."""
    log = logging.getLogger("huggingface_hub")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


@dataclass(frozen=True)
class Wanted:
    """A file to download.

    Attributes:
        url: http or https.
        target: where it goes; beside it lie .part (what has arrived), .part.json (of which version), .seen.json (the
            checksum first seen) and .bad (a file that was refused).
        size_bytes, sha256: what it must have; None where it is not known.
        origin: who says so.
        name: what `bindsearch models fetch` calls it.
    """

    url: str
    target: Path
    size_bytes: int | None = None
    sha256: str | None = None
    origin: str = ""
    name: str = "..."

    def beside(self, suffix: str) -> Path:
        """Name a file beside the target."""
        return self.target.with_name(self.target.name + suffix)

    @property
    def how_to_bring(self) -> str:
        """Say how to bring it without a download: how large, with which checksum, where it goes."""
        size = f"{self.size_bytes} bytes" if self.size_bytes is not None else "size not known"
        checksum = f"sha256 {self.sha256}" if self.sha256 else "checksum not known"
        return (
            f"Bring {self.target.name} ({size}, {checksum}) to {self.target} and run the same command, or: "
            f"bindsearch models fetch {self.name} --from {self.target.name}"
        )


@dataclass(frozen=True)
class Fetched:
    """A file that has arrived and was checked.

    Attributes:
        path: of the file.
        size_bytes, sha256: of the file.
        origin: what its checksum was compared with.
    """

    path: Path
    size_bytes: int
    sha256: str
    origin: str


@dataclass(frozen=True)
class Patience:
    """How a download deals with bad connections.

    Attributes:
        timeout_s: a connection that gives nothing for so long is given up.
        attempts: how many in a row may bring nothing.
        lookups: how many in a row may not find the server's name, before anything has arrived.
        backoff_s: pause before the second attempt; doubled for each further one.
    """

    timeout_s: float = 30.0
    attempts: int = 6
    lookups: int = 2
    backoff_s: float = 1.0


class _Restart(Exception):  # noqa: N818 - no error: a signal inside this file
    """What has arrived belongs to another version of the file."""


def download(
    wanted: Wanted, say: Callable[[str], None], progress: bool = False, patience: Patience | None = None
) -> Fetched:
    """Fetch a file, or take the one that is there; the caller holds the lock.

    Args:
        wanted: what, from where, to where.
        say: told what is going on, a sentence a call.
        progress: a bar on stderr.
        patience: how bad connections are dealt with.

    Returns:
        The file, whole and checked.

    Raises:
        InputError: the URL is not http or https, or malformed.
        WeightsError: no connection, refused by the server, no space (what has arrived is kept for resuming), or the
            wrong size or checksum (the file is kept apart as .bad).
    """
    quoted(wanted.url)
    wanted.target.parent.mkdir(parents=True, exist_ok=True)
    if not wanted.target.is_file():
        _receive(wanted, say, progress, patience or Patience())
    return check(wanted, say, progress)


def quoted(url: str) -> str:
    """Write a URL in the characters that a request may hold: what already is, stays.

    Raises:
        InputError: it is malformed, or not http or https.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.netloc.encode("idna").decode("ascii")
        whole = bool(parts.hostname) and parts.port != 0 and all(" " < each < "\x7f" for each in host)
    except ValueError:  # a port that is no number, brackets that do not match, a host that no name can be
        whole = False
    if not whole or parts.scheme not in ("http", "https"):
        raise InputError(
            f"{url}: expected an http or https URL, such as https://host/weights.pth; for a file that you have, use "
            "--from FILE."
        )
    path, query = (urllib.parse.quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def check(wanted: Wanted, say: Callable[[str], None], progress: bool = False) -> Fetched:
    """Compare a file that has arrived with what is known of it; move it apart when it is another one.

    Raises:
        WeightsError: naming both values and where the file was put.
    """
    from bindsearch.models.weights import sha256_of

    size = wanted.target.stat().st_size
    seen = _seen(wanted)
    want_size = wanted.size_bytes if wanted.size_bytes is not None else seen.get("size_bytes")
    if want_size is not None and size != want_size:
        _refuse(wanted, f"expected {want_size} bytes, got {size}")
    got = sha256_of(wanted.target, progress)
    if wanted.sha256 is not None:
        if got != wanted.sha256.lower():
            origin = f" ({wanted.origin})" if wanted.origin else ""
            _refuse(wanted, f"expected sha256 {wanted.sha256}{origin}, got {got}")
        return Fetched(wanted.target, size, got, wanted.origin or "given")
    if seen.get("sha256"):
        if got != seen["sha256"]:
            _refuse(wanted, f"expected sha256 {seen['sha256']} (first seen here on {seen['date']}), got {got}")
        return Fetched(wanted.target, size, got, f"first seen here on {seen['date']}")
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    record = {"url": wanted.url, "sha256": got, "size_bytes": size, "date": date}
    wanted.beside(".seen.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    say(
        f"{wanted.target.name}: no checksum is known to this project. Recorded the one first seen, sha256 {got}: it "
        "says that later downloads are the same file, not that this one is the authors'."
    )
    return Fetched(wanted.target, size, got, "first seen now; known to nobody")


def _seen(wanted: Wanted) -> dict[str, Any]:
    """Read the checksum first seen at this URL, if any."""
    try:
        record: dict[str, Any] = json.loads(wanted.beside(".seen.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if record.get("url") == wanted.url else {}


def _refuse(wanted: Wanted, why: str) -> None:
    bad = wanted.beside(".bad")
    wanted.target.replace(bad)
    raise WeightsError(
        f"{wanted.target}: {why}. The file is kept apart as {bad.name}. Fetch it again, or, if you trust that file: "
        f"bindsearch models fetch ... --from {bad} --sha256 ITS_SHA256."
    )


def _receive(wanted: Wanted, say: Callable[[str], None], progress: bool, patience: Patience) -> None:
    """Bring the whole file to its place, over as many connections as it takes."""
    part, fruitless, reached = wanted.beside(".part"), 0, False
    while True:
        before = part.stat().st_size if part.is_file() else 0
        limit = patience.attempts
        try:
            if _one_connection(wanted, before, say, progress, patience.timeout_s):
                break
            reason = "the connection ended early"
        except _Restart as restart:
            say(f"{wanted.target.name}: {restart}; starting again from 0.")
            part.unlink(missing_ok=True)
            reason = str(restart)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                said = f"{wanted.url}: the server answers {error.code} {error.reason}."
                raise WeightsError(f"{said} {wanted.how_to_bring}") from error
            reason = f"the server answers {error.code} {error.reason}"
        except NETWORK_ERRORS as error:
            cause = getattr(error, "reason", "") or error
            reason = str(cause) or type(error).__name__
            if isinstance(cause, socket.gaierror) and not reached:
                limit = min(limit, patience.lookups)
        after = part.stat().st_size if part.is_file() else 0
        reached = reached or after > before
        fruitless = 0 if after > before else fruitless + 1
        if fruitless >= limit:
            kept = f" {after} bytes are kept; the same command resumes." if after else ""
            raise WeightsError(
                f"{wanted.url}: {reason}, {fruitless} times in a row.{kept} Is there no network? {wanted.how_to_bring}"
            )
        say(f"{wanted.target.name}: {reason} at {after} bytes; trying again.")
        time.sleep(patience.backoff_s * 2 ** max(fruitless - 1, 0))
    part.replace(wanted.target)
    wanted.beside(".part.json").unlink(missing_ok=True)


def _one_connection(wanted: Wanted, start: int, say: Callable[[str], None], progress: bool, timeout_s: float) -> bool:
    """Append what one connection gives; say whether the file is whole."""
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    version = _version(wanted) if start else {}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version.get("etag"):
            headers["If-Range"] = version["etag"]
    request = urllib.request.Request(quoted(wanted.url), headers=headers)  # noqa: S310 - the scheme was checked
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return _is_whole(error, start)
        raise
    with response:
        if start and response.status != 206:
            say(f"{wanted.target.name}: the server sends the file from its start; {start} bytes are dropped.")
            start = 0
        total = _total(response, start)
        _check_offer(wanted, version if start else {}, response, total)
        _check_space(wanted, start, total)
        return _append(wanted, response, start, total, progress)


def _is_whole(error: urllib.error.HTTPError, start: int) -> bool:
    """Read a 416: nothing lies behind what has arrived, or more has arrived than there is."""
    total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
    if total.isdigit() and int(total) == start:
        return True
    raise _Restart(f"{start} bytes have arrived, and the server has {total or 'another number'}")


def _total(response: Any, start: int) -> int | None:
    """Give the size of the whole file as the server tells it."""
    if response.status == 206:
        first, _, total = (response.headers.get("Content-Range") or "").removeprefix("bytes ").partition("/")
        if first.partition("-")[0] != str(start):
            raise _Restart(f"the server sends from {first.partition('-')[0] or 'nowhere'} in place of {start}")
        return int(total) if total.isdigit() else None
    length = response.headers.get("Content-Length")
    return int(length) if length is not None and length.isdigit() else None


def _check_offer(wanted: Wanted, version: dict[str, Any], response: Any, total: int | None) -> None:
    """Refuse another size at once, restart for another version, and record which version this is.

    Raises:
        WeightsError: the server's file has another size than expected, or its size is not known at all.
    """
    if total is not None and wanted.size_bytes is not None and total != wanted.size_bytes:
        raise WeightsError(
            f"{wanted.url}: expected {wanted.size_bytes} bytes, the server offers {total}: another file. Nothing more "
            "was downloaded. If that is meant, give its checksum: --sha256 ..."
        )
    if total is None and wanted.size_bytes is None and wanted.sha256 is None:
        raise WeightsError(f"{wanted.url}: neither the size nor the checksum of the file is known. Give --sha256 ...")
    etag = response.headers.get("ETag")
    if version and (version.get("etag") != etag or version.get("total") != total):
        raise _Restart("the file on the server has changed")
    facts = {"url": wanted.url, "etag": etag, "total": total}
    wanted.beside(".part.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _version(wanted: Wanted) -> dict[str, Any]:
    """Read of which version the part is; another URL's part is no use."""
    try:
        facts: dict[str, Any] = json.loads(wanted.beside(".part.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = {}
    if facts.get("url") != wanted.url:
        raise _Restart("what has arrived comes from another place")
    return facts


def _check_space(wanted: Wanted, start: int, total: int | None) -> None:
    if total is not None and shutil.disk_usage(wanted.target.parent).free < total - start:
        raise _no_space(wanted, start, total)


def _no_space(wanted: Wanted, arrived: int, total: int | None) -> WeightsError:
    size = total if total is not None else wanted.size_bytes
    free = shutil.disk_usage(wanted.target.parent).free
    need = f"{size - arrived} more bytes are needed" if size is not None else "more bytes are needed"
    return WeightsError(
        f"{wanted.target}: no space left: {need}, {free} are free. {arrived} bytes are kept; make room, or set "
        "BINDSEARCH_CACHE_DIR to a larger disk, and run the same command."
    )


def _append(wanted: Wanted, response: Any, start: int, total: int | None, progress: bool) -> bool:
    """Write what comes behind what has arrived; say whether the file is whole."""
    from tqdm import tqdm

    part = wanted.beside(".part")
    with (
        part.open("r+b" if start else "wb", buffering=0) as file,
        tqdm(
            total=total,
            initial=start,
            desc=wanted.target.name,
            unit="B",
            unit_scale=True,
            unit_divisor=1000,
            disable=not progress,
        ) as bar,
    ):
        file.seek(start)
        arrived = start
        while chunk := response.read(CHUNK_BYTES):
            view = memoryview(chunk)
            try:
                while view:
                    written = file.write(view)
                    arrived, view = arrived + written, view[written:]
                    bar.update(written)
            except OSError as error:
                if error.errno in NO_SPACE:
                    raise _no_space(wanted, arrived, total) from error
                raise WeightsError(f"{part}: cannot be written: {error.strerror}.") from error
        os.fsync(file.fileno())
    return total is None or arrived >= total
