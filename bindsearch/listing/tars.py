"""Webdataset tars: members by header scan, samples by name up to the first dot, brace patterns."""

from __future__ import annotations

import itertools
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from bindsearch.errors import InputError
from bindsearch.listing.items import BrokenItem, make_caption
from bindsearch.listing.naming import CAPTION_SUFFIX, Namer, place_of, suffix_of
from bindsearch.members import Member, list_members, say_damage
from bindsearch.modalities.text import decode_start
from bindsearch.types import Item, to_text

CAPTION_BYTES = 8192
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BLOCK_BYTES = 512


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand {000..009} and {a,b} in a path; several braces make all combinations, the last running fastest.

    Args:
        pattern: a path; one without braces is given back as it is.

    Raises:
        InputError: a range that runs backwards.
    """
    pieces = _BRACES.split(pattern)
    choices: list[list[str]] = []
    for number, piece in enumerate(pieces):
        choices.append(_alternatives(piece, pattern) if number % 2 else [piece])
    for combination in itertools.product(*choices):
        yield "".join(combination)


def _alternatives(piece: str, pattern: str) -> list[str]:
    match = _RANGE.fullmatch(piece)
    if match is None:
        return piece.split(",")
    first, last = match.groups()
    if int(first) > int(last):
        raise InputError(f"{pattern}: the range {{{piece}}} runs backwards. Write {{{last}..{first}}}.")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def caption_of_bytes(data: bytes) -> str | None:
    """Make a caption of a text file's first bytes, whatever they hold."""
    return make_caption(decode_start(data[:CAPTION_BYTES]))


def scan_tar(path: Path, key: str, namer: Namer, ignored: Counter[str]) -> Iterator[Item]:
    """List the media members of an uncompressed tar without reading their data.

    Args:
        path: the tar.
        key: of the tar; a member's key is "<key>/<member>".
        namer: tells modalities.
        ignored: counts members that are no media; added to.

    Yields:
        Items in the tar's order, with member, offset and size; mtime_s is the tar's. Members of one sample (same name
        up to the first dot, standing together) share a group, and the sample's .txt is their caption as well as an
        item of its own. A link is an item with the bytes of the member that it leads to. A link that leads to none, and
        a sparse member, whose bytes do not lie in one piece, are BrokenItems. A tar that is cut or damaged ends with
        one BrokenItem that says where.
    """
    troubles: list[str] = []
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = list_members(tar, file, troubles)
            for sample, together in itertools.groupby(members, key=lambda member: _sample_of(member.name)):
                yield from _items_of_sample(sample, list(together), path, key, namer, ignored)
            troubles += _look_at_end(path, tar.offset)
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        troubles.append(f"cannot be read as a tar: {say_damage(error)}")
    if troubles:
        yield BrokenItem(key, "tar", place_of(path), reason=troubles[0], stage="read", hides=True)


def _sample_of(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.split('.', 1)[0]}" if folder else base.split(".", 1)[0]


def _items_of_sample(
    sample: str, members: list[Member], path: Path, key: str, namer: Namer, ignored: Counter[str]
) -> Iterator[Item]:
    mtime_s = path.stat().st_mtime
    found: list[Item] = []
    caption = None
    for member in members:
        base = PurePosixPath(member.name).name
        look = None if base.startswith(".") else namer.look(member.name)
        if base.lower() == f"{PurePosixPath(sample).name.lower()}{CAPTION_SUFFIX}" and member.size_bytes:
            caption = caption_of_bytes(_peek(path, member))
        if look is None:
            ignored[suffix_of(member.name)] += 1
            continue
        item = Item(
            key=to_text(f"{key}/{member.name}"),
            modality=look[0],
            source=place_of(path),
            member=to_text(member.name),
            offset=member.offset,
            size_bytes=member.size_bytes,
            mtime_s=mtime_s,
        )
        if member.trouble:
            yield BrokenItem(
                item.key, item.modality, item.source, member=item.member, reason=member.trouble, stage="read"
            )
            continue
        found.append(item)
    group = to_text(f"{key}/{sample}") if len(found) > 1 else None
    for item in found:
        yield replace(item, group=group, caption=caption)


def _peek(path: Path, member: Member) -> bytes:
    with path.open("rb") as file:
        file.seek(member.offset)
        return file.read(min(member.size_bytes, CAPTION_BYTES))


def _look_at_end(path: Path, end: int) -> list[str]:
    """Say what stands after the last header, where anything does: tarfile takes a damaged header for the end."""
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(_BLOCK_BYTES)
    return [f"damaged at byte {end}: no header there; members after it are not seen"] if rest.strip(b"\x00") else []
