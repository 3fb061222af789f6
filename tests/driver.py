"""A driver: a process that imports once, forks its victims, and answers orders line by line in JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


class Driver:
    """A running driver script of this folder."""

    def __init__(self, script):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def order(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        with self.process:  # closes the pipes and waits
            self.process.stdin.close()
        assert self.process.returncode == 0
