"""One item, from source to model-ready arrays: what a decode worker does, and every way it can fail."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from bindsearch.embed.blocks import is_made
from bindsearch.errors import BindSearchError, DecodeError, InputError, MissingInputError, UnsupportedError
from bindsearch.listing import BrokenItem, FusedItem, Listing
from bindsearch.listing.naming import to_path
from bindsearch.makers import maker_of
from bindsearch.modalities.base import Modality
from bindsearch.modalities.clips import CUT_STAGE
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source
from bindsearch.types import Item, Span

if TYPE_CHECKING:
    import numpy as np

LOG = logging.getLogger(__name__)
COUNTED_NOTES = ("truncated",)
NO_MEMORY = "needs more memory than there is"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True)
class Decoded:
    """What came of an item.

    Attributes:
        arrays: one a part (a plain item has one): (S, ...) float32, text int64, as `preprocess` makes them.
        sha256: of the bytes; of a fused item, of its parts' hashes.
        notes: warnings, without the item's name: "text: truncated".
        seconds: wall time that it took.
        preprocess_seconds: of it, after decoding.
    """

    arrays: tuple[np.ndarray, ...]
    sha256: str
    notes: tuple[str, ...]
    seconds: float
    preprocess_seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        """Size of the arrays."""
        return sum(array.nbytes for array in self.arrays)


@dataclass(frozen=True)
class Failed:
    """Why nothing came of an item.

    Attributes:
        stage: list, read, decode, preprocess, worker (time limit or a killed process) or encode.
        reason: what is wrong, without the item's name; the same words each time.
        sha256: of the bytes; None where they cannot be read.
        seconds: wall time that it took.
    """

    stage: str
    reason: str
    sha256: str | None = None
    seconds: float = 0.0
    nbytes: ClassVar[int] = 0


@dataclass(frozen=True)
class Cut:
    """The spans that a recording is cut in; none means: take the whole."""

    spans: tuple[Span, ...]
    nbytes: ClassVar[int] = 0


Outcome = Decoded | Failed | Cut


def source_of(item: Item) -> Source:
    """Make the source of an item as a listing or an item table names it."""
    return Source.of_item(replace(item, source=to_path(item.source), member=item.member and to_path(item.member)))


def decode_item(item: Item, configs: Mapping[str, Any], source: Source | None = None) -> Outcome:
    """Read, decode and preprocess an item; never raises on what the item holds.

    Args:
        item: from a plan.
        configs: preprocessing by modality.
        source: where the item's media are, if it is known already.

    Returns:
        Decoded or Failed.
    """
    return _guarded(item, lambda started: _decode(item, configs, started, source))


def decode_items(items: Sequence[Item], configs: Mapping[str, Any]) -> Iterator[Outcome]:
    """Decode items one after another; media that are made, of one modality, are made together first.

    Yields:
        An outcome an item. The time of making is shared among them.
    """
    if len(items) < 2:
        yield from (decode_item(item, configs) for item in items)
        return
    started = time.perf_counter()
    maker = maker_of(items[0].source)
    sources: Sequence[Source | None] = [None] * len(items)
    if maker is not None:
        try:
            sources = maker.make([item.source for item in items])
        except (BindSearchError, MemoryError, ValueError, ArithmeticError, LookupError, TypeError):
            LOG.debug("a block cannot be made; its items are made one by one", exc_info=True)
    share_s = (time.perf_counter() - started) / len(items)
    for item, source in zip(items, sources, strict=True):
        outcome = decode_item(item, configs, source)
        yield outcome if isinstance(outcome, Cut) else replace(outcome, seconds=outcome.seconds + share_s)


def cut_item(item: Item, configs: Mapping[str, Any], window_s: float | None) -> Outcome:
    """Look at a recording's length and cut it in spans.

    Returns:
        Cut; where its length cannot be read, no spans: decoding it will say why. Failed where it would be cut in too
        many, or memory ran out.
    """

    def cut(_started: float) -> Outcome:
        modality: Modality[Any] = MODALITIES[item.modality]
        return Cut(tuple(modality.spans(source_of(item), configs[item.modality], window_s)))

    outcome = _guarded(item, cut)
    unread = isinstance(outcome, Failed) and outcome.reason != NO_MEMORY and outcome.stage != CUT_STAGE
    return Cut(()) if unread else outcome


def warm_up(item: Item, configs: Mapping[str, Any]) -> None:
    """Load what an item's modality needs, on a made-up example, so that the time limit counts only the item."""
    if not isinstance(item, BrokenItem):
        for part in _parts(item):
            modality: Modality[Any] = MODALITIES[part.modality]
            with contextlib.suppress(DecodeError):  # an example of features has not every encoder's length
                modality.preprocess(modality.example(0), configs[part.modality])


def has_spans(item: Item) -> bool:
    """Say whether an item may have to be cut: its modality knows how, and it is a whole and not made from its name."""
    if item.span is not None or isinstance(item, BrokenItem | FusedItem) or is_made(item):
        return False
    return type(MODALITIES[item.modality]).spans is not Modality.spans


def _guarded(item: Item, work: Any) -> Outcome:
    """Do work on an item and turn whatever it raises into a Failed, but for what is no fault of the item."""
    started = time.perf_counter()
    try:
        outcome: Outcome = work(started)
        return outcome
    except DecodeError as error:
        stage, reason = error.stage, error.what
    except (InputError, UnsupportedError) as error:
        stage, reason = "decode", str(error).removeprefix(f"{item.key}: ")
    except OSError as error:
        stage, reason = "read", error.strerror or str(error)
        if error.errno == errno.ENOMEM:
            stage, reason = "decode", NO_MEMORY
    except ImportError:
        raise  # a package is missing: every item would fail
    except MemoryError:
        stage, reason = "decode", NO_MEMORY
    except Exception as error:  # the readers of foreign formats raise anything on hostile bytes
        stage, reason = "decode", f"{type(error).__name__}: {error}"
    reason = _ADDRESS.sub("", " ".join(reason.split()))[:500]
    return Failed(stage, reason, _sha256_if_any(item), time.perf_counter() - started)


def _sha256_if_any(item: Item) -> str | None:
    if is_made(item):  # making it again would fail again
        return None
    try:
        return _sha256(item)
    except (ImportError, MemoryError):
        raise
    except Exception:  # what made the item fail fails again: a URI of no known form, a foreign file system
        return None


def _decode(item: Item, configs: Mapping[str, Any], started: float, source: Source | None) -> Outcome:
    if isinstance(item, BrokenItem):
        return Failed(item.stage, item.reason)
    arrays: list[np.ndarray] = []
    notes: list[str] = []
    preprocess_s = 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if source is None and is_made(item):
            source = source_of(item)
        digest = _sha256(item) if source is None else source.sha256()
        for part in _parts(item):
            modality: Modality[Any] = MODALITIES[part.modality]
            config = configs[part.modality]
            try:
                media = modality.decode(source or source_of(part), config, part.span)
                began = time.perf_counter()
                arrays.append(modality.preprocess(media, config))
                preprocess_s += time.perf_counter() - began
            except DecodeError as error:
                if not isinstance(item, FusedItem):
                    raise
                raise DecodeError(item.key, f"{part.modality} part: {error.what}", error.stage) from error
            notes += [f"{part.modality}: {note}" for note in COUNTED_NOTES if note in media.notes]
    notes += [f"{item.modality}: {warning.category.__name__}" for warning in caught]
    return Decoded(tuple(arrays), digest, tuple(notes), time.perf_counter() - started, preprocess_s)


def _parts(item: Item) -> list[Item]:
    if not isinstance(item, FusedItem):
        return [item]
    timed = {part.modality for part in item.parts} - {"text", "image", "depth", "thermal", "features"}
    return [
        Item(
            item.key,
            part.modality,
            part.source,
            item.span if part.modality in timed else None,
            size_bytes=part.size_bytes,
            mtime_s=part.mtime_s,
            literal=part.literal,
        )
        for part in item.parts
    ]


def _sha256(item: Item) -> str:
    if isinstance(item, FusedItem):
        digests = "".join(_sha256(part) for part in _parts(item))
        return hashlib.sha256(digests.encode("ascii")).hexdigest()
    if item.literal is not None or item.mtime_s is None:
        return source_of(item).sha256()
    return _sha256_of_file(item.source, item.member, item.offset, item.size_bytes, item.mtime_s)


@lru_cache(maxsize=16)
def _sha256_of_file(source: str, member: str | None, offset: int | None, size_bytes: int | None, mtime_s: float) -> str:
    """Hash a file once for all the spans of it that follow each other."""
    item = Item("", "", source, member=member, offset=offset, size_bytes=size_bytes, mtime_s=mtime_s)
    return source_of(item).sha256()


def inspect_source(file: str | os.PathLike[str], modality: str | None, space: Any) -> dict[str, Any]:
    """Say how a file would be read, step by step.

    Args:
        file: path or URI.
        modality: read it as this one; None goes by suffix.
        space: gives the preprocessing.

    Returns:
        JSON types: modality, preset, the spans it would be cut in and the one shown (its own, or the first; null
        is the whole), the raw array's shape, unit and notes, the preprocessed array's shape and range. Of a container,
        its first item that can be read; of a fused item, its modality and these facts of each part, with the part's
        weight.

    Raises:
        MissingInputError: no media are there.
        InputError: the suffix names no modality.
        DecodeError: it cannot be read.
    """
    listing = Listing([file], modality)
    broken: BrokenItem | None = None
    for item in listing:
        if not isinstance(item, BrokenItem):
            return {"file": item.key, "modality": item.modality, **_inspected(item, space, has_spans(item))}
        broken = broken or item
    if broken is not None:
        raise DecodeError(broken.key, broken.reason, broken.stage)
    if not listing.ignored:
        raise MissingInputError(f"{os.fspath(file)}: no media found. Name a media file, or a container of some.")
    ignored = ", ".join(f"{count} {name}" for name, count in sorted(listing.ignored.items()))
    raise InputError(f"{os.fspath(file)}: no suffix there names a modality: {ignored}. Say it: --modality NAME.")


def _inspected(item: Item, space: Any, cut: bool) -> dict[str, Any]:
    """Give the facts of `inspect_source` about an item: its steps, or those of each of its parts.

    Args:
        item: as listed.
        space: gives the preprocessing.
        cut: whether it would be cut in spans, where it is long.
    """
    if isinstance(item, FusedItem):
        parts = zip(item.parts, _parts(item), strict=True)
        return {
            "parts": [
                {"modality": each.modality, "weight": part.weight, **_inspected(each, space, False)}
                for part, each in parts
            ]
        }
    kind, config = space.modality(item.modality), space.config(item.modality)
    spans = _spans_of(item, kind, config) if cut else []
    shown = item.span or next(iter(spans), None)
    media = kind.decode(source_of(item), config, shown)
    x = kind.preprocess(media, config)
    return {
        "preset": space.preset_id(item.modality),
        "spans_s": [list(span) for span in spans],
        "shown_s": None if shown is None else list(shown),
        "decoded": {
            "shape": list(getattr(media.array, "shape", [len(media.array)])),
            "unit": media.unit,
            "rate_hz": media.rate_hz,
            "notes": {
                name: value if isinstance(value, int | float | str) else str(value)
                for name, value in media.notes.items()
            },
        },
        "preprocessed": {
            "shape": list(x.shape),
            "dtype": str(x.dtype),
            "min": float(x.min()),
            "max": float(x.max()),
            "mean": float(x.mean()),
        },
    }


def _spans_of(item: Item, kind: Modality[Any], config: Any) -> list[Span]:
    """Cut a recording as a run would; one whose length cannot be read stays whole, and decoding it says why."""
    try:
        return kind.spans(source_of(item), config, None)
    except DecodeError as error:
        if error.stage == CUT_STAGE:
            raise
        return []
