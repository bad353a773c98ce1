"""Repairs to SimulEval so that it measures speech output as StreamSpeech's fork of it does.

Nothing is changed before :func:`apply` is called. EchoStream's agents call it when SimulEval asks
for their options; another agent file calls it itself; ``simuleval --user-dir
echostream/evaluation/simuleval_compat`` calls it where no agent is loaded (``--score-only``).
Written against ``simuleval==1.1.4`` from PyPI and git 536de82, which is also called 1.1.4, so each
patch asks what the installed code does, not what it is called, and stays away where that is right
already. A patch that has been applied answers "right", which makes a second call harmless.

Where StreamSpeech's fork does something odd that a table cannot do without (``metrics.tsv`` holds
the computation-aware values under the plain names), that is kept, and the unambiguous figures go
to ``utterances.tsv`` beside it.
"""

from __future__ import annotations

import logging

from echostream.evaluation.simuleval_compat import (
    log_files,
    logged_output,
    quality_metrics,
    remote_evaluation,
    scores,
)
from echostream.evaluation.simuleval_compat.patch import Patch

__all__ = ["PATCHES", "Patch", "apply"]

logger = logging.getLogger(__name__)

PATCHES = (
    *logged_output.PATCHES,
    *log_files.PATCHES,
    *remote_evaluation.PATCHES,
    *scores.PATCHES,
    *quality_metrics.PATCHES,
)


def apply() -> list[str]:
    """Apply every patch that the installed SimulEval needs; return their names."""
    applied = []
    for patch in PATCHES:
        if patch.is_needed():
            patch.apply()
            applied.append(patch.name)
    if applied:
        logger.debug("SimulEval patched: %s", ", ".join(applied))
    return applied


# SimulEval's --user-dir imports the folder by its last name, in order to have it applied.
if __name__ == "simuleval_compat":
    apply()
