"""Runs several embed processes on one folder: forked from a warm parent, so that none pays for start-up.

Reads one JSON order a line: {"out": DIR, "members": [{"sources": [...], "place": "1/2", "join": false, "silence_s": 60,
"delay_s": 0}, ...], "strike": null}, and answers one JSON line: for each member its code, the signal it died of, its
report and the error's words. A strike {"member": 1, "items": 50, "signal": 9} is sent when that member has done so
many items; with "until": FILE, SIGCONT follows when the file is there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from warm import prepare

from bindsearch.embed import EmbedOptions, run_embed
from bindsearch.embed.place import Place

BATCH, SHARD = 10, 20


def run_member(member, out, space, told):
    answer = {"code": 0}
    time.sleep(member.get("delay_s", 0))
    options = EmbedOptions(
        batch_size=BATCH,
        shard_size=SHARD,
        workers=0,
        max_bad=1.0,
        place=Place.of(member.get("place"), {}),
        join=member.get("join", False),
        silence_s=member.get("silence_s", 60.0),
    )

    def progress(state):
        os.write(told, b"%d\n" % state.done)
        time.sleep(member.get("pace_s", 0.0))

    try:
        answer["report"] = run_embed(member["sources"], out, space, options=options, progress=progress).to_json()
    except KeyboardInterrupt:
        answer["code"] = 130
    except BaseException as error:
        answer.update(code=1, words=f"{type(error).__name__}: {error}")
    Path(f"{out}.{os.getpid()}.json").write_text(json.dumps(answer))


def strike(order, pid, heard):
    with os.fdopen(heard) as lines:
        for line in lines:
            if int(line) >= order["items"]:
                break
        os.kill(pid, order["signal"])
        if "until" in order:
            while not Path(order["until"]).exists():
                time.sleep(0.02)
            os.kill(pid, signal.SIGCONT)


def main():
    space = prepare()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        order = json.loads(line)
        started = []
        for member in order["members"]:
            heard, told = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(heard)
                try:
                    run_member(member, order["out"], space, told)
                finally:
                    os._exit(0)
            os.close(told)
            started.append((pid, heard))
        if order.get("strike"):
            pid, heard = started[order["strike"]["member"]]
            strike(order["strike"], pid, os.dup(heard))
        answers = []
        for pid, heard in started:
            _, status = os.waitpid(pid, 0)
            os.close(heard)
            path = Path(f"{order['out']}.{pid}.json")
            answer = json.loads(path.read_text()) if path.exists() else {"code": None}
            answer["died"] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
            answers.append(answer)
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
