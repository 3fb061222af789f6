"""What a modality is: a name, suffixes, presets, and the two steps decode and preprocess."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from bindsearch.config import content_hash, from_json_dict, to_json_dict
from bindsearch.errors import BindSearchError, DecodeError, InputError, UnknownNameError
from bindsearch.sources import Source
from bindsearch.types import Media, Span

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ModalityConfig:
    """Every number and every switch of one modality's decoding and preprocessing.

    Attributes:
        preset: name of the set of values that it started from; the hash of all fields tells two apart.
    """

    preset: str = "default"

    @property
    def id(self) -> str:
        """Name and hash of the resolved fields, such as "default:1a2b3c4d"; recorded in every artefact."""
        fields = to_json_dict(self)
        for name in self.unhashed():
            del fields[name]
        return f"{self.preset}:{content_hash(fields, 8)}"

    def unhashed(self) -> tuple[str, ...]:
        """Name fields that the hash passes over: younger than the preset, at the value that it always had."""
        return ()


C = TypeVar("C", bound=ModalityConfig)


class Modality(ABC, Generic[C]):
    """One modality. A subclass is registered once, in its own file, and gets the contract tests for free.

    Attributes:
        name: lower case, singular.
        suffixes: file names that end so are taken for it, in lower case.
        unit: what one step of the decoded array means.
        tower: name of the tower that encodes it; image and video share "vision".
        config_class: frozen dataclass of its numbers.
        presets: name -> field values that differ from the class's own; holds "reference" and "default" at least.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    unit: ClassVar[str]
    tower: ClassVar[str]
    config_class: type[C]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]

    def config(self, preset: str = "default", **numbers: Any) -> C:
        """Resolve a preset to a configuration.

        Args:
            preset: one of `presets`.
            numbers: fields that replace the preset's, for example a space's sizes; lists stand for tuples.

        Raises:
            UnknownNameError: no such preset.
            InputError: no such field, a value of the wrong type, or values that contradict each other.
        """
        if preset not in self.presets:
            raise UnknownNameError(f"preset of {self.name}", preset, self.presets)
        values = {**self.presets[preset], **numbers, "preset": preset}
        return from_json_dict(self.config_class, values, where=f"{self.name} config")

    def source_of(self, thing: Any, name: str | None = None) -> Source:
        """Make a source of what a caller gave for this modality (for text, a plain string is the text itself)."""
        return Source.of(thing, name)

    def decode(self, source: Source, config: C, span: Span | None = None) -> Media:
        """Read a source into raw media.

        Args:
            source: from `source_of` or `Source.of`. Not modified.
            config: from `config`.
            span: start and end in seconds of the part to read; only for media with a time axis.

        Returns:
            Media of this modality; see `types.Media` for shape and unit.

        Raises:
            DecodeError: the source cannot be read as this modality, whatever its bytes are.
            InputError: the call itself cannot be meant (a span of a still picture, start after end).
            ImportError: a package that this format needs is not installed.
        """
        if span is not None and not 0 <= span[0] < span[1]:
            raise InputError(f"{source.name}: a span is start < end in seconds, got {span[0]:g}-{span[1]:g}.")
        try:
            return self._decode(source, config, span)
        except (BindSearchError, ImportError):
            raise
        except MemoryError as error:
            raise DecodeError(source.name, "needs more memory than there is") from error
        except Exception as error:  # the readers of foreign formats raise anything on hostile bytes
            what = f"cannot be read as {self.name}: {type(error).__name__}: {error}"
            raise DecodeError(source.name, what.rstrip(": ")) from error

    @abstractmethod
    def _decode(self, source: Source, config: C, span: Span | None) -> Media:
        """Do the work of `decode`; may raise anything on bad bytes."""

    @abstractmethod
    def preprocess(self, media: Media, config: C) -> np.ndarray:
        """Turn raw media into clips that a tower takes.

        Args:
            media: from `decode` or `example`. Not modified.
            config: from `config`.

        Returns:
            (S, ...) float32, C-contiguous; a still has S = 1. Text: (1, L) int64.

        Raises:
            DecodeError: stage "preprocess": too short, or too extreme a shape.
        """

    def spans(self, source: Source, config: C, window_s: float | None) -> list[Span]:
        """Cut a long recording in windows.

        Args:
            source: not modified; only its length is read.
            config: from `config`.
            window_s: length of a window; None takes the configuration's own, where it has one.

        Returns:
            Start and end in seconds of each window; [] means: take the whole as one item.

        Raises:
            DecodeError: the length cannot be read.
        """
        del source, config, window_s
        return []

    @abstractmethod
    def example(self, seed: int) -> Media:
        """Make seeded media that look like the real thing, for tests and for trying out."""


def no_span(source: Source, modality: str, span: Span | None) -> None:
    """Refuse a span for a modality without a time axis.

    Raises:
        InputError: naming the source and the span.
    """
    if span is not None:
        raise InputError(f"{source.name}: {modality} has no time axis, but a span {span[0]:g}-{span[1]:g} s was asked.")


def check_media(media: Media, modality: str, **array: Any) -> None:
    """Refuse media of another modality, or whose array has another rank or dtype.

    Args:
        media: not modified.
        modality: the one that is asked for.
        array: `rank` and `dtype` that the array must have.

    Raises:
        InputError: naming both.
    """
    if media.modality != modality:
        raise InputError(f"{media.name or 'media'}: expected media of {modality}, got {media.modality}.")
    rank, dtype = array.get("rank"), array.get("dtype")
    got = getattr(media.array, "ndim", None), str(getattr(media.array, "dtype", type(media.array).__name__))
    if (rank is not None and got[0] != rank) or (dtype is not None and got[1] != dtype):
        raise InputError(f"{media.name or modality}: expected {rank} axes of {dtype}, got {got[0]} of {got[1]}.")


def check_positive(config: ModalityConfig, *names: str) -> None:
    """Refuse a configuration with a number that is not above zero.

    Raises:
        InputError: naming the field and its value.
    """
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise InputError(f"{type(config).__name__}.{name}: expected a number above 0, got {value!r}.")


def check_choice(config: ModalityConfig, name: str, choices: tuple[str, ...]) -> None:
    """Refuse a configuration whose switch stands at no known position.

    Raises:
        UnknownNameError: naming the field and the known values.
    """
    value = getattr(config, name)
    if value not in choices:
        raise UnknownNameError(f"{type(config).__name__}.{name}", str(value), choices)


def fields_of(config_class: type[ModalityConfig]) -> tuple[str, ...]:
    """List the names of a configuration's fields, for listings and messages."""
    return tuple(field.name for field in dataclasses.fields(config_class))
