"""kill -9 of an embed run at random moments and at each step of a commit: resumed, it equals an undisturbed one."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from driver import Driver
from hostile import picture_bytes

from bindsearch.errors import MissingInputError
from bindsearch.store import EmbeddingStore
from bindsearch.types import item_id

PICTURES, TEXTS, BAD = 1200, 1800, 25
MOMENTS = 20
SHARD_ITEMS = 100


class CrashDriver(Driver):
    """A process that runs embed runs and kills them."""

    def run(self, sources, out, workers=0, kill=None, **more):
        sources = [str(source) for source in sources]
        return self.order(sources=sources, out=str(out), workers=workers, kill=kill, **more)


@pytest.fixture(scope="module")
def driver():
    driver = CrashDriver("crash_driver.py")
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """1,200 pictures, 25 of them cut, and 1,800 texts."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(PICTURES):
        path = folder / f"{number % 40:02d}" / f"{number:04d}.png"
        path.parent.mkdir(exist_ok=True)
        data = picture_bytes(size=(24, 20), seed=number)
        path.write_bytes(data[: len(data) // 2] if number % 48 == 7 else data)
    rows = [
        json.dumps({"text": f"text number {number}: {'very ' * (number % 7)}long", "n": number})
        for number in range(TEXTS)
    ]
    manifest = folder / "texts.jsonl"
    manifest.write_text("\n".join(rows), encoding="utf-8")
    return [folder, manifest]


def digests(folder):
    """Checksum of every file: temporary files, leases and whatever else a killed run has left count too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(driver, sources, tmp_path_factory):
    """What an undisturbed run makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert driver.run(sources, out, workers=2)["code"] == 0
    return out


STEPS = {
    "temp write": [
        {"call": "fsync", "file": "plan.parquet.tmp", "when": "half"},
        {"call": "fsync", "file": ".npy.tmp", "when": "half"},
        {"call": "fsync", "file": ".parquet.tmp", "when": "half"},
        {"call": "fsync", "file": "bad.jsonl.tmp", "when": "half"},
    ],
    "fsync": [
        {"call": "fsync", "file": "plan.json.tmp", "when": "after"},
        {"call": "fsync", "file": ".npy.tmp", "when": "before"},
        {"call": "fsync", "file": ".parquet.tmp", "when": "after"},
        {"call": "fsync", "file": "manifest.json.tmp", "when": "before"},
    ],
    "rename": [
        {"call": "replace", "file": "plan.parquet", "when": "after"},
        {"call": "replace", "file": "-00001.npy", "when": "after"},
        {"call": "replace", "file": "-00001.parquet", "when": "before"},
        {"call": "replace", "file": "manifest.json", "when": "before"},
    ],
    "done-file": [
        {"call": "fsync", "file": ".done.json.tmp", "when": "half"},
        {"call": "replace", "file": ".done.json", "when": "before"},
        {"call": "replace", "file": ".done.json", "when": "after"},
    ],
}
FIRST, LAST = ("plan.",), ("bad.jsonl", "manifest.json")


def kill_list(seed):
    """Order the kills: those of planning, then moments and commit steps in turn, then those of finishing."""
    rng = random.Random(seed)
    steps = [(stage, kill) for stage, kills in STEPS.items() for kill in kills]
    first = [pair for pair in steps if pair[1]["file"].startswith(FIRST)]
    last = [pair for pair in steps if pair[1]["file"].startswith(LAST)]
    middle = [pair for pair in steps if pair not in first and pair not in last]
    first.insert(0, ("moment", {"at": 0, "delay_s": rng.uniform(0, 0.3)}))
    moments = sorted(rng.uniform(0.01, 0.97) for _ in range(MOMENTS - 1))
    for at in moments:
        first.append(("moment", {"at": at, "delay_s": rng.uniform(0, 0.05)}))
    for number, pair in enumerate(middle):
        first.insert(6 + 2 * number, pair)
    return [*first, *last]


def committed(out):
    """Items in committed shards."""
    try:
        store = EmbeddingStore.open(out, partial=True)
    except MissingInputError:
        return 0
    store.verify()
    return store.items(["id"], status=None).num_rows


def order_of(stage, kill, total, before, **changed):
    """Write the driver's order for a kill; a moment is a share of all items, counted from those already committed."""
    if stage != "moment":
        return kill
    items = max(1, int(total * kill["at"]) - before) if kill["at"] else 0
    return {"items": items, "delay_s": kill["delay_s"], **changed}


@pytest.mark.timeout(900)
def test_killed_at_every_stage_and_resumed_equals_undisturbed(driver, sources, whole, tmp_path, capsys):
    broken = tmp_path / "broken"
    total = PICTURES + TEXTS
    kills: Counter[str] = Counter()
    for number, (stage, kill) in enumerate(kill_list(seed=8)):
        workers = 2 if number % 5 == 0 else 0
        before = committed(broken)
        answer = driver.run(sources, broken, workers=workers, kill=order_of(stage, kill, total, before))
        if answer["died"] is None:  # the run was quicker than its killer: it is whole, and the next one starts anew
            assert answer["code"] == 0, (stage, kill, answer)
            assert digests(broken) == digests(whole)
            shutil.rmtree(broken)
            before = 0
            answer = driver.run(sources, broken, workers=workers, kill=order_of(stage, kill, total, 0, delay_s=0.0))
        assert answer["died"] == 9, (stage, kill, answer)
        assert committed(broken) >= before, "a commit was lost"
        kills[f"moment: {answer['stage']}" if stage == "moment" else stage] += 1
    final = driver.run(sources, broken)
    assert final["code"] == 0

    with capsys.disabled():
        sys.stdout.write(f"\nkills by stage: {dict(kills)}; {sum(kills.values())} in all\n")
    assert sum(count for name, count in kills.items() if name.startswith("moment")) == MOMENTS
    assert all(kills[stage] > 0 for stage in STEPS)

    assert digests(broken) == digests(whole)
    assert not list(broken.rglob("*.tmp"))
    store = EmbeddingStore.open(broken)
    keys = store.items(["key"], status=None).column("key").to_pylist()
    expected = [f"{number % 40:02d}/{number:04d}.png" for number in range(PICTURES)]
    expected += [f"texts.jsonl#{number}" for number in range(TEXTS)]
    assert sorted(keys) == sorted(expected)
    assert len(store) == total - BAD and len(store.bad()) == BAD
    assert set(store.ids().tolist()) == {item_id(key) for key in expected} - {
        item_id(row["key"]) for row in store.bad()
    }
    assert np.isfinite(store.vectors()).all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_shard_in_hand(driver, sources, whole, tmp_path, number):
    out = tmp_path / "out"
    answer = driver.run(sources, out, workers=2, kill={"items": 130, "delay_s": 0, "signal": number})
    assert (answer["died"], answer["code"]) == (None, 130)
    done = committed(out)
    assert 130 <= done < PICTURES + TEXTS
    assert done % SHARD_ITEMS == 0
    assert not list(out.rglob("*.tmp"))
    assert driver.run(sources, out)["code"] == 0
    assert digests(out) == digests(whole)


def test_a_full_disk_ends_the_run_with_what_was_committed(driver, sources, whole, tmp_path):
    """No file may grow over a limit: the first one that does is the plan; with more room, a table of a shard."""
    out = tmp_path / "out"
    plan = (whole / "g0001" / "plan.parquet").stat().st_size
    answer = driver.run(sources, out, largest_file_bytes=plan // 2)
    assert answer["code"] == 1
    assert "BindSearchError" in answer["words"]
    assert committed(out) == 0
    largest = max(path.stat().st_size for path in whole.rglob("text-*") if path.suffix == ".parquet")
    shutil.copytree(whole, out, dirs_exist_ok=True)
    for path in [*out.rglob("text-*"), out / "manifest.json", out / "bad.jsonl"]:
        path.unlink()
    answer = driver.run(sources, out, largest_file_bytes=largest - 1)
    assert answer["code"] == 1
    assert "What was committed stays. Make room and run the same command again" in answer["words"]
    assert PICTURES <= committed(out) < PICTURES + TEXTS
    assert not list(out.rglob("*.tmp"))
    assert driver.run(sources, out)["code"] == 0
    assert digests(out) == digests(whole)


def test_a_disk_without_space_ends_the_run_and_loses_nothing(sources, tmp_path):
    """A file system of 400 kB in a mount namespace of its own; then the same one grown, and the run resumed."""
    disk, script = tmp_path / "disk", tmp_path / "script.py"
    disk.mkdir()
    script.write_text(FULL_DISK)
    command = ["unshare", "--mount", "--map-root-user", sys.executable, str(script), str(disk), *map(str, sources)]
    probe = subprocess.run([*command[:3], "true"], capture_output=True)
    if probe.returncode:
        pytest.skip(f"no mount namespaces here: {probe.stderr!r}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words, before, after = done.stdout.splitlines()
    assert "no space left on the device" in words
    assert 0 < int(before) < int(after) == PICTURES + TEXTS


FULL_DISK = """
import subprocess, sys
from bindsearch.embed import EmbedOptions, run_embed
from bindsearch.errors import BindSearchError
from bindsearch.models.spaces import load_space
from bindsearch.store import open_store

disk, *sources = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk], check=True)
space = load_space("tiny", device="cpu")
options = EmbedOptions(shard_size=100, workers=0)
try:
    run_embed(sources, disk + "/out", space, options=options)
except BindSearchError as error:
    print(error)
print(open_store(disk + "/out", partial=True).items(["id"], status=None).num_rows)
subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
run_embed(sources, disk + "/out", space, options=options)
print(open_store(disk + "/out").items(["id"], status=None).num_rows)
"""
