"""How much a bounded cache of attention keys keeps; the same in every runtime, since what a cache
still holds is what is looked at."""

from __future__ import annotations

# A bounded cache keeps this many positions more than its limit, so that a rollback of a few
# tokens finds the keys that were about to leave the window, and drops them in batches.
TRIM_SLACK = 64


def dropped(stored: int, limit: int | None) -> int:
    """How many of ``stored`` positions are dropped where no future query of window ``limit``
    (None: all) can see them."""
    if limit is None or stored <= limit + 2 * TRIM_SLACK:
        return 0
    return stored - limit - TRIM_SLACK
