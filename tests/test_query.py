"""The algebra: what adds up, what is refused, how terms are written."""

from __future__ import annotations

import copy
import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindsearch.errors import InputError, MismatchError, ShapeError, UnknownNameError
from bindsearch.index.identity import Identity
from bindsearch.query import SMALLEST_NORM, Embedding, TermSpec, parse_term, parse_terms
from bindsearch.registry import Registry
from bindsearch.search.ask import read_requests

DIM = 12
SPACE_ID = "toy@0123456789ab"


def toy_space(space_id=SPACE_ID, preset="default:1", tower="aa"):
    return SimpleNamespace(
        space_id=space_id,
        dim=DIM,
        tokenizer_id="tok",
        tower_id=lambda modality: f"{modality}:{tower}@{space_id}",
        preset_id=lambda modality: preset,
    )


def row(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


def term(seed: int, modality="image", label=None, **space) -> Embedding:
    return Embedding.of(toy_space(**space), modality, row(seed), label or f"{seed}")


def unit(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) / np.linalg.norm(x.astype(np.float64))


weights = st.floats(-4, 4).filter(lambda w: abs(w) > 0.05)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.tuples(st.integers(0, 50), weights), min_size=1, max_size=6))
def test_the_sum_is_normalise_weight_sum_normalise(parts):
    query = parts[0][1] * term(parts[0][0])
    for seed, weight in parts[1:]:
        query = query + weight * term(seed)
    total = sum(weight * unit(row(seed)) for seed, weight in parts)
    norm = np.linalg.norm(total)
    if norm < SMALLEST_NORM * sum(abs(weight) for _, weight in parts):
        with pytest.raises(InputError, match="cancel out"):
            query.vector  # noqa: B018
        return
    assert query.vector.shape == (1, DIM)
    assert query.vector.dtype == np.float32
    # the terms are kept as float32: each is off by up to 6e-8 a component, more where they nearly cancel
    np.testing.assert_allclose(query.vector[0], total / norm, atol=1e-6 / min(norm, 1))


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.tuples(st.integers(0, 50), weights), min_size=1, max_size=6))
def test_contributions_add_up_to_the_score(parts):
    query = parts[0][1] * term(parts[0][0])
    for seed, weight in parts[1:]:
        query = query + weight * term(seed)
    if np.linalg.norm(sum(weight * unit(row(seed)) for seed, weight in parts)) < 0.01:
        return
    rows = np.stack([unit(row(seed)) for seed in range(60, 70)]).astype(np.float32)
    parts_of = query.contributions(rows)
    assert parts_of.shape == (10, len(parts))
    np.testing.assert_allclose(parts_of.sum(axis=1), (rows @ query.vector.T)[:, 0], atol=1e-6)
    np.testing.assert_allclose(np.sign(parts_of), np.sign([w for _, w in parts] * (rows @ _units(parts).T)))


def _units(parts):
    return np.stack([unit(row(seed)) for seed, _ in parts])


def test_operators_are_linear_in_the_terms():
    a, b, c = term(1), term(2, "audio"), term(3, "text")
    left = (2 * (a - b) + c) / 4
    right = a * 0.5 + (-b) * np.float32(0.5) + c * 0.25
    np.testing.assert_array_equal(left.vector, right.vector)
    assert [part.weight for part in left.terms] == [0.5, -0.5, 0.25]
    assert isinstance(np.float64(2) * a, Embedding)
    # the scale of a query says nothing
    np.testing.assert_allclose((7 * a + 7 * b).vector, (a + b).vector, atol=1e-7)


def test_an_embedding_does_not_change():
    vector = row(1)
    before = vector.copy()
    query = Embedding.of(toy_space(), "image", vector, "x")
    assert query.terms[0].vector is not vector
    np.testing.assert_array_equal(vector, before)
    with pytest.raises(ValueError, match="read-only"):
        query.terms[0].vector[0] = 3
    with pytest.raises(AttributeError, match="immutable"):
        query.terms = ()
    a = term(1)
    _ = 3 * a + a
    assert [part.weight for part in a.terms] == [1.0]


def test_a_query_is_written_as_it_was_meant():
    query = term(1, label="bird.jpg") + 0.5 * term(2, "audio", "waves.wav") - term(3, "text", "night")
    assert query.describe() == "image bird.jpg + 0.5 × audio waves.wav − text night"
    assert repr(query) == f"<Embedding {query.describe()} of {SPACE_ID}, d = 12>"
    assert (-query).describe() == "− image bird.jpg − 0.5 × audio waves.wav + text night"
    twice = term(1, label="x") + term(2, label="x")
    assert twice.names() == ("image x", "image x (2)")


def test_terms_that_cancel_out_are_refused():
    a = term(1)
    nearly = Embedding.of(toy_space(), "image", row(1) + np.float32(1e-5), "nearly")
    for query in (a - a, a + term(2) - a - term(2), a - nearly, 1000 * a - 1000 * nearly, 0 * a, 1e-300 * (a - a)):
        with pytest.raises(InputError, match=r"cancel out .*at least 0.001 is needed"):
            query.vector  # noqa: B018
    (a - 0.99 * a).vector  # noqa: B018


@pytest.mark.parametrize("size", [1e-300, 1e-4, 10, 1e200])
def test_the_size_of_weights_says_nothing(size):
    mixed = term(1) + 0.5 * term(2)
    np.testing.assert_allclose((size * mixed).vector, mixed.vector, atol=1e-7)
    rows = np.stack([unit(row(seed)) for seed in range(60, 63)]).astype(np.float32)
    np.testing.assert_allclose((size * mixed).contributions(rows), mixed.contributions(rows), atol=1e-12)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_queries_are_copied_and_pickled(again):
    query = term(1) - 0.5 * term(2, "text", "night")
    other = again(query)
    assert (other.describe(), other.identity) == (query.describe(), query.identity)
    np.testing.assert_array_equal((other + term(3)).vector, (query + term(3)).vector)
    with pytest.raises(ValueError, match="read-only"):
        other.terms[0].vector[0] = 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"space_id": "toy@ffff"}, r"built with space toy@0123456789ab, .* comes from toy@ffff"),
        ({"tower": "bb"}, r"image tower image:aa@toy@0123456789ab, .* comes from image:bb@toy@0123456789ab"),
        ({"preset": "reference:2"}, r"image preset default:1, .* comes from reference:2"),
    ],
)
def test_terms_that_were_not_made_alike_are_refused_with_both_values(other, message):
    with pytest.raises(MismatchError, match=message):
        term(1) + term(2, **other)


def test_bare_vectors_go_with_any_space():
    query = term(1) + Embedding.of_vector(row(2))
    assert query.space_id == SPACE_ID
    assert (Embedding.of_vector(row(2)) + term(1)).space_id == SPACE_ID
    with pytest.raises(ShapeError, match=r"has dim 12, the term .* has dim 5"):
        term(1) + Embedding.of_vector(row(2)[:5])


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.zeros(DIM, dtype=np.float32), "norm 0.0"),
        (np.full(DIM, np.nan, dtype=np.float32), "norm nan"),
        (np.ones(DIM), r"got \(12,\) float64"),
        (np.ones((2, 6), dtype=np.float32), r"got \(2, 6\) float32"),
        (np.ones(3, dtype=np.float32), r"expected 12 numbers for toy@0123456789ab, got shape \(3,\)"),
    ],
)
def test_vectors_that_cannot_be_meant_are_refused(vector, message):
    with pytest.raises(InputError, match=message):
        Embedding.of(toy_space(), "image", vector, "x")


def test_both_ranks_of_one_vector_are_the_same_query():
    a, b = Embedding.of(toy_space(), "image", row(1), "x"), Embedding.of(toy_space(), "image", row(1)[None], "x")
    np.testing.assert_array_equal(a.vector, b.vector)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(factor):
    with pytest.raises(InputError, match="finite"):
        factor * term(1)
    with pytest.raises(InputError, match="divided by 0"):
        term(1) / 0
    with pytest.raises(TypeError):
        term(1) * "2"
    with pytest.raises(TypeError):
        term(1) + 2
    with pytest.raises(TypeError):
        term(1) * term(2)


def test_an_identity_refuses_a_tower_of_another_space():
    with pytest.raises(MismatchError, match="bound to the space b@2, not to a@1"):
        Identity("a@1", {"audio": "audio:xx@b@2"})


# ---- terms as people write them --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("bird.jpg", "image", ("bird.jpg", 1.0)),
        ("bird.jpg@0.3", "image", ("bird.jpg", 0.3)),
        ("bird.jpg@-2", "image", ("bird.jpg", -2.0)),
        ("bird.jpg@.5", "image", ("bird.jpg", 0.5)),
        ("bird.jpg@1e-1", "image", ("bird.jpg", 0.1)),
        ("me@home.jpg", "image", ("me@home.jpg", 1.0)),
        ("a@0.2@0.3", "image", ("a@0.2", 0.3)),
        ("at night@0.5", "text", ("at night", 0.5)),
        ("meet me @ 5", "text", ("meet me @ 5", 1.0)),
        ("two\nlines@2", "text", ("two\nlines", 2.0)),
        ("@0.3", "text", ("@0.3", 1.0)),
        ("x@nan", "text", ("x@nan", 1.0)),
    ],
)
def test_terms_are_read_with_their_weights(text, kind, expected):
    assert parse_term(text, kind) == TermSpec(kind, *expected)


def test_a_file_of_that_exact_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bird.jpg@0.3").write_bytes(b"x")
    assert parse_term("bird.jpg@0.3", "image") == TermSpec("image", "bird.jpg@0.3", 1.0)
    assert parse_term("bird.jpg@0.3@2", "image") == TermSpec("image", "bird.jpg@0.3", 2.0)
    assert parse_term("bird.jpg@0.4", "image") == TermSpec("image", "bird.jpg", 0.4)
    assert parse_term("k@1", "item", exists={"k@1"}.__contains__) == TermSpec("item", "k@1", 1.0)
    assert parse_term("k@1@3", "item", exists={"k@1"}.__contains__) == TermSpec("item", "k@1", 3.0)
    parse_term("x" * 5000 + "@2", "image")  # no file can have this name


def test_minus_turns_the_sign():
    assert parse_terms([("image", "a@2"), ("minus_text", "night"), ("minus-audio", "b.wav@-0.5")]) == (
        TermSpec("image", "a", 2.0),
        TermSpec("text", "night", -1.0),
        TermSpec("audio", "b.wav", 0.5),
    )
    with pytest.raises(UnknownNameError, match="Did you mean 'thermal'"):
        parse_terms([("termal", "x")])
    with pytest.raises(InputError, match="empty"):
        parse_terms([("text", "  ")])
    with pytest.raises(InputError, match="finite weight"):
        parse_terms([("text", "x@1e999")])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"terms": null}', "terms: expected a list"),
        ('{"terms": 5, "text": "a"}', "terms: expected a list"),
        ('{"vector": [1' + "0" * 400 + "]}", "vector: expected a text or a list of texts"),
        ('{"terms": [{"text": "a", "weight": 1' + "0" * 400 + "}]}", "weight: expected a finite number"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_an_odd_line_of_queries_is_refused_by_its_number(tmp_path, line, said):
    path = tmp_path / "queries.jsonl"
    path.write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"line 2: .*" + said):
        read_requests(path)


def test_a_line_of_queries_ends_at_a_newline_alone_also_from_stdin(tmp_path, monkeypatch):
    line = '{"text": "a\u2028dog", "id": null}\n'
    (tmp_path / "queries.jsonl").write_text(line, encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line.encode("utf-8"))))
    found = [read_requests(tmp_path / "queries.jsonl"), read_requests("-")]
    assert [(each[0].id, each[0].terms[0].value) for each in found] == [("1", "a\u2028dog")] * 2


def test_many_queries_read_once_what_is_installed(tmp_path, monkeypatch):
    plugin = SimpleNamespace(name="smell", load=lambda: "a thing")
    asked = []
    monkeypatch.setattr(
        "importlib.metadata.entry_points",
        lambda group, name="smell": asked.append(group) or [plugin][: name == "smell"],
    )
    registry = Registry("sense", {"sight": "nowhere"}, "toy.senses")
    assert "sight" in registry and not asked, "what comes along needs no look at what is installed"
    assert "smell" in registry and "touch" not in registry and ["sight"] not in registry
    assert registry.names() == ("sight", "smell") and asked == ["toy.senses"]
    assert registry["smell"] == "a thing"
    monkeypatch.setattr("bindsearch.query.MODALITIES", registry)
    lines = [f'{{"smell": "http://{at}"}}\n{{"terms": [{{"item": "{at}"}}]}}' for at in range(50)]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines))
    before = len(asked)
    requests = read_requests(tmp_path / "queries.jsonl")
    assert len(requests) == 100
    assert len(asked) <= before + 1, "the names of makers, at most"
