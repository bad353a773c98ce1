"""What a metric of finished runs is; ``run_metrics.py`` lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from echostream.evaluation.runs.run_folder import RunFolder


class Column(NamedTuple):
    """A figure in tables; times in ms need no decimals, proportions need two."""

    key: str
    heading: str
    decimals: int = 0


class LatencyAxis(NamedTuple):
    """A panel of the curves: keys of the plain figure, and of the same with compute."""

    plain: str
    aware: str
    overlapped: str | None
    label: str


@dataclass(frozen=True)
class Metric:
    """Figures that are computed together.

    Attributes:
        compute: a run to figures by name, nan for what cannot be measured. They may be more than
            the columns: CSV and JSON hold all.
        columns: what tables show, in order.
        is_quality: curves can show the columns, against the latency axes.
        axes: what curves show quality against.
    """

    compute: Callable[[RunFolder], dict[str, float]]
    columns: tuple[Column, ...]
    is_quality: bool = False
    axes: tuple[LatencyAxis, ...] = ()
