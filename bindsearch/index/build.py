"""Building an index over embeddings, and building it again from others."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.errors import InputError, MismatchError, MissingInputError
from bindsearch.index.base import Progress, no_progress
from bindsearch.index.centring import Centring, measure_means
from bindsearch.index.commit import check_output, commit, creating, first_of, forget_beside, last_generation
from bindsearch.index.folder import IndexFolder
from bindsearch.index.heldout import check_queries, query_means
from bindsearch.index.identity import Identity
from bindsearch.index.manifest import CENTRED_VERSION, FORMAT_VERSION, Manifest
from bindsearch.index.recipe import Recipe
from bindsearch.index.segment import write_segment
from bindsearch.index.snapshot import Snapshot
from bindsearch.index.source import Embeddings, VectorSource, check_dim, identity_of, open_source, several
from bindsearch.registry import INDEXES

if TYPE_CHECKING:
    from bindsearch.types import FloatArray

Judge = Callable[[Snapshot], dict[str, Any]]
"""Gives what the manifest shall hold as `tuned` of an index that is built and not committed; raises to refuse it.
Empty: nothing was measured."""


def build_index(
    embeddings: Embeddings,
    output: str | Path,
    backend: str | Recipe = "faiss-flat",
    force: bool = False,
    centre: bool = False,
    centre_with: Embeddings | Sequence[Embeddings] = (),
    judge: Judge | None = None,
    progress: Progress = no_progress,
    queries: Embeddings | Sequence[Embeddings] = (),
) -> IndexFolder:
    """Build an index over embeddings.

    Args:
        embeddings: folder of an embedding store, or an open one.
        output: folder of the index; created.
        backend: registered name, or a recipe.
        force: replace an index that is already there (readers keep the old one until they open again). A cache's record
            and a background beside it were of its items, and go.
        centre: take the mean of its modality from each row, and later from each query; see `index.centring`.
        centre_with: further embeddings of the same space that the means are over, as for modalities that the index will
            only be asked with; they do not become items.
        judge: measures the index before it is committed; where it raises, the folder stays as it was.
        progress: told how far the backend's files are.
        queries: embeddings of queries like those to come, of the same space. Codes of backends that ask for them, and
            for exact search, hold the means of their modalities first; nothing else is made of them here.

    Raises:
        MissingInputError: there is no store, or it holds no embedded item.
        InputError: `output` holds an index and force is not set, or holds other things.
        UnknownNameError: no such backend.
        MismatchError: embeddings to centre with, or queries, are of another space, tower or preset.
    """
    source, name = open_source(embeddings)
    output = Path(output)
    recipe = backend if isinstance(backend, Recipe) else None
    INDEXES[recipe.backend if recipe else str(backend)]  # an unknown name is refused before any work
    check_output(output, force)
    identity, centring = _prepare(source, name, centre, centre_with)
    check_queries(embeddings, queries)
    with creating(output):
        check_output(output, force)  # once more: another process may have built it while this one waited
        asking = None
        if recipe is not None and (recipe.byte_codes or INDEXES[recipe.backend].asks) and queries:
            asking = query_means(queries, centring)
        manifest = _write(source, name, output, recipe or str(backend), (identity, centring), asking, progress)
        try:
            tuned = judge(Snapshot.of(output, manifest)) if judge else {}
        except BaseException:
            shutil.rmtree(output / "segments" / manifest.segments[0].name, ignore_errors=True)
            raise
        commit(output, replace(manifest, tuned=tuned or None))
        forget_beside(output)
    return IndexFolder.open(output)


def reindex(
    path: str | Path,
    embeddings: Embeddings,
    centre_with: Embeddings | Sequence[Embeddings] = (),
    drop_missing: bool = False,
    judge: Judge | None = None,
    progress: Progress = no_progress,
) -> IndexFolder:
    """Build an index again from other embeddings of its items, as when the space changed: same recipe and options.

    A cache's record and a background beside it are of the old embeddings, and go. The index is centred again if it was,
    over means of the new embeddings. Until the last step it answers as before.

    Args:
        path: the index.
        embeddings: of its items, in the new space; what else they hold becomes part of it.
        centre_with: as in `build_index`; of a centred index whose means are over modalities that are no items.
        drop_missing: go on where the embeddings lack items that the index has.
        judge: as in `build_index`; settings that were tuned before are dropped.
        progress: told how far the backend's files are.

    Raises:
        MissingInputError: there is no index.
        InputError: items of the index are missing from the embeddings and `drop_missing` is not set; or `centre_with`
            is given for an index that is not centred.
        MismatchError: a modality would lose its mean; or as in `build_index`.
    """
    manifest = Snapshot.open(Path(path)).manifest

    def check(new: Snapshot) -> dict[str, Any]:
        old = Snapshot.open(Path(path))  # as it is now that nobody else may change it
        lost = sorted(set(old.centring.names if old.centring else ()) - set(new.centring.names if new.centring else ()))
        if lost:
            raise MismatchError(
                f"{path}: has a mean of {', '.join(lost)}, the new embeddings hold none. Name embeddings of it in the "
                "new space: --centre-with MORE_EMBEDDINGS"
            )
        ids = old.ids()
        missing = ids[new.locate(ids)[0] < 0]
        if missing.size and not drop_missing:
            key = old.table(missing[:1], ["key"])["key"][0].as_py()
            raise InputError(
                f"{path}: {missing.size} of its {ids.size} items are not in the new embeddings, such as {key!r}. "
                "Embed them too, or let them go: --drop-missing"
            )
        return judge(new) if judge else {}

    how = manifest.backend if manifest.recipe is None else manifest.recipe
    centred = manifest.centring is not None
    if centre_with and not centred:
        raise InputError(
            f"{path}: is not centred, so that --centre-with has no means to take. Leave --centre-with away, or build "
            f"it centred: bindsearch index EMBEDDINGS -o {path} --force --centre --centre-with MORE_EMBEDDINGS"
        )
    return build_index(embeddings, path, how, True, centred, centre_with, check, progress)


def _prepare(
    source: VectorSource, name: str, centre: bool, centre_with: Embeddings | Sequence[Embeddings]
) -> tuple[Identity, Centring | None]:
    """Check what goes together and measure the means, before anything is written."""
    identity = identity_of(source, name)
    if centre_with and not centre:
        raise InputError("--centre-with names what means are over: give --centre as well.")
    beside = [open_source(each) for each in several(centre_with)]
    for each, there in beside:
        identity = identity.merged(identity_of(each, there), name or "embeddings", there, "Embed both with one space.")
        check_dim(int(source.manifest.dim), each.manifest.dim, name or "embeddings", there)
    return identity, measure_means([(source, name), *beside]) if centre else None


def _write(
    source: VectorSource,
    name: str,
    output: Path,
    how: str | Recipe,
    context: tuple[Identity, Centring | None],
    asking: FloatArray | None,
    progress: Progress,
) -> Manifest:
    """Write the one segment of a new index; gives the manifest to commit."""
    identity, centring = context
    recipe = how if isinstance(how, Recipe) else None
    generation, dim = last_generation(output) + 1, int(source.manifest.dim)
    blocks = source.iter_blocks(4096)
    if centring is not None:
        blocks = centring.blocks(blocks, str(output))
    entry, modalities = write_segment(output, generation, blocks, dim, recipe, progress, asking=asking)
    if entry is None:
        raise MissingInputError(f"{name or 'embeddings'}: no embedded item. Type: bindsearch embed SRC -o {name}")
    identity = identity.within({*modalities, *(centring.names if centring else ())})
    return Manifest(
        backend=recipe.backend if recipe else str(how),
        dim=dim,
        space_name=str(source.manifest.space_name),
        space_id=str(source.manifest.space_id),
        count=entry.rows,
        modalities=modalities,
        segments=(entry,),
        tower_ids=dict(identity.tower_ids),
        preset_ids=dict(identity.preset_ids),
        tokenizer_id=identity.tokenizer_id,
        source=name,
        built_with=versions(),
        generation=generation,
        first_generation=first_of(output, generation),
        centring=None if centring is None else centring.save(output),
        recipe=recipe,
        row_dtype=recipe.row_dtype if recipe else "float32",
        format_version=FORMAT_VERSION if centring is None else CENTRED_VERSION,
    )


def versions() -> dict[str, str]:
    """Name the versions that an index is built with."""
    return {name: metadata.version(name) for name in ("bindsearch", "numpy", "pyarrow")}
