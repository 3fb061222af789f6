"""Building caches, and FAISS files of others: what goes in, what is left out, what the original code reads."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_store import SPACE, FakeStore
from PIL import Image
from safetensors.numpy import load_file

from bindsearch.cache import VisualCache
from bindsearch.cache.bridge import bridge_to
from bindsearch.cache.build import Inputs, build_cache
from bindsearch.cache.foreign import check_type, export_faiss, import_faiss
from bindsearch.cache.recipe import RECORD, CacheRecipe, CacheRecord, Enhancement, Tuning, read_recipe
from bindsearch.cli import run
from bindsearch.errors import (
    DecodeError,
    InputError,
    MismatchError,
    MissingInputError,
    TooManyBadError,
    UnknownNameError,
    UnsupportedError,
)
from bindsearch.exchange import export_store
from bindsearch.index.build import build_index
from bindsearch.index.recipe import Recipe
from bindsearch.search import open_index
from bindsearch.store import open_store

GOLDEN = Path(__file__).parent / "golden" / "imagebind_llm"
ROOT = Path(__file__).parent.parent


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def features(n=200, dim=24, copies=20, seed=0):
    rows = unit(np.random.default_rng(seed).standard_normal((n, dim)))
    rows[n - copies :] = unit(rows[:copies] + 1e-3 / np.sqrt(dim))
    return rows


def write_faiss(path, rows, kind="Flat", metric="METRIC_INNER_PRODUCT"):
    import faiss

    index = faiss.index_factory(rows.shape[1], kind, getattr(faiss, metric))
    index.train(rows)
    index.add(rows) if "IDMap" not in kind else index.add_with_ids(rows, np.arange(rows.shape[0]) * 3 + 5)
    faiss.write_index(index, str(path))
    return path


# ---- building --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_file_of_features_keeps_its_precision(tmp_path, dtype):
    rows = features()
    np.save(tmp_path / "images.npy", (rows * 7).astype(dtype))
    record = build_cache(tmp_path / "cache", Inputs((str(tmp_path / "images.npy"),), space_id="toy@0123456789ab"))
    assert (record.seen, record.repeated, record.others, record.kept) == (200, 20, 0, 180)
    assert CacheRecord.load(tmp_path / "cache") == record
    cache = VisualCache.open(tmp_path / "cache")
    assert cache.index.manifest.space_id == "toy@0123456789ab"
    np.testing.assert_allclose(cache.rows.rows(cache.rows.ids()), rows[:180], atol=1.5e-7)
    queries = np.random.default_rng(9).standard_normal((5, 24)).astype(np.float32)
    plain = VisualCache.of_vectors(rows[:180])
    np.testing.assert_allclose(cache.enhance(queries), plain.enhance(queries), atol=1e-6)


@pytest.mark.parametrize("layout", ["npy", "parquet", "hdf5", "clip-retrieval"])
def test_every_layout(tmp_path, layout, real_store):
    target = tmp_path / {"parquet": "f.parquet", "hdf5": "f.h5"}.get(layout, "f")
    export_store(real_store, target, layout, modality="image" if layout == "clip-retrieval" else None)
    record = build_cache(tmp_path / "cache", Inputs((str(target),)), CacheRecipe(near_duplicate=None))
    direct = build_cache(tmp_path / "direct", Inputs((str(real_store),)), CacheRecipe(near_duplicate=None))
    assert record.kept == direct.kept > 0
    assert record.others == (0 if layout == "clip-retrieval" else direct.others)
    found, expected = VisualCache.open(tmp_path / "cache"), VisualCache.open(tmp_path / "direct")
    assert found.index.manifest.identity.tower_ids == {} or found.index.manifest.space_id == SPACE
    queries = np.random.default_rng(2).standard_normal((4, expected.rows.dim)).astype(np.float32)
    np.testing.assert_allclose(found.enhance(queries, 3), expected.enhance(queries, 3), atol=1e-3)


@pytest.fixture
def real_store(tmp_path):
    """A store on disk with images, sounds and texts, by way of an import."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bindsearch.exchange import import_store

    rows = features(60, 16, 0, seed=4)
    kinds = [("image", "audio", "text")[number % 3] for number in range(60)]
    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 16)
    table = pa.table({"key": [f"a/{n}" for n in range(60)], "modality": kinds, "embedding": values})
    pq.write_table(table, tmp_path / "in.parquet")
    import_store(tmp_path / "in.parquet", tmp_path / "store", space_id=SPACE)
    return tmp_path / "store"


def test_keep_cuts_and_float16_rows(tmp_path):
    rows = features()
    np.save(tmp_path / "images.npy", rows)
    recipe = CacheRecipe(keep=50, index=Recipe("faiss-flat", row_dtype="float16"))
    record = build_cache(tmp_path / "cache", Inputs((str(tmp_path / "images.npy"),)), recipe)
    cache = VisualCache.open(tmp_path / "cache")
    assert record.kept == len(cache) == 50
    np.testing.assert_array_equal(cache.rows.rows(cache.rows.ids()), rows[:50].astype(np.float16).astype(np.float32))


def test_a_world_grows_until_enough_stay(tmp_path):
    from bindsearch.models.spaces import load_space

    recipe = CacheRecipe(source="world:0..{last}", keep=12, space="bindsearch-mini", near_duplicate=0.98)
    record = build_cache(tmp_path / "cache", Inputs(load=load_space, workers=0), recipe)
    assert record.kept == 12
    assert record.seen >= 12
    cache = VisualCache.open(tmp_path / "cache")
    assert set(cache.index.manifest.modalities) == {"image"}


def test_a_cache_holds_what_it_is_built_from_and_nothing_of_before(tmp_path):
    from bindsearch.models.spaces import load_space

    def build(source, force=False, embeddings=None):
        inputs = Inputs((source,), embeddings, load=load_space, workers=0)
        return build_cache(tmp_path / "cache", inputs, CacheRecipe(space="bindsearch-mini"), force)

    build("world:0..4")
    with pytest.raises(InputError, match=r"holds embeddings of world:0\.\.4#image, and world:10\.\.13#image is asked"):
        build_cache(  # as after a first build that failed: the cache itself is not there
            tmp_path / "other",
            Inputs(("world:10..13",), tmp_path / "cache.embeddings", load=load_space, workers=0),
            CacheRecipe(space="bindsearch-mini"),
            force=True,
        )
    record = build("world:10..13", force=True)
    assert (record.kept, record.seen, record.source) == (3, 3, "world:10..13")
    keys = open_store(tmp_path / "cache.embeddings").items(("key",)).column("key").to_pylist()
    assert keys == [f"world:{number}#image" for number in (10, 11, 12)]
    assert build("world:10..13", force=True).kept == 3


def test_how_many_inputs_may_be_bad_is_said(tmp_path):
    from bindsearch.models.spaces import load_space

    picture = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    media = tmp_path / "media"
    media.mkdir()
    Image.fromarray(picture).save(media / "good.png")
    (media / "bad.png").write_bytes(b"no picture")
    inputs = Inputs((str(media),), load=load_space, workers=0)
    with pytest.raises(TooManyBadError, match="--max-bad"):
        build_cache(tmp_path / "cache", inputs, CacheRecipe(space="bindsearch-mini"))
    record = build_cache(tmp_path / "cache", replace(inputs, max_bad=0.5), CacheRecipe(space="bindsearch-mini"))
    assert record.kept == 1


def test_what_cannot_be_built_from_is_refused(tmp_path, capsys):
    rows = features()
    rows[17, 3] = np.nan
    np.save(tmp_path / "nan.npy", rows)
    with pytest.raises(InputError, match=r"nan\.npy: row 17 has the norm nan"):
        build_cache(tmp_path / "cache", Inputs((str(tmp_path / "nan.npy"),)))
    assert not (tmp_path / "cache").exists()
    with pytest.raises(MissingInputError, match="nothing to build it from"):
        build_cache(tmp_path / "cache", Inputs())
    build_index(FakeStore(30, 16), tmp_path / "index")
    with pytest.raises(InputError, match="is an index, which serves as a cache as it is"):
        build_cache(tmp_path / "cache", Inputs((str(tmp_path / "index"),)))
    with pytest.raises(InputError, match="bindsearch cache import"):
        path = write_faiss(tmp_path / "knn.index", features())
        build_cache(tmp_path / "cache", Inputs((str(path),)))
    np.save(tmp_path / "fine.npy", features())
    build_cache(tmp_path / "cache", Inputs((str(tmp_path / "fine.npy"),)))
    assert run(["cache", "enhance", str(tmp_path / "cache"), "--text", "a dog"]) == 5
    assert re.search(r"only vectors can be given.*cache build FILE -o \S+cache --space-id", capsys.readouterr().err)
    with pytest.raises(
        InputError, match=r"holds an index already\. Replace it with --force, or choose a new folder\.$"
    ):
        build_cache(tmp_path / "cache", Inputs((str(tmp_path / "fine.npy"),)))
    (tmp_path / "cache" / RECORD).write_text('{"format": "other"}', encoding="utf-8")
    with pytest.raises(MismatchError, match=r"index\.cache\.json: cannot be read"):
        CacheRecord.load(tmp_path / "cache")


def test_the_recipe_is_data(tmp_path):
    recipe = read_recipe(ROOT / "indexes" / "visual-cache.json")
    assert recipe.keep == 3_000_000
    assert recipe.index == Recipe("ivf-pq", "float16")
    assert recipe.enhancement == CacheRecipe().enhancement
    assert recipe.near_duplicate == CacheRecipe().near_duplicate
    (tmp_path / "r.json").write_text('{"cache": {"kept": 3}}', encoding="utf-8")
    with pytest.raises(InputError, match="unknown field 'kept'"):
        read_recipe(tmp_path / "r.json")
    (tmp_path / "r.json").write_text('{"cache": {"source": "world:0..{last}"}}', encoding="utf-8")
    with pytest.raises(InputError, match="say how many"):
        read_recipe(tmp_path / "r.json")
    (tmp_path / "r.json").write_text('{"cache": {}, "recipe": {"backend": "ivf-pq", "build": {"nlists": 4}}}', "utf-8")
    with pytest.raises(InputError, match="nlists"):
        read_recipe(tmp_path / "r.json")
    with pytest.raises(InputError, match="nlists"):  # and one that is in no file, before anything is embedded
        build_cache(tmp_path / "cache", Inputs(("nowhere",)), CacheRecipe(index=Recipe("ivf-pq", build={"nlists": 4})))
    (tmp_path / "r.json").write_text('{"cache": {}, "recipe": {"backend": "ivf-qp"}}', "utf-8")
    with pytest.raises(UnknownNameError, match="'ivf-pq'"):
        read_recipe(tmp_path / "r.json")


# ---- FAISS files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["flat", "fp16"])
def test_plain_faiss_reads_what_is_exported_as_the_original_does(tmp_path, rows):
    """Read by plain FAISS, searched and taken back row by row, blended as the reference does for one query."""
    import faiss

    golden = load_file(GOLDEN / "cache_grid.safetensors")
    import_faiss(GOLDEN / "cache_500x64.index", tmp_path / "cache")
    cache = VisualCache.open(tmp_path / "cache")
    assert export_faiss(cache, tmp_path / "knn.index", rows) == 500
    index = faiss.read_index(str(tmp_path / "knn.index"))
    assert index.ntotal == 500
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    stored = cache.rows.rows(cache.rows.ids())
    back = np.stack([index.reconstruct(place) for place in range(500)])
    if rows == "flat":
        assert type(index).__name__ == "IndexFlatIP"
        np.testing.assert_array_equal(back, stored)
        np.testing.assert_allclose(back, golden["index_vectors"], atol=1.5e-7)
    else:
        np.testing.assert_array_equal(back, stored.astype(np.float16).astype(np.float32))
    tolerance = 5e-6 if rows == "flat" else 2e-3
    for number, query in enumerate(golden["no_cache"]):
        sims, places = index.search(query[None], 10)
        a = np.exp(20 * (sims[0] - sims[0].max()))
        r = (a / a.sum()) @ np.stack([index.reconstruct(int(place)) for place in places[0]])
        y = 0.5 * query + 0.5 * r / np.linalg.norm(r)
        expected = golden["enhanced"][2, 2, 2, number]
        np.testing.assert_allclose(y / np.linalg.norm(y), expected, atol=tolerance)
        np.testing.assert_allclose(cache.enhance(query[None])[0], expected, atol=5e-6)
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "knn.index.items.parquet")
    assert table["key"].to_pylist()[7] == "cache_500x64.index#7"


KINDS = ["Flat", "SQ8", "HNSW16_SQfp16", "IVF4,Flat", "IDMap,Flat"]


def test_an_import_by_a_recipe_is_cut_and_tuned_as_a_build_is(tmp_path):
    rows = features(n=300, copies=0)
    write_faiss(tmp_path / "knn.index", rows)
    np.save(tmp_path / "rows.npy", rows)
    recipe = tmp_path / "recipe.json"
    wanted = {"cache": {"keep": 250, "tuning": {"count": 20, "overlap": 0.5}}, "recipe": {"backend": "rabitq"}}
    recipe.write_text(json.dumps(wanted), encoding="utf-8")
    space = ["--space-id", "toy@0123456789ab", "--recipe", str(recipe)]
    assert run(["cache", "import", str(tmp_path / "knn.index"), "-o", str(tmp_path / "a"), *space]) == 0
    assert run(["cache", "build", str(tmp_path / "rows.npy"), "-o", str(tmp_path / "b"), *space]) == 0
    imported, made = CacheRecord.load(tmp_path / "a"), CacheRecord.load(tmp_path / "b")
    assert imported.kept == made.kept == len(VisualCache.open(tmp_path / "a")) == 250
    assert imported.measured["image"]["queries"] == made.measured["image"]["queries"] == 20
    assert VisualCache.open(tmp_path / "a").index.manifest.tuned["settings"]


def test_a_recipes_queries_do_not_ask_rows_of_another_space(tmp_path, monkeypatch, caplog):
    from bindsearch.cache import build as build_module

    monkeypatch.setattr(build_module, "_embed", lambda *_: pytest.fail("embedded queries of another space"))
    path = write_faiss(tmp_path / "knn.index", features(n=600, dim=64, copies=0))
    how = ["--recipe", str(ROOT / "indexes" / "visual-cache.json"), "--space-id", "imagebind-huge@0123456789ab"]
    assert run(["cache", "import", str(path), "-o", str(tmp_path / "cache"), *how]) == 0
    assert CacheRecord.load(tmp_path / "cache").measured["image"]["source"] == "rows of the index"
    assert not (tmp_path / "cache.queries").exists()
    assert "tuned on its own image rows" in caplog.text


@pytest.mark.parametrize("at_hand", [True, False])
def test_a_recipes_queries_are_embedded_where_its_space_is_the_rows(tmp_path, at_hand):
    from bindsearch.errors import WeightsError
    from bindsearch.models.spaces import load_space

    def load(name):
        assert name == "tiny:7"
        if not at_hand:
            raise WeightsError("tiny:7: not fetched")
        return load_space(name)

    space = load_space("tiny:7")
    path = write_faiss(tmp_path / "knn.index", features(n=100, dim=space.dim, copies=0))
    tuning = Tuning("world:validation:0..25#text", 0.5, 0.5, 20)
    recipe = CacheRecipe(space="tiny:7", index=Recipe("rabitq"), tuning=tuning)
    record, _ = import_faiss(path, tmp_path / "cache", space.space_id, recipe, inputs=Inputs(load=load, workers=0))
    assert list(record.measured) == (["text"] if at_hand else ["image"])
    assert (tmp_path / "cache.queries").exists() == at_hand


@pytest.mark.parametrize("kind", KINDS)
def test_types_that_serve(tmp_path, kind):
    rows = features(copies=0)
    path = write_faiss(tmp_path / "knn.index", rows, kind)
    record, facts = import_faiss(path, tmp_path / "cache", space_id="toy@0123456789ab")
    assert record.kept == facts.count == 200
    index = open_index(tmp_path / "cache")
    labels = np.arange(200) * 3 + 5 if "IDMap" in kind else np.arange(200)
    back = index.vectors([f"knn.index#{label}" for label in labels])
    tolerance = {"SQfp16": 6e-4, "HNSW16_SQfp16": 6e-4, "SQ8": 2e-2}.get(kind, 1.5e-7)
    np.testing.assert_allclose(back, rows, atol=tolerance)


@pytest.mark.parametrize("kind", ["PQ4x4", "PCA8,Flat", "RaBitQ", "SQ4", "PQ4x4fs", "IVF4,PQ4x4fs"])
def test_types_that_cannot_serve_are_refused_by_name(tmp_path, kind):
    path = write_faiss(tmp_path / "knn.index", features(copies=0), kind)
    with pytest.raises(UnsupportedError, match=r"is an Index.*(coarse values|ends the process)"):
        import_faiss(path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_files_that_are_no_cache_are_refused(tmp_path):
    rows = features(copies=0)
    (tmp_path / "text.index").write_bytes(b"this is no index at all, only a line of words")
    with pytest.raises(DecodeError, match="not a FAISS index"):
        import_faiss(tmp_path / "text.index", tmp_path / "cache")
    whole = write_faiss(tmp_path / "whole.index", rows).read_bytes()
    (tmp_path / "cut.index").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DecodeError):
        import_faiss(tmp_path / "cut.index", tmp_path / "cache")
    with pytest.raises(InputError, match=r"row 0 has the norm 3, expected 1"):
        import_faiss(write_faiss(tmp_path / "long.index", rows * 3), tmp_path / "cache")
    rows[5] = np.nan
    with pytest.raises(InputError, match="row 5 has the norm nan"):
        import_faiss(write_faiss(tmp_path / "nan.index", rows), tmp_path / "cache")
    with pytest.raises(MissingInputError, match="is empty"):
        check_type(write_faiss(tmp_path / "empty.index", rows[:0]))
    with pytest.raises(MissingInputError, match="no such file"):
        check_type(tmp_path / "nothing.index")
    assert not (tmp_path / "cache" / "index.json").exists()


def test_other_kinds_of_export_are_refused(tmp_path):
    cache = VisualCache.of_vectors(features())
    with pytest.raises(UnsupportedError, match="a cache in memory has no items"):
        export_faiss(cache, tmp_path / "knn.index")
    with pytest.raises(UnknownNameError, match="pq-fast-scan"):
        export_faiss(cache, tmp_path / "knn.index", "pq-fast-scan")


# ---- the command line ------------------------------------------------------------------------------------------------


def test_commands(tmp_path, capsys):
    np.save(tmp_path / "images.npy", features())
    cache = str(tmp_path / "cache")
    assert run(["cache", "build", str(tmp_path / "images.npy"), "-o", cache, "--space-id", "toy@0123456789ab"]) == 0
    assert "180" in capsys.readouterr().err
    assert run(["cache", "info", cache, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["repeated"], facts["dim"]) == (180, 20, 24)
    np.save(tmp_path / "queries.npy", features(7, copies=0, seed=8))
    out = tmp_path / "moved.npy"
    assert run(["cache", "enhance", cache, "--vectors", str(tmp_path / "queries.npy"), "-o", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown) == 7
    assert sum(each["weight"] for each in shown[0]["neighbours"]) == pytest.approx(1, abs=1e-4)
    expected = VisualCache.open(cache).enhance(np.load(tmp_path / "queries.npy"))
    np.testing.assert_array_equal(np.load(out), expected)
    assert run(["cache", "export", cache, "-o", str(tmp_path / "knn.index")]) == 0
    assert run(["cache", "import", str(tmp_path / "knn.index"), "-o", str(tmp_path / "again")]) == 0
    assert len(VisualCache.open(tmp_path / "again")) == 180
    capsys.readouterr()
    assert run(["cache", "enhance", cache, "--vectors", str(tmp_path / "queries.npy"), "-k", "181"]) == 2
    assert "expected 1 to 180" in capsys.readouterr().err
    assert run(["cache", "export", cache, "-o", str(tmp_path / "x.index"), "--rows", "pq"]) == 2
    assert run(["cache", "info", str(tmp_path / "nowhere")]) == 3
    assert run(["cache", "enhance", cache]) == 2


# ---- refused before the work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "code", "says"),
    [
        (["--backend", "faiss-flatt"], 2, "Did you mean 'faiss-flat'"),
        (["--near-duplicate", "0.5"], 2, "near_duplicate: expected a cosine from 0.98"),
        (["--queries", "nowhere"], 3, "nowhere: no embeddings there"),
        (["--queries", "STORE"], 5, "toy@0123456789ab"),
        (["--recipe", "WEIGHT"], 2, "weight: expected a number from 0 to 1, got 1.5"),
        (["--recipe", "SIZE"], 2, "cache_size: expected at least 1, got 0"),
        (["--recipe", "MODALITY"], 2, "Did you mean 'image'"),
        (["--recipe", "QUERIES"], 3, "lost: no such file or folder"),
    ],
)
def test_nothing_is_embedded_where_the_rest_cannot_be_meant(tmp_path, real_store, capsys, wrong, code, says):
    contents = {
        "WEIGHT": {"cache": {"enhancement": {"weight": 1.5}}},
        "MODALITY": {"cache": {"modality": "imge"}},
        "SIZE": {"cache": {"enhancement": {"cache_size": 0}}},
        "QUERIES": {"cache": {"tuning": {"queries": str(tmp_path / "lost")}}, "recipe": {"backend": "rabitq"}},
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    names = {"STORE": str(real_store), **{name: str(tmp_path / name) for name in contents}}
    options = [names.get(each, each) for each in wrong]
    base = ["cache", "build", "world:0..2", "-o", str(tmp_path / "cache"), "--space", "tiny:7", "--workers", "0", "-q"]
    assert run([*base, *options]) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "cache.embeddings").exists()
    assert not (tmp_path / "cache").exists()


def test_embeddings_of_another_space_than_the_one_named_are_refused(tmp_path, real_store, capsys):
    build = ["cache", "build", str(real_store), "-o", str(tmp_path / "cache"), "-q"]
    assert run([*build, "--space", "tiny:7"]) == 5
    said = capsys.readouterr().err
    assert "made with space toy@0123456789ab, tiny:7 is asked for" in said
    (tmp_path / "r.json").write_text('{"cache": {"space": "tiny:7"}}', encoding="utf-8")
    assert run([*build, "--recipe", str(tmp_path / "r.json")]) == 5
    assert not (tmp_path / "cache").exists()
    assert run(build) == 0


def test_files_of_features_are_built_from_one_by_one(tmp_path, capsys):
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", features())
    assert run(["cache", "build", str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), "-o", str(tmp_path / "c")]) == 2
    said = capsys.readouterr().err
    assert "bindsearch index merge CACHE1 CACHE2" in said
    assert "--modality" not in said


def test_several_files_of_media_are_embedded_whatever_their_ending(tmp_path):
    rng = np.random.default_rng(0)
    names = [str(tmp_path / f"{number}.depth.npy") for number in range(3)]
    for name in names:
        np.save(name, rng.uniform(0.5, 5, (24, 24)).astype(np.float32))
    (tmp_path / "r.json").write_text('{"cache": {"modality": "depth"}}', encoding="utf-8")
    how = ["--recipe", str(tmp_path / "r.json"), "--space", "tiny:7", "--workers", "0", "-q"]
    assert run(["cache", "build", *names, "-o", str(tmp_path / "cache"), *how]) == 0
    assert CacheRecord.load(tmp_path / "cache").seen == 3


def test_several_files_are_refused_before_any_is_read(tmp_path, capsys):
    for name in ("a.npy", "b.h5"):
        (tmp_path / name).write_bytes(b"neither")
    assert run(["cache", "build", str(tmp_path / "a.npy"), str(tmp_path / "b.h5"), "-o", str(tmp_path / "c")]) == 2
    assert "bindsearch index merge CACHE1 CACHE2" in capsys.readouterr().err


@pytest.mark.parametrize("kept", ["lost", "others"])
def test_a_recipes_queries_that_no_embeddings_are_tuned_on_are_not_looked_at(tmp_path, real_store, kept):
    """The rows are of a space that is not the recipe's."""
    from bindsearch.models.spaces import load_space

    queries = str(tmp_path / "lost") if kept == "lost" else "world:validation:0..25#text"
    if kept == "others":
        shutil.copytree(real_store, tmp_path / "cache.queries")
    recipe = CacheRecipe(index=Recipe("rabitq"), tuning=Tuning(queries, 0.5, 0.5, 20))
    inputs = Inputs((str(real_store),), load=lambda _: load_space("tiny:7"))
    record = build_cache(tmp_path / "cache", inputs, recipe)
    assert record.measured["image"]["source"] == "rows of the index"


def test_a_recipes_queries_for_embeddings_of_its_space_are_looked_at_first(tmp_path, monkeypatch):
    from bindsearch.cache import build as build_module
    from bindsearch.models.spaces import load_space

    space = load_space("tiny:7")
    np.save(tmp_path / "images.npy", features(100, space.dim, 0))
    recipe = CacheRecipe(space="tiny:7", index=Recipe("rabitq"), tuning=Tuning(str(tmp_path / "lost"), 0.5, 0.5, 20))
    inputs = Inputs((str(tmp_path / "images.npy"),), space_id=space.space_id, load=lambda _: space)
    monkeypatch.setattr(build_module, "find_kept", lambda *_: pytest.fail("looked for duplicates first"))
    with pytest.raises(MissingInputError, match="lost: no such file or folder"):
        build_cache(tmp_path / "cache", inputs, recipe)


@pytest.mark.parametrize(("name", "value"), [("weight", 1.5), ("cache_size", 0), ("inverse_temperature", -1.0)])
def test_a_cache_of_before_with_numbers_out_of_range_is_used_with_others(tmp_path, capsys, name, value):
    cache = tmp_path / "cache"
    build_cache(cache, Inputs((str(_rows_file(tmp_path)),), space_id=SPACE))
    data = json.loads((cache / RECORD).read_text(encoding="utf-8"))
    data["recipe"]["enhancement"][name] = value
    (cache / RECORD).write_text(json.dumps(data), encoding="utf-8")
    assert run(["cache", "info", str(cache), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[name] == value
    enhance = ["cache", "enhance", str(cache), "--vectors", str(tmp_path / "x.npy")]
    option = {"weight": "--weight", "cache_size": "-k", "inverse_temperature": "--inverse-temperature"}[name]
    assert run([*enhance, option, "1"]) == 0
    assert run(enhance) == 2
    assert f"{name}: expected" in capsys.readouterr().err
    with pytest.raises(InputError, match=f"{name}: expected"):
        bridge_to(open_index(cache))


def test_numbers_out_of_range_are_refused_wherever_they_come_in(tmp_path):
    wrong = CacheRecipe(enhancement=Enhancement(weight=1.5))
    inputs = Inputs((str(_rows_file(tmp_path)),), space_id=SPACE)
    path = write_faiss(tmp_path / "knn.index", features())
    for make in (
        lambda: build_cache(tmp_path / "cache", inputs, wrong),
        lambda: import_faiss(path, tmp_path / "cache", SPACE, wrong),
    ):
        with pytest.raises(InputError, match=r"weight: expected a number from 0 to 1, got 1\.5"):
            make()
    assert not (tmp_path / "cache").exists()


def test_a_record_that_cannot_be_read_is_said_in_one_sentence(tmp_path):
    (tmp_path / RECORD).write_text('{"format": "other"}', encoding="utf-8")
    with pytest.raises(MismatchError) as caught:
        CacheRecord.load(tmp_path)
    assert ".)" not in str(caught.value) and ".." not in str(caught.value)


def test_another_backend_than_the_recipes_is_built_without_its_numbers(tmp_path):
    (tmp_path / "r.json").write_text(
        '{"cache": {}, "recipe": {"backend": "ivf-pq", "row_dtype": "float16", "build": {"nlist": 4}}}', "utf-8"
    )
    build = ["cache", "build", str(_rows_file(tmp_path)), "-q", "--recipe", str(tmp_path / "r.json")]
    made = {}
    for backend in ("ivf-pq", "rabitq"):
        assert run([*build, "-o", str(tmp_path / backend), "--backend", backend]) == 0
        made[backend] = CacheRecord.load(tmp_path / backend).recipe.index
    assert made == {
        "ivf-pq": Recipe("ivf-pq", "float16", {"nlist": 4}),
        "rabitq": Recipe("rabitq", "float16"),
    }


def test_enhance_makes_the_folder_of_its_file(tmp_path):
    build_cache(tmp_path / "cache", Inputs((str(_rows_file(tmp_path)),), space_id=SPACE))
    out = tmp_path / "new" / "deep" / "moved.npy"
    assert run(["cache", "enhance", str(tmp_path / "cache"), "--vectors", str(tmp_path / "x.npy"), "-o", str(out)]) == 0
    assert np.load(out).shape == (200, 24)


def _rows_file(folder):
    np.save(folder / "x.npy", features())
    return folder / "x.npy"
