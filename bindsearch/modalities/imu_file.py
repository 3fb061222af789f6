"""Inertial recordings as they stand in files: CSV, .npy and HDF5, with their times, rate, units and channel names."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities.arrays import FileArray, read_array
from bindsearch.modalities.imu_units import TIME_UNITS, UNITS, split_name, stated_unit, unit_of
from bindsearch.modalities.text import decode_text
from bindsearch.sources import Source

if TYPE_CHECKING:
    import numpy as np

    from bindsearch.modalities.imu import ImuConfig

CHANNELS = ("accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z")
_ACCEL = re.compile(r"(?:linear)?(?:acc|accl|accel|accelerometer|acceleration|a)(?:rss)?(x|y|z)")
_GYRO = re.compile(r"(?:gyr|gyro|gyroscope|angularvelocity|angvel|omega|w|g)(?:rss)?(x|y|z)")
_TIME = re.compile(r"(?:canonical|sensor)?(?:t|time|times|timestamp|timestamps|seconds|secondselapsed)")


@dataclass(frozen=True)
class Recording:
    """What a file says.

    Attributes:
        values: (6, T) as in the file, in the order of CHANNELS; NaN where a cell is empty.
        times_s: (T,) float64 seconds, as they stand, or None.
        rate_hz: where the file says it without times.
        accel_unit, gyro_unit: where the file says it, else "m/s^2" and "rad/s".
        channels: the file's own names.
    """

    values: np.ndarray
    times_s: np.ndarray | None = None
    rate_hz: float | None = None
    accel_unit: str = "m/s^2"
    gyro_unit: str = "rad/s"
    channels: tuple[str, ...] = CHANNELS


def read_recording(source: Source, config: ImuConfig) -> Recording:
    """Read a recording from a file, bytes or an array.

    Args:
        source: CSV (comma, semicolon or tab), .npy (6, T) or (T, 6), HDF5, or an array with its rate. Not modified.
        config: its columns, time column, units and limits are used.

    Raises:
        DecodeError: the file is not a recording of six channels; the message names what is missing. Or it states a unit
            that is not known.
    """
    if source.kind == "value":
        found = read_array(source, config.limit_bytes, ())
        return Recording(_six_rows(found.array, source.name), rate_hz=source.rate_hz)
    with source.open() as file:
        head = file.read(16)
    if head.startswith((b"\x93NUMPY", b"\x89HDF")):
        return _read_binary(source, config)
    return _read_csv(source, config)


def _read_binary(source: Source, config: ImuConfig) -> Recording:
    import numpy as np

    names = ("imu", "accelerometer", "accel", "acc")
    found = read_array(source, config.limit_bytes, names)
    of_gyro = found
    if found.kind == "hdf5" and _base_name(found) in names[1:]:
        of_gyro = read_array(source, config.limit_bytes, ("gyroscope", "gyro", "gyr"))
        both = [_three_rows(found, source.name), _three_rows(of_gyro, source.name)]
        if both[0].shape != both[1].shape:
            raise DecodeError(source.name, f"{both[0].shape[1]} accelerations but {both[1].shape[1]} rotations")
        values = np.concatenate(both)
    else:
        values = _six_rows(found.array, source.name)
    if values.shape[1] > config.max_samples:
        raise DecodeError(source.name, f"{values.shape[1]} samples, over the limit of {config.max_samples}")
    return Recording(
        values,
        rate_hz=_number(found.attributes, ("rate_hz", "rate", "sampling_rate", "sampling_rate_hz", "fs")),
        accel_unit=_unit_in(found.attributes, "accel", config.accel_unit, source.name),
        gyro_unit=_unit_in(of_gyro.attributes, "gyro", config.gyro_unit, source.name),
    )


def _base_name(found: FileArray) -> str:
    return str(found.attributes.get("dataset", "")).strip("/")


def _six_rows(array: np.ndarray, name: str) -> np.ndarray:
    """Give (6, T), turning (T, 6); refuses what could be either."""
    sixes = [axis for axis, size in enumerate(array.shape) if size == 6]
    if array.ndim != 2 or not sixes:
        raise DecodeError(name, f"expected six channels, (6, T) or (T, 6), got shape {array.shape}")
    if len(sixes) == 2:
        raise DecodeError(name, "6x6 values: cannot tell channels from samples, and too short in any case")
    return array if sixes[0] == 0 else array.T


def _three_rows(found: FileArray, name: str) -> np.ndarray:
    array = found.array
    if array.ndim != 2 or 3 not in array.shape or array.shape == (3, 3):
        raise DecodeError(name, f"{_base_name(found)}: expected (3, T) or (T, 3), got shape {array.shape}")
    return array if array.shape[0] == 3 else array.T


def _number(attributes: Mapping[str, Any], names: Sequence[str]) -> float | None:
    for name in names:
        value = attributes.get(name)
        if isinstance(value, int | float) and 0 < value < 1e6:
            return float(value)
    return None


def _unit_in(attributes: Mapping[str, Any], kind: str, setting: str, name: str) -> str:
    """Read the unit of "accel" or "gyro" from attributes: `accel_unit`, or `unit` and `units`, which may say both."""
    if setting != "auto":
        return setting
    if own := _texts(attributes.get(f"{kind}_unit")):
        return stated_unit(own, kind, name)
    other = UNITS["gyro" if kind == "accel" else "accel"]
    shared = [text for key in ("unit", "units") for text in _texts(attributes.get(key))]
    return stated_unit([text for text in shared if unit_of(text) not in other], kind, name)


def _texts(value: Any) -> list[str]:
    """Give the texts of an attribute: one, several in a list, or several in one, as in "m/s^2, rad/s"."""
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    texts = [each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each) for each in values]
    return [part.strip() for text in texts for part in re.split(r"[,;|]|\band\b", text) if part.strip()]


def _read_csv(source: Source, config: ImuConfig) -> Recording:
    text = decode_text(source.read_bytes(config.limit_bytes), source.name)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise DecodeError(source.name, "holds no rows")
    delimiter = max(",;\t", key=lines[0].count)
    header = _cells(lines[0], delimiter)
    if not all(_is_number(cell) for cell in header):
        names, lines = header, lines[1:]
    else:
        names = _names_in_remarks(text, delimiter, len(header)) or _names_without_header(header, source.name)
    if len(lines) > config.max_samples:
        raise DecodeError(source.name, f"{len(lines)} rows, over the limit of {config.max_samples}")
    table = _parse_rows(lines, delimiter, len(names), source.name)
    places = _find_channels(names, config, source.name)
    channels = [names[place] for place in places]
    time = _find_time(names, config, source.name)
    times = None
    if time is not None:
        unit = _unit_of([names[time]], "time", config.time_unit, source.name)
        times = (table[time] - table[time][0]) * TIME_UNITS[unit]
    return Recording(
        table[places],
        times,
        accel_unit=_unit_of(channels[:3], "accel", config.accel_unit, source.name),
        gyro_unit=_unit_of(channels[3:], "gyro", config.gyro_unit, source.name),
        channels=tuple(channels),
    )


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]


def _names_in_remarks(text: str, delimiter: str, columns: int) -> list[str] | None:
    """Give the names that stand in the last remark above the rows, as EuRoC's files have them; None without such."""
    above = list(itertools.takewhile(lambda line: not line.strip() or line.startswith("#"), text.splitlines()))
    remarks = [line.lstrip("#") for line in above if line.strip("# \t")]
    names = _cells(remarks[-1], delimiter) if remarks else []
    return names if len(names) == columns and not any(_is_number(name) for name in names) else None


def _names_without_header(cells: list[str], name: str) -> list[str]:
    if len(cells) == 6:
        return list(CHANNELS)
    if len(cells) == 7:
        return ["time", *CHANNELS]
    raise DecodeError(name, f"{len(cells)} columns without names; expected {', '.join(CHANNELS)}, or time before them")


def _parse_rows(lines: list[str], delimiter: str, columns: int, name: str) -> np.ndarray:
    """Parse rows to (columns, T) float64; empty cells become NaN."""
    import numpy as np

    rows = []
    for number, cells in enumerate(csv.reader(lines, delimiter=delimiter), 1):
        if len(cells) != columns:
            raise DecodeError(name, f"row {number} has {len(cells)} cells, expected {columns}")
        try:
            rows.append([float(cell) if cell.strip() else float("nan") for cell in cells])
        except ValueError as error:
            raise DecodeError(name, f"row {number}: {error}") from error
    if not rows:
        raise DecodeError(name, "holds names of columns, but no rows")
    return np.array(rows, np.float64).T


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _matched(pattern: re.Pattern[str], column: str) -> re.Match[str] | None:
    """Match the letters of a column's name: without the unit behind it, or else with what looked like one."""
    name, _ = split_name(column)
    whole = re.sub(r"[\[({].*", "", column.lower())
    found = (pattern.fullmatch(re.sub(r"[^a-z]", "", text)) for text in (name, whole))
    return next((match for match in found if match), None)


def _find_channels(names: list[str], config: ImuConfig, source_name: str) -> list[int]:
    if config.columns is not None:
        lost = [name for name in config.columns if name not in names]
        if lost:
            raise DecodeError(source_name, f"no column {lost[0]!r}; there are {', '.join(names)}")
        return [names.index(name) for name in config.columns]
    found: dict[tuple[str, str], int] = {}
    for place, name in enumerate(names):
        for kind, pattern in (("accel", _ACCEL), ("gyro", _GYRO)):
            match = _matched(pattern, name)
            if match:
                if (kind, match.group(1)) in found:
                    raise DecodeError(source_name, f"several columns for {kind}_{match.group(1)}; set columns")
                found[kind, match.group(1)] = place
    wanted = [(kind, axis) for kind in ("accel", "gyro") for axis in "xyz"]
    lost = [f"{kind}_{axis}" for kind, axis in wanted if (kind, axis) not in found]
    if lost:
        there = ", ".join(names[:12])
        raise DecodeError(source_name, f"no column for {', '.join(lost)}; there are {there}. Name the six in columns")
    return [found[key] for key in wanted]


def _find_time(names: list[str], config: ImuConfig, source_name: str) -> int | None:
    if config.time_column is not None:
        if config.time_column not in names:
            raise InputError(f"{source_name}: no time column {config.time_column!r}; there are {', '.join(names)}.")
        return names.index(config.time_column)
    found = [place for place, name in enumerate(names) if _matched(_TIME, name)]
    return next((place for place in found if _says_unit(names[place])), found[0] if found else None)


def _says_unit(time: str) -> bool:
    """Tell whether a column of times says its unit: of two such columns this one is read."""
    return unit_of(split_name(time)[1] or "") in TIME_UNITS or time.lower().startswith("seconds")


def _unit_of(columns: Sequence[str], kind: str, setting: str, name: str) -> str:
    """Read the unit of "accel", "gyro" or "time" from the names of columns, unless it is set."""
    if setting != "auto":
        return setting
    written = [split_name(column)[1] for column in columns]
    return stated_unit([text for text in written if text is not None], kind, name)
