"""Who waits for the lock of an index, or opens one while it is swept, finds it as it is then."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from fake_store import FakeStore, questions

from bindsearch.errors import InputError
from bindsearch.index import change, commit
from bindsearch.index.budget import Budget
from bindsearch.index.build import build_index, reindex
from bindsearch.index.folder import IndexFolder
from bindsearch.index.merge import merge_indexes
from bindsearch.index.plan import Wish, build_planned
from bindsearch.index.recipe import Recipe
from bindsearch.index.rotation import Rotation
from bindsearch.index.snapshot import Snapshot
from bindsearch.search.arrange import Shape
from bindsearch.search.index import SearchIndex

QUERY = np.ones((1, 16), dtype=np.float32)


def tried(work, into):
    """Give a thread that keeps what a call gave or raised."""

    def run():
        try:
            into.append(work())
        except InputError as error:
            into.append(error)

    return threading.Thread(target=run)


def test_reindex_counts_what_was_added_while_it_waited(tmp_path):
    path = tmp_path / "index"
    folder = build_index(FakeStore(n=60, dim=16), path)
    found = []
    with folder._changing():
        waiting = tried(lambda: reindex(path, FakeStore(n=60, dim=16, seed=3)), found)
        waiting.start()
        time.sleep(0.3)
        manifest, _ = change.add(folder.snapshot, FakeStore(n=20, dim=16, prefix="new"), "", 4096)
        folder._commit(manifest)
    waiting.join()
    assert "20 of its 80 items are not in the new embeddings" in str(found[0])
    assert IndexFolder.open(path).count == 80


@pytest.mark.parametrize("second", ["build", "merge"])
def test_who_waited_does_not_replace_what_was_built_meanwhile(tmp_path, second):
    path, found = tmp_path / "index", []
    for name in ("a", "b"):
        build_index(FakeStore(n=5, dim=16, prefix=name), tmp_path / name)
    calls = {
        "build": lambda: build_index(FakeStore(n=5, dim=16, prefix="second"), path),
        "merge": lambda: merge_indexes([tmp_path / "a", tmp_path / "b"], path),
    }
    waiting = tried(calls[second], found)

    def judge(_):
        waiting.start()
        time.sleep(0.3)
        return {}

    build_index(FakeStore(n=60, dim=16), path, judge=judge)
    waiting.join()
    assert "holds an index already" in str(found[0])
    assert IndexFolder.open(path).count == 60


def test_who_waited_for_a_build_that_failed_builds(tmp_path):
    path, found = tmp_path / "new" / "index", []
    waiting = tried(lambda: build_index(FakeStore(n=5, dim=16), path), found)

    def judge(_):
        waiting.start()
        time.sleep(0.5)
        raise InputError("not good enough")

    with pytest.raises(InputError, match="not good enough"):
        build_index(FakeStore(n=60, dim=16), path, judge=judge)
    waiting.join()
    assert found[0].count == IndexFolder.open(path).count == 5


def test_who_opens_an_index_while_its_files_are_swept_finds_the_new_state(tmp_path, monkeypatch):
    path = tmp_path / "index"
    folder = build_index(FakeStore(n=40, dim=16), path, Recipe("ivf-pq", "float16", {"nlist": 2}))
    old = folder.manifest.segments[0].name
    remove, read, begun = commit.shutil.rmtree, Rotation.open.__func__, []

    def remove_one_file(place, *rest, **options):
        if place.name == old:
            return (place / "rotation.npy").unlink()
        return remove(place, *rest, **options)

    def read_late(cls, place, dim):
        if place.name == old and not begun:
            begun.append(place)
            monkeypatch.setattr(commit.shutil, "rmtree", remove_one_file)
            folder.compact()
        return read(cls, place, dim)

    monkeypatch.setattr(Rotation, "open", classmethod(read_late))
    assert Snapshot.open(path).manifest.generation == 2
    assert begun


def test_settings_of_a_segment_that_is_gone_are_not_asked_of_what_was_added(tmp_path):
    wish = Wish(recipes=(Recipe("ivf-pq", "float16"),), count=50, queries=(questions(60, dim=16),))
    index = SearchIndex(build_planned(FakeStore(n=600, dim=16), tmp_path / "index", Budget(recall=0.5), wish))
    assert index.manifest.tuned["settings"]
    index.add(FakeStore(n=600, dim=16, seed=5))
    assert [entry.backend for entry in index.manifest.segments] == ["faiss-flat"]
    for narrowed in ({}, {"modality": "image"}, {"where": "size >= 0"}):
        assert len(index.search(QUERY, **narrowed)) == 10
    assert "all rows of ivf-pq were replaced" in index.folder.info()["advice"][0]
    with pytest.raises(InputError, match="nprobe"):
        index.folder.snapshot.search(QUERY, 3, settings={"nprobe": 4})
    index.remove(index.folder.snapshot.ids().tolist())
    for shape in (Shape(), Shape(calibrated=True), Shape(group_by="source"), Shape(diversity=0.5)):
        assert len(index.search(QUERY, shape=shape)) == 0
