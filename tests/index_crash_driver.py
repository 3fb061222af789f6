"""Changes indexes in forked processes and kills them: a warm parent, so that a kill costs no start-up.

Reads one JSON order a line, answers one JSON line each:
    {"change": "add", "folder": DIR, "kill": null}             nobody is killed; answers with the steps that were taken
    {..., "kill": {"step": 7, "when": "half"}}                 SIGKILL at the 7th system call of the change
    {..., "kill": {"delay_s": 0.004}}                          SIGKILL from outside, that long after the change began
A step is [call, file name, stage]. Nothing of this is known to the product: the child's own os functions are wrapped.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import pyarrow.parquet  # noqa: F401  # the children inherit it
from fake_store import FakeStore

from bindsearch.index.build import build_index, reindex
from bindsearch.index.folder import IndexFolder
from bindsearch.index.merge import merge_indexes
from bindsearch.index.split import parts_by_modality, split_index

CALLS = ("fsync", "replace", "unlink", "rmdir", "mkdir")
WHENS = ("before", "half", "after")


def newer_store():
    """Items of the index with other rows, and new ones."""
    return FakeStore(n=35, seed=1)


def run_change(change, folder):
    if change == "build":
        build_index(newer_store(), folder / "index", force=True, centre=True)
    elif change == "add":
        IndexFolder.open(folder / "index").add(newer_store())
    elif change == "remove":
        IndexFolder.open(folder / "index").remove(FakeStore().ids[5:20])
    elif change == "compact":
        IndexFolder.open(folder / "index").compact()
    elif change == "merge":
        merge_indexes([folder / "index", folder / "other"], folder / "out")
    elif change == "split":
        split_index(
            IndexFolder.open(folder / "index").snapshot,
            folder / "out",
            parts_by_modality(IndexFolder.open(folder / "index").snapshot),
        )
    elif change == "reindex":
        reindex(folder / "index", FakeStore(n=60, seed=3, dim=24, space_id="toy@ffffffffffff"), drop_missing=True)
    else:
        raise ValueError(change)


def stage_of(call, path):
    """Name the stage that a system call belongs to, by what it does to which file."""
    name, folders = os.path.basename(path), path
    if call == "fsync" and os.path.isdir(path):
        return "folder synced"
    if name.startswith("index.json"):
        return {"fsync": "manifest written", "replace": "manifest renamed"}.get(call, "swept")
    if ".out.draft" in name and call == "replace":
        return "parts renamed"
    if name.startswith("index.means"):
        return "swept" if call == "unlink" else "means written"
    if "tombstones" in folders and call != "mkdir":
        return "swept" if call == "unlink" else "tombstones written"
    if ".draft-" in folders or call in ("fsync", "mkdir"):
        return "segment renamed" if call == "replace" else "segment written"
    return "swept"


class Steps:
    """The system calls that a change makes, in order, and the one to die at."""

    def __init__(self, kill):
        self.kill, self.taken = kill or {}, []
        for call in CALLS:
            setattr(os, call, self.wrap(call, getattr(os, call)))

    def wrap(self, call, real):
        def stepped(*args, **kwargs):
            here = args[0] if call != "fsync" else f"/proc/self/fd/{args[0]}"
            path = os.readlink(here) if call == "fsync" else os.fspath(here)
            if kwargs.get("dir_fd") is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{kwargs['dir_fd']}"), path)
            if call == "replace" and "index.json" in os.fspath(args[1]):
                path = os.fspath(args[1])
            if path.endswith(".lock"):
                return real(*args, **kwargs)
            self.taken.append([call, os.path.basename(path), stage_of(call, path)])
            hit = self.kill.get("step") == len(self.taken) - 1
            if hit and self.kill["when"] == "half" and call == "fsync" and os.path.isfile(path):
                os.truncate(path, os.stat(path).st_size // 2)
                die()
            if hit and self.kill["when"] == "before":
                die()
            try:
                return real(*args, **kwargs)
            finally:
                if hit:
                    die()

        return stepped


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def run_child(order, send):
    steps = Steps(order["kill"])
    run_change(order["change"], Path(order["folder"]))
    os.write(send, json.dumps(steps.taken).encode() + b"\n")


def answer(order):
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        code = 1
        try:
            run_child(order, send)
            code = 0
        except BaseException as error:
            os.write(send, json.dumps(f"{type(error).__name__}: {error}").encode() + b"\n")
        finally:
            os._exit(code)
    os.close(send)
    kill = order["kill"] or {}
    if "delay_s" in kill:
        time.sleep(kill["delay_s"])
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(receive) as lines:
        said = lines.readline()
    _, status = os.waitpid(pid, 0)
    return {
        "died": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "said": json.loads(said) if said else None,
    }


def main():
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
