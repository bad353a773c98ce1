"""What the parser of ``echostream bench`` has to know of what it runs."""

from __future__ import annotations

import time

RECOMPUTE, COMPILED = ":recompute", ":compiled"  # behind a system's name
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# Settings that forced rates leave nothing to decide for.
FORCED_SECTIONS = ("policy", "endpoint")
