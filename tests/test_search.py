"""Search: filters, identity, item keys, files of queries, and hits as data; on the tiny space with its real towers."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fake_store import FakeStore

from bindsearch.errors import (
    BindSearchError,
    InputError,
    MismatchError,
    MissingInputError,
    ShapeError,
    UnknownNameError,
)
from bindsearch.index.build import build_index
from bindsearch.models.spaces import load_space
from bindsearch.query import Embedding, term_kinds
from bindsearch.search import Effort, SearchIndex, ask, open_index, parse_filter, read_requests
from bindsearch.types import item_id

WORDS = [
    f"{subject} {place}" for place in ("at night", "in the rain", "by the sea") for subject in ["dog", "bird", "car"]
]


@pytest.fixture(scope="module")
def space():
    return load_space("tiny")


def space_store(space, words=WORDS, **manifest):
    """A store of texts embedded by the space, every one an item; made in memory."""
    store = FakeStore(n=len(words), dim=space.dim, modalities=("text",))
    store.vectors = space.embed("text", words)
    store.ids = np.array([item_id(word) for word in words], dtype=np.int64)
    store.table = store.table.set_column(0, "id", [store.ids]).set_column(1, "key", [words])
    facts = {
        "space_name": "tiny",
        "space_id": space.space_id,
        "tower_ids": {"text": space.tower_id("text")},
        "preset_ids": {"text": space.preset_id("text")},
        "tokenizer_id": space.tokenizer_id,
        **manifest,
    }
    for name, value in facts.items():
        setattr(store.manifest, name, value)
    return store


@pytest.fixture(scope="module")
def index(space, tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "words"
    build_index(space_store(space), path)
    return open_index(path)


@pytest.fixture
def toy(tmp_path):
    """30 items of three modalities with random rows; every fifth is a span."""
    build_index(FakeStore(), tmp_path / "toy")
    return open_index(tmp_path / "toy")


def no_space():
    raise AssertionError("nothing here needs a space")


# ---- asking ----------------------------------------------------------------------------------------------------------


def test_a_text_finds_itself_and_scores_are_cosines(index, space):
    hits = index.search(space.text(WORDS[4]), k=20)
    assert len(hits) == len(WORDS)
    assert hits[0].key == WORDS[4]
    assert hits[0].score == pytest.approx(1, abs=1e-6)
    vectors = space.embed("text", WORDS).astype(np.float64)
    cosines = vectors @ vectors[4]
    for hit in hits:
        assert hit.score == pytest.approx(cosines[WORDS.index(hit.key)], abs=2e-6)
    assert [hit.rank for hit in hits] == list(range(1, 10))


def test_contributions_add_up_to_the_score(index, space):
    query = space.text(WORDS[0]) + 0.5 * space.text(WORDS[5]) - 0.8 * space.text(WORDS[7])
    hits = index.search(query)
    for hit in hits:
        assert list(hit.contributions) == [f"text {WORDS[0]}", f"text {WORDS[5]}", f"text {WORDS[7]}"]
        assert sum(hit.contributions.values()) == pytest.approx(hit.score, abs=1e-6)
    assert hits.contributions().shape == (9, 3)


def test_what_is_excluded_is_excluded_for_queries_of_every_effort(toy, monkeypatch):
    """Queries of unlike settings are asked in groups; what can be read once is read before."""
    efforts = iter([Effort(), Effort(exact=True), Effort()])
    monkeypatch.setattr("bindsearch.search.index.effort_for", lambda snapshot, query, effort: next(efforts, effort))
    queries = np.stack([toy.vectors([key])[0] for key in ("item/0001", "item/0002", "item/0003")])
    out = ["item/0001", "item/0002", "item/0003"]
    found = toy.search_many(queries, 5, exclude=(key for key in out))
    assert [{hit.key for hit in hits} & set(out) for hits in found] == [set()] * 3


def test_what_terms_add_is_found_a_block_at_a_time(tmp_path):
    """Of many answers: memory of a block, and the same to the last bit."""
    build_index(FakeStore(n=6000, dim=64), tmp_path / "index")
    index = open_index(tmp_path / "index")
    query = index.item("item/0001") - 0.4 * index.item("item/0002")
    hits = index.search(query, 6000)
    assert hits.contributions().shape == (6000, 2)
    tracemalloc.start()
    try:
        found = hits.contributions()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6000 * 64 * 8  # all rows as float64, once
    rows = index.folder.snapshot.rows(hits.ids).astype(np.float64)
    weights, _, norm = query._sum()
    for place, (term, weight) in enumerate(zip(query.terms, weights, strict=True)):
        right = (rows * (term.vector.astype(np.float64) * (weight / norm))).sum(axis=1)
        np.testing.assert_array_equal(found[:, place], right)


def test_many_queries_are_the_single_ones(index, space):
    queries = [space.text(word) + 0.3 * space.text(WORDS[0]) for word in WORDS[1:6]]
    together = index.search_many(queries, k=4)
    for query, hits in zip(queries, together, strict=True):
        alone = index.search(query, k=4)
        assert hits.to_json() == alone.to_json()
    arrays = index.search_many(np.concatenate([query.vector for query in queries]), k=4)
    assert [hits.ids.tolist() for hits in arrays] == [hits.ids.tolist() for hits in together]
    assert arrays[0][0].contributions == {}
    assert index.search_many([]) == []


def test_searching_from_many_threads_gives_the_same(toy):
    queries = [toy.vectors([f"item/{i:04d}"]) for i in (1, 2, 3, 4)]
    expected = [toy.search(query, where="size > 300").to_json() for query in queries]
    wrong = []

    def work():
        for query, answer in zip(queries * 4, expected * 4, strict=True):
            if toy.search(query, where="size > 300").to_json() != answer:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- filters ---------------------------------------------------------------------------------------------------------

ROWS = FakeStore().table.to_pylist()


@pytest.mark.parametrize(
    ("where", "passes"),
    [
        ("size > 1000", lambda r: r["size"] > 1000),
        ("size >= 1000 and size <= 1500", lambda r: 1000 <= r["size"] <= 1500),
        ("modality = 'image' or modality == \"audio\"", lambda r: r["modality"] in ("image", "audio")),
        ("not modality in ('image', 'text')", lambda r: r["modality"] == "audio"),
        ("modality not in ('image')", lambda r: r["modality"] != "image"),
        ("caption like '%number 1_'", lambda r: bool(r["caption"]) and r["caption"][-2:-1] == "1"),
        ("caption not like '%1%'", lambda r: r["caption"] is not None and "1" not in r["caption"]),
        ("caption is null", lambda r: r["caption"] is None),
        ("start_s is not null and start_s < 12.5", lambda r: r["start_s"] is not None and r["start_s"] < 12.5),
        ("not (size < 500 or size > 900)", lambda r: 500 <= r["size"] <= 900),
        # a comparison with a missing value is not known, and neither is its opposite
        ("not start_s > 10", lambda r: r["start_s"] is not None and r["start_s"] <= 10),
        ("start_s > 10 or size = 100", lambda r: (r["start_s"] or 0) > 10 or r["size"] == 100),
        ("colour = 'red'", lambda r: r["attributes"] is not None and '"red"' in r["attributes"]),
        ("`level` > 20", lambda r: r["attributes"] is not None and json.loads(r["attributes"])["level"] > 20),
        ("member is null AND NOT member = 'x' or size = 0", lambda r: r["size"] == 0),
        ("key = 'it''s'", lambda r: False),
    ],
)
def test_filters_let_pass_what_they_say(toy, where, passes):
    hits = toy.search(np.ones((1, 16), dtype=np.float32), k=99, where=where)
    assert sorted(hit.key for hit in hits) == [row["key"] for row in ROWS if passes(row)]


def test_a_filtered_answer_is_the_best_of_what_passes(toy):
    query = toy.vectors(["item/0003"])
    everything = toy.search(query, k=30)
    some = toy.search(query, k=5, where="size > 1500", modality="audio", exclude=["item/0016", item_id("item/0019")])
    expected = [
        hit
        for hit in everything
        if hit.columns["size"] > 1500 and hit.modality == "audio" and hit.key not in ("item/0016", "item/0019")
    ]
    assert [hit.key for hit in some] == [hit.key for hit in expected][:5]
    assert [hit.score for hit in some] == [hit.score for hit in expected][:5]


def test_filters_see_every_segment_and_no_removed_item(toy):
    toy.add(FakeStore(n=7, prefix="more", modalities=("text",)))
    toy.remove(["item/0000", "more/0000"])
    hits = toy.search(np.ones((1, 16), dtype=np.float32), k=99, where="size < 300")
    assert sorted(hit.key for hit in hits) == ["item/0001", "item/0002", "more/0001", "more/0002"]


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("sise > 3", UnknownNameError, "Did you mean 'size'"),
        ("color = 'red'", UnknownNameError, "Did you mean 'colour'"),
        ("size > 'big'", InputError, "the column 'size' holds int64, it is compared with 'big'"),
        (
            "modality = 3",
            InputError,
            "the column 'modality' holds text such as '(audio|image)', it is compared with the number 3",
        ),
        ("modality > true", InputError, "holds string"),
        ("size like '3%'", InputError, "holds int64"),
        ("size >", InputError, "expected a number, .* at character 7, got 'the end'"),
        ("size > 3 size", InputError, "expected 'and', 'or' or the end at character 10"),
        ("(size > 3", InputError, r"expected '\)'"),
        ("size ; drop", InputError, "expected a column, a value or an operator at character 6"),
        ("__import__('os')", InputError, "expected ==.*at character 11"),
        ("", InputError, "expected a column at character 1"),
        ("not " * 200 + "size > 1", InputError, "nested more than 50"),
        ("(" * 200, InputError, "nested more than 50"),
        ("caption like 3", InputError, "a text between quotes"),
        ("size in ()", InputError, "expected a number"),
        ("'size' = 3", InputError, "expected a column"),
    ],
)
def test_filters_that_cannot_be_meant_say_where(toy, where, error, message):
    with pytest.raises(error, match=message):
        toy.search(np.ones((1, 16), dtype=np.float32), where=where)


def test_a_parsed_filter_names_its_columns():
    parsed = parse_filter("size > 3 and (`my column` is null or not size in (1, 2.5, -3))")
    assert parsed.columns == ("size", "my column")
    columns = {"size": pa.chunked_array([[4, 5, -3]]), "my column": pa.chunked_array([["x", None, None]])}
    assert parsed.mask(columns.__getitem__).tolist() == [True, True, False]


def test_of_many_known_names_the_nearest_are_listed():
    few = str(UnknownNameError("column", "sise", ["size", "key", "size"]))
    assert few == "Unknown column 'sise'. Did you mean 'size'? Known: key, size."
    error = UnknownNameError("model", "resnet19", [*(f"aimv2_{number}" for number in range(1300)), "resnet18"])
    assert len(error.known) == 1301
    assert "Did you mean 'resnet18'? Known: resnet18, " in str(error)
    assert str(error).endswith(" and 1,289 more.") and len(str(error)) < 300


def test_a_modality_that_the_index_lacks_is_named(toy):
    with pytest.raises(UnknownNameError, match="Known: audio, image, text"):
        toy.search(np.ones((1, 16), dtype=np.float32), modality="imu")


# ---- identity --------------------------------------------------------------------------------------------------------


def test_a_query_of_another_space_is_refused_with_both_values(index, space):
    other = load_space("tiny:7")
    assert other.space_id != space.space_id
    with pytest.raises(MismatchError) as caught:
        index.search(other.text("dog"))
    assert space.space_id in str(caught.value)
    assert other.space_id in str(caught.value)
    assert f"bindsearch index EMBEDDINGS -o {index.path} --force" in str(caught.value)
    assert caught.value.exit_code == 5
    with pytest.raises(MismatchError, match="comes from tiny"):
        ask(index, [("text", "dog")], load=lambda: other)
    assert not other.loaded or other.loaded == ("text",)


def test_an_unfitting_space_is_refused_before_a_tower_is_loaded(index):
    other = load_space("tiny:8")
    with pytest.raises(MismatchError):
        ask(index, [("text", "dog")], load=lambda: other)
    assert other.loaded == ()


def test_another_preset_of_the_same_modality_is_refused(space, tmp_path):
    store = space_store(space, preset_ids={"text": "reference:12345678"})
    build_index(store, tmp_path / "index")
    index = open_index(tmp_path / "index")
    with pytest.raises(MismatchError, match=f"text preset reference:12345678, .* {space.preset_id('text')}") as caught:
        index.search(space.text("dog"))
    assert str(caught.value).endswith(". Leave --preset away, or give --preset text=reference")
    build_index(space_store(space, preset_ids={"text": "default:12345678"}), tmp_path / "older")
    with pytest.raises(MismatchError, match=r"default:12345678, .* Rebuild: bindsearch index .*older --force"):
        open_index(tmp_path / "older").search(space.text("dog"))


def test_an_index_of_an_unknown_space_is_asked_by_items_and_vectors_alone(space, tmp_path):
    unknown = {"space_name": "unknown", "space_id": "unknown", "tower_ids": {}, "preset_ids": {}, "tokenizer_id": None}
    build_index(space_store(space, **unknown), tmp_path / "index")
    index = open_index(tmp_path / "index")
    with pytest.raises(
        MismatchError, match=r"built with space unknown, .* import FILE .*--space-id NAME@HASH"
    ) as caught:
        index.search(space.text("dog"))
    assert "--space unknown" not in str(caught.value)
    with pytest.raises(MismatchError, match=r"only --item and --vector can ask it.*--space-id NAME@HASH"):
        ask(index, [("text", "dog")], load=no_space)
    assert ask(index, [("item", WORDS[3])], load=no_space).hits[0][0].key == WORDS[3]


def test_a_modality_that_the_index_lacks_needs_only_its_tower_bound_to_the_space(index, space):
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    hits = index.search(space.image(picture), k=3)
    vectors = space.embed("text", WORDS).astype(np.float64)
    expected = sorted((vectors @ space.image(picture).vector[0].astype(np.float64)).tolist(), reverse=True)[:3]
    np.testing.assert_allclose(hits.scores, expected, atol=1e-6)


def test_wrong_dimensions_and_kinds_are_named(toy):
    with pytest.raises(ShapeError, match=r"expected shape \(any, 16\), got \(1, 5\)"):
        toy.search(np.ones((1, 5), dtype=np.float32))
    with pytest.raises(ShapeError, match="have dim 16, the query has dim 5"):
        toy.search(Embedding.of_vector(np.ones(5, dtype=np.float32)))
    with pytest.raises(InputError, match="float32 array, got float64"):
        toy.search(np.ones((1, 16)))
    with pytest.raises(InputError, match="at least 1, got 0"):
        toy.search(np.ones((1, 16), dtype=np.float32), k=0)


def test_a_bare_vector_is_one_query(toy):
    """Of several rows, one would be answered for another."""
    rows = np.eye(3, 16, dtype=np.float32)
    assert toy.search(rows[1], k=3).scores.tolist() == toy.search(rows[1:2], k=3).scores.tolist()
    assert [len(hits) for hits in toy.search_many(rows, k=2)] == [2, 2, 2]
    for wrong in (rows[1:3], rows[:0], rows[None, :1], np.float32(1), np.zeros(0, np.float32)):
        with pytest.raises(ShapeError, match=r"one vector \(d,\) or \(1, d\), got shape .*search_many"):
            toy.search(wrong)
        with pytest.raises(ShapeError, match="one vector"):
            toy.search_many([rows[0], wrong])
        with pytest.raises(ShapeError, match="one vector"):
            toy.search_range(wrong, 0.2)


# ---- items -----------------------------------------------------------------------------------------------------------


def test_items_and_spans_are_found_by_key(toy):
    assert toy.has("item/0003")
    assert not toy.has("item/9999")
    hits = toy.search(toy.item("item/0003"), k=3)
    assert hits[0].key == "item/0003"
    assert toy.search(toy.item("item/0003"), k=3, exclude_self=True)[0].key == hits[1].key
    assert len(toy.search(toy.item("item/0003"), k=3, exclude_self=True)) == 3
    assert toy.items(["item/0004", item_id("item/0001")], ["key"])["key"].to_pylist() == ["item/0004", "item/0001"]
    assert toy.items().num_rows == len(toy) == 30
    np.testing.assert_array_equal(toy.vectors()[:2], toy.vectors(["item/0000", "item/0001"]))
    for missing in ("item/9999", 7):
        with pytest.raises(MissingInputError, match=str(missing)):
            toy.items([missing])


def test_a_key_with_several_spans_must_name_one(tmp_path):
    store = FakeStore(n=4)
    spans = [(0.0, 5.0), (5.0, 10.0), (10.0, 12.5), None]
    keys = ["talk.wav"] * 3 + ["other"]
    store.ids = np.array([item_id(*pair) for pair in zip(keys, spans, strict=True)], dtype=np.int64)
    columns = {
        "id": store.ids,
        "key": keys,
        "start_s": [s and s[0] for s in spans],
        "end_s": [s and s[1] for s in spans],
    }
    for name, values in columns.items():
        place = store.table.column_names.index(name)
        store.table = store.table.set_column(place, name, [pa.array(values)])
    build_index(store, tmp_path / "index")
    index = open_index(tmp_path / "index")
    with pytest.raises(MissingInputError, match=r"has 3 spans. Name one: talk.wav#t=0,5, talk.wav#t=5,10"):
        index.item("talk.wav")
    assert index.search(index.item("talk.wav#t=10,12.5"), k=1)[0].span == (10.0, 12.5)
    assert index.remove(["talk.wav"]) == 3
    assert len(index) == 1


# ---- asking as people do ---------------------------------------------------------------------------------------------


def test_terms_become_one_query(index, space):
    answers = ask(index, [("text", f"{WORDS[2]}@0.5"), ("minus_text", WORDS[3])], load=lambda: space, k=4)
    expected = index.search(0.5 * space.text(WORDS[2]) - space.text(WORDS[3]), k=4)
    assert not answers.many
    found = answers.hits[0]
    assert [hit.key for hit in found] == [hit.key for hit in expected]
    # two texts run through the tower together: equal to rounding, not to the bit
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-6)
    np.testing.assert_allclose(found.contributions(), expected.contributions(), atol=2e-6)


def test_items_and_vectors_need_no_space(toy, tmp_path):
    np.save(tmp_path / "v.npy", toy.vectors(["item/0001"])[0])
    answers = ask(toy, [("item", "item/0001"), ("vector", f"{tmp_path}/v.npy@0.5")], load=no_space, k=2)
    assert answers.hits[0][0].key == "item/0001"
    assert answers.hits[0][0].score == pytest.approx(1, abs=1e-6)
    for value, error, message in [
        ("nothing.npy", MissingInputError, "no such file"),
        (__file__, InputError, r"test_search\.py: not a \.npy file of numbers; it begins as another .*numpy\.save"),
        (str(tmp_path / "cut.npy"), InputError, r"cut\.npy: not a \.npy file of numbers: damaged"),
    ]:
        (tmp_path / "cut.npy").write_bytes((tmp_path / "v.npy").read_bytes()[:-1])
        with pytest.raises(error, match=message) as caught:
            ask(toy, [("vector", value)], load=no_space)
        assert "pickle" not in str(caught.value)
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    with pytest.raises(InputError, match="expected floating-point numbers, got <U1"):
        ask(toy, [("vector", f"{tmp_path}/words.npy")], load=no_space)


def test_what_is_not_there_is_said_before_anything_is_loaded(toy):
    with pytest.raises(MissingInputError, match=r"--image nothing.jpg: there is no such file"):
        ask(toy, [("image", "nothing.jpg")], load=no_space)
    with pytest.raises(InputError, match=r"nothing to look for. Give at least one term: --audio"):
        ask(toy, [], load=no_space)
    with pytest.raises(InputError, match="--from holds the queries"):
        ask(toy, [("text", "x")], many="q.jsonl", load=no_space)


def test_a_file_of_queries_is_answered_line_by_line(index, space, tmp_path):
    vector = space.text(WORDS[1]).vector[0].tolist()
    lines = [
        {"text": WORDS[0]},
        {"id": "two", "text": [f"{WORDS[0]}@0.5", WORDS[1]], "minus_text": WORDS[2], "k": 2},
        {"terms": [{"text": WORDS[3], "weight": -0.5}, {"item": WORDS[4]}], "where": "size >= 300"},
        {"vector": vector, "modality": "text"},
    ]
    path = tmp_path / "queries.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    answers = ask(index, [], many=path, load=lambda: space, k=3)
    assert answers.many
    assert [hits.query_id for hits in answers.hits] == ["1", "two", "3", "4"]
    assert [len(hits) for hits in answers.hits] == [3, 2, 3, 3]
    assert answers.hits[0][0].key == WORDS[0]
    expected = index.search(0.5 * space.text(WORDS[0]) + space.text(WORDS[1]) - space.text(WORDS[2]), k=2)
    # a batch of texts runs through the tower together: equal to rounding, not to the bit
    assert [hit.key for hit in answers.hits[1]] == [hit.key for hit in expected]
    np.testing.assert_allclose(answers.hits[1].scores, expected.scores, atol=2e-6)
    assert answers.hits[2].query.describe() == f"− 0.5 × text {WORDS[3]} + text {WORDS[4]}"
    assert all(hit.columns["size"] >= 300 for hit in answers.hits[2])
    assert answers.hits[3][0].key == WORDS[1]


def test_paths_in_a_file_are_relative_to_it_and_stdin_is_read(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "q.jsonl"
    path.write_text('{"image": "a.jpg@0.5", "vector": "v.npy", "text": "x"}')
    terms = read_requests(path)[0].terms
    assert [term.value for term in terms] == [str(tmp_path / "sub" / "a.jpg"), str(tmp_path / "sub" / "v.npy"), "x"]
    path.write_text('{"image": "world:17#image", "audio": "https://example.org/a.wav"}')
    assert [term.value for term in read_requests(path)[0].terms] == ["world:17#image", "https://example.org/a.wav"]
    for written in (b'{"audio": "b.wav"}\n', b'\xef\xbb\xbf{"audio": "b.wav"}\r\n'):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(written)))
        assert read_requests("-")[0].terms[0].value == "b.wav"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "\xff"}')))
    with pytest.raises(InputError, match="--from -: not UTF-8 text"):
        read_requests("-")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[1]", "line 2: expected an object"),
        ("{}", "line 2: it has no term"),
        ('{"imag": "a.jpg"}', "Did you mean 'image'"),
        ('{"text": 3}', "line 2: text: expected a text or a list of texts, got 3"),
        ('{"text": []}', "expected a text or a list"),
        ('{"text": "x", "k": 0}', "line 2: k: expected a whole number from 1, got 0"),
        ('{"text": "x", "where": 4}', "line 2: where: expected a text, got 4"),
        ('{"terms": [{"text": "x", "weight": "y"}]}', "weight: expected a finite number, got 'y'"),
        ('{"terms": [{"text": "x", "image": "y"}]}', "terms: expected one of"),
        ('{"terms": [{"text": ""}]}', "a text that is not empty"),
        ('{"terms": ["x"]}', "terms: expected one of"),
    ],
)
def test_lines_that_cannot_be_meant_are_named(tmp_path, line, message):
    path = tmp_path / "q.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(InputError, match=message):
        read_requests(path)


def test_a_file_without_queries_is_said(tmp_path):
    (tmp_path / "q.jsonl").write_text("\n\n")
    with pytest.raises(MissingInputError, match="no query in it"):
        read_requests(tmp_path / "q.jsonl")
    with pytest.raises(MissingInputError, match="no such file"):
        read_requests(tmp_path / "nothing.jsonl")


def test_the_page_on_queries_is_true(toy, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "query.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```(where|jsonl)\n(.*?)```", page, re.DOTALL))
    columns = {name for where in blocks["where"].splitlines() for name in parse_filter(where).columns}
    assert {"modality", "size", "caption", "key", "start_s", "sha256"} == columns
    path = tmp_path / "queries.jsonl"
    path.write_text(blocks["jsonl"], encoding="utf-8")
    requests = read_requests(path)
    assert [request.id for request in requests] == ["1", "q2", "q3", "4"]
    assert [len(request.terms) for request in requests] == [1, 3, 2, 2]
    assert requests[2].terms[1].value == "taken word by word@1"
    named = re.findall(r"`(\w+)`", page[page.index("Fields of a hit") :])
    found = list(toy.search(toy.item("item/0001"), k=1).to_json(explain=True)[0])
    assert found[:8] == named[:8]
    assert {"attributes", "contributions"} <= set(found)
    (sql,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    for text in sql.splitlines():
        assert toy.select(sql=text).count == sum("SELECT" in text and size > 1450 for size in range(0, 3000, 100))
    options = (
        "minus-",
        "from",
        "where",
        "sql",
        "json",
        "html",
        "sheet",
        "explain",
        "exact",
        "calibrate",
        "paged",
        "after",
    )
    for kind in (*term_kinds(), *options, "min-score", "group-by", "hide-duplicates", "diverse"):
        assert f"--{kind}" in page


# ---- which index -----------------------------------------------------------------------------------------------------


def test_the_index_is_the_named_one_the_setting_or_the_only_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BINDSEARCH_INDEX", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with pytest.raises(MissingInputError, match="no index under indexes/"):
        open_index()
    for name, n in (("a", 5), ("b", 6), ("c", 7)):
        build_index(FakeStore(n=n), Path("indexes") / name)
        if name == "a":
            assert len(open_index()) == 5
    with pytest.raises(MissingInputError, match=r"several indexes: indexes/a, indexes/b, indexes/c\. Name one"):
        open_index()
    Path("bindsearch.toml").write_text('index = "indexes/b"\n')
    assert len(open_index()) == 6
    monkeypatch.setenv("BINDSEARCH_INDEX", "indexes/c")
    assert len(open_index()) == 7
    assert len(open_index("indexes/a")) == 5
    monkeypatch.setenv("BINDSEARCH_INDEX", "indexes/nothing")
    with pytest.raises(MissingInputError, match=r"indexes/nothing: does not exist.*comes from BINDSEARCH_INDEX"):
        open_index()


# ---- hits as data ----------------------------------------------------------------------------------------------------


def test_hits_are_plain_data(toy):
    hits = toy.search(toy.item("item/0001"), k=4)
    rows = json.loads(json.dumps(hits.to_json(explain=True)))
    assert list(rows[0])[:8] == ["rank", "score", "key", "modality", "source", "start_s", "end_s", "id"]
    assert rows[0] | {"contributions": None} == {
        "rank": 1,
        "score": rows[0]["score"],
        "key": "item/0001",
        "modality": "audio",
        "source": "/nowhere/item/0001",
        "start_s": None,
        "end_s": None,
        "id": str(item_id("item/0001")),
        "member": None,
        "size": 100,
        "norm": 0.5,
        "caption": "a dog, number 1",
        "attributes": {"colour": "blue", "level": 1},
        "contributions": None,
    }
    assert [np.float32(row["score"]) for row in rows] == hits.scores.tolist()
    table = hits.to_arrow()
    assert table["rank"].to_pylist() == [1, 2, 3, 4]
    assert table["key"].to_pylist() == [hit.key for hit in hits]
    assert [hit.key for hit in hits[1:3]] == table["key"].to_pylist()[1:3]
    assert repr(hits).splitlines()[1] == f"  1. {hits[0].score:.3f} audio item/0001"
    assert len(repr(hits).splitlines()) == 5


def test_pandas_is_asked_for_plainly(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BindSearchError, match="pip install pandas"):
        toy.search(toy.item("item/0001")).to_pandas()


def test_hits_keep_their_snapshot(toy):
    hits = toy.search(toy.item("item/0001"), k=3)
    keys = [hit.key for hit in toy.search(toy.item("item/0001"), k=3)]
    toy.remove(keys)
    toy.compact()
    assert [hit.key for hit in hits] == keys
    assert isinstance(toy, SearchIndex)
    assert not {hit.key for hit in toy.search(np.ones((1, 16), dtype=np.float32), k=99)} & set(keys)


def test_a_query_by_key_loads_neither_torch_nor_faiss(toy):
    code = f"""
import sys
from bindsearch.search import open_index
index = open_index({str(toy.path)!r})
print(index.search(index.item("item/0001"), k=1)[0].key)
print([name for name in ("torch", "faiss", "torchvision", "timm", "open_clip", "torchaudio", "pyarrow.dataset")
       if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["item/0001", "[]"]


@pytest.mark.parametrize(
    ("where", "passes"),
    [
        ("rating > 3", [True, False, True, False, False]),
        ("rating = 10", [True, False, False, False, False]),
        ("not rating < 4", [True, False, True, False, False]),
        ("rating in (2, 4.0)", [False, True, True, False, False]),
        ("rating > '1'", [True, True, False, False, False]),
    ],
)
def test_cells_of_csv_files_compare_as_numbers_with_numbers(where, passes):
    cells = pa.chunked_array([["10", "2"], [" 4.0", "", None]])
    assert parse_filter(where).mask(lambda name: cells).tolist() == passes


@pytest.mark.parametrize("cell", ["1_000", "ten"])
def test_a_cell_that_arrow_cannot_read_is_named(cell):
    with pytest.raises(InputError, match=f"holds text such as '{cell}'"):
        parse_filter("rating > 3").mask(lambda name: pa.chunked_array([["10", None, "", cell]]))


def test_a_cell_that_is_no_number_is_named():
    cells = pa.chunked_array([["10", "n/a"]])
    with pytest.raises(InputError, match=r"the column 'rating' holds text such as 'n/a', .* the number 3\. Comp"):
        parse_filter("rating > 3").mask(lambda name: cells)
