"""What happens in an output folder right now: who works there, what each holds, how far the plans are."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from bindsearch.embed.lease import SILENCE_S, Crew, Member
from bindsearch.errors import MissingInputError
from bindsearch.store import Generation, generation_folders
from bindsearch.store.identity import Manifest


def folder_status(out: str | os.PathLike[str]) -> dict[str, Any]:
    """Look at an output folder without touching it.

    Args:
        out: the folder.

    Returns:
        JSON types: "generations" (name, items, shards, done, held by somebody alive, committed), "processes" (host,
        pid, place, alive, seconds since the last sign of life, leases held).

    Raises:
        MissingInputError: nothing of a run is there.
    """
    folder = Path(out)
    crew = Crew(folder, Member.here(None, "", SILENCE_S))
    manifest = Manifest.load(folder)
    silent_s = _silences(crew)
    alive = {member.name for member in silent_s if _is_alive(crew, member, silent_s[member])}
    held = _held(crew, alive)
    generations = []
    for place in generation_folders(folder):
        generation = Generation.load(place)
        pending = {generation.shard_names[number] for number in generation.pending()}
        generations.append(
            {
                "name": generation.name,
                "items": sum(shard["items"] for shard in generation.record["shards"]),
                "shards": len(generation.shard_names),
                "done": len(generation.shard_names) - len(pending),
                "held": sum(f"{generation.name}-{name}" in held for name in pending),
                "committed": manifest is not None and generation.name in manifest.generations,
            }
        )
    processes = [
        {
            "host": member.host,
            "pid": member.pid,
            "place": member.place,
            "alive": member.name in alive,
            "silent_s": round(seconds, 1),
            "holds": [name for name, owner in sorted(held.items()) if owner == member.name],
        }
        for member, seconds in silent_s.items()
    ]
    if not generations and not processes:
        raise MissingInputError(f"{folder}: no embeddings there, and nobody makes any.")
    return {"output": str(folder), "generations": generations, "processes": processes}


def _silences(crew: Crew) -> dict[Member, float]:
    """Give each member with the seconds since its last sign of life; one that leaves meanwhile is none."""
    found: dict[Member, float] = {}
    for member in crew.members():
        with contextlib.suppress(OSError):
            found[member] = max(0.0, time.time() - crew.path_of(member).stat().st_mtime)
    return found


def _is_alive(crew: Crew, member: Member, silent_s: float) -> bool:
    """Judge by the age of its last sign of life, where processes at work watch for the next: this is one look."""
    return crew.is_alive(member) and silent_s <= member.silence_s


def _held(crew: Crew, alive: set[str]) -> dict[str, str]:
    """Give the leases that bind, each with the name of its holder: what the dead held, anybody may take."""
    holders = {name: crew.holder(name) for name in crew.numbers()}
    return {
        name: facts["owner"]
        for name, facts in holders.items()
        if facts is not None and not facts["done"] and facts["owner"] in alive
    }


def status_text(status: dict[str, Any]) -> str:
    """Write a status as a few lines for a person."""
    lines = [status["output"]]
    for each in status["generations"]:
        state = "committed" if each["committed"] else f"{each['held']} in hand" if each["held"] else "not finished"
        lines.append(f"  {each['name']}: {each['done']} of {each['shards']} shards, {each['items']} items; {state}")
    for each in status["processes"]:
        state = f"{', '.join(each['holds']) or 'waits'}" if each["alive"] else "dead: what it held is free"
        lines.append(f"  {each['host']} process {each['pid']} ({each['place']}): {state}; {each['silent_s']:.0f} s ago")
    if not status["processes"]:
        lines.append("  nobody works there")
    return "\n".join(lines)
