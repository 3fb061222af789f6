"""FAISS files that are not ours, such as a knn.index from a download: read by a child process, never by this one.

FAISS parses what it is given: a damaged or hostile file can abort the process that reads it, or take all its memory.
So a child process with a limit of time and memory reads the file, says what it is, and hands its rows over a pipe; a
child that dies is a refusal with one plain line (docs/adr/0101). The child has this user's rights: a limit against
accidents and clumsy files, not a sandbox.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import DecodeError, MissingInputError

if TYPE_CHECKING:
    from bindsearch.types import FloatArray, IntArray

TIMEOUT_S = 120.0
SPARE_BYTES = 1 << 30
_LINE_BYTES = 4096
_SMALLEST_BYTES = 20
_MOST_DIM = 1 << 16
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class FaissFacts:
    """What a FAISS file says of itself, after a child process has read it.

    Attributes:
        path: the file.
        size_bytes: its size.
        kind: FAISS's class, such as "IndexFlatIP".
        stored: what holds the rows inside it, such as "IndexScalarQuantizer QT_fp16".
        dim: columns of its rows.
        count: rows.
        metric: "inner product", "L2" or "metric N".
        has_ids: whether rows have ids of their own; else their positions are their ids.
    """

    path: Path
    size_bytes: int
    kind: str
    stored: str
    dim: int
    count: int
    metric: str
    has_ids: bool


def inspect_faiss_file(path: str | Path, timeout_s: float = TIMEOUT_S, memory_bytes: int | None = None) -> FaissFacts:
    """Say what a FAISS file holds, without reading it in this process.

    Args:
        path: the file.
        timeout_s: after which the child process is killed.
        memory_bytes: that the child may take beside the libraries; None: twice the file and SPARE_BYTES.

    Raises:
        MissingInputError: there is no such file.
        DecodeError: it is no FAISS index, is damaged, gives no rows back, or takes more time or memory.
    """
    path = _check_path(Path(path))
    with _child(path, memory_bytes, timeout_s, 0) as (process, answers):
        return _read_facts(path, process, answers, timeout_s)


def rows_of_faiss_file(
    path: str | Path, block_rows: int | None = None, timeout_s: float = TIMEOUT_S, memory_bytes: int | None = None
) -> Iterator[tuple[IntArray, FloatArray]]:
    """Iterate over the rows of a FAISS file; a child process reads it and hands them over a pipe.

    Args:
        path: the file.
        block_rows: rows a block; None: about 16 MiB.
        timeout_s: for the facts, and for each block; then the child process is killed.
        memory_bytes: as in `inspect_faiss_file`.

    Yields:
        ids (m,) int64 and rows (m, d) float32, as FAISS gives them back: not normalised, lossy where its codes are.

    Raises:
        MissingInputError, DecodeError: as in `inspect_faiss_file`; or it breaks off before its last row.
    """
    path = _check_path(Path(path))
    if block_rows is None:
        block_rows = max(1, _BLOCK_BYTES // (4 * inspect_faiss_file(path, timeout_s, memory_bytes).dim))
    with _child(path, memory_bytes, timeout_s, block_rows) as (process, answers):
        facts = _read_facts(path, process, answers, timeout_s)
        for start in range(0, facts.count, block_rows):
            count = min(block_rows, facts.count - start)
            wanted = count * (8 + 4 * facts.dim)
            with _deadline(process, timeout_s) as late:
                data = answers.read(wanted)
            if len(data) != wanted:
                raise _refusal(path, process, late, timeout_s, f"after {start} of {facts.count} rows")
            rows = np.frombuffer(data, dtype="<f4", offset=8 * count).reshape(count, facts.dim)
            yield np.frombuffer(data, dtype="<i8", count=count).astype(np.int64), rows.astype(np.float32)


def _check_path(path: Path) -> Path:
    if not path.is_file():
        raise MissingInputError(f"{path}: {'is no file' if path.exists() else 'does not exist'}. Name a FAISS index.")
    size = path.stat().st_size
    if size < _SMALLEST_BYTES:
        raise DecodeError(str(path), f"{size} bytes, fewer than the header of a FAISS index ({_SMALLEST_BYTES}).")
    return path


@contextmanager
def _child(
    path: Path, memory_bytes: int | None, timeout_s: float, block_rows: int
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Start the reader; it is killed on the way out, whatever it is doing."""
    allowed = 2 * path.stat().st_size + SPARE_BYTES if memory_bytes is None else memory_bytes
    ours, theirs = os.pipe()
    order = (str(path.absolute()), theirs, allowed, max(1, int(timeout_s)), block_rows)
    serve = f"from bindsearch.index.foreign_reader import serve; serve(*{order!r})"
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {serve}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    except OSError:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    try:
        with os.fdopen(ours, "rb") as answers:
            yield process, answers
    finally:
        process.kill()
        process.wait()


def _read_facts(path: Path, process: subprocess.Popen[bytes], answers: IO[bytes], timeout_s: float) -> FaissFacts:
    with _deadline(process, timeout_s) as late:
        line = answers.readline(_LINE_BYTES)
    try:
        said: dict[str, Any] = json.loads(line)
    except ValueError:
        raise _refusal(path, process, late, timeout_s, "while opening it") from None
    if "refused" in said:
        with path.open("rb") as stream:
            first = stream.read(4)
        raise DecodeError(
            str(path), f"not a FAISS index that can be read: {said['refused']}. It begins with {first!r}."
        )
    facts = FaissFacts(path=path, size_bytes=path.stat().st_size, **said)
    if not 0 < facts.dim <= _MOST_DIM or facts.count < 0:
        raise DecodeError(
            str(path), f"says ({facts.count}, {facts.dim}) rows and columns; expected 1 to {_MOST_DIM} columns."
        )
    return facts


@contextmanager
def _deadline(process: subprocess.Popen[bytes], timeout_s: float) -> Iterator[threading.Event]:
    """Kill a process that is not done in time; the event says that it was."""
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(timeout_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _refusal(
    path: Path, process: subprocess.Popen[bytes], late: threading.Event, timeout_s: float, when: str
) -> DecodeError:
    """Say how the reader ended."""
    if late.is_set():
        how = f"took longer than {timeout_s:g} s"
    else:
        code = process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return DecodeError(
        str(path),
        f"the process that reads it {how}, {when}: damaged, or of a kind whose rows FAISS cannot give back. Not used.",
    )
