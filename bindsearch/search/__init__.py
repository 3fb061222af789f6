"""Search: terms to queries, queries to hits, hits joined with their items."""

from bindsearch.search.arrange import Shape
from bindsearch.search.ask import Answers, Request, ask, build_queries, read_requests
from bindsearch.search.hits import Hits, display_key
from bindsearch.search.index import SearchIndex, open_index
from bindsearch.search.ranking import Effort
from bindsearch.search.where import Filter, parse_filter

__all__ = [
    "Answers",
    "Effort",
    "Filter",
    "Hits",
    "Request",
    "SearchIndex",
    "Shape",
    "ask",
    "build_queries",
    "display_key",
    "open_index",
    "parse_filter",
    "read_requests",
]
