"""Depth pictures: metres or disparity in, (1, 1, H, W) out.

No author of the reference has said how depth must be normalised for it (its repository has no depth loader). The
presets name their source; **none is verified on the released weights**:

default, metres, millimetres   16-bit PNG/TIFF in millimetres (integers) or metres (floats); holes are filled from the
                               nearest pixel; disparity by the recipe below; normalised as in "reference"
reference                      the paper's words ("in-filled depth, converted to disparity") with the numbers of the
                               same group's published code: depth clipped to 0.01-50 m, disparity = baseline * focal /
                               depth, clamped to 0.01-75, divided by 75, minus 0.0418, divided by 0.0295
reference-standardised         the other tradition: disparity, standardised picture by picture (reported to give the
                               paper's figure on SUN RGB-D)
reference-raw                  a public loader of the same design: raw disparity without mean and std
sunrgbd                        16-bit PNG whose bits are rotated left by three; millimetres, cut at 8 m
nyu, nyu-labeled               HDF5 in metres: one picture a file ("depth"), or the labelled set ("depths", index)
disparity, disparity8          monocular inverse depth without scale, as floats or 16 bit, or as 8 bit; standardised.
                               0 is the farthest value there (sky); of stereo maps, where 0 says that nothing was
                               matched: holes="zero"
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

UNITS = ("auto", "m", "mm", "sunrgbd", "disparity", "disparity8")


@dataclass(frozen=True)
class DepthConfig(ModalityConfig):
    """Numbers and switches of a depth picture.

    Attributes:
        size_px: side of the square that the tower sees.
        source_unit: what a value in the file means: "m"; "mm"; "sunrgbd" (bits rotated left by 3, then mm); "disparity"
            (inverse depth without scale, larger is nearer); "disparity8" (the same, and 8 bit is allowed); "auto":
            16-bit integers are mm and floats are m.
        dataset: name inside an HDF5 file; None looks for "depth".
        index: which picture of an HDF5 dataset that holds many.
        transpose: rows and columns change places after reading (Matlab's order).
        far_m: depth at which values are cut; None leaves them.
        missing: where there is no depth: "nearest" fills from the nearest pixel that has one; "clip" leaves 0, which
            the clipping makes very near, as the reference's recipe does.
        holes: which values are no depth: "zero" (0, negative, NaN, infinite), "nan" (NaN, infinite); "auto": "zero"
            of distances, "nan" of disparity.
        max_median_m: a median above it is refused, because it is most likely another unit.
        near_clip_m, far_clip_m: depth is clipped to these before it is inverted.
        baseline_m, focal_px: disparity in pixels = baseline_m * focal_px / depth; focal length of the depth sensor
            at its own resolution. The default is a Kinect v1.
        normalisation: "omnivore": clamp to disparity_clip, divide by its upper end, then mean and std;
            "standardised": minus the picture's mean, divided by its std; "raw": nothing.
        disparity_clip, mean, std: of "omnivore".
        max_aspect, limit_bytes: limits of what is read.
    """

    size_px: int = 224
    source_unit: str = "auto"
    dataset: str | None = None
    index: int | None = None
    transpose: bool = False
    far_m: float | None = None
    missing: str = "nearest"
    holes: str = "auto"
    max_median_m: float = 100.0
    near_clip_m: float = 0.01
    far_clip_m: float = 50.0
    baseline_m: float = 0.075
    focal_px: float = 518.857901
    normalisation: str = "omnivore"
    disparity_clip: tuple[float, float] = (0.01, 75.0)
    mean: float = 0.0418
    std: float = 0.0295
    max_aspect: float = 50.0
    limit_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        check_positive(self, "size_px", "near_clip_m", "baseline_m", "focal_px", "std", "max_median_m", "limit_bytes")
        check_choice(self, "source_unit", UNITS)
        check_choice(self, "missing", ("nearest", "clip"))
        check_choice(self, "holes", ("auto", "zero", "nan"))
        check_choice(self, "normalisation", ("omnivore", "standardised", "raw"))
        if not self.near_clip_m < self.far_clip_m or not self.disparity_clip[0] < self.disparity_clip[1]:
            raise InputError("DepthConfig: the lower end of a clip range must be below the upper one.")

    @property
    def is_metric(self) -> bool:
        """Whether values have a known distance."""
        return not self.source_unit.startswith("disparity")

    @property
    def zero_is_hole(self) -> bool:
        """Whether 0 and less say that there is no depth, or else are values like others."""
        return self.holes == "zero" or (self.holes == "auto" and self.is_metric)

    def unhashed(self) -> tuple[str, ...]:
        """Name `holes` where it means what holes always were."""
        return ("holes",) if self.zero_is_hole else ()


_REFERENCE: dict[str, Any] = {"missing": "clip", "max_median_m": 1e9}


class DepthModality(Modality[DepthConfig]):
    """Distance to the camera at each pixel."""

    name = "depth"
    suffixes = (".depth.png", ".depth.tif", ".depth.tiff", ".depth.npy", ".depth.h5", ".depth.hdf5", ".depth.mat")
    unit = "m"
    tower = "depth"
    config_class = DepthConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "metres": {"source_unit": "m"},
        "millimetres": {"source_unit": "mm"},
        "sunrgbd": {"source_unit": "sunrgbd", "far_m": 8.0},
        "nyu": {"source_unit": "m", "dataset": "depth"},
        "nyu-labeled": {"source_unit": "m", "dataset": "depths", "index": 0, "transpose": True},
        "disparity": {"source_unit": "disparity", "normalisation": "standardised"},
        "disparity8": {"source_unit": "disparity8", "normalisation": "standardised"},
        "reference": _REFERENCE,
        "reference-standardised": {**_REFERENCE, "normalisation": "standardised"},
        "reference-raw": {**_REFERENCE, "normalisation": "raw"},
    }

    def _decode(self, source: Source, config: DepthConfig, span: Span | None) -> Media:
        import numpy as np

        no_span(source, self.name, span)
        names = [config.dataset] if config.dataset else ["depth", "depths"]
        found = read_array(source, config.limit_bytes, names, config.index, ("PNG", "TIFF"))
        check_grid(_check_depth_of_bits(found, config, source.name), source.name, config.max_aspect)
        values = _to_unit(found.array, config, source.name)
        values[~_has_depth(values, config)] = 0 if config.zero_is_hole else np.nan
        if config.is_metric and config.far_m is not None:
            values = np.minimum(values, config.far_m)
        array = values.T if config.transpose else values
        valid = _has_depth(array, config)
        share = float(valid.mean())
        if share == 0:
            what = "zero, negative or NaN" if config.zero_is_hole else "NaN or infinite"
            raise DecodeError(source.name, f"no pixel has a depth (all are {what})")
        if config.is_metric and float(np.median(array[valid])) > config.max_median_m:
            what = (
                f"median depth {float(np.median(array[valid])):g} m: is the file in millimetres? Set source_unit='mm'"
            )
            raise DecodeError(source.name, what)
        notes = {"dtype": str(found.array.dtype), "file": found.kind, "missing_share": 1 - share}
        unit = self.unit if config.is_metric else "disparity"
        return Media(self.name, np.ascontiguousarray(array, dtype=np.float32), unit, name=source.name, notes=notes)

    def preprocess(self, media: Media, config: DepthConfig) -> np.ndarray:
        """Fill, invert, normalise, scale and crop: (H, W) float32 -> (1, 1, size_px, size_px) float32.

        Where the pixel has no depth, the media hold 0, or NaN if 0 is a value (`zero_is_hole`).
        """
        import numpy as np

        check_media(media, self.name, rank=2, dtype="float32")
        check_grid(media.array, media.name, config.max_aspect)
        valid = _has_depth(media.array, config)
        values = fill_holes(media.array, valid) if config.missing == "nearest" else np.where(valid, media.array, 0)
        if media.unit == "disparity":
            disparity = values
        else:
            metres = np.clip(values, np.float32(config.near_clip_m), np.float32(config.far_clip_m))
            disparity = np.float32(config.baseline_m * config.focal_px) / metres
        if config.normalisation == "omnivore":
            low, high = (np.float32(edge) for edge in config.disparity_clip)
            disparity = np.clip(disparity, low, high) / high
        crop = scale_and_crop(disparity, config.size_px)
        if config.normalisation == "omnivore":
            crop = (crop - np.float32(config.mean)) / np.float32(config.std)
        elif config.normalisation == "standardised":
            crop = (crop - crop.mean()) / np.maximum(crop.std(), np.float32(1e-6))
        return np.ascontiguousarray(crop[None, None], dtype=np.float32)

    def example(self, seed: int) -> Media:
        """Make a floor that recedes and a ball before it, with some holes."""
        import numpy as np

        rng = np.random.default_rng([seed, 5])
        height, width = (int(side) for side in rng.integers(60, 200, 2))
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        metres = 1 + 4 * (height - rows) / height
        middle = rng.uniform(0.3, 0.7, 2) * (height, width)
        ball = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < (min(height, width) / 5) ** 2
        metres[ball] = rng.uniform(0.6, 1.5)
        metres[rng.random(metres.shape) < 0.02] = 0
        return Media(self.name, metres.astype(np.float32), self.unit, name=f"<example {seed}>")


def _has_depth(values: np.ndarray, config: DepthConfig) -> np.ndarray:
    """Say of each pixel whether it has a depth: (H, W) float32 -> (H, W) bool."""
    import numpy as np

    finite: np.ndarray = np.isfinite(values)
    return finite & (values > 0) if config.zero_is_hole else finite


def _check_depth_of_bits(found: FileArray, config: DepthConfig, name: str) -> np.ndarray:
    if found.array.ndim > 2 and "mode" in found.attributes:
        what = (
            f"is a colour picture ({found.attributes['mode']}); its colours are no distances. Save 16-bit millimetres"
        )
        raise DecodeError(name, what)
    if found.array.dtype.itemsize == 1 and config.source_unit != "disparity8":
        what = "has 8 bits: too few for a distance, and nobody can tell its unit; inverse depth: preset 'disparity8'"
        raise DecodeError(name, what)
    return found.array


def _to_unit(array: np.ndarray, config: DepthConfig, name: str) -> np.ndarray:
    """Give metres (or disparity) as a new (H, W) float32 array."""
    import numpy as np

    unit = config.source_unit
    if unit == "auto":
        unit = "m" if array.dtype.kind == "f" else "mm"
    if unit == "sunrgbd":
        if array.dtype.newbyteorder("=") != np.uint16:
            raise DecodeError(name, f"SUN RGB-D depth is 16-bit, got {array.dtype}")
        array = array.astype(np.uint16)
        array = (array >> 3) | (array << 13)
    scale = 1000.0 if unit in ("mm", "sunrgbd") else 1.0
    values: np.ndarray = (array.astype(np.float64) / scale).astype(np.float32)
    return values


def fill_holes(grid: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Fill holes from the nearest pixel of the same row that is none, then empty rows from the nearest row.

    Args:
        grid: (H, W) float32. Not modified.
        valid: (H, W) bool, False in holes. Not modified.

    Returns:
        (H, W) float32, a copy where anything was filled.
    """
    import numpy as np

    if valid.all() or not valid.any():
        return grid
    filled = np.take_along_axis(grid, _nearest_true(valid), axis=1)
    rows = np.asarray(valid.any(axis=1))
    return np.ascontiguousarray(filled[_nearest_true(rows[None])[0]])


def _nearest_true(valid: np.ndarray) -> np.ndarray:
    """Give, in each row of (H, W) bool, the index of the nearest True; 0 where there is none."""
    import numpy as np

    width = valid.shape[1]
    places = np.arange(width)
    left = np.maximum.accumulate(np.where(valid, places, -width), axis=1)
    right = np.minimum.accumulate(np.where(valid, places, 2 * width)[:, ::-1], axis=1)[:, ::-1]
    nearest = np.where(places - left <= right - places, left, right)
    return np.where((nearest < 0) | (nearest >= width), 0, nearest)


MODALITIES.register("depth", DepthModality())
