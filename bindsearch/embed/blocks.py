"""Cut a stream of items in jobs: large files alone, small ones together, media that are made in blocks of their own."""

from __future__ import annotations

from collections.abc import Iterable

from bindsearch.errors import InputError
from bindsearch.listing import BrokenItem, FusedItem
from bindsearch.makers import maker_of
from bindsearch.types import Item

BLOCK_BYTES = 48 << 20
"""Of one block: what is made, and the arrays decoded from it."""
LONGEST = 1024
SMALL_TOGETHER = {
    "text": (64 << 10, 64),
    "features": (64 << 10, 64),
    "image": (512 << 10, 8),
    "depth": (512 << 10, 8),
    "thermal": (512 << 10, 8),
    "audio": (2 << 20, 4),
    "imu": (2 << 20, 4),
}
"""Size of a file up to which it travels with others, and how many travel together: what messages cost is then a small
part of what the items cost."""
_TEXT_BYTES = 16 << 10  # of texts on one message, which has to fit in a link that nobody reads
_FIRST = 32


def is_made(item: Item) -> bool:
    """Say whether an item's media have to be made: no file, no text that stands there as it is, no sum of parts."""
    if item.literal is not None or item.member is not None or isinstance(item, FusedItem | BrokenItem):
        return False
    return maker_of(item.source) is not None


def _bytes_of(item: Item) -> int:
    """Tell about how many bytes a made item takes; 0 where its name is wrong, which is said when it is made."""
    maker = maker_of(item.source)
    try:
        return 0 if maker is None else maker.bytes_of(item.source)
    except InputError:
        return 0


def _together(item: Item) -> int:
    """Tell how many items such as this one travel together; 1 is alone."""
    if isinstance(item, FusedItem | BrokenItem) or item.span is not None or item.size_bytes is None:
        return 1
    largest, count = SMALL_TOGETHER.get(item.modality, (0, 1))
    limit = _TEXT_BYTES // 4 if item.literal is not None else largest
    return count if item.size_bytes <= limit else 1


class Blocks:
    """Takes items from a stream, made ones of one modality together, and small ones.

    A block is twice as long as the one before, up to LONGEST and to BLOCK_BYTES: a short run is spread over all
    workers, a long one is quick. What is read ahead is at most one item.

    Attributes:
        making: the block taken last was made media.
        together: how many items of the kind taken last travel together.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        """Take nothing yet."""
        self.making = False
        self.together = 1
        self._items = iter(items)
        self._held: Item | None = None
        self._modality, self._length, self._nbytes = "", _FIRST, 0

    def take(self) -> tuple[Item, ...]:
        """Give the next block; () at the end."""
        first = self._held if self._held is not None else next(self._items, None)
        self._held = None
        if first is None:
            return ()
        self.making = is_made(first)
        if not self.making:
            self.together = _together(first)
            return (first,) if self.together == 1 else self._small(first)
        self.together = 1
        if first.modality != self._modality:
            self._modality, self._length, self._nbytes = first.modality, _FIRST, 0
        block, nbytes = [first], _bytes_of(first)
        while len(block) < self._length:
            item = next(self._items, None)
            if item is None:
                break
            alike = item.modality == first.modality and is_made(item)
            nbytes += _bytes_of(item) if alike else 0
            if not alike or nbytes > BLOCK_BYTES:
                self._held = item
                break
            block.append(item)
        self._length = min(2 * self._length, LONGEST, max(1, BLOCK_BYTES // max(self._nbytes, 1)))
        return tuple(block)

    def _small(self, first: Item) -> tuple[Item, ...]:
        """Take small items of one modality, beginning with a given one."""
        block, nbytes = [first], len(first.literal or "")
        while len(block) < self.together:
            item = next(self._items, None)
            if item is None:
                break
            nbytes += len(item.literal or "")
            if item.modality != first.modality or _together(item) == 1 or nbytes > _TEXT_BYTES or is_made(item):
                self._held = item
                break
            block.append(item)
        return tuple(block)

    def note(self, modality: str, nbytes: int) -> None:
        """Learn how large the decoded arrays of an item are."""
        if modality == self._modality:
            self._nbytes = max(self._nbytes, nbytes)
