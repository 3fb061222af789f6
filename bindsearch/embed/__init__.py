"""The batch embedder: list -> plan -> decode -> encode -> commit, resumed where it was stopped."""

from bindsearch.embed.changes import listed_ids
from bindsearch.embed.decoding import inspect_source
from bindsearch.embed.planning import EmbedOptions
from bindsearch.embed.report import EmbedReport, Progress
from bindsearch.embed.run import run_embed

__all__ = ["EmbedOptions", "EmbedReport", "Progress", "inspect_source", "listed_ids", "run_embed"]
