"""What every test runs with: nothing is taken from, or left in, the user's cache of texts."""

from __future__ import annotations

import os

os.environ["BINDSEARCH_TEXT_CACHE_MB"] = "0"
