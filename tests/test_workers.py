"""Decode workers in real processes: order, time limit, deaths, what is no fault of an item."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing import connection
from pathlib import Path
from types import SimpleNamespace

import pytest
import sloth
import threadpoolctl
from sloth import SlothSpace

from bindsearch.embed import EmbedOptions, run_embed, workers
from bindsearch.embed.decoding import Decoded, Failed
from bindsearch.embed.worker import Task
from bindsearch.embed.workers import DecodePool
from bindsearch.errors import BindSearchError
from bindsearch.listing import Listing, naming
from bindsearch.registry import MODALITIES
from bindsearch.store import open_store

LIMIT_S = 3.0


@pytest.fixture(autouse=True)
def sloths_are_known():
    """Register the test's modality for the time of a test; the table of suffixes is made anew."""
    MODALITIES.register("sloth", sloth.Sloth())
    naming.suffix_table.cache_clear()
    yield
    MODALITIES._things.pop("sloth")
    naming.suffix_table.cache_clear()


def sloths(folder, *deeds):
    folder.mkdir(exist_ok=True)
    for number, deed in enumerate(deeds):
        (folder / f"{number:03d}.sloth").write_text(deed)
    return list(Listing([folder]))


def task(limit_s=LIMIT_S):
    return Task({"sloth": sloth.SlothConfig()}, item_limit_s=limit_s)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_order_is_kept_whoever_is_slow(tmp_path, workers):
    items = sloths(tmp_path, *(f"wait {0.2 if n % 5 == 0 else 0}" if n % 2 else f"fine {n}" for n in range(20)))
    with DecodePool(workers, window=8) as pool:
        done = list(pool.map(items, task()))
    assert [item for item, _ in done] == items
    assert [round(float(outcome.arrays[0].flat[0] * 255)) for _, outcome in done] == [
        0 if n % 2 else n for n in range(20)
    ]


def test_what_hangs_is_killed_and_the_rest_goes_on(tmp_path):
    items = sloths(tmp_path, "fine 1", "hang", "fine 2", "spin", "fine 3", "fine 4")
    started = time.monotonic()
    with DecodePool(2) as pool:
        outcomes = [outcome for _, outcome in pool.map(items, task(1.0))]
    assert time.monotonic() - started < 25
    assert [type(outcome) for outcome in outcomes] == [Decoded, Failed, Decoded, Failed, Decoded, Decoded]
    assert {outcome.reason for outcome in outcomes if isinstance(outcome, Failed)} == {"took longer than 1 s"}
    assert {outcome.stage for outcome in outcomes if isinstance(outcome, Failed)} == {"worker"}


def test_time_in_which_all_was_stopped_counts_for_no_item(tmp_path, monkeypatch):
    """Each look at the time comes a hundred seconds late, as after Ctrl-Z; what hangs is killed none the less."""
    items = sloths(tmp_path, "fine 1", "wait 1", "hang", "fine 2")
    away_s, pool = [0.0], DecodePool(1)

    def wait(links, timeout_s):
        found = connection.wait(links, min(timeout_s or 0.3, 0.3))
        if not found and any(worker.began for worker in pool.workers):
            away_s[0] += 100
        return found

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + away_s[0])
    monkeypatch.setattr(workers, "connection", SimpleNamespace(wait=wait))
    monkeypatch.setattr(workers, "time", clock)
    with pool:
        outcomes = [outcome for _, outcome in pool.map(items, task(5.0))]
    assert away_s[0] >= 500
    assert [type(outcome) for outcome in outcomes] == [Decoded, Decoded, Failed, Decoded]
    assert outcomes[2].reason == "took longer than 5 s"
    assert outcomes[2].seconds < 10


@pytest.mark.parametrize("limit_s", [float("inf"), 1e300])
def test_a_limit_may_be_without_end(limit_s, tmp_path):
    with DecodePool(1) as pool:
        outcomes = [outcome for _, outcome in pool.map(sloths(tmp_path, "fine 1", "wait 0.1"), task(limit_s))]
    assert [type(outcome) for outcome in outcomes] == [Decoded, Decoded]


def test_a_death_is_forgiven_once(tmp_path):
    deeds = ["fine 1", f"once {tmp_path / 'marker'}", "die", "exit", "fine 2"]
    with DecodePool(1) as pool:
        outcomes = [outcome for _, outcome in pool.map(sloths(tmp_path / "in", *deeds), task())]
    assert [type(outcome) for outcome in outcomes] == [Decoded, Decoded, Failed, Failed, Decoded]
    assert outcomes[2].reason == "its decode worker was killed 2 times (SIGKILL)"
    assert outcomes[3].reason == "its decode worker was killed 2 times (exit code 3)"


def test_memory_that_is_lacking_once_is_asked_for_again(tmp_path):
    deeds = ["fine 1", f"lacks {tmp_path / 'marker'}", "memory", "fine 2"]
    with DecodePool(1) as pool:
        outcomes = [outcome for _, outcome in pool.map(sloths(tmp_path / "in", *deeds), task())]
    assert [type(outcome) for outcome in outcomes] == [Decoded, Decoded, Failed, Decoded]
    assert (outcomes[2].stage, outcomes[2].reason) == ("decode", "needs more memory than there is")


@pytest.mark.parametrize("workers", [0, 1])
def test_faults_of_an_item_are_its_own(tmp_path, workers):
    with DecodePool(workers) as pool:
        memory, bug, fine = [outcome for _, outcome in pool.map(sloths(tmp_path, "memory", "bug", "fine 1"), task())]
    assert memory.reason == "needs more memory than there is"
    assert bug.reason == "cannot be read as sloth: ZeroDivisionError: in <object object>"
    assert isinstance(fine, Decoded)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_package_is_nobodys_fault(tmp_path, workers):
    """It would fail for every item, so it ends the run in place of filling the ledger."""
    with (
        DecodePool(workers) as pool,
        pytest.raises((BindSearchError, ImportError), match="a_package_that_is_not_there"),
    ):
        list(pool.map(sloths(tmp_path, "fine 1", "import"), task()))


def test_a_pool_serves_several_maps_and_may_be_left_early(tmp_path):
    items = sloths(tmp_path, *(f"fine {n}" for n in range(30)))
    with DecodePool(2, window=8) as pool:
        first = pool.map(items, task())
        assert [next(first)[0] for _ in range(3)] == items[:3]
        first.close()
        assert [item for item, _ in pool.map(items[::-1], task())] == items[::-1]
        processes = [worker.process for worker in pool.workers]
    assert all(process.poll() is not None for process in processes)


def test_no_more_is_read_ahead_than_the_window(tmp_path):
    items = sloths(tmp_path, *(f"fine {n}" for n in range(60)))
    read = []
    with DecodePool(2, window=6) as pool:
        outcomes = pool.map((read.append(item) or item for item in items), task())
        for taken in range(1, 61):
            next(outcomes)
            time.sleep(0.005)
            assert len(read) <= taken + 6


def test_workers_end_with_their_parent(tmp_path):
    """The parent is killed; its worker, in the middle of an item, is gone soon after."""
    items = tmp_path / "in"
    sloths(items, *["wait 0.3"] * 50)
    receive, send = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            pool = DecodePool(1)
            outcomes = pool.map(list(Listing([items])), task())
            next(outcomes)
            os.write(send, b"%d\n" % pool.workers[0].process.pid)
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(send)
    with os.fdopen(receive) as line:
        worker = int(line.readline())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the worker outlived its parent")


def test_a_run_over_misbehaving_items_commits_all_good_ones(tmp_path):
    deeds = [f"fine {n}" for n in range(30)]
    for place, deed in ((4, "hang"), (11, "die"), (17, f"once {tmp_path / 'marker'}"), (23, "bug")):
        deeds[place] = deed
    sloths(tmp_path / "in", *deeds)
    options = EmbedOptions(workers=2, batch_size=4, shard_size=8, item_limit_s=1.5)
    report = run_embed([tmp_path / "in"], tmp_path / "out", SlothSpace(), options=options)
    store = open_store(tmp_path / "out")
    assert [row["key"] for row in store.bad()] == ["004.sloth", "011.sloth", "023.sloth"]
    assert report.embedded == {"sloth": 27}
    assert len(store) == 27
    again = run_embed([tmp_path / "in"], tmp_path / "out", SlothSpace(), options=options)
    assert (again.unchanged, again.shards) == (30, 0)


def test_decoding_here_leaves_products_one_thread(tmp_path):
    seen = []

    class Look(Task):
        def do(self, items):
            seen.extend(lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas")
            return iter([Failed("decode", "looked at")] * len(items))

    (tmp_path / "a.txt").write_text("a dog")
    items = list(Listing([tmp_path]))
    with threadpoolctl.threadpool_limits(2, "blas"), DecodePool(0) as pool:
        assert len(list(pool.map(items, Look({})))) == len(items) == 1
        after = [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
    assert seen
    assert set(seen) == {1}
    assert set(after) == {2}


def test_an_interrupt_of_all_processes_leaves_a_starting_worker_alone():
    """Ctrl-C reaches the whole group: the parent gets it, and a worker amid its imports waits for the parent's word."""
    with DecodePool(1) as pool:
        worker = pool.start_worker(task())
        for number in (signal.SIGINT, signal.SIGTERM):
            worker.process.send_signal(number)
        assert worker.link.poll(60)
        assert worker.link.recv() == ("ready", None)
        assert worker.process.poll() is None
        facts = Path(f"/proc/{worker.process.pid}/status").read_text(encoding="ascii").splitlines()
        blocked = int(next(line for line in facts if line.startswith("SigBlk")).split()[1], 16)
        assert not blocked & 1 << signal.SIGTERM - 1, "programs that a worker starts can be ended"
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ())
