import io

import numpy as np
import pytest
from PIL import Image
from preprocess_recipes import PREPROCESS, read_json

from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities.image import CLIP_MEAN, CLIP_STD, crop_offset, crop_u8, resized_size
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source

IMAGE = MODALITIES["image"]
REFERENCE, DEFAULT = IMAGE.config("reference"), IMAGE.config()
FILES = sorted(path.name for path in (PREPROCESS / "images").iterdir())


def encode(picture, kind="PNG", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def noise(width, height, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def scene(width, height):
    """A smooth picture, as cameras make them: noise would exaggerate every difference of resamplers."""
    return np.asarray(Image.fromarray(noise(9, 7)).resize((width, height), Image.Resampling.BICUBIC))


def decode(data, config=DEFAULT):
    return IMAGE.decode(Source.of(data), config).array


def test_the_goldens_are_all_there():
    assert len(FILES) == 23
    with np.load(PREPROCESS / "images_u8.npz") as crops:
        assert sorted(crops.files) == FILES


@pytest.mark.parametrize("name", FILES)
def test_reference_levels_are_bit_equal(name):
    media = IMAGE.decode(Source.of(PREPROCESS / "images" / name), REFERENCE)
    with np.load(PREPROCESS / "images_u8.npz") as crops:
        expected = crops[name]
    got = crop_u8(media.array, 224)
    if name.startswith("jpeg"):  # another libjpeg may round another way
        assert np.abs(got.astype(int) - expected).mean() <= 1
    else:
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("jpeg")])
def test_reference_floats_are_bit_equal(name):
    x = IMAGE.preprocess(IMAGE.decode(Source.of(PREPROCESS / "images" / name), REFERENCE), REFERENCE)
    with np.load(PREPROCESS / "images_u8.npz") as crops, np.load(PREPROCESS / "images_float_samples.npz") as samples:
        mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in (CLIP_MEAN, CLIP_STD))
        assert np.array_equal(x[0], (crops[name].astype(np.float32) / np.float32(255) - mean) / std)
        sample = samples[name]
    step = 224 // sample.shape[1]
    assert np.array_equal(x[0, :, ::step, ::step][:, :8, :8], sample)


def test_geometry_table():
    table = read_json("preprocess/image_geometry.json")
    assert len(table["rows"]) > 100
    for width, height, new_width, new_height, left, top in table["rows"]:
        assert resized_size(width, height, 224) == (new_width, new_height)
        assert (crop_offset(new_width, 224), crop_offset(new_height, 224)) == (left, top)


STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}
"""How a picture lies in a file that each orientation shows upright."""


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(kind, orientation):
    """Pillow turns TIFF while it loads, whatever is asked; the others are left to us."""
    upright = scene(120, 80)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "AVIF": {"quality": 95}}.get(kind, {})
    data = encode(Image.fromarray(stored), kind, exif=exif.tobytes(), **options)
    for config in (DEFAULT, IMAGE.config("quick")):
        got = decode(data, config)
        assert got.shape == upright.shape
        assert np.abs(got.astype(int) - upright).mean() < (5 if kind in ("JPEG", "AVIF") else 1e-9)
    # the same where a caller has loaded it
    opened = Image.open(io.BytesIO(data))
    opened.load()
    assert np.array_equal(IMAGE.decode(Source.of(opened), DEFAULT).array, decode(data))
    plain = decode(data, REFERENCE)
    assert np.array_equal(plain, np.asarray(opened.convert("RGB")))
    assert plain.shape == (upright.shape if kind == "TIFF" else stored.shape)


def test_alpha_is_composited_on_white_or_dropped():
    pixels = noise(20, 10, channels=4)
    pixels[:, :10, 3], pixels[:, 10:, 3] = 0, 255
    data = encode(Image.fromarray(pixels))
    assert (decode(data)[:, :10] == 255).all()
    assert np.array_equal(decode(data)[:, 10:], pixels[:, 10:, :3])
    assert np.array_equal(decode(data, REFERENCE), pixels[:, :, :3])
    assert (decode(data, IMAGE.config(background=7))[:, :10] == 7).all()


@pytest.mark.parametrize("mode", ["L", "P"])
def test_transparent_colours_are_composited(mode):
    picture = Image.fromarray(np.full((8, 8), 3, np.uint8)).convert(mode)
    data = encode(picture, transparency=3)
    assert (decode(data) == 255).all()


def test_deep_grey_is_scaled_or_clipped():
    levels = np.array([[0, 257, 255, 65535, 32768]], np.uint16).repeat(5, axis=0)
    data = encode(Image.fromarray(levels))
    assert decode(data)[0, :, 0].tolist() == [0, 1, 1, 255, 128]
    assert decode(data, REFERENCE)[0, :, 0].tolist() == [0, 255, 255, 255, 255]
    floats = Image.fromarray(np.linspace(0, 1, 25, dtype=np.float32).reshape(5, 5))
    assert decode(encode(floats, "TIFF"))[0, :, 1].tolist() == [0, 11, 21, 32, 43]


def test_draft_of_a_large_jpeg_is_close_to_the_full_decode():
    data = encode(Image.fromarray(scene(2000, 1500)), "JPEG", quality=92)
    media = IMAGE.decode(Source.of(data), DEFAULT)
    assert media.array.shape[:2] == (750, 1000)
    assert media.notes["size_px"] == [2000, 1500]
    full = crop_u8(decode(data, IMAGE.config(draft_scale=0)), 224).astype(int)
    assert np.abs(crop_u8(media.array, 224) - full).mean() < 0.5
    small = IMAGE.config(size_px=64)
    assert min(decode(data, small).shape[:2]) >= 128


def test_an_animation_gives_its_first_frame():
    frames = [Image.fromarray(noise(20, 20, seed)).quantize(16) for seed in range(3)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(data), np.asarray(frames[0].convert("RGB")))
    assert "animation" in IMAGE.decode(Source.of(data), DEFAULT).notes


def test_sources_of_one_picture_agree(tmp_path):
    pixels = noise(40, 30)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), picture, pixels):
        assert np.array_equal(decode(source), pixels)


def test_guards():
    with pytest.raises(DecodeError, match=r"2000x30: one side is over 50 times the other"):
        decode(encode(Image.new("L", (2000, 30))))
    assert decode(encode(Image.new("L", (1500, 30)))).shape == (30, 1500, 3)
    with pytest.raises(DecodeError, match=r"100x100 pixels, over the limit of 5000"):
        decode(encode(Image.new("L", (100, 100))), IMAGE.config(max_pixels=5000))
    with pytest.raises(DecodeError, match="an SVG drawing"):
        decode(b'<svg xmlns="http://www.w3.org/2000/svg"/>')
    with pytest.raises(DecodeError, match="over the limit of 10"):
        decode(encode(Image.new("L", (9, 9))), IMAGE.config(limit_bytes=10))
    with pytest.raises(DecodeError, match=r"\(H, W, 3\) uint8"):
        decode(np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match="no time axis"):
        IMAGE.decode(Source.of(noise(9, 9)), DEFAULT, (0.0, 1.0))


def test_postscript_is_never_run():
    with pytest.raises(DecodeError, match="PostScript"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")


def test_a_truncated_file_is_refused_at_every_cut():
    data = encode(Image.fromarray(scene(60, 50)), "JPEG")
    for cut in range(0, len(data) - 2, 37):
        with pytest.raises(DecodeError):
            decode(data[:cut])


def test_every_changed_byte_of_a_png_is_noticed():
    data = encode(Image.fromarray(noise(6, 5)))
    whole = decode(data)
    for place in range(8, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x55
        try:
            assert np.array_equal(decode(bytes(damaged)), whole), place
        except DecodeError:
            continue
