"""Names and shapes that cross files.

Axis letters: B batch, S clips, C channels, T samples or frames, M mel bins, H W pixels, L tokens,
D width of a trunk, d joint dimension, n items, q queries, k neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.errors import ShapeError, UnknownNameError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float32]
    IntArray = NDArray[np.int64]
    BoolArray = NDArray[np.bool_]

Span = tuple[float, float]


@dataclass(frozen=True)
class Media:
    """Raw media, as decoded: an array (or a string) and its unit.

    Attributes:
        modality: lower case, singular.
        array: image (H, W, 3) uint8 | video (T, H, W, 3) uint8 | audio (C, T) float32 in [-1, 1] | depth (H, W) float32
            | thermal (H, W) float32 | imu (6, T) float32 | features (F,) float32 | text: a str.
        unit: what one step of the array means: "level", "amplitude", "m", "level16", "m/s^2 and rad/s", "character".
        rate_hz: samples or frames a second, where there is a time axis.
        name: the source as the user knows it, for messages.
        notes: facts that a later stage or the report needs (frame indices, truncation, clip starts).
    """

    modality: str
    array: Any
    unit: str
    rate_hz: float | None = None
    name: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """One thing to embed: a file, a span of one, a tar member or a text, plus its key.

    Attributes:
        key: relative path or manifest key, with / as separator; unique together with the span.
        modality: one of the registered names.
        source: path or URI to read, or the literal text when `literal` is set.
        span: start and end in seconds, or None for the whole.
        member: name inside a tar.
        offset, size_bytes: where the member's bytes lie; size of a plain file.
        mtime_s: modification time of the file, as the file system gives it.
        literal: the text itself, where the item is not a file.
        caption, group: relation to others: a text that goes with it, the common stem.
        attributes: the manifest's other columns.
    """

    key: str
    modality: str
    source: str
    span: Span | None = None
    member: str | None = None
    offset: int | None = None
    size_bytes: int | None = None
    mtime_s: float | None = None
    literal: str | None = None
    caption: str | None = None
    group: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> int:
        """63-bit id of (key, span)."""
        return item_id(self.key, self.span)

    def columns(self) -> dict[str, Any]:
        """Give what every table of items says of it, by column name."""
        return {
            "id": self.id,
            "key": self.key,
            "modality": self.modality,
            "start_s": self.span[0] if self.span else None,
            "end_s": self.span[1] if self.span else None,
            "source": self.source,
            "member": self.member,
            "size": self.size_bytes,
            "mtime": self.mtime_s,
        }


def to_text(path: str) -> str:
    r"""Write a path as valid Unicode: bytes that are no UTF-8 become \udcNN, so that any table can hold it."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return path.encode("utf-8", "backslashreplace").decode("utf-8")
    return path


def span_key(key: str, span: tuple[float, float]) -> str:
    """Write the name of a span that people know and type: "talk.wav#t=5,10.25", its seconds to the last digit."""
    start, end = (repr(float(each)).removesuffix(".0") for each in span)
    return f"{key}#t={start},{end}"


def item_id(key: str, span: Span | None = None) -> int:
    """Hash a key and a span to a 63-bit id.

    Args:
        key: any text; hashed as UTF-8 (lone surrogates from undecodable file names included).
        span: start and end in seconds, or None; hashed as shortest round-trip decimals.

    Returns:
        An int in [0, 2**63): BLAKE2b of the two, cut to 63 bits. Stable for ever: ids are stored.
    """
    text = "" if span is None else f"{span[0]!r}-{span[1]!r}"
    data = key.encode("utf-8", "surrogatepass") + b"\x00" + text.encode("ascii")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Hit:
    """One answer: an item, its score and why.

    Attributes:
        rank: from 1.
        score: cosine in [-1, 1]; higher is better.
        id, key, modality, source, span: of the item.
        columns: every other column of the item table.
        contributions: what each query term adds to the score; sums to it up to rounding.
        percentile: share of background scores below this one, in percent; None where nothing was calibrated.
        spans: further items of the group that it answers for, best first; `groups.py`.
        duplicates: near duplicates that it hides, best first.
        cursor: goes on behind it; None where answers are not paged.
    """

    rank: int
    score: float
    id: int
    key: str
    modality: str
    source: str
    span: Span | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    contributions: Mapping[str, float] = field(default_factory=dict)
    percentile: float | None = None
    spans: Sequence[Hit] = ()
    duplicates: Sequence[Hit] = ()
    cursor: str | None = None


def check_suffix(path: str | Path, what: str, known: Sequence[str]) -> str:
    """Give the ending of a file's name in small letters.

    Args:
        path: of the file.
        what: it is, for the message: "kind of table".
        known: endings that it may have.

    Raises:
        UnknownNameError: another ending.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in known:
        raise UnknownNameError(what, suffix or path.name, known)
    return suffix


def check_shape(array: Any, expected: Sequence[int | str | None], what: str, hint: str = "") -> None:
    """Refuse an array whose shape is not the expected one.

    Args:
        array: anything with a `shape`. Not modified.
        expected: a size an axis; None or a letter means any size.
        what: the array's name in the message.
        hint: what to type or change instead.

    Raises:
        ShapeError: naming the expected and the given shape.
    """
    shape = tuple(int(size) for size in array.shape)
    fits = len(shape) == len(expected) and all(
        not isinstance(want, int) or want == got for want, got in zip(expected, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in expected)
        tail = f" {hint}" if hint else ""
        raise ShapeError(f"{what}: expected shape ({wanted}), got {shape}.{tail}")
