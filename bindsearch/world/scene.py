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

VERSION = 2
"""Of the drawings: the same seed gives other pictures, sounds or recordings under another number."""
SPLIT_SIZE = 1 << 40
SPLITS = {
    name: number * SPLIT_SIZE for number, name in enumerate(("train", "validation", "test", "demo", "compositional"))
}
KINDS = ("full", "subject", "setting", "mixed")
ABSENT = -1
COUNT_SHARES = (0.7, 0.18, 0.12)
NAMED = ("subject", "setting", "motion", "colour", "count", "place", "size", "light", "view")
NUMBERS = ("x", "y", "scale", "facing", "voice", "distance_m", "pace", "phase", "reach")

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
        "motion": ("still", "slide", "bounce", "spin", "shake", "approach"),
        "colour": tuple(table("colours")),
        "count": ("one", "two", "three"),
        "place": ("left", "middle", "right"),
        "size": ("small", "medium", "large"),
        "light": ("day", "dusk", "night", "fog"),
        "view": ("low", "level", "high"),
    }
    if attribute not in known:
        raise UnknownNameError("attribute", attribute, known)
    return known[attribute]


def split_seeds(split: str, n: int, start: int = 0) -> Seeds:
    """Give the seeds of n scenes of a split; splits never share a seed.

    Args:
        split: train, validation, test, demo or compositional.
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


def held_out() -> Codes:
    """Give the setting that each subject never meets outside the split `compositional`, (subjects,) int16.

    Every seed of that split has exactly its subject's held-out setting; every other seed has another one.
    """
    subjects, settings = len(names("subject")), len(names("setting"))
    return ((np.arange(subjects) * 5 + 3) % settings).astype(np.int16)


@dataclass(frozen=True)
class Scenes:
    """n scenes as arrays, row by row.

    Attributes:
        seed: (n,) uint64.
        subject, setting: (n,) codes into names("subject"), names("setting"); ABSENT where there is none.
        motion, colour, count, place, size: (n,) codes; ABSENT where there is no subject; place as well where there
            are several.
        light, view: (n,) codes.
        x, y: (n,) centre of the subject or of the group, in frame widths from the left and from the top.
        scale: (n,) half extent of one subject, in frame widths.
        facing: (n,) 1 looks right, -1 looks left.
        voice: (n,) pitch of the subject's sound as a factor on its table pitch.
        distance_m: (n,) from the camera to the subject; a frame is as wide as its distance there.
        pace: (n,) rounds of the motion a second, as a factor on the motion's own.
        phase: (n,) of the motion, in rounds.
        reach: (n,) size of the motion, as a factor on the motion's own.
    """

    seed: Seeds
    subject: Codes
    setting: Codes
    motion: Codes
    colour: Codes
    count: Codes
    place: Codes
    size: Codes
    light: Codes
    view: Codes
    x: Floats
    y: Floats
    scale: Floats
    facing: Floats
    voice: Floats
    distance_m: Floats
    pace: Floats
    phase: Floats
    reach: Floats

    def __len__(self) -> int:
        return len(self.seed)

    def rows(self, which: Any) -> Scenes:
        """Give some of the scenes: an index array, a mask or a slice."""
        return Scenes(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def labels(self) -> list[dict[str, Any]]:
        """Give each scene's attributes by name, for people and tables; an absent one is None."""
        columns: dict[str, list[Any]] = {"seed": [int(seed) for seed in self.seed]}
        for attribute in NAMED:
            values = names(attribute)
            columns[attribute] = [values[code] if code >= 0 else None for code in getattr(self, attribute)]
        for number in NUMBERS:
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

    def pick(attribute: str, absent: NDArray[np.bool_], shares: tuple[float, ...] = ()) -> Codes:
        chance = draw(seeds, attribute)
        if shares:
            codes = np.searchsorted(np.cumsum(shares[:-1]), chance, side="right").astype(np.int16)
        else:
            codes = np.floor(chance * len(names(attribute))).astype(np.int16)
        return np.where(absent, np.int16(ABSENT), codes)

    subject, count = pick("subject", without_subject), pick("count", without_subject, COUNT_SHARES)
    several = count > 0
    place, size = pick("place", without_subject | several), pick("size", without_subject)
    near = spread(seeds, "x", -0.09, 0.09) * np.where(several, np.float32(0.3), np.float32(1))
    crowd = np.array([1.0, 0.8, 0.68, 1.0], dtype=np.float32)[count]
    distance_m = np.array([4.4, 3.2, 2.3, 3.2], dtype=np.float32)[size] * spread(seeds, "distance", 0.88, 1.14)
    return Scenes(
        seed=seeds,
        subject=subject,
        setting=_settings(seeds, subject, without_setting),
        motion=pick("motion", without_subject),
        colour=pick("colour", without_subject),
        count=count,
        place=place,
        size=size,
        light=pick("light", np.zeros(len(seeds), dtype=bool)),
        view=pick("view", np.zeros(len(seeds), dtype=bool)),
        x=(np.array([0.33, 0.5, 0.67, 0.5], dtype=np.float32)[place] + near).astype(np.float32),
        y=spread(seeds, "y", 0.44, 0.64),
        scale=np.array([0.25, 0.30, 0.36, 0.30], dtype=np.float32)[size] * crowd * spread(seeds, "scale", 0.93, 1.08),
        facing=np.where(draw(seeds, "facing") < 0.5, np.float32(-1), np.float32(1)),
        voice=np.exp2(spread(seeds, "voice", -0.5, 0.5)),
        distance_m=distance_m,
        pace=np.exp2(spread(seeds, "pace", -0.35, 0.35)),
        phase=spread(seeds, "phase", 0.0, 1.0),
        reach=spread(seeds, "reach", 0.8, 1.2),
    )


def _settings(seeds: Seeds, subject: Codes, absent: NDArray[np.bool_]) -> Codes:
    """Draw settings: a subject meets its held-out one in the compositional split alone."""
    many = len(names("setting"))
    codes = np.floor(draw(seeds, "setting") * many).astype(np.int16)
    kept = held_out()[subject]
    other = (kept + 1 + np.floor(draw(seeds, "setting.other") * (many - 1)).astype(np.int16)) % many
    codes = np.where((codes == kept) & (subject >= 0), other.astype(np.int16), codes)
    first = np.uint64(SPLITS["compositional"])
    never = (seeds >= first) & (seeds - first < np.uint64(SPLIT_SIZE)) & (subject >= 0)
    codes = np.where(never, kept, codes)
    return np.where(absent, np.int16(ABSENT), codes).astype(np.int16)
