"""Paired bootstrap of systems that translated the same sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Significance:
    """Paired bootstrap of one run against the baseline."""

    system: str
    metric: str
    score: float
    mean: float
    half_width: float
    p_value: float | None


def paired_bootstrap(
    systems: Sequence[tuple[str, Sequence[str]]],
    references: Sequence[str],
    metric: str,
    samples: int = 1000,
) -> list[Significance]:
    """sacrebleu's paired bootstrap of corpus BLEU.

    Args:
        systems: name and sentences of each; the first is the baseline (no p-value).
        references: of the same sentences.
        metric: what the score is called.
    """
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest, Result

    # PairedTest tells systems apart by name, and two folders may have the same.
    named: list[tuple[str, Sequence[str]]] = [
        (f"{number}: {name}", list(texts)) for number, (name, texts) in enumerate(systems, 1)
    ]
    test = PairedTest(
        named_systems=named,
        metrics={"BLEU": BLEU()},
        references=[list(references)],
        test_type="bs",
        n_samples=samples,
    )
    _, columns = test()
    names = [str(name) for name in columns["System"]]
    rows = [row for row in columns["BLEU"] if isinstance(row, Result)]
    return [
        Significance(
            name,
            metric,
            round(row.score, 3),
            round(row.mean or 0.0, 3),
            round(row.ci or 0.0, 3),
            # Resampling identical texts gives no spread, which sacrebleu takes for certainty.
            1.0 if number and texts == named[0][1] else row.p_value,
        )
        for number, (name, row, (_, texts)) in enumerate(zip(names, rows, named, strict=True))
    ]


def significance_table(rows: Sequence[Significance]) -> list[str]:
    """Lines of a heading and a table, behind an empty line."""
    lines = [
        "",
        f"Paired bootstrap on {rows[0].metric} against the first line:",
        "",
        "| System | Score | Bootstrap mean ± 95 % half-width | p |",
        "| :-- | --: | --: | --: |",
    ]
    for row in rows:
        p_value = "baseline" if row.p_value is None else f"{row.p_value:.4f}"
        interval = f"{row.mean:.2f} ± {row.half_width:.2f}"
        lines.append(f"| {row.system} | {row.score:.2f} | {interval} | {p_value} |")
    return lines
