"""A training run's state on disk: tensors as safetensors, numbers as JSON, replaced in one rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bindsearch.config import canonical_json, content_hash
from bindsearch.errors import BindSearchError, MismatchError
from bindsearch.store.files import commit_written

STATE = "state"
_SHOWN, _CHARACTERS = 4, 100


def save_checkpoint(
    path: Path, towers: dict[str, nn.Module], optimiser: torch.optim.Optimizer, notes: dict[str, Any]
) -> None:
    """Write towers, optimiser moments and notes; a kill at any moment leaves the old or the new one.

    Args:
        path: of the .safetensors file.
        towers: by name.
        optimiser: AdamW over the towers' parameters.
        notes: JSON-able: those of `begin_notes`, with the step, curves and seconds so far.

    Raises:
        BindSearchError: the disk is full; the checkpoint before it stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, tower in towers.items():
        tensors |= {f"tower/{name}/{key}": value.detach().contiguous() for key, value in tower.state_dict().items()}
    for number, state in optimiser.state_dict()[STATE].items():
        tensors |= {f"optimiser/{number}/{key}": value.contiguous() for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, str(temporary), metadata={"notes": json.dumps(notes)})
        except SafetensorError as error:
            raise _system_error(error, path) from error

    # one writer has the folder: what a killed one left under this name is written over
    commit_written(path, path.with_suffix(".tmp"), write)


def _system_error(error: Exception, path: Path) -> OSError:
    """Give the system's error that safetensors tells of in words alone."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number) if found else str(error), str(path))


def has_finite_weights(towers: dict[str, nn.Module]) -> bool:
    """Say whether all parameters of some towers are finite; looks at each once, a small part of what writing takes."""
    return all(bool(torch.isfinite(value).all()) for tower in towers.values() for value in tower.parameters())


def hash_weights(tower: nn.Module) -> str:
    """SHA-256, 12 digits, of a tower's tensors in the order of their names: what was bound to it says so."""
    digest = hashlib.sha256()
    for name, value in sorted(tower.state_dict().items()):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # NumPy has no bfloat16
        digest.update(name.encode())
        digest.update(raw.numpy())
    return digest.hexdigest()[:12]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a checkpoint: the file of tensors, and its notes.

    Raises:
        BindSearchError: truncated, or no checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    with ExitStack() as stack:
        try:
            file = stack.enter_context(safe_open(str(path), framework="pt"))
            notes: dict[str, Any] = json.loads((file.metadata() or {})["notes"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise BindSearchError(
                f"{path}: damaged, or no checkpoint ({type(error).__name__}: {error}). Remove it, and the same command "
                "trains this stage from its start."
            ) from error
        yield file, notes


def _read_notes(path: Path) -> dict[str, Any]:
    with _opened(path) as (_, notes):
        return notes


def steps_done(path: Path) -> int:
    """Read how many steps a checkpoint has behind it; 0 where there is none."""
    return int(_read_notes(path)["step"]) if path.exists() else 0


def begin_notes(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Give the notes of a stage that has taken no step: what it is made of, and its hash."""
    return {"config": content_hash(facts), "facts": dict(facts), "step": 0, "curve": [], "seconds": 0.0}


def finished_notes(path: Path, facts: Mapping[str, Any], steps: int) -> dict[str, Any] | None:
    """Read the notes of a checkpoint that has all its steps; None where it is missing, unfinished or another."""
    if not path.exists():
        return None
    notes = _read_notes(path)
    return notes if notes["config"] == content_hash(facts) and notes["step"] >= steps else None


def load_checkpoint(
    path: Path, towers: dict[str, nn.Module], optimiser: torch.optim.Optimizer | None, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Read a checkpoint into towers and optimiser; overwrites both.

    Args:
        path: from `save_checkpoint`.
        towers: by name, of the same architecture.
        optimiser: over the same parameters; None loads the towers alone.
        facts: what the stage is made of; a checkpoint of another one is refused.

    Returns:
        The notes.

    Raises:
        MismatchError: the checkpoint is of a stage made of other things; they are named with both values.
        BindSearchError: it is damaged, or its weights are not finite.
    """
    with _opened(path) as (file, notes):
        if notes["config"] != content_hash(facts):
            raise _other_stage(path, notes, facts)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    for name, tower in towers.items():
        prefix = f"tower/{name}/"
        tower.load_state_dict({key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)})
    if not has_finite_weights(towers):
        raise BindSearchError(
            f"{path}: holds weights that are not finite, of a training that ran away. Remove it, and train with a "
            "smaller learning rate."
        )
    if optimiser is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser/"):
                _, number, part = key.split("/")
                state.setdefault(int(number), {})[part] = value
        optimiser.load_state_dict({**optimiser.state_dict(), STATE: state})
    return notes


def _other_stage(path: Path, notes: dict[str, Any], facts: Mapping[str, Any]) -> MismatchError:
    """Say what a checkpoint was made of that this stage is not."""
    if "facts" in notes:
        found = differences(json.loads(canonical_json(facts)), notes["facts"])
        said = [f"{name} is {_short(theirs)} there, {_short(ours)} here" for name, ours, theirs in found[:_SHOWN]]
        more = [f"{len(found) - _SHOWN} more differ"] if len(found) > _SHOWN else []
        why = "; ".join([*said, *more])
    else:
        why = (
            "it was begun by an earlier bindsearch, which did not note what a stage is made of. Whether its numbers, "
            "seed, data, space, or the settings of what is trained are those of this run cannot be told"
        )
    return MismatchError(
        f"{path}: written by configuration {notes['config']}, this one is {content_hash(facts)}: {why}. Use another "
        "folder, or remove the file to train this stage again."
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 3]}..."


def differences(mine: dict[str, Any], there: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Compare two nested records: the dotted name, ours and theirs of every leaf that differs, None where it lacks."""
    found: list[tuple[str, Any, Any]] = []
    for name in sorted({*mine, *there}):
        ours, theirs = mine.get(name), there.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found += differences(ours, theirs, f"{prefix}{name}.")
        elif ours != theirs:
            found.append((prefix + name, ours, theirs))
    return found
