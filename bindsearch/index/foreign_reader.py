"""The child process that reads a FAISS file of unknown origin; `foreign.py` starts it and alone talks to it.

Answers on the descriptor that it is given: one JSON line of facts or {"refused": ...}, and, where rows are asked for,
blocks of (m,) int64 ids and (m, d) float32 rows as raw bytes. FAISS may abort or be killed here; nothing else is lost.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any

import numpy as np

from bindsearch.index.faiss_index import load_faiss

_METRICS = {0: "inner product", 1: "L2"}


def serve(path: str, descriptor: int, memory_bytes: int, cpu_s: int, block_rows: int) -> None:
    """Read a file and answer.

    Args:
        path: the FAISS file.
        descriptor: of a pipe to answer on.
        memory_bytes: address space that reading it may take, beside what Python and FAISS take.
        cpu_s: CPU seconds until the facts must be there.
        block_rows: rows a block; 0: facts only.
    """
    faiss = load_faiss()
    _limit(memory_bytes, cpu_s)
    with os.fdopen(descriptor, "wb") as answers:
        try:
            index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
            facts, rows, ids = _describe(faiss, index)
        except (RuntimeError, MemoryError, ValueError, AttributeError) as error:
            facts = {"refused": _plain(error)}
        answers.write(json.dumps(facts).encode("ascii") + b"\n")
        answers.flush()
        if "refused" not in facts and block_rows:
            _limit(memory_bytes, None)
            _send(answers, rows, ids, facts, block_rows)


def _limit(memory_bytes: int, cpu_s: int | None) -> None:
    """Limit this process, where the system can: more address space than now plus `memory_bytes` is refused to FAISS."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock alone
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (hard if cpu_s is None else cpu_s, hard))
    if cpu_s is not None and sys.platform == "linux":
        with open("/proc/self/statm") as stream:  # noqa: PTH123  # no file of a folder
            now = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + memory_bytes, now + memory_bytes))


def _describe(faiss: Any, index: Any) -> tuple[dict[str, Any], Any, Any]:
    """Give facts, the index that gives rows back, and the ids of its rows (None: their positions)."""
    ids, rows, name = None, index, type(index).__name__
    if isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
        ids = faiss.vector_to_array(index.id_map)
        if ids.size != index.ntotal:
            raise ValueError(f"it has {index.ntotal} rows and {ids.size} ids")
        rows = faiss.downcast_index(index.index)
    if isinstance(rows, faiss.IndexRefine):  # what refines holds the rows more exactly
        rows = faiss.downcast_index(rows.refine_index)
    if rows.ntotal != index.ntotal or rows.d != index.d:
        raise ValueError(f"it says ({index.ntotal}, {index.d}), what it holds ({rows.ntotal}, {rows.d})")
    lists = faiss.try_extract_index_ivf(rows)
    if lists is not None:  # behind a rotation too
        lists.make_direct_map()
    facts = {
        "kind": name,
        "stored": _stored(faiss, rows),
        "dim": int(index.d),
        "count": int(index.ntotal),
        "metric": _METRICS.get(int(index.metric_type), f"metric {int(index.metric_type)}"),
        "has_ids": ids is not None,
    }
    if index.ntotal:
        for place in (0, index.ntotal - 1):  # one by one: an error inside reconstruct_n ends the process
            if rows.reconstruct(place).shape != (index.d,):
                raise ValueError(f"row {place} has another length than {index.d}")
    return facts, rows, ids


def _stored(faiss: Any, rows: Any) -> str:
    """Name what holds the rows, and how it rounds them."""
    if isinstance(rows, faiss.IndexHNSW):
        rows = faiss.downcast_index(rows.storage)
    names = {getattr(faiss.ScalarQuantizer, name): name for name in dir(faiss.ScalarQuantizer) if name[:3] == "QT_"}
    quantizer = getattr(rows, "sq", None)
    return type(rows).__name__ + ("" if quantizer is None else f" {names.get(quantizer.qtype, quantizer.qtype)}")


def _send(answers: IO[bytes], rows: Any, ids: Any, facts: dict[str, Any], block_rows: int) -> None:
    for start in range(0, facts["count"], block_rows):
        count = min(block_rows, facts["count"] - start)
        here = np.arange(start, start + count) if ids is None else ids[start : start + count]
        answers.write(np.ascontiguousarray(here, dtype="<i8").tobytes())
        answers.write(np.ascontiguousarray(rows.reconstruct_n(start, count), dtype="<f4").tobytes())
        answers.flush()


def _plain(error: BaseException) -> str:
    """Give FAISS's reason without the C++ signature and the path in its sources."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than a file of this size may"
    text = str(error).strip().replace("\n", " ")
    text = text.partition(" at /")[2].partition(": ")[2] or text if text.startswith("Error in ") else text
    return text[:200] or type(error).__name__
