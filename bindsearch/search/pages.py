"""Pages: a cursor says where a list of answers was left, and of which list."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bindsearch.config import content_hash
from bindsearch.errors import InputError, MismatchError

if TYPE_CHECKING:
    from bindsearch.index.manifest import Manifest
    from bindsearch.query import Embedding
    from bindsearch.types import FloatArray


_WRITTEN = re.compile(r"i([0-9a-f]{8})-g([0-9]{1,18})-([0-9a-f]{8})-r([0-9]{1,9})-([0-9]{1,19})")
_WRITTEN_BEFORE = re.compile(r"i[0-9a-f]{8}-g[0-9]{1,18}-[0-9a-f]{8}-r[0-9]{1,9}-d[0-9]{1,9}-[0-9]{1,19}")


@dataclass(frozen=True)
class Cursor:
    """A place in a list of answers: behind the answer of `rank`.

    Attributes:
        index: hash of the index that gave the list.
        generation: of that index.
        asked: hash of the query and of what may change its list.
        rank: of the last answer seen.
        item_id: of that answer.
    """

    index: str
    generation: int
    asked: str
    rank: int
    item_id: int

    def __str__(self) -> str:
        """Write it as a word: "i5e0c11aa-g7-3f51eb85-r10-1234567890"."""
        return f"i{self.index}-g{self.generation}-{self.asked}-r{self.rank}-{self.item_id}"

    @classmethod
    def read(cls, text: str) -> Cursor:
        """Read what `str` wrote.

        Raises:
            InputError: it is no cursor.
            MismatchError: an earlier bindsearch wrote it, of a list that was ranked otherwise.
        """
        if _WRITTEN_BEFORE.fullmatch(text.strip()):
            raise MismatchError(
                f"--after {text!r:.80}: the cursor is of an earlier bindsearch, whose list was ranked otherwise. Ask "
                "for the first page again, without --after."
            )
        match = _WRITTEN.fullmatch(text.strip())
        if match is None:
            raise InputError(f"--after {text!r:.80}: not a cursor. Each hit has one: bindsearch query --paged --json")
        return cls(match[1], int(match[2]), match[3], int(match[4]), int(match[5]))

    def check(self, now: Cursor, path: str) -> None:
        """Refuse a cursor of another list.

        Args:
            now: a cursor of the list that is asked for.
            path: the index, for the message.

        Raises:
            MismatchError: another generation, another index, or another query; both values are named.
        """
        if self.generation != now.generation:
            raise MismatchError(
                f"{path}: the cursor is of generation {self.generation}, the index is at {now.generation}: it was "
                "changed in between, or it is not the cursor's index. Ask for the first page again, without --after."
            )
        if self.index != now.index:
            raise MismatchError(
                f"{path}: the cursor is of the index {self.index}, this one is {now.index}: another one, or built "
                "anew. Name the cursor's index, or ask for the first page, without --after."
            )
        if self.asked != now.asked:
            raise MismatchError(
                f"{path}: the cursor is of the question {self.asked}, this one is {now.asked}: query, filter and "
                "options must be those of the page before. Ask for the first page, without --after."
            )


def hash_index(manifest: Manifest) -> str:
    """Hash what an index of one generation holds: eight hexadecimal digits, the same for a copy of it."""
    segments = [[entry.sha256 for _, entry in sorted(each.files.items())] for each in manifest.segments]
    return content_hash([manifest.space_id, segments], 8)


def hash_question(query: Embedding | None, vector: FloatArray, options: Sequence[object]) -> str:
    """Hash what a list of answers depends on.

    Args:
        query: its terms count by what they are and weigh, since an encoder's numbers differ a little between batches.
        vector: (1, d) float32; counts where there are no terms, or one is a bare vector. Not modified.
        options: filter and arrangement.

    Returns:
        Eight hexadecimal digits.
    """
    terms = [] if query is None else [[term.modality, term.label, term.weight] for term in query.terms]
    if query is None or any(term.modality == "vector" for term in query.terms):
        terms.append(["numbers", hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest(), 1.0])
    return content_hash([terms, [str(option) for option in options]], 8)
