"""Verdicts as a file: Parquet, CSV or JSON lines, one row an item."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import readable_json
from bindsearch.store.files import commit_bytes, commit_file
from bindsearch.types import check_suffix, to_text
from bindsearch.zeroshot.verdict import TableItems

if TYPE_CHECKING:
    from bindsearch.zeroshot.verdict import Verdicts

SUFFIXES = (".parquet", ".csv", ".jsonl")
_KEPT = ("id", "key", "modality", "start_s", "end_s", "source", "member")


def check_table(path: str | Path) -> str:
    """Give the suffix of a table that labels can be written to.

    Raises:
        UnknownNameError: another suffix.
    """
    return check_suffix(path, "kind of table", SUFFIXES)


def write_labels(verdicts: Verdicts, path: str | Path) -> Path:
    """Write one row an item; folders on the way are made.

    Columns: id (where the item has one), key, modality, start_s, end_s, source, member, label, probability, score (the
    cosine; missing for "none of these"), and of the ranked labels the lists `labels`, `probabilities` and `scores`
    (in CSV `label_2`, `probability_2`, ...).

    Args:
        verdicts: of any number of items. Not modified.
        path: .parquet, .csv or .jsonl.

    Raises:
        UnknownNameError: another suffix.
        BindSearchError: the disk is full.
    """
    path, suffix = Path(path), check_table(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".parquet":
        _write_parquet(verdicts, path)
    elif suffix == ".csv":
        _write_csv(verdicts, path)
    else:
        lines = (readable_json(row) + "\n" for row in verdicts.to_json())
        commit_bytes(path, "".join(lines).encode("utf-8"))
    return path


def _write_parquet(verdicts: Verdicts, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"id": pa.int64(), "start_s": pa.float64(), "end_s": pa.float64()}
    items = verdicts.items
    columns: dict[str, Any] = {
        name: items.table.column(name)
        if isinstance(items, TableItems)
        else pa.array([_cell(item.get(name)) for item in items], kinds.get(name, pa.string()))
        for name in _KEPT
    }
    labels = pa.array([to_text(name) for name in verdicts.names], pa.string())
    codes = verdicts.codes
    scores = pa.array(verdicts.score.ravel(), pa.float32(), from_pandas=True)  # NaN becomes missing
    shape = verdicts.codes.shape
    ends = pa.array(np.arange(0, shape[0] * shape[1] + 1, shape[1], dtype=np.int32))
    columns["label"] = labels.take(pa.array(codes[:, 0]))
    columns["probability"] = pa.array(verdicts.probability[:, 0], pa.float32())
    columns["score"] = pa.array(verdicts.score[:, 0], pa.float32(), from_pandas=True)
    columns["labels"] = pa.ListArray.from_arrays(ends, labels.take(pa.array(codes.ravel())))
    columns["probabilities"] = pa.ListArray.from_arrays(ends, pa.array(verdicts.probability.ravel(), pa.float32()))
    columns["scores"] = pa.ListArray.from_arrays(ends, scores)
    table = pa.table(columns).replace_schema_metadata({"bindsearch": json.dumps(dict(verdicts.facts))})
    commit_file(path, lambda file: pq.write_table(table, file, compression="zstd"))


def _cell(value: Any) -> Any:
    """Give what a column can hold: a file's name may have bytes that are no UTF-8."""
    return to_text(value) if isinstance(value, str) else value


def _write_csv(verdicts: Verdicts, path: Path) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    more = [f"{name}_{place + 1}" for place in range(1, verdicts.codes.shape[1]) for name in ("label", "probability")]
    writer.writerow([*_KEPT, "label", "probability", "score", *more])
    for verdict in verdicts:
        rest = [value for label, share, _ in verdict.ranked[1:] for value in (label, f"{share:.6f}")]
        score = "" if verdict.score is None else f"{verdict.score:.6f}"
        own = ["" if verdict.item.get(name) is None else verdict.item[name] for name in _KEPT]
        writer.writerow([*own, verdict.label, f"{verdict.probability:.6f}", score, *rest])
    commit_bytes(path, file.getvalue().encode("utf-8", "backslashreplace"))
