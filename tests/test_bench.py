"""`bindsearch bench`: every part gives figures that hang together; what cannot be measured is said."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from bindsearch.bench import BenchOptions, run_bench
from bindsearch.bench.rates import BATCH, _random_space
from bindsearch.bench.run import Report, _busy, number
from bindsearch.bench.timing import rate_figure, seconds_of, time_figure
from bindsearch.cli import run
from bindsearch.errors import InputError, UnknownNameError


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Limits, rates and the index, in a second or two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BINDSEARCH_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("bindsearch.bench.limits.MEMORY_BYTES", 1 << 20)
        patch.setattr("bindsearch.bench.limits.DISK_BYTES", 16 << 20)
        patch.setattr("bindsearch.bench.limits.ROWS", {"cpu": (16, 32, 64)})
        patch.setattr("bindsearch.bench.scan.ROWS", 2000)
        patch.setattr("bindsearch.bench.scan.DIM", 32)
        told = []
        options = BenchOptions("tiny:1", "cpu", ("float32", "bfloat16"), 0.5, ("limits", "rates", "index"))
        found = run_bench(options, lambda name, place, count: told.append((name, place, count)))
    assert [place for _, place, _ in told] == list(range(len(told)))
    assert told[-1] == ("done", len(told) - 1, len(told) - 1)
    return found


def test_each_modality_is_prepared_and_encoded_in_each_type(report):
    names = [each.name for each in report.figures if each.part == "rates"]
    for modality in ("image", "video", "text", "audio", "depth", "thermal", "imu"):
        own = [name.partition(", ")[2] for name in names if name.startswith(f"{modality}, ")]
        assert own == [
            "prepare one",
            "encode one, float32",
            "encode, float32",
            "encode one, bfloat16",
            "encode, bfloat16",
        ]
    assert {each.note.split(", ")[-1] for each in report.figures if ", encode, " in each.name} <= {
        f"batch {BATCH}",
        "batch 1",
    }


def test_figures_hang_together(report):
    assert {each.part for each in report.figures} == {"limits", "rates", "index"}
    for each in report.figures:
        assert 0 < each.low <= each.value <= each.high, each
        assert each.runs >= 1
    by_name = {each.name: each for each in report.figures}
    assert by_name["search, one query"].unit == "ms/query"
    assert by_name["matrix products, float32"].note.startswith("16 × 32 × 64")


def test_the_table_has_a_line_a_modality_and_the_json_has_all(report):
    text = report.to_markdown()
    lines = text.splitlines()
    assert lines[0] == "**bindsearch bench** of tiny:1"
    assert "/home" not in text and sys.executable not in text
    table = [line for line in lines if line.startswith("|")]
    assert len([line for line in table if line.startswith("| audio |")]) == 1
    header = next(line for line in table if line.startswith("| modality"))
    row = next(line for line in table if line.startswith("| video |"))
    assert header.count("|") == row.count("|") == 8
    data = json.loads(json.dumps(report.to_json()))
    assert len(data["figures"]) == len(report.figures)
    assert data["options"]["space"] == "tiny:1"


def test_random_weights_stand_in_for_an_architecture():
    space = _random_space("tiny", "cpu", "auto")
    kind = space.modality("text")
    clips = kind.preprocess(kind.example(0), space.config("text"))
    row = space.encode("text", clips[None])
    assert row.shape == (1, space.dim)
    assert np.linalg.norm(row) == pytest.approx(1.0, abs=1e-6)


def test_what_cannot_be_measured_is_a_note(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BINDSEARCH_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr("bindsearch.bench.limits.MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr("bindsearch.bench.limits.ROWS", {"cpu": (16, 32, 64)})
    found = run_bench(BenchOptions("tiny", "cpu", ("float32",), 0.5, ("limits",)))
    assert any(note.startswith("disk: not measured") for note in found.notes)
    assert [each.name for each in found.figures][-1] == "memory, copy"


def test_a_started_process_that_fails_is_a_note_and_is_told_the_device(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
echo "$*" >> {tmp_path}/asked
case "$*" in *--text*) echo warning >&2; echo "error: no such device" >&2; exit 2;; esac
""",
        encoding="utf-8",
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr("bindsearch.bench.start._write_index", lambda folder, space: (folder / "index", True))
    found = run_bench(BenchOptions("tiny", "cpu", ("float32",), 0.5, ("start",)))
    assert [each.name for each in found.figures] == ["import torch", "--help", "query by a vector"]
    assert found.notes[-1].endswith(
        "starting processes: not measured: query by words, first time: exit code 2: error: no such device"
    )
    words = [line for line in (tmp_path / "asked").read_text(encoding="utf-8").splitlines() if "--text" in line]
    assert len(words) == 1 and words[0].endswith("--space tiny --device cpu")


def test_a_busy_machine_is_said_of_rates_and_of_times(monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (8.0, 8.0, 8.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert _busy() == "The machine was busy when this began (load 8.0 on 2 cores): left alone it is faster."
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 8.0, 8.0))
    assert _busy() == ""


def test_names_in_a_list_may_have_blanks_around_them(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("bindsearch.bench.run_bench", lambda options, _: asked.append(options) or Report({}, options))
    assert run(["bench", "--only", "limits, start", "--dtype", "float32, fast", "--space", "tiny"]) == 0
    assert (asked[0].parts, asked[0].dtypes) == (("limits", "start"), ("float32", "fast"))


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(UnknownNameError, match="limit"):
        BenchOptions(parts=("limit",))
    with pytest.raises(InputError, match="--seconds"):
        BenchOptions(seconds=0)
    with pytest.raises(InputError, match="--seconds: expected a number above 0, got inf"):
        BenchOptions(seconds=float("inf"))
    with pytest.raises(UnknownNameError, match="tiny"):
        run_bench(BenchOptions("tinny", parts=("rates",)))
    with pytest.raises(UnknownNameError, match="tiny"):
        run_bench(BenchOptions("tinny", parts=("index",)))  # which measures no space


def test_medians_rates_and_budgets():
    assert rate_figure("limits", "x", "1/s", 10.0, [1.0, 2.0, 5.0]).value == 5.0
    assert rate_figure("limits", "x", "1/s", 10.0, [1.0, 2.0, 5.0]).low == 2.0
    assert time_figure("start", "x", "ms", [0.001, 0.003, 0.002], 1e3).value == pytest.approx(2.0)
    calls = []
    assert len(seconds_of(lambda: calls.append(1), 0.0)) == 1
    assert len(calls) == 1
    assert len(seconds_of(lambda: calls.append(1), 1e-3)) >= 3
    assert [number(value) for value in (12345.6, 123.4, 12.34, 1.234, 0.1234)] == [
        "12,346",
        "123",
        "12.3",
        "1.23",
        "0.123",
    ]


def test_the_command_prints_json_alone_and_starting_is_measured():
    command = [sys.executable, "-m", "bindsearch", "bench", "--space", "tiny", "--only", "start", "--json"]
    done = subprocess.run([*command, "--seconds", "1"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = {each["name"]: each for each in json.loads(done.stdout)["figures"]}
    assert list(found) == [
        "import torch",
        "--help",
        "query by a vector",
        "query by words, first time",
        "query by words, asked before",
    ]
    assert all(each["note"].endswith("s of CPU time") for each in found.values())
    assert "starting processes" in done.stderr
