import io

import h5py
import numpy as np
import pytest
from hostile import npy_bytes
from PIL import Image
from preprocess_recipes import ffmpeg_grey16

from bindsearch.errors import DecodeError, InputError, UnknownNameError
from bindsearch.modalities.depth import fill_holes
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source
from bindsearch.types import Media

DEPTH = MODALITIES["depth"]
DEFAULT = DEPTH.config()
MILLIMETRES = np.array([[500, 1, 65535], [1234, 8000, 3]], np.uint16)
METRES = (MILLIMETRES.astype(np.float64) / 1000).astype(np.float32)


def decode(thing, preset="default", **numbers):
    return DEPTH.decode(Source.of(thing), DEPTH.config(preset, **numbers))


def media(metres):
    return Media("depth", np.asarray(metres, np.float32), "m", name="test")


def one_ulp(got, metres):
    assert got.dtype == np.float32
    assert got.shape == metres.shape
    assert (np.abs(got - metres) <= np.spacing(metres)).all()


def h5(**datasets):
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        for name, data in datasets.items():
            file[name] = data
    return out.getvalue()


# ------------------------------------------------------------- files written by other libraries, with known metres


def test_png_written_by_pillow():
    out = io.BytesIO()
    Image.fromarray(MILLIMETRES).save(out, "PNG")
    one_ulp(decode(out.getvalue()).array, METRES)
    one_ulp(decode(out.getvalue(), "millimetres").array, METRES)
    assert decode(out.getvalue()).unit == "m"


@pytest.mark.parametrize("codec", ["png", "tiff"])
def test_png_and_tiff_written_by_ffmpeg(codec):
    one_ulp(decode(ffmpeg_grey16(MILLIMETRES, codec)).array, METRES)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("array", [MILLIMETRES, METRES])
def test_tiff_written_by_pillow(array, compression):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "TIFF", compression=compression)
    one_ulp(decode(out.getvalue()).array, METRES)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_npy_written_by_numpy(dtype):
    metres = METRES.astype(dtype)
    one_ulp(decode(npy_bytes(metres)).array, metres.astype(np.float32))
    one_ulp(decode(npy_bytes(np.asfortranarray(metres))).array, metres.astype(np.float32))
    one_ulp(decode(npy_bytes(MILLIMETRES.astype(">u2"))).array, METRES)


def test_hdf5_written_by_h5py():
    one_ulp(decode(h5(depth=METRES, rgb=np.zeros((3, 2, 3), np.uint8))).array, METRES)
    one_ulp(decode(h5(depth=METRES, rgb=np.zeros((3, 2, 3), np.uint8)), "nyu").array, METRES)
    one_ulp(decode(h5(range=METRES)).array, METRES)
    one_ulp(decode(h5(a=METRES, b=METRES * 2), dataset="b").array, METRES * 2)
    with pytest.raises(DecodeError, match="no dataset named depth or depths at the top; there is a, b"):
        decode(h5(a=METRES, b=METRES))


def test_the_labelled_nyu_file():
    stack = np.stack([METRES, METRES * 2]).transpose(0, 2, 1)
    one_ulp(decode(h5(depths=stack, images=stack), "nyu-labeled", index=1).array, METRES * 2)
    with pytest.raises(InputError, match="index 2, but /depths has 2 entries"):
        decode(h5(depths=stack), "nyu-labeled", index=2)
    with pytest.raises(DecodeError, match=r"for one of many, set `index`"):
        decode(h5(depths=stack))


def test_sun_rgbd_bits_are_rotated_back():
    millimetres = np.array([[500, 1234, 8000, 7]], np.uint16)
    rotated = (millimetres << 3) | (millimetres >> 13)
    out = io.BytesIO()
    Image.fromarray(rotated).save(out, "PNG")
    one_ulp(decode(out.getvalue(), "sunrgbd").array, (millimetres / 1000).astype(np.float32))
    # raw / 1000, an error of several projects, is eight times too deep
    assert decode(out.getvalue()).array[0, 0] == pytest.approx(4.0)
    far = np.array([[9000, 60000]], np.uint16)
    out = io.BytesIO()
    Image.fromarray((far << 3) | (far >> 13)).save(out, "PNG")
    assert decode(out.getvalue(), "sunrgbd").array.tolist() == [[8.0, 8.0]]


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sun_rgbd_arrays_of_either_byte_order(order):
    millimetres = np.array([[500, 1234, 8000, 7]], np.uint16)
    rotated = ((millimetres << 3) | (millimetres >> 13)).astype(order)
    one_ulp(decode(npy_bytes(rotated), "sunrgbd").array, (millimetres / 1000).astype(np.float32))
    with pytest.raises(DecodeError, match="SUN RGB-D depth is 16-bit, got >i4"):
        decode(npy_bytes(millimetres.astype(">i4")), "sunrgbd")


def test_monocular_disparity():
    inverse = np.array([[0.1, 0.5], [0.9, 0.2]], np.float32)
    found = decode(npy_bytes(inverse), "disparity")
    assert (found.unit, found.array.tolist()) == ("disparity", inverse.tolist())
    config = DEPTH.config("disparity", size_px=2)
    x = DEPTH.preprocess(found, config)[0, 0]
    assert x.ravel() == pytest.approx((inverse - inverse.mean()).ravel() / inverse.std(), abs=1e-5)
    levels = (inverse * 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG")
    assert decode(out.getvalue(), "disparity8").array.tolist() == levels.tolist()


def scene_with_sky():
    """Inverse depth: a near post on the left, sky (0: farthest) above ground."""
    scene = np.full((60, 60), 100, np.uint8)
    scene[:, :20] = 255
    scene[:36, 20:] = 0
    return scene


@pytest.mark.parametrize(
    ("preset", "scene"),
    [
        ("disparity8", scene_with_sky()),
        ("disparity", scene_with_sky().astype(np.uint16) * 257),
        ("disparity", scene_with_sky().astype(np.float32) / 255),
    ],
)
def test_zero_disparity_is_far_and_no_hole(preset, scene):
    config = DEPTH.config(preset, size_px=60)
    found = decode(npy_bytes(scene), preset)
    assert np.array_equal(found.array, scene.astype(np.float32))
    assert found.notes["missing_share"] == 0
    x = DEPTH.preprocess(found, config)[0, 0]
    assert x[10, 40] < x[50, 40] < x[10, 10]  # sky is farther than ground, ground than the post
    levels = scene.astype(np.float32)
    assert x == pytest.approx((levels - levels.mean()) / levels.std(), abs=1e-4)


def test_holes_of_disparity_are_what_is_not_finite_or_what_a_stereo_map_leaves_at_zero():
    scene = scene_with_sky().astype(np.float32)
    scene[0, 30], scene[50, 3] = np.inf, np.nan
    found = decode(npy_bytes(scene), "disparity")
    assert found.notes["missing_share"] == pytest.approx(2 / 3600)
    x = DEPTH.preprocess(found, DEPTH.config("disparity", size_px=60))[0, 0]
    assert (x[0, 30], x[50, 3]) == (x[0, 31], x[50, 4])
    x = DEPTH.preprocess(found, DEPTH.config("disparity", size_px=60, missing="clip"))[0, 0]
    assert np.isfinite(x).all()
    assert x[50, 3] == x[10, 40]
    stereo = DEPTH.config("disparity", size_px=60, holes="zero")
    matched = DEPTH.decode(Source.of(npy_bytes(scene)), stereo)
    assert matched.notes["missing_share"] == pytest.approx((36 * 40 + 1) / 3600)
    assert DEPTH.preprocess(matched, stereo)[0, 0, 10, 30] == DEPTH.preprocess(matched, stereo)[0, 0, 10, 10]
    with pytest.raises(DecodeError, match="all are NaN or infinite"):
        decode(npy_bytes(np.full((9, 9), np.nan)), "disparity")


def test_ids_of_presets_whose_numbers_stayed():
    ids = {preset: DEPTH.config(preset).id for preset in DEPTH.presets}
    assert (ids["default"], ids["sunrgbd"], ids["reference"]) == (
        "default:0d71b4a1",
        "sunrgbd:ea0f1b66",
        "reference:02a299bb",
    )
    assert ids["disparity"] != "disparity:9dd2cc63"  # what it was while 0 was a hole
    assert DEPTH.config("disparity", holes="zero").id == "disparity:9dd2cc63"


# ------------------------------------------------------------------------------------------------ what is refused


def test_eight_bits_are_refused():
    out = io.BytesIO()
    Image.fromarray(np.full((9, 9), 40, np.uint8)).save(out, "PNG")
    for preset in ("default", "metres", "millimetres", "reference", "disparity"):
        with pytest.raises(DecodeError, match=r"8 bits: too few.*disparity8"):
            decode(out.getvalue(), preset)
    with pytest.raises(DecodeError, match="8 bits"):
        decode(npy_bytes(np.ones((9, 9), np.uint8)))


def test_colours_and_palettes_are_refused():
    for mode, words in (("RGB", "colours are no distances"), ("P", "palette"), ("1", "8 bits")):
        out = io.BytesIO()
        Image.new(mode, (9, 9)).save(out, "PNG")
        with pytest.raises(DecodeError, match=words):
            decode(out.getvalue())


def test_millimetres_taken_for_metres_are_noticed():
    with pytest.raises(DecodeError, match=r"median depth 1500 m.*source_unit='mm'"):
        decode(npy_bytes(np.full((9, 9), 1500.0)))
    assert decode(npy_bytes(np.full((9, 9), 1500.0)), "millimetres").array[0, 0] == 1.5


def test_missing_values_become_zero_and_all_missing_is_refused():
    values = np.array([[1.0, np.nan, -2.0], [np.inf, 0.0, 3.0]], np.float32)
    found = decode(npy_bytes(values))
    assert found.array.tolist() == [[1, 0, 0], [0, 0, 3]]
    assert found.notes["missing_share"] == pytest.approx(4 / 6)
    with pytest.raises(DecodeError, match="no pixel has a depth"):
        decode(npy_bytes(np.full((9, 9), np.nan)))


def test_presets_and_fields_are_checked():
    with pytest.raises(UnknownNameError, match="Did you mean 'millimetres'"):
        DEPTH.config("milimetres")
    with pytest.raises(UnknownNameError, match=r"DepthConfig\.source_unit"):
        DEPTH.config(source_unit="feet")
    with pytest.raises(InputError, match="lower end"):
        DEPTH.config(near_clip_m=60.0)


# ---------------------------------------------------------------------------------------------------- preprocessing


def test_the_recipe_by_hand():
    """Omnivore's numbers: disparity = baseline * focal / depth, clamp to 0.01-75, / 75, - 0.0418, / 0.0295."""
    x = DEPTH.preprocess(media(np.full((30, 40), 2.0)), DEPTH.config("reference", size_px=8))
    assert x.shape == (1, 1, 8, 8)
    expected = (0.075 * 518.857901 / 2.0 / 75 - 0.0418) / 0.0295
    assert x == pytest.approx(np.full(x.shape, expected), rel=1e-5)
    raw = DEPTH.preprocess(media(np.full((30, 40), 2.0)), DEPTH.config("reference-raw", size_px=8))
    assert raw == pytest.approx(np.full(x.shape, 0.075 * 518.857901 / 2.0), rel=1e-5)


def test_intrinsics_scale_the_disparity():
    def raw(**numbers):
        return float(
            DEPTH.preprocess(media(np.full((9, 9), 3.0)), DEPTH.config("reference-raw", size_px=4, **numbers))[
                0, 0, 0, 0
            ]
        )

    assert raw(focal_px=500.0, baseline_m=0.095) == pytest.approx(0.095 * 500 / 3, rel=1e-5)
    assert raw(focal_px=1000.0) == pytest.approx(2 * raw(focal_px=500.0), rel=1e-5)


def test_depth_is_clipped_before_it_is_inverted():
    config = DEPTH.config("reference-raw", size_px=2)
    near_and_far = DEPTH.preprocess(media([[0.001, 200.0], [0.01, 50.0]]), config)[0, 0]
    assert near_and_far[0] == pytest.approx(near_and_far[1])


def test_holes():
    grid = np.array([[0, 0, 0, 0], [0, 2, 0, 5], [0, 0, 0, 0], [7, 0, 0, 0]], np.float32)
    assert fill_holes(grid, grid > 0).tolist() == [[2, 2, 2, 5], [2, 2, 2, 5], [2, 2, 2, 5], [7, 7, 7, 7]]
    assert grid[0, 0] == 0
    full = np.ones((3, 3), np.float32)
    assert fill_holes(full, full > 0) is full
    hole = np.full((40, 40), 2.0, np.float32)
    hole[10:20, 10:20] = 0
    assert np.ptp(DEPTH.preprocess(media(hole), DEFAULT)) < 1e-4
    assert np.ptp(DEPTH.preprocess(media(hole), DEPTH.config("reference"))) > 10
