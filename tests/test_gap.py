"""The modality gap against its formulas, and centred indexes against plain numpy."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import numpy as np
import pytest
from fake_store import SPACE, FakeStore, make_manifest

from bindsearch.cache.bridge import bridge_to
from bindsearch.cli import run
from bindsearch.errors import InputError, MismatchError
from bindsearch.evaluate import Rows
from bindsearch.gap import centred, measure_gap, project, to_text, uniformity, write_plot
from bindsearch.index.build import build_index
from bindsearch.index.centring import Centring, measure_means
from bindsearch.index.folder import IndexFolder
from bindsearch.index.identity import Identity
from bindsearch.index.manifest import read_manifest
from bindsearch.query import Embedding
from bindsearch.search import SearchIndex, open_index


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def two_cones(n=300, d=20, gap=2.0, seed=0):
    """Pairs that share a random direction, each modality moved along an axis of its own."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, d)) * (np.arange(d) > 1)
    noise = 0.3 * rng.standard_normal((2, n, d))
    axes = np.sqrt(d) * gap * np.eye(d)[:2]
    rows = unit(np.concatenate([shared + noise[0] + axes[0], shared + noise[1] + axes[1]])).astype(np.float32)
    pairs = [f"p{number}" for number in range(n)] * 2
    return Rows(rows, np.array(["image"] * n + ["text"] * n), {"key": pairs, "pair": pairs}, "toy@0", "toy", "toy rows")


# ---- measuring -------------------------------------------------------------------------------------------------------


def test_figures_are_their_formulas():
    rows = two_cones(n=40)
    a, b = (rows.vectors[rows.where(name)].astype(float) for name in ("image", "text"))
    result = measure_gap(rows)
    for state, left, right in (("stored", a, b), ("centred", unit(a - a.mean(0)), unit(b - b.mean(0)))):
        found = result[state]["modalities"]["image"]
        squared = ((left[:, None] - left[None]) ** 2).sum(-1)
        off = ~np.eye(40, dtype=bool)
        assert found["uniformity"] == pytest.approx(np.log(np.exp(-2 * squared[off]).mean()), rel=1e-5)
        assert found["centroid_norm"] == pytest.approx(np.linalg.norm(left.mean(0)), rel=1e-5)
        assert found["spread"] == pytest.approx(((left - left.mean(0)) ** 2).sum(1).mean(), rel=1e-5)
        (pair,) = result[state]["pairs"]
        across = ((left[:, None] - right[None]) ** 2).sum(-1)
        assert pair["centroid_distance"] == pytest.approx(np.linalg.norm(left.mean(0) - right.mean(0)), rel=1e-4)
        both = np.concatenate([left, right])
        everything = np.exp(-2 * ((both[:, None] - both[None]) ** 2).sum(-1))
        assert pair["uniformity"] == pytest.approx(np.log(everything[~np.eye(80, dtype=bool)].mean()), rel=1e-5)
        assert pair["matched"] == 40 and pair["alignment"] == pytest.approx(np.diag(across).mean(), rel=1e-5)
        cosines = left @ right.T
        assert pair["cosine_matched"] == pytest.approx(np.diag(cosines).mean(), rel=1e-5)
        assert pair["cosine_other"] == pytest.approx(cosines[off].mean(), rel=1e-4, abs=1e-6)


def test_a_gap_is_seen_and_centring_closes_it():
    result = measure_gap(two_cones())
    stored, moved = result["stored"]["pairs"][0], result["centred"]["pairs"][0]
    assert stored["nearer_own"] == 1 and stored["centroid_distance"] > 1
    assert moved["centroid_distance"] < 0.1 < stored["centroid_distance"]
    assert abs(moved["nearer_own"] - 0.5) < 0.2
    assert moved["alignment"] < stored["alignment"] and moved["uniformity"] < stored["uniformity"]
    none = measure_gap(two_cones(gap=0))
    assert none["stored"]["pairs"][0]["centroid_distance"] < 0.1


def test_items_are_no_part_of_the_means_that_they_are_compared_with():
    n = 60
    kinds, names = np.array(["image"] * n + ["text"] * n), [str(number) for number in range(2 * n)]
    for seed in range(3):
        rows = unit(np.random.default_rng(seed).standard_normal((2 * n, 1024)))
        none = measure_gap(Rows(rows, kinds, {"key": names}, "toy@0", "toy", "toy"))
        for state in ("stored", "centred"):
            assert abs(none[state]["pairs"][0]["nearer_own"] - 0.5) < 0.1
    noise = 0.1 * np.random.default_rng(9).standard_normal((n, 1024)) / 32
    alike = np.concatenate([rows[:n], unit(rows[:n] + noise)])  # true pairs lie together, and there is no gap
    paired = measure_gap(Rows(alike, kinds, {"key": names, "pair": names[:n] * 2}, "toy@0", "toy", "toy"))
    for state in ("stored", "centred"):
        assert abs(paired[state]["pairs"][0]["nearer_own"] - 0.5) < 0.15


def test_nearer_own_is_its_formula():
    rows = two_cones(n=40, gap=0.1)
    own = [rows.vectors[rows.where(name)].astype(float) for name in ("image", "text")]
    part, right = np.arange(40) % 10, []
    for place in range(40):
        means = [side[part != part[place]].mean(axis=0) for side in own]
        for number in (0, 1):
            distances = [np.linalg.norm(own[number][place] - mean) for mean in means]
            right.append(distances[number] < distances[1 - number])
    found = measure_gap(rows)["stored"]["pairs"][0]["nearer_own"]
    assert 0.4 < found < 0.95 and found == pytest.approx(np.mean(right), abs=1e-6)


def test_known_points():
    square = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    # each point has two neighbours at squared distance 2 and one at 4
    assert uniformity(square) == pytest.approx(np.log((2 * np.exp(-4) + np.exp(-8)) / 3))
    assert uniformity(square[:2]) == pytest.approx(-8) and uniformity(np.ones((3, 1))) == 0


def test_several_items_a_pair_and_none():
    vectors = unit(np.array([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]])).astype(np.float32)
    kinds = np.array(["image"] * 2 + ["text"] * 4)
    rows = Rows(
        vectors, kinds, {"key": list("abcdef"), "scene": ["p", None, "p", "p", "q", None]}, "toy@0", "toy", "toy"
    )
    (pair,) = measure_gap(rows, "scene")["stored"]["pairs"]
    assert pair["matched"] == 2 and pair["alignment"] == pytest.approx(((2 - 2 * 0.5**0.5) + 2) / 2, rel=1e-5)
    (pair,) = measure_gap(rows)["stored"]["pairs"]  # no column of pairs
    assert pair["matched"] == 0 and "alignment" not in pair


def test_a_modality_that_cannot_be_measured_is_left_out_and_named(tmp_path):
    rows = two_cones(n=40)
    alone = np.concatenate([rows.vectors, rows.vectors[:1], np.tile(rows.vectors[1], (3, 1))])
    kinds = np.concatenate([rows.modality, ["audio"], ["depth"] * 3])
    columns = {name: [*values, *[None] * 4] for name, values in rows.columns.items()}
    more = Rows(alone, kinds, columns, "toy@0", "toy", "toy")
    found, plain = measure_gap(more), measure_gap(rows)
    assert found["left_out"]["audio"] == "one item alone has no spread"
    assert "nothing is left" in found["left_out"]["depth"]
    assert (found["stored"], found["centred"]) == (plain["stored"], plain["centred"]) and plain["left_out"] == {}
    assert "left out: audio: one item alone" in to_text(found) and "left out" not in to_text(plain)
    assert write_plot(more, found, tmp_path / "gap.svg").stat().st_size > 1000
    with pytest.raises(InputError, match="toy: no modality can be measured: audio: one item alone"):
        measure_gap(Rows(alone[-4:-3], kinds[-4:-3], {"key": ["a"]}, "toy@0", "toy", "toy"))


def labelled(n, d=64, labels=("dog", "cat", None)):
    """Items of two modalities with few labels, of which some have none; one label is of one modality alone."""
    rng = np.random.default_rng(8)
    rows = unit(rng.standard_normal((2 * n, d)) + np.repeat(np.eye(d)[:2], n, axis=0)).astype(np.float32)
    kinds = np.array(["image"] * n + ["text"] * n)
    values = [labels[place] for place in rng.integers(0, len(labels), 2 * n)]
    values[0] = "owl"
    return Rows(rows, kinds, {"key": [f"k{place}" for place in range(2 * n)], "label": values}, "toy@0", "toy", "toy")


def test_figures_of_labels_are_those_of_all_their_pairs():
    rows = labelled(70)
    labels = np.array([value or "" for value in rows.columns["label"]])
    a, b = (rows.vectors[rows.where(name)].astype(float) for name in ("image", "text"))
    same = (labels[:70, None] == labels[None, 70:]) & (labels[:70, None] != "")
    result = measure_gap(rows, "label")
    for state, left, right in (("stored", a, b), ("centred", centred(a), centred(b))):
        (pair,) = result[state]["pairs"]
        cosines = left @ right.T
        assert pair["matched"] == same.sum()
        assert pair["cosine_matched"] == pytest.approx(cosines[same].mean(), rel=1e-5)
        assert pair["cosine_other"] == pytest.approx(cosines[~same].mean(), rel=1e-5)
        assert pair["alignment"] == pytest.approx((2 - 2 * cosines[same]).mean(), rel=1e-5)


def test_memory_grows_with_the_items_and_not_with_their_pairs():
    rows = labelled(1000, labels=("dog",))
    tracemalloc.start()
    (pair,) = measure_gap(rows, "label")["stored"]["pairs"]
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pair["matched"] == 999 * 1000
    assert peak_bytes < 128 << 20  # the rows of the pairs side by side are 0.5 GB each


def test_the_drawing_is_a_principal_plane():
    rows = two_cones(n=50)
    drawing = project(rows, ("image", "text"), centre=False)
    from sklearn.decomposition import PCA

    expected = PCA(2, svd_solver="full").fit(
        np.concatenate([rows.vectors[rows.where(m)] for m in ("image", "text")]).astype(float)
    )
    assert drawing.explained == pytest.approx(expected.explained_variance_ratio_)
    ours = np.concatenate([drawing.points["image"], drawing.points["text"]])
    theirs = expected.transform(np.concatenate([rows.vectors[rows.where(m)] for m in ("image", "text")]).astype(float))
    # the sample is sorted, so the rows are the same ones in the same order
    assert np.abs(np.abs(ours) - np.abs(theirs)).max() < 1e-9
    assert np.sign(drawing.points["image"][:, 0].mean()) != np.sign(drawing.points["text"][:, 0].mean())


# ---- centred indexes -------------------------------------------------------------------------------------------------


def gapped_store(n=60, seed=0, prefix="item", modalities=("image", "audio", "text"), **changes):
    """A fake store whose modalities lie in cones of their own."""
    store = FakeStore(n=n, seed=seed, prefix=prefix, modalities=modalities, **changes)
    kinds = store.table["modality"].to_pylist()
    shifts = {name: 6 * np.eye(16)[place] for place, name in enumerate(("image", "audio", "text", "depth"))}
    store.vectors = (store.vectors + np.stack([shifts[kind] for kind in kinds])).astype(np.float32)
    return store


@pytest.fixture
def store():
    return gapped_store()


@pytest.fixture(params=("flat", "faiss-flat"))
def index(request, store, tmp_path):
    return SearchIndex(build_index(store, tmp_path / "index", backend=request.param, centre=True))


def by_numpy(store):
    """Means and centred rows, written out plainly."""
    kinds = np.array(store.table["modality"].to_pylist())
    units = store.vectors.astype(np.float64) / np.linalg.norm(store.vectors.astype(np.float64), axis=1, keepdims=True)
    means = {kind: units[kinds == kind].mean(axis=0) for kind in np.unique(kinds).tolist()}
    return means, unit(np.array([row - means[kind] for row, kind in zip(units, kinds, strict=True)]))


def query_of(vector, modality):
    identity = Identity(SPACE, {modality: f"{modality}:aa@{SPACE}"}, {modality: f"default:{modality}"})
    return Embedding.of_vector(vector.astype(np.float32), "asked", identity, modality)


def test_scores_are_plain_numpys(index, store):
    means, rows = by_numpy(store)
    for name, mean in means.items():
        np.testing.assert_allclose(index.folder.snapshot.centring.means[name], mean, atol=1e-8)
    np.testing.assert_allclose(index.folder.snapshot.rows(store.ids), rows, atol=1e-6)
    rng = np.random.default_rng(1)
    image, audio = rng.standard_normal((2, 16)) + 3
    placed = {"image": unit(unit(image) - means["image"]), "audio": unit(unit(audio) - means["audio"])}
    for query, expected in (
        (query_of(image, "image"), placed["image"]),
        (query_of(image, "image") - 0.4 * query_of(audio, "audio"), unit(placed["image"] - 0.4 * placed["audio"])),
    ):
        hits = index.search(query, k=60)
        scores = rows @ expected
        order = np.argsort(-scores)
        assert hits.ids.tolist() == store.ids[order].tolist()
        np.testing.assert_allclose(hits.scores, scores[order], atol=2e-6)
        np.testing.assert_allclose(hits.contributions().sum(axis=1), hits.scores, atol=2e-6)
    assert index.verify()["status"] == "ok"


def test_what_the_manifest_records(index, store):
    manifest = read_manifest(index.path)
    assert manifest.format_version == 2 and manifest.centring.counts == {"audio": 20, "image": 20, "text": 20}
    assert index.folder.info()["centring"] == {"id": manifest.centring.id, "counts": manifest.centring.counts}
    plain = build_index(store, index.path.parent / "plain")
    assert plain.manifest.format_version == 1 and plain.info()["centring"] is None
    assert "centring" not in json.loads((plain.path / "index.json").read_text())


def test_items_of_the_index_are_centred_once(index, store):
    _, rows = by_numpy(store)
    hits = index.search(index.item("item/0003"), k=5)
    np.testing.assert_allclose(hits.scores, np.sort(rows @ rows[3])[::-1][:5], atol=2e-6)
    assert hits.scores[0] == pytest.approx(1)
    mixed = index.item("item/0003") + query_of(store.vectors[4], "audio")
    np.testing.assert_allclose(index.search(mixed, k=1).scores, (rows @ unit(rows[3] + rows[4])).max(), atol=2e-6)


def test_items_do_not_pass_between_centred_and_plain(index, store, tmp_path):
    plain = SearchIndex(build_index(store, tmp_path / "plain"))
    other = SearchIndex(build_index(gapped_store(seed=5), tmp_path / "other", centre=True))
    for asked, item in ((plain, index.item("item/0001")), (other, index.item("item/0001"))):
        with pytest.raises(MismatchError, match=r"'item/0001' is an item of an index that is centred:"):
            asked.search(item)
    # an item of a plain index has its own row, which is centred like any other term
    hits = index.search(plain.item("item/0001"), k=1)
    assert hits[0].key == "item/0001" and hits[0].score == pytest.approx(1, abs=1e-6)


def test_modalities_without_a_mean_are_refused(index, store):
    with pytest.raises(MismatchError, match=r"no mean of depth.*audio, image, text.*--centre-with"):
        index.search(query_of(store.vectors[0], "depth"))
    with pytest.raises(MismatchError, match=r"bare vectors.*file or words.*without --centre: bindsearch index"):
        index.search(store.vectors[:1])
    with pytest.raises(MismatchError, match="bare vectors"):
        index.search(query_of(store.vectors[0], "image") + Embedding.of_vector(store.vectors[1]))
    with pytest.raises(MismatchError, match="no mean of depth"):
        index.check(Identity(SPACE, {"depth": f"depth:aa@{SPACE}"}))


def test_a_term_that_is_the_mean_is_refused(index):
    mean = index.folder.snapshot.centring.means["image"]
    # a unit vector is never the mean of a spread modality, so make one: a modality of one point
    centring = Centring({"image": unit(mean)}, {"image": 20})
    with pytest.raises(InputError, match="nothing is left of it"):
        centring.apply(unit(mean)[None].astype(np.float32), "image", "the term")


def test_adding_keeps_the_means(index, store):
    before = index.folder.snapshot.centring.id
    more = gapped_store(n=15, seed=3, prefix="more")
    assert index.folder.add(more).changed == 15 and index.folder.snapshot.centring.id == before
    means, _ = by_numpy(store)
    kinds = more.table["modality"].to_pylist()
    expected = unit(
        np.array([row - means[kind] for row, kind in zip(unit(more.vectors.astype(float)), kinds, strict=True)])
    )
    np.testing.assert_allclose(index.folder.snapshot.rows(more.ids), expected, atol=1e-6)
    assert index.folder.add(more).unchanged == 15  # equal rows are passed over, as in a plain index
    assert index.remove(["more/0001"]) == 1
    index.folder.compact()
    assert len(index) == 74 and index.folder.snapshot.centring.id == before and index.verify()["status"] == "ok"
    with pytest.raises(MismatchError, match="no mean of depth"):
        index.folder.add(gapped_store(n=12, seed=4, prefix="deep", modalities=("depth",)))
    assert len(IndexFolder.open(index.path).snapshot.ids()) == 74


def test_towers_of_modalities_without_items_are_not_taken_over(index, store, tmp_path):
    """Embeddings name the towers of modalities whose items were all bad; an addition takes those of its items."""
    more = gapped_store(n=12, seed=3, prefix="later")
    more.manifest.tower_ids["depth"] = f"depth:aa@{SPACE}"
    more.manifest.preset_ids["depth"] = "default:depth"
    assert index.add(more).added == 12
    assert sorted(index.manifest.tower_ids) == sorted(index.manifest.preset_ids) == ["audio", "image", "text"]
    query = query_of(store.vectors[:1], "audio")
    assert len(index.search(bridge_to(index)(query), k=3)) == 3
    plain = open_index(build_index(store, tmp_path / "plain").path)
    plain.add(more)
    other = gapped_store(n=12, seed=4, prefix="deep", modalities=("depth",))
    other.manifest.tower_ids["depth"] = f"depth:bb@{SPACE}"
    assert plain.add(other).added == 12
    assert plain.manifest.tower_ids["depth"] == f"depth:bb@{SPACE}"


def test_means_of_modalities_that_only_ask(store, tmp_path):
    pictures = gapped_store(n=30, modalities=("image",))
    texts = gapped_store(n=30, seed=7, prefix="text", modalities=("text",))
    alone = SearchIndex(build_index(pictures, tmp_path / "alone", centre=True))
    with pytest.raises(MismatchError, match="no mean of text"):
        alone.search(query_of(texts.vectors[0], "text"))
    both = SearchIndex(build_index(pictures, tmp_path / "both", centre=True, centre_with=[texts]))
    _, rows = by_numpy(pictures)
    text_means, _ = by_numpy(texts)
    expected = rows @ unit(unit(texts.vectors[0].astype(float)) - text_means["text"])
    np.testing.assert_allclose(
        both.search(query_of(texts.vectors[0], "text"), k=1).scores[0], expected.max(), atol=2e-6
    )
    assert both.manifest.modalities == {"image": 30} and set(both.manifest.tower_ids) == {"image", "text"}
    wrong = query_of(texts.vectors[0], "text")
    wrong = Embedding(wrong.terms, Identity(SPACE, {"text": f"text:bb@{SPACE}"}))
    with pytest.raises(MismatchError, match="text tower"):
        both.search(wrong)
    stranger = gapped_store(n=30, modalities=("text",), space_id="other@0123456789ab")
    with pytest.raises(MismatchError, match="other@0123456789ab"):
        build_index(pictures, tmp_path / "no", centre=True, centre_with=[stranger])
    with pytest.raises(InputError, match="give --centre as well"):
        build_index(pictures, tmp_path / "no", centre_with=[texts])


def test_few_items_make_no_mean(tmp_path):
    with pytest.raises(InputError, match=r"6 audio item.*fewer than 10.*--centre-with"):
        build_index(gapped_store(n=18), tmp_path / "few", centre=True)
    assert not (tmp_path / "few" / "index.json").exists()


def test_means_do_not_depend_on_blocks(store):
    whole, parts = (measure_means([(store, "x")], rows) for rows in (4096, 7))
    for name in whole.names:
        np.testing.assert_allclose(whole.means[name], parts.means[name], atol=1e-15)


def test_altered_means_are_refused(index, tmp_path):
    shutil.copytree(index.path, tmp_path / "copy")
    (path,) = (tmp_path / "copy").glob("index.means-*.npy")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(MismatchError, match="checksum"):
        IndexFolder.open(tmp_path / "copy")
    path.unlink()
    with pytest.raises(MismatchError, match="the file is missing"):
        IndexFolder.open(tmp_path / "copy")


def test_rebuilding_replaces_the_means_and_readers_keep_theirs(index, store):
    reader = open_index(index.path)
    build_index(gapped_store(seed=9), index.path, force=True, centre=True)
    assert len(list(index.path.glob("index.means-*.npy"))) == 1
    assert reader.search(query_of(store.vectors[0], "image"), k=1).scores[0] == pytest.approx(1, abs=1e-6)
    build_index(store, index.path, force=True)
    assert not list(index.path.glob("index.means-*.npy"))
    assert IndexFolder.open(index.path).manifest.centring is None


@pytest.mark.parametrize("step", ["save", "write_manifest", "sweep"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupted_rebuild_leaves_one_set_of_means(store, tmp_path, monkeypatch, step, moment):
    import bindsearch.index.commit as module

    folder = build_index(store, tmp_path / "index", centre=True)
    newer = gapped_store(n=45, seed=9)
    owner = Centring if step == "save" else module
    whole = getattr(owner, step)

    def broken(*arguments):
        if moment == "after":
            whole(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, step, broken)
    with pytest.raises(KeyboardInterrupt):
        build_index(newer, folder.path, force=True, centre=True)
    monkeypatch.undo()
    committed = (step, moment) == ("write_manifest", "after") or step == "sweep"
    opened = IndexFolder.open(folder.path)
    assert opened.count == (45 if committed else 60) and opened.verify()["status"] == "ok"
    means, rows = by_numpy(newer if committed else store)
    np.testing.assert_allclose(opened.snapshot.centring.means["text"], means["text"], atol=1e-8)
    np.testing.assert_allclose(opened.snapshot.rows((newer if committed else store).ids), rows, atol=1e-6)
    (folder.path / "index.means.tmp-1").write_bytes(b"half")
    opened.add(gapped_store(n=9, seed=3, prefix="more"))
    assert [path.name for path in folder.path.glob("index.means*")] == [opened.manifest.centring.file]


def test_a_reader_of_version_one_would_refuse_it(index):
    data = json.loads((index.path / "index.json").read_text())
    assert data["format_version"] == 2
    from bindsearch.config import content_hash

    data.pop("checksum")
    data["format_version"] = 1
    (index.path / "index.json").write_text(json.dumps({**data, "checksum": content_hash(data, 64)}))
    with pytest.raises(MismatchError, match="format version 1"):
        IndexFolder.open(index.path)


def test_manifests_name_the_space_of_what_they_are_made_of():
    assert make_manifest(16).space_id == SPACE


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_commands(tmp_path, capsys):
    from bindsearch.embed import EmbedOptions, run_embed
    from bindsearch.models.spaces import load_space
    from bindsearch.world.write import write_world

    write_world(12, tmp_path / "files", seed=2**34 + 50, size_px=64, modalities=("image", "audio", "text"))
    emb, idx = tmp_path / "emb", tmp_path / "idx"
    run_embed([str(tmp_path / "files")], emb, load_space("bindsearch-mini"), options=EmbedOptions(workers=0))
    assert run(["gap", str(emb), "--json", "--plot", str(tmp_path / "gap.svg")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {(each["a"], each["b"]) for each in result["stored"]["pairs"]} == {
        ("audio", "image"),
        ("audio", "text"),
        ("image", "text"),
    }
    assert all(each["matched"] == 12 for each in result["stored"]["pairs"])
    assert (tmp_path / "gap.svg").read_text().startswith("<?xml")
    assert run(["gap", str(emb)]) == 0
    assert "nearer own" in capsys.readouterr().out
    assert run(["index", str(emb), "-o", str(idx), "--centre", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["centring"]["counts"] == {"audio": 12, "image": 12, "text": 12}
    assert (
        run(
            [
                "query",
                str(idx),
                "--text",
                "a dog on the beach",
                "--image",
                str(tmp_path / "files" / "scene-00003.png"),
                "-k",
                "3",
                "--json",
            ]
        )
        == 0
    )
    hits = json.loads(capsys.readouterr().out)
    rows = {row["key"]: row for row in hits}
    space, means = load_space("bindsearch-mini"), open_index(idx).folder.snapshot.centring.means
    terms = [("text", "a dog on the beach"), ("image", str(tmp_path / "files" / "scene-00003.png"))]
    total = sum(unit(space.embed(m, [thing])[0].astype(float) - means[m]) for m, thing in terms)
    stored = open_index(idx)
    for key, row in rows.items():
        assert row["score"] == pytest.approx(float(stored.vectors([key])[0].astype(float) @ unit(total)), abs=3e-6)
    np.save(tmp_path / "bare.npy", np.ones(space.dim, dtype=np.float32))
    assert run(["query", str(idx), "--vector", str(tmp_path / "bare.npy")]) == 5
    assert "bare vectors" in capsys.readouterr().err


def test_centred_says_when_nothing_is_left():
    with pytest.raises(InputError, match="nothing is left"):
        centred(np.ones((3, 4)) / 2)
