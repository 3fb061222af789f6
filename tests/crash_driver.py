"""Runs the embedder in forked processes and kills them: a warm parent, so that a kill costs no start-up.

Reads one JSON order a line, answers one JSON line each:
    {"sources": [...], "out": DIR, "workers": N, "kill": null}   nobody is killed
    {..., "kill": {"items": 700, "delay_s": 0.01}}   SIGKILL from outside, that long after the 700th item of the run
    {..., "kill": {"items": 700, "delay_s": 0, "signal": 15}}   another signal; code 130 is KeyboardInterrupt
    {..., "kill": {"call": "fsync", "file": ".npy.tmp", "when": "half"}}   SIGKILL at a system call of the commit
Nothing of this is known to the product: the child's own os.fsync and os.replace are wrapped before the run begins.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import sys
import time

from warm import prepare

from bindsearch.embed import EmbedOptions, run_embed
from bindsearch.embed import run as running

STAGES = ("list", "decode", "model", "write")
BATCH, SHARD = 32, 100


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kill, page):
    """Wrap what the order names, in this process."""
    real_fsync, real_replace = os.fsync, os.replace
    real_add, real_commit = running.ShardRows.add_batch, running.commit_shard

    def fsync(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        hit = kill.get("call") == "fsync" and name.endswith(kill["file"])
        if hit and kill["when"] == "half":
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
        if hit and kill["when"] == "before":
            die()
        real_fsync(descriptor)
        if hit:
            die()

    def replace(source, target):
        hit = kill.get("call") == "replace" and str(target).endswith(kill["file"])
        if hit and kill["when"] == "before":
            die()
        real_replace(source, target)
        if hit:
            die()

    def staged(stage, function):
        def call(*args, **kwargs):
            page[0] = STAGES.index(stage)
            try:
                return function(*args, **kwargs)
            finally:
                page[0] = STAGES.index("decode")

        return call

    os.fsync, os.replace = fsync, replace
    running.ShardRows.add_batch = staged("model", real_add)
    running.commit_shard = staged("write", real_commit)


def run_child(order, space, page, progress):
    arm(order["kill"] or {}, page)

    def report(state):
        page[0] = STAGES.index("decode")
        os.write(progress, b"%d\n" % state.done)

    if "largest_file_bytes" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file_bytes"], order["largest_file_bytes"]))
    options = EmbedOptions(batch_size=BATCH, shard_size=SHARD, workers=order["workers"], max_bad=1.0)
    run_embed(order["sources"], order["out"], space, options=options, progress=report)


def watch(pid, kill, progress, words):
    """Kill the child from outside when it has done enough items; give how it ended."""
    with os.fdopen(progress) as lines:
        if kill and "items" in kill:
            if kill["items"] > 0:
                for line in lines:
                    if line.startswith("error") or int(line) >= kill["items"]:
                        break
            time.sleep(kill["delay_s"])
            os.kill(pid, kill.get("signal", signal.SIGKILL))
        words += [line for line in lines if line.startswith("error")]
    _, status = os.waitpid(pid, 0)
    return status


def say(line, stream=sys.stdout):
    stream.write(line + "\n")
    stream.flush()


def main():
    space = prepare()
    page = mmap.mmap(-1, 1)
    say("ready")
    for line in sys.stdin:
        order = json.loads(line)
        page[0] = STAGES.index("list")
        receive, send = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(receive)
            code = 1
            try:
                run_child(order, space, page, send)
                code = 0
            except KeyboardInterrupt:
                code = 130
            except BaseException as error:
                words = f"{type(error).__name__}: {error}"
                os.write(send, b"error " + words.encode() + b"\n")
            finally:
                os._exit(code)
        os.close(send)
        started = time.perf_counter()
        words = []
        status = watch(pid, order["kill"], receive, words)
        died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        answer = {"died": died, "code": code, "stage": STAGES[page[0]], "words": "".join(words)}
        answer["seconds"] = time.perf_counter() - started
        say(json.dumps(answer))


if __name__ == "__main__":
    main()
