"""FAISS files of cached features, such as ImageBind-LLM's knn.index: read into a cache, written for the original code.

The original reads its file with FAISS and takes values back by `reconstruct`. What it can be given, and what we take
from others, is decided by what holds the rows: codes that lose much of a row cannot serve, whatever searches them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.cache.build import Inputs, build_kept, find_kept
from bindsearch.cache.features import item_block
from bindsearch.cache.recipe import CacheRecipe, CacheRecord
from bindsearch.cache.rows import IndexRows
from bindsearch.errors import InputError, MissingInputError, UnknownNameError, UnsupportedError
from bindsearch.exchange.transfer import settle_identity
from bindsearch.index.base import Progress, no_progress
from bindsearch.index.commit import check_output
from bindsearch.index.faiss_index import load_faiss
from bindsearch.index.foreign import FaissFacts, inspect_faiss_file, rows_of_faiss_file
from bindsearch.store.files import commit_file
from bindsearch.types import check_shape

if TYPE_CHECKING:
    from typing import IO, Any

    import pyarrow as pa

    from bindsearch.cache.visual import VisualCache
    from bindsearch.store import Identity
    from bindsearch.types import FloatArray, IntArray

WHOLE = {
    "IndexFlat": "",
    "IndexFlatIP": "",
    "IndexFlatL2": "",
    "IndexIVFFlat": "",
    "IndexScalarQuantizer QT_fp16": "",
    "IndexIVFScalarQuantizer QT_fp16": "",
    "IndexScalarQuantizer QT_bf16": "its rows keep 8 bits of precision (bfloat16)",
    "IndexIVFScalarQuantizer QT_bf16": "its rows keep 8 bits of precision (bfloat16)",
    "IndexScalarQuantizer QT_8bit": "its rows keep 8 bits a component: about 0.9999 of the cosine",
    "IndexIVFScalarQuantizer QT_8bit": "its rows keep 8 bits a component: about 0.9999 of the cosine",
}
"""What may hold the rows of a file that is read, with what to say of it; all other types are refused by name."""
_FAST_SCAN = {b"IPfs": "IndexPQFastScan", b"IwPf": "IndexIVFPQFastScan", b"Irfs": "IndexRaBitQFastScan"}
"""First bytes of files whose rows cannot be had: FAISS ends the process that asks for one."""
EXPORTS = {"flat": ("IndexFlatIP", "<f4"), "fp16": ("IndexScalarQuantizer QT_fp16", "<f2")}
UNIT_ERROR = 0.02
"""How far the norm of a feature may be from 1: codes of 8 bits stay within; features that nobody normalised do not."""
_BLOCK_ROWS = 8192


@dataclass(frozen=True, eq=False)
class FaissSource:
    """Rows of a FAISS file as an index takes them; see `index.source.VectorSource`.

    Attributes:
        facts: what the file says of itself.
        manifest: the identity that the caller states.
        modality: of the rows.
    """

    facts: FaissFacts
    manifest: Identity
    modality: str = "image"

    def iter_blocks(self, rows: int) -> Iterator[tuple[IntArray, FloatArray, pa.Table]]:
        """Iterate over (ids, float32 unit rows, item table); a child process reads the file.

        Raises:
            InputError: a row that is not finite, is zero, or is no unit row; it is named.
            DecodeError: the file is damaged.
        """
        path, at = self.facts.path, 0
        for labels, vectors in rows_of_faiss_file(path, rows):
            norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
            off = np.isfinite(norms) & (norms > 0) & (np.abs(norms - 1) > UNIT_ERROR)
            if off.any():
                place = int(np.argmax(off))
                raise InputError(
                    f"{path}: row {at + place} has the norm {norms[place]:.4g}, expected 1: cached features are unit "
                    "rows, and the original would weigh longer ones more. Normalise them and write the file again."
                )
            names = [{"key": f"{path.name}#{label}"} for label in labels.tolist()]
            yield item_block(vectors, names, at, (path, self.modality))
            at += vectors.shape[0]

    def gone_sources(self) -> dict[int, set[str]]:
        """Give nothing: a file says nothing of what it held before."""
        return {}


def check_type(path: Path) -> tuple[FaissFacts, str]:
    """Inspect a FAISS file and refuse types that cannot serve as a cache.

    Returns:
        What it says of itself, and what to tell the user about its precision; empty where there is nothing to tell.

    Raises:
        MissingInputError: no such file, or no rows in it.
        UnsupportedError: naming the type and what to do instead.
        DecodeError: no FAISS index, or damaged.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: there is no such file. Name a FAISS index, such as knn.index.")
    with path.open("rb") as stream:
        fast = _FAST_SCAN.get(stream.read(4))
    again = (
        "Write it again from the vectors themselves, or build from those: bindsearch cache build FEATURES.npy -o CACHE"
    )
    if fast:
        raise UnsupportedError(
            f"{path}: is an {fast}, whose rows cannot be taken back: FAISS ends the process. {again}"
        )
    facts = inspect_faiss_file(path)
    if not facts.count:
        raise MissingInputError(f"{path}: is empty: there is nothing to take a cached neighbour from.")
    if facts.stored not in WHOLE:
        inside = "" if facts.stored == facts.kind else f" over {facts.stored}"
        raise UnsupportedError(
            f"{path}: is an {facts.kind}{inside}, whose codes give coarse values back; a cache averages values. "
            f"Types that serve: {', '.join(WHOLE)}, also inside IndexHNSW, IndexIDMap and IndexRefine. {again}"
        )
    return facts, WHOLE[facts.stored]


def import_faiss(
    path: str | Path,
    output: str | Path,
    space_id: str | None = None,
    recipe: CacheRecipe | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    inputs: Inputs | None = None,
) -> tuple[CacheRecord, FaissFacts]:
    """Read a FAISS file of features, such as knn.index, into a cache.

    Args:
        path: the file; a child process reads it, this one never does.
        output: folder of the index; created.
        space_id: what the features were made with, as `bindsearch models info` prints it; None: unknown.
        recipe: what to keep and what index to build; None: all rows, equal ones too, as the original has them.
        force: replace an index that is already there.
        progress: told of near duplicates and of the index's files.
        inputs: with a recipe whose index is approximate: queries to tune it on, as of `build_cache`; its sources are
            not read.

    Raises:
        UnsupportedError, MissingInputError, DecodeError: as of `check_type`.
        InputError: rows that are no finite unit rows; `output` holds an index and force is not set; a recipe that
            cannot be meant.
        MismatchError: the space named has another id or dimension.
    """
    path, output = Path(path), Path(output)
    check_output(output, force, "Replace it with --force, or choose a new folder.")
    (recipe or CacheRecipe()).check()
    facts, _ = check_type(path)
    source = FaissSource(facts, settle_identity(None, space_id, facts.dim, path))
    if recipe is None:
        recipe, found = CacheRecipe(), {"seen": facts.count, "repeated": 0, "others": 0, "kept": facts.count}
        mask = np.ones(facts.count, dtype=bool)
    else:
        source = replace(source, modality=recipe.modality)
        found, mask = find_kept(source, recipe, output.parent, progress)
    return build_kept(output, (source, str(path), found, mask), inputs or Inputs(), recipe, force, progress), facts


def export_faiss(cache: VisualCache, path: str | Path, rows: str = "flat") -> int:
    """Write a cache as a FAISS file that the original code reads; beside it a table of what each row is.

    Args:
        cache: over an index on disk.
        path: file to write; PATH.items.parquet has the id, key and source of row i in its row i.
        rows: "flat" (IndexFlatIP, float32) or "fp16" (IndexScalarQuantizer, half the bytes).

    Returns:
        How many rows were written.

    Raises:
        UnknownNameError: another kind of rows, such as those that the original cannot read.
        UnsupportedError: a cache in memory.
    """
    import pyarrow.parquet as pq

    if rows not in EXPORTS:
        raise UnknownNameError(
            "kind of rows", rows, EXPORTS, "The original takes each row back; codes that are coarser cannot serve."
        )
    if not isinstance(cache.rows, IndexRows):
        raise UnsupportedError("cache export: a cache in memory has no items. Build it on disk: bindsearch cache build")
    ids = cache.rows.ids()
    path = Path(path)
    head = _header(rows, cache.rows.dim, ids.size)

    def fill(stream: IO[bytes]) -> None:
        stream.write(head)
        for start in range(0, ids.size, _BLOCK_ROWS):
            block = cache.rows.rows(ids[start : start + _BLOCK_ROWS])
            check_shape(block, ("n", cache.rows.dim), "cached rows")
            stream.write(np.ascontiguousarray(block, dtype=EXPORTS[rows][1]).data)

    path.parent.mkdir(parents=True, exist_ok=True)
    commit_file(path, fill)
    table = cache.rows.snapshot.table(ids, ["id", "key", "modality", "source"])
    commit_file(path.with_name(path.name + ".items.parquet"), lambda stream: pq.write_table(table, stream))
    return int(ids.size)


def _header(rows: str, dim: int, count: int) -> bytes:
    """Let FAISS write an empty index, and say in it how many rows follow: no copy of the rows in memory.

    An index file ends in its rows, behind their number (of floats, or of bytes of codes); the number of rows stands
    behind the first four bytes and the dimension.
    """
    faiss: Any = load_faiss()
    if rows == "flat":
        empty, length = faiss.IndexFlatIP(dim), count * dim
    else:
        quantizer = faiss.ScalarQuantizer.QT_fp16
        empty, length = faiss.IndexScalarQuantizer(dim, quantizer, faiss.METRIC_INNER_PRODUCT), 2 * count * dim
        empty.is_trained = True
    data = bytearray(faiss.serialize_index(empty).tobytes())
    if struct.unpack_from("<iq", data, 4) != (dim, 0) or data[-8:] != bytes(8):
        raise UnsupportedError(f"cache export: FAISS {faiss.__version__} writes another format than is known here.")
    struct.pack_into("<q", data, 8, count)
    struct.pack_into("<Q", data, len(data) - 8, length)
    return bytes(data)
