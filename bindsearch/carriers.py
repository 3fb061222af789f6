"""The pictures that carried an answer: the cached images that an embedding was moved towards, with their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.drawing import check_ending, save_picture
from bindsearch.preview import preview_hits, preview_term
from bindsearch.sheet import Row, Tile, contact_sheet
from bindsearch.types import Hit

if TYPE_CHECKING:
    from bindsearch.query import Term


def save_carriers(
    path: str | Path,
    title: str,
    neighbours: Sequence[Mapping[str, Any]],
    terms: Sequence[tuple[Term, float]] = (),
    presets: Mapping[str, str] | None = None,
    foot: str = "",
) -> Path:
    """Write a contact sheet: what was asked about, and the cached images that its embedding was moved towards.

    Images are drawn again from their addresses, or read from their files; what is gone says so.

    Args:
        path: of the picture, .png or .jpg; folders on the way are made.
        title: the line above, such as the question and its answer.
        neighbours: of one embedding, as `VisualCache.explain` gives them. Not modified.
        terms: of the query with their weights, drawn before the images.
        presets: modality -> preset that terms and images were read with.
        foot: a line below.

    Returns:
        The path.

    Raises:
        InputError: another ending.
    """
    check_ending(path)
    read_with = presets or {}
    asked = [
        Tile(
            preview_term(term, read_with), f"{weight:g} {term.modality}", "" if term.modality == "text" else term.short
        )
        for term, weight in terms
    ]
    hits = [_hit_of(place, each) for place, each in enumerate(neighbours, start=1)]
    views = preview_hits(hits, read_with)
    tiles = [Tile(view, f"{hit.score:.1%}", hit.key) for hit, view in zip(hits, views, strict=True)]
    return save_picture(contact_sheet([Row(title, asked, tiles)], foot), path)


def _hit_of(place: int, found: Mapping[str, Any]) -> Hit:
    source = found["source"] or found["key"]
    return Hit(place, float(found["weight"]), int(found["id"]), found["key"], "image", source, columns=found)
