"""What this machine does: its limits, how fast a space's towers run, what starting and searching take."""

from bindsearch.bench.run import PARTS, BenchOptions, Report, run_bench
from bindsearch.bench.timing import Figure

__all__ = ["PARTS", "BenchOptions", "Figure", "Report", "run_bench"]
