"""What every registered modality keeps, whatever it is."""

import json
import tarfile

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from bindsearch.config import from_json_dict, to_json_dict
from bindsearch.embed.decoding import source_of
from bindsearch.errors import DecodeError, InputError, UnknownNameError
from bindsearch.listing import Listing
from bindsearch.modalities.base import fields_of
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source
from bindsearch.types import Media
from bindsearch.world.write import write_world

PAIRS = [(name, preset) for name in MODALITIES for preset in MODALITIES[name].presets]
SHAPES = {
    "text": (1, 77),
    "image": (1, 3, 224, 224),
    "video": (15, 3, 2, 224, 224),
    "audio": (3, 1, 128, 204),
    "depth": (1, 1, 224, 224),
    "thermal": (1, 1, 224, 224),
    "imu": (1, 6, 2000),
    "features": (1, 512),
}


def test_the_seven_and_features_are_registered():
    assert set(SHAPES) <= set(MODALITIES)


def test_suffixes_belong_to_one_modality_each():
    suffixes = [suffix for name in MODALITIES for suffix in MODALITIES[name].suffixes]
    assert len(suffixes) == len(set(suffixes))
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in suffixes)


@pytest.mark.parametrize("name", list(MODALITIES))
def test_what_a_modality_says_of_itself(name):
    modality = MODALITIES[name]
    assert modality.name == name
    assert {"reference", "default"} <= set(modality.presets)
    assert modality.tower == {"image": "vision", "video": "vision"}.get(name, name)
    for attribute in fields_of(modality.config_class):
        doc = modality.config_class.__doc__ + modality.config_class.__mro__[1].__doc__
        assert attribute in doc, f"{attribute} of {name} is not documented"


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_configurations_are_data(name, preset):
    modality = MODALITIES[name]
    config = modality.config(preset)
    plain = json.loads(json.dumps(to_json_dict(config)))
    assert from_json_dict(modality.config_class, plain) == config
    assert from_json_dict(modality.config_class, plain).id == config.id
    assert config.id.startswith(f"{preset}:")
    with pytest.raises(InputError, match="unknown field 'no_such_field'"):
        modality.config(preset, no_such_field=1)
    with pytest.raises(UnknownNameError, match=f"preset of {name} 'defualt'"):
        modality.config("defualt")


def test_no_two_presets_have_one_id():
    for name in MODALITIES:
        ids = [MODALITIES[name].config(preset).id for preset in MODALITIES[name].presets]
        assert len(ids) == len(set(ids))
        assert MODALITIES[name].config("default").id != MODALITIES[name].config("reference").id


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_preprocess_gives_the_shape_and_leaves_its_input_alone(name, preset):
    modality, seed = MODALITIES[name], 11
    config, media = modality.config(preset), modality.example(seed)
    assert (media.modality, media.unit) == (name, modality.unit)
    untouched = modality.example(seed)
    if name != "text":
        media.array.setflags(write=False)
    x = modality.preprocess(media, config)
    assert x.shape == SHAPES[name]
    assert x.dtype == (np.int64 if name == "text" else np.float32)
    assert x.flags.c_contiguous
    assert np.isfinite(x).all()
    assert np.array_equal(media.array, untouched.array)
    assert np.array_equal(modality.preprocess(media, config), x)


@pytest.mark.parametrize("name", list(MODALITIES))
@settings(deadline=None, derandomize=True, max_examples=12)
@given(seed=st.integers(0, 10**6))
def test_examples_differ_by_seed_and_fit(name, seed):
    modality = MODALITIES[name]
    small = {"image": {"size_px": 32}, "video": {"size_px": 32, "clips": 1, "crops": 1}, "audio": {"mels": 16}}
    config = modality.config(**small.get(name, {}))
    x = modality.preprocess(modality.example(seed), config)
    assert np.isfinite(x).all()
    assert name == "text" or not np.array_equal(x, modality.preprocess(modality.example(seed + 1), config))


@pytest.mark.parametrize("name", list(MODALITIES))
def test_media_of_another_modality_are_refused(name):
    modality = MODALITIES[name]
    other = Media("points", np.zeros((3, 3), np.float32), "m", 1.0, "cloud.ply")
    with pytest.raises(InputError, match=rf"cloud\.ply: expected media of {name}, got points"):
        modality.preprocess(other, modality.config())
    with pytest.raises(InputError, match="expected"):
        modality.preprocess(Media(name, np.zeros((1, 1, 1, 1, 1), np.complex64), "", 1.0), modality.config())


@pytest.mark.parametrize("name", list(MODALITIES))
@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    data=st.binary(max_size=300),
    head=st.sampled_from(
        [
            b"",
            b"\x93NUMPY\x01\x00",
            b"RIFF\x24\x00\x00\x00WAVEfmt ",
            b"\x89PNG\r\n\x1a\n",
            b"\x00\x00\x00\x18ftypmp42",
            b"\x89HDF\r\n\x1a\n",
            b"time,ax\n",
        ]
    ),
)
def test_any_bytes_decode_or_raise_decode_error(name, data, head):
    modality = MODALITIES[name]
    config = modality.config()
    try:
        media = modality.decode(Source.of(head + data, "any.bin"), config)
    except DecodeError as error:
        assert str(error).startswith("any.bin: ")
        assert error.stage in ("read", "decode")
    else:
        assert media.modality == name


@pytest.mark.parametrize("name", list(MODALITIES))
def test_the_reason_for_no_file_is_plain(name, tmp_path):
    modality = MODALITIES[name]
    with pytest.raises(DecodeError, match=r"no such file") as caught:
        modality.decode(Source.of(tmp_path / "nothing"), modality.config())
    assert caught.value.stage == "read"


@pytest.mark.parametrize("name", list(MODALITIES))
def test_spans_that_run_backwards_are_refused(name):
    modality = MODALITIES[name]
    with pytest.raises(InputError, match=r"start < end in seconds, got 2-1"):
        modality.decode(Source.of(b"abc"), modality.config(), (2.0, 1.0))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A scene as files of every modality, its sound as FLAC as well, and the same files in a tar."""
    home = tmp_path_factory.mktemp("packed")
    write_world(1, home / "files")
    sound = next((home / "files").rglob("*.wav"))
    samples, rate = soundfile.read(sound)
    soundfile.write(sound.with_name("again.flac"), samples, rate)
    with tarfile.open(home / "all.tar", "w") as tar:
        tar.add(home / "files", ".")
    return home


@pytest.mark.parametrize("name", ["image", "video", "text", "audio", "depth", "thermal", "imu"])
def test_a_file_within_a_tar_reads_as_the_file_does(packed, name):
    modality, config = MODALITIES[name], MODALITIES[name].config("default")

    def read(place):
        items = sorted((item for item in Listing([place]) if item.modality == name), key=lambda item: item.key[-12:])
        return [modality.preprocess(modality.decode(source_of(item), config), config) for item in items]

    files, members = read(packed / "files"), read(packed / "all.tar")
    assert len(files) == len(members) == (2 if name == "audio" else 1)
    for one, other in zip(files, members, strict=True):
        np.testing.assert_array_equal(one, other)
