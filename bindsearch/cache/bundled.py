"""The small cache that comes with the package: pictures of the world in the space bindsearch-mini, below 2 MB.

Made by tools/make_small_cache.py. Its items are addresses such as world:50000000#image, drawn again where they are
to be seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bindsearch.errors import MissingInputError

if TYPE_CHECKING:
    from bindsearch.cache.visual import VisualCache

FOLDER = Path(__file__).parent / "small"
SPACE = "bindsearch-mini"


def bundled_cache() -> VisualCache:
    """Open the small cache.

    Raises:
        MissingInputError: this installation lacks it.
        MismatchError: its files were altered.
    """
    from bindsearch.cache.visual import VisualCache

    if not (FOLDER / "index.json").is_file():
        raise MissingInputError(
            f"{FOLDER}: the bundled cache is not in this installation. Make one: "
            "bindsearch cache build world:0..2000#image -o indexes/cache"
        )
    return VisualCache.open(FOLDER)
