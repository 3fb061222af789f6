"""One plain sentence on what a run of the embedder waited for, and what would help."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsearch.embed.report import EmbedReport

SHORTEST_S = 2.0
"""Working time below which start-up decides, and nothing can be said."""
_MUCH = 0.25
_BUSY = 0.75


def advice(report: EmbedReport) -> str:
    """Say what a run waited for most and what would help; "" where the run was too short to tell."""
    if report.working_seconds < SHORTEST_S:
        return ""
    shares, idle = report.shares(), report.idle()
    if shares["write"] > _MUCH:
        return (
            f"Writing was the limit ({shares['write']:.0%} of the time was spent waiting for the disk): a faster disk "
            "for the output, or a larger --shard-size, would help."
        )
    if shares["decode"] <= _MUCH:
        helps = " or ".join(filter(None, (", ".join(report.quicker), "a smaller space")))
        return (
            f"The model was the limit (busy {shares['model']:.0%} of the time; decoding stood still for "
            f"{idle['decode']:.0%}): {helps} would help, more --workers would not."
        )
    if report.workers == 0:
        return (
            f"Decoding in the main process took {shares['decode']:.0%} of the time, with the model standing still: "
            "--workers 1 or more lets both run at once."
        )
    waited = f"the model stood still for {idle['model']:.0%} of the time"
    if idle["decode"] > 1 - _BUSY:
        return (
            f"Neither decoding nor the model was busy throughout ({waited}, decoding for {idle['decode']:.0%}): the "
            "processor is shared with others, or the run was too short for its workers' start."
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // report.processes)  # its share of them
    if report.workers < cores:
        return f"Decoding was the limit ({waited}): --workers {cores} would help."
    slow = _slowest(report)
    has = f"all {cores} cores" if report.processes == 1 else f"its {cores} of the cores"
    return f"Decoding was the limit ({waited}) and has {has}: {slow} would help."


def _slowest(report: EmbedReport) -> str:
    """Name the remedy for what was decoded most."""
    most = report.embedded.most_common(1)
    if most and most[0][0] == "image":
        return "more cores, or for large JPEGs --preset image=quick (decoded at a reduced scale, which moves pixels),"
    return "more cores"
