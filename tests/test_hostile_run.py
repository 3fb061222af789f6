"""A run over the hostile corpus among good files: each good one embedded, each bad one in the ledger with a reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import picture_bytes, sound_bytes, write_hostile

from bindsearch.types import to_text

SCRIPT = """
import json, sys, time
from bindsearch.embed import EmbedOptions, run_embed
from bindsearch.embed import run as running
from bindsearch.models.spaces import load_space

seconds = {}
real = running.ShardRows.add_batch

def add_batch(self, batch):
    seconds.update({item.key: outcome.seconds for item, outcome in batch})
    return real(self, batch)

running.ShardRows.add_batch = add_batch
report = run_embed([sys.argv[1]], sys.argv[2], load_space("tiny", device="cpu"), options=EmbedOptions(workers=2))
code = 0
try:
    report.check_bad()
except Exception as error:
    code = error.exit_code
print(json.dumps({"report": report.to_json(), "seconds": seconds}))
sys.exit(code)
"""


def without_power():
    """Drop what lets the superuser read any file, where the tests run as one."""
    if os.geteuid() != 0:
        return []
    powers = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--inh-caps={powers}", f"--bounding-set={powers}"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.fail("run as root without setpriv: run the tests as an ordinary user, or install util-linux")
    return command


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The hostile inputs, 12 good files, an unreadable folder; and what is to become of each, by key."""
    folder = tmp_path_factory.mktemp("corpus")
    expected = {}
    for path, modality, why in write_hostile(folder / "hostile"):
        if modality is not None:
            expected[to_text(f"hostile/{path.name}")] = "ok" if why.startswith("legal:") else "bad"
    (folder / "good").mkdir()
    for number in range(12):
        name = f"good/{number:02d}.{'png' if number % 2 else 'wav'}"
        (folder / name).write_bytes(picture_bytes(seed=number) if number % 2 else sound_bytes())
        expected[name] = "ok"
    (folder / "locked").mkdir()
    (folder / "locked" / "x.png").write_bytes(picture_bytes())
    (folder / "locked").chmod(0)
    expected["locked"] = "bad"
    yield folder, expected
    (folder / "locked").chmod(0o700)


@pytest.fixture(scope="module")
def outcome(corpus, tmp_path_factory):
    folder, _ = corpus
    out = tmp_path_factory.mktemp("out") / "store"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*without_power(), sys.executable, "-c", SCRIPT, str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=out.parent)
    assert done.returncode in (0, 4), done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), out


def test_every_good_file_is_embedded_and_every_bad_one_has_a_reason(corpus, outcome):
    from bindsearch.store import open_store

    _, expected = corpus
    _, _, out = outcome
    store = open_store(out)
    found = dict.fromkeys(store.items(["key"]).column("key").to_pylist(), "ok")
    ledger = [json.loads(line) for line in (out / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    found.update(dict.fromkeys((row["key"] for row in ledger), "bad"))
    assert found == {key: state for key, state in expected.items() if ".features." not in key}  # no projector here
    assert sum(state == "bad" for state in expected.values()) >= 40
    assert sum(state == "ok" for state in expected.values()) >= 30
    for row in ledger:
        assert row["stage"] in ("list", "read", "decode", "preprocess", "worker")
        assert 4 <= len(row["reason"]) <= 500
        assert " at 0x" not in row["reason"]
    reasons = {row["key"]: row["reason"] for row in ledger}
    assert reasons["hostile/unreadable.png"] == reasons["locked"] == "no permission to read it"


def test_each_item_ends_within_the_limit(outcome):
    _, facts, _ = outcome
    slowest = max(facts["seconds"], key=facts["seconds"].get)
    assert facts["seconds"][slowest] <= 30, slowest
    assert len(facts["seconds"]) > 120


def test_nothing_is_run_and_no_media_is_only_counted(outcome):
    code, facts, out = outcome
    assert code == 4, "more than a tenth of this corpus is bad"
    assert facts["report"]["ignored"] == {"(none)": 1, ".pkl": 1, ".zip": 1, "features (not in the space)": 5}
    assert facts["report"]["hidden"] == 1
    assert not (out.parent / "pickle_was_run").exists()
    assert not Path("pickle_was_run").exists()
