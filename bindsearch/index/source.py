"""What an index takes items from: embeddings on disk or in memory, and whether they may go together with an index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bindsearch.errors import MismatchError
from bindsearch.index.identity import Identity
from bindsearch.index.manifest import Manifest
from bindsearch.store import UNKNOWN

if TYPE_CHECKING:
    from bindsearch.index.segment import Block

BLOCK_ROWS = 4096
"""Rows that changes of an index hold in memory at once, unless told otherwise."""


class VectorSource(Protocol):
    """What an index is built from; `bindsearch.store.EmbeddingStore` is one."""

    @property
    def manifest(self) -> Any:
        """Gives space_name, space_id, dim, tower_ids, preset_ids, tokenizer_id."""

    def iter_blocks(self, rows: int) -> Iterable[Block]:
        """Iterate over (ids, vectors, item table) in blocks of at most `rows` rows."""

    def gone_sources(self) -> dict[int, set[str]]:
        """Give what it held and holds no longer: id -> the sources of it."""


Embeddings = str | Path | VectorSource
"""A store, or its path."""


def several(given: Embeddings | Sequence[Embeddings]) -> tuple[Embeddings, ...]:
    """Give what is named where several can be; one store or path by itself is one, and no path is a list of letters."""
    return tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)


def open_source(embeddings: Embeddings) -> tuple[VectorSource, str]:
    """Open a store where a path is given; gives it with its name."""
    if isinstance(embeddings, str | Path):
        from bindsearch.store import EmbeddingStore

        return EmbeddingStore.open(Path(embeddings)), str(embeddings)
    return embeddings, str(getattr(embeddings, "path", ""))


def identity_of(source: VectorSource, name: str) -> Identity:
    """Read the identity that embeddings carry.

    Raises:
        MismatchError: a tower of theirs was bound to another space.
    """
    manifest = source.manifest
    try:
        return Identity(manifest.space_id, dict(manifest.tower_ids), dict(manifest.preset_ids), manifest.tokenizer_id)
    except MismatchError as error:
        raise MismatchError(f"{name or 'embeddings'}: {error}") from error


def check_dim(dim: int, found: int, here: str, there: str) -> None:
    """Refuse vectors of another dimension than those they shall lie beside.

    Raises:
        MismatchError: naming both.
    """
    if int(found) != dim:
        raise MismatchError(f"{here}: built with dim {dim}, {there or 'the addition'} has dim {found}.")


def check_known(old: Manifest, source: VectorSource, here: str, there: str) -> None:
    """Refuse to put two imports of unknown spaces together: nothing says that it is one space.

    Raises:
        MismatchError: with what to type.
    """
    unknown = old.space_id == source.manifest.space_id == UNKNOWN
    if unknown and not (there and Path(there).resolve() == Path(old.source).resolve()):
        raise MismatchError(
            f"{here}: built with space {UNKNOWN} from {old.source or 'embeddings without a folder'}, "
            f"{there or 'the addition'} comes from space {UNKNOWN}: these may be two. Name the space of both: "
            "bindsearch import FILE -o EMBEDDINGS --space-id NAME@HASH; then index them again."
        )
