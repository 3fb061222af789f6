"""Numbers as data: frozen dataclasses to and from JSON, content hashes, and the user's settings.

A setting is looked up in this order: flag, environment `BINDSEARCH_<NAME>`, `bindsearch.toml` in the working folder,
`bindsearch.toml` in the user's configuration folder, default. A blank value counts as none. Folders may begin
with ~. A name that is no setting is refused in a file, and warned of in the environment, where others may have put it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from bindsearch.errors import InputError, UnknownNameError

C = TypeVar("C")
LOG = logging.getLogger(__name__)

_PREFIX = "BINDSEARCH_"
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "y": True, "t": True}
_WORDS |= {"0": False, "false": False, "no": False, "off": False, "n": False, "f": False}
_FOLDERS = ("index", "cache_dir")
DEFAULTS: dict[str, Any] = {
    "space": "bindsearch-mini",
    "index": None,
    "device": "auto",
    "dtype": "auto",
    "preset": "default",
    "speed": "fast",
    "workers": None,
    "offline": False,
    "cache_dir": None,
    "text_cache_mb": 256,
}


def canonical_json(value: Any) -> str:
    """Write JSON that is the same for the same value: sorted keys, no blanks, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def readable_json(value: Any, indent: int | None = None) -> str:
    r"""Write JSON for people and programs: letters as they are, bytes of names that are no UTF-8 as \udcNN.

    The latter is how items are named after such files (`types.to_text`); a lone surrogate itself fits no stream.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() else _SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", text)


def content_hash(value: Any, digits: int = 12) -> str:
    """Hash a JSON-able value or a dataclass to hexadecimal digits (SHA-256 of its canonical JSON)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = to_json_dict(value)
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()[:digits]


def to_json_dict(config: Any) -> dict[str, Any]:
    """Turn a frozen dataclass into plain JSON types (tuples become lists, nested dataclasses dicts)."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))
    return plain


@functools.cache
def _type_hints(cls: type[Any]) -> dict[str, Any]:
    """Read annotations once a class: each is a string that has to be compiled."""
    return typing.get_type_hints(cls)


def from_json_dict(cls: type[C], data: dict[str, Any], where: str = "config") -> C:
    """Build a frozen dataclass from plain JSON types; unknown and missing fields are refused.

    Raises:
        InputError: naming the place, the field and the known fields.
    """
    hints = _type_hints(cls)  # type: ignore[arg-type]
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected an object with {', '.join(sorted(fields))}, got {data!r}.")
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise InputError(f"{where}: unknown field {unknown[0]!r}. Known: {', '.join(sorted(fields))}.")
    try:
        return cls(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()})
    except TypeError as error:
        raise InputError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(arg for arg in args if arg is not type(None)), value, where)
    if dataclasses.is_dataclass(hint) and not isinstance(value, typing.cast(type, hint)):
        return from_json_dict(typing.cast(type, hint), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        return tuple(_convert(kind, part, where) for kind, part in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {key: _convert(args[1], part, f"{where}.{key}") for key, part in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kind = origin or hint
    if isinstance(kind, type) and kind is not typing.Any and not isinstance(value, kind):
        raise InputError(f"{where}: expected {kind.__name__}, got {value!r}.")
    return value


def setting(name: str, flag: Any = None) -> Any:
    """Give the value of a setting; see `setting_with_origin`."""
    return setting_with_origin(name, flag)[0]


def setting_with_origin(name: str, flag: Any = None) -> tuple[Any, str]:
    """Give the value of a setting and where it came from.

    Args:
        name: a key of DEFAULTS.
        flag: the value given on the command line or in the call; None means not given.

    Returns:
        The value, and one of "flag", "BINDSEARCH_<NAME>", a file's path, "default".

    Raises:
        InputError: a configuration file cannot be parsed or names no setting, a value is of another type, or the name
            is unknown.
    """
    if name not in DEFAULTS:
        raise InputError(f"unknown setting {name!r}. Known: {', '.join(sorted(DEFAULTS))}.")
    if flag is not None:
        return flag, "flag"
    _warn_of_strangers(frozenset(os.environ))
    variable = f"{_PREFIX}{name.upper()}"
    if os.environ.get(variable, "").strip():
        return _from_text(name, os.environ[variable], variable), variable
    for path in config_files():
        table = _read_toml(path)
        if str(table.get(name, "")).strip():
            return _from_table(name, table[name], path), str(path)
    return DEFAULTS[name], "default"


@functools.cache
def _warn_of_strangers(variables: frozenset[str]) -> None:
    """Warn, once, of environment variables that look like settings and are none: most often one is misspelt."""
    ours = {f"{_PREFIX}{name.upper()}" for name in DEFAULTS}
    for variable in sorted(variables - ours):
        if variable.startswith(_PREFIX):
            LOG.warning("%s", UnknownNameError("environment variable", variable, ours, "It is not read."))


def _kind_of(name: str) -> type:
    if isinstance(DEFAULTS[name], bool):
        return bool
    return int if name in ("workers", "text_cache_mb") else str


def _from_text(name: str, text: str, where: str) -> Any:
    kind = _kind_of(name)
    if kind is bool:
        if text.strip().lower() not in _WORDS:
            raise InputError(f"{where}: expected true or false, got {text!r}.")
        return _WORDS[text.strip().lower()]
    if kind is int:
        try:
            return int(text)
        except ValueError as error:
            raise InputError(f"{where}: expected a whole number, got {text!r}.") from error
    return _from_home(text, where) if name in _FOLDERS else text


def _from_home(path: str, where: str) -> str:
    """Put the home folder in the place of a leading ~: no shell has done so."""
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise InputError(f"{where}: no home folder is known for {path!r}. Write the whole path.") from error


def _from_table(name: str, value: Any, path: Path) -> Any:
    """Read a value of a configuration file; text is read as in the environment."""
    if isinstance(value, str):
        return _from_text(name, value, f"{path}: {name}")
    kind = _kind_of(name)
    if type(value) is not kind:
        expected, example = {
            bool: ("true or false", "true"),
            int: ("a whole number", "2"),
            str: ("text", '"..."'),
        }[kind]
        raise InputError(f"{path}: {name}: expected {expected}, got {value!r}. Write: {name} = {example}")
    return value


def config_files() -> tuple[Path, ...]:
    """List the configuration files that are looked at, first wins; they need not exist."""
    here = Path("bindsearch.toml")
    try:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    except RuntimeError:  # no HOME, and a user that the system has no name for, as in some containers
        return (here,)
    return (here, home / "bindsearch" / "bindsearch.toml")


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    import tomllib

    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    for name in table:
        if name not in DEFAULTS:
            raise UnknownNameError(f"setting in {path}", name, DEFAULTS, "A line is NAME = VALUE, under no [heading].")
    return table


def cache_dir() -> Path:
    """Give the folder of fetched and converted weights: setting `cache_dir`, else the user's cache folder.

    Raises:
        InputError: neither is known.
    """
    chosen = setting("cache_dir")
    if chosen:
        return Path(chosen)
    import platformdirs

    try:
        return Path(platformdirs.user_cache_dir("bindsearch")).expanduser()
    except RuntimeError as error:
        what = "no home folder is known, so there is no place for the cache"
        raise InputError(f"{what}. Name a folder for it: set BINDSEARCH_CACHE_DIR.") from error
