"""The pipeline's own parts: shared memory, small items together, the writer, the report of what was waited for."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import sloth
from PIL import Image

from bindsearch.embed import EmbedOptions, run_embed
from bindsearch.embed import blocks as blocks_module
from bindsearch.embed.arena import SLOT_BYTES, SLOTS, Arena, make_memory
from bindsearch.embed.blocks import SMALL_TOGETHER, Blocks
from bindsearch.embed.decoding import Decoded, Failed, decode_item
from bindsearch.embed.plan import first_twice
from bindsearch.embed.report import EmbedReport
from bindsearch.embed.worker import Job, Task
from bindsearch.embed.workers import DecodePool
from bindsearch.embed.writing import Writer
from bindsearch.errors import BindSearchError
from bindsearch.listing import BrokenItem, Listing, naming
from bindsearch.models.packed import bfloat16_instructions
from bindsearch.models.spaces import load_space
from bindsearch.registry import MODALITIES
from bindsearch.store import open_store
from bindsearch.types import Item

LINUX = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory without a name is Linux's")


@pytest.fixture
def both_ends():
    """Give an arena as its two processes see it: two mappings of one memory."""
    descriptor = make_memory()
    ends = Arena(descriptor), Arena(descriptor)
    os.close(descriptor)
    return ends


def outcome(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return Decoded(tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes), "00", ("a note",), 0.5, 0.1)


def same(one, other):
    return (
        (one.sha256, one.notes, one.seconds) == (other.sha256, other.notes, other.seconds)
        and len(one.arrays) == len(other.arrays)
        and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one.arrays, other.arrays, strict=True))
    )


@LINUX
def test_arrays_cross_and_do_not_change_afterwards(both_ends):
    worker, parent = both_ends
    sent = [outcome((1, 3, 20, 20), seed=1), Failed("read", "no such file"), outcome((3, 7, 50), (0, 4), seed=2)]
    ids = Decoded((np.arange(1600, dtype=np.int64)[None],), "11", (), 0.0)
    piece = worker.pack([*sent, ids])
    assert piece.slot == 0
    assert all(not each.arrays for each in piece.outcomes if isinstance(each, Decoded))
    got = parent.unpack(piece)
    later = [parent.unpack(worker.pack([outcome((1, 3, 30, 30), seed=seed)])) for seed in range(2 * SLOTS)]
    assert len({id(each) for each in later}) == 2 * SLOTS
    assert got[1] is piece.outcomes[1]
    assert same(got[0], sent[0])
    assert same(got[2], sent[2])
    assert same(got[3], ids)
    assert got[2].arrays[1].shape == (0, 4)


@LINUX
def test_a_slot_is_used_again_only_when_it_was_taken(both_ends):
    worker, parent = both_ends
    one = outcome((1, 3, 40, 40))
    pieces = [worker.pack([one]) for _ in range(SLOTS + 2)]
    assert [piece.slot for piece in pieces] == [*range(SLOTS), -1, -1]
    assert pieces[-1].outcomes[0] is one  # goes over the link, whole
    parent.unpack(pieces[0])
    assert [worker.pack([one]).slot for _ in range(2)] == [0, -1]


@LINUX
def test_what_is_too_large_or_tiny_goes_over_the_link(both_ends):
    worker, _ = both_ends
    assert worker.pack([outcome((SLOT_BYTES // 4 + 1,))]).slot == -1
    assert worker.pack([outcome((10,))]).slot == -1
    assert worker.pack([Failed("read", "gone")]).slot == -1
    assert worker.pack([outcome((SLOT_BYTES // 4,))]).slot == 0


@LINUX
def test_a_limit_on_file_sizes_turns_it_off(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        assert make_memory() is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---- small items together --------------------------------------------------------------------------------------------


def text(number, words="a dog"):
    return Item(f"t{number}", "text", "list", literal=words, size_bytes=len(words))


def picture(number, size_bytes=900, **more):
    return Item(f"p{number}", "image", f"/no/{number}.png", size_bytes=size_bytes, **more)


def test_small_items_of_one_modality_travel_together():
    together = SMALL_TOGETHER["text"][1], SMALL_TOGETHER["image"][1]
    items = [text(n) for n in range(together[0] + 3)] + [picture(n) for n in range(together[1] + 1)]
    lone = [
        picture(100, SMALL_TOGETHER["image"][0] + 1),
        Item("v", "video", "/no/v.mp4", size_bytes=900),
        Item("a", "audio", "/no/a.wav", span=(0.0, 1.0), size_bytes=900),
        picture(101, None),
        BrokenItem("b", "image", "/no", reason="lost"),
        text(999, "x" * 5000),
    ]
    blocks = Blocks([*items, *lone, text(1000), text(1001)])
    taken = list(iter(blocks.take, ()))
    assert [len(block) for block in taken] == [together[0], 3, together[1], 1, *[1] * len(lone), 2]
    assert [item for block in taken for item in block] == [*items, *lone, text(1000), text(1001)]
    assert not blocks.making


def test_texts_on_one_message_fit_in_a_link():
    blocks = Blocks([text(n, "x" * 3000) for n in range(20)])
    sizes = [sum(len(item.literal) for item in block) for block in iter(blocks.take, ())]
    assert max(sizes) <= blocks_module._TEXT_BYTES
    assert sum(sizes) == 60_000


def test_what_is_left_of_a_job():
    job = Job(10, tuple(text(n) for n in range(5)), made=True)
    assert (job.rest(2).number, len(job.rest(2).items), job.rest(2).made) == (12, 3, True)
    assert [(each.number, each.items[0].key, each.made) for each in job.singles()][-1] == (14, "t4", False)
    assert (job.limits, Job(0, job.items).limits) == (5, 1)


@pytest.fixture
def sloths_together(monkeypatch):
    """Let the misbehaving modality travel in blocks of eight."""
    MODALITIES.register("sloth", sloth.Sloth())
    naming.suffix_table.cache_clear()
    monkeypatch.setitem(SMALL_TOGETHER, "sloth", (1000, 8))
    yield
    MODALITIES._things.pop("sloth")
    naming.suffix_table.cache_clear()


def test_one_that_hangs_or_dies_takes_no_neighbour_with_it(sloths_together, tmp_path):
    deeds = ["fine 1", "fine 2", "hang", "fine 3", "die", "fine 4", "fine 5", f"once {tmp_path / 'm'}", *["fine 6"] * 8]
    folder = tmp_path / "in"
    folder.mkdir()
    for number, deed in enumerate(deeds):
        (folder / f"{number:03d}.sloth").write_text(deed)
    items = list(Listing([folder]))
    with DecodePool(2) as pool:
        done = list(pool.map(items, Task({"sloth": sloth.SlothConfig()}, item_limit_s=1.5)))
    assert [item for item, _ in done] == items
    bad = {number: each.reason for number, (_, each) in enumerate(done) if isinstance(each, Failed)}
    assert bad == {2: "took longer than 1.5 s", 4: "its decode worker was killed 2 times (SIGKILL)"}
    assert [round(float(each.arrays[0].flat[0] * 255)) for _, each in done if isinstance(each, Decoded)][:5] == [
        1, 2, 3, 4, 5,
    ]  # fmt: skip


def test_workers_give_what_the_main_process_gives(tmp_path):
    """Values, order and failures."""
    rng = np.random.default_rng(1)
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "20.png").write_bytes(b"no picture")
    (tmp_path / "words.txt").write_text("a dog on the beach")
    items = list(Listing([tmp_path]))
    configs = {"image": MODALITIES["image"].config(), "text": MODALITIES["text"].config()}
    alone = [decode_item(item, configs) for item in items]
    with DecodePool(2) as pool:
        done = list(pool.map(items, Task(configs)))
    assert [item for item, _ in done] == items
    for (_, got), want in zip(done, alone, strict=True):
        assert type(got) is type(want)
        if isinstance(want, Failed):
            assert (got.stage, got.reason) == (want.stage, want.reason)
        else:
            assert (got.sha256, got.notes) == (want.sha256, want.notes)
            assert all(np.array_equal(a, b) for a, b in zip(got.arrays, want.arrays, strict=True))


# ---- the writer ------------------------------------------------------------------------------------------------------


def test_jobs_are_done_in_order_beside_the_caller():
    done, go = [], threading.Event()
    with Writer() as writer:
        writer.put(lambda: (go.wait(10), done.append(0)))
        assert done == []
        go.set()
        for number in range(1, 6):
            writer.put(lambda number=number: done.append(number))
        writer.wait()
        assert done == list(range(6))
        assert threading.current_thread().name != "bindsearch-write"


def test_a_second_job_waits_for_the_first():
    started = time.monotonic()
    with Writer() as writer:
        writer.put(lambda: time.sleep(0.3))
        assert time.monotonic() - started < 0.25
        writer.put(lambda: None)
        assert time.monotonic() - started >= 0.3
        assert writer.busy_s >= 0.3


def fail():
    raise BindSearchError("the disk is full")


def test_a_failed_job_is_the_last_one_and_is_told():
    done = []
    with pytest.raises(BindSearchError, match="disk is full"), Writer() as writer:
        writer.put(fail)
        writer.put(lambda: done.append("never"))
    assert done == []
    with pytest.raises(BindSearchError, match="disk is full"), Writer() as writer:
        writer.put(fail)


def test_what_was_put_is_done_though_the_caller_fails():
    done = []
    with pytest.raises(ZeroDivisionError), Writer() as writer:
        writer.put(lambda: (time.sleep(0.2), done.append("shard")))
        raise ZeroDivisionError
    assert done == ["shard"]
    with pytest.raises(ZeroDivisionError), Writer() as writer:  # the caller's own error goes before
        writer.put(fail)
        raise ZeroDivisionError


def test_a_disk_that_fills_up_ends_the_run_and_keeps_what_was_committed(tmp_path, monkeypatch):
    from bindsearch.embed import run as running

    (tmp_path / "t.lst").write_text("".join(f"text {number}\n" for number in range(40)))
    real, names = running.commit_shard, []

    def commit(folder, name, *rest):
        names.append(name)
        if name.endswith("00002"):
            raise BindSearchError("no space left on the device")
        return real(folder, name, *rest)

    monkeypatch.setattr(running, "commit_shard", commit)
    options = EmbedOptions(modality="text", shard_size=10, batch_size=5, workers=0)
    space = load_space("tiny", device="cpu")
    with pytest.raises(BindSearchError, match="no space left"):
        run_embed([tmp_path / "t.lst"], tmp_path / "out", space, options=options)
    assert names == ["text-00000", "text-00001", "text-00002"]
    monkeypatch.setattr(running, "commit_shard", real)
    report = run_embed([tmp_path / "t.lst"], tmp_path / "out", space, options=options)
    assert (report.kept_shards, report.shards, len(open_store(tmp_path / "out"))) == (2, 2, 40)


# ---- the report ------------------------------------------------------------------------------------------------------


def report_of(decode, model, write, busy, workers=2):
    report = EmbedReport("out", "tiny@0", workers=workers)
    report.seconds.update(decode=decode, model=model, write=write)
    report.busy.update(decode=busy[0], preprocess=busy[1], write=busy[2])
    report.embedded["image"] = 1000
    report.shards = 1
    return report


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (report_of(1, 98, 1, (20, 10, 3)), "The model was the limit (busy 98% of the time"),
        (report_of(60, 30, 10, (150, 40, 5)), "Decoding was the limit"),
        (report_of(60, 30, 10, (50, 4, 5)), "Neither decoding nor the model was busy throughout"),
        (report_of(5, 30, 65, (10, 4, 95)), "Writing was the limit (65% of the time"),
        (report_of(60, 39, 1, (55, 5, 1), workers=0), "--workers 1 or more"),
        (report_of(0.4, 0.4, 0.1, (0.3, 0.1, 0.1)), ""),
    ],
)
def test_what_was_waited_for_is_said(report, said):
    assert said in report.advice()
    assert bool(report.advice()) == bool(said)
    assert report.to_json()["advice"] == report.advice()
    assert (said in report.to_text()) or not said


def test_processes_of_one_machine_are_told_of_their_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    report = report_of(60, 30, 10, (150, 40, 5), workers=1)
    assert "--workers 4 would help" in report.advice()
    report.processes = 2
    assert "--workers 2 would help" in report.advice()
    report.processes = 4
    assert "--workers" not in report.advice() and "its 1 of the cores" in report.advice()


@pytest.mark.parametrize(
    ("quicker", "said"),
    [
        (("a GPU", "--dtype bfloat16"), "a GPU, --dtype bfloat16 or a smaller space would help"),
        (("a GPU",), "a GPU or a smaller space would help"),
        ((), ": a smaller space would help"),
    ],
)
def test_what_would_help_the_model_here(quicker, said):
    report = report_of(1, 98, 1, (20, 10, 3))
    report.quicker = quicker
    assert said in report.advice()


@pytest.mark.parametrize("dtype", ["float32", "fast"])
def test_a_space_names_the_number_type_that_is_quicker_here(dtype):
    space = load_space("tiny", device="cpu", dtype=dtype)
    advised = dtype == "float32" and bool(bfloat16_instructions())
    assert space.quicker() == ("a GPU", "--dtype bfloat16")[: 1 + advised]


def test_idle_shares():
    report = report_of(60, 30, 10, (100, 40, 5))
    assert report.idle() == pytest.approx({"decode": 0.3, "model": 0.7, "write": 0.95})
    facts = report.to_json()
    assert facts["busy"] == {"decode": 100.0, "preprocess": 40.0, "model": 30.0, "write": 5.0}
    assert (
        "work an item: decode 100 ms, preprocess 40 ms, model 30 ms, write 5 ms (2 decode workers)" in report.to_text()
    )


def test_a_run_fills_its_report(tmp_path):
    (tmp_path / "t.lst").write_text("".join(f"text {number}\n" for number in range(64)))
    options = EmbedOptions(modality="text", shard_size=32, workers=1)
    report = run_embed([tmp_path / "t.lst"], tmp_path / "out", load_space("tiny", device="cpu"), options=options)
    assert report.workers == 1
    assert all(report.busy[name] > 0 for name in ("decode", "preprocess", "write"))
    assert all(share < 1 for share in report.idle().values())


# ---- the plan and the presets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [8, 1 << 18])
def test_an_id_that_stands_twice_is_found(tmp_path, monkeypatch, at_once):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bindsearch.embed import plan

    monkeypatch.setattr(plan, "_IDS_AT_ONCE", at_once)
    ids = np.random.default_rng(3).permutation(1000).astype(np.int64) << 40
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": ids}), path, row_group_size=100)
    assert first_twice(path, 1000) is None
    ids[999] = ids[3]
    pq.write_table(pa.table({"id": ids}), path, row_group_size=100)
    assert first_twice(path, 1000) == ids[3]


def test_quick_pictures_are_another_preset(tmp_path):
    kind = MODALITIES["image"]
    path = Path(tmp_path) / "large.jpg"
    rng = np.random.default_rng(4)
    soft = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (1024, 768), Image.Resampling.BICUBIC
    )
    soft.save(path, quality=90)
    plain, quick = kind.config(size_px=224), kind.config("quick", size_px=224)
    assert plain.id != quick.id
    source = kind.source_of(path)
    full, reduced = kind.decode(source, plain), kind.decode(source, quick)
    assert (full.array.shape, reduced.array.shape) == ((768, 1024, 3), (384, 512, 3))
    levels = [kind.preprocess(media, plain) * np.array(plain.std)[:, None, None] * 255 for media in (full, reduced)]
    assert 0 < np.abs(levels[0] - levels[1]).mean() < 1.0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_batch_reaches_its_device(device):
    import torch

    from bindsearch.models.transfer import to_device

    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    rng = np.random.default_rng(6)
    floats, ids = rng.normal(size=(4, 3, 8)).astype(np.float32), rng.integers(0, 99, (4, 7))
    for dtype in (torch.float32, torch.bfloat16):
        x = to_device(floats, torch.device(device), dtype)
        assert (x.device.type, x.dtype) == (device, dtype)
        assert torch.equal(x.cpu(), torch.from_numpy(floats).to(dtype))
        y = to_device(ids, torch.device(device), dtype)
        assert y.dtype == torch.int64
        assert np.array_equal(y.cpu().numpy(), ids)


def test_shards_share_row_groups_and_keep_their_items(tmp_path, monkeypatch):
    """Small shards of two kinds, several to a row group, the last ones shorter: each gives its own items, in order."""
    import pyarrow.parquet as pq

    from bindsearch.embed import plan

    monkeypatch.setattr(plan, "_GROUP_ROWS", 25)
    rng = np.random.default_rng(9)
    for number in range(23):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "t.jsonl").write_text("".join(f'{{"text": "text {number}"}}\n' for number in range(37)))
    out, options = tmp_path / "out", EmbedOptions(shard_size=10, workers=0)
    run_embed([tmp_path, tmp_path / "t.jsonl"], out, load_space("tiny", device="cpu"), options=options)
    generation = plan.Generation.load(out / "g0001")
    shards = generation.record["shards"]
    assert pq.ParquetFile(out / "g0001" / "plan.parquet").num_row_groups < len(shards)
    store = open_store(out)
    for number, shard in enumerate(shards):
        items = plan.planned_items(generation, number)
        assert [item.modality for item in items] == [shard["kind"]] * shard["items"]
        there = store.items(("key",))["key"].to_pylist()
        assert [item.key for item in items] == there[sum(each["items"] for each in shards[:number]) :][: len(items)]
    for old in shards:  # a plan of an earlier version: one row group a shard
        del old["group"], old["first"]
    table = pq.read_table(out / "g0001" / "plan.parquet")
    keys = [item.key for number in range(1) for item in plan.planned_items(generation, number)]
    assert keys == table["key"].to_pylist()[:10]


FAULTS = """
import resource, sys
import numpy as np
from bindsearch.embed.freed import keep_freed_memory
told = keep_freed_memory() if sys.argv[1] == "keep" else None
def fill(): return [np.ones(200_000, np.float32) for _ in range(8)]
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50): fill()
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone gives memory back like this")
def test_freed_memory_is_kept():
    told, faults = {}, {}
    for how in ("leave", "keep"):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        told[how], faults[how] = done.stdout.split()
    assert told["keep"] == "True"
    assert int(faults["keep"]) < 2_000  # 8 arrays of 800 kB are 1,560 pages: taken once
    assert int(faults["leave"]) > 10 * int(faults["keep"])
