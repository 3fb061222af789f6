"""Building a cache: media, a world, embeddings or feature files in; near duplicates out; an index of what stays.

open_embeddings(sources, ...)    embedded where they are media: a store, or a feature file
find_kept(source, recipe)        which rows are of the modality and repeat none
build_index(Kept(...), output)   an index as any other, with a record of what it was made of beside it
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.cache.duplicates import find_duplicates
from bindsearch.cache.features import FeatureSource, layout_of
from bindsearch.cache.recipe import CacheRecipe, CacheRecord, queries_beside
from bindsearch.cache.tuning import tune_snapshot
from bindsearch.errors import InputError, MismatchError, MissingInputError, WeightsError
from bindsearch.index.base import Progress, no_progress
from bindsearch.index.build import build_index
from bindsearch.index.commit import check_output
from bindsearch.index.heldout import check_queries
from bindsearch.index.identity import Identity
from bindsearch.index.source import identity_of, open_source
from bindsearch.listing import Listing
from bindsearch.listing.naming import Namer
from bindsearch.makers import maker_of, narrow
from bindsearch.registry import INDEXES
from bindsearch.sources import each_source
from bindsearch.store import UNKNOWN, EmbeddingStore
from bindsearch.store.reader import listed_sources

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from bindsearch.index.snapshot import Snapshot
    from bindsearch.index.source import VectorSource
    from bindsearch.types import FloatArray, IntArray

BLOCK_ROWS = 4096
_STORE = "embeddings"
"""The layout of what `bindsearch embed` writes."""
_FIRST_SPARE = 1.002
"""How much more than is to stay is embedded at first: listing three million scenes again takes minutes."""
_SPARE = 1.02
"""How much more than the missing share is embedded in the next round."""


@dataclass(frozen=True)
class Inputs:
    """What a cache is built from.

    Attributes:
        sources: media, addresses, a folder of embeddings, a feature file, or one of these; empty: the recipe's.
        embeddings: where media are embedded to, and kept; None: beside the output.
        space_id: of a feature file that does not say it.
        load: gives the space that media are embedded in, by name; called only where something is embedded.
        embed_progress: whether embedding draws a bar.
        workers: processes that decode; None: one a CPU, at most 8.
        max_bad: share of bad inputs above which nothing is built.
        queries: stores of embeddings like those that the cache will move, to tune an approximate index on; empty: the
            recipe's where its space is the rows', else the rows themselves.
    """

    sources: tuple[str, ...] = ()
    embeddings: Path | None = None
    space_id: str | None = None
    load: Callable[[str | None], Any] | None = None
    embed_progress: bool | Callable[[Any], None] = False
    workers: int | None = None
    queries: tuple[Path, ...] = ()
    max_bad: float = 0.1

    def __post_init__(self) -> None:
        """Take a bare source as one."""
        object.__setattr__(self, "sources", tuple(map(os.fspath, each_source(self.sources))))


@dataclass(frozen=True, eq=False)
class Kept:
    """Some rows of a source, in its order; see `index.source.VectorSource`.

    Attributes:
        source: that has all rows.
        mask: (rows of the source,) bool. Not to be modified.
    """

    source: VectorSource
    mask: NDArray[np.bool_]

    @property
    def manifest(self) -> Any:
        """The source's, with the modalities that stay."""
        return self.source.manifest

    def iter_blocks(self, rows: int) -> Iterator[tuple[IntArray, FloatArray, pa.Table]]:
        """Iterate over the kept rows in blocks of at most `rows` rows."""
        at = 0
        for ids, vectors, table in self.source.iter_blocks(rows):
            here = np.flatnonzero(self.mask[at : at + ids.size])
            at += ids.size
            if here.size:
                yield ids[here], vectors[here], table.take(here)

    def gone_sources(self) -> dict[int, set[str]]:
        """Give nothing: a cache is built anew."""
        return {}


def build_cache(
    output: str | Path,
    inputs: Inputs,
    recipe: CacheRecipe | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> CacheRecord:
    """Build a cache.

    Args:
        output: folder of the index; created.
        inputs: what it is built from.
        recipe: what it is made by; None: the defaults of `CacheRecipe`.
        force: replace an index that is already there.
        progress: told of near duplicates and of the index's files.

    Returns:
        What was seen, left out and kept; it lies beside the index too.

    Raises:
        MissingInputError: no source, or nothing of the modality in it; no embeddings where `inputs.queries` names some.
        UnknownNameError: no such backend.
        InputError: `output` holds an index and force is not set; a source or a recipe that cannot be meant; embeddings
            beside the output are of other sources.
        MismatchError: sources or queries of another space than the recipe's.
        TooManyBadError: more of the media are bad than `inputs.max_bad` allows.
    """
    output, recipe = Path(output), recipe or CacheRecipe()
    check_output(output, force, "Replace it with --force, or choose a new folder.")
    _check_rest(inputs, recipe)
    gathered = _gathered(output, inputs, recipe, force, progress)
    return build_kept(output, gathered, inputs, recipe, force, progress)


def build_kept(
    output: Path,
    gathered: tuple[VectorSource, str, dict[str, int], NDArray[np.bool_]],
    inputs: Inputs,
    recipe: CacheRecipe,
    force: bool,
    progress: Progress = no_progress,
) -> CacheRecord:
    """Build a cache of the rows that `find_kept` found: cut to `keep`, indexed, tuned, recorded.

    Args:
        output: folder of the index; created.
        gathered: a source, its name, and what `find_kept` gives of it. The mask is cut.
        inputs: whose queries, and means of embedding the recipe's, an approximate index is tuned with.
        recipe: what it is made by.
        force: replace an index that is already there.
        progress: told of the index's files.

    Raises:
        InputError: the source changed since; or as in `build_cache`.
    """
    source, name, found, mask = gathered
    if recipe.keep is not None and found["kept"] > recipe.keep:
        mask[np.flatnonzero(mask)[recipe.keep :]] = False
        found["kept"] = recipe.keep
    measured: dict[str, Any] = {}
    queries = _queries(source, inputs, output, recipe, force)

    def judge(snapshot: Snapshot) -> dict[str, Any]:
        tuned, facts = tune_snapshot(snapshot, recipe, queries)
        measured.update(facts)
        return tuned

    folder = build_index(
        Kept(source, mask), output, recipe.index, force, judge=judge, progress=progress, queries=queries
    )
    record = replace(record_of(recipe, name, found), measured=measured, generation=folder.manifest.first_generation)
    if folder.count != record.kept:
        raise InputError(f"{name}: changed while it was read: {record.kept} rows were to be kept, {folder.count} came.")
    record.save(output)
    return record


def _check_rest(inputs: Inputs, recipe: CacheRecipe) -> None:
    """Refuse what is read only after the images are embedded, which may take hours: numbers, backend, queries."""
    recipe.check()
    for store in inputs.queries:
        open_source(store)


def _gathered(
    output: Path, inputs: Inputs, recipe: CacheRecipe, force: bool, progress: Progress
) -> tuple[VectorSource, str, dict[str, int], NDArray[np.bool_]]:
    """Open the sources; those that grow grow until enough rows stay."""
    sources = inputs.sources or ((recipe.source,) if recipe.source else ())
    if not sources:
        raise MissingInputError(
            "cache: nothing to build it from. Name a source: bindsearch cache build IMAGES -o CACHE"
        )
    target = recipe.keep or 0
    last = math.ceil(target * _FIRST_SPARE)
    grow = tuple(source.partition("{last}")[0] for source in sources if "{last}" in source)
    while True:
        named = tuple(source.replace("{last}", str(last)) for source in sources)
        source, name = open_embeddings(replace(inputs, sources=named), output, recipe, force, grow)
        found, mask = find_kept(source, recipe, output.parent, progress)
        if found["kept"] == 0:
            raise MissingInputError(f"{name}: holds no {recipe.modality}. A cache is made of those.")
        if named == sources or found["kept"] >= target:
            return source, name, found, mask
        last += math.ceil((target - found["kept"]) * last / found["kept"] * _SPARE)


def open_embeddings(
    inputs: Inputs, output: Path, recipe: CacheRecipe, force: bool = False, grow: tuple[str, ...] = ()
) -> tuple[VectorSource, str]:
    """Open what a cache is built from, embedding media first; gives it with its name.

    Args:
        inputs: what it is.
        output: of the cache.
        recipe: of the cache.
        force: embeddings beside the output that are of other sources are deleted, not refused.
        grow: how sources begin that had less to list in an earlier round.

    Raises:
        InputError: a source that cannot be meant, such as an index or a FAISS file; embeddings of other sources.
        MismatchError: embeddings or queries of another space than the recipe's.
    """
    alone = len(inputs.sources) == 1
    for each in map(Path, inputs.sources):
        if (each / "index.json").is_file():
            raise InputError(f"{each}: is an index, which serves as a cache as it is: bindsearch cache info {each}")
        if each.is_file() and each.suffix in (".index", ".faiss"):
            raise InputError(f"{each}: is a FAISS file. Type: bindsearch cache import {each} -o {output}")
        layout = _layout_of(each, alone)
        if layout is None:
            continue
        if not alone:
            raise InputError(
                f"{each}: holds embeddings, which a cache is built of alone. Build one of each source, then join them: "
                f"bindsearch index merge CACHE1 CACHE2 -o {output}"
            )
        source: VectorSource = (
            EmbeddingStore.open(each)
            if layout == _STORE
            else FeatureSource(each, layout, inputs.space_id, recipe.modality)
        )
        _check_space(source, str(each), inputs, recipe)
        check_queries(source, inputs.queries)
        if _asks_its_own(source, inputs, recipe):
            _check_holds((recipe.tuning.queries,), queries_beside(output), force)
        return source, str(each)
    return _embedded(inputs, output, recipe, force, grow)


def _layout_of(path: Path, alone: bool) -> str | None:
    """Name the layout of a folder of embeddings or a file of features; None where a path is neither, but media.

    Of several, a Parquet file is a list of media, and a file that is named as media (x.depth.npy) is one of them, as
    for `bindsearch embed`. Nothing is opened.
    """
    if (path / "manifest.json").is_file():
        return _STORE
    layout = layout_of(path)
    return layout if alone or (layout != "parquet" and Namer().of_named(str(path)) is None) else None


def _queries(source: VectorSource, inputs: Inputs, output: Path, recipe: CacheRecipe, force: bool) -> tuple[Path, ...]:
    """Give the stores of held-out queries: those named, else the recipe's, embedded beside the cache.

    None where the recipe's space, which they would be embedded in, is not the source's or not at hand.
    """
    if not _asks_its_own(source, inputs, recipe):
        return inputs.queries
    folder = queries_beside(output)
    _embed((recipe.tuning.queries,), folder, replace(inputs, embed_progress=False), recipe.space, force)
    return (folder,)


def _asks_its_own(source: VectorSource | None, inputs: Inputs, recipe: CacheRecipe) -> bool:
    """Say whether the recipe's own queries will ask: for an approximate index, where nobody names any.

    A source that is there must be of the recipe's space, which they are embedded in; None: it will be.
    """
    if inputs.queries or not recipe.tuning.queries or inputs.load is None or INDEXES[recipe.index.backend].exact:
        return False
    return source is None or _space_id(inputs, recipe) == source.manifest.space_id


def _space_id(inputs: Inputs, recipe: CacheRecipe) -> str | None:
    """Give the id of the space that a recipe names, else of the default; None where its weights are not at hand."""
    try:
        return None if inputs.load is None else str(inputs.load(recipe.space).space_id)
    except WeightsError:
        return None


def _check_space(source: VectorSource, name: str, inputs: Inputs, recipe: CacheRecipe) -> None:
    """Refuse embeddings of another space than a recipe names; of features that do not say theirs nobody knows.

    Raises:
        MismatchError: naming both.
    """
    made = str(source.manifest.space_id)
    wanted = None if recipe.space is None or made == UNKNOWN else _space_id(inputs, recipe)
    if wanted not in (None, made):
        raise MismatchError(
            f"{name}: made with space {made}, {recipe.space} is asked for, which is {wanted}. Name no space, "
            f"or embed the images with that one: bindsearch cache build IMAGES -o CACHE --space {recipe.space}"
        )


def _embedded(
    inputs: Inputs, output: Path, recipe: CacheRecipe, force: bool, grow: tuple[str, ...]
) -> tuple[VectorSource, str]:
    """Embed media; an interrupted run goes on, and a source that grew embeds what is new."""
    if _asks_its_own(None, inputs, recipe):
        _check_holds((recipe.tuning.queries,), queries_beside(output), force)
    folder = inputs.embeddings or output.with_name(output.name + ".embeddings")
    named = tuple(
        narrow(each, [recipe.modality]) if maker_of(each) is not None and "#" not in each else each
        for each in inputs.sources
    )
    _embed(named, folder, inputs, recipe.space, force and inputs.embeddings is None, grow)
    return EmbeddingStore.open(folder), ", ".join(inputs.sources)


def _embed(
    named: tuple[str, ...], folder: Path, inputs: Inputs, space: str | None, force: bool, grow: tuple[str, ...] = ()
) -> None:
    """Embed sources to a folder that holds nothing else; with `force` what it holds of others is deleted."""
    from bindsearch.embed import EmbedOptions, run_embed

    if inputs.load is None:
        raise InputError(f"{named[0]}: must be embedded, and no space was given.")
    holds_others = _check_holds(named, folder, force, grow)
    made_in = inputs.load(space)
    for store in inputs.queries:
        fix = "Embed the queries with that space."
        Identity(str(made_in.space_id)).merged(identity_of(*open_source(store)), str(folder), str(store), fix)
    if holds_others:
        shutil.rmtree(folder)
    options = EmbedOptions(workers=inputs.workers, max_bad=inputs.max_bad)
    run_embed(named, folder, made_in, options=options, progress=inputs.embed_progress).check_bad()


def _check_holds(named: tuple[str, ...], folder: Path, force: bool, grow: tuple[str, ...] = ()) -> bool:
    """Say whether a folder holds embeddings of others than some sources, to be deleted.

    Raises:
        InputError: it does, and `force` is not set; or a source cannot be meant.
        MissingInputError: a source is not there.
    """
    wanted = Listing(named).origins
    others = [name for name in listed_sources(folder) if name not in wanted and not name.startswith(grow)]
    if others and not force:
        raise InputError(
            f"{folder}: holds embeddings of {others[0]}, and {', '.join(wanted)} is asked for. "
            "Name another folder, --embeddings DIR, or delete this one (--force does where it was not named)."
        )
    return bool(others)


def record_of(recipe: CacheRecipe, name: str, found: Mapping[str, int]) -> CacheRecord:
    """Make the record of a build of what `find_kept` counted."""
    return CacheRecord(recipe, name, found["seen"], found["repeated"], found["others"], found["kept"])


def find_kept(
    source: VectorSource, recipe: CacheRecipe, folder: Path, progress: Progress = no_progress
) -> tuple[dict[str, int], NDArray[np.bool_]]:
    """Find the rows of the modality that repeat no earlier one.

    Args:
        source: read once, in blocks.
        recipe: names the modality and what a near duplicate is.
        folder: for a temporary file of float16 rows; created.
        progress: told of near duplicates.

    Returns:
        Counts: seen, repeated, others, kept; and (rows of the source,) bool.
    """
    folder.mkdir(parents=True, exist_ok=True)
    of_it: list[NDArray[np.bool_]] = [np.empty(0, dtype=bool)]
    dim = int(source.manifest.dim)
    with tempfile.TemporaryDirectory(prefix=".cache-", dir=folder) as temporary:
        path = Path(temporary) / "rows.f16"
        with path.open("wb") as stream:
            for _, vectors, table in source.iter_blocks(BLOCK_ROWS):
                here = np.array([each == recipe.modality for each in table["modality"].to_pylist()], dtype=bool)
                of_it.append(here)
                stream.write(np.ascontiguousarray(vectors[here], dtype=np.float16).data)
        mask = np.concatenate(of_it)
        seen = int(np.count_nonzero(mask))
        witness = np.empty(0, dtype=np.int64)
        if seen:
            rows: FloatArray = np.memmap(path, dtype=np.float16, mode="r", shape=(seen, dim))
            witness = find_duplicates(rows, recipe.near_duplicate, progress)
            del rows
    places = np.flatnonzero(mask)
    mask[places[witness >= 0]] = False
    repeated = int(np.count_nonzero(witness >= 0))
    counts = {"seen": seen, "repeated": repeated, "others": mask.size - seen, "kept": seen - repeated}
    return counts, mask
