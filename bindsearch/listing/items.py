"""The items that a listing yields beside plain ones: fused from several parts, or known to be broken already."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from bindsearch.errors import InputError
from bindsearch.types import Item, to_text


@dataclass(frozen=True)
class Part:
    """One part of a fused item.

    Attributes:
        modality: one of the registered names.
        weight: its factor in the sum of unit embeddings; negative subtracts.
        source: path or URI, or "" for a literal text.
        size_bytes, mtime_s: of the file, where there is one.
        literal: the text itself, where the part is not a file.
    """

    modality: str
    weight: float
    source: str = ""
    size_bytes: int | None = None
    mtime_s: float | None = None
    literal: str | None = None


@dataclass(frozen=True)
class FusedItem(Item):
    """An item whose embedding is the normalised weighted sum of its parts' unit embeddings.

    Its modality and source are those of the part with the largest weight (the first of equals): what a reader of hits
    looks at. The expression stands in its attributes.
    """

    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class BrokenItem(Item):
    """Something that was listed and cannot be embedded: an unreadable folder, a cut tar, a manifest row without a path.

    Attributes:
        reason: what is wrong, for the ledger.
        stage: "list" or "read".
        hides: True where it stands for a place that could not be read (to its end): what lies there is not known.
    """

    reason: str = ""
    stage: str = "list"
    hides: bool = False


LONGEST_TEXT_BYTES = 1 << 20
"""Upper limit of a text that stands in a manifest or a line."""
LONGEST_CAPTION = 2000
"""Characters of a text that hits can show."""


def literal_item(base: Item, text: str) -> Item:
    """Make a literal text's item of all else that is known; one that is too long is a BrokenItem.

    Its beginning becomes its caption, where it has none: the words lie in no file of their own, and hits show them.
    """
    text = to_text(text)
    size_bytes = len(text.encode("utf-8"))
    if size_bytes > LONGEST_TEXT_BYTES:
        reason = f"a text of {size_bytes} bytes, over the limit of {LONGEST_TEXT_BYTES}"
        return BrokenItem(base.key, "text", base.source, reason=reason, stage="read")
    caption = base.caption or make_caption(text)
    return replace(base, modality="text", literal=text, size_bytes=size_bytes, caption=caption)


def make_caption(text: str) -> str | None:
    """Make a caption of a text: its beginning, without NUL characters; None where it is blank."""
    return text.strip().replace("\x00", "")[:LONGEST_CAPTION] or None


_TERM = re.compile(r"\s*([+-]?)\s*([a-z_]+)\s*(?:\*\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?))?\s*")


def parse_fusion(expression: str, known: tuple[str, ...], where: str) -> tuple[tuple[str, float], ...]:
    """Read a fusion such as "video*0.95 + audio*0.05".

    Args:
        expression: modality names with optional weights (1 where none is given), joined by + or -.
        known: the modality names.
        where: manifest and row, for messages.

    Returns:
        (modality, weight) a term, in the order written. Weights are used as written: only their ratio matters,
        since the sum is normalised.

    Raises:
        InputError: not of this form, an unknown or repeated modality, a weight of zero or without end, fewer than two
            terms.
    """
    terms: list[tuple[str, float]] = []
    at = 0
    while at < len(expression):
        match = _TERM.match(expression, at)
        if match is None or match.end() == at or (at > 0 and not match.group(1)):
            raise InputError(f"{where}: fuse {expression!r}: expected a form like 'video*0.95 + audio*0.05'.")
        sign, modality, weight = match.groups()
        if modality not in known:
            raise InputError(f"{where}: fuse names the modality {modality!r}. Known: {', '.join(known)}.")
        terms.append((modality, (-1.0 if sign == "-" else 1.0) * float(weight or 1)))
        at = match.end()
    names = [name for name, _ in terms]
    if len(terms) < 2 or len(set(names)) < len(names) or not all(0 < abs(weight) < math.inf for _, weight in terms):
        raise InputError(
            f"{where}: fuse {expression!r}: expected two or more different modalities, weights finite and not 0."
        )
    return tuple(terms)
