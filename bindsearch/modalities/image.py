"""Images: Pillow in, (1, 3, H, W) out. Bit-equal to the reference in preset "reference"."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities.base import Modality, ModalityConfig, check_choice, check_media, check_positive, no_span
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source, describe_head
from bindsearch.types import Media, Span

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")
"""Formats that are read. PostScript and other formats that start programs are not among them."""

_OPEN_LOCK = threading.Lock()


@dataclass(frozen=True)
class ImageConfig(ModalityConfig):
    """Numbers and switches of an image.

    Attributes:
        size_px: side of the square that the tower sees.
        mean, std: of each channel, in units of 1 (level / 255).
        rotate_exif: turn the picture as its EXIF orientation says.
        alpha: "drop" takes the colours under transparent pixels as they are; "composite" lays them on `background`.
        background: grey level 0-255 under transparent pixels.
        deep_grey: grey of more than 8 bits: "clip" cuts at 255 (almost all white); "scale" maps 0-65535, or 0-1 for
            floats, to 0-255.
        draft_scale: let libjpeg decode at 1/2, 1/4 or 1/8 of the size, as long as the short side stays at least this
            many times `size_px`; 0 is off; 1 (preset "quick") moves pixels by 0.4 levels on average.
        max_pixels: width times height above which nothing is decoded.
        max_aspect: long side over short side above which the picture is refused.
        limit_bytes: size of the file above which it is not read.
    """

    size_px: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rotate_exif: bool = True
    alpha: str = "composite"
    background: int = 255
    deep_grey: str = "scale"
    draft_scale: int = 3
    max_pixels: int = 150_000_000
    max_aspect: float = 50.0
    limit_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        check_positive(self, "size_px", "max_pixels", "max_aspect", "limit_bytes")
        check_choice(self, "alpha", ("drop", "composite"))
        check_choice(self, "deep_grey", ("clip", "scale"))
        if not 0 <= self.background <= 255:
            raise InputError(f"ImageConfig.background: expected a level 0-255, got {self.background}.")


def resized_size(width: int, height: int, size_px: int) -> tuple[int, int]:
    """Give the size at which the shorter side is `size_px`; the other side is truncated, not rounded.

    Source: golden preprocess/image_geometry.json.
    """
    if width <= height:
        return size_px, int(size_px * height / width)
    return int(size_px * width / height), size_px


def crop_offset(length: int, size_px: int) -> int:
    """Give where a centred crop starts; halves go to the even neighbour.

    Source: golden preprocess/image_geometry.json.
    """
    return round((length - size_px) / 2.0)


def crop_u8(array: np.ndarray, size_px: int) -> np.ndarray:
    """Resize the shorter side and cut the centre, on 8-bit levels.

    Args:
        array: (H, W, 3) uint8. Not modified.
        size_px: side of the result.

    Returns:
        (3, size_px, size_px) uint8, C-contiguous.

    Source: golden preprocess/images_u8.npz (Pillow's antialiased bicubic).
    """
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(array))
    width, height = resized_size(*picture.size, size_px)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = crop_offset(width, size_px), crop_offset(height, size_px)
    crop = np.asarray(picture.crop((left, top, left + size_px, top + size_px)))
    return np.ascontiguousarray(crop.transpose(2, 0, 1))


def normalise(levels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Scale 8-bit levels to 0-1, subtract the mean of each channel and divide by its std.

    Args:
        levels: (..., 3, H, W) uint8 or float32 levels. Not modified.
        mean: one number a channel, in units of 1.
        std: one number a channel, in units of 1.

    Returns:
        The same shape, float32.
    """
    import numpy as np

    shape = (len(mean), 1, 1)
    values = levels.astype(np.float32)
    values /= np.float32(255)
    values -= np.asarray(mean, np.float32).reshape(shape)
    values /= np.asarray(std, np.float32).reshape(shape)
    return values


class ImageModality(Modality[ImageConfig]):
    """Still pictures; of an animation, the first frame."""

    name = "image"
    suffixes = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
    unit = "level"
    tower = "vision"
    config_class = ImageConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "reference": {
            "rotate_exif": False,
            "alpha": "drop",
            "deep_grey": "clip",
            "draft_scale": 0,
            "max_aspect": 1000.0,
        },
        "quick": {"draft_scale": 1},
    }

    def _decode(self, source: Source, config: ImageConfig, span: Span | None) -> Media:
        no_span(source, self.name, span)
        if source.kind == "value" and hasattr(source.value, "dtype"):
            return Media(self.name, _checked_array(source, config), self.unit, name=source.name)
        if source.kind == "value":
            _check_size(source.name, source.value.size, config, "decode")
            array, notes = _to_rgb(source.value, source.name, config)
            return Media(self.name, array, self.unit, name=source.name, notes=notes)
        data = source.read_bytes(config.limit_bytes)
        with open_picture(data, source.name) as picture:
            size = picture.size
            _check_size(source.name, size, config, "decode")
            if config.draft_scale and picture.format in ("JPEG", "MPO"):
                scale = config.draft_scale * config.size_px / min(size)
                picture.draft(None, (math.ceil(size[0] * scale), math.ceil(size[1] * scale)))
            array, notes = _to_rgb(picture, source.name, config)
            return Media(self.name, array, self.unit, name=source.name, notes={**notes, "size_px": list(size)})

    def preprocess(self, media: Media, config: ImageConfig) -> np.ndarray:
        """Resize, crop and normalise: (H, W, 3) uint8 levels -> (1, 3, size_px, size_px) float32."""
        check_media(media, self.name, rank=3, dtype="uint8")
        height, width = media.array.shape[:2]
        _check_size(media.name, (width, height), config, "preprocess")
        return normalise(crop_u8(media.array, config.size_px)[None], config.mean, config.std)

    def example(self, seed: int) -> Media:
        """Make a picture of soft blobs with some noise."""
        import numpy as np
        from PIL import Image

        rng = np.random.default_rng([seed, 1])
        height, width = (int(side) for side in rng.integers(60, 320, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = smooth + rng.integers(-12, 13, smooth.shape)
        return Media(self.name, np.clip(noisy, 0, 255).astype(np.uint8), self.unit, name=f"<example {seed}>")


def open_picture(data: bytes, name: str, formats: tuple[str, ...] = FORMATS) -> Image:
    """Read a picture's header; no pixel is decoded yet.

    Args:
        data: the whole file.
        name: for messages.
        formats: Pillow's names of what may be in it.

    Raises:
        DecodeError: no picture of these formats; the message says what the bytes look like.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise DecodeError(name, "is empty")
    try:
        picture = _open_quietly(data, [kind for kind in formats if kind in Image.ID or _init(kind)])
        if picture.format == "PNG":  # decoding alone would not look at the checksums
            picture.verify()
            picture = _open_quietly(data, ["PNG"])
        return picture
    except UnidentifiedImageError as error:
        what = f"cannot be opened as a picture; the bytes look like {describe_head(data[:1024])}"
        raise DecodeError(name, what) from error
    except Image.DecompressionBombError as error:
        raise DecodeError(name, f"too many pixels to decode: {error}") from error


def _open_quietly(data: bytes, formats: list[str]) -> Image:
    """Read the header without warnings: the caller checks the size, and odd metadata are no news."""
    import io

    from PIL import Image

    with _OPEN_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data), formats=formats)


def _init(name: str) -> bool:
    from PIL import Image

    Image.init()
    return name in Image.ID


def _check_size(name: str, size: tuple[int, int], config: ImageConfig, stage: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise DecodeError(name, f"has no pixels ({width}x{height})", stage)
    if width * height > config.max_pixels:
        raise DecodeError(name, f"{width}x{height} pixels, over the limit of {config.max_pixels} (max_pixels)", stage)
    if max(size) > config.max_aspect * min(size):
        what = f"{width}x{height}: one side is over {config.max_aspect:g} times the other (max_aspect); crop it first"
        raise DecodeError(name, what, stage)


def _to_rgb(picture: Image, name: str, config: ImageConfig) -> tuple[np.ndarray, dict[str, Any]]:
    """Decode the pixels of the first frame to (H, W, 3) uint8."""
    import numpy as np

    notes: dict[str, Any] = {"mode": picture.mode, "size_px": list(picture.size)}
    if getattr(picture, "is_animated", False):
        notes["animation"] = "first frame of several"
    picture.load()
    # asked only now: Pillow has turned TIFF while loading, and then says no orientation
    orientation = _orientation(picture) if config.rotate_exif else 1
    if picture.mode[0] in "IF":
        levels = deep_levels(np.asarray(picture), config.deep_grey, name)
        array = np.repeat(levels[:, :, None], 3, axis=2)
    elif config.alpha == "composite" and picture.has_transparency_data:
        array = _composite(picture, config.background)
    else:
        array = np.asarray(picture.convert("RGB"))
    if orientation != 1:
        notes["exif_orientation"] = orientation
        array = _turn(array, orientation)
    return np.ascontiguousarray(array), notes


def deep_levels(values: np.ndarray, how: str, name: str) -> np.ndarray:
    """Bring grey of more than 8 bits to 8.

    Args:
        values: (H, W) integers 0-65535, or floats 0-1. Not modified.
        how: "clip" cuts integers at 255; "scale" maps the full range to 0-255, rounded.
        name: for messages.

    Returns:
        (H, W) uint8.

    Raises:
        DecodeError: values outside those ranges under "scale".
    """
    import numpy as np

    if how == "clip":
        cut: np.ndarray = np.clip(np.nan_to_num(values), 0, 255).astype(np.uint8)
        return cut
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= top):
        raise DecodeError(name, f"grey values {low:g} to {high:g}, expected 0 to {top:g}; is it depth or thermal?")
    levels: np.ndarray = np.rint(values.astype(np.float64) * (255.0 / top)).astype(np.uint8)
    return levels


def _composite(picture: Image, background: int) -> np.ndarray:
    import numpy as np
    from PIL import Image

    ground = Image.new("RGBA", picture.size, (background, background, background, 255))
    return np.asarray(Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB"))


def _orientation(picture: Image) -> int:
    try:
        value = picture.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF says nothing about the pixels
        return 1
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, 3) so that it stands as EXIF orientation 2-8 says."""
    import numpy as np

    if orientation >= 5:
        array = array.transpose(1, 0, 2)
    # after the transposition: which axes run backwards
    rows = orientation in (3, 4, 7, 8)
    columns = orientation in (2, 3, 6, 7)
    if rows:
        array = np.flip(array, 0)
    return np.flip(array, 1) if columns else array


def _checked_array(source: Source, config: ImageConfig) -> np.ndarray:
    import numpy as np

    array = np.asarray(source.value)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        what = f"an image array is (H, W, 3) uint8, got {array.shape} {array.dtype}; pass a PIL image for other modes"
        raise DecodeError(source.name, what)
    _check_size(source.name, (array.shape[1], array.shape[0]), config, "decode")
    return np.ascontiguousarray(array)


MODALITIES.register("image", ImageModality())
