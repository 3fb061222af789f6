"""Living indexes: random changes against a dictionary and brute force; folding, compacting, merging, splitting."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from fake_store import FakeStore
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bindsearch.errors import InputError
from bindsearch.index.build import build_index
from bindsearch.index.change import Added
from bindsearch.index.folder import IndexFolder
from bindsearch.index.merge import merge_indexes
from bindsearch.index.recipe import Recipe
from bindsearch.index.split import parts_by_count, split_index
from bindsearch.registry import INDEXES

DIM = 6
RECIPES = (
    "flat",
    "faiss-flat",
    Recipe("flat", row_dtype="float16"),
    Recipe("bytes", row_dtype="float16"),
    Recipe("hnsw", row_dtype="float16", byte_codes=True),
    Recipe("rabitq"),
    Recipe("ivf-rabitq", row_dtype="float16", build={"nlist": 2}),
    Recipe("ivf-sq8", row_dtype="float16", build={"nlist": 3}, byte_codes=True),
)
SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None


def part_of(store, start, stop):
    """Items `start` to `stop` of a store, as a store."""
    store.ids, store.vectors = store.ids[start:stop], store.vectors[start:stop]
    store.table = store.table.slice(start, stop - start)
    return store


def contents(folder):
    """Everything that an index holds: id -> (row as bytes, item row)."""
    snapshot = folder.snapshot
    ids = np.sort(snapshot.ids())
    if not ids.size:
        return {}
    rows, items = snapshot.rows(ids), snapshot.table(ids).to_pylist()
    return {
        one: (row.tobytes(), {name: value for name, value in item.items() if value is not None})
        for one, row, item in zip(ids.tolist(), rows, items, strict=True)
    }


def brute_force(truth, queries, k):
    """The k best of id -> row by cosines in float64 rounded once, equal ones by id: scores (q, k), ids (q, k)."""
    ids = np.array(sorted(truth), dtype=np.int64)
    rows = np.stack([truth[one] for one in ids.tolist()]).astype(np.float64)
    wide = queries.astype(np.float64)
    wide /= np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    scores = np.clip((wide[:, None, :] * rows[None]).sum(axis=2), -1, 1).astype(np.float32)
    best = np.lexsort((np.broadcast_to(ids, scores.shape), -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, best, axis=1), ids[best]


class Life(RuleBasedStateMachine):
    """Random changes against a dictionary: nothing is lost, nothing comes back, answers are those of brute force."""

    done: ClassVar[Counter[str]] = Counter()

    @initialize(how=st.sampled_from(RECIPES))
    def build(self, how):
        self.scratch = Path(tempfile.mkdtemp(dir=SCRATCH))
        self.made = 0
        self.dtype = how.row_dtype if isinstance(how, Recipe) else "float32"
        store = FakeStore(n=12, dim=DIM)
        self.folder = build_index(store, self.scratch / "index", how)
        self.truth = self.rows_of(store)

    def rows_of(self, store):
        rows = store.units.astype(self.dtype).astype(np.float32)
        return dict(zip(store.ids.tolist(), rows, strict=True))

    def new_path(self):
        self.made += 1
        return self.scratch / f"{self.made:04d}"

    @rule(start=st.integers(0, 30), count=st.integers(1, 12), seed=st.integers(0, 3))
    def add(self, start, count, seed):
        """Of items that may be there: some new, some of another row, some as they are."""
        self.done["add"] += 1
        store = part_of(FakeStore(n=start + count, dim=DIM, seed=seed), start, start + count)
        new, known = self.rows_of(store), self.truth
        replaced = sum(one in known and not np.array_equal(known[one], row) for one, row in new.items())
        added = sum(one not in known for one in new)
        assert self.folder.add(store) == Added(added, replaced, len(new) - added - replaced)
        self.truth = known | new

    @rule(data=st.data())
    def remove(self, data):
        self.done["remove"] += 1
        known = sorted(self.truth)
        ids = data.draw(st.lists(st.sampled_from([*known, 1, 2]), max_size=6)) if known else [1]
        removed = self.folder.remove(np.array(ids, dtype=np.int64))
        assert removed == len(set(ids) & set(known))
        for one in ids:
            self.truth.pop(one, None)

    @precondition(lambda self: len(self.folder.manifest.segments) > 1 or self.folder.info()["removed"])
    @rule()
    def compact(self):
        self.done["compact"] += 1
        self.folder.compact()
        assert len(self.folder.manifest.segments) == (1 if self.truth else 0)

    @rule()
    def reopen(self):
        self.done["reopen"] += 1
        self.folder = IndexFolder.open(self.folder.path)

    @rule(count=st.integers(0, 5), seed=st.integers(0, 3), prefer=st.sampled_from(["first", "last"]))
    def merge(self, count, seed, prefer):
        """With an index that has some of the same items with other rows."""
        self.done["merge"] += 1
        store = part_of(FakeStore(n=12 + count, dim=DIM, seed=seed), 8, 12 + count)
        how = self.folder.manifest.recipe or self.folder.manifest.backend
        other = build_index(store, self.new_path(), how)
        rows = self.rows_of(store)
        merged = merge_indexes([self.folder.path, other.path], self.new_path(), prefer=prefer)
        assert merged.shared == len(set(rows) & set(self.truth))
        self.truth = rows | self.truth if prefer == "first" else self.truth | rows
        self.move_to(merged.folder)

    @precondition(lambda self: len(getattr(self, "truth", ())) >= 12)
    @rule(count=st.integers(2, 3))
    def split_and_merge(self, count):
        self.done["split_and_merge"] += 1
        before = contents(self.folder)
        try:
            parts = split_index(self.folder.snapshot, self.new_path(), parts_by_count(self.folder.snapshot, count))
        except InputError as error:  # by chance one would hold nothing
            assert "would hold none" in str(error)
            return
        held = [contents(part) for part in parts.values()]
        assert sum(map(len, held)) == len(before)
        assert {one: item for part in held for one, item in part.items()} == before
        self.move_to(merge_indexes([part.path for part in parts.values()], self.new_path()).folder)
        assert contents(self.folder) == before

    def move_to(self, folder):
        shutil.rmtree(self.folder.path)
        self.folder = folder

    @precondition(lambda self: hasattr(self, "folder"))
    @invariant()
    def holds_the_truth(self):
        assert self.folder.count == len(self.truth)
        if not self.truth:
            return
        ids = np.array(sorted(self.truth), dtype=np.int64)
        rows = np.stack([self.truth[i] for i in ids.tolist()])
        np.testing.assert_array_equal(self.folder.snapshot.rows(ids), rows)
        queries = np.concatenate([rows[:2], np.random.default_rng(len(ids)).standard_normal((2, DIM), np.float32)])
        found = self.folder.snapshot.search_exact(queries, 5)
        expected = brute_force(self.truth, queries, 5)
        width = expected[1].shape[1]
        np.testing.assert_array_equal(found[1][:, :width], expected[1])
        np.testing.assert_array_equal(found[0][:, :width], expected[0])
        assert (found[1][:, width:] == -1).all()
        # whatever a fast search finds, it is an item and has its score
        scores, near = self.folder.snapshot.search(queries, 3)
        exact, order = brute_force(self.truth, queries[:1], len(ids))
        whole = dict(zip(order[0].tolist(), exact[0], strict=True))
        assert set(near[near >= 0].tolist()) <= set(self.truth)
        for score, one in zip(scores[0], near[0].tolist(), strict=True):
            assert one == -1 or score == whole[one]

    def teardown(self):
        if hasattr(self, "folder"):
            assert self.folder.verify()["count"] == len(self.truth)
            shutil.rmtree(self.scratch)


@pytest.mark.timeout(1800)
def test_two_thousand_random_changes_lose_nothing(capsys):
    Life.done.clear()
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=145,
            stateful_step_count=22,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    with capsys.disabled():
        sys.stdout.write(f"\nsteps: {Life.done.total()}: {dict(Life.done)}\n")
    assert Life.done.total() >= 2000
    assert min(Life.done.values()) >= 80


@pytest.mark.parametrize("backend", INDEXES.built_in)
def test_a_reader_keeps_its_snapshot_when_its_files_are_gone(tmp_path, backend):
    """Whatever a backend reads, it has it open: nothing is opened by name at the first search."""
    if backend == "svs":
        pytest.importorskip("svs")
    store, queries = FakeStore(n=150), FakeStore(n=4, seed=8).vectors
    build = {"nlist": 4} if backend.startswith("ivf") else {}
    folder = build_index(store, tmp_path / "index", Recipe(backend, row_dtype="float16", build=build, byte_codes=True))
    readers = [IndexFolder.open(folder.path) for _ in range(2)]
    early = readers[0].snapshot.search(queries, 9), readers[0].snapshot.search_exact(queries, 9)[:2]
    folder.remove(store.ids[::2])
    folder.compact()
    for path in (folder.path / "segments").iterdir():
        assert path.name == folder.manifest.segments[0].name != readers[0].manifest.segments[0].name
    for reader in readers:  # the second one has never searched
        late = reader.snapshot.search(queries, 9), reader.snapshot.search_exact(queries, 9)[:2]
        for before, after in zip(early, late, strict=True):
            np.testing.assert_array_equal(before[0], after[0])
            np.testing.assert_array_equal(before[1], after[1])
        assert reader.snapshot.table(store.ids, ["key"])["key"].to_pylist() == store.table["key"].to_pylist()
    assert folder.verify()["count"] == 75
