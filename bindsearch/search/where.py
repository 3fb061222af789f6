"""Filters over the item table: a small expression language, evaluated column by column with Arrow.

    modality == 'image' and size > 1000 and caption like '%dog%'
    not (colour in ('red', 'blue')) or start_s is null

Grammar, loosest first; the words of the language are not case-sensitive:

    either   := both ("or" both)*
    both     := unary ("and" unary)*
    unary    := "not" unary | "(" either ")" | test
    test     := column ("==" | "=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") literal
              | column ["not"] "in" "(" literal ("," literal)* ")"
              | column ["not"] "like" text          % any characters, _ one
              | column "is" ["not"] "null"
    column   := a column of the item table, or a name in its attributes (attributes.size where both have it);
                `any name` between backquotes
    literal  := 'text' | "text" (a quote doubled stands for itself) | number | true | false

Text that is compared with a number is read as numbers (cells of CSV files are text), whole ones of up to 38 digits
exactly. A comparison with a missing value
is unknown, as in SQL; only rows that are known to be true pass. Nothing is evaluated
as Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from bindsearch.errors import InputError
from bindsearch.types import to_text

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Read = Callable[[str], pa.ChunkedArray]

Literal = str | int | float | bool

_TOKENS = re.compile(
    r"""\s*(?:
        (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
      | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
      | (?P<quoted>`[^`]+`)
      | (?P<name>[^\W\d][\w.]*)
      | (?P<sign>==|!=|<>|<=|>=|=|<|>|\(|\)|,)
    )""",
    re.VERBOSE,
)
_WORDS = ("and", "or", "not", "in", "like", "is", "null", "true", "false")
_COMPARE = {
    "==": "equal",
    "=": "equal",
    "!=": "not_equal",
    "<>": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}
_DEEPEST = 50
_DIGITS = 38
_FEW, _FEW_TEXTS = 8, 2
_EXACT = 2.0**53


@dataclass(frozen=True)
class Filter:
    """A parsed filter.

    Attributes:
        text: as it was written.
        columns: the names that it asks for, each once.
    """

    text: str
    columns: tuple[str, ...]
    _root: _Node

    def mask(self, read: Read) -> NDArray[np.bool_]:
        """Say which rows pass.

        Args:
            read: gives a column by name: (n,) Arrow values.

        Returns:
            (n,) bool; False where the answer is not known.

        Raises:
            UnknownNameError: from `read`.
            InputError: a column holds another type than what it is compared with; both are named.
        """
        import numpy as np
        import pyarrow.compute as pc

        columns = {name: read(name) for name in self.columns}
        found = pc.fill_null(_evaluate(self._root, columns, self.text), False)
        return np.asarray(found.to_numpy(zero_copy_only=False), dtype=bool)

    def asked_for(self) -> list[tuple[str, str]]:
        """List the texts that a column may have to be: (column, text), as written, each once."""
        found, left = dict[tuple[str, str], None](), [self._root]
        while left:
            node = left.pop(0)
            if node.kind in ("equal", "in"):
                found |= {(node.column, value): None for value in node.values if isinstance(value, str)}
            left[:0] = node.parts
        return list(found)


@dataclass(frozen=True)
class _Node:
    """A step: `kind` is "or", "and", "not", a compute function's name, "in", "like" or "null"."""

    kind: str
    parts: tuple[_Node, ...] = ()
    column: str = ""
    values: tuple[Literal, ...] = ()


def parse_filter(text: str) -> Filter:
    """Parse a filter; see the grammar above.

    Raises:
        InputError: naming the place where it stops making sense.
    """
    parser = _Parser(text)
    root = parser.either(0)
    if parser.kind:
        raise parser.error("'and', 'or' or the end")
    return Filter(text, tuple(dict.fromkeys(parser.columns)), root)


class _Parser:
    """A recursive descent over the tokens; `kind` and `value` are the token at hand, empty at the end."""

    def __init__(self, text: str) -> None:
        self.text, self.columns = text, list[str]()
        self._tokens = self._split()
        self.kind, self.value, self.at = "", "", 0
        self.step()

    def _split(self) -> Iterator[tuple[str, str, int]]:
        place, end = 0, len(self.text.rstrip())
        while place < end:
            match = _TOKENS.match(self.text, place)
            if match is None:
                self.at = place + len(self.text[place:]) - len(self.text[place:].lstrip())
                raise self.error("a column, a value or an operator")
            kind, value = next((k, v) for k, v in match.groupdict().items() if v is not None)
            if kind == "name" and value.lower() in _WORDS:
                kind, value = value.lower(), value.lower()
            yield kind, value, match.end() - len(value)
            place = match.end()

    def step(self) -> str:
        """Move to the next token; gives the value of the one left behind."""
        left = self.value
        self.kind, self.value, self.at = next(self._tokens, ("", "", len(self.text)))
        return left

    def error(self, wanted: str) -> InputError:
        found = self.text[self.at : self.at + 20] or "the end"
        return InputError(
            f"filter {self.text!r}: expected {wanted} at character {self.at + 1}, got {found!r}. "
            "Example: modality == 'image' and size > 1000 and caption like '%dog%'"
        )

    def take(self, *values: str) -> bool:
        """Step over one of some signs or words, if it is there."""
        if self.kind not in ("text", "quoted") and self.value in values and self.value:
            self.step()
            return True
        return False

    def need(self, value: str) -> None:
        if not self.take(value):
            raise self.error(repr(value))

    def either(self, depth: int) -> _Node:
        parts = [self.both(depth)]
        while self.take("or"):
            parts.append(self.both(depth))
        return parts[0] if len(parts) == 1 else _Node("or", tuple(parts))

    def both(self, depth: int) -> _Node:
        parts = [self.unary(depth)]
        while self.take("and"):
            parts.append(self.unary(depth))
        return parts[0] if len(parts) == 1 else _Node("and", tuple(parts))

    def unary(self, depth: int) -> _Node:
        if depth > _DEEPEST:
            raise InputError(f"filter: nested more than {_DEEPEST} deep.")
        if self.take("not"):
            return _Node("not", (self.unary(depth + 1),))
        if self.take("("):
            inner = self.either(depth + 1)
            self.need(")")
            return inner
        return self.test()

    def test(self) -> _Node:
        if self.kind not in ("name", "quoted"):
            raise self.error("a column")
        column = self.step().strip("`")
        self.columns.append(column)
        if self.take("is"):
            negated = self.take("not")
            self.need("null")
            node = _Node("null", column=column)
            return _Node("not", (node,)) if negated else node
        if self.value in _COMPARE and self.kind == "sign":
            function = _COMPARE[self.step()]
            return _Node(function, column=column, values=(self.literal(),))
        negated = self.take("not")
        node = self.membership(column)
        return _Node("not", (node,)) if negated else node

    def membership(self, column: str) -> _Node:
        if self.take("like"):
            if self.kind != "text":
                raise self.error("a text between quotes")
            return _Node("like", column=column, values=(self.literal(),))
        if not self.take("in"):
            raise self.error("==, !=, <, <=, >, >=, in, like or is null")
        self.need("(")
        values = [self.literal()]
        while self.take(","):
            values.append(self.literal())
        self.need(")")
        return _Node("in", column=column, values=tuple(values))

    def literal(self) -> Literal:
        kind = self.kind
        if kind not in ("number", "text", "true", "false"):
            raise self.error("a number, a text between quotes, true or false")
        written = self.step()
        if kind == "text":
            return to_text(written[1:-1].replace(written[0] * 2, written[0]))
        if kind == "number":
            return int(written) if re.fullmatch(r"[+-]?\d+", written) else float(written)
        return kind == "true"


def _evaluate(node: _Node, columns: dict[str, Any], text: str) -> Any:
    """Give the node's (n,) Arrow booleans, null where not known."""
    import pyarrow.compute as pc

    if node.kind in ("and", "or"):
        join = pc.and_kleene if node.kind == "and" else pc.or_kleene
        found = _evaluate(node.parts[0], columns, text)
        for part in node.parts[1:]:
            found = join(found, _evaluate(part, columns, text))
        return found
    if node.kind == "not":
        return pc.invert(_evaluate(node.parts[0], columns, text))
    values = columns[node.column]
    if node.kind == "null":
        return pc.is_null(values)
    return _test(node, values, text)


def _test(node: _Node, values: Any, text: str) -> Any:
    """Compare a column with literals."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_null(kind):  # no row has a value: nothing is known
        return pc.cast(values, pa.bool_())
    textual = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if textual and node.kind != "like" and node.values and all(_is_plain_number(value) for value in node.values):
        whole, others = _parsed(values, node, text)
        if whole is None or others is None:
            return _test(node, others if whole is None else whole, text)
        return pc.if_else(pc.is_valid(whole), _test(node, whole, text), _test(node, others, text))
    for value in node.values:
        fits = (
            (textual and isinstance(value, str))
            or (pa.types.is_boolean(kind) and isinstance(value, bool))
            or (_is_number(kind) and not isinstance(value, str | bool))
        )
        if not fits:
            raise InputError(
                f"filter {text!r}: the column {node.column!r} holds {kind}, it is compared with {value!r}."
            )
    try:
        if node.kind == "in":
            return _is_among(values, node.values)
        if node.kind == "like":
            return _is_like(values, str(node.values[0]))
        return getattr(pc, node.kind)(*_alike(values, node.values[0]))
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise InputError(f"filter {text!r}: the column {node.column!r} cannot be compared: {error}") from error


def _is_like(values: Any, pattern: str) -> Any:
    """Say which texts are as a pattern: % stands for any characters, _ for one, all else for itself.

    Arrow's own `match_like` takes a backslash, which names of files may hold, for an escape.
    """
    import pyarrow.compute as pc

    literal = pattern.strip("%")
    if pattern and "%" not in literal and "_" not in literal:
        first, last = pattern.startswith("%"), pattern.endswith("%")
        if first and last:
            return pc.match_substring(values, literal)
        if first or last:
            return pc.ends_with(values, literal) if first else pc.starts_with(values, literal)
    wild = {"%": ".*", "_": "."}
    regex = "".join(wild.get(each) or re.escape(each) for each in re.sub("%+", "%", pattern))
    return pc.match_substring_regex(values, rf"(?s)\A{regex}\z")


def _is_among(values: Any, wanted: tuple[Literal, ...]) -> Any:
    """Say which values equal one of some literals, of many in one pass; null where there is no value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    literals: list[Any] = list(wanted)
    if _is_whole(values.type):  # a number that is not whole, or too large for the column, equals none
        literals = [number for number in map(_whole, literals) if number is not None and _holds(values.type, number)]
    elif pa.types.is_floating(values.type):
        literals = [float(value) + 0.0 for value in literals]
    members = pa.array(literals, values.type)
    if 0 < len(members) <= (_FEW if _is_number(values.type) else _FEW_TEXTS):
        return reduce(pc.or_, (pc.equal(values, member) for member in members))
    if pa.types.is_floating(values.type):
        values = pc.add(values, pa.scalar(0.0))  # -0.0 equals 0.0, and is not found among what holds it
    found = pc.is_in(values, value_set=members)
    return pc.if_else(pc.is_valid(values), found, pa.scalar(None, pa.bool_())) if values.null_count else found


def _alike(values: Any, value: Literal) -> tuple[Any, Any]:
    """Make a column and a number meet: whole numbers exactly, where both are; else as the column's nearest number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(value, bool | str):
        return values, value
    if _is_whole(values.type):
        number = _whole(value)
        if number is not None and _holds(values.type, number):
            return values, pa.array([number], values.type)[0]
        if number is not None:  # it lies beyond all that the column can hold, on one side
            nothing = pa.scalar(None, pa.int8())
            return pc.if_else(pc.is_valid(values), pa.scalar(0, pa.int8()), nothing), 1 if number > 0 else -1
        return pc.cast(values, pa.float64(), safe=False), float(value)
    return values, pa.scalar(float(value), values.type)


def _whole(value: Any) -> int | None:
    """Give a number that is whole as one, else None."""
    return int(value) if isinstance(value, int) or float(value).is_integer() else None


def _is_whole(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def _holds(kind: Any, number: int) -> bool:
    """Say whether a type of whole numbers holds a number."""
    import pyarrow as pa

    if pa.types.is_decimal(kind):
        return bool(abs(number) < 10 ** (kind.precision - kind.scale))
    bits: int = kind.bit_width
    low, end = (0, 1 << bits) if pa.types.is_unsigned_integer(kind) else (-(1 << bits - 1), 1 << bits - 1)
    return low <= number < end


def _is_plain_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parsed(values: Any, node: _Node, text: str) -> tuple[Any, Any]:
    """Read a column of text as numbers, as cells of a CSV file are; an empty one is none.

    Returns:
        The whole numbers, exactly, and the others as float64, each null where the other is not; None for one that is
        not needed: where float64 holds every number exactly there are others alone.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(values)
    filled = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, values.type), trimmed)
    try:
        numbers = pc.cast(filled, pa.float64())
    except pa.ArrowInvalid as error:
        other = next(each for each in pc.unique(filled).to_pylist() if not _is_read(each))
        raise InputError(
            f"filter {text!r}: the column {node.column!r} holds text such as {other!r}, it is compared with the number "
            f"{node.values[0]!r}. Compare it with text between quotes."
        ) from error
    if not pc.any(pc.greater_equal(pc.abs(numbers), _EXACT)).as_py():
        return None, numbers
    if pc.all(pc.equal(numbers, pc.floor(numbers))).as_py():  # else the cast fails at each cell that is not whole
        try:
            return pc.cast(filled, pa.int64()), None
        except pa.ArrowInvalid:
            pass
    return _halves(filled, numbers)


def _halves(cells: Any, numbers: Any) -> tuple[Any, Any]:
    """Split text that is numbers into whole ones of at most 38 digits and the others, their float64; as `_parsed`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_whole = pc.match_substring_regex(cells, f"^[+-]?[0-9]{{1,{_DIGITS}}}$")
    if not pc.any(is_whole).as_py():
        return None, numbers
    whole = pc.replace_substring_regex(pc.if_else(is_whole, cells, pa.scalar(None, cells.type)), r"^\+", "")
    return _as_whole(whole), pc.if_else(is_whole, pa.scalar(None, pa.float64()), numbers)


def _as_whole(cells: Any) -> Any:
    """Read text of at most 38 digits as int64, or as decimals where one does not fit."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return pc.cast(cells, pa.int64())
    except pa.ArrowInvalid:
        return pc.cast(cells, pa.decimal128(_DIGITS, 0))


def _is_read(cell: str | None) -> bool:
    """Say whether Arrow reads a cell as a number: not all that Python does, such as 1_000."""
    import pyarrow as pa

    try:
        pa.scalar(cell, pa.string()).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(_is_whole(kind) or pa.types.is_floating(kind))
