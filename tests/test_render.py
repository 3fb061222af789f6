"""What people look at: table, JSON, page, sheet, notebook; and what becomes of files that are gone or hostile."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import sys
import tarfile
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from fake_store import FakeStore
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from bindsearch import carriers, drawing, preview, render, sheet
from bindsearch.cache import VisualCache
from bindsearch.errors import InputError
from bindsearch.index.build import build_index
from bindsearch.listing import Listing
from bindsearch.query import Embedding
from bindsearch.registry import MODALITIES
from bindsearch.search import Answers, open_index
from bindsearch.sheet import Row, Tile, contact_sheet
from bindsearch.sources import Source
from bindsearch.types import Hit, Media, item_id

NASTY = "<script>alert('x')</script> & \"quoted\" \x1b[31mred\x07 ‮ 日本語"
KINDS = ("image", "audio", "video", "text", "depth", "thermal", "imu")


def write_media(folder):
    """One real file a modality, written by other libraries; gives modality -> path."""
    import av

    rng = np.random.default_rng(0)
    paths = {kind: folder / name for kind, name in zip(KINDS, (
        "photo.png", "tone.wav", "move.mp4", "words.txt", "room.depth.png", "night.thermal.png", "walk.imu.csv",
    ), strict=True)}  # fmt: skip
    Image.fromarray(rng.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(paths["image"])
    seconds = np.arange(32000) / 16000
    soundfile.write(paths["audio"], (0.5 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32), 16000)
    with av.open(str(paths["video"]), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for level in range(0, 200, 10):
            frame = np.full((64, 96, 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    paths["text"].write_text(f"A dog & a cat. {NASTY}", encoding="utf-8")
    metres = np.tile(np.linspace(1000, 5000, 80), (60, 1)).astype(np.uint16)
    metres[:5] = 0
    Image.fromarray(metres).save(paths["depth"])
    Image.fromarray(np.tile(np.linspace(100, 60000, 80), (60, 1)).astype(np.uint16)).save(paths["thermal"])
    rows = ["t,ax,ay,az,gx,gy,gz"]
    rows += [f"{i / 100},{np.sin(i / 9)},0.5,9.8,{np.cos(i / 5)},0,0.1" for i in range(500)]
    paths["imu"].write_text("\n".join(rows))
    return paths


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Seven items with real files, and one whose file is gone, with a hostile key and caption."""
    folder = tmp_path_factory.mktemp("render")
    paths = write_media(folder)
    store = FakeStore(n=8, dim=8)
    keys = [path.name for path in paths.values()] + [f"gone/{NASTY}.jpg"]
    store.ids = np.array([item_id(key) for key in keys], dtype=np.int64)
    columns = {
        "id": store.ids,
        "key": keys,
        "modality": [*KINDS, "image"],
        "source": [*map(str, paths.values()), str(folder / "gone.jpg")],
        "caption": [None] * 7 + [NASTY],
        "start_s": pa.array([None] * 8, pa.float64()),
        "end_s": pa.array([None] * 8, pa.float64()),
        "size": [path.stat().st_size for path in paths.values()] + [1],
        "mtime": [path.stat().st_mtime for path in paths.values()] + [1.0],
        "sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths.values()] + ["00"],
    }
    for name, values in columns.items():
        if name in store.table.column_names:
            store.table = store.table.drop_columns(name)
        store.table = store.table.append_column(name, [pa.array(values)])
    store.manifest.tower_ids = {kind: f"{kind}:aa@{store.manifest.space_id}" for kind in KINDS}
    store.manifest.preset_ids = dict.fromkeys(KINDS, "default:12345678")
    build_index(store, folder / "index")
    found = open_index(folder / "index")
    found.paths = paths
    return found


@pytest.fixture(scope="module")
def hits(index):
    """Every kind of term: a text, an item, a file, a vector; one of them taken away."""
    rng = np.random.default_rng(0)
    query = Embedding.of_vector(rng.standard_normal(8).astype(np.float32), "v.npy")
    query = query + 0.5 * index.item("tone.wav") - index.item("words.txt")
    for modality, label in (("text", NASTY), ("image", str(index.paths["image"]))):
        bare = Embedding.of_vector(rng.standard_normal(8).astype(np.float32), label, modality=modality)
        query = query + 2 * Embedding((replace(bare.terms[0], source=label),), bare.identity)
    return index.search(query, k=10)


class Page(HTMLParser):
    """Collects tags with their attributes, and checks that they are closed in order."""

    VOID = frozenset({"meta", "img", "line", "path", "input", "br"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def data_of(uri):
    kind, _, data = uri.partition(";base64,")
    return kind.removeprefix("data:"), base64.b64decode(data)


def test_the_name_of_a_query_steers_no_terminal_and_any_can_be_written(index, tmp_path):
    found = index.search(index.item("tone.wav"), k=2)
    found.query_id = "a\x1b[31m \ud800\u202e"
    answers = Answers((found,), many=True)
    shown = render.to_table(answers)
    assert shown.startswith(r"query a\x1b[31m \ud800\u202e: ")
    shown.encode()
    assert r"query a\x1b[31m \ud800" in render.write_html(answers, tmp_path / "page.html").read_text(encoding="utf-8")
    assert render.write_sheet(answers, tmp_path / "sheet.png").exists()
    render.to_json(answers).encode()


def test_an_item_that_the_index_does_not_hold_is_shown_as_any_term(index, tmp_path):
    store = FakeStore(n=6, dim=8, seed=3, prefix="other")
    build_index(store, tmp_path / "other")
    other = open_index(tmp_path / "other")
    query = Embedding(other.item("other/0001").terms, index.item("tone.wav").identity)
    for found in (index.search(query, k=3, exclude_self=True), index.search_range(query, -1.0, exclude_self=True)):
        assert len(found) >= 3
        assert "other/0001" in found._repr_html_()
        assert "other/0001" in render.write_html(found, tmp_path / "page.html").read_text(encoding="utf-8")
        assert render.write_sheet(found, tmp_path / "sheet.png").exists()
    gone = other.item("other/0002")
    other.remove(["other/0002"])
    found = other.search_range(gone, -1.0, exclude_self=True)
    assert len(found) == 5 and "other/0002" in found._repr_html_()


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_shows_every_modality(hits):
    page = Page(render.page_html(hits))
    assert len([a for a in page.all("li") if a.get("class") == "hit"]) == 8
    media = [a["class"] for a in page.all("div") if a.get("class", "").startswith("media")]
    assert sorted(media[5:]) == sorted(f"media {kind}" for kind in (*KINDS, "image"))
    pictures = [data_of(a["src"]) for a in page.all("img")]
    # photo, tone, depth, thermal among the hits; tone and photo among the terms. The video's poster is its own
    assert len(pictures) == 6
    for kind, data in [*pictures, data_of(page.all("video")[0]["poster"])]:
        assert kind == "image/jpeg"
        assert max(Image.open(io.BytesIO(data)).size) <= preview.SIZE_PX
    assert data_of(page.all("video")[0]["src"])[1][4:8] == b"ftyp"
    lines = [a for a in page.all("path") if a["class"].startswith("line")]
    assert len(lines) == 6
    waves = [a for a in page.all("path") if a["class"] == "filled"]
    assert len(waves) == 2


def test_the_page_plays_the_sound(hits):
    kind, data = data_of(Page(render.page_html(hits)).all("audio")[0]["src"])
    assert kind == "audio/mpeg"
    wave, rate = soundfile.read(io.BytesIO(data))
    assert len(wave) / rate == pytest.approx(2, abs=0.1)
    spectrum = np.abs(np.fft.rfft(wave))
    assert np.fft.rfftfreq(len(wave), 1 / rate)[spectrum.argmax()] == pytest.approx(440, abs=1)


def test_the_page_reaches_for_nothing_outside_itself(hits):
    text = render.page_html(hits)
    page = Page(text)
    for _, attrs in page.tags:
        for name in ("src", "href", "poster", "srcset", "action", "data"):
            assert attrs.get(name, "data:").startswith("data:")
        assert not [name for name in attrs if name.startswith("on")]
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "form"})
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in page.all("meta")[3]["content"]


def test_what_comes_from_files_is_escaped(hits):
    text = render.page_html(hits)
    assert "<script>" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp;" in text
    shown = " ".join(Page(text).text)
    assert "<script>alert('x')</script>" in shown
    assert shown.count("日本語") >= 3  # the term, the caption, the words of a file


def test_a_file_that_is_gone_is_said_on_its_tile(hits):
    page = Page(render.page_html(hits))
    assert len([a for a in page.all("p") if a.get("class") == "trouble"]) == 2  # the vector among the terms is one
    assert any("no such file" in text for text in page.text)


def test_the_page_says_what_was_asked(hits):
    page = Page(render.page_html(hits))
    assert len([a for a in page.all("figure") if a.get("class") == "term"]) == 5
    shown = [text.strip() for text in page.text if text.strip()]
    assert [text for text in shown if text in ("+", "−")] == ["+", "−", "+", "+"]
    assert {"0.5 ×", "2 ×", "tone.wav", "v.npy", "photo.png"} <= set(shown)


def test_the_page_explains_where_it_was_asked_to(hits):
    text = render.page_html(Answers((hits,), explain=True))
    values = [float(value) for value in re.findall(r'<td class="value">([+-]\d\.\d{3})</td>', text)]
    assert len(values) == 8 * 5
    for number, hit in enumerate(hits):
        assert sum(values[number * 5 : number * 5 + 5]) == pytest.approx(hit.score, abs=3e-3)
    assert not [a for a in Page(render.page_html(hits)).all("table") if a.get("class") == "parts"]


def test_a_full_page_leaves_out_what_comes_later_and_says_so(hits):
    whole = render.page_html(hits)
    small = render.page_html(hits, limit_bytes=20_000)
    assert sum(map(len, re.findall(r"data:[a-z]+/[a-z0-9]+;base64,[^\"]*", small))) <= 20_000
    assert len(small) < 20_000 * 4 / 3 + 40_000 < len(whole)
    assert "left out: the page is full" in small
    assert Page(small).all("li")
    assert "left out" not in whole


def test_what_a_full_page_leaves_out_is_named():
    picture = Image.new("RGB", (32, 32))
    sound = preview.Preview("a", "audio", picture, clip=(bytes(3000), "audio/mpeg"))
    film = preview.Preview("v", "video", picture, clip=(bytes(300), "video/mp4"))
    whole = render.page_view(sound, render.PageBudget(1 << 20))
    picture_bytes = len(whole["picture"])
    assert (len(whole["sound"]), whole["trouble"]) == (4000 + len("data:audio/mpeg;base64,"), "")
    silent = render.page_view(sound, render.PageBudget(picture_bytes + 3500))  # enough but for the base64
    assert (silent["sound"], silent["trouble"]) == (None, "sound left out: the page is full")
    assert silent["picture"]
    assert render.page_view(sound, render.PageBudget(0))["trouble"] == "picture and sound left out: the page is full"
    bare = render.page_view(film, render.PageBudget(picture_bytes - 1))
    assert (bare["picture"], bare["trouble"]) == (None, "picture left out: the page is full")
    template = render.page_templates().get_template("hits.html").make_module({"answers": [], "css": ""})
    (player,) = Page(str(template.media(bare))).all("video")
    assert "poster" not in player
    assert player["src"] == bare["video"]


def test_many_queries_stand_on_one_page(index, hits, tmp_path):
    other = index.search(index.item("photo.png"), k=2)
    hits.query_id, other.query_id = "a", "b"
    path = render.write_html(Answers((hits, other), many=True), tmp_path / "new" / "page.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.all("section")) == 2
    assert {"query a", "query b"} <= set(page.text)


def test_no_answer_is_said(index):
    none = index.search(index.item("photo.png"), where="size > 1000000")
    assert "No item passes." in render.page_html(none)
    assert render.to_table(none) == "no item passes"
    assert json.loads(render.to_json(none)) == []


def test_a_notebook_shows_a_fragment(hits):
    text = hits._repr_html_()
    page = Page(text)
    assert page.tags[0] == ("div", {"class": "bindsearch"})
    assert not page.all("html")
    assert len(text) < render.NOTEBOOK_BYTES * 4 / 3 + 100_000
    assert len([a for a in page.all("li") if a.get("class") == "hit"]) == 8


def test_a_bare_vector_is_shown_without_terms(index):
    found = index.search(np.ones((1, 8), dtype=np.float32), k=2)
    page = Page(render.page_html(found))
    assert not page.all("figure")
    assert len([a for a in page.all("li") if a.get("class") == "hit"]) == 2


# ---- JSON and the table ----------------------------------------------------------------------------------------------


def test_json_is_a_list_of_hits(index, hits):
    rows = json.loads(render.to_json(hits))
    assert [row["key"] for row in rows] == [hit.key for hit in hits]
    assert "contributions" not in rows[0]
    explained = json.loads(render.to_json(Answers((hits,), explain=True)))
    for row in explained:
        assert sum(row["contributions"].values()) == pytest.approx(row["score"], abs=1e-6)
    other = index.search(index.item("photo.png"), k=2)
    other.query_id = "x"
    many = json.loads(render.to_json(Answers((other,), many=True)))
    assert [(one["query"], len(one["hits"])) for one in many] == [("x", 2)]


def test_the_table_is_plain_where_stdout_is_no_terminal(hits):
    lines = render.to_table(hits).split("\n")
    assert len(lines) == 8
    rows = json.loads(render.to_json(hits))
    for line, row in zip(lines, rows, strict=True):
        rank, score, modality = line.split()[:3]
        assert (int(rank), modality) == (row["rank"], row["modality"])
        assert float(score) == pytest.approx(row["score"], abs=5e-5)
    assert not [char for char in "".join(lines) if unicodedata.category(char) in ("Cc", "Cf", "Cs")]
    assert any(r"\x1b[31mred\x07 \u202e" in line for line in lines)
    explained = render.to_table(hits, explain=True).split("\n")
    assert len(explained) == 16
    assert "−text words.txt" in explained[1]


def test_the_table_fits_the_terminal(hits, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for width in (60, 80, 140):
        for line in render.to_table(hits, explain=True, width=width).split("\n"):
            plain = re.sub(r"\x1b\[\d*m", "", line)
            assert render.cells(plain) <= width
    assert "\x1b[1m" in render.to_table(hits)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in render.to_table(hits)


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("日本語", 6), ("e\u0301", 1), ("a日b", 4), ("", 0), ("한글", 4), ("ｆ", 2)]
)
def test_cells_count_what_a_terminal_shows(text, width):
    assert render.cells(text) == width


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40), width=st.integers(0, 30))
def test_cut_never_exceeds_its_width(text, width):
    short = render.cut(text, width)
    assert render.cells(short) <= max(width, 0)
    assert short == text or short == "" or short.endswith("…")
    assert render.cells(render.pad(short, width)) == width
    assert not [char for char in render.visible(text) if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    render.visible(text).encode("utf-8")


# ---- the contact sheet -----------------------------------------------------------------------------------------------


def test_the_sheet_has_a_tile_a_term_and_a_hit(hits, tmp_path):
    path = render.write_sheet(hits, tmp_path / "new" / "sheet.png")
    sheet = Image.open(path)
    assert sheet.format == "PNG"
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
    # frames of terms are blue, 3 pixels wide: five in the first row of tiles
    row = pixels[150]
    blue = (np.abs(row - (0x2F, 0x6F, 0xDE)) < 8).all(axis=1)
    assert np.count_nonzero(np.diff(np.flatnonzero(blue)) > 1) + 1 == 10
    # below: eight cards on two rows; the last two places stay paper
    paper = (0xF6, 0xF6, 0xF4)
    tall = 165 + 46 + 14
    for number in range(10):
        x, y = 24 + number % 5 * 234 + 110, 24 + 34 + tall * (1 + number // 5) + 205
        assert (tuple(pixels[y, x]) != paper) == (number < 8), number


def test_many_queries_stand_below_each_other_and_an_endless_sheet_is_cut():
    shown = preview.Preview("x", "text", words="a dog " * 100)
    tiles = [Tile(shown, "1   0.5", "k" * 500)] * 7
    one = contact_sheet([Row("a", tiles[:1], tiles)])
    three = contact_sheet([Row("a", tiles[:1], tiles)] * 3)
    assert three.width == one.width
    assert three.height - one.height == 2 * (34 + 3 * 225 + 14)
    assert contact_sheet([Row("a", [], tiles[:1])] * 200).height <= 30_100
    assert contact_sheet([]).height > 10
    assert contact_sheet([Row("a", tiles[:6], tiles)]).height - one.height == 225  # a sixth term begins a new line


def test_a_sheet_of_too_many_answers_shows_the_best_that_fit(monkeypatch):
    shown, feet = preview.Preview("x", "text", words="a dog"), []
    monkeypatch.setattr(sheet, "fit", lambda text, *_args, **_more: feet.append(text) or text)
    tiles = [Tile(shown, "1   0.5", "k")] * 700

    def foot_of(rows):
        feet.clear()
        picture = contact_sheet(rows, "facts")
        return picture.height, feet[-1]

    height, foot = foot_of([Row("a", tiles[:1], tiles)])
    assert (29_700 < height <= 30_100, foot) == (True, "facts · 40 more answers are left out")  # 132 lines of 5
    two = Row("b", tiles[:1], tiles)
    assert foot_of([two, two, two])[1] == "facts · 40 more answers are left out · 2 more queries are left out"
    few = Row("c", tiles[:1], tiles[:7])
    height, foot = foot_of([few] * 50)  # 41 fit with all their answers, the next with its terms alone: left out
    assert (height <= 30_100, foot) == (True, "facts · 9 more queries are left out")


def test_only_what_fits_on_a_sheet_is_read(hits, tmp_path, monkeypatch):
    shown = []
    plain = preview.preview_hits
    monkeypatch.setattr(
        preview, "preview_hits", lambda some, *more: shown.append(len(list(some))) or plain(some, *more)
    )
    monkeypatch.setattr(sheet, "_LARGEST_PX", 34 + 14 + 2 * 225)  # a line of terms and a line of answers
    feet = []
    monkeypatch.setattr(sheet, "fit", lambda text, *_args, **_more: feet.append(text) or text)
    render.write_sheet(Answers((hits, hits)), tmp_path / "a.png")
    assert shown == [1, 1, 5]  # two items among the terms, then the answers of one line
    assert feet[-1].endswith(" · 3 more answers are left out · 1 more queries are left out")


def test_a_sheet_is_what_its_ending_says(hits, tmp_path):
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG")):
        with Image.open(render.write_sheet(hits, tmp_path / name)) as picture:
            assert picture.format == kind
    for name in ("a.webp", "a"):
        with pytest.raises(InputError, match=r"expected a picture that ends in .png, .* Name it .*a\.png"):
            render.write_sheet(hits, tmp_path / name)


def drawn_rows(words):
    """Count the lines of a text that a tile of 180 x 160 pixels shows."""
    picture = Image.new("L", (180, 160), 255)
    drawing.draw_words(ImageDraw.Draw(picture), words, (0, 0, 180, 160), "#000000", 15)
    dark = (np.asarray(picture) < 128).any(axis=1)
    return np.count_nonzero(np.diff(np.flatnonzero(dark)) > 2) + 1


def test_a_text_without_blanks_fills_its_tile():
    font = drawing.font_of(15)
    word = "HE" * 60
    pieces = drawing._broken(word, font, 160)
    assert "".join(pieces) == word
    assert len(pieces) > 4
    assert all(font.getlength(piece) <= 160 for piece in pieces)
    assert drawn_rows("HE" * 300) == drawn_rows("HE HEH " * 90) == 7
    assert drawn_rows("HE " + "HE" * 20) >= 3
    assert drawing._broken("", font, 160) == [""]


def test_words_are_not_cut_within_what_belongs_together():
    family, silben = "\U0001f468\u200d\U0001f469\u200d\U0001f467", "sil\u00adben"
    for word in ("\u0645\u06cc\u200c\u0631\u0648\u0645", family, silben):
        assert drawing._printable(word).split() == [word]
    assert drawing._printable("a\u202e\nb").split() == ["a", "b"]
    font = drawing.font_of(15)
    for cluster in ("\u0915\u093f", "e\u0301", family):  # a letter and its vowel sign, an accent, a family
        for room in range(60, 110, 7):
            pieces = drawing._broken(cluster * 40, font, room)
            assert len(pieces) > 2
            assert all(piece == cluster * (len(piece) // len(cluster)) for piece in pieces)


def test_wide_characters_take_a_font_that_has_them(monkeypatch):
    wide = ImageFont.load_default(15)
    monkeypatch.setattr(drawing, "_wide_fonts", lambda size: (wide,))
    assert drawing._draws(drawing.font_of(15), "a")
    assert not drawing._draws(drawing.font_of(15), chr(0x10FFFC))
    monkeypatch.setattr(drawing, "_draws", lambda font, char: font is wide)
    assert drawing.font_for("日本 a", 15) is wide
    assert drawing.font_for("a dog", 15) is drawing.font_of(15, False)


# ---- previews --------------------------------------------------------------------------------------------------------


def show(kind, array, rate_hz=None, **facts):
    unit = facts.pop("unit", "")
    return preview._SHOW[kind](Media(kind, array, unit, rate_hz, **facts), Source.literal("x"), "x", False)


def test_near_and_far_have_their_colours_and_holes_are_grey():
    metres = np.tile(np.linspace(1, 5, 400, dtype=np.float32), (200, 1))
    metres[:50] = 0
    shown = show("depth", metres, unit="m")
    pixels = np.asarray(shown.picture).astype(int)
    assert shown.note == "1.1–4.9 m"
    assert (np.abs(pixels[10] - preview._NOTHING) < 4).all()
    lightness = pixels[100].sum(axis=1)
    assert lightness[5] > lightness[160] > lightness[-5]  # near is light
    inverse = show("depth", metres, unit="disparity")
    assert np.asarray(inverse.picture).astype(int)[100].sum(axis=1)[-5] > 600
    hot = np.asarray(show("thermal", metres).picture).astype(int)[100].sum(axis=1)
    assert hot[-5] > hot[160] > hot[5]


def test_a_tone_lies_at_its_pitch():
    seconds = np.arange(48000) / 16000
    rows = []
    for pitch_hz in (200, 1000, 5000):
        wave = np.sin(2 * np.pi * pitch_hz * seconds).astype(np.float32)[None]
        picture = np.asarray(show("audio", wave, 16000.0).picture).astype(int).sum(axis=2)
        rows.append(picture.mean(axis=1).argmax())
        expected = np.log(pitch_hz / 60) / np.log(7840 / 60)
        assert 1 - rows[-1] / 160 == pytest.approx(expected, abs=0.03)
    assert rows[0] > rows[1] > rows[2]


def test_silence_is_dark_and_soft_sounds_are_not():
    silent = np.asarray(show("audio", np.zeros((1, 16000), dtype=np.float32), 16000.0).picture).astype(int)
    assert silent.sum(axis=2).max() < 60
    soft = 0.001 * np.sin(np.arange(16000) / 3).astype(np.float32)[None]
    loud = np.asarray(show("audio", soft * 900, 16000.0).picture)
    assert np.abs(np.asarray(show("audio", soft, 16000.0).picture).astype(int) - loud).max() <= 2


@pytest.mark.parametrize("samples", [1, 2, 63, 64, 240, 241, 5000])
def test_short_sounds_and_motions_are_shown(samples):
    wave = np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32) * 0.1
    panel = show("audio", wave, 16000.0).panels[0]
    assert panel.lines.shape == (2, min(samples, 240))
    assert (panel.lines[0] <= panel.lines[1]).all()
    assert np.abs(panel.lines).max() == pytest.approx(1)
    motion = np.random.default_rng(0).standard_normal((6, samples)).astype(np.float32)
    panels = show("imu", motion, 200.0).panels
    assert [one.lines.shape for one in panels] == [(3, min(samples, 240))] * 2
    silent = show("audio", np.zeros((1, samples), dtype=np.float32), 16000.0)
    assert not silent.panels[0].lines.any()


def test_every_example_has_a_preview():
    for kind in MODALITIES.names():
        if kind != "text":
            media = MODALITIES[kind].example(3)
            shown = preview._SHOW[kind](media, Source.literal("x"), "x", False)
            assert shown.picture is not None or shown.panels
            if shown.picture is not None:
                assert max(shown.picture.size) <= preview.SIZE_PX


@pytest.mark.parametrize("shape", [(1, 1), (2, 5000), (5000, 2), (3000, 2000), (10, 10)])
def test_thumbnails_have_a_size_one_can_see(shape):
    picture = preview._thumbnail(np.zeros((*shape, 3), dtype=np.uint8))
    assert preview.SIZE_PX // 2 <= max(picture.size) <= preview.SIZE_PX
    assert max(picture.size) <= 4.2 * min(picture.size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"", b"\x00\xff" * 50, b"GIF89a"])
def test_broken_files_become_tiles_that_say_so(tmp_path, kind, data):
    path = tmp_path / "x.bin"
    path.write_bytes(data)
    shown = preview.preview(Source.of(path), kind, None, "default", "x")
    assert shown.trouble or kind == "text"
    assert shown.picture is None
    gone = preview.preview(Source.of(tmp_path / "nothing"), kind, None, "default", "x")
    assert gone.trouble == "no such file"


def test_a_file_that_has_changed_is_not_shown_as_what_was_scored(hits):
    hit = next(each for each in hits if each.key == "photo.png")
    for changes, changed in (
        ({}, False),
        ({"size": 5}, True),
        ({"mtime": 1.0}, False),  # touched: the bytes are the same
        ({"mtime": 1.0, "sha256": "00"}, True),
    ):
        shown = preview.preview_hit(replace(hit, columns={**hit.columns, **changes}), {})
        assert ("has changed since it was embedded" in shown.trouble) == changed == (shown.picture is None)


def test_a_fused_item_that_was_touched_has_not_changed(hits):
    hit = next(each for each in hits if each.key == "photo.png")
    fused = {**hit.columns, "mtime": 1.0, "sha256": "of all parts", "attributes": {"fuse": "image*0.8 + audio*0.2"}}
    assert preview.preview_hit(replace(hit, columns=fused), {}).picture is not None
    assert "has changed" in preview.preview_hit(replace(hit, columns={**fused, "size": 5}), {}).trouble


def png(seed):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG", compress_level=0)  # of one size, whatever it shows
    return stream.getvalue()


def pack(path, seed):
    """A tar of a picture under names that are found in tars: a plain one, one that is no UTF-8, and links."""
    links = {"soft.png": tarfile.SYMTYPE, "hard.png": tarfile.LNKTYPE}
    with tarfile.open(path, "w") as tar:
        for name in ("plain.png", os.fsdecode(b"caf\xe9.png")):
            header = tarfile.TarInfo(name)
            header.size = len(png(seed))
            tar.addfile(header, io.BytesIO(png(seed)))
        for name, target in (("soft.png", "plain.png"), ("hard.png", "soft.png")):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = links[name], target
            tar.addfile(header)


def hits_of(path):
    """Hits on what was listed, with the columns that an item table has."""
    found = []
    for item in Listing([path]):
        columns = {**item.columns(), "sha256": Source.of_item(item).sha256()}
        found.append(Hit(1, 0.5, item.id, item.key, item.modality, item.source, item.span, columns))
    return found


def test_members_of_tars_are_shown_as_they_were_embedded(tmp_path):
    path = tmp_path / "odd.tar"
    pack(path, seed=1)
    found = hits_of(path)
    assert [hit.columns["member"] for hit in found] == ["plain.png", "caf\\udce9.png", "soft.png", "hard.png"]
    assert [preview.preview_hit(hit, {}).trouble for hit in found] == [""] * 4
    os.utime(path, (1, 1))  # touched: the bytes are the same
    assert [view.trouble for view in preview.preview_hits(found, {})] == [""] * 4
    pack(path, seed=2)
    views = list(preview.preview_hits(found, {}))
    assert all("has changed since it was embedded" in view.trouble and view.picture is None for view in views)
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("other.png"))
    assert all("no such member" in view.trouble for view in preview.preview_hits(found, {}))
    path.unlink()
    assert {view.trouble for view in preview.preview_hits(found, {})} == {"no such file"}


def test_a_tar_is_looked_through_once_for_all_its_hits(tmp_path, monkeypatch):
    from bindsearch import members

    pack(tmp_path / "a.tar", seed=1)
    found = [hit for hit in hits_of(tmp_path / "a.tar")[:2] for _ in range(20)]
    opened = []
    plain = members.find_members
    monkeypatch.setattr(members, "find_members", lambda file, names: opened.append(names) or plain(file, names))
    assert all(view.picture is not None for view in preview.preview_hits(found, {}))
    assert [sorted(names) for names in opened] == [["caf\\udce9.png", "plain.png"]]


def sheet_rows(monkeypatch):
    """Give a list that takes the rows of each sheet that is drawn of an answer."""
    drawn = []
    monkeypatch.setattr(carriers, "contact_sheet", lambda rows, foot: drawn.extend(rows) or contact_sheet([], foot))
    return drawn


def test_cached_pictures_in_tars_are_shown(tmp_path, monkeypatch):
    pack(tmp_path / "a.tar", seed=1)
    rows = [{"id": hit.id, "key": hit.key, "source": hit.source, **hit.columns} for hit in hits_of(tmp_path / "a.tar")]
    store = FakeStore(n=len(rows), dim=8)
    store.ids = np.array([row["id"] for row in rows], dtype=np.int64)
    store.table = pa.Table.from_pylist(rows)
    build_index(store, tmp_path / "cache")
    drawn = sheet_rows(monkeypatch)
    for change, trouble in ((lambda: None, ""), (lambda: pack(tmp_path / "a.tar", seed=2), "has changed since")):
        change()
        near = VisualCache.open(tmp_path / "cache").explain(np.ones((1, 8), np.float32), 4)[0]["neighbours"]
        carriers.save_carriers(tmp_path / "a.png", "a question", near)
        assert [tile.label for tile in drawn[-1].hits] == [each["key"] for each in near]
        assert all(trouble in tile.shown.trouble for tile in drawn[-1].hits)
        assert [tile.shown.picture is None for tile in drawn[-1].hits] == [bool(trouble)] * 4


def test_fused_cached_pictures_that_were_touched_have_not_changed(hits, tmp_path, monkeypatch):
    hit = next(each for each in hits if each.key == "photo.png")
    touched = {**hit.columns, "mtime": 1.0, "sha256": "of all parts"}
    rows = [
        {
            **touched,
            "id": number,
            "key": f"{number}.png",
            "modality": "image",
            "source": hit.source,
            "attributes": attributes,
        }
        for number, attributes in enumerate(['{"fuse": "image*0.8 + audio*0.2"}', None])
    ]
    store = FakeStore(n=2, dim=8)
    store.ids = np.arange(2, dtype=np.int64)
    store.table = pa.Table.from_pylist(rows)
    build_index(store, tmp_path / "cache")
    near = VisualCache.open(tmp_path / "cache").explain(np.ones((1, 8), np.float32), 2)[0]["neighbours"]
    drawn = sheet_rows(monkeypatch)
    carriers.save_carriers(tmp_path / "a.png", "a question", near)
    troubles = {tile.label: tile.shown.trouble for tile in drawn[-1].hits}
    assert troubles["0.png"] == ""
    assert "has changed" in troubles["1.png"]  # no fused one: its bytes are not those


def test_what_is_asked_about_is_read_with_the_preset_that_was_given(tmp_path, monkeypatch):
    from bindsearch.cli import asking

    path = tmp_path / "map.depth.npy"
    np.save(path, np.tile(np.linspace(1, 450, 40, dtype=np.float32), (30, 1)))
    bare = Embedding.of_vector(np.ones(8, dtype=np.float32), str(path), modality="depth")
    identity = replace(bare.identity, preset_ids={"depth": "disparity:12345678"})
    part = Embedding((replace(bare.terms[0], source=str(path)),), identity)
    drawn = sheet_rows(monkeypatch)
    asked = asking._Asked((SimpleNamespace(weight=1.0),), [part], part.vector, [])
    asking._write_sheet(asked, [{"question": "what is it?", "answer": "a map"}], tmp_path / "a.png")
    (term,) = drawn[0].terms
    assert (term.shown.trouble, term.shown.note) == ("", "inverse depth")


def test_a_small_video_plays_out_of_a_tar_and_a_span_has_its_own_length(index, tmp_path):
    video = index.paths["video"]
    with tarfile.open(tmp_path / "v.tar", "w") as tar:
        tar.add(video, "move.mp4")
    for source in (Source.of(video), Source.of(f"tar://{tmp_path}/v.tar!/move.mp4")):
        shown = preview.preview(source, "video", None, "default", "x", with_clip=True)
        assert (shown.note, shown.clip) == ("2.0 s", (video.read_bytes(), "video/mp4"))
        for span, note in (((0.5, 1.25), "0.8 s"), ((1.5, 9.0), "0.5 s")):
            part = preview.preview(source, "video", span, "default", "x", with_clip=True)
            assert (part.note, part.clip) == (note, None)


def test_a_span_of_a_sound_is_what_is_shown(index):
    source = Source.of(index.paths["audio"])
    assert preview.preview(source, "audio", None, "default", "x").note == "2.0 s"
    assert preview.preview(source, "audio", (0.5, 1.25), "default", "x").note == "0.8 s"


def test_literal_texts_show_their_words(index):
    hit = index.search(index.item("words.txt"), k=1)[0]
    literal = type(hit)(1, 0.5, 7, "list.txt#3", "text", "/nowhere/list.jsonl", columns={"caption": "a dog at night"})
    assert preview.preview_hit(literal, {}).words == "a dog at night"
    # a list of texts that is a .txt file itself: the words of this item, not the whole list
    listed = type(hit)(1, 0.5, 7, "words.txt#3", "text", str(index.paths["text"]), columns={"caption": "a cat"})
    assert preview.preview_hit(listed, {}).words == "a cat"
    assert preview.preview_hit(hit, {}).words.startswith("A dog & a cat. <script>")


def test_terms_given_as_things_are_shown(index):
    from bindsearch.models.spaces import load_space

    space = load_space("tiny")
    picture = np.full((30, 40, 3), 200, dtype=np.uint8)
    for query, words, picture_there in (
        (space.text("a dog"), "a dog", False),
        (space.text(index.paths["text"]), "A dog & a cat.", False),
        (space.image(picture), "", True),
        (space.image(Image.fromarray(picture)), "", True),
        (space.image(index.paths["image"]), "", True),
        (space.image(index.paths["image"].read_bytes()), "", True),
        (space.image(str(index.paths["image"])), "", True),
    ):
        shown = preview.preview_term(query.terms[0], {})
        assert shown.words.startswith(words)
        assert (shown.picture is not None) == picture_there
        assert not shown.trouble
