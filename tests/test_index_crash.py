"""kill -9 at every step of every change of an index, a full disk, and readers while a writer changes it."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from driver import Driver
from fake_store import FakeStore
from test_index_living import contents

from bindsearch.errors import MissingInputError
from bindsearch.index.build import build_index
from bindsearch.index.folder import IndexFolder

CHANGES = ("build", "add", "remove", "compact", "merge", "split", "reindex")
STAGES = {
    "segment written",
    "folder synced",
    "segment renamed",
    "tombstones written",
    "means written",
    "manifest written",
    "manifest renamed",
    "parts renamed",
    "swept",
}
MOMENTS = 4
SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None


class IndexDriver(Driver):
    """A process that changes indexes and kills itself at it."""

    def run(self, change, folder, kill=None):
        return self.order(change=change, folder=str(folder), kill=kill)


@pytest.fixture(scope="module")
def driver():
    driver = IndexDriver("index_crash_driver.py")
    yield driver
    driver.close()


@pytest.fixture
def scratch():
    """A folder in memory where there is one: what is tested is the order of steps, not the disk."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """An index with several segments, tombstones and means, one short of a fold; and another to merge with."""
    folder = tmp_path_factory.mktemp("before")
    index = build_index(FakeStore(n=40), folder / "index", "flat", centre=True)
    for number in range(6):
        index.add(FakeStore(n=3, seed=50 + number, prefix=f"n{number}"))
    index.remove(FakeStore().ids[:2])
    assert len(index.manifest.segments) == 7
    shutil.copytree(folder / "index", folder / "other")
    other = IndexFolder.open(folder / "other")
    other.remove(FakeStore(n=40).ids[10:])
    other.add(FakeStore(n=4, seed=9, prefix="other"))
    return folder


def state(folder):
    """What a reader finds: the contents of each index of the folder, verified; nothing where there is none."""
    found = {}
    for path in sorted([folder / "index", folder / "other", folder / "out", *(folder / "out").glob("*")]):
        try:
            index = IndexFolder.open(path)
        except MissingInputError:
            continue
        assert index.verify(sample=2)["status"] == "ok"
        found[path.relative_to(folder).as_posix()] = (index.manifest.space_id, contents(index))
    return found


def leftovers(folder):
    """Files that no manifest names."""
    found = [path for path in folder.rglob("*") if ".draft-" in path.name or ".tmp" in path.name]
    for path in folder.rglob("index.json"):
        manifest = IndexFolder.open(path.parent).manifest
        named = {entry.name for entry in manifest.segments} | {entry.tombstones for entry in manifest.segments}
        found += [
            each
            for part in ("segments", "tombstones")
            for each in (path.parent / part).glob("*")
            if each.name not in named
        ]
    return found


def some_of(steps):
    """The first, the middle and the last step of each stage, and on both sides of every commit."""
    stages = {}
    for number, (_, _, stage) in enumerate(steps):
        stages.setdefault(stage, []).append(number)
    chosen = {place for numbers in stages.values() for place in (numbers[0], numbers[len(numbers) // 2], numbers[-1])}
    order = [{"step": number, "when": ("before", "half", "after")[number % 3]} for number in sorted(chosen)]
    commits = stages["manifest renamed"][:2] + stages.get("parts renamed", [])
    return order + [{"step": number, "when": when} for number in commits for when in ("before", "after")]


def all_of(steps):
    """Every step, in every way."""
    return [{"step": number, "when": when} for number in range(len(steps)) for when in ("before", "half", "after")]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("choice", [some_of, pytest.param(all_of, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", CHANGES)
def test_killed_at_every_stage_an_index_is_the_old_one_or_the_new_one(driver, before, scratch, change, choice, kills):
    rng = random.Random(CHANGES.index(change))

    def fresh():
        shutil.rmtree(scratch / "work", ignore_errors=True)
        return Path(shutil.copytree(before, scratch / "work"))

    old = state(before)
    whole = fresh()
    began = time.perf_counter()
    undisturbed = driver.run(change, whole)
    took = time.perf_counter() - began
    assert undisturbed["code"] == 0, undisturbed
    new, steps = state(whole), undisturbed["said"]
    assert new != old or change == "compact"
    assert not leftovers(whole)
    order = choice(steps)
    order += [{"delay_s": rng.uniform(0, took)} for _ in range(MOMENTS)]
    for kill in order:
        folder = fresh()
        answer = driver.run(change, folder, kill)
        if answer["died"] is None:
            assert "delay_s" in kill, (kill, answer)
        else:
            assert answer["died"] == 9, (kill, answer)
            kills[steps[kill["step"]][2] if "step" in kill else "moment"] += 1
        found = state(folder)
        assert found in (old, new), (change, kill, steps[kill["step"]] if "step" in kill else "")
        if found == old or change not in ("merge", "split"):  # these refuse to do it again
            again = driver.run(change, folder)
            assert again["code"] == 0, (change, kill, again)
        assert state(folder) == new
        if change != "split":
            assert not leftovers(folder), (change, kill)


@pytest.fixture(scope="module")
def kills():
    counted: Counter[str] = Counter()
    yield counted
    sys.stdout.write(f"\nkills by stage: {dict(counted)}; {counted.total()} in all\n")


def test_every_stage_was_hit(kills):
    """After the test above, in the same module."""
    if not kills:
        pytest.skip("the test above did not run")
    assert set(kills) - {"moment"} == STAGES
    assert kills.total() >= 50


# ---- a full disk -----------------------------------------------------------------------------------------------------

FULL_DISK = """
import subprocess, sys
from pathlib import Path
from fake_store import FakeStore
from test_index_living import contents
from bindsearch.errors import BindSearchError
from bindsearch.index.build import build_index
from bindsearch.index.folder import IndexFolder
from bindsearch.index.merge import merge_indexes
from bindsearch.index.split import parts_by_modality, split_index

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], check=True)
index = build_index(FakeStore(n=300, dim=256), disk / "index")
before, names = contents(index), sorted(path.name for path in disk.rglob("*"))
large = FakeStore(n=2000, dim=256, prefix="large")
subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
for change in (
    lambda: index.add(large),
    lambda: (index.add(FakeStore(n=300, dim=256, seed=1, prefix="b")), index.compact()),
    lambda: split_index(index.snapshot, disk / "out", parts_by_modality(index.snapshot)),
    lambda: build_index(large, index.path, force=True),
    lambda: build_index(large, disk / "new"),
):
    try:
        change()
        print("went through")
    except BindSearchError as error:
        print(error)
    again = IndexFolder.open(disk / "index")
    assert again.verify()["status"] == "ok"
    assert contents(again).items() >= before.items()
    assert not [path for path in disk.rglob("*") if "draft" in path.name or ".tmp" in path.name]
subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
index.reload()
index.add(large)
index.compact()
assert IndexFolder.open(index.path).verify()["count"] == index.count >= 2300
"""


def test_a_full_disk_leaves_the_index_as_it_was(tmp_path):
    """A file system of 1 MB in a mount namespace of its own; then the same one grown, and the change made."""
    disk, script = tmp_path / "disk", tmp_path / "script.py"
    disk.mkdir()
    script.write_text(FULL_DISK)
    command = ["unshare", "--mount", "--map-root-user", sys.executable, str(script), str(disk)]
    probe = subprocess.run([*command[:3], "true"], capture_output=True)
    if probe.returncode:
        pytest.skip(f"no mount namespaces here: {probe.stderr!r}")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert sum("no space left on the device. What was committed stays" in line for line in lines) >= 4, lines


# ---- readers ---------------------------------------------------------------------------------------------------------


def versioned(version):
    """The same items in every version; rows and sizes tell the version."""
    store = FakeStore(n=24, dim=8, seed=version)
    store.table = store.table.set_column(store.table.column_names.index("size"), "size", [[version] * 24])
    return store


def keep_changing(path, versions, done):
    folder = IndexFolder.open(path)
    for version in range(1, versions):
        folder.add(versioned(version))
        if version % 3 == 0:
            folder.compact()
    done.set()


def test_a_reader_never_sees_a_mixed_state(scratch):
    """Every version replaces every item: an answer of two versions, or one short of an item, would be a mixture."""
    versions = 25
    path = build_index(versioned(0), scratch / "index").path
    spawn = multiprocessing.get_context("spawn")
    done = spawn.Event()
    writer = spawn.Process(target=keep_changing, args=(path, versions, done))
    writer.start()
    reader, seen, kept = IndexFolder.open(path), [], []
    expected = {version: versioned(version) for version in range(versions)}
    while not done.is_set() or len(seen) < 3:
        assert writer.is_alive() or done.is_set()
        snapshot = reader.snapshot
        scores, ids = snapshot.search(expected[0].vectors[:2], 24)
        sizes = set(snapshot.table(ids[0], ["size"])["size"].to_pylist())
        assert len(sizes) == 1
        (version,) = sizes
        store = expected[version]
        np.testing.assert_array_equal(np.sort(ids[0]), np.sort(store.ids))
        np.testing.assert_array_equal(snapshot.rows(store.ids), store.units)
        own = snapshot.search(store.vectors, 1)
        np.testing.assert_array_equal(own[1][:, 0], store.ids)
        seen.append(version)
        if len(kept) < 3:
            kept.append((snapshot, version, scores, ids))
        reader.reload()
    writer.join()
    assert writer.exitcode == 0
    assert seen == sorted(seen), "a reader never goes back"
    assert len(set(seen)) >= 3
    assert IndexFolder.open(path).snapshot.table(expected[0].ids[:1], ["size"])["size"].to_pylist() == [versions - 1]
    for snapshot, version, scores, ids in kept:  # their files are gone by now, their answers are what they were
        found = snapshot.search(expected[0].vectors[:2], 24)
        np.testing.assert_array_equal(found[0], scores)
        np.testing.assert_array_equal(found[1], ids)
        assert set(snapshot.table(ids[0], ["size"])["size"].to_pylist()) == {version}
