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
    from bindsearch.query import Embedding
    from bindsearch.types import FloatArray


_WRITTEN = re.compile(r"g([0-9]{1,18})-([0-9a-f]{8})-r([0-9]{1,9})-d([0-9]{1,9})-([0-9]{1,19})")


@dataclass(frozen=True)
class Cursor:
    """A place in a list of answers: behind the answer of `rank`.

    Attributes:
        generation: of the index that gave the list.
        asked: hash of the query and of what may change its list.
        rank: of the last answer seen.
        depth: how many items were ranked for the list.
        item_id: of that answer.
    """

    generation: int
    asked: str
    rank: int
    depth: int
    item_id: int

    def __str__(self) -> str:
        """Write it as a word: "g7-3f51eb85-r10-d256-1234567890"."""
        return f"g{self.generation}-{self.asked}-r{self.rank}-d{self.depth}-{self.item_id}"

    @classmethod
    def read(cls, text: str) -> Cursor:
        """Read what `str` wrote.

        Raises:
            InputError: it is no cursor.
        """
        match = _WRITTEN.fullmatch(text.strip())
        if match is None:
            raise InputError(f"--after {text!r:.80}: not a cursor. Each hit has one: bindsearch query --paged --json")
        return cls(int(match[1]), match[2], int(match[3]), int(match[4]), int(match[5]))

    def check(self, generation: int, asked: str, path: str) -> None:
        """Refuse a cursor of another list.

        Args:
            generation: of the index now.
            asked: hash of what is asked now.
            path: the index, for the message.

        Raises:
            MismatchError: another generation, or another query; both values are named.
        """
        if self.generation != generation:
            raise MismatchError(
                f"{path}: the cursor is of generation {self.generation}, the index is at {generation}: it was changed "
                "in between. Ask for the first page again, without --after."
            )
        if self.asked != asked:
            raise MismatchError(
                f"{path}: the cursor is of the question {self.asked}, this one is {asked}: query, filter and options "
                "must be those of the page before. Ask for the first page, without --after."
            )


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
