"""A scene: what is there, drawn from one seed; every modality renders the same scene.

Every attribute has a random stream of its own, named by the attribute: a scene depends on its seed alone, not on the
batch that it is drawn in, and a new attribute leaves the old ones as they are.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.errors import InputError, UnknownNameError

SPLITS = {"train": 0, "validation": 1 << 40, "test": 2 << 40, "demo": 3 << 40}
KINDS = ("full", "subject", "setting", "mixed")
ABSENT = -1

Seeds = NDArray[np.uint64]
Floats = NDArray[np.float32]
Codes = NDArray[np.int16]


@functools.cache
def table(name: str) -> Any:
    """Read a data table of the world (`data/<name>.json`), once."""
    return json.loads(resources.files("bindsearch.world").joinpath(f"data/{name}.json").read_text(encoding="utf-8"))


def names(attribute: str) -> tuple[str, ...]:
    """List the values of an attribute in the order of their codes.

    Raises:
        UnknownNameError: no such attribute.
    """
    known = {
        "subject": tuple(table("subjects")),
        "setting": tuple(table("settings")),
        "colour": tuple(table("colours")),
        "place": ("left", "middle", "right"),
        "size": ("small", "medium", "large"),
        "light": ("day", "dusk", "night", "fog"),
    }
    if attribute not in known:
        raise UnknownNameError("attribute", attribute, known)
    return known[attribute]


def split_seeds(split: str, n: int, start: int = 0) -> Seeds:
    """Give the seeds of n scenes of a split; splits never share a seed.

    Args:
        split: train, validation, test or demo.
        n: how many.
        start: number of the first scene within the split.

    Returns:
        (n,) uint64.

    Raises:
        UnknownNameError: no such split.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    return np.arange(n, dtype=np.uint64) + np.uint64(SPLITS[split] + start)


@functools.cache
def _stream(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") | 1)


def _mix(z: Seeds) -> Seeds:
    """Scramble 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(seeds: Seeds, name: str, *shape: int) -> Floats:
    """Draw uniform numbers from a named stream of each seed.

    Args:
        seeds: (n,) uint64. Not modified.
        name: of the stream.
        shape: numbers a seed; none means one number.

    Returns:
        (n, *shape) float32 in [0, 1); row i depends on seeds[i] and the name alone.
    """
    count = int(np.prod(shape)) if shape else 1
    with np.errstate(over="ignore"):
        start = _mix(seeds * np.uint64(0x9E3779B97F4A7C15) + _stream(name))
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mix(start[:, None] + steps[None, :])
    return (bits >> np.uint64(40)).astype(np.float32).reshape(len(seeds), *shape) * np.float32(2.0**-24)


def spread(seeds: Seeds, name: str, low: float, high: float, *shape: int) -> Floats:
    """Draw from [low, high) in a named stream; see `draw`."""
    return np.float32(low) + np.float32(high - low) * draw(seeds, name, *shape)


@dataclass(frozen=True)
class Scenes:
    """n scenes as arrays, row by row.

    Attributes:
        seed: (n,) uint64.
        subject, setting: (n,) codes into names("subject"), names("setting"); ABSENT where there is none.
        colour, place, size, light: (n,) codes; colour, place and size are ABSENT where there is no subject.
        x, y: (n,) centre of the subject, in frame widths from the left and from the top.
        scale: (n,) half extent of the subject, in frame widths.
        facing: (n,) 1 looks right, -1 looks left.
        voice: (n,) pitch of the subject's sound as a factor on its table pitch.
    """

    seed: Seeds
    subject: Codes
    setting: Codes
    colour: Codes
    place: Codes
    size: Codes
    light: Codes
    x: Floats
    y: Floats
    scale: Floats
    facing: Floats
    voice: Floats

    def __len__(self) -> int:
        return len(self.seed)

    def rows(self, which: Any) -> Scenes:
        """Give some of the scenes: an index array, a mask or a slice."""
        return Scenes(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def labels(self) -> list[dict[str, Any]]:
        """Give each scene's attributes by name, for people and tables; an absent one is None."""
        named = ("subject", "setting", "colour", "place", "size", "light")
        columns: dict[str, list[Any]] = {"seed": [int(seed) for seed in self.seed]}
        for attribute in named:
            values = names(attribute)
            columns[attribute] = [values[code] if code >= 0 else None for code in getattr(self, attribute)]
        for number in ("x", "y", "scale", "facing", "voice"):
            columns[number] = [round(float(value), 4) for value in getattr(self, number)]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def sample(seeds: Seeds, kind: str = "full", partial: float = 0.24) -> Scenes:
    """Draw the scenes of some seeds.

    Args:
        seeds: (n,) uint64. Not modified.
        kind: full (subject and setting), subject (no setting), setting (no subject), or mixed (drawn by the seed).
        partial: share of incomplete scenes among the mixed ones, half without subject, half without setting.

    Returns:
        Scenes of length n. Without `kind` and `partial`, row i depends on seeds[i] alone.

    Raises:
        UnknownNameError: no such kind.
        InputError: `partial` lies outside [0, 1].
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of scene", kind, KINDS)
    if not 0.0 <= partial <= 1.0:
        raise InputError(f"partial: expected a share between 0 and 1, got {partial}.")
    seeds = np.asarray(seeds, dtype=np.uint64)
    chance = draw(seeds, "kind")
    without_subject = (chance < partial / 2) if kind == "mixed" else np.full(len(seeds), kind == "setting")
    without_setting = (
        ((chance >= partial / 2) & (chance < partial)) if kind == "mixed" else np.full(len(seeds), kind == "subject")
    )

    def pick(attribute: str, absent: NDArray[np.bool_]) -> Codes:
        codes = np.floor(draw(seeds, attribute) * len(names(attribute))).astype(np.int16)
        return np.where(absent, np.int16(ABSENT), codes)

    place, size = pick("place", without_subject), pick("size", without_subject)
    near = spread(seeds, "x", -0.09, 0.09)
    return Scenes(
        seed=seeds,
        subject=pick("subject", without_subject),
        setting=pick("setting", without_setting),
        colour=pick("colour", without_subject),
        place=place,
        size=size,
        light=pick("light", np.zeros(len(seeds), dtype=bool)),
        x=(np.array([0.33, 0.5, 0.67, 0.5], dtype=np.float32)[place] + near).astype(np.float32),
        y=spread(seeds, "y", 0.42, 0.66),
        scale=np.array([0.24, 0.30, 0.37, 0.30], dtype=np.float32)[size] * spread(seeds, "scale", 0.93, 1.08),
        facing=np.where(draw(seeds, "facing") < 0.5, np.float32(-1), np.float32(1)),
        voice=np.exp2(spread(seeds, "voice", -0.5, 0.5)),
    )
