"""One generation: the shards that one plan asked for. Later generations stand above earlier ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import BindSearchError
from bindsearch.store.files import read_json
from bindsearch.store.identity import Identity, check_format
from bindsearch.store.shard import DONE_ENDING, Shard

if TYPE_CHECKING:
    from bindsearch.types import IntArray

PLAN = "plan.json"
PLAN_ROWS = "plan.parquet"
GONE = "gone.jsonl"
_NAME = re.compile(r"g\d{4,}")


@dataclass(frozen=True)
class Generation:
    """A generation's folder and the record of its plan.

    Attributes:
        folder: where it lies, such as OUT/g0001.
        record: plan.json.
    """

    folder: Path
    record: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Generation:
        """Read the plan's record.

        Raises:
            BindSearchError: not there or damaged; UnsupportedError: of a later format.
        """
        record = read_json(folder / PLAN)
        check_format(record, folder / PLAN)
        return cls(folder, record)

    @property
    def name(self) -> str:
        """Folder name."""
        return self.folder.name

    @property
    def shard_names(self) -> list[str]:
        """Names of the shards, in order."""
        return [shard["name"] for shard in self.record["shards"]]

    @property
    def identity(self) -> Identity:
        """What this generation is made with."""
        return Identity.from_json(self.record, str(self.folder / PLAN))

    def is_done(self, name: str) -> bool:
        """Say whether a shard is committed and its files have the sizes that its done-file names."""
        if not (self.folder / (name + DONE_ENDING)).exists():
            return False
        try:
            Shard.load(self.folder, name)
        except BindSearchError:
            return False
        return True

    def pending(self) -> list[int]:
        """List the numbers of the shards that are still to be made, or to be made again."""
        return [number for number, name in enumerate(self.shard_names) if not self.is_done(name)]

    def shards(self, partial: bool = False) -> list[Shard]:
        """List the committed shards.

        Args:
            partial: leave out what is not committed, in place of raising.

        Raises:
            BindSearchError: a shard is missing or damaged.
        """
        names = [name for name in self.shard_names if not partial or self.is_done(name)]
        return [Shard.load(self.folder, name) for name in names]

    def gone_ids(self) -> IntArray:
        """Give the ids that this generation marks as gone: (g,) int64."""
        return np.fromiter((row["id"] for row in self.gone()), dtype=np.int64)

    def gone(self) -> Iterator[dict[str, Any]]:
        """Yield the ledger of what is gone: {"id", "key"}."""
        with (self.folder / GONE).open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def generation_folders(out: Path) -> list[Path]:
    """List the folders of generations whose plan is committed, oldest first."""
    return [folder for folder in places_of_generations(out) if (folder / PLAN).is_file()]


def places_of_generations(out: Path) -> list[Path]:
    """List the folders that are named as generations are, g0001 and so on, by their number: g10000 follows g9999."""
    return sorted((path for path in out.glob("g*") if _NAME.fullmatch(path.name)), key=lambda path: int(path.name[1:]))
