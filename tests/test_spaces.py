"""Spaces by name: one contract for all of them, presets, refusals, and what is not imported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bindsearch import doctor
from bindsearch.cli import run
from bindsearch.errors import InputError, MismatchError, ShapeError, UnknownNameError, UnsupportedError, WeightsError
from bindsearch.models import spaces, weights
from bindsearch.models.bind import TOWERS
from bindsearch.models.manifest import Parent
from bindsearch.models.space import Space
from bindsearch.models.spaces import info, list_spaces, load_space, path
from bindsearch.registry import MODALITIES, SPACES
from bindsearch.store.identity import Identity

ROOT = Path(__file__).parent.parent
OPEN_CLIP = "open_clip:ViT-S-32-alt/random:3"
MODALITY_NAMES = ("image", "video", "text", "audio", "depth", "thermal", "imu")


@pytest.fixture(scope="module")
def open_clip_space() -> Space:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what timm and its friends say on import is theirs
        import open_clip  # noqa: F401
    return load_space(OPEN_CLIP)


@pytest.fixture(scope="module")
def folder_space(tmp_path_factory: pytest.TempPathFactory) -> Space:
    return load_space(saved_tiny(tmp_path_factory.mktemp("spaces") / "mine", 4))


@pytest.fixture(scope="module", params=["tiny:0", "folder", OPEN_CLIP])
def space(request: pytest.FixtureRequest) -> Space:
    if request.param == "folder":
        return request.getfixturevalue("folder_space")  # type: ignore[no-any-return]
    if request.param == OPEN_CLIP:
        return request.getfixturevalue("open_clip_space")  # type: ignore[no-any-return]
    return load_space(request.param)


def saved_tiny(folder: Path, seed: int) -> Path:
    manifest = spaces.tiny_manifest(seed)
    towers = {name: weights.getters(spaces.drawn_tower(manifest, seed, name)) for name in TOWERS}
    weights.save_space(folder, manifest, towers)
    return folder


def saved_joined(folder: Path, parent: str) -> None:
    """Save the depth tower of tiny:0 as one that joined tiny:0, which `parent` is said to name."""
    manifest = spaces.tiny_manifest(0)
    alone = replace(manifest.architecture, towers={"depth": manifest.architecture.tower("depth")})
    joined = Parent(parent, manifest.space_id, "image", manifest.tower_id("vision"))
    bound = replace(manifest, name="mine", architecture=alone, towers={}, parent=joined)
    weights.save_space(folder, bound, {"depth": weights.getters(spaces.drawn_tower(manifest, 0, "depth"))})


def drawn(space: Space, modality: str, items: int, clips: int, seed: int = 1) -> np.ndarray:
    g = np.random.default_rng(seed)
    shape = space.card.clip_shapes[modality]
    if modality == "text":
        x = g.integers(1, 49000, (items, 1, *shape))
        x[:, 0, 12] = 49407
        return x
    return g.standard_normal((items, 1 if modality == "image" else clips, *shape)).astype(np.float32)


# the contract


def test_ids_are_known_before_anything_is_loaded(space: Space) -> None:
    fresh = load_space(space.location)
    assert fresh.space_id == space.space_id
    assert fresh.space_id.startswith(f"{fresh.name}@")
    for modality in fresh.modalities:
        tower, _, bound = fresh.tower_id(modality).partition("@")
        assert bound == fresh.space_id
        assert tower.partition(":")[0] == fresh.card.towers[modality]
        assert fresh.preset_id(modality).startswith("default:")
    assert fresh.loaded == ()
    assert set(fresh.modalities) <= set(MODALITY_NAMES)
    assert list(fresh.modalities) == sorted(fresh.modalities, key=MODALITY_NAMES.index)


def test_a_batch_is_its_singles_in_any_order(space: Space) -> None:
    for modality in space.modalities:
        x = drawn(space, modality, 4, 3)
        before = x.copy()
        rows = space.encode(modality, x)
        assert rows.shape == (4, space.dim)
        assert rows.dtype == np.float32
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-6)
        apart = np.concatenate([space.encode(modality, item[None]) for item in x])
        assert np.abs(rows - apart).max() <= 2e-6, modality
        shuffled = space.encode(modality, x[[2, 0, 3, 1]])
        assert np.abs(shuffled - rows[[2, 0, 3, 1]]).max() <= 2e-6, modality
        assert np.array_equal(x, before), "the input is left alone"
        assert np.abs(rows @ rows.T - np.eye(4)).max() > 1e-3
        assert not np.allclose(rows[0], rows[1], atol=1e-3), f"{modality}: two items, one vector"


def test_clips_are_unit_then_averaged_then_unit(space: Space) -> None:
    for modality in set(space.modalities) - {"image", "text"}:
        x = drawn(space, modality, 3, 4)
        clips = np.stack([space.encode(modality, x[:, s : s + 1]) for s in range(4)], axis=1).astype(float)
        raw = space.encode_raw(modality, x)
        assert np.abs(raw - clips.mean(1)).max() <= 2e-6
        norms = np.linalg.norm(raw, axis=1)
        assert norms.max() < 1.0
        assert np.abs(space.encode(modality, x) - raw / norms[:, None]).max() <= 1e-6
    for modality in {"image", "text"} & set(space.modalities):
        norms = np.linalg.norm(space.encode_raw(modality, drawn(space, modality, 3, 1)), axis=1)
        assert norms == pytest.approx(1.0, abs=1e-6)


def test_no_items_give_no_rows(space: Space) -> None:
    for modality in space.modalities:
        assert space.encode(modality, drawn(space, modality, 1, 2)[:0]).shape == (0, space.dim)
        assert space.embed(modality, []).shape == (0, space.dim)


def test_other_ranks_and_sizes_are_refused_by_name(space: Space) -> None:
    for modality in space.modalities:
        x = drawn(space, modality, 2, 1)
        wanted = ", ".join(map(str, space.card.clip_shapes[modality]))
        with pytest.raises(ShapeError, match=rf"{modality}: expected shape \(B, S, {wanted}\), got "):
            space.encode(modality, x[:, 0])
        with pytest.raises(ShapeError, match="expected shape"):
            space.encode(modality, x[:, :0])
        with pytest.raises(ShapeError, match="expected"):
            space.encode(modality, x[..., :-1])
    with pytest.raises(UnknownNameError, match=r"Unknown modality of .*'smell'"):
        space.encode("smell", np.zeros((1, 1)))


def test_embedding_a_source_is_decode_preprocess_encode(space: Space) -> None:
    words = ["a dog barks", "a bird sings over the sea", "a dog barks"]
    rows = space.embed("text", words)
    config, text = space.config("text"), MODALITIES["text"]
    x = np.stack([text.preprocess(text.decode(text.source_of(word), config), config) for word in words])
    assert np.abs(rows - space.encode("text", x)).max() <= 1e-6
    assert np.array_equal(rows[0], rows[2])
    picture = np.random.default_rng(2).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    found = space.embed("image", [picture, picture[:, ::-1].copy()])
    assert found.shape == (2, space.dim)
    assert not np.allclose(found[0], found[1], atol=1e-4)


def test_a_bare_source_is_a_list_of_one(folder_space: Space, tmp_path: Path) -> None:
    words, picture = tmp_path / "dog.txt", tmp_path / "dog.png"
    words.write_text("dog", encoding="utf-8")
    Image.new("RGB", (40, 30), "red").save(picture)
    for modality, bare in (
        ("text", "dog"),
        ("text", words),
        ("text", b"dog"),
        ("image", picture),
        ("image", str(picture)),
        ("image", Image.new("RGB", (40, 30), "red")),
    ):
        found = folder_space.embed(modality, bare)
        assert found.shape == (1, folder_space.dim)
        np.testing.assert_array_equal(found, folder_space.embed(modality, [bare]))


def test_every_modality_encodes_its_example(folder_space: Space) -> None:
    for modality in folder_space.modalities:
        kind, config = MODALITIES[modality], folder_space.config(modality)
        clips = kind.preprocess(kind.example(3), config)
        assert clips.shape[1:] == folder_space.card.clip_shapes[modality], modality
        rows = folder_space.encode(modality, clips[None])
        assert np.linalg.norm(rows) == pytest.approx(1.0, abs=1e-6)


def test_queries_know_where_they_come_from(space: Space) -> None:
    query = space.text("a dog")
    assert query.identity.space_id == space.space_id
    assert query.identity.tower_ids == {"text": space.tower_id("text")}
    assert query.identity.preset_ids == {"text": space.preset_id("text")}
    assert query.identity.tokenizer_id == space.tokenizer_id
    assert query.terms[0].label == "a dog"
    both = query + 0.5 * space.image(np.zeros((30, 30, 3), np.uint8))
    assert [term.modality for term in both.terms] == ["text", "image"]


@settings(max_examples=15, deadline=None)
@given(items=st.integers(1, 5), clips=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_any_batch_and_any_number_of_clips(items: int, clips: int, seed: int) -> None:
    space = load_space("tiny:0")
    x = drawn(space, "imu", items, clips, seed)
    rows = space.encode("imu", x)
    one = np.random.default_rng(seed).integers(items)
    assert np.abs(rows[one] - space.encode("imu", x[one : one + 1])[0]).max() <= 2e-6
    assert np.abs(space.encode("imu", np.repeat(x, 2, axis=1)) - rows).max() <= 2e-6, "clips twice change nothing"


# presets


def test_presets_are_chosen_together_or_one_by_one() -> None:
    space = load_space("tiny:0", preset="reference")
    assert {space.preset_id(m).split(":")[0] for m in space.modalities} == {"reference"}
    mixed = load_space("tiny:0", preset="default,audio=reference")
    assert mixed.preset_id("audio") == space.preset_id("audio")
    assert mixed.preset_id("image") == load_space("tiny:0").preset_id("image")
    only = load_space("tiny:0", preset="audio=reference")
    assert only.preset_id("audio") == space.preset_id("audio")
    assert only.preset_id("image") == mixed.preset_id("image")
    named = load_space("tiny:0", preset={"audio": "reference"})
    assert [named.preset_id(m) for m in named.modalities] == [mixed.preset_id(m) for m in mixed.modalities]


def test_a_preset_of_one_modality_leaves_the_others_at_default() -> None:
    special = sorted(set(MODALITIES["depth"].presets) - {"default", "reference"})[0]
    space = load_space("tiny:0", preset=special)
    assert space.preset_id("depth").startswith(f"{special}:")
    assert space.preset_id("image").startswith("default:")


def test_presets_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'reference'"):
        load_space("tiny:0", preset="referense")
    with pytest.raises(UnknownNameError, match="preset of audio"):
        load_space("tiny:0", preset={"audio": "loud"}).config("audio")
    with pytest.raises(UnknownNameError, match="Unknown modality of tiny:0 'adio'"):
        load_space("tiny:0", preset={"adio": "reference"})
    for wrong in ("default,audio", "default,audio=reference,audio=default", ""):
        with pytest.raises(InputError, match="write NAME, or NAME,modality=NAME"):
            load_space("tiny:0", preset=wrong)


def test_a_preset_asked_for_with_its_hash_must_be_the_same_numbers() -> None:
    space = load_space("tiny:0")
    ids = {modality: space.preset_id(modality) for modality in space.modalities}
    again = load_space("tiny:0", preset={**ids, "points": "default:00000000"})
    assert {m: again.preset_id(m) for m in again.modalities} == ids
    wrong = load_space("tiny:0", preset={"image": "default:00000000"})
    with pytest.raises(MismatchError, match=rf"image preset default:00000000 .* here it is {ids['image']}"):
        wrong.embed("image", [np.zeros((9, 9, 3), np.uint8)])
    assert wrong.preset_id("image") == ids["image"], "ids can still be compared, so that another space is named first"


def test_the_same_space_with_another_preset_shares_its_towers() -> None:
    space = load_space("tiny:0")
    space.embed("text", ["a dog"])
    other = space.with_preset("reference")
    assert other.loaded == ("text",)
    assert other.preset_id("image") != space.preset_id("image")
    assert other.space_id == space.space_id


# names


def test_seeds_make_spaces() -> None:
    assert load_space("tiny").space_id == load_space("tiny:0").space_id
    assert load_space("tiny:1").space_id != load_space("tiny:0").space_id
    x = drawn(load_space("tiny:0"), "depth", 1, 1)
    assert not np.allclose(load_space("tiny:0").encode("depth", x), load_space("tiny:1").encode("depth", x), atol=0.1)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("imagebind-hug", UnknownNameError, "Did you mean 'imagebind-huge'"),
        ("tiny:x", InputError, "tiny:SEED"),
        ("tiny:-1", InputError, "not be negative"),
        ("imagebind-huge:2", InputError, "takes nothing after the name"),
        ("open_clip:ViT-B-32", InputError, "open_clip:ARCH/TAG"),
        ("open_clip:ViT-B-32/random:x", InputError, "whole number"),
        ("open_clip:ViT-B-33/random:0", UnknownNameError, "Did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79", UnknownNameError, "Did you mean 'laion2b_s34b_b79k'"),
        ("open_clip:ViT-B-16-SigLIP/webli", UnsupportedError, "CLIP's own tokenizer"),
    ],
)
def test_names_that_lead_nowhere(name: str, kind: type[Exception], message: str, open_clip_space: Space) -> None:
    with pytest.raises(kind, match=message):
        load_space(name)


def test_folders_that_are_no_space(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no space\.json in this folder"):
        load_space(tmp_path)
    with pytest.raises(UnknownNameError, match=r"A folder with space\.json is a space as well"):
        load_space(tmp_path / "nothing")


def test_huge_without_weights_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINDSEARCH_CACHE_DIR", str(tmp_path))
    with pytest.raises(WeightsError, match=r"4\.8 GB, CC BY-NC-SA 4\.0\): bindsearch models fetch imagebind-huge"):
        load_space("imagebind-huge")
    assert "models fetch" in info("imagebind-huge")["status"]
    assert path("imagebind-huge") == tmp_path / "imagebind-huge"


def test_a_space_in_the_cache_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINDSEARCH_CACHE_DIR", str(tmp_path))
    folder = saved_tiny(tmp_path / "mine", 9)
    assert load_space("mine").space_id == load_space(folder).space_id
    assert path("mine") == folder
    row = next(row for row in list_spaces() if row["name"] == "mine")
    assert (row["status"], row["modalities"], row["folder"]) == ("at hand", list(MODALITY_NAMES), str(folder))


def test_a_damaged_space_in_the_cache_is_a_row_of_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BINDSEARCH_CACHE_DIR", str(tmp_path))
    whole = saved_tiny(tmp_path / "whole", 9)
    for name, text in (("broken", "{"), ("later", '{"format": "bindsearch-space/2"}'), ("imagebind-huge", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / spaces.FILE).write_text(text)
    shutil.copytree(whole, tmp_path / "short")
    (tmp_path / "short" / "text.safetensors").unlink()
    rows = {row["name"]: row for row in list_spaces()}
    assert rows["whole"]["status"] == "at hand"
    for name, why in (
        ("broken", "not valid JSON"),
        ("later", "expected format"),
        ("short", "text.safetensors: missing"),
        ("imagebind-huge", "not valid JSON"),
    ):
        assert rows[name]["status"].startswith(f"damaged: {tmp_path / name}")
        assert why in rows[name]["status"]
        assert rows[name]["modalities"] == []
    assert run(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("whole ")).split()[1:4] == ["at", "hand", "image,"]
    assert max(len(line) for line in lines if "damaged" not in line) < 120, "sentences widen no other row"


def test_a_joined_space_in_the_cache_is_listed_with_all_that_it_encodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BINDSEARCH_CACHE_DIR", str(tmp_path))
    saved_joined(tmp_path / "mine", "tiny:0")
    row = next(row for row in list_spaces() if row["name"] == "mine")
    assert row["modalities"] == list(load_space("mine").modalities) == list(MODALITY_NAMES)


def test_a_joined_space_whose_parent_is_not_at_hand_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BINDSEARCH_CACHE_DIR", str(tmp_path))
    for name, parent in (("mine", "imagebind-huge"), ("other", "tiny:1")):  # not fetched; another space now
        saved_joined(tmp_path / name, parent)
        row = next(row for row in list_spaces() if row["name"] == name)
        assert row["status"] == f"parent missing: {spaces.tiny_manifest(0).space_id}"
        assert row["modalities"] == ["depth"]
        assert run(["models", "verify", name]) == 0
        assert "ok  " in capsys.readouterr().out
    assert "models fetch imagebind-huge" in info("mine")["status"]
    assert doctor.problems(list(doctor._spaces())) == []
    assert run(["models", "list"]) == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) < 120
    file = tmp_path / "mine" / "depth.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert [said.partition(": damaged: ")[0] for said in doctor.problems(list(doctor._spaces()))] == ["space mine"]
    assert run(["models", "verify", "mine"]) == 7


def test_a_folder_is_not_converted_over_the_cached_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BINDSEARCH_CACHE_DIR", str(tmp_path / "cache"))
    mini = spaces.bundled_folder("bindsearch-mini")
    assert run(["models", "convert", str(mini), "--dtype", "bfloat16", "-q"]) == 2
    assert "Name it: -o FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "cache" / "imagebind-huge").exists()
    shutil.copytree(mini, tmp_path / "cache" / "imagebind-huge")  # as it was done before
    with pytest.raises(MismatchError, match=r"expected the space 'imagebind-huge', got bindsearch-mini@"):
        load_space("imagebind-huge")
    assert "got bindsearch-mini@" in info("imagebind-huge")["status"]
    assert run(["models", "verify", "imagebind-huge"]) == 5
    row = next(row for row in list_spaces() if row["name"] == "imagebind-huge")
    assert "got bindsearch-mini@" in row["status"]


def test_a_folder_that_is_named_from_here_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_tiny(tmp_path / "here" / "mine", 9)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    space = load_space("mine")
    name = Identity.of_space(space, ["text"]).space_name
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_space(name).space_id == space.space_id
    assert space.embed("text", ["a dog"]).shape == (1, 32)
    with pytest.raises(UnknownNameError, match=r"A folder with space\.json is a space as well\.$"):
        load_space(str(tmp_path / "there" / "mine"))


def test_where_the_folder_of_a_recorded_space_is_gone_the_option_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, moved = saved_tiny(tmp_path / "mine", 9), tmp_path / "moved"
    (tmp_path / "a.txt").write_text("a dog")
    store, index = str(tmp_path / "emb"), str(tmp_path / "index")
    assert run(["embed", str(tmp_path / "a.txt"), "-o", store, "--space", str(folder), "-q"]) == 0
    assert run(["index", store, "-o", index, "-q"]) == 0
    folder.rename(moved)
    capsys.readouterr()
    asked = (["query", index, "--text", "a cat"], ["classify", store, "--labels", "a dog, a cat"])
    for words in asked:
        assert run(words) == 2
        assert f"{folder} is gone; where it has moved: --space FOLDER" in capsys.readouterr().err
        assert run([*words, "--space", str(moved)]) == 0
        assert run([*words, "--space", "./nope"]) == 2
        assert "where it has moved" not in capsys.readouterr().err
    assert run(["models", "info", "nope"]) == 2
    assert "--space" not in capsys.readouterr().err


def test_a_plugin_is_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(argument: str) -> spaces.Opened:
        return spaces._open_tiny(str(int(argument) + 40))

    monkeypatch.setitem(SPACES._things, "elsewhere", spaces.Family(opened, lambda: "a plugin", ("image",)))
    assert load_space("elsewhere:2").space_id == load_space("tiny:42").space_id
    assert "elsewhere" in [row["name"] for row in list_spaces()]


def test_listings_and_facts() -> None:
    rows = {row["name"]: row for row in list_spaces()}
    assert {"bindsearch-mini", "imagebind-huge", "open_clip", "tiny"} <= set(rows)
    assert rows["tiny"]["modalities"] == list(MODALITY_NAMES)
    facts = info("tiny:0")
    assert facts["space_id"] == load_space("tiny:0").space_id
    assert facts["clip_shapes"]["video"] == [3, 2, 32, 32]
    assert facts["logit_scales"]["audio"] == 20.0
    json.dumps(facts, allow_nan=False)
    for name in ("tiny", OPEN_CLIP):
        with pytest.raises(InputError, match=f"keeps no folder.*: bindsearch models info {re.escape(name)};.* list"):
            path(name)
    with pytest.raises(UnknownNameError):
        info("nothing")


def test_devices_and_dtypes() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown dtype 'float3'.*Did you mean 'float32'"):
        load_space("tiny", dtype="float3")
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        load_space("tiny", device="gpu").embed("text", ["a"])
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="sees no GPU"):
            load_space("tiny", device="cuda:0").embed("text", ["a"])
    assert load_space("tiny", device="cpu").device == "cpu"
    assert load_space("tiny").dtype == "float32"


# open_clip


def test_open_clip_vectors_are_open_clips_own(open_clip_space: Space) -> None:
    import open_clip
    import torch
    from PIL import Image

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = open_clip.create_model("ViT-S-32-alt", pretrained=None).eval()
    prepare = open_clip.image_transform(model.visual.image_size, is_train=False)
    levels = np.random.default_rng(2).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    picture = Image.fromarray(levels).resize((420, 270), Image.Resampling.BICUBIC)
    words = ["a photo of a dog", "Two birds, singing at the sea-side in 2024!"]
    with torch.inference_mode():
        image = model.encode_image(prepare(picture)[None], normalize=True).numpy()
        text = model.encode_text(open_clip.get_tokenizer("ViT-S-32-alt")(words), normalize=True).numpy()
    reference = open_clip_space.with_preset("reference")
    assert np.abs(reference.embed("image", [picture]) - image).max() <= 2e-6
    assert np.abs(reference.embed("text", words) - text).max() <= 2e-6
    assert open_clip_space.logit_scale("text") == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-6)


def test_open_clip_seeds_and_ids(open_clip_space: Space) -> None:
    again, other = load_space(OPEN_CLIP), load_space("open_clip:ViT-S-32-alt/random:4")
    assert again.space_id == open_clip_space.space_id
    assert other.space_id != again.space_id
    rows = [space.embed("text", ["a dog"]) for space in (open_clip_space, again, other)]
    assert np.array_equal(rows[0], rows[1])
    assert not np.allclose(rows[0], rows[2], atol=0.01)


@pytest.mark.parametrize(
    ("modality", "raw", "lacks"),
    [
        ("text", "a dog", ("visual",)),
        ("image", np.zeros((9, 9, 3), np.uint8), ("transformer", "token_embedding", "ln_final", "positional", "text_")),
    ],
)
def test_open_clip_keeps_the_half_that_was_asked(modality: str, raw: object, lacks: tuple[str, ...]) -> None:
    space = load_space(OPEN_CLIP)
    space.embed(modality, [raw])
    (name,) = space.loaded
    names = [each.removeprefix("model.") for each in space._towers[name].state_dict()]
    assert "logit_scale" in names
    assert len(names) > 20
    assert [each for each in names if each.startswith(lacks)] == []


def test_open_clip_weights_get_the_activation_they_were_trained_with(open_clip_space: Space) -> None:
    import open_clip

    from bindsearch.models.open_clip_space import Choice, _forces_quick_gelu

    said: dict[tuple[str, str], str] = {}
    for arch, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(arch)
        wants = bool(open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu"))
        try:
            forced = _forces_quick_gelu(open_clip, Choice(arch, tag, None), config)
        except UnsupportedError as error:
            assert (config["quick_gelu"], wants) == (True, False)
            said[arch, tag] = str(error)
        else:
            assert (forced or bool(config.get("quick_gelu"))) == wants, (arch, tag)
            said[arch, tag] = "forced" if forced else "as built"
    assert said["ViT-B-32", "openai"] == said["ViT-L-14", "dfn2b"] == "forced"
    assert said["ViT-B-32-quickgelu", "openai"] == said["ViT-B-32", "laion2b_s34b_b79k"] == "as built"
    assert "plain GELU" in said["roberta-ViT-B-32", "laion2b_s12b_b32k"]
    opposite = Choice("ViT-B-32-quickgelu", "laion2b_s34b_b79k", None)
    with pytest.raises(UnsupportedError, match="--space open_clip:ViT-B-32/laion2b_s34b_b79k"):
        _forces_quick_gelu(open_clip, opposite, open_clip.get_model_config(opposite.arch))


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion2b_s34b_b79k", False)])
def test_open_clip_builds_with_quick_gelu_where_the_weights_want_it(
    tag: str, quick: bool, open_clip_space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    create = open_clip.create_model

    def small(arch: str, force_quick_gelu: bool, **_: object) -> object:
        assert arch == "ViT-B-32"
        return create("ViT-S-32-alt", pretrained=None, force_quick_gelu=force_quick_gelu)

    monkeypatch.setattr(open_clip, "create_model", small)
    monkeypatch.setenv("BINDSEARCH_OFFLINE", "0")
    space = load_space(f"open_clip:ViT-B-32/{tag}")
    for tower in ("text", "vision"):
        kinds = {type(each).__name__ for each in space._towers[tower].modules()}
        assert ("QuickGELU" in kinds, "GELU" in kinds) == (quick, not quick)


def test_open_clip_offline_says_what_is_missing(
    open_clip_space: Space, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BINDSEARCH_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    space = load_space("open_clip:ViT-B-32/laion2b_s34b_b79k")
    assert space.space_id.startswith("open_clip:ViT-B-32/laion2b_s34b_b79k@")
    with pytest.raises(WeightsError, match=r"offline.*come from https://huggingface\.co/laion/CLIP-ViT-B-32-laion2B"):
        space.embed("text", ["a dog"])


def hub_cached(cache: Path, repository: str, name: str, data: bytes) -> None:
    """Lay a file where the hub's client keeps what it fetched."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    for part in ("refs", "snapshots/1"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text("1")
    (folder / "snapshots" / "1" / name).write_bytes(data)


def test_open_clip_without_a_network_says_one_thing(
    open_clip_space: Space, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    import open_clip

    def create(*_: object, **__: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("retrying in 1 s")
        code = compile("import logging; logging.error('no weights')", open_clip.__file__, "exec")
        exec(code, {})  # as open_clip's own lines, to the root logger
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "create_model", create)
    monkeypatch.setenv("BINDSEARCH_OFFLINE", "0")
    with pytest.raises(WeightsError, match=r"no route to host.*BINDSEARCH_OFFLINE=1"):
        load_space("open_clip:ViT-B-32/openai").embed("text", ["a dog"])
    assert caplog.messages == []
    logging.getLogger("huggingface_hub.utils._http").warning("heard again")
    assert caplog.messages == ["heard again"]


def test_released_weights_of_timm_obey_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save

    from bindsearch.models.foreign_stems import build_backbone

    monkeypatch.setenv("BINDSEARCH_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"test_resnet: offline.*huggingface\.co/timm/test_resnet.*--pretrained"):
        build_backbone("test_resnet", (3, 1, 32, 32), pretrained=True)
    released = timm.create_model("test_resnet", pretrained=False).state_dict()
    hub_cached(tmp_path, "timm/test_resnet.r160_in1k", "model.safetensors", save(released))
    found = build_backbone("test_resnet", (3, 1, 32, 32), pretrained=True).state_dict()
    assert found and all(torch.equal(values, released[name]) for name, values in found.items())


def test_info_about_open_clip_loads_no_weights(
    open_clip_space: Space, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BINDSEARCH_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    words = ["models", "info", "open_clip:ViT-B-32/laion2b_s34b_b79k"]
    assert run([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["dim"] == 512 and facts["modalities"] == ["image", "text"] and "logit_scales" not in facts
    assert facts["status"] == "fetched at first use"
    hub_cached(tmp_path, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_model.safetensors", b"")
    assert info(words[-1])["status"] == "at hand" and info(OPEN_CLIP)["status"] == "from a seed"
    assert run(words) == 0
    assert "known when a tower is loaded" in capsys.readouterr().out


# what is not imported

HEAVY = ("torchvision", "timm", "open_clip", "torchaudio", "transformers", "faiss", "pyarrow")


@pytest.mark.parametrize(
    ("code", "never"),
    [
        ("from bindsearch.models.spaces import load_space; load_space('tiny:0').preset_id('text')", ("torch", *HEAVY)),
        ("from bindsearch.models.spaces import info; info('tiny:0')", ("torch", *HEAVY)),
        ("from bindsearch.models.spaces import load_space; load_space('tiny:0').embed('text', ['a dog'])", HEAVY),
    ],
    ids=["opening", "info", "text"],
)
def test_heavy_packages_stay_out(code: str, never: tuple[str, ...]) -> None:
    check = f"import sys; print([name for name in {never!r} if name in sys.modules])"
    run = [sys.executable, "-c", f"{code}; {check}"]
    assert subprocess.run(run, check=True, capture_output=True, text=True, cwd=ROOT).stdout == "[]\n"


def test_encode_refuses_what_has_no_direction() -> None:
    space = load_space("tiny")
    x = np.zeros((2, 1, *space.card.clip_shapes["image"]), dtype=np.float32)
    x[1, 0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="item 1 of 2"):
        space.encode("image", x)
    assert np.isnan(space.encode_raw("image", x)[1]).all()  # the batch embedder gives each item its own reason


def test_a_video_clip_of_one_frame_is_refused() -> None:
    space = load_space("tiny")
    channels, frames, height, width = space.card.clip_shapes["video"]
    with pytest.raises(ShapeError, match=f"expected {frames} frames"):
        space.encode("video", np.zeros((1, 1, channels, 1, height, width), dtype=np.float32))
