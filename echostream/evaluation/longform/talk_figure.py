"""A talk over time: what waits to be played, and what a decision costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from echostream.evaluation.longform.talk_scores import backlog_of_trace, speech_rate
from echostream.evaluation.runs.run_folder import RunFolder
from echostream.files import atomic_path

_WINDOW = 25  # decisions over which compute is averaged


def plot_talk(runs: Sequence[RunFolder], path: Path) -> Path:
    """Draw the longest talk of the runs: backlog above, compute per decision below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    longest = max(runs[0].utterances, key=lambda item: item.source_length)
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(9, 5))
    for run in runs:
        lines = run.trace()[longest.index]
        [item] = [item for item in run.utterances if item.index == longest.index]
        backlog = backlog_of_trace(lines, speech_rate(item, lines))
        minutes = backlog[:, 0] / 60000
        above.plot(minutes, backlog[:, 1] / 1000, label=run.name, linewidth=1)
        compute = np.array([sum(line["compute_ms"].values()) for line in lines])
        window = min(_WINDOW, len(compute))
        mean = np.convolve(compute, np.ones(window) / window, mode="valid")
        below.plot(minutes[len(minutes) - len(mean) :], mean, label=run.name, linewidth=1)
    above.set_ylabel("speech waiting, s")
    below.set_ylabel("compute per decision, ms")
    below.set_xlabel("source, min")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    above.legend()
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path
