"""kill -9 of an embed run at random moments and at each step of a commit: resumed, it equals an undisturbed one."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hostile import picture_bytes

from bindsearch.errors import MissingInputError
from bindsearch.store import EmbeddingStore
from bindsearch.types import item_id

PICTURES, TEXTS, BAD = 1200, 1800, 25
MOMENTS = 20


class Driver:
    """A process that runs embed runs and kills them."""

    def __init__(self):
        script = Path(__file__).parent / "crash_driver.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, sources, out, workers=0, kill=None):
        order = {"sources": [str(source) for source in sources], "out": str(out), "workers": workers, "kill": kill}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        with self.process:  # closes the pipes and waits
            self.process.stdin.close()
        assert self.process.returncode == 0


@pytest.fixture(scope="module")
def driver():
    driver = Driver()
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
    """Checksum of every file but the lock, whose presence is no content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.lock"
    }


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


def test_killed_at_every_stage_and_resumed_equals_undisturbed(driver, sources, tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert driver.run(sources, whole, workers=2)["code"] == 0
    total = PICTURES + TEXTS
    kills: Counter[str] = Counter()
    for number, (stage, kill) in enumerate(kill_list(seed=8)):
        before = committed(broken)
        order = dict(kill)
        if stage == "moment":
            order["items"] = max(0, int(total * order.pop("at")) - before)
        answer = driver.run(sources, broken, workers=2 if number % 5 == 0 else 0, kill=order)
        assert answer["died"] == 9, (stage, kill, answer)
        assert committed(broken) >= before, "a commit was lost"
        kills[f"moment: {answer['stage']}" if stage == "moment" else stage] += 1
    final = driver.run(sources, broken)
    assert final["code"] == 0

    with capsys.disabled():
        print(f"\nkills by stage: {dict(kills)}; {sum(kills.values())} in all")
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
