"""How hard to look for a query: with the settings that the planner chose for its modality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from bindsearch.index.tuned import settings_for
from bindsearch.query import Embedding

if TYPE_CHECKING:
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.search.ranking import Effort
    from bindsearch.types import FloatArray

T = TypeVar("T")


def effort_for(snapshot: Snapshot, query: Embedding | FloatArray, effort: Effort) -> Effort:
    """Fill in the settings of a query that names none.

    Args:
        snapshot: of the index. What was tuned for a segment that is gone, with all its rows, is left out.
        query: its modalities decide; bare vectors and modalities that nobody tuned for get the most demanding settings.
        effort: as asked for; its own settings stay.
    """
    tuned = snapshot.manifest.tuned
    if effort.exact or effort.settings is not None or not tuned:
        return effort
    modalities = [term.modality for term in query.terms] if isinstance(query, Embedding) else []
    read = snapshot.setting_names
    chosen = settings_for(tuned, modalities)
    return replace(effort, settings={name: value for name, value in chosen.items() if name in read})


def in_groups(efforts: Sequence[Effort], ask: Callable[[list[int], Effort], list[T]]) -> list[T]:
    """Ask for queries of one effort together; gives the answers in the order of the queries.

    Args:
        efforts: one a query.
        ask: gives the answers of some queries, named by their place, with their effort.
    """
    groups: list[tuple[Effort, list[int]]] = []
    for row, effort in enumerate(efforts):
        rows = next((rows for known, rows in groups if known == effort), None)
        if rows is None:
            groups.append((effort, rows := []))
        rows.append(row)
    found: dict[int, T] = {}
    for effort, rows in groups:
        found.update(zip(rows, ask(rows, effort), strict=True))
    return [found[row] for row in range(len(efforts))]
