"""The world as a source without files: listed lazily, rendered when it is decoded, in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from bindsearch.errors import InputError
from bindsearch.listing.items import literal_item
from bindsearch.registry import MAKERS
from bindsearch.sources import Source
from bindsearch.types import Item
from bindsearch.world.address import SCHEME, Address, parse
from bindsearch.world.files import bytes_each, render_values, to_source
from bindsearch.world.scene import sample
from bindsearch.world.write import caption_column, scene_rows

_LISTED = 2048


class WorldMaker:
    """Makes items and media of addresses such as `world:0..1000`; see `makers.Maker`."""

    def canonical(self, name: str) -> str:
        """Write an address as shortly as it can be read again.

        Raises:
            InputError: it is none.
        """
        return str(parse(name))

    def items(self, name: str, modality: str | None = None) -> Iterator[Item]:
        """List scenes, all modalities of one after another; memory holds 2048 scenes, however long the range is.

        A text is there as it is; of others the address alone. Attributes are the scene's labels, the caption is its
        caption, and what belongs to one scene shares a group.

        Raises:
            InputError: no address, or `modality` is none that the address names.
        """
        address = parse(name)
        if modality is not None:
            if modality not in address.modalities:
                raise InputError(f"{name}: asked for {modality}, but it names {', '.join(address.modalities)}.")
            address = replace(address, modalities=(modality,))
        return self._items(address)

    def _items(self, address: Address) -> Iterator[Item]:
        languages = ("english", "german") if address.language == "both" else (address.language,)
        seeds = address.seeds
        for start in range(0, len(seeds), _LISTED):
            part = seeds[start : start + _LISTED]
            scenes = sample(np.arange(part.start, part.stop, dtype=np.uint64), address.kind)
            for number, row in enumerate(scene_rows(scenes, languages), start=address.first + start):
                captions = {language: row.pop(caption_column(language)) for language in languages}
                base = Item("", "", "", group=address.scene(number), attributes=row)
                for modality in address.modalities:
                    for language in languages if modality == "text" else languages[:1]:
                        key = address.item(number, modality, language)
                        item = replace(base, key=key, modality=modality, source=key, caption=captions[language])
                        yield literal_item(item, captions[language]) if modality == "text" else item

    def make(self, names: Sequence[str]) -> list[Source]:
        """Render items, those that are alike together.

        Args:
            names: addresses of one scene and one modality each. Not modified.

        Returns:
            A source a name, in order; decoding it gives what decoding the scene's file gives, where that is lossless.

        Raises:
            InputError: an address of several scenes or modalities.
        """
        addresses = [self._one(name) for name in names]
        alike: dict[tuple[str, int, str, str], list[int]] = {}
        for place, each in enumerate(addresses):
            alike.setdefault((each.modalities[0], each.size, each.kind, each.language), []).append(place)
        made: dict[int, Source] = {}
        for (modality, size_px, kind, language), places in alike.items():
            seeds = np.array([addresses[place].seeds.start for place in places], dtype=np.uint64)
            values = render_values(sample(seeds, kind), modality, size_px, language)
            for place, value in zip(places, values, strict=True):
                made[place] = to_source(value, modality, names[place])
        return [made[place] for place in range(len(names))]

    def bytes_of(self, name: str) -> int:
        """Tell about how many bytes a rendered item takes.

        Raises:
            InputError: an address of several scenes or modalities.
        """
        address = self._one(name)
        return bytes_each(address.modalities[0], address.size)

    def _one(self, name: str) -> Address:
        address = parse(name)
        if len(address.seeds) != 1 or len(address.modalities) != 1 or address.language == "both":
            raise InputError(
                f"{name}: expected one item, such as {address.item(address.first, 'image')}. "
                "A range is a source of `bindsearch embed`."
            )
        return address

    def narrowed(self, name: str, modalities: Sequence[str]) -> str:
        """Narrow an address to some modalities.

        Raises:
            InputError: it names its modalities itself.
        """
        if "#" in name:
            raise InputError(f"{name}: names its modalities itself. Leave away --modalities, or what follows the #.")
        return str(parse(f"{name}#{','.join(modalities)}"))

    def for_viewing(self, name: str, size_px: int) -> str:
        """Name the same item with pictures of at least `size_px`, for people."""
        address = parse(name)
        return str(replace(address, size=max(size_px, address.size)))


MAKERS.register(SCHEME, WorldMaker())
