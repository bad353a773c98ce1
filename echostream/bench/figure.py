"""A picture of a measurement: what a chunk costs at every position, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from echostream.bench.measure import STAGES, TOTAL


def plot(data: dict[str, Any], path: Path) -> None:
    """Draw :func:`~echostream.bench.report.figures`: a row of stacked bars per system, one bar per
    position, with the floor of each as a line across it.

    Args:
        path: the file to write; its suffix names the format.
    """
    systems = data["systems"]
    figure, axes = plt.subplots(
        1,
        len(systems),
        figsize=(2 + 3.2 * len(systems), 4),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    colours = plt.get_cmap("viridis")(np.linspace(0.1, 0.95, len(STAGES)))
    for axis, (name, system) in zip(axes[0], systems.items(), strict=True):
        positions = list(system["positions"])
        rows = [system["positions"][second] for second in positions]
        bottom, places = np.zeros(len(rows)), np.arange(len(rows))
        axis.set_xticks(places, positions)
        for stage, colour in zip(STAGES, colours, strict=True):
            heights = np.array([row[stage]["median"] for row in rows])
            axis.bar(places, heights, bottom=bottom, color=colour, label=stage, width=0.7)
            bottom += heights
        floors = [row[TOTAL]["floor"] for row in rows]
        axis.hlines(floors, places - 0.42, places + 0.42, color="black", label="floor")
        axis.set_title(name, fontsize="medium")
        axis.set_xlabel("second of the stream")
    axes[0][0].set_ylabel("ms per chunk, medians")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=120)
    finally:
        plt.close(figure)
