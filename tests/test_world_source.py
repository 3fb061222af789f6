"""The world as a source without files: what it lists, that it equals written files by value, and that it can resume."""

from __future__ import annotations

import itertools
import os
import signal
import tracemalloc

import numpy as np
import pytest

from bindsearch.embed import EmbedOptions, run_embed
from bindsearch.embed.blocks import LONGEST, Blocks, is_made
from bindsearch.embed.decoding import Decoded, Failed, decode_item
from bindsearch.embed.worker import Task
from bindsearch.embed.workers import DecodePool
from bindsearch.errors import BindSearchError, InputError, MissingInputError, UnknownNameError
from bindsearch.index.build import build_index
from bindsearch.listing import Listing
from bindsearch.makers import maker_of, narrow
from bindsearch.models.spaces import load_space
from bindsearch.preview import preview_hit
from bindsearch.registry import MAKERS, MODALITIES
from bindsearch.search import open_index
from bindsearch.sources import Source
from bindsearch.store import open_store
from bindsearch.types import Hit, Item
from bindsearch.world.address import Address, parse, split_of
from bindsearch.world.files import SUFFIXES
from bindsearch.world.scene import SPLIT_SIZE, sample, split_seeds
from bindsearch.world.text import write_captions
from bindsearch.world.write import write_world

LOSSLESS = ("image", "text", "audio", "depth", "thermal", "imu")
HERE = EmbedOptions(workers=0, batch_size=8, shard_size=40)


@pytest.fixture(scope="module")
def space():
    return load_space("tiny", device="cpu")


# ---- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "canonical", "first_seed", "count"),
    [
        ("world:17#image", "world:17#image", 17, 1),
        ("world:0..1000", "world:0..1000", 0, 1000),
        ("world:train:3..4", "world:3", 3, 1),
        ("world:test:0..2000,size=64", "world:test:0..2000", int(split_seeds("test", 1)[0]), 2000),
        ("world:5..9,size=224,kind=subject#text,image", "world:5..9,size=224,kind=subject#image,text", 5, 4),
        ("world:5,size=224#audio", "world:5#audio", 5, 1),
        ("world:demo:2,language=both", "world:demo:2,language=both", int(split_seeds("demo", 1, 2)[0]), 1),
        ("world:2,language=german#image", "world:2#image", 2, 1),
    ],
)
def test_addresses_are_read_and_written_one_way(written, canonical, first_seed, count):
    address = parse(written)
    assert str(address) == canonical
    assert parse(canonical) == parse(str(parse(canonical)))
    assert (address.seeds.start, len(address.seeds)) == (first_seed, count)


@pytest.mark.parametrize(
    ("written", "error", "words"),
    [
        ("world:", InputError, "whole numbers of scenes, in a form like world:17#image"),
        ("world:dog", InputError, "whole numbers"),
        ("world:-3..5", InputError, "whole numbers"),
        ("world:9..3", InputError, r"the range 9\.\.3 holds no scene. Write the smaller number first"),
        ("world:7..7", InputError, "holds no scene"),
        ("world:tset:0..5", UnknownNameError, "Did you mean 'test'"),
        ("world:0..5,sise=3", UnknownNameError, "Did you mean 'size'"),
        ("world:0..5,size=3", InputError, "pixels from 16 to 4096, got '3'"),
        ("world:0..5,kind=whole", UnknownNameError, "Known: full, mixed, setting, subject"),
        ("world:0..5#sound", UnknownNameError, "modality of a world 'sound'"),
        ("world:0..5#points", UnknownNameError, "modality of a world 'points'"),
        (f"world:0..{SPLIT_SIZE + 1}", InputError, "Others are in another split: world:validation:0..100"),
    ],
)
def test_bad_ranges_say_what_to_type(written, error, words, tmp_path):
    with pytest.raises(error, match=words):
        parse(written)
    with pytest.raises(error, match=words):  # before anything is embedded
        Listing([written])


def test_one_item_is_one_scene_in_one_modality():
    with pytest.raises(InputError, match="expected one item, such as world:0#image"):
        Source.of("world:0..5")
    with pytest.raises(InputError, match="expected one item, such as world:test:4#image"):
        Source.of("world:test:4")


def test_splits_of_seeds():
    assert [split_of(int(split_seeds(name, 1, 9)[0])) for name in ("train", "test", "compositional")] == [
        *("train", "test", "compositional")
    ]
    assert split_of(5 * SPLIT_SIZE) is None


def test_a_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert maker_of("world:3#image") is MAKERS["world"]
    assert maker_of("world://3") is None and maker_of("worlds:3") is None and maker_of("c:3.png") is None
    (tmp_path / "world:3#image").write_bytes(b"not a picture")
    assert maker_of("world:3#image") is None
    assert Source.of("world:3#image").kind == "path"


# ---- listing ---------------------------------------------------------------------------------------------------------


def test_items_say_what_the_scenes_hold():
    items = list(Listing(["world:demo:4..7,language=both"]))
    assert [item.key for item in items[:8]] == [
        *("world:demo:4#image", "world:demo:4#video", "world:demo:4#text", "world:demo:4,language=german#text"),
        *("world:demo:4#audio", "world:demo:4#depth", "world:demo:4#thermal", "world:demo:4#imu"),
    ]
    scenes = sample(split_seeds("demo", 3, 4))
    for row, label in enumerate(scenes.labels()):
        of_scene = items[8 * row : 8 * row + 8]
        assert {item.group for item in of_scene} == {f"world:demo:{4 + row}"}
        for item in of_scene:
            assert {name: item.attributes[name] for name in label} == label
            assert item.attributes["split"] == "demo"
    english, german = write_captions(scenes).texts, write_captions(scenes, "german").texts
    assert [item.literal for item in items if item.modality == "text"] == [
        text for pair in zip(english, german, strict=True) for text in pair
    ]
    assert len({item.id for item in items}) == len(items)
    assert [item.modality for item in Listing(["world:0..2"], modality="depth")] == ["depth", "depth"]
    with pytest.raises(InputError, match="asked for audio, but it names image, text"):
        list(Listing(["world:0..2#image,text"], modality="audio"))


def test_narrowing_is_for_what_is_made():
    assert narrow("world:0..9,size=32", ["text", "image"]) == "world:0..9,size=32#image,text"
    with pytest.raises(InputError, match="Leave away --modalities"):
        narrow("world:0..9#image", ["text"])
    with pytest.raises(InputError, match="--modalities is for sources such as world"):
        narrow("media", ["text"])


def test_a_long_range_is_listed_lazily():
    items = iter(Listing(["world:0..1000000000000#image"]))
    next(items)
    tracemalloc.start()
    for _ in range(3):
        for _ in itertools.islice(items, 2048):
            pass
        tracemalloc.reset_peak()
    for _ in itertools.islice(items, 4096):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20  # two lists of 2048 scenes at most


def by_key(folder):
    store = open_store(folder)
    keys = store.items(("key",)).column("key").to_pylist()
    return dict(zip(keys, store.vectors(), strict=True))


def test_manifests_and_lists_may_name_scenes(tmp_path, space):
    rows = [
        "path,key,mood,fuse,image,audio",
        "world:3#depth,,calm,,,",
        "world:test:4#image,mine,,,,",
        "world:0..5#image,many,,,,",
        ",both,,image*0.5 + audio,world:3#image,world:3#audio",
    ]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    (tmp_path / "some.lst").write_text("world:7..9#image\nworld:8#text\n")
    depth, mine, many, _ = Listing([tmp_path / "rows.csv"])
    assert (depth.key, depth.modality, depth.attributes["mood"]) == ("world:3#depth", "depth", "calm")
    assert depth.attributes["subject"] == sample(split_seeds("train", 1, 3)).labels()[0]["subject"]
    assert (mine.key, mine.source) == ("mine", "world:test:4#image")
    assert "names several items; a row is one, such as world:0#image" in many.reason
    listed = [item.key for item in Listing([tmp_path / "some.lst"])]
    assert listed == ["world:7#image", "world:8#image", "world:8#text"]
    run_embed([tmp_path / "rows.csv"], tmp_path / "emb", space, options=HERE)
    sum_of_two = 0.5 * space.image("world:3#image") + space.audio("world:3#audio")
    assert np.abs(by_key(tmp_path / "emb")["both"] - sum_of_two.vector).max() < 2.5e-4  # the store holds float16


# ---- the same as files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", LOSSLESS)
def test_arrays_equal_those_of_written_files(modality, tmp_path, space):
    start, n = 40, 6
    write_world(n, tmp_path, seed=int(split_seeds("test", 1, start)[0]), size_px=64, modalities=[modality])
    config = {modality: space.config(modality)}
    for number in range(n):
        path = tmp_path / f"scene-{number:05d}{SUFFIXES[modality]}"
        file = Item(path.name, modality, str(path), size_bytes=path.stat().st_size, mtime_s=path.stat().st_mtime)
        made = next(iter(Listing([f"world:test:{start + number}#{modality}"])))
        of_file, of_name = decode_item(file, config), decode_item(made, config)
        assert isinstance(of_file, Decoded), of_file
        assert isinstance(of_name, Decoded), of_name
        assert np.array_equal(of_file.arrays[0], of_name.arrays[0])


def test_a_video_is_near_its_file(tmp_path, space):
    write_world(3, tmp_path, seed=70, size_px=64, modalities=["video"])
    kind, config = space.modality("video"), space.config("video")
    for number in range(3):
        file = kind.decode(Source.of(tmp_path / f"scene-{number:05d}.mp4"), config)
        made = kind.decode(Source.of(f"world:{70 + number}#video"), config)
        assert (file.rate_hz, file.notes["frame_indices"]) == (made.rate_hz, made.notes["frame_indices"])
        apart = np.abs(file.array.astype(float) - made.array).mean()
        assert apart < 8  # H.264 with halved colours; frames of two scenes are about 50 apart


def test_embeddings_equal_those_of_written_files(tmp_path, space):
    n = 20
    write_world(n, tmp_path / "in", seed=300, size_px=64, modalities=LOSSLESS)
    run_embed([tmp_path / "in"], tmp_path / "files", space, options=HERE)
    run_embed([f"world:300..{300 + n}#{','.join(LOSSLESS)}"], tmp_path / "made", space, options=HERE)
    of_file, of_name = by_key(tmp_path / "files"), by_key(tmp_path / "made")
    assert len(of_name) == len(of_file) == n * len(LOSSLESS)
    for modality in LOSSLESS:
        for number in range(n):
            one = of_file[f"scene-{number:05d}{SUFFIXES[modality]}"]
            two = of_name[f"world:{300 + number}#{modality}"]
            assert np.abs(one - two).max() < 1e-6, (modality, number)


# ---- blocks ----------------------------------------------------------------------------------------------------------


def test_blocks_grow_and_hold_one_modality():
    items = list(Listing(["world:0..200#image", "world:0..40#audio", "world:7#text"]))
    blocks = Blocks(items)
    taken = []
    while block := blocks.take():
        taken.append(block)
        assert blocks.making == is_made(block[0])
    assert [item for block in taken for item in block] == items
    assert [len(block) for block in taken] == [32, 64, 104, 32, 8, 1]
    assert all(len({item.modality for item in block}) == 1 for block in taken)
    heavy = Blocks(Listing(["world:0..5000#image"]))
    first = heavy.take()
    heavy.note("image", 10 << 20)
    assert (len(first), len(heavy.take()), len(heavy.take()), len(heavy.take())) == (32, 64, 4, 4)
    long = Blocks(Listing(["world:0..9000#image"]))
    assert max(len(block) for block in iter(long.take, ())) == LONGEST
    large = Blocks(Listing(["world:0..40,size=512#video"]))  # 12 MiB each while they are made
    assert [len(block) for block in iter(large.take, ())] == [4] * 10


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pool_makes_blocks_in_order(workers, space):
    items = list(Listing(["world:0..150#image", "world:0..3#text", "world:0..40#depth"]))
    task = Task({name: space.config(name) for name in ("image", "text", "depth")})
    with DecodePool(workers, window=8) as pool:
        done = list(pool.map(items, task))
    assert [item for item, _ in done] == items
    for place in (0, 31, 32, 149, 151, 192):
        alone = decode_item(items[place], task.configs)
        assert isinstance(alone, Decoded)
        assert done[place][1].sha256 == alone.sha256
        # a row of a block and the same row alone may round differently
        assert np.abs(done[place][1].arrays[0].astype(float) - alone.arrays[0]).max() < 0.05


def test_large_blocks_pass_both_ways(space):
    """A link holds less than a block's items and less than its outcomes: one who sends must not wait for the other."""
    items = list(Listing(["world:0..3000,size=16#image"]))
    with DecodePool(2) as pool:
        outcomes = [outcome for _, outcome in pool.map(items, Task({"image": space.config("image")}))]
    assert len(outcomes) == 3000 and {type(outcome) for outcome in outcomes} == {Decoded}


def test_a_worker_that_dies_in_a_block_harms_no_item(space):
    items = list(Listing(["world:0..200#image"]))
    with DecodePool(2) as pool:
        outcomes = pool.map(items, Task({"image": space.config("image")}))
        done = [next(outcomes) for _ in range(3)]
        for worker in list(pool.workers):
            os.kill(worker.process.pid, signal.SIGKILL)
        done += outcomes
    assert [item for item, _ in done] == items
    assert {type(outcome) for _, outcome in done} == {Decoded}


def test_what_cannot_be_made_fails_alone(monkeypatch, space):
    from bindsearch.world import source

    real = source.render_values

    def broken(scenes, modality, size_px, language):
        if 5 in scenes.seed:
            raise ZeroDivisionError("scene 5")
        return real(scenes, modality, size_px, language)

    monkeypatch.setattr(source, "render_values", broken)
    items = list(Listing(["world:0..9#image"]))
    with DecodePool(0) as pool:
        outcomes = [outcome for _, outcome in pool.map(items, Task({"image": space.config("image")}))]
    assert [type(outcome) for outcome in outcomes] == [Decoded] * 5 + [Failed] + [Decoded] * 3
    assert outcomes[5].reason == "ZeroDivisionError: scene 5"


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_resumes_to_the_same_bytes(tmp_path, space):
    sources = ["world:0..130#image,text"]
    run_embed(sources, tmp_path / "whole", space, options=HERE)

    def stop(progress):
        if progress.done >= 70:
            raise BindSearchError("stopped")

    with pytest.raises(BindSearchError, match="stopped"):
        run_embed(sources, tmp_path / "cut", space, options=HERE, progress=stop)
    report = run_embed(sources, tmp_path / "cut", space, options=HERE)
    assert report.kept_shards == 1 and report.items == 260
    whole, cut = ({path.name: path.read_bytes() for path in sorted((tmp_path / name / "g0001").glob("*.npy"))}
                  for name in ("whole", "cut"))  # fmt: skip
    assert whole == cut and len(whole) == 8
    again = run_embed(sources, tmp_path / "cut", space, options=HERE)
    assert (again.unchanged, again.shards) == (260, 0)
    more = run_embed(["world:100..150#image"], tmp_path / "cut", space, options=HERE)
    assert (more.unchanged, more.embedded["image"], more.gone) == (30, 20, 0)


def test_an_index_of_scenes_filters_by_attributes_and_shows_its_hits(tmp_path, space):
    run_embed(["world:0..60#image,video,text,audio,depth,thermal,imu"], tmp_path / "emb", space, options=HERE)
    build_index(tmp_path / "emb", tmp_path / "index")
    index = open_index(tmp_path / "index")
    labels = sample(split_seeds("train", 60)).labels()
    wanted = {f"world:{label['seed']}#depth" for label in labels if label["motion"] == "spin" and label["x"] < 0.5}
    asked = space.image("world:3#image")
    hits = index.search(asked, k=60, where="motion == 'spin' and x < 0.5 and modality == 'depth'")
    assert {hit.key for hit in hits} == wanted and len(wanted) > 1
    best = index.search(asked, k=1, where="modality == 'image'")[0]
    assert best.key == "world:3#image" and best.score == pytest.approx(1, abs=1e-5)
    for hit in index.search(asked, k=420):
        if hit.key.startswith("world:3#"):
            shown = preview_hit(hit, {}, with_clip=True)
            assert shown.trouble == "" and shown.modality == hit.modality
            assert (shown.picture is None) == (hit.modality in ("text", "imu"))
            assert (shown.clip is None) == (hit.modality not in ("audio", "video"))
            assert shown.words == (hit.columns["caption"] if hit.modality == "text" else "")


def test_a_hit_of_an_unknown_scene_says_so():
    shown = preview_hit(Hit(1, 0.5, 3, "world:x#image", "image", "world:x#image"), {})
    assert shown.picture is None and "whole numbers of scenes" in shown.trouble


def test_nothing_asked_for_is_in_the_space(tmp_path, space):
    class Narrow:
        space_id, modalities, dim = space.space_id, ("text",), space.dim

        def __getattr__(self, name):
            return getattr(space, name)

    with pytest.raises(MissingInputError, match="no media found"):
        run_embed(["world:0..5#image"], tmp_path / "out", Narrow(), options=HERE)


def test_every_listed_modality_is_registered():
    assert set(Address("train", 0, 1).modalities) <= set(MODALITIES.built_in)
