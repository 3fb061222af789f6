"""index.json: what an index folder holds, and the one file whose replacement commits a change.

    INDEX/
      index.json                       this manifest, with its own checksum; replaced atomically
      segments/000001-4f2c91ab/        immutable once written:
        vectors.npy                    (n, d) float32 or float16 unit rows, mapped
        ids.npy, order.npy             (n,) int64 ids in row order; row positions in ascending order of id
        items.parquet                  the item table, row i of it belongs to row i of vectors.npy, or, where there is
        table_rows.npy                 (n,) row of the item table of each row of vectors.npy (a backend sorted the rows)
        attributes.arrow               attributes as typed columns, in the order of the item table, where it has any
        ...                            what the segment's backend wrote: codes, lists, graphs
      tombstones/000001-4f2c91ab.000002.npy    (m,) int64 ids removed from that segment, as of change 2
      index.means-4f2c91ab03de.npy     of a centred index: (modalities, d) float64 means, modalities by name
      index.lock                       held by the one who changes

At open the manifest's checksum, the sizes of all files, the headers of the arrays, the counts and the checksums of
small files are checked; `IndexFolder.verify` reads every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindsearch.config import content_hash, from_json_dict, to_json_dict
from bindsearch.errors import InputError, MismatchError, MissingInputError
from bindsearch.index.identity import Identity
from bindsearch.index.recipe import Recipe

FORMAT = "bindsearch-index"
FORMAT_VERSION = 1
CENTRED_VERSION = 2
"""Format of an index whose rows are centred: an older reader would ask it with queries that are not."""
RECIPE_VERSION = 3
"""Format of an index that has a recipe, rows other than float32, or segments of their own backends."""
REPLACING_VERSION = 4
"""Format of an index that was built in place of another: an older reader would take what lies beside it, such as a
cache's record, for its own though it may be the other's."""
SMALL_FILE_BYTES = 256 << 10


@dataclass(frozen=True)
class FileEntry:
    """Size and checksum of a file of the index."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class SegmentEntry:
    """One immutable segment and what was removed from it since.

    Attributes:
        name: its folder under segments/.
        rows: stored rows, removed ones included.
        files: file name -> entry.
        ids_sha256: of the ids as little-endian int64 in row order; ties vectors and item table together.
        removed: how many rows the tombstones take out.
        tombstones: file under tombstones/, or None.
        tombstones_file: its entry, or None.
        backend: registered name of its own; empty: the manifest's.
    """

    name: str
    rows: int
    files: dict[str, FileEntry]
    ids_sha256: str
    removed: int = 0
    tombstones: str | None = None
    tombstones_file: FileEntry | None = None
    backend: str = ""

    @property
    def mark(self) -> tuple[str, str]:
        """Tells its item table from that of every other segment, also of an index that stood in its place."""
        return self.name, self.files["items.parquet"].sha256


@dataclass(frozen=True)
class CentringEntry:
    """The means that were taken from the rows, and are taken from queries; see `centring.Centring`.

    Attributes:
        id: name and hash of the means.
        file: of the index folder.
        described: its size and checksum.
        counts: modality -> how many items its mean is over; the file's rows are in the order of their names.
    """

    id: str
    file: str
    described: FileEntry
    counts: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """What an index folder holds.

    Attributes:
        generation: counts the changes, from 1.
        backend: registered name; of the segments that name none of their own.
        dim: columns of the rows; row_dtype, metric: how they are stored and compared.
        space_name: what `load_space` takes to load the space.
        space_id, tower_ids, preset_ids, tokenizer_id: see `Identity`.
        count, modalities: living items, in all and by modality.
        segments: in the order they were added.
        source: the embeddings that the index was last built or extended from, as the caller named them.
        built_with: package -> version.
        centring: of a centred index; None: rows are as they were embedded.
        recipe: what `compact` builds by; None: `backend` over float32 rows.
        tuned: what the planner measured and chose; its "settings" are those of a search that names none.
        first_generation: that the index was built by, in place of another: what was kept beside the index before (a
            cache's record, a background) is not of its items. 1: there was none, or an earlier version replaced it.
        format_version: set by `write_manifest`: the oldest that has all that the manifest uses.
    """

    backend: str
    dim: int
    space_name: str
    space_id: str
    count: int
    modalities: dict[str, int]
    segments: tuple[SegmentEntry, ...]
    tower_ids: dict[str, str] = field(default_factory=dict)
    preset_ids: dict[str, str] = field(default_factory=dict)
    tokenizer_id: str | None = None
    source: str = ""
    built_with: dict[str, str] = field(default_factory=dict)
    generation: int = 1
    centring: CentringEntry | None = None
    recipe: Recipe | None = None
    tuned: dict[str, Any] | None = None
    first_generation: int = 1
    metric: str = "cosine"
    row_dtype: str = "float32"
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def identity(self) -> Identity:
        """The space, towers and presets of the vectors."""
        return Identity(self.space_id, self.tower_ids, self.preset_ids, self.tokenizer_id)

    @property
    def small_recipe(self) -> Recipe | None:
        """What additions are built by: exact, whatever the recipe of the index; None where it has no recipe."""
        if self.recipe is None:
            return None
        return Recipe("faiss-flat", row_dtype=self.row_dtype, byte_codes=self.recipe.byte_codes)


def _what_is_there(folder: Path) -> str:
    """Say what a folder without index.json is, and what to type next."""
    from bindsearch.store import generation_folders

    make = f"Type: bindsearch index EMBEDDINGS -o {folder}"
    if not folder.is_dir():
        return f"does not exist. {make}"
    if generation_folders(folder):
        name = folder.name if folder.name != "embeddings" else folder.parent.name or "mine"
        return f"holds embeddings, no index. Make one of them: bindsearch index {folder} -o indexes/{name}"
    names = {path.name for path in folder.iterdir()}
    if any(name.startswith("index.") for name in names) or not names:
        return f"holds no index.json (no index, or its build did not finish). {make}"
    return (
        f"holds no index. Of media make one in two steps: bindsearch embed {folder} -o EMBEDDINGS, then "
        "bindsearch index EMBEDDINGS -o INDEX"
    )


def read_manifest(folder: Path) -> Manifest:
    """Read and check index.json.

    Raises:
        MissingInputError: no such folder, or no index in it.
        MismatchError: another format, another version, or the checksum does not fit; both values are named.
    """
    path = folder / "index.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInputError(f"{folder}: {_what_is_there(folder)}") from error
    except NotADirectoryError as error:
        raise MissingInputError(f"{folder}: is a file, expected an index folder.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MismatchError(f"{path}: not valid JSON ({error}). Build the index again.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise MismatchError(f"{path}: expected format {FORMAT!r}, got {found!r}.")
    if data.get("format_version") != _version_of(data):
        raise MismatchError(
            f"{path}: format version {data.get('format_version')!r}, this bindsearch reads {FORMAT_VERSION} "
            f"(of a centred index {CENTRED_VERSION}, of one with a recipe {RECIPE_VERSION}, "
            f"of one that replaced another {REPLACING_VERSION}). "
            "Use the version that wrote it, or build the index again."
        )
    stated, computed = data.pop("checksum", None), content_hash(data, 64)
    if stated != computed:
        raise MismatchError(f"{path}: its checksum is stated as {stated}, computed {computed}: the file was altered.")
    try:
        return from_json_dict(Manifest, data, where=str(path))
    except InputError as error:
        raise MismatchError(str(error)) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace index.json by a new one in one step: temporary file, fsync, rename, fsync of the folder."""
    data = to_json_dict(manifest)
    for name in ("centring", "recipe", "tuned"):
        if data[name] is None:
            del data[name]
    if data["first_generation"] == 1:
        del data["first_generation"]
    for entry in data["segments"]:
        if not entry["backend"]:
            del entry["backend"]
    data["format_version"] = _version_of(data)
    data["checksum"] = content_hash(data, 64)
    temporary = folder / f"index.json.tmp-{os.getpid()}"
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(data, stream, indent=1, ensure_ascii=True, allow_nan=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / "index.json")
    sync_folder(folder)


def _version_of(data: Mapping[str, Any]) -> int:
    """Give the oldest format version that has all that a manifest, as JSON, uses."""
    if data.get("first_generation", 1) != 1:
        return REPLACING_VERSION
    segments = data.get("segments")
    entries = [entry for entry in segments if isinstance(entry, dict)] if isinstance(segments, list) else []
    named = any(entry.get("backend") for entry in entries)
    if named or data.get("recipe") or data.get("tuned") or data.get("row_dtype", "float32") != "float32":
        return RECIPE_VERSION
    return CENTRED_VERSION if data.get("centring") else FORMAT_VERSION


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # folders cannot be opened there (Windows): the rename is durable without it
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def describe_file(path: Path) -> FileEntry:
    """Give size and checksum of a file, reading all of it."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return FileEntry(size_bytes=path.stat().st_size, sha256=digest.hexdigest())


def check_file(path: Path, entry: FileEntry, payload: bool) -> None:
    """Compare a file with the manifest.

    Args:
        path: the file.
        entry: what the manifest says of it.
        payload: whether to read it all; files up to SMALL_FILE_BYTES are read in any case.

    Raises:
        FileNotFoundError: it is gone (the caller may find a newer manifest).
        MismatchError: another size or checksum; both values are named.
    """
    size = path.stat().st_size
    if size != entry.size_bytes:
        raise MismatchError(f"{path}: {size} bytes, its manifest says {entry.size_bytes}. Build the index again.")
    if payload or size <= SMALL_FILE_BYTES:
        found = describe_file(path).sha256
        if found != entry.sha256:
            raise MismatchError(
                f"{path}: its checksum is {found[:16]}..., its manifest says {entry.sha256[:16]}...: the file was "
                "altered. Build the index again."
            )


def sum_counts(*counts: Mapping[str, int]) -> dict[str, int]:
    """Add up counts by name, leaving out zeros."""
    names = sorted({name for count in counts for name in count})
    summed = {name: sum(count.get(name, 0) for count in counts) for name in names}
    return {name: value for name, value in summed.items() if value}
