"""Make the small visual cache that is bundled, for the demo and `bindsearch ask`: pictures of the world, float16 rows.

python tools/make_small_cache.py            # writes bindsearch/cache/small/ (below 2 MB)

No pictures are stored: a key such as world:50000000#image is drawn again wherever it is to be seen. The scenes are of
the split that bindsearch-mini was trained from, but numbered beyond those that training, tests and benchmarks take. To
be run again whenever the mini's image tower changes; tests/test_small_cache.py says so.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from bindsearch.cache.build import Kept, find_kept, record_of
from bindsearch.cache.bundled import FOLDER
from bindsearch.cache.recipe import CacheRecipe
from bindsearch.embed import EmbedOptions, run_embed
from bindsearch.index.build import build_index
from bindsearch.index.recipe import Recipe
from bindsearch.models.spaces import load_space
from bindsearch.store import EmbeddingStore

FIRST, COUNT = 50_000_000, 2_800
SOURCE = f"world:{FIRST}..{FIRST + COUNT}#image"
COLUMNS = ("id", "key", "modality", "source", "caption")


@dataclass(frozen=True)
class Slim:
    """A store with few columns; see `index.source.VectorSource`."""

    store: EmbeddingStore

    @property
    def manifest(self) -> Any:
        """The store's."""
        return self.store.manifest

    def iter_blocks(self, rows: int) -> Iterator[tuple[Any, Any, pa.Table]]:
        """Iterate over blocks, without the columns that nobody asks the small cache for."""
        for ids, vectors, table in self.store.iter_blocks(rows):
            yield ids, vectors, table.select(list(COLUMNS))

    def gone_sources(self) -> dict[int, set[str]]:
        """Give nothing."""
        return {}


def main() -> None:
    """Render, embed, leave out what repeats, write."""
    recipe = CacheRecipe(SOURCE, None, "bindsearch-mini", index=Recipe("flat", "float16"))
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "embeddings"
        run_embed([SOURCE], store, load_space("bindsearch-mini"), options=EmbedOptions(workers=0)).check_bad()
        source = Slim(EmbeddingStore.open(store))
        counts, mask = find_kept(source, recipe, Path(scratch))
        target = FOLDER
        if target.exists():
            shutil.rmtree(target)
        build_index(Kept(source, mask), target, recipe.index)
        record_of(recipe, SOURCE, counts).save(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    (target / ".gitignore").write_text("index.lock\n", encoding="utf-8")
    print(f"{target}: {counts['kept']} pictures, {size:,} bytes")
    if size > 2_000_000:
        raise SystemExit("larger than 2 MB: take fewer scenes")


if __name__ == "__main__":
    main()
