"""What happens in an output folder right now: who works there, what each holds, how far the plans are."""

from __future__ import annotations

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
    numbers = crew.numbers()
    held = {name for name in numbers if not crew.is_free(name, numbers[name])}
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
    processes = [_process(crew, member, held) for member in crew.members()]
    if not generations and not processes:
        raise MissingInputError(f"{folder}: no embeddings there, and nobody makes any.")
    return {"output": str(folder), "generations": generations, "processes": processes}


def _process(crew: Crew, member: Member, held: set[str]) -> dict[str, Any]:
    try:
        silent_s = max(0.0, time.time() - crew.path_of(member).stat().st_mtime)
    except OSError:
        silent_s = float("inf")
    holders = {name: crew.holder(name) for name in sorted(held)}
    return {
        "host": member.host,
        "pid": member.pid,
        "place": member.place,
        "alive": crew.is_alive(member) and silent_s <= member.silence_s,
        "silent_s": round(silent_s, 1),
        "holds": [name for name, facts in holders.items() if facts is not None and facts["owner"] == member.name],
    }


def status_text(status: dict[str, Any]) -> str:
    """Write a status as a few lines for a person."""
    lines = [status["output"]]
    for each in status["generations"]:
        state = "committed" if each["committed"] else f"{each['held']} in hand" if each["held"] else "not finished"
        lines.append(f"  {each['name']}: {each['done']} of {each['shards']} shards, {each['items']} items; {state}")
    for each in status["processes"]:
        state = f"{', '.join(each['holds']) or 'waits'}" if each["alive"] else "dead: what it held is taken over"
        lines.append(f"  {each['host']} process {each['pid']} ({each['place']}): {state}; {each['silent_s']:.0f} s ago")
    if not status["processes"]:
        lines.append("  nobody works there")
    return "\n".join(lines)
