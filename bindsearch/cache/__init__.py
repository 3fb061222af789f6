"""The visual cache: embeddings moved towards their nearest cached images, for a language model or for search."""

from bindsearch.cache.blend import mix
from bindsearch.cache.bundled import bundled_cache
from bindsearch.cache.visual import Retrieved, VisualCache

__all__ = ["Retrieved", "VisualCache", "bundled_cache", "mix"]
