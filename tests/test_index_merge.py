"""Folding, compacting, merging, splitting and reindexing: what they keep, what they refuse, what they advise."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from fake_store import MODALITIES, SPACE, FakeStore, make_manifest
from test_index_living import contents, part_of

from bindsearch.errors import InputError, MismatchError, MissingInputError
from bindsearch.index.build import build_index, reindex
from bindsearch.index.change import Added
from bindsearch.index.folder import IndexFolder
from bindsearch.index.manifest import read_manifest, write_manifest
from bindsearch.index.merge import merge_indexes
from bindsearch.index.recipe import Recipe
from bindsearch.index.split import parts_by_count, parts_by_masks, parts_by_modality, split_index
from bindsearch.index.upkeep import FOLD_FLOOR_ROWS, FOLD_WIDTH
from bindsearch.store import UNKNOWN

HALF = Recipe("flat", row_dtype="float16")


def with_column(store, name, values):
    store.table = store.table.append_column(name, values)
    return store


# ---- additions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flat", HALF])
def test_small_additions_are_folded_so_that_their_number_stays_logarithmic(tmp_path, how):
    folder = build_index(FakeStore(n=20), tmp_path / "index", how)
    most = 0
    for number in range(40):
        folder.add(FakeStore(n=3, seed=100 + number, prefix=f"n{number}"))
        most = max(most, len(folder.manifest.segments))
    assert most == FOLD_WIDTH - 1 + (how == HALF)  # what the recipe built is no addition
    assert folder.count == 20 + 120
    assert folder.verify()["status"] == "ok"
    for number in range(40):
        store = FakeStore(n=3, seed=100 + number, prefix=f"n{number}")
        np.testing.assert_array_equal(folder.snapshot.search(store.vectors, 1)[1][:, 0], store.ids)


def test_a_fold_takes_segments_of_one_size_and_leaves_larger_ones(tmp_path):
    folder = build_index(FakeStore(n=FOLD_FLOOR_ROWS + 1, dim=4), tmp_path / "index")
    first = folder.manifest.segments[0].name
    for number in range(FOLD_WIDTH):
        folder.add(FakeStore(n=2, dim=4, seed=number, prefix=f"n{number}"))
    assert [entry.rows for entry in folder.manifest.segments] == [FOLD_FLOOR_ROWS + 1, 2 * FOLD_WIDTH]
    assert folder.manifest.segments[0].name == first


def test_additions_are_exact_segments_and_compacting_builds_by_the_recipe(tmp_path):
    folder = build_index(FakeStore(n=30), tmp_path / "index", HALF)
    folder.add(FakeStore(n=5, prefix="more"))
    assert [entry.backend for entry in folder.manifest.segments] == ["flat", "faiss-flat"]
    assert {part.index.row_dtype for part in folder.snapshot.segments} == {"float16"}
    before, answers = contents(folder), folder.snapshot.search(FakeStore(seed=5).vectors, 7)
    folder.compact()
    assert [entry.backend for entry in folder.manifest.segments] == ["flat"]
    assert contents(folder) == before, "not one bit of a row changes"
    for left, right in zip(answers, folder.snapshot.search(FakeStore(seed=5).vectors, 7), strict=True):
        np.testing.assert_array_equal(left, right)
    assert folder.add(FakeStore(n=30)) == Added(unchanged=30), "rows are compared as they are stored"


def test_segments_of_other_columns_compact_into_one(tmp_path):
    folder = build_index(FakeStore(n=6), tmp_path / "index")
    folder.add(with_column(FakeStore(n=3, prefix="more"), "stars", pa.array([1, None, 3])))
    before = contents(folder)
    folder.compact()
    assert contents(folder) == before
    stars = folder.snapshot.table(FakeStore(n=3, prefix="more").ids, ["stars"])["stars"].to_pylist()
    assert stars == [1, None, 3]
    assert folder.verify()["status"] == "ok"


def test_a_column_that_comes_or_goes_is_a_change(tmp_path):
    folder = build_index(FakeStore(n=4), tmp_path / "index")
    nothing = with_column(FakeStore(n=4), "stars", pa.array([None] * 4, pa.int64()))
    assert folder.add(nothing) == Added(unchanged=4)
    assert folder.add(with_column(FakeStore(n=4), "stars", pa.array([1, None, None, 3]))) == Added(
        replaced=2, unchanged=2
    )
    assert folder.add(FakeStore(n=4)) == Added(replaced=2, unchanged=2)


def test_nested_columns_are_compared_by_value(tmp_path):
    def tagged(*tags):
        return with_column(FakeStore(n=2), "tags", pa.array(tags, pa.list_(pa.string())))

    folder = build_index(tagged(["a"], None), tmp_path / "index")
    assert folder.add(tagged(["a"], None)) == Added(unchanged=2)
    assert folder.add(tagged(["a", "b"], None)) == Added(replaced=1, unchanged=1)


def test_columns_whose_types_do_not_go_together_are_refused(tmp_path):
    folder = build_index(with_column(FakeStore(n=2), "stars", pa.array([1, 2])), tmp_path / "index")
    folder.add(with_column(FakeStore(n=2, prefix="more"), "stars", pa.array([["x"], ["y"]])))
    with pytest.raises(MismatchError, match="a column has types that do not go together"):
        folder.compact()
    assert IndexFolder.open(folder.path).count == 4


def test_advice_says_why_and_goes_when_followed(tmp_path):
    folder = build_index(FakeStore(n=40), tmp_path / "index")
    assert folder.info()["advice"] == []
    folder.remove(FakeStore(n=40).ids[:11])
    assert folder.info()["advice"] == ["compact: 11 of 40 stored rows are removed"]
    folder.compact()
    assert folder.info()["advice"] == []


# ---- merging ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    """Three indexes: some items in two of them, as they are; tombstones and several segments."""
    first = build_index(FakeStore(n=20), tmp_path / "a")
    first.remove(FakeStore(n=20).ids[:3])
    second = build_index(part_of(FakeStore(n=25), 15, 25), tmp_path / "b", "flat")
    second.add(FakeStore(n=4, prefix="more", seed=3))
    third = build_index(FakeStore(n=5, prefix="third", seed=4, modalities=("imu",)), tmp_path / "c")
    return [first, second, third]


def test_a_merge_holds_what_its_indexes_hold(three, tmp_path):
    merged = merge_indexes([each.path for each in three], tmp_path / "out")
    expected = {one: item for each in three for one, item in contents(each).items()}
    assert contents(merged.folder) == expected
    assert merged.shared == 5
    assert merged.folder.verify()["count"] == 17 + 5 + 4 + 5
    info = merged.folder.info()
    assert set(info["tower_ids"]) == {*MODALITIES, "imu"}
    assert (info["backend"], info["segments"], info["generation"], info["removed"]) == ("faiss-flat", 1, 1, 0)
    queries = FakeStore(seed=9).vectors
    merged_answers = merged.folder.snapshot.search(queries, 6)
    again = build_index(FakeStore(n=25), tmp_path / "one")
    again.remove(FakeStore(n=25).ids[:3])
    again.add(FakeStore(n=4, prefix="more", seed=3))
    again.add(FakeStore(n=5, prefix="third", seed=4, modalities=("imu",)))
    for left, right in zip(merged_answers, again.snapshot.search(queries, 6), strict=True):
        np.testing.assert_array_equal(left, right)


def test_an_item_on_which_two_differ_is_refused_unless_one_wins(tmp_path):
    first = build_index(FakeStore(n=8), tmp_path / "a")
    other = part_of(FakeStore(n=12), 5, 12)
    other.vectors[1] += 1
    second = build_index(other, tmp_path / "b")
    paths = [first.path, second.path]
    with pytest.raises(InputError, match=r"b: its item 'item/0006' is not what .*a has .*--prefer first"):
        merge_indexes(paths, tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()
    whole = contents(merge_indexes(paths, tmp_path / "first", prefer="first").folder)
    assert whole == contents(second) | contents(first)
    whole = contents(merge_indexes(paths, tmp_path / "last", prefer="last").folder)
    assert whole == contents(first) | contents(second)


@pytest.mark.parametrize("given", ["float32", "float16"])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float32", "float16"), ("float16", "float32")])
def test_what_was_built_of_the_same_embeddings_is_the_same_to_the_last_bit(tmp_path, dtypes, given):
    store = FakeStore(n=700, dim=256)
    store.vectors = store.units.astype(given).astype(np.float32)
    one, other = (
        build_index(store, tmp_path / name, Recipe("flat", row_dtype=each))
        for name, each in zip("ab", dtypes, strict=True)
    )
    other.remove(store.ids[:3])
    merged = merge_indexes([one.path, other.path], tmp_path / "out")
    assert (merged.shared, merged.folder.count) == (697, 700)
    assert contents(merged.folder) == contents(one), "not one bit of a row changes"
    assert merge_indexes([one.path, one.path], tmp_path / "itself").shared == 700
    backwards = merge_indexes([other.path, one.path], tmp_path / "backwards").folder
    assert merge_indexes([backwards.path, one.path, other.path], tmp_path / "again").shared == 700 + 697
    assert backwards.verify()["status"] == "ok"


def test_another_item_row_under_one_key_is_a_difference_too(tmp_path):
    first = build_index(FakeStore(n=3), tmp_path / "a")
    second = build_index(with_column(FakeStore(n=3), "stars", pa.array([None, 5, None])), tmp_path / "b")
    with pytest.raises(InputError, match="item/0001"):
        merge_indexes([first.path, second.path], tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space_id": "toy@ffff"}, r"space toy@0123456789ab, .* comes from toy@ffff"),
        ({"dim": 8}, "dim 16, .*b has dim 8"),
        ({"preset_ids": {"image": "reference:9"}}, "image preset default:image, .* reference:9"),
    ],
)
def test_indexes_of_two_spaces_are_not_merged(tmp_path, changes, message):
    other = FakeStore(prefix="other", dim=changes.get("dim", 16))
    other.manifest = make_manifest(**{"dim": 16, **changes})
    paths = [build_index(FakeStore(), tmp_path / "a").path, build_index(other, tmp_path / "b").path]
    with pytest.raises(MismatchError, match=message):
        merge_indexes(paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_spaces_and_other_means_are_not_merged(tmp_path):
    stores = [FakeStore(prefix=name, space_id=UNKNOWN, tower_ids={}) for name in "ab"]
    paths = [build_index(store, tmp_path / str(number)).path for number, store in enumerate(stores)]
    for path, name in zip(paths, "ab", strict=True):
        write_manifest(path, replace(read_manifest(path), source=name))
    with pytest.raises(MismatchError, match="these may be two"):
        merge_indexes(paths, tmp_path / "out")
    plain = build_index(FakeStore(), tmp_path / "plain").path
    centred = build_index(FakeStore(prefix="c"), tmp_path / "centred", centre=True).path
    with pytest.raises(MismatchError, match=r"its rows are not centred, those of .*centred are centred:"):
        merge_indexes([plain, centred], tmp_path / "out")


def test_centred_indexes_of_the_same_means_merge_and_split(tmp_path):
    whole = build_index(FakeStore(n=60), tmp_path / "whole", HALF, centre=True)
    parts = split_index(whole.snapshot, tmp_path / "parts", parts_by_modality(whole.snapshot))
    assert {part.manifest.centring.id for part in parts.values()} == {whole.manifest.centring.id}
    merged = merge_indexes([part.path for part in parts.values()], tmp_path / "merged").folder
    assert contents(merged) == contents(whole)
    assert merged.snapshot.centring.id == whole.snapshot.centring.id
    assert merged.verify()["status"] == "ok"


def test_merge_says_what_cannot_be_meant(three, tmp_path):
    paths = [each.path for each in three]
    with pytest.raises(InputError, match="1 index"):
        merge_indexes(paths[:1], tmp_path / "out")
    with pytest.raises(InputError, match=r"holds an index already[.] Merge into a new folder"):
        merge_indexes(paths, paths[0])
    with pytest.raises(InputError, match="expected first or last, got 'best'"):
        merge_indexes(paths, tmp_path / "out", prefer="best")
    with pytest.raises(MissingInputError, match="does not exist"):
        merge_indexes([paths[0], tmp_path / "none"], tmp_path / "out")
    for each in three[:2]:
        each.remove(each.snapshot.ids())
    with pytest.raises(MissingInputError, match="Nothing to merge"):
        merge_indexes(paths[:2], tmp_path / "out")


# ---- splitting -------------------------------------------------------------------------------------------------------


def held(parts):
    found = [contents(part) for part in parts.values()]
    joined = {one: item for part in found for one, item in part.items()}
    assert len(joined) == sum(map(len, found)), "an item is in two parts"
    return joined


@pytest.mark.parametrize("how", ["faiss-flat", HALF])
def test_parts_hold_exactly_the_whole(tmp_path, how):
    folder = build_index(FakeStore(n=200), tmp_path / "index", how)
    folder.add(with_column(FakeStore(n=50, prefix="more", seed=2), "stars", pa.array(range(50))))
    folder.remove(FakeStore(n=200).ids[::7])
    snapshot, whole = folder.snapshot, contents(folder)
    by_modality = split_index(snapshot, tmp_path / "modality", parts_by_modality(snapshot))
    assert {name: part.info()["modalities"] for name, part in by_modality.items()} == {
        name: {name: count} for name, count in folder.manifest.modalities.items()
    }
    assert all(set(part.manifest.tower_ids) == {name} for name, part in by_modality.items())
    by_count = split_index(snapshot, tmp_path / "count", parts_by_count(snapshot, 4))
    assert list(by_count) == [f"part-0000{number}-of-00004" for number in (1, 2, 3, 4)]
    assert min(part.count for part in by_count.values()) > 30
    masks = [np.arange(part.entry.rows) % 3 == 0 for part in snapshot.segments]
    by_mask = split_index(snapshot, tmp_path / "mask", parts_by_masks(snapshot, masks))
    passing = [part.index.ids[mask & part.index.alive] for part, mask in zip(snapshot.segments, masks, strict=True)]
    assert set(by_mask["passes"].snapshot.ids().tolist()) == set(np.concatenate(passing).tolist())
    for parts in (by_modality, by_count, by_mask):
        assert held(parts) == whole
        assert all(part.verify()["status"] == "ok" for part in parts.values())
        assert all(part.manifest.recipe == folder.manifest.recipe for part in parts.values())


def test_an_item_goes_to_the_same_part_whatever_else_there_is(tmp_path):
    small, large = (build_index(FakeStore(n=n), tmp_path / str(n)).snapshot for n in (60, 120))
    few = split_index(small, tmp_path / "few", parts_by_count(small, 3))
    many = split_index(large, tmp_path / "many", parts_by_count(large, 3))
    for name, part in few.items():
        assert set(contents(part)) < set(contents(many[name]))


def test_split_refuses_what_cannot_be_meant_and_leaves_nothing(tmp_path, monkeypatch):
    snapshot = build_index(FakeStore(n=6), tmp_path / "index").snapshot
    none = [np.zeros(part.entry.rows, dtype=bool) for part in snapshot.segments]
    with pytest.raises(InputError, match="'passes' would hold none of its 6 items"):
        split_index(snapshot, tmp_path / "out", parts_by_masks(snapshot, none))
    with pytest.raises(InputError, match="at least 2 parts, got 1"):
        parts_by_count(snapshot, 1)
    with pytest.raises(InputError, match="is there already"):
        split_index(snapshot, tmp_path / "index", parts_by_modality(snapshot))
    monkeypatch.setattr("bindsearch.index.split.commit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        split_index(snapshot, tmp_path / "out", parts_by_modality(snapshot))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["index"]
    (tmp_path / ".out.draft-1").mkdir()  # of a killed one
    split_index(snapshot, tmp_path / "out", parts_by_modality(snapshot))
    assert sorted(os.listdir(tmp_path)) == ["index", "out"]


def test_parts_go_where_a_link_leads_and_not_in_place_of_the_working_folder(tmp_path, monkeypatch):
    snapshot = build_index(FakeStore(n=6), tmp_path / "index").snapshot
    parts = parts_by_modality(snapshot)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for named in (".", tmp_path / "empty"):
        with pytest.raises(InputError, match=r"is the working folder, .* -o .*parts"):
            split_index(snapshot, named, parts)
    assert sorted(os.listdir(tmp_path)) == ["empty", "index"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("empty")
    found = split_index(snapshot, "link", parts)
    assert sorted(os.listdir(tmp_path)) == ["empty", "index", "link"]
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path / "empty")) == sorted(found) == sorted(MODALITIES)
    for count in (7, 60_000_000):
        with pytest.raises(InputError, match=f"6 items cannot fill {count} parts. Give at most --parts 6"):
            parts_by_count(snapshot, count)
    assert len(parts_by_count(snapshot, 6).names) == 6


# ---- another space ---------------------------------------------------------------------------------------------------

NEW_SPACE = "toy@ffffffffffff"


@pytest.mark.parametrize("how", ["flat", HALF])
@pytest.mark.parametrize("centre", [False, True])
def test_an_index_is_built_again_in_a_new_space_by_its_recipe(tmp_path, how, centre):
    folder = build_index(FakeStore(n=60), tmp_path / "index", how, centre=centre)
    folder.add(FakeStore(n=5, prefix="more"))
    reader = IndexFolder.open(folder.path)
    both = FakeStore(n=60, dim=24, seed=7, space_id=NEW_SPACE)
    more = FakeStore(n=5, dim=24, seed=8, prefix="more")
    both.vectors, both.ids = np.concatenate([both.vectors, more.vectors]), np.concatenate([both.ids, more.ids])
    both.table = pa.concat_tables([both.table, more.table])
    new = reindex(folder.path, both)
    assert (new.manifest.space_id, new.manifest.dim, new.count) == (NEW_SPACE, 24, 65)
    assert (new.manifest.recipe, new.manifest.backend) == (folder.manifest.recipe, "flat")
    assert (new.manifest.centring is not None) == centre
    assert new.verify()["status"] == "ok"
    assert (reader.manifest.space_id, reader.count) == (SPACE, 65)
    assert reader.snapshot.search(FakeStore(n=5, prefix="more").vectors, 1)[1].shape == (5, 1)


def test_reindexing_refuses_to_lose_items_or_means(tmp_path):
    folder = build_index(FakeStore(n=60), tmp_path / "index", centre=True)
    before, generation = contents(folder), folder.manifest.generation
    fewer = part_of(FakeStore(n=60, dim=24, space_id=NEW_SPACE), 0, 58)
    with pytest.raises(InputError, match=r"2 of its 60 items are not in the new embeddings, such as 'item/0058'"):
        reindex(folder.path, fewer)
    pictures = FakeStore(n=60, dim=24, space_id=NEW_SPACE, modalities=("image", "audio"))
    with pytest.raises(MismatchError, match=r"has a mean of text, the new embeddings hold none.*--centre-with"):
        reindex(folder.path, pictures)
    again = IndexFolder.open(folder.path)
    assert (contents(again), again.manifest.generation) == (before, generation)
    assert len(list((folder.path / "segments").iterdir())) == 1
    texts = FakeStore(n=20, dim=24, prefix="asked", space_id=NEW_SPACE, modalities=("text",))
    assert reindex(folder.path, pictures, centre_with=[texts]).count == 60
    assert reindex(folder.path, fewer, drop_missing=True).count == 58
    with pytest.raises(MissingInputError, match="does not exist"):
        reindex(tmp_path / "none", fewer)


def test_verify_names_files_that_are_nobodys(tmp_path):
    folder = build_index(FakeStore(), tmp_path / "index")
    (segment,) = (folder.path / "segments").iterdir()
    (segment / "notes.txt").write_text("x")
    with pytest.raises(MismatchError, match=r"notes.txt: the manifest names no such file"):
        folder.verify()
    (segment / "notes.txt").unlink()
    shutil.rmtree(segment)
    with pytest.raises(MismatchError, match=r"missing, index.json names it"):
        folder.verify()


def test_verify_finds_an_item_that_lives_twice(tmp_path):
    folder = build_index(FakeStore(n=10), tmp_path / "index")
    folder.add(FakeStore(n=3, seed=5))
    manifest = read_manifest(folder.path)
    alive = replace(manifest.segments[0], removed=0, tombstones=None, tombstones_file=None)
    counts = {"audio": 4, "image": 5, "text": 4}
    write_manifest(folder.path, replace(manifest, segments=(alive, manifest.segments[1]), count=13, modalities=counts))
    with pytest.raises(MismatchError, match="lives in two segments"):
        IndexFolder.open(folder.path).verify()
