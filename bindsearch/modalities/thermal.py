"""Thermal pictures: 8 or 16 bits of one channel in, (1, 1, H, W) out.

The reference has no loader. Users who came within one point of the paper took grey / 255 without mean and std, which is
what both presets do; it is not verified on the released weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities.arrays import FileArray, check_grid, read_array, scale_and_crop
from bindsearch.modalities.base import Modality, ModalityConfig, check_choice, check_media, check_positive, no_span
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source
from bindsearch.types import Media, Span

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("PNG", "TIFF", "JPEG", "BMP", "PPM")
_TOP = 65535.0


@dataclass(frozen=True)
class ThermalConfig(ModalityConfig):
    """Numbers and switches of a thermal picture.

    Attributes:
        size_px: side of the square that the tower sees.
        mean, std: in units of 1 (level / 65535).
        low, high: values of the file that become 0 and 1; None takes the full range of its dtype (floats: 0 to 1).
        stretch: "none", or "minmax" for 16-bit and float files that use a small part of their range (radiometric
            cameras): the picture's own ends become 0 and 1.
        colour: a picture of three channels: "refuse" takes it only if it is grey in fact (within 8 levels, as JPEG
            leaves it); "luma" takes the brightness of any, also of false colours.
        dataset: name inside an HDF5 file; None looks for "thermal".
        max_aspect, limit_bytes: limits of what is read.
    """

    size_px: int = 224
    mean: float = 0.0
    std: float = 1.0
    low: float | None = None
    high: float | None = None
    stretch: str = "none"
    colour: str = "refuse"
    dataset: str | None = None
    max_aspect: float = 50.0
    limit_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        check_positive(self, "size_px", "std", "max_aspect", "limit_bytes")
        check_choice(self, "stretch", ("none", "minmax"))
        check_choice(self, "colour", ("refuse", "luma"))
        if (self.low is None) != (self.high is None):
            raise InputError("ThermalConfig: low and high are given together.")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise InputError(f"ThermalConfig: expected low < high, got {self.low:g} and {self.high:g}.")


class ThermalModality(Modality[ThermalConfig]):
    """Infrared intensity at each pixel."""

    name = "thermal"
    suffixes = (
        *(".thermal.png", ".thermal.tif", ".thermal.tiff", ".thermal.jpg", ".thermal.jpeg"),
        *(".thermal.npy", ".thermal.h5", ".thermal.hdf5"),
    )
    unit = "level16"
    tower = "thermal"
    config_class = ThermalConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "radiometric": {"stretch": "minmax"},
        "reference": {"colour": "luma"},
    }

    def _decode(self, source: Source, config: ThermalConfig, span: Span | None) -> Media:
        import numpy as np

        no_span(source, self.name, span)
        names = [config.dataset] if config.dataset else ["thermal"]
        found = read_array(source, config.limit_bytes, names, None, FORMATS)
        grid = _one_channel(found, config, source.name)
        check_grid(grid, source.name, config.max_aspect)
        if grid.dtype.kind == "f" and not np.isfinite(grid).all():
            raise DecodeError(source.name, "holds values that are NaN or infinite")
        notes = {"dtype": str(grid.dtype), "file": found.kind}
        return Media(self.name, _to_level16(grid, config, source.name), self.unit, name=source.name, notes=notes)

    def preprocess(self, media: Media, config: ThermalConfig) -> np.ndarray:
        """Scale to 0-1, resize and crop: (H, W) float32 levels 0-65535 -> (1, 1, size_px, size_px) float32."""
        import numpy as np

        check_media(media, self.name, rank=2, dtype="float32")
        check_grid(media.array, media.name, config.max_aspect)
        crop = np.clip(scale_and_crop(media.array / np.float32(_TOP), config.size_px), 0, 1)
        values = (crop - np.float32(config.mean)) / np.float32(config.std)
        return np.ascontiguousarray(values[None, None], dtype=np.float32)

    def example(self, seed: int) -> Media:
        """Make a warm blob before a cool gradient."""
        import numpy as np

        rng = np.random.default_rng([seed, 6])
        height, width = (int(side) for side in rng.integers(60, 200, 2))
        rows, columns = np.mgrid[0:height, 0:width]
        middle, reach = rng.uniform(0.3, 0.7, 2) * (height, width), rng.uniform(8, 25)
        blob = np.exp(-((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2) / (2 * reach**2))
        levels = 12000 + 4000 * rows / height + 30000 * blob + rng.normal(0, 200, blob.shape)
        return Media(self.name, np.clip(levels, 0, _TOP).astype(np.float32), self.unit, name=f"<example {seed}>")


def _one_channel(found: FileArray, config: ThermalConfig, name: str) -> np.ndarray:
    import numpy as np

    array, mode = found.array, found.attributes.get("mode")
    if array.ndim != 3 or mode not in ("RGB", "RGBA"):
        return array
    colours = array[:, :, :3].astype(np.int16)
    if config.colour == "refuse" and int((colours.max(axis=2) - colours.min(axis=2)).max()) > 8:
        what = "is in false colours, which have no order of heat; save one channel, or set colour='luma'"
        raise DecodeError(name, what)
    luma: np.ndarray = np.rint(colours @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    return luma


def _to_level16(grid: np.ndarray, config: ThermalConfig, name: str) -> np.ndarray:
    """Give (H, W) float32 levels 0-65535; 8 bits are spread over the range (255 -> 65535)."""
    import numpy as np

    values = grid.astype(np.float64)
    if config.low is not None and config.high is not None:
        low, high = config.low, config.high
    elif config.stretch == "minmax" and grid.dtype.itemsize > 1:
        low, high = float(values.min()), float(values.max())
        if low == high:
            raise DecodeError(name, f"all pixels are {low:g}: nothing to stretch")
    else:
        low, high = 0.0, {"b": 1.0, "f": 1.0}.get(grid.dtype.kind, 255.0 if grid.dtype.itemsize == 1 else _TOP)
        if values.min() < 0 or values.max() > high:
            what = f"values {values.min():g} to {values.max():g}, expected 0 to {high:g}; set low and high to its ends"
            raise DecodeError(name, what)
    levels: np.ndarray = (np.clip((values - low) / (high - low), 0, 1) * _TOP).astype(np.float32)
    return levels


MODALITIES.register("thermal", ThermalModality())
