import gzip
import logging
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from preprocess_recipes import read_json

from bindsearch.errors import DecodeError, InputError, WeightsError
from bindsearch.modalities import bpe
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source

TEXT = MODALITIES["text"]
REFERENCE, DEFAULT = TEXT.config("reference"), TEXT.config()
GOLDEN = read_json("tokenizer.json")
LANGUAGE = ["A dog barks on the beach.", "two red cars at night, in the rain", "un oiseau chante dans la forêt"]
MAP = bpe.closed_id_map(LANGUAGE)


def ids(text, config=DEFAULT):
    return TEXT.preprocess(TEXT.decode(TEXT.source_of(text), config), config)[0].tolist()


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: repr(row["text"][:24]))
def test_reference_ids_are_exact(row):
    assert ids(row["text"], REFERENCE) == row["ids"]
    assert ids(row["text"], TEXT.config("reference-2024")) == row.get("legacy_ids", row["ids"])
    assert len(bpe.load_tokenizer().encode(row["text"], parse_specials=True)) == row["n_bpe"]
    assert int(np.argmax(row["ids"])) == row["eos_index"]


def test_reference_facts():
    facts = GOLDEN["extra"]
    tokenizer = bpe.load_tokenizer()
    assert (tokenizer.start, tokenizer.end, tokenizer.size) == (facts["sot"], facts["eot"], facts["vocab_size"])
    assert facts["bpe_file_sha256"] == bpe.MERGES_SHA256
    short = facts["context_length_16"]
    assert ids(short["text"], TEXT.config("reference", context_length=16)) == short["ids"]
    for row in facts["decode"]:
        assert tokenizer.decode(row["ids"]) == row["text"]


def test_default_differs_from_the_reference_only_on_literal_marks():
    for row in GOLDEN["rows"]:
        if "<|" not in row["text"] and row["text"].strip():
            assert ids(row["text"]) == row["ids"]


@pytest.mark.parametrize("text", ["a dog <|endoftext|> and a bird", "<|ENDOFTEXT|>", "<|startoftext|> a"])
def test_literal_marks_are_neutralised(text):
    row = ids(text)
    assert row.count(bpe.END_ID) == 1
    assert row.count(bpe.START_ID) == 1
    assert row.index(bpe.END_ID) > 3
    assert ids(text, REFERENCE) != row


def test_truncation_keeps_the_end_and_says_so(caplog):
    text = "dog " * 100
    with caplog.at_level(logging.WARNING):
        media = TEXT.decode(TEXT.source_of(text), DEFAULT)
    assert "more than 75 tokens" in caplog.text
    assert "truncated" in media.notes
    row = TEXT.preprocess(media, DEFAULT)[0]
    assert row[-1] == bpe.END_ID
    assert (row[1:-1] == row[1]).all()
    fits = TEXT.decode(TEXT.source_of("dog " * 75), DEFAULT)
    assert not fits.notes


@settings(deadline=None, derandomize=True)
@given(st.text(st.characters(max_codepoint=0x7F), max_size=60))
@example("it's 2 DOGS & a cat")
@example("a\r\nb\x0cc\x1f")
def test_the_quick_path_of_plain_text_gives_what_the_libraries_give(text):
    import html

    import ftfy
    import regex

    slow = regex.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text))).strip()).strip().lower()
    assert bpe.clean(text) == slow
    words = regex.findall(bpe._WORDS, slow, regex.IGNORECASE)
    assert list(bpe.split_words(slow, False)) == words


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=40))
def test_any_text_spells_back(text):
    tokenizer = bpe.load_tokenizer()
    cleaned = bpe.clean(text).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == cleaned.replace(" ", "")


def test_a_reduced_map_splits_kept_words_as_clip_does():
    config = TEXT.config(id_map=list(MAP))
    assert config.vocabulary_size == len(MAP) < 700
    for text in [*LANGUAGE, "a red beach", "night dog"]:
        full = ids(text)
        assert [MAP[number] for number in ids(text, config)[: full.index(bpe.END_ID) + 1]] == full[
            : full.index(bpe.END_ID) + 1
        ]


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=30))
def test_a_reduced_map_spells_any_text(text):
    reduced, full = bpe.load_tokenizer(MAP), bpe.load_tokenizer()
    assert reduced.decode(reduced.encode(text)) == full.decode(full.encode(text))
    assert len(reduced.encode(text)) >= len(full.encode(text))


def test_the_end_has_the_highest_id_in_every_map():
    config = TEXT.config(id_map=list(MAP))
    row = np.array(ids("xylophone quizzes", config))
    assert row.argmax() == np.flatnonzero(row)[-1]
    assert row.max() == len(MAP) - 1


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (MAP[:-1], "49407 last"),
        (MAP[1:], "0-511 first"),
        ((*MAP[:512], *reversed(MAP[512:-2]), *MAP[-2:]), "rising order"),
        ((*range(512), 1929, bpe.START_ID, bpe.END_ID), "not its part"),
    ],
)
def test_maps_that_cannot_work_are_refused(broken, words):
    with pytest.raises(InputError, match=words):
        bpe.load_tokenizer(tuple(broken))


def test_tokenizer_ids_tell_rules_apart():
    configs = [DEFAULT, REFERENCE, TEXT.config("reference-2024"), TEXT.config(id_map=list(MAP))]
    assert len({config.tokenizer_id for config in configs}) == 4
    assert TEXT.config(context_length=32).tokenizer_id == DEFAULT.tokenizer_id


def test_a_damaged_merges_file_is_noticed(monkeypatch, tmp_path):
    (tmp_path / bpe.MERGES_FILE).write_bytes(gzip.compress(b"#\na b\n"))
    monkeypatch.setattr(bpe.importlib.resources, "files", lambda package: tmp_path)
    bpe._merge_lines.cache_clear()
    try:
        with pytest.raises(WeightsError, match=r"expected SHA-256 924691ac.*pip install"):
            bpe._merge_lines()
    finally:
        bpe._merge_lines.cache_clear()


def test_files_in_every_marked_encoding(tmp_path):
    for coding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        path = tmp_path / f"{coding}.txt"
        path.write_bytes("ein Café".encode(coding))
        assert TEXT.decode(Source.of(path), DEFAULT).array == "ein Café"
    (tmp_path / "latin.txt").write_bytes("Café".encode("latin-1"))
    with pytest.raises(DecodeError, match=r"not utf-8 \(byte 0xe9 at 3\).*iconv"):
        TEXT.decode(Source.of(tmp_path / "latin.txt"), DEFAULT)


def test_a_string_is_the_text_and_a_path_is_a_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a bird")
    assert TEXT.decode(TEXT.source_of(str(path)), DEFAULT).array == str(path)
    assert TEXT.decode(TEXT.source_of(path), DEFAULT).array == "a bird"


def test_empty_texts():
    with pytest.raises(DecodeError, match="holds no text"):
        TEXT.decode(TEXT.source_of("  \n"), DEFAULT)
    assert ids("", REFERENCE)[:3] == [bpe.START_ID, bpe.END_ID, 0]


@pytest.mark.parametrize("text", ["\xa0", "\u3000\u2003", "&nbsp;", " &#160; \n", "\ufeff"])
def test_a_text_without_any_token_is_empty(text):
    with pytest.raises(DecodeError, match="holds no text"):
        TEXT.decode(TEXT.source_of(text), DEFAULT)


@pytest.mark.parametrize("text", ["&amp;", "é", "犬", "!", "🐕", "&nbsp;a"])
def test_a_text_of_one_token_is_not(text):
    assert ids(text, DEFAULT)[2] != 0


_COLD = """
import sys, time
from bindsearch.registry import MODALITIES
text = MODALITIES["text"]
config = text.config(id_map=eval(sys.argv[1]))
import numpy
before = time.process_time()
text.preprocess(text.decode(text.source_of("a dog, on the beach"), config), config)
print(time.process_time() - before)
print(sorted({"ftfy", "regex", "torch", "PIL", "html"} & set(sys.modules)))
"""


def test_a_plain_query_starts_quickly_and_imports_nothing_heavy():
    costs = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", _COLD, repr(MAP)], capture_output=True, text=True, check=True)
        seconds, modules = done.stdout.splitlines()
        assert modules == "[]"
        costs.append(float(seconds))
    assert min(costs) < 0.1  # 0.03 s on a quiet machine; the limit allows for a loaded one
