"""Quality-latency curves and backlog pictures, PNG and SVG."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from echostream.evaluation.runs.comparison import ComparedRun
from echostream.evaluation.runs.run_folder import RunFolder
from echostream.evaluation.runs.run_latency import backlog
from echostream.evaluation.runs.run_metrics import HEADINGS, LATENCY_AXES
from echostream.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Okabe and Ito's colours, which the colour-blind can tell apart, with a marker for each.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def new_figure(width: float, height: float) -> Figure:
    """A figure that needs no display and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg``."""
    import matplotlib

    paths = []
    # Without a fixed salt and date the same figure would be another file every time.
    with matplotlib.rc_context({"svg.hashsalt": "echostream"}):
        for kind, metadata in (("png", None), ("svg", {"Date": None})):
            path = stem.with_name(f"{stem.name}.{kind}")
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)
            paths.append(path)
    return paths


def _style(axes: Axes) -> None:
    axes.grid(True, color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _points(
    results: Sequence[ComparedRun], key: str | None
) -> list[tuple[float, float, int | None]]:
    points = []
    for result in results:
        latency = result.latency.get(key, math.nan) if key else math.nan
        quality = result.main_quality[1]
        if not math.isnan(latency) and not math.isnan(quality):
            points.append((latency / 1000, quality, result.run.chunk_ms))
    return sorted(points, key=lambda point: (point[2] or 0, point[0]))


def _label_chunks(
    axes: Axes, points: Sequence[tuple[float, float, int | None]], color: str, below: bool
) -> None:
    """Write chunk sizes at the points, one label for points too close for two."""
    x_span = abs(axes.get_xlim()[1] - axes.get_xlim()[0])
    y_span = abs(axes.get_ylim()[1] - axes.get_ylim()[0])
    groups: list[list[tuple[float, float, int]]] = []
    for x, y, chunk in points:
        if chunk is None:
            continue
        for group in groups:
            near_x = abs(group[-1][0] - x) < 0.055 * x_span
            if near_x and abs(group[-1][1] - y) < 0.05 * y_span:
                group.append((x, y, chunk))
                break
        else:
            groups.append([(x, y, chunk)])
    for group in groups:
        axes.annotate(
            ", ".join(str(chunk) for _, _, chunk in group),
            (sum(x for x, _, _ in group) / len(group), sum(y for _, y, _ in group) / len(group)),
            xytext=(0, -9 if below else 9),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            fontsize=7.5,
            color=color,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
        )


def plot_curves(results: Sequence[ComparedRun], stem: Path) -> list[Path]:
    """Quality against AL and ATD: what was waited for, and with compute.

    One line per system through its chunk sizes, which are written at the points. Solid and filled:
    plain latency; dashed and hollow: computation-aware as SimulEval and StreamSpeech report it;
    dotted and hollow: with compute overlapping the source.

    Returns:
        The files written; none when no run has a quality figure.
    """
    if not any(result.main_quality[0] for result in results):
        logger.warning("no run has a quality figure, so there are no curves")
        return []
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    by_system: dict[str, list[ComparedRun]] = {}
    for result in results:
        by_system.setdefault(result.run.system, []).append(result)
    figure = new_figure(11.0, 5.4)
    panels = figure.subplots(1, len(LATENCY_AXES), sharey=True)
    for axes, (plain, aware, overlapped, label) in zip(panels, LATENCY_AXES, strict=True):
        _style(axes)
        for number, group in enumerate(by_system.values()):
            color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
            for key, line, face in (
                (plain, "-", color),
                (aware, "--", "white"),
                (overlapped, ":", "white"),
            ):
                points = _points(group, key)
                if not points:
                    continue
                axes.plot(
                    [x for x, _, _ in points],
                    [y for _, y, _ in points],
                    line,
                    color=color,
                    marker=marker,
                    markerfacecolor=face,
                    markersize=6 if key == plain else 4.5,
                    linewidth=1.8 if key == plain else 1.2,
                )
        axes.set_xlabel(label)
        axes.margins(x=0.08, y=0.14)
        axes.autoscale_view()
        for number, group in enumerate(by_system.values()):
            color = COLORS[number % len(COLORS)]
            _label_chunks(axes, _points(group, plain), color, below=number % 2 == 1)
        axes.xaxis.set_major_locator(MaxNLocator(7))
    quality = next((r.main_quality[0] for r in results if r.main_quality[0]), "quality")
    recognizers = sorted({r.recognizer for r in results if r.recognizer})
    suffix = f" ({', '.join(recognizers)})" if recognizers else ""
    panels[0].set_ylabel(HEADINGS.get(quality, quality) + suffix)
    handles = [
        Line2D([], [], color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], label=name)
        for i, name in enumerate(by_system)
    ]
    handles += [
        Line2D([], [], color="0.3", linestyle="-", label="plain"),
        Line2D([], [], color="0.3", linestyle="--", label="computation-aware, raw"),
        Line2D([], [], color="0.3", linestyle=":", label="computation-aware, overlapped (AL)"),
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 4),
        frameon=False,
        title="numbers at the points: source chunk, ms",
        title_fontsize=8.5,
    )
    return save_figure(figure, stem)


def representatives(runs: Sequence[RunFolder], limit: int = 4) -> list[RunFolder]:
    """All runs if they are few, else each system at its smallest chunk: pictures of one utterance
    cannot show more than a handful."""
    if len(runs) <= limit:
        return list(runs)
    smallest: dict[str, RunFolder] = {}
    for run in runs:
        known = smallest.get(run.system)
        if known is None or (run.chunk_ms or 0) < (known.chunk_ms or 0):
            smallest[run.system] = run
    return list(smallest.values())


def longest_common(runs: Sequence[RunFolder]) -> int:
    """Index of the utterance with the longest source."""
    return max(runs[0].utterances, key=lambda item: item.source_length).index


def plot_backlog(runs: Sequence[RunFolder], index: int, stem: Path) -> list[Path]:
    """Speech written but not yet played, against time, for one utterance.

    Empty list when no run has speech output for it.
    """
    figure = new_figure(9.0, 4.2)
    axes = figure.subplots()
    _style(axes)
    drawn, source_end = 0, 0.0
    for number, run in enumerate(runs):
        item = next((item for item in run.utterances if item.index == index), None)
        if item is None or not run.is_speech or not item.delays:
            continue
        times, queued = [0.0], [0.0]
        for point, duration in zip(
            backlog(item.delays, item.durations), item.durations, strict=True
        ):
            before = max(0.0, queued[-1] - (point.time_ms - times[-1]))
            if before == 0.0 and queued[-1] > 0.0:
                times.append(times[-1] + queued[-1])
                queued.append(0.0)
            times += [point.time_ms, point.time_ms]
            queued += [before, before + duration]
        times.append(times[-1] + queued[-1])
        queued.append(0.0)
        axes.plot(
            [t / 1000 for t in times],
            [q / 1000 for q in queued],
            color=COLORS[number % len(COLORS)],
            linewidth=1.5,
            linestyle=("-", "--", "-.", ":")[number // len(COLORS) % 4],
            label=run.name,
        )
        drawn, source_end = drawn + 1, item.source_length
    if not drawn:
        return []
    axes.axvline(source_end / 1000, color="0.4", linestyle="--", linewidth=1)
    axes.annotate(
        "source ends",
        (source_end / 1000, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8.5,
        color="0.3",
    )
    axes.set_xlabel(f"time since the source began (s), utterance {index}")
    axes.set_ylabel("speech waiting to be played (s)")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=min(drawn, 4), frameon=False)
    return save_figure(figure, stem)
