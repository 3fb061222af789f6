"""Ten of the runs of benchmarks/bench_faults.py: struck, resumed, and equal to undisturbed ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bench_faults import KINDS
from benchmarks.fault_inputs import make_inputs
from benchmarks.fault_victim import STAGES

FIRST, RUNS = 0, 10


@pytest.mark.timeout(900)
def test_ten_runs_that_are_struck_and_resumed_equal_undisturbed_ones(tmp_path, capsys):
    command = [sys.executable, "-m", "benchmarks.bench_faults", "--quick", "--folder", str(tmp_path)]
    command += ["--first", str(FIRST), "--runs", str(RUNS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    with capsys.disabled():
        sys.stdout.write(f"\nfaults by stage: {found['by_stage']}; by kind: {found['by_kind']}\n")
    assert found["problems"] == []
    assert found["equal"] == found["runs"] == RUNS
    assert found["faults"] >= RUNS // 2
    assert set(found["by_stage"]) == set(STAGES)
    assert set(found["by_kind"]) <= set(KINDS)
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == list(range(FIRST, FIRST + RUNS))


def test_one_input_in_twenty_is_broken_and_known(tmp_path):
    inputs = make_inputs(tmp_path, 3)
    first, second = inputs.broken
    assert first < second
    assert 0.04 < len(first) / (140 + 41 + 100) < 0.06
    assert {key.rpartition(".")[2] for key in first} >= {"png", "wav"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert make_inputs(tmp_path, 3) == inputs
    assert {path: path.stat().st_mtime_ns for path in before} == before
