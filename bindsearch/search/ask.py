"""From terms as people write them to answers: encode what must be encoded, load a space only if something must be.

queries.jsonl holds one query a line, an object with any of these fields:

    {"text": "a dog", "image": "bird.jpg@0.5", "minus_text": ["night", "rain"]}       terms as on the command line
    {"id": "q7", "terms": [{"audio": "waves.wav", "weight": -0.5}, {"text": "x@1"}]}  terms taken word by word
    {"vector": [0.1, ...], "item": "photos/bird.jpg", "k": 3, "where": "size > 9", "modality": "image"}

Kinds of terms are the modalities, "item" (a key of the index) and "vector" (a .npy file or the numbers). Paths are
relative to the file that names them, for stdin to the working folder. "id" defaults to the line's number.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, MissingInputError, UnknownNameError
from bindsearch.index.identity import Identity
from bindsearch.makers import maker_of
from bindsearch.query import Embedding, TermSpec, parse_terms, term_kinds
from bindsearch.registry import MODALITIES
from bindsearch.row_table import read_npy
from bindsearch.search.absent import absent_values
from bindsearch.search.arrange import PLAIN, Shape
from bindsearch.search.hits import Hits
from bindsearch.search.index import DIVERSE_RANGE_LIMIT, RANGE_LIMIT
from bindsearch.search.ranking import AS_TUNED, Effort

if TYPE_CHECKING:
    from bindsearch.search.index import SearchIndex
    from bindsearch.types import FloatArray

    Encoded = dict[tuple[str, str], FloatArray]

_ENCODE_AT_ONCE = 64
_OPTIONS = ("id", "terms", "k", "where", "sql", "modality")
_COUNT = 10


@dataclass(frozen=True)
class Request:
    """One query before it is encoded.

    Attributes:
        terms: at least one.
        id: its name among many.
        k, where, modality, sql: None: as for all queries.
    """

    terms: tuple[TermSpec, ...]
    id: str | None = None
    k: int | None = None
    where: str | None = None
    modality: str | None = None
    sql: str | None = None


@dataclass(frozen=True)
class Answers:
    """The answers to one query or to many.

    Attributes:
        hits: one entry a query, in the order asked.
        many: whether a list of queries was asked; says how JSON is written.
        explain: whether to show what each term adds to the scores, and what ran.
    """

    hits: tuple[Hits, ...]
    many: bool = False
    explain: bool = False

    def talk(self) -> list[str]:
        """Give what is said beside the answers, a line each, each once: notes, and what ran where that was asked."""
        lines = [line for hits in self.hits for line in hits.notes]
        if self.explain:
            lines += [line for hits in self.hits for plan in hits.plans for line in plan.lines()]
        return list(dict.fromkeys(lines))


def ask(
    index: SearchIndex,
    wanted: Sequence[tuple[str, str]],
    *,
    load: Callable[[], Any],
    many: str | Path | None = None,
    k: int | None = None,
    where: str | None = None,
    modality: str | None = None,
    exclude_self: bool = False,
    explain: bool = False,
    sql: str | None = None,
    shape: Shape = PLAIN,
    effort: Effort = AS_TUNED,
    bridge: Callable[[Embedding], Embedding] | None = None,
) -> Answers:
    """Answer terms, or a file of queries.

    Args:
        index: to be asked.
        wanted: pairs of kind and text, such as ("image", "bird.jpg@0.3"), ("minus_text", "night").
        load: gives the space; called only if something must be encoded.
        many: queries.jsonl, or "-" for stdin; then `wanted` is empty.
        k: as in `SearchIndex.search`; a query of a file may name its own. None: 10, or, with a
            least score and no pages, every item that reaches it, up to `RANGE_LIMIT`, or where answers are to differ
            `DIVERSE_RANGE_LIMIT`; a note says where there are more.
        where: likewise.
        modality: likewise.
        exclude_self: as in `SearchIndex.search`.
        explain: kept with the answers, for whoever shows them.
        sql: as in `SearchIndex.search`; a query of a file may name its own.
        shape: as in `SearchIndex.search`.
        effort: likewise.
        bridge: carries each query over the modality gap before it is searched for; see `cache.bridge`.

    Raises:
        InputError: nothing was asked, or a term or a line cannot be read.
        MissingInputError: a file or an item is not there.
        MismatchError: the space is not the index's.
    """
    if many is not None and wanted:
        raise InputError("--from holds the queries: give no other terms beside it.")
    if many is not None:
        requests = read_requests(many, index.has)
    else:
        requests = [Request(parse_terms(wanted, index.has))]
        if not wanted:
            kinds = ", ".join(f"--{kind}" for kind in term_kinds())
            raise InputError(f"nothing to look for. Give at least one term: {kinds}; or --from queries.jsonl.")
    queries = build_queries(requests, index, load)
    if bridge is not None:
        queries = [bridge(query) for query in queries]
    asked = [
        (request.k or k, request.where or where, request.modality or modality, request.sql or sql)
        for request in requests
    ]
    hits: dict[int, Hits] = {}
    for options in dict.fromkeys(asked):
        places = [place for place, own in enumerate(asked) if own == options]
        here = [queries[place] for place in places]
        limit = RANGE_LIMIT if shape.diversity is None else DIVERSE_RANGE_LIMIT
        if options[0] is None and shape.min_score is not None and not shape.is_paged:
            found = [
                index.search_range(
                    *(each, shape.min_score, limit, *options[1:]), exclude_self=exclude_self, shape=shape
                )
                for each in here
            ]
        else:
            count, own_where, own_modality, own_sql = options
            found = index.search_many(
                *(here, count or _COUNT, own_where, own_modality, (), exclude_self),
                sql=own_sql,
                shape=shape,
                effort=effort,
            )
        if options[1] is not None and not any(len(each) for each in found):
            absent = absent_values(index.folder.snapshot, options[1])
            for each in found:
                each.notes += tuple(absent)
        hits.update(zip(places, found, strict=True))
    for place, request in enumerate(requests):
        hits[place].query_id = request.id
    return Answers(tuple(hits[place] for place in range(len(requests))), many is not None, explain)


def build_queries(requests: Sequence[Request], index: SearchIndex | None, load: Callable[[], Any]) -> list[Embedding]:
    """Encode the terms of many requests, each different thing once, and add them up.

    Args:
        requests: what is asked.
        index: gives the items of "item" terms and refuses a space that is not its own, before a tower is loaded.
        load: gives the space; called only if something must be encoded.

    Returns:
        One query a request, in their order.

    Raises:
        MissingInputError: a file or an item is not there.
        MismatchError: the space is not the index's.
        DecodeError: a file cannot be read as its modality.
    """
    specs = [spec for request in requests for spec in request.terms]
    wanted: dict[str, dict[str, None]] = {}
    for spec in specs:
        if spec.kind in MODALITIES and isinstance(spec.value, str):
            check_there(spec)
            wanted.setdefault(spec.kind, {})[spec.value] = None
    media = {modality: list(values) for modality, values in wanted.items()}
    if index is not None and media:
        index.check_space_known()
    space = load() if media else None
    if index is not None and space is not None:
        index.check(_identity_of(space, media))
    encoded: dict[tuple[str, str], Embedding] = {}
    for modality, values in media.items():
        for start in range(0, len(values), _ENCODE_AT_ONCE):
            part = values[start : start + _ENCODE_AT_ONCE]
            for value, row in zip(part, space.embed(modality, part), strict=True):  # type: ignore[union-attr]
                encoded[modality, value] = Embedding.of(space, modality, row, value)
    return [_add_up(request, encoded, index) for request in requests]


def _add_up(request: Request, encoded: dict[tuple[str, str], Embedding], index: SearchIndex | None) -> Embedding:
    total: Embedding | None = None
    for spec in request.terms:
        if (spec.kind, spec.value) in encoded:
            term = encoded[spec.kind, str(spec.value)]
        elif spec.kind == "item":
            if index is None:
                raise InputError(f"--item {spec.value}: there is no index to take the item from.")
            term = index.item(str(spec.value))
        else:
            term = _read_vector(spec)
        term = term * spec.weight
        total = term if total is None else total + term
    if total is None:
        raise InputError(f"query {request.id}: it has no term. Kinds of terms: {', '.join(term_kinds())}.")
    return total


def _identity_of(space: Any, modalities: Sequence[str] | dict[str, list[str]]) -> Identity:
    """Give what a space is going to make; loads no tower."""
    return Identity(
        space_id=str(space.space_id),
        tower_ids={name: str(space.tower_id(name)) for name in modalities},
        preset_ids={name: str(space.preset_id(name)) for name in modalities},
        tokenizer_id=space.tokenizer_id if "text" in modalities else None,
    )


def check_there(spec: TermSpec) -> None:
    """Refuse a path that does not exist, before a tower is loaded for it.

    Raises:
        MissingInputError: naming the path.
        InputError: a name of media that cannot be made.
    """
    value = str(spec.value)
    if spec.kind == "text" or "://" in value:
        return
    if (maker := maker_of(value)) is not None:
        maker.canonical(value)
        return
    try:
        there = Path(value).exists()
    except (OSError, ValueError):
        there = False
    if not there:
        raise MissingInputError(f"--{spec.kind} {value}: there is no such file.")


def _read_vector(spec: TermSpec) -> Embedding:
    """Read a vector from a .npy file, or take the numbers themselves.

    Raises:
        MissingInputError: no such file.
        InputError: not one vector of floating-point numbers.
    """
    if not isinstance(spec.value, str):
        return Embedding.of_vector(np.array(spec.value, dtype=np.float32), "vector")
    array = read_npy(spec.value, f"--vector {spec.value}")
    if array.dtype.kind != "f":
        raise InputError(f"--vector {spec.value}: expected floating-point numbers, got {array.dtype}.")
    return Embedding.of_vector(array.astype(np.float32), spec.value)


# ---- queries.jsonl ---------------------------------------------------------------------------------------------------


def read_requests(path: str | Path, has_key: Callable[[str], bool] | None = None) -> list[Request]:
    """Read a file of queries; see the module's docstring for its fields.

    Args:
        path: queries.jsonl, or "-" for stdin.
        has_key: says whether the index has an item of that exact key.

    Raises:
        MissingInputError: no such file, or no query in it.
        InputError: naming the line and what is wrong with it.
    """
    try:
        if str(path) == "-":
            text, folder, name = sys.stdin.buffer.read().decode("utf-8-sig"), Path(), "stdin"
        else:
            text, folder, name = Path(path).read_text(encoding="utf-8-sig"), Path(path).parent, str(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MissingInputError(f"--from {path}: there is no such file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--from {path}: not UTF-8 text ({error}).") from error
    lines = text.split("\n")
    requests = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{name}, line {number}"
            try:
                requests.append(_parse_request(json.loads(line), where, str(number), folder, has_key))
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"{where}: not valid JSON ({error}).") from error
    if not requests:
        raise MissingInputError(f'--from {name}: no query in it. Write one a line, such as {{"text": "a dog"}}')
    return requests


def _parse_request(data: Any, where: str, number: str, folder: Path, has_key: Callable[[str], bool] | None) -> Request:
    """Read one line."""
    if not isinstance(data, dict):
        raise InputError(f'{where}: expected an object such as {{"text": "a dog"}}, got {type(data).__name__}.')
    specs: list[TermSpec] = []
    for name, value in data.items():
        if name in _OPTIONS:
            continue
        if name.removeprefix("minus_") not in term_kinds():
            raise UnknownNameError(f"field in {where}:", name, (*term_kinds(), *_OPTIONS))
        specs += _short_terms(name, value, where, has_key)
    terms = data.get("terms", [])
    if not isinstance(terms, list):
        raise InputError(f'{where}: terms: expected a list such as [{{"text": "a dog"}}], got {terms!r:.60}.')
    specs += [_whole_term(term, where) for term in terms]
    k = data.get("k")
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise InputError(f"{where}: k: expected a whole number from 1, got {k!r}.")
    for option in ("where", "modality", "sql"):
        if not isinstance(data.get(option, ""), str):
            raise InputError(f"{where}: {option}: expected a text, got {data[option]!r}.")
    if not specs:
        raise InputError(f"{where}: it has no term. Kinds of terms: {', '.join(term_kinds())}.")
    placed = tuple(_relative_to(folder, spec) for spec in specs)
    name = number if data.get("id") is None else str(data["id"])
    return Request(placed, name, k, data.get("where"), data.get("modality"), data.get("sql"))


def _short_terms(name: str, value: Any, where: str, has_key: Callable[[str], bool] | None) -> list[TermSpec]:
    """Read a field such as "minus_text": "night@0.5", or a list of them."""
    if name.removeprefix("minus_") == "vector" and _is_numbers(value):
        sign = -1.0 if name.startswith("minus_") else 1.0
        return [TermSpec("vector", tuple(map(float, value)), sign)]
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: {name}: expected a text or a list of texts, got {value!r:.60}.")
    return list(parse_terms([(name, text) for text in texts], has_key))


def _whole_term(term: Any, where: str) -> TermSpec:
    """Read an entry of "terms": one kind with its value, taken word by word, and perhaps a weight."""
    kinds = [name for name in term if name != "weight"] if isinstance(term, dict) else []
    if len(kinds) != 1 or kinds[0] not in term_kinds():
        known = ", ".join(term_kinds())
        raise InputError(f"{where}: terms: expected one of {known} and perhaps a weight, got {term!r:.60}.")
    value, weight = term[kinds[0]], term.get("weight", 1.0)
    if not _is_number(weight) or not math.isfinite(weight):
        raise InputError(f"{where}: weight: expected a finite number, got {weight!r}.")
    if kinds[0] == "vector" and _is_numbers(value):
        return TermSpec("vector", tuple(map(float, value)), float(weight))
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {kinds[0]}: expected a text that is not empty, got {value!r:.60}.")
    return TermSpec(kinds[0], value, float(weight))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_number(number) for number in value)


def _is_number(value: Any) -> bool:
    """Say whether a value of JSON is a number that a float can hold."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float)


def _relative_to(folder: Path, spec: TermSpec) -> TermSpec:
    """Resolve a path as relative to the file that names it; a URI and a name of media that are made stay."""
    if spec.kind in ("text", "item") or not isinstance(spec.value, str) or "://" in spec.value:
        return spec
    if maker_of(spec.value) is not None:
        return spec
    return replace(spec, value=str(folder / spec.value))
