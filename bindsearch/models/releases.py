"""The packaged table of released weights: where they are, how large, which checksum, which licence. Loads no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from bindsearch.config import from_json_dict
from bindsearch.errors import UnknownNameError


@dataclass(frozen=True)
class Release:
    """One released file.

    Attributes:
        file: its name.
        url: where it is downloaded from.
        licence, licence_url, licence_note: what it may be used for.
        size_bytes, sha256: None where they are not known; then those first seen are recorded.
        sha256_origin: who says so.
        parameters: how many numbers are trained.
        paper: where it is described.
    """

    file: str
    url: str
    licence: str
    licence_url: str = ""
    licence_note: str = ""
    size_bytes: int | None = None
    sha256: str | None = None
    sha256_origin: str = ""
    parameters: int | None = None
    paper: str = ""


def releases() -> dict[str, Release]:
    """Read the table: name of the space -> its release."""
    path = resources.files("bindsearch.models") / "releases.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    return {name: from_json_dict(Release, data, f"releases.json: {name}") for name, data in table.items()}


def release_of(name: str) -> Release:
    """Give one release.

    Raises:
        UnknownNameError: the table has no such space.
    """
    table = releases()
    if name not in table:
        raise UnknownNameError("released space", name, table, "Only released weights are fetched.")
    return table[name]
