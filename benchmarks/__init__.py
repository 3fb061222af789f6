"""Benchmarks: both sides in one run, one small JSON each, one row a headline figure on the scoreboard."""
