"""Units of inertial recordings: their factors to SI, and how files spell them."""

from __future__ import annotations

import math
import re

from bindsearch.errors import DecodeError

GRAVITY = 9.80665

ACCEL_UNITS = {"m/s^2": 1.0, "cm/s^2": 1e-2, "mm/s^2": 1e-3, "g": GRAVITY, "mg": GRAVITY / 1000}
GYRO_UNITS = {
    "rad/s": 1.0,
    "mrad/s": 1e-3,
    "deg/s": math.pi / 180,
    "mdeg/s": math.pi / 180_000,
    "rpm": 2 * math.pi / 60,
}
TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
UNITS = {"accel": ACCEL_UNITS, "gyro": GYRO_UNITS, "time": TIME_UNITS}
"""Of each kind of column, the units with their factors to m/s², rad/s and s; the first is taken where none is said."""

_SPELLINGS = {
    "m/s^2": ("m/s2", "ms2", "mps2", "mpss", "ms-2", "m/s/s"),
    "cm/s^2": ("cm/s2", "cms2", "cms-2", "cm/s/s"),
    "mm/s^2": ("mm/s2", "mms2", "mms-2", "mm/s/s"),
    "g": ("g", "gs", "g0", "gn"),
    "mg": ("mg", "millig"),
    "rad/s": ("rad/s", "rads", "radps", "rads-1"),
    "mrad/s": ("mrad/s", "mrads", "mradps", "mrads-1"),
    "deg/s": ("deg/s", "degs", "degps", "dps", "degs-1"),
    "mdeg/s": ("mdeg/s", "mdegs", "mdegps", "mdps", "mdegs-1"),
    "rpm": ("rpm", "rev/min", "r/min"),
    "s": ("s",),
    "ms": ("ms", "millis"),
    "us": ("us", "micros"),
    "ns": ("ns", "nanos"),
}
REMARKS = {
    "utc", "gmt", "unix", "epoch", "posix", "local", "elapsed", "relative", "calibrated", "uncalibrated", "corrected",
    "filtered", "smoothed", "body", "body frame", "sensor", "device", "imu", "world", "world frame",
}  # fmt: skip
"""What stands in brackets behind names of columns and is no unit, nor changes it."""

_SAME = (  # read alike before the table is asked; UTF-8 that was taken for Latin-1 has an "â" before its signs
    ("â", ""),
    ("²", "2"), ("¹", "1"), ("⁻", "-"), ("−", "-"), ("µ", "u"), ("μ", "u"), ("°", "deg"), ("_", "/"), ("per", "/"),
    (r"[\s^*·⋅.]", ""), ("degrees?", "deg"), ("radians?", "rad"), ("met(er|re)s?", "m"), ("sec(ond)?s?", "s"),
)  # fmt: skip
_UNIT_OF = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings}
_BRACKET = re.compile(r"[\[({]([^\])}]*)")
_SAYS_SOMETHING = re.compile(r"[^\W\d_]|°|%")


def unit_of(text: str) -> str | None:
    """Give the unit that a spelling means, such as "deg/s" of "°/sec"; None where it is no known one."""
    plain = text.strip().lower()
    for pattern, same in _SAME:
        plain = re.sub(pattern, same, plain)
    return _UNIT_OF.get(plain)


def split_name(column: str) -> tuple[str, str | None]:
    """Split a column's name in what it is, in lower case, and the unit that stands behind it, as it is written.

    A unit stands in brackets, or behind an underscore or blank if it is a known one: "accel_x [mg]", "gyro_x_rad_s". Of
    brackets, those that hold a word of REMARKS or no letter say nothing.
    """
    low = column.strip().lower()
    bracket = _BRACKET.search(low)
    name = low[: bracket.start()].strip() if bracket else low
    written = bracket.group(1).strip() if bracket and _SAYS_SOMETHING.search(bracket.group(1)) else None
    written = None if written in REMARKS else written
    for separator in re.finditer(r"[_\s]", name):
        behind = name[separator.end() :]
        if unit_of(behind) is not None:
            return name[: separator.start()], behind if written is None or unit_of(written) is None else written
    return name, written


def stated_unit(written: list[str], kind: str, where: str) -> str:
    """Give the unit that files state, one way or several; the first of its kind where they state none.

    Args:
        written: units as they stand in the file; empty where it states none.
        kind: "accel", "gyro" or "time".
        where: name of the source, for messages.

    Raises:
        DecodeError: a unit that is not known, or two that differ.
    """
    units = {text: unit_of(text) for text in written}
    known = ", ".join(UNITS[kind])
    for text, unit in units.items():
        if unit not in UNITS[kind]:
            raise DecodeError(where, f"states the unit {text!r}; of {kind}, {known} are known: set {kind}_unit to one")
    if len(set(units.values())) > 1:
        raise DecodeError(where, f"states several units of {kind} ({', '.join(units)}): set {kind}_unit to one")
    return next((unit for unit in units.values() if unit is not None), next(iter(UNITS[kind])))
