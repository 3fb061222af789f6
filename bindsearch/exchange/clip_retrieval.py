"""The layout of clip-retrieval: img_emb/img_emb_N.npy, text_emb/text_emb_N.npy, metadata/metadata_N.parquet.

Row i of the metadata belongs to row i of both: an image and its text. Columns there: image_path, caption. What
bindsearch knows beside them stands as JSON in columns of its own, which other readers pass over.
Source: clip-retrieval 2.45, its writer of partitions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bindsearch.config import canonical_json
from bindsearch.errors import InputError, UnsupportedError
from bindsearch.exchange.rows import Export, Import, cells_of, check_matrix, identity_of, identity_text
from bindsearch.row_table import read_npy
from bindsearch.store.files import commit_bytes, commit_file, read_parquet
from bindsearch.store.shard import npy_bytes

_STEMS = {"image": "img_emb", "text": "text_emb"}
_META, _ITEM = "bindsearch", "bindsearch_{}"
PARTITION_ROWS = 1_000_000
ONE_FILE = False
"""Whether the layout is one file; else it is a folder."""
_NUMBERED = re.compile(r"_(\d+)\.(npy|parquet)$")


def write(export: Export, out: Path) -> None:
    """Write images, texts, or pairs of both in the order of the images; holds all vectors in memory.

    An earlier export in that folder is replaced as a whole: rows of both would be read as one.

    Raises:
        InputError: the folder holds this layout's files from another program.
        UnsupportedError: another modality, or images and texts that do not stand in pairs (one of each in a group).
    """
    blocks = list(export.blocks)
    rows = [row for _, table in blocks for row in table.to_pylist()]
    sides = _pair(rows)
    _remove_earlier(out)
    vectors = np.concatenate([half for half, _ in blocks])
    count = len(next(iter(sides.values())))
    starts = range(0, count, PARTITION_ROWS)
    for number, start in enumerate(starts):
        label = str(number).zfill(len(str(len(starts) - 1)))
        part = {side: places[start : start + PARTITION_ROWS] for side, places in sides.items()}
        _write_metadata(out / "metadata", label, part, rows, identity_text(export.identity))
        for side, places in part.items():
            folder = out / _STEMS[side]
            folder.mkdir(parents=True, exist_ok=True)
            commit_bytes(folder / f"{_STEMS[side]}_{label}.npy", npy_bytes(vectors[places]))


def _remove_earlier(out: Path) -> None:
    """Remove the partitions of an earlier export; vectors first, since the metadata says whose they are.

    Raises:
        InputError: some are of another program.
    """
    earlier = _partitions(out)
    for files in earlier.values():
        if "metadata" not in files or not _is_ours(files["metadata"]):
            raise InputError(
                f"{next(iter(files.values()))}: not written by bindsearch, and it would be mixed up with this export. "
                "Choose another output folder, or remove it."
            )
    for files in earlier.values():
        for file in files.values():
            file.unlink()


def _is_ours(metadata: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(metadata) as file:
            return _META.encode() in (file.schema_arrow.metadata or {})
    except (OSError, pa.ArrowException):
        return False


def _partitions(path: Path) -> dict[str, dict[str, Path]]:
    """Find the files of each partition by its number as written; the metadata last."""
    partitions: dict[str, dict[str, Path]] = {}
    for kind in (*_STEMS.values(), "metadata"):
        for file in sorted((path / kind).glob(f"{kind}_*.*")):
            if match := _NUMBERED.search(file.name):
                partitions.setdefault(match.group(1), {})[kind] = file
    return partitions


def _pair(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Give the row numbers of each side, in one order."""
    sides: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        sides.setdefault(row["modality"], []).append(number)
    if others := sorted(set(sides) - set(_STEMS)):
        raise UnsupportedError(
            f"the clip-retrieval layout holds images and texts, not {', '.join(others)}. Use --format parquet, npy or "
            "hdf5, or export one modality."
        )
    if not sides:
        raise InputError("there is nothing to export.")
    if len(sides) == 1:
        return sides
    texts = {rows[number]["group"]: number for number in sides["text"]}
    groups = [rows[number]["group"] for number in sides["image"]]
    if None in groups or len(set(groups)) < len(groups) or set(texts) != set(groups) or len(texts) < len(sides["text"]):
        raise UnsupportedError(
            f"the clip-retrieval layout holds an image and its text in each row; here are {len(groups)} images and "
            f"{len(sides['text'])} texts that do not stand in pairs. Use --format parquet, or export one modality."
        )
    return {"image": sides["image"], "text": [texts[group] for group in groups]}


def _write_metadata(
    folder: Path, label: str, sides: Mapping[str, list[int]], rows: Sequence[Mapping[str, Any]], identity: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {}
    if "image" in sides:
        columns["image_path"] = [rows[number]["source"] for number in sides["image"]]
    captions = [[rows[number]["caption"] for number in places] for places in sides.values()]
    columns["caption"] = [next((text for text in texts if text), "") for texts in zip(*captions, strict=True)]
    for side, places in sides.items():
        columns[_ITEM.format(side)] = [canonical_json(rows[number]) for number in places]
    schema = pa.schema([(name, pa.string()) for name in columns], metadata={_META: identity})
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns, schema=schema)
    commit_file(folder / f"metadata_{label}.parquet", lambda file: pq.write_table(table, file, compression="zstd"))


def read(path: Path) -> Import:
    """Read such a folder: one written by bindsearch, or by clip-retrieval itself.

    Of a foreign one, an image's key is its image_path and a text's is "text_emb_N#row".

    Raises:
        InputError: no such folders in it, or partitions whose files do not belong together.
    """
    import pyarrow.parquet as pq

    partitions = _partitions(path)
    found = [partitions[number] for number in sorted(partitions, key=int)]
    if not any(stem in files for files in found for stem in _STEMS.values()):
        raise InputError(f"{path}: expected img_emb/img_emb_0.npy or text_emb/text_emb_0.npy with metadata/.")
    text = None
    if "metadata" in found[0]:
        with pq.ParquetFile(found[0]["metadata"]) as first:
            text = (first.schema_arrow.metadata or {}).get(_META.encode())
    return Import(identity_of(text, path), _blocks(found))


def _blocks(partitions: Sequence[Mapping[str, Path]]) -> Iterator[tuple[np.ndarray, Sequence[Mapping[str, Any]]]]:
    for files in partitions:
        metadata = cells_of(read_parquet(files["metadata"]), files["metadata"]) if "metadata" in files else None
        for side, stem in _STEMS.items():
            if stem not in files:
                continue
            vectors = check_matrix(read_npy(files[stem]), str(files[stem]))
            rows = metadata if metadata is not None else [{}] * len(vectors)
            if len(rows) != len(vectors):
                raise InputError(f"{files[stem]}: {len(vectors)} vectors, but {len(rows)} rows in {files['metadata']}.")
            yield vectors, [_row(row, side, f"{files[stem].stem}#{number}") for number, row in enumerate(rows)]


def _row(row: Mapping[str, Any], side: str, name: str) -> dict[str, Any]:
    if _ITEM.format(side) in row:
        return _own_row(row[_ITEM.format(side)], name)
    rest = {key: value for key, value in row.items() if key not in ("image_path", "key", "caption")}
    key = row.get("image_path") if side == "image" else None
    return {
        **rest,
        "key": key or name,
        "modality": side,
        "source": row.get("image_path"),
        "caption": row.get("caption"),
    }


def _own_row(text: str, name: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name}: what its metadata says of the item is not JSON: {error}. Export it again."
        ) from error
    if not isinstance(row, dict):
        raise InputError(
            f"{name}: what its metadata says of the item is no JSON object: {text!r:.80}. Export it again."
        )
    return row
