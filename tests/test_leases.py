"""Several processes on one folder: leases are exclusive, the dead are succeeded, the result is a single process's."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from driver import Driver
from hostile import picture_bytes

from bindsearch.cli.several import own_device, process_count
from bindsearch.embed import EmbedOptions, run_embed
from bindsearch.embed import run as running
from bindsearch.embed.lease import FOLDER, Crew, LostLeaseError, Member
from bindsearch.embed.place import Place
from bindsearch.embed.status import folder_status, status_text
from bindsearch.errors import InputError, MissingInputError
from bindsearch.processes import is_running, started
from bindsearch.store import open_store
from bindsearch.store.files import sweep_temps, temp_path, writer_mark

PICTURES, TEXTS, SHARDS = 150, 130, 15
pytestmark = pytest.mark.timeout(900)


def crew_of(out, task="t", silence_s=60.0):
    return Crew(Path(out), Member.here(task, "1/1", silence_s))


# ---------------------------------------------------------------- leases


def test_a_lease_has_one_holder_and_comes_back(tmp_path):
    with crew_of(tmp_path) as one, crew_of(tmp_path) as other:
        lease = one.take("g0001-image-00000")
        assert other.take("g0001-image-00000") is None
        assert one.take("g0001-image-00000") is None  # no second time to its own holder either
        assert other.take("g0001-image-00001") is not None
        lease.check()
        lease.release()
        again = other.take("g0001-image-00000")
        assert again.number == 1
        with pytest.raises(LostLeaseError, match="another process has taken this over"):
            lease.check()
    assert list(tmp_path.iterdir()) == []


def test_the_last_one_out_removes_what_the_dead_have_left(tmp_path):
    leave_dead(tmp_path, "plan")
    with crew_of(tmp_path) as one:
        with crew_of(tmp_path):
            assert len(list((tmp_path / FOLDER).glob("*.member"))) == 3
        assert (tmp_path / FOLDER).is_dir()
        assert [member.name for member in one.others()] == []
    assert list(tmp_path.iterdir()) == []


def leave_dead(folder, name):
    """Have a real process take a lease and die with it."""
    pid = os.fork()
    if pid == 0:
        crew = crew_of(folder)
        crew._register()
        os._exit(0 if crew.take(name) else 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return pid


def test_what_a_dead_process_held_is_taken_over_at_once(tmp_path):
    leave_dead(tmp_path, "plan")
    with crew_of(tmp_path) as one:
        assert one.holder("plan")["number"] == 1
        lease = one.take("plan")
        assert lease.number == 2
        lease.check()


def test_a_process_that_ended_but_was_not_waited_for_is_dead():
    process = subprocess.Popen(["true"])
    begun = started(process.pid)
    while started(process.pid) == begun and is_running(process.pid, begun):
        time.sleep(0.01)
    assert not is_running(process.pid, begun)  # a zombie: its number is still taken
    process.wait()
    assert is_running(os.getpid(), started(os.getpid()))
    assert not is_running(os.getpid(), "1")  # the number is another's now


def foreign_member(folder, silence_s):
    """Write the file of a member of another machine, and a lease of its."""
    member = replace(Member.here("t", "1/2", silence_s), name="elsewhere-1", home="another machine", host="far", pid=1)
    crew = Crew(folder, member)
    crew._register()
    assert crew.take("plan") is not None
    return crew


def test_a_process_of_another_machine_is_dead_when_it_is_silent(tmp_path):
    """Its clock does not matter: what counts is that the time of its file has not changed while one looked."""
    far = foreign_member(tmp_path, silence_s=0.3)
    path = far.path_of(far.me)
    os.utime(path, (2e9, 2e9))
    with crew_of(tmp_path) as one:
        since = time.monotonic()
        os.utime(path, (1e9, 1e9))
        assert one.take("plan") is None
        while one.take("plan") is None:
            if time.monotonic() - since < 0.6:
                os.utime(path)
            time.sleep(0.02)
        assert time.monotonic() - since > 0.6 + 0.25
        assert one.holder("plan")["number"] == 2


def test_a_process_that_was_taken_for_dead_comes_back_as_a_member(tmp_path):
    with crew_of(tmp_path, silence_s=0.3) as one:
        one.path_of(one.me).unlink()
        with crew_of(tmp_path) as other:
            deadline = time.monotonic() + 5
            while not other.others() and time.monotonic() < deadline:
                time.sleep(0.02)
            assert [member.name for member in other.others()] == [one.me.name]


def test_leases_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with crew_of(tmp_path) as one, crew_of(tmp_path) as other:
        assert one.take("plan") is not None
        assert other.take("plan") is None
    assert list(tmp_path.iterdir()) == []


def test_an_empty_lease_file_is_somebody_writing_until_it_is_old(tmp_path):
    with crew_of(tmp_path, silence_s=0.2) as one:
        (tmp_path / FOLDER / "plan.1").touch()
        assert one.take("plan") is None
        time.sleep(0.3)
        assert one.take("plan").number == 2


def test_processes_that_race_for_leases_win_each_once(tmp_path):
    names = [f"g0001-image-{number:05d}" for number in range(60)]
    pids = []
    for racer in range(4):
        pid = os.fork()
        if pid == 0:
            crew = crew_of(tmp_path)
            crew._register()
            won = [name for name in names if crew.take(name)]
            (tmp_path / f"won{racer}.json").write_text(json.dumps(won))
            deadline = time.monotonic() + 60
            while len(list(tmp_path.glob("won*.json"))) < 4 and time.monotonic() < deadline:  # nobody dies before
                time.sleep(0.01)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    won = Counter(name for path in tmp_path.glob("won*.json") for name in json.loads(path.read_text()))
    assert won == Counter(names)


def test_temporary_files_of_the_living_are_spared(tmp_path):
    mine, dead = temp_path(tmp_path / "x.npy"), tmp_path / "abcdef-1~g0001.tmp"
    assert mine.name == f"{writer_mark()}~x.npy.tmp"
    mine.write_bytes(b"1")
    dead.mkdir()
    (dead / "plan.parquet").write_bytes(b"2")
    assert sweep_temps(tmp_path, lambda: {writer_mark()}) == 1
    assert list(tmp_path.iterdir()) == [mine]


# ---------------------------------------------------------------- places


def test_places_come_from_the_flag_torchrun_or_slurm():
    assert Place.of(None, {}) == Place()
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert Place.of(None, torchrun) == Place(6, 8, 1, 4, True)
    slurm = {"SLURM_PROCID": "2", "SLURM_NTASKS": "6", "SLURM_LOCALID": "2", "SLURM_NTASKS_PER_NODE": "3(x2)"}
    assert Place.of(None, slurm) == Place(3, 6, 2, 3, True)
    assert Place.of(None, {**slurm, **torchrun}) == Place(6, 8, 1, 4, True)
    assert Place.of("2/4", slurm) == Place(2, 4, 2, 3, True)
    assert str(Place.of("2/4", {})) == "2/4"
    assert Place.of(None, {"RANK": "3"}) == Place()  # half of it says nothing
    assert Place.of(None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) == Place()  # a batch job of one is no launcher
    for rank, size in (("5", "2"), ("a", "2"), ("0", "b")):
        with pytest.raises(InputError, match=f"RANK={rank}, WORLD_SIZE={size}: expected .*unset RANK WORLD_SIZE"):
            Place.of(None, {"RANK": rank, "WORLD_SIZE": size})
    for wrong in ("0/4", "5/4", "1", "a/b", "-1/3"):
        with pytest.raises(InputError, match="--shard: expected i/n, counted from 1"):
            Place.of(wrong, {})


def test_places_share_out_the_shards_and_the_cpus():
    assert [Place(number, 4).first(10) for number in (1, 2, 3, 4)] == [0, 2, 5, 7]
    alone, fourth = EmbedOptions(), EmbedOptions(place=Place(1, 4, 0, 4))
    assert fourth.worker_count() == max(1, min(8, len(os.sched_getaffinity(0)) // 4))
    assert alone.worker_count() >= fourth.worker_count()


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    import torch

    assert own_device("cpu", Place(2, 4, 1, 4, True)) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert process_count(None, Place(), "auto") == process_count(None, Place(), "cuda") == 4
    assert process_count(None, Place(), "cpu") == process_count(None, Place(), "cuda:1") == 1
    assert process_count(2, Place(), "cuda") == 2
    assert process_count(None, Place(2, 8, 1, 4, True), "cuda") == 1
    assert [own_device("cuda", Place(1, 4, local, 4)) for local in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert own_device("auto", Place(6, 8, 5, 8, True)) == "cuda:1"  # more processes than GPUs share them
    assert own_device("cuda:3", Place(2, 4, 1, 4, True)) == "cuda:3"
    assert own_device("auto", Place()) == "auto"


# ---------------------------------------------------------------- runs


class CrewDriver(Driver):
    """A process that runs several embed processes at once."""

    def run(self, out, members, strike=None):
        return self.order(out=str(out), members=members, strike=strike)


@pytest.fixture(scope="module")
def driver():
    driver = CrewDriver("crew_driver.py")
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """150 pictures, seven of them cut, and 130 texts: 8 and 7 shards."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(PICTURES):
        data = picture_bytes(size=(24, 20), seed=number)
        (folder / f"{number:04d}.png").write_bytes(data[: len(data) // 2] if number % 20 == 7 else data)
    manifest = folder / "texts.jsonl"
    manifest.write_text("\n".join(json.dumps({"text": f"text number {number}"}) for number in range(TEXTS)))
    return [str(folder), str(manifest)]


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(driver, sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    (answer,) = driver.run(out, [{"sources": sources}])
    assert answer["code"] == 0
    assert answer["report"]["shards"] == SHARDS
    return contents(out)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_on_one_folder_are_disjoint_and_complete(driver, sources, whole, tmp_path, count):
    members = [{"sources": sources, "place": f"{number}/{count}", "pace_s": 0.05} for number in range(1, count + 1)]
    answers = driver.run(tmp_path / "out", members)
    assert [answer["code"] for answer in answers] == [0] * count
    reports = [answer["report"] for answer in answers]
    assert sum(report["shards"] for report in reports) == SHARDS  # nothing was made twice
    assert sum(sum(report["embedded"].values()) for report in reports) == PICTURES + TEXTS - 8
    assert min(report["shards"] for report in reports) > 0
    assert all(report["items"] == PICTURES + TEXTS - 8 and report["bad_items"] == 8 for report in reports)
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("count", [2, 4])
def test_what_a_killed_process_held_is_taken_over(driver, sources, whole, tmp_path, count):
    members = [{"sources": sources, "place": f"{number}/{count}", "pace_s": 0.02} for number in range(1, count + 1)]
    strike = {"member": 1, "items": 10, "signal": signal.SIGKILL}
    answers = driver.run(tmp_path / "out", members, strike)
    assert answers[1]["died"] == signal.SIGKILL
    assert all(answer["code"] == 0 for number, answer in enumerate(answers) if number != 1)
    assert contents(tmp_path / "out") == whole


def test_a_planner_that_is_killed_is_succeeded_too(driver, sources, whole, tmp_path):
    """The first to come plans; killed in its first shard, it leaves the rest and the manifest to the second."""
    members = [{"sources": sources}, {"sources": sources, "delay_s": 0.5}]
    answers = driver.run(tmp_path / "out", members, {"member": 0, "items": 10, "signal": signal.SIGKILL})
    assert answers[0]["died"] == signal.SIGKILL
    assert answers[1]["code"] == 0
    assert contents(tmp_path / "out") == whole


def test_one_that_sleeps_loses_its_shard_and_finds_it_done(driver, sources, whole, tmp_path):
    """Stopped in the middle of a shard; when it goes on, its lease is another's, and it writes nothing."""
    out = tmp_path / "out"
    members = [{"sources": sources, "place": f"{number}/2", "silence_s": 1.5, "pace_s": 0.02} for number in (1, 2)]
    strike = {"member": 1, "items": 10, "signal": signal.SIGSTOP, "until": str(out / "manifest.json")}
    answers = driver.run(out, members, strike)
    assert [answer["code"] for answer in answers] == [0, 0]
    assert sum(answer["report"]["shards"] for answer in answers) == SHARDS
    assert contents(out) == whole


def test_a_signal_ends_one_and_the_other_finishes(driver, sources, whole, tmp_path):
    members = [{"sources": sources, "place": f"{number}/2", "pace_s": 0.05} for number in (1, 2)]
    answers = driver.run(tmp_path / "out", members, {"member": 0, "items": 30, "signal": signal.SIGTERM})
    assert [answer["code"] for answer in answers] == [130, 0]
    assert contents(tmp_path / "out") == whole


def test_processes_with_other_sources_come_one_after_the_other(driver, sources, tmp_path):
    """Each list is planned; who comes second helps with the first plan before."""
    answers = driver.run(tmp_path / "out", [{"sources": sources[:1]}, {"sources": sources[1:], "delay_s": 0.2}])
    assert [answer["code"] for answer in answers] == [0, 0]
    assert len(open_store(tmp_path / "out")) == PICTURES + TEXTS - 8
    assert not (tmp_path / "out" / FOLDER).exists()


def test_one_that_only_joins_needs_no_sources(driver, sources, whole, tmp_path):
    members = [{"sources": [], "join": True}, {"sources": sources, "pace_s": 0.05, "delay_s": 0.2}]
    answers = driver.run(tmp_path / "out", members)
    assert [answer["code"] for answer in answers] == [0, 0]
    assert answers[0]["report"]["shards"] > 0
    assert sum(answer["report"]["shards"] for answer in answers) == SHARDS
    assert contents(tmp_path / "out") == whole


def test_a_second_run_by_several_plans_once(driver, sources, whole, tmp_path):
    out = tmp_path / "out"
    assert driver.run(out, [{"sources": sources}])[0]["code"] == 0
    began = time.monotonic()
    assert driver.run(out, [{"sources": [], "join": True}])[0]["code"] == 0  # it comes too late, and does not wait
    assert time.monotonic() - began < running.JOIN_LIMIT_S / 2
    answers = driver.run(out, [{"sources": sources} for _ in range(3)])
    assert [answer["code"] for answer in answers] == [0, 0, 0]
    assert sum(answer["report"]["shards"] for answer in answers) == 0
    assert contents(out) == whole


def test_joining_where_nobody_comes_says_so(sources, tmp_path, monkeypatch):
    from bindsearch.models.spaces import load_space

    monkeypatch.setattr(running, "JOIN_LIMIT_S", 0.2)
    with pytest.raises(MissingInputError, match="nobody to join came within"):
        run_embed([], tmp_path / "out", load_space("tiny"), options=EmbedOptions(join=True, workers=0))
    assert not (tmp_path / "out").exists()


def test_one_that_only_joins_refuses_what_it_would_not_list(tmp_path, capsys):
    from bindsearch.cli import run
    from bindsearch.models.spaces import load_space

    options = EmbedOptions(join=True, workers=0, window_s=2.0)
    with pytest.raises(
        InputError, match=r"lists nothing itself; got sources gone, --window 2\.0\. To help: .* --join -o"
    ):
        run_embed("gone", tmp_path / "out", load_space("tiny"), options=options)
    assert run(["embed", "--join", "-o", str(tmp_path / "out"), "--modalities", "image,text"]) == 2
    assert "got --modalities image,text. To help:" in capsys.readouterr().err


def test_the_status_counts_what_the_dead_held_as_free(driver, sources, tmp_path):
    out = tmp_path / "out"
    assert driver.run(out, [{"sources": sources[1:]}])[0]["code"] == 0
    (out / "g0001" / "text-00002.done.json").unlink()
    far = foreign_member(out, silence_s=60.0)
    assert far.take("g0001-text-00002") is not None
    status = folder_status(out)
    assert status["generations"][0]["held"] == 1
    assert status["processes"][0]["holds"] == ["g0001-text-00002", "plan"]
    hour_ago = time.time() - 3600
    os.utime(far.path_of(far.me), (hour_ago, hour_ago))
    status = folder_status(out)
    assert status["generations"][0]["held"] == 0
    (process,) = status["processes"]
    assert (process["alive"], process["holds"], round(process["silent_s"], -1)) == (False, [], 3600.0)
    assert "dead: what it held is free; 3600 s ago" in status_text(status)


def test_who_leaves_while_one_looks_is_no_process(tmp_path, monkeypatch):
    """Its file is gone between the list of members and the look at the file: it had an age of infinity."""
    monkeypatch.setattr(Crew, "members", lambda crew: iter([crew.me]))
    with pytest.raises(MissingInputError, match="nobody makes any"):
        folder_status(tmp_path)


def test_the_status_says_who_works_on_what(driver, sources, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(MissingInputError, match="no embeddings there, and nobody makes any"):
        folder_status(out)
    found = []

    def look():
        while len(found) < 2000:
            try:
                status = folder_status(out)
            except MissingInputError:
                time.sleep(0.01)
                continue
            found.append(status)
            if status["generations"] and status["generations"][0]["committed"]:
                return
            time.sleep(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    answers = driver.run(out, [{"sources": sources, "place": f"{number}/2", "pace_s": 0.05} for number in (1, 2)])
    watcher.join()
    assert [answer["code"] for answer in answers] == [0, 0]
    busy = [status for status in found if sum(bool(each["holds"]) for each in status["processes"]) == 2]
    assert busy, "never seen both at work"
    text = status_text(busy[-1])
    assert f"of {SHARDS} shards, {PICTURES + TEXTS} items" in text
    assert "(1/2): g0001-" in text
    assert "(2/2): g0001-" in text
    last = folder_status(out)
    assert last["generations"] == [
        {"name": "g0001", "items": PICTURES + TEXTS, "shards": SHARDS, "done": SHARDS, "held": 0, "committed": True}
    ]
    assert "nobody works there" in status_text(last)


def test_the_command_starts_several_processes_and_says_who_works(sources, whole, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bindsearch", "embed", *sources, "-o", str(out), "--space", "tiny"]
    command += ["--batch-size", "10", "--shard-size", "20", "--workers", "0", "--processes", "2", "--json", "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["items"] == PICTURES + TEXTS - 8
    assert contents(out) == whole
    refused = subprocess.run([*command, "--shard", "1/2"], capture_output=True, text=True, env=environment)
    assert refused.returncode == 2
    assert "this process is already one of several (1/2)" in refused.stderr


def stop_in_its_shard(out, known=()):
    """Stop the first process that has a shard in hand, of those not known, and tell its id."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for path in (out / FOLDER).glob("g0001-*"):
            with contextlib.suppress(OSError, ValueError):  # it may be gone, or be written just now
                pid = json.loads(path.read_bytes())["pid"]
                if pid not in known:
                    os.kill(pid, signal.SIGSTOP)
                    return pid
        time.sleep(0.005)
    raise AssertionError("nobody took a shard")


def waiting_signals(pid):
    """Tell which signals a stopped process will find when it goes on."""
    facts = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    bits = int(next(line for line in facts if line.startswith("ShdPnd")).split()[1], 16)
    return {number for number in signal.valid_signals() if bits & 1 << number - 1}


def test_one_interrupt_of_all_processes_costs_no_shard(tmp_path):
    """The first to be through tells the other, which has had the signal as well: that is one interruption, not two."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bindsearch", "embed", "world:0..240#image", "-o", str(out), "--space", "tiny"]
    command += ["--shard-size", "120", "--workers", "0", "--processes", "2", "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert stop_in_its_shard(out) == parent.pid
        helper = stop_in_its_shard(out, known=[parent.pid])
        os.killpg(parent.pid, signal.SIGINT)  # as Ctrl-C does
        os.kill(parent.pid, signal.SIGCONT)
        while not waiting_signals(helper) - {signal.SIGINT}:
            assert parent.poll() is None
            time.sleep(0.01)
        os.kill(helper, signal.SIGCONT)
        said = parent.communicate(timeout=120)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
    assert parent.returncode == 130
    assert said.count("finishing the shard in hand") == 2
    assert {path.name for path in out.glob("g0001/*.done.json")} == {f"image-{n:05d}.done.json" for n in (0, 1)}


def test_what_is_told_to_finish_counts_interrupts_as_before():
    interrupted = threading.Event()
    with running.interruptible(interrupted, "shard"):
        signal.raise_signal(running.FINISH)
        assert interrupted.is_set()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(running.FINISH)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(running.FINISH) is signal.SIG_DFL
