"""The comparison as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

from echostream.evaluation.runs.comparison import ComparedRun
from echostream.evaluation.runs.metric import Column
from echostream.evaluation.runs.run_metrics import COLUMNS
from echostream.evaluation.significance import Significance, significance_table
from echostream.files import write_atomically


def figure(result: ComparedRun, key: str) -> float | None:
    """One figure of a run, of quality or latency; none if it was not or could not be measured."""
    value = result.quality.get(key, result.latency.get(key))
    return None if value is None or math.isnan(value) else value


def _used_columns(results: Sequence[ComparedRun]) -> list[Column]:
    return [
        column
        for column in COLUMNS
        if any(figure(result, column.key) is not None for result in results)
    ]


def _cells(result: ComparedRun, columns: Sequence[Column]) -> list[str]:
    chunk = "" if result.run.chunk_ms is None else str(result.run.chunk_ms)
    cells = [result.run.system, chunk]
    for key, _, decimals in columns:
        value = figure(result, key)
        cells.append("-" if value is None else f"{value:.{decimals}f}")
    return cells


def _recognizer_line(results: Sequence[ComparedRun]) -> str:
    names = sorted({result.recognizer for result in results if result.recognizer})
    return f"Recogniser: {', '.join(names)}. " if names else ""


def markdown_table(
    results: Sequence[ComparedRun], significance: Sequence[Significance] = ()
) -> str:
    """The table with its units, notes and significance."""
    columns = _used_columns(results)
    header = ["System", "Chunk (ms)", *(heading for _, heading, _ in columns)]
    lines = [
        "| " + " | ".join(header) + " |",
        "| :-- |" + " --: |" * (len(header) - 1),
    ]
    lines += ["| " + " | ".join(_cells(result, columns)) + " |" for result in results]
    count = len(results[0].run.utterances)
    lines += ["", f"{count} utterances. {_recognizer_line(results)}Times in milliseconds."]
    lines += [f"- {r.run.name}: {note}." for r in results for note in r.notes]
    if significance:
        lines += significance_table(significance)
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def latex_escape(text: str) -> str:
    """Escape what LaTeX would interpret."""
    return "".join(_LATEX.get(character, character) for character in text)


def latex_table(results: Sequence[ComparedRun]) -> str:
    """A ``booktabs`` table."""
    columns = _used_columns(results)
    header = ["System", "Chunk (ms)", *(heading for _, heading, _ in columns)]
    rows = [header, *(_cells(result, columns) for result in results)]
    body = [" & ".join(map(latex_escape, row)) + r" \\" for row in rows]
    return "\n".join(
        [
            "% " + _recognizer_line(results) + "Times in milliseconds. Needs booktabs.",
            r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _records(results: Sequence[ComparedRun]) -> list[dict[str, object]]:
    records = []
    for result in results:
        record: dict[str, object] = {
            "system": result.run.system,
            "chunk_ms": result.run.chunk_ms,
            "test_set": result.run.test_set,
            "utterances": len(result.run.utterances),
            "recognizer": result.recognizer,
        }
        for key, value in {**result.quality, **result.latency}.items():
            record[key] = None if math.isnan(value) else round(value, 4)
        records.append(record)
    return records


def csv_table(results: Sequence[ComparedRun]) -> str:
    """Every figure, one line per run."""
    records = _records(results)
    fields = list(dict.fromkeys(key for record in records for key in record))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def json_table(results: Sequence[ComparedRun], significance: Sequence[Significance] = ()) -> str:
    """Every figure with notes and significance."""
    document = {
        "runs": [
            {**record, "notes": result.notes}
            for record, result in zip(_records(results), results, strict=True)
        ],
        "significance": [vars(row) for row in significance],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def write_tables(
    folder: Path, results: Sequence[ComparedRun], significance: Sequence[Significance] = ()
) -> list[Path]:
    """Write the table in all four forms."""
    texts = {
        "table.md": markdown_table(results, significance),
        "table.tex": latex_table(results),
        "table.csv": csv_table(results),
        "table.json": json_table(results, significance),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return [folder / name for name in texts]
