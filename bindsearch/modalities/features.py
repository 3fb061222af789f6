"""Features: one vector that another frozen encoder made of a file; a projector brings it to the joint space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bindsearch.errors import DecodeError
from bindsearch.modalities.arrays import read_array
from bindsearch.modalities.base import Modality, ModalityConfig, check_media, check_positive, no_span
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source
from bindsearch.types import Media, Span

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class FeaturesConfig(ModalityConfig):
    """Numbers of the vectors.

    Attributes:
        width: F, numbers a vector; those of another length come from another encoder and are refused.
        encoder: what made them, for people; part of the preset's id.
        dataset: name inside an HDF5 file; None looks for "features" or "embedding".
        limit_bytes: limit of what is read.
    """

    width: int = 512
    encoder: str = ""
    dataset: str | None = None
    limit_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        check_positive(self, "width", "limit_bytes")


class FeaturesModality(Modality[FeaturesConfig]):
    """A row of a table ("row://TABLE!/KEY", see row_table.py), a .npy or HDF5 file, or an array: (F,) numbers."""

    name: ClassVar[str] = "features"
    suffixes: ClassVar[tuple[str, ...]] = (".features.npy",)
    unit: ClassVar[str] = "feature"
    tower: ClassVar[str] = "features"
    config_class = FeaturesConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"reference": {}, "default": {}}

    def _decode(self, source: Source, config: FeaturesConfig, span: Span | None) -> Media:
        import numpy as np

        no_span(source, self.name, span)
        datasets = (config.dataset,) if config.dataset else ("features", "embedding")
        found = read_array(source, config.limit_bytes, datasets)
        array = found.array
        if array.ndim == 2 and array.shape[0] == 1:
            array = array[0]
        if array.ndim != 1:
            raise DecodeError(source.name, f"expected one vector (F,), got shape {array.shape}; a table needs its keys")
        row = np.ascontiguousarray(array, dtype=np.float32)
        if not np.isfinite(row).all():
            raise DecodeError(source.name, "holds numbers that are not finite")
        return Media(self.name, row, self.unit, name=source.name)

    def preprocess(self, media: Media, config: FeaturesConfig) -> np.ndarray:
        """Check the length: (F,) float32 -> (1, F) float32."""
        check_media(media, self.name, rank=1, dtype="float32")
        if len(media.array) != config.width:
            raise DecodeError(
                media.name or self.name,
                f"{len(media.array)} numbers, expected {config.width}: features of another encoder",
                "preprocess",
            )
        x: np.ndarray = media.array[None].copy()
        return x

    def example(self, seed: int) -> Media:
        """Make 512 seeded numbers."""
        import numpy as np

        row = np.random.default_rng(seed).standard_normal(512).astype(np.float32)
        return Media(self.name, row, self.unit, name=f"example {seed}")


MODALITIES.register("features", FeaturesModality())
