"""What one utterance looked like in time: source, transcript, translation and speech."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from echostream.evaluation.figures.curves import COLORS, new_figure, save_figure
from echostream.evaluation.runs.run_folder import RunFolder, Utterance
from echostream.evaluation.runs.yaal import spread_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOURCE_COLOR = "0.35"
_MAX_WORD_ROWS = 4

# A word and the time it appeared, s.
TimedWord = tuple[float, str]


def words_from_trace(lines: Sequence[dict[str, Any]], key: str) -> list[TimedWord]:
    """Words with the source time at which they first appeared, from text lines that grow sentence
    by sentence."""
    timed: list[TimedWord] = []
    known: dict[int, int] = {}
    for line in lines:
        text = line.get(key) or ""
        words = text.split() if isinstance(text, str) else list(text)
        sentence = line.get("sentence", 0)
        new = words[known.get(sentence, 0) :]
        timed += [(line["source_ms"] / 1000, word) for word in new]
        known[sentence] = max(len(words), known.get(sentence, 0))
    return timed


def _written_words(run: RunFolder, item: Utterance) -> list[TimedWord]:
    text = str(item.prediction)
    words = text.split()
    if len(words) != len(item.delays):
        return [(item.delays[-1] / 1000, text)] if item.delays else []
    return [(delay / 1000, word) for delay, word in zip(item.delays, words, strict=True)]


def _recognized_words(run: RunFolder, position: int, item: Utterance) -> list[TimedWord]:
    texts = run.hypotheses()
    if texts is None or not item.delays:
        return []
    words = texts[position].split()
    ends = spread_words(len(words), item.delays, item.durations)
    return [(end / 1000, word) for (_, end), word in zip(ends, words, strict=True)]


def _source_wave(item: Utterance) -> tuple[np.ndarray, float] | None:
    if not item.source_path.is_file():
        return None
    samples, rate = soundfile.read(item.source_path, dtype="float32", always_2d=True)
    return samples.mean(axis=1), rate


def _draw_wave(axes: Axes, samples: np.ndarray, rate: float, start: float, color: str) -> None:
    """Draw an envelope: one minimum and maximum per pixel column is all that can be seen."""
    if len(samples) == 0:
        return
    columns = min(len(samples), 1200)
    edges = np.linspace(0, len(samples), columns + 1).astype(int)[:-1]
    low, high = np.minimum.reduceat(samples, edges), np.maximum.reduceat(samples, edges)
    axes.fill_between(start + edges / rate, low, high, color=color, linewidth=0.3)


def _prepare(axes: Axes, label: str) -> None:
    axes.set_yticks([])
    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(True, axis="x", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_words(axes: Axes, words: Sequence[TimedWord], end: float, color: str) -> None:
    """Write each word at its time, on the first of a few rows where it does not overlap."""
    width_per_letter = end * 0.0075
    free_from = [0.0] * _MAX_WORD_ROWS
    pieces: dict[float, str] = {}
    for time, word in words:
        pieces[time] = f"{pieces[time]} {word}" if time in pieces else word
    for time, text in pieces.items():
        row = next((r for r in range(_MAX_WORD_ROWS) if free_from[r] <= time), None)
        if row is None:
            row = int(np.argmin(free_from))
        left = max(time, free_from[row])
        # A write that would run past the right edge is shortened: the picture is about when.
        room = max(int((end - left) / (1.6 * width_per_letter)), 8)
        text = text if len(text) <= room else f"{text[: room - 2]} …"
        free_from[row] = left + (len(text) + 2) * width_per_letter
        height = 1 - (row + 0.5) / _MAX_WORD_ROWS
        axes.plot([time, time], [height - 0.09, height + 0.09], color=color, linewidth=1.4)
        annotation = axes.annotate(
            text,
            (left, height),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="0.1",
            annotation_clip=False,
            bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none"},
        )
        annotation.set_in_layout(False)
    axes.set_ylim(0, 1)


def _draw_speech(axes: Axes, item: Utterance, color: str) -> None:
    for start, duration in item.intervals:
        axes.axvspan(start / 1000, (start + duration) / 1000, color=color, alpha=0.18, linewidth=0)
    for delay in item.delays:
        axes.plot([delay / 1000], [1.0], marker=7, color=color, markersize=5, clip_on=False)
    if item.wav_path.is_file() and item.delays:
        samples, rate = soundfile.read(item.wav_path, dtype="float32")
        peak = float(np.abs(samples).max()) if len(samples) else 0.0
        _draw_wave(axes, samples / (peak or 1.0), rate, item.delays[0] / 1000, color)
    axes.set_ylim(-1.1, 1.1)


def _rows(run: RunFolder, index: int) -> list[tuple[str, str, Any]]:
    """The rows of one run: kind, label and what to draw."""
    position = next(i for i, item in enumerate(run.utterances) if item.index == index)
    item = run.utterances[position]
    lines = run.trace().get(index, [])
    rows: list[tuple[str, str, Any]] = []
    for key, label in (("transcript", "transcript"), ("translation", "translation")):
        words = words_from_trace(lines, key)
        if words:
            rows.append(("words", f"{run.name}\n{label}", words))
    if run.is_speech:
        if not any(label.endswith("translation") for _, label, _ in rows):
            words = _recognized_words(run, position, item)
            if words:
                rows.append(("words", f"{run.name}\nspeech as recognised", words))
        rows.append(("speech", f"{run.name}\nspeech", item))
    elif not rows:
        rows.append(("words", f"{run.name}\ntext", _written_words(run, item)))
    return rows


def plot_timeline(runs: Sequence[RunFolder], index: int, stem: Path) -> list[Path]:
    """Draw one utterance for every run, one above the other on a common time axis.

    Transcript and translation come from the agent's trace where there is one; else the recognised
    words are spread over the speech.

    Raises:
        ValueError: a run does not have the utterance.
    """
    for run in runs:
        if all(item.index != index for item in run.utterances):
            raise ValueError(f"{run.path} has no utterance {index}")
    rows = [(number, row) for number, run in enumerate(runs) for row in _rows(run, index)]
    first = next(item for item in runs[0].utterances if item.index == index)
    heights = [1.0] + [1.25 if row[0] == "words" else 1.0 for _, row in rows]
    end = first.source_length / 1000
    for run in runs:
        item = next(item for item in run.utterances if item.index == index)
        if run.is_speech and item.intervals:
            end = max(end, sum(item.intervals[-1]) / 1000)
    end *= 1.06
    figure = new_figure(11.0, 0.75 * sum(heights) + 1.1)
    panels = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    _prepare(panels[0], "source")
    wave = _source_wave(first)
    if wave is not None:
        peak = float(np.abs(wave[0]).max()) or 1.0
        _draw_wave(panels[0], wave[0] / peak, wave[1], 0.0, SOURCE_COLOR)
    panels[0].axvspan(0, first.source_length / 1000, color=SOURCE_COLOR, alpha=0.12, linewidth=0)
    panels[0].set_ylim(-1.1, 1.1)
    for axes, (number, (kind, label, content)) in zip(panels[1:], rows, strict=True):
        color = COLORS[number % len(COLORS)]
        _prepare(axes, label)
        if kind == "speech":
            _draw_speech(axes, content, color)
        else:
            _draw_words(axes, content, end, color)
    for axes in panels:
        axes.axvline(first.source_length / 1000, color="0.4", linestyle="--", linewidth=1)
    panels[0].set_title(f"Utterance {index}: {_shorten(first.reference)}", fontsize=10, loc="left")
    panels[-1].set_xlabel(
        "time since the source began (s); dashed: source ends, triangles: speech was written"
    )
    panels[-1].set_xlim(0, end)
    figure.align_ylabels(panels)
    return save_figure(figure, stem)


def _shorten(text: str, limit: int = 110) -> str:
    return text if len(text) <= limit else text[: limit - 3].rstrip() + "..."
