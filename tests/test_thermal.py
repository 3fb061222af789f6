import io

import h5py
import numpy as np
import pytest
from hostile import npy_bytes
from PIL import Image
from preprocess_recipes import ffmpeg_grey16

from bindsearch.errors import DecodeError, InputError
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source
from bindsearch.types import Media

THERMAL = MODALITIES["thermal"]
LEVELS16 = np.array([[0, 1, 257], [65535, 40000, 12345]], np.uint16)
LEVELS8 = np.array([[0, 1, 2], [255, 128, 77]], np.uint8)


def decode(thing, preset="default", **numbers):
    return THERMAL.decode(Source.of(thing), THERMAL.config(preset, **numbers)).array


def encode(array, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def one_ulp(got, levels):
    levels = levels.astype(np.float32)
    assert got.dtype == np.float32
    assert (np.abs(got - levels) <= np.spacing(np.maximum(levels, 1))).all()


def test_sixteen_bits_of_every_writer():
    h5 = io.BytesIO()
    with h5py.File(h5, "w") as file:
        file["thermal"] = LEVELS16
    ffmpeg = [ffmpeg_grey16(LEVELS16, codec) for codec in ("png", "tiff")]
    pillow = [encode(LEVELS16, kind) for kind in ("PNG", "TIFF")]
    for data in (*ffmpeg, *pillow, h5.getvalue(), npy_bytes(LEVELS16)):
        one_ulp(decode(data), LEVELS16)
        one_ulp(decode(data, "reference"), LEVELS16)


def test_eight_bits_span_the_same_range():
    for data in (encode(LEVELS8), encode(LEVELS8, "BMP"), npy_bytes(LEVELS8)):
        one_ulp(decode(data), LEVELS8 * np.float64(257))


def test_floats_are_shares_of_one():
    one_ulp(decode(npy_bytes(np.array([[0.0, 0.5, 1.0]] * 2))), np.array([[0, 32767.5, 65535]] * 2))


def test_kelvin_need_their_range():
    kelvin = np.array([[273.15, 293.15], [313.15, 283.15]])
    with pytest.raises(DecodeError, match=r"values 273\.15 to 313\.15, expected 0 to 1; set low and high"):
        decode(npy_bytes(kelvin))
    one_ulp(decode(npy_bytes(kelvin), low=273.15, high=313.15), np.array([[0, 32767.5], [65535, 16383.75]]))
    stretched = decode(npy_bytes((kelvin * 100).astype(np.uint16)), "radiometric")
    assert (stretched.min(), stretched.max()) == (0, 65535)
    with pytest.raises(DecodeError, match="nothing to stretch"):
        decode(npy_bytes(np.full((4, 4), 29315, np.uint16)), "radiometric")


def test_grey_in_three_channels_is_taken_and_false_colours_are_not():
    ramp = np.tile(np.arange(0, 250, 5, dtype=np.uint8), (40, 1))
    stored = decode(encode(np.stack([ramp] * 3, axis=2), "JPEG"))
    assert np.abs(stored - ramp * 257.0).max() < 3 * 257
    colours = np.stack([ramp, ramp[:, ::-1], ramp], axis=2)
    with pytest.raises(DecodeError, match="false colours"):
        decode(encode(colours))
    assert decode(encode(colours), "reference").shape == ramp.shape


def test_preprocessing_divides_by_the_full_scale_and_nothing_else():
    media = Media("thermal", np.full((20, 30), 13107.0, np.float32), "level16")
    for preset in ("default", "reference"):
        x = THERMAL.preprocess(media, THERMAL.config(preset, size_px=16))
        assert x.shape == (1, 1, 16, 16)
        assert x == pytest.approx(np.full(x.shape, 0.2), abs=1e-6)


def test_overshoot_of_the_resampler_is_cut():
    edge = np.zeros((8, 8), np.float32)
    edge[:, 4:] = 65535
    x = THERMAL.preprocess(Media("thermal", edge, "level16"), THERMAL.config(size_px=64))
    assert (x.min(), x.max()) == (0, 1)


def test_fields_are_checked():
    with pytest.raises(InputError, match="together"):
        THERMAL.config(low=1.0)
    with pytest.raises(InputError, match="low < high"):
        THERMAL.config(low=2.0, high=1.0)
    with pytest.raises(DecodeError, match="NaN"):
        decode(npy_bytes(np.array([[np.nan, 0.5]] * 2)))
