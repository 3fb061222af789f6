"""Name -> thing: modalities, spaces, index backends, makers of media; plugins come through entry points."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from bindsearch.errors import InputError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of thing, loaded when first asked for.

    Args:
        kind: what the things are, for messages.
        modules: built-in name -> module that registers it on import; keeps imports lazy.
        group: entry-point group whose entries load plugins; an entry's value is a module or a thing.
    """

    def __init__(self, kind: str, modules: dict[str, str], group: str) -> None:
        """Know the built-in names without importing any of them."""
        self.kind, self.group = kind, group
        self._modules = dict(modules)
        self._things: dict[str, T] = {}
        self._plugins: tuple[str, ...] | None = None

    def register(self, name: str, thing: T) -> T:
        """Add a thing; a name that is taken is refused.

        Raises:
            InputError: naming both things.
        """
        if name in self._things and self._things[name] is not thing:
            raise InputError(f"{self.kind} {name!r} is already registered as {self._things[name]!r}, not {thing!r}.")
        self._things[name] = thing
        return thing

    def __getitem__(self, name: str) -> T:
        """Give the thing, importing its module when first asked for.

        Raises:
            UnknownNameError: with the nearest name.
        """
        if name not in self._things and name in self._modules:
            importlib.import_module(self._modules[name])
        if name not in self._things:
            self._load_plugin(name)
        if name not in self._things:
            raise UnknownNameError(self.kind, name, self.names())
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        """Say whether a name is known, without importing its module."""
        return isinstance(name, str) and (name in self._modules or name in self._things or name in self._plugin_names())

    def __iter__(self) -> Iterator[str]:
        """Iterate over the known names, sorted."""
        return iter(self.names())

    def names(self) -> tuple[str, ...]:
        """List the known names, sorted, without importing their modules."""
        return tuple(sorted({*self._modules, *self._things, *self._plugin_names()}))

    @property
    def built_in(self) -> tuple[str, ...]:
        """Names that come with bindsearch, in the order of the paper; reads no entry points."""
        return tuple(self._modules)

    def _plugin_names(self) -> tuple[str, ...]:
        """Give the names of plugins; what is installed is read once, which takes milliseconds."""
        if self._plugins is None:
            from importlib.metadata import entry_points

            self._plugins = tuple(entry.name for entry in entry_points(group=self.group))
        return self._plugins

    def _load_plugin(self, name: str) -> None:
        from importlib.metadata import entry_points

        for entry in entry_points(group=self.group, name=name):
            loaded = entry.load()
            if name not in self._things and not hasattr(loaded, "__path__") and not hasattr(loaded, "__file__"):
                self.register(name, loaded)


_BUILT_IN = ("text", "image", "video", "audio", "depth", "thermal", "imu", "features")

MODALITIES: Registry[Any] = Registry(
    "modality", {name: f"bindsearch.modalities.{name}" for name in _BUILT_IN}, "bindsearch.modalities"
)
SPACES: Registry[Any] = Registry(
    "space",
    {
        "imagebind-huge": "bindsearch.models.spaces",
        "bindsearch-mini": "bindsearch.models.spaces",
        "tiny": "bindsearch.models.spaces",
        "open_clip": "bindsearch.models.open_clip_space",
    },
    "bindsearch.spaces",
)
INDEXES: Registry[Any] = Registry(
    "index backend",
    {
        "flat": "bindsearch.index.flat",
        "faiss-flat": "bindsearch.index.faiss_index",
        "bytes": "bindsearch.index.byte_index",
        "ivf-pq": "bindsearch.index.ivf_codes",
        "ivf-rabitq": "bindsearch.index.ivf_codes",
        "ivf-sq8": "bindsearch.index.ivf_codes",
        "rabitq": "bindsearch.index.rabitq",
        "hnsw": "bindsearch.index.hnsw",
        "svs": "bindsearch.index.svs",
    },
    "bindsearch.indexes",
)
MAKERS: Registry[Any] = Registry("maker of media", {"world": "bindsearch.world.source"}, "bindsearch.makers")
"""Scheme -> what lists and makes media that lie in no file: `world:0..1000`."""
