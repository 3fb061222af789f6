"""A modality that misbehaves on demand, for the tests of decode workers: a .sloth file holds what it is to do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bindsearch.modalities.base import Modality, ModalityConfig
from bindsearch.registry import MODALITIES
from bindsearch.types import Media


@dataclass(frozen=True)
class SlothConfig(ModalityConfig):
    """Nothing to set. Where it arrives, in a worker, it brings its modality along."""

    def __reduce__(self):
        return _arrive, ()


def _arrive():
    MODALITIES.register("sloth", Sloth())
    return SlothConfig()


class Sloth(Modality[SlothConfig]):
    """Hangs, dies, eats memory or just takes its time."""

    name = "sloth"
    suffixes = (".sloth",)
    unit = "level"
    tower = "vision"
    config_class = SlothConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}, "reference": {}}

    def _decode(self, source, config, span):
        what, _, argument = source.read_bytes().decode().partition(" ")
        if what == "hang":
            time.sleep(600)
        elif what == "spin":
            while True:
                pass
        elif what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "exit":
            os._exit(3)
        elif what == "once":  # dies the first time only, as when the kernel takes a worker that did no harm
            marker = Path(argument)
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        elif what == "lacks":  # no memory the first time only, as when another process has taken it
            marker = Path(argument)
            if not marker.exists():
                marker.touch()
                raise MemoryError
        elif what == "memory":
            raise MemoryError
        elif what == "bug":
            raise ZeroDivisionError(f"in {object()!r}")
        elif what == "wait":
            time.sleep(float(argument))
        elif what == "import":
            import a_package_that_is_not_there  # noqa: F401
        number = int(argument) if what == "fine" else 0
        return Media(self.name, np.full((8, 8, 3), number % 256, np.uint8), self.unit, name=source.name)

    def preprocess(self, media, config):
        return np.full((1, 3, 56, 56), media.array.flat[0] / 255, np.float32)

    def example(self, seed):
        return Media(self.name, np.full((8, 8, 3), seed % 256, np.uint8), self.unit, name="<example>")


class SlothSpace:
    """A space that encodes sloths to rows known beforehand."""

    name = location = "sloths"
    space_id, dim, dtype = "sloths@000000000000", 4, "float32"
    modalities = ("sloth",)

    def tower_id(self, modality):
        return f"{modality}:00@{self.space_id}"

    def preset_id(self, modality):
        return "default:00000000"

    def config(self, modality):
        return SlothConfig()

    def modality(self, modality):
        return MODALITIES[modality]

    def quicker(self):
        return ()

    def encode_raw(self, modality, x):
        level = x.reshape(len(x), -1)[:, 0]
        return np.stack([np.cos(level), np.sin(level), 0 * level, 0 * level], axis=1).astype(np.float32)
