"""The pictures that carried an answer: the cached images that an embedding was moved towards, with their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.preview import preview_hit, preview_term
from bindsearch.sheet import Row, Tile, contact_sheet
from bindsearch.types import Hit

if TYPE_CHECKING:
    from bindsearch.cache import VisualCache
    from bindsearch.cache.recipe import Enhancement
    from bindsearch.query import Term


def save_carriers(
    path: str | Path,
    cache: VisualCache,
    embeddings: Any,
    title: str,
    terms: Sequence[Term] = (),
    enhancement: Enhancement | None = None,
) -> Path:
    """Write a contact sheet: what was asked about, and the cached images that its embedding was moved towards.

    Images are drawn again from their addresses, or read from their files; what is gone says so.

    Args:
        path: PNG file; folders on the way are made.
        cache: over an index, so that its images have names.
        embeddings: (1, d), or (B, d) for a row of images each; as given to `VisualCache.enhance`. Not modified.
        title: the line above, such as the question and its answer.
        terms: of the query, drawn before the images.
        enhancement: the numbers it was moved with; None: the cache's.

    Returns:
        The path.

    Raises:
        InputError, MismatchError: as `VisualCache.retrieve`.
    """
    numbers = enhancement or cache.enhancement
    size = min(numbers.cache_size, len(cache))
    presets = {} if cache.index is None else dict(cache.index.manifest.preset_ids)
    rows = []
    for number, shown in enumerate(cache.explain(embeddings, size, numbers.inverse_temperature)):
        tiles = [_tile(place, each, presets) for place, each in enumerate(shown["neighbours"], start=1)]
        asked = [Tile(preview_term(term, presets), f"{term.weight:g} x {term.modality}", term.short) for term in terms]
        rows.append(Row(title if number == 0 else f"embedding {number}", asked if number == 0 else (), tiles))
    foot = (
        f"{size} of {len(cache):,} cached images of {cache.rows.name}, weight {numbers.weight:g}; "
        f"under each: its share of what was found"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows, foot).save(path, "PNG", optimize=True)
    return path


def _tile(place: int, found: dict[str, Any], presets: dict[str, str]) -> Tile:
    hit = Hit(place, float(found["weight"]), int(found["id"]), found["key"], "image", found["source"] or found["key"])
    return Tile(preview_hit(hit, presets), f"{found['weight']:.1%}", found["key"])
