"""All metrics of finished runs, in the order of the table.

Columns, curves and what curves may show follow from here. To add one: a file with a
:class:`~echostream.evaluation.runs.metric.Metric`, as ``silence.py`` is, and a line in
:data:`METRICS`. Scores of texts have a list of their own (``evaluation/text_scores.py``).
"""

from __future__ import annotations

from echostream.evaluation.runs.metric import Metric
from echostream.evaluation.runs.run_latency import LATENCY
from echostream.evaluation.runs.run_quality import QUALITY
from echostream.evaluation.runs.silence import SILENCE
from echostream.evaluation.runs.yaal import YAAL

METRICS: tuple[Metric, ...] = (
    QUALITY,
    LATENCY,
    YAAL,
    SILENCE,
)

COLUMNS = tuple(column for metric in METRICS for column in metric.columns)
LATENCY_AXES = tuple(axis for metric in METRICS for axis in metric.axes)
HEADINGS = {column.key: column.heading for column in COLUMNS}
QUALITY_NAMES = tuple(
    column.key for metric in METRICS if metric.is_quality for column in metric.columns
)


def check_quality(name: str | None) -> None:
    """
    Raises:
        ValueError: curves cannot show this.
    """
    if name is not None and name not in QUALITY_NAMES:
        raise ValueError(f"curves show one of {', '.join(QUALITY_NAMES)}, got {name!r}")
