"""Whether a query was made for an index: by its space, its towers and its presets, and of its dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bindsearch.errors import MismatchError, ShapeError
from bindsearch.index.commit import CACHE_RECORD
from bindsearch.query import Embedding
from bindsearch.store import UNKNOWN

if TYPE_CHECKING:
    from bindsearch.index.identity import Identity
    from bindsearch.index.snapshot import Snapshot


def check_fits(snapshot: Snapshot, query: Embedding | Identity) -> None:
    """Refuse a query that was not made for an index.

    Raises:
        MismatchError: naming both values and what to type.
        ShapeError: another dimension.
    """
    manifest = snapshot.manifest
    identity = query.identity if isinstance(query, Embedding) else query
    differs = manifest.identity.difference(identity)
    if differs is not None:
        manifest.identity.merged(identity, str(snapshot.path), "the query", _advice(snapshot, *differs))
    if snapshot.centring is not None:
        snapshot.centring.check(identity.tower_ids, str(snapshot.path))
    if isinstance(query, Embedding) and query.dim != manifest.dim:
        raise ShapeError(f"{snapshot.path}: its vectors have dim {manifest.dim}, the query has dim {query.dim}.")


def check_space_known(snapshot: Snapshot) -> None:
    """Refuse to encode anything for an index of imported vectors that nobody vouches for.

    Raises:
        MismatchError: with what to type.
    """
    if snapshot.manifest.space_id == UNKNOWN:
        asks = "only vectors can be given to it" if _is_cache(snapshot) else "only --item and --vector can ask it"
        raise MismatchError(
            f"{snapshot.path}: its vectors were imported without their space, so that {asks}. "
            f"{_advice(snapshot, 'space', UNKNOWN, '')}"
        )


def _is_cache(snapshot: Snapshot) -> bool:
    return (snapshot.path / CACHE_RECORD).is_file()


def _advice(snapshot: Snapshot, what: str, ours: str, theirs: str) -> str:
    """Say what to type where a query differs; the arguments are those of `Identity.difference`."""
    manifest = snapshot.manifest
    rebuild = f"bindsearch index EMBEDDINGS -o {snapshot.path} --force"
    if _is_cache(snapshot):
        rebuild = f"bindsearch cache build SOURCES -o {snapshot.path} --force"
        if manifest.space_id == UNKNOWN:
            again = f"FILE -o {snapshot.path} --space-id NAME@HASH --force"
            return f"Make it again with the space: bindsearch cache build {again} (of a FAISS file: cache import)"
    if manifest.space_id == UNKNOWN:
        return f"Import again with the space: bindsearch import FILE -o EMBEDDINGS --space-id NAME@HASH; {rebuild}"
    preset = ours.partition(":")[0]
    if what.endswith(" preset"):
        if preset == theirs.partition(":")[0]:  # of one name, but other numbers
            return f"Rebuild: {rebuild}"
        return f"Leave --preset away, or give --preset {what.removesuffix(' preset')}={preset}"
    return f"Ask with --space {manifest.space_name}, or rebuild: {rebuild}"
