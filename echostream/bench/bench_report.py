"""Figures of a measurement, as data and as Markdown."""

from __future__ import annotations

from typing import Any

from echostream.bench.crowd import crowd_markdown
from echostream.bench.timing import STAGES, TOTAL, Measured, Sample, median, percentile

NOISY = 1.2  # times the median that a fixed product may take at its 95th percentile


def figures(measured: Measured) -> dict[str, Any]:
    """Everything that is reported, ready for JSON."""
    plan, systems = measured.plan, {}
    first = plan.systems[0]
    for name, positions in measured.samples.items():
        rows = {}
        for second, samples in positions.items():
            rows[f"{second:g}"] = _position(samples, plan.chunk_ms)
            # Chunk by chunk, in turns: what disturbs the machine for longer disturbs both.
            pairs = zip(samples, measured.samples[first][second], strict=True)
            rows[f"{second:g}"]["over_first"] = median(
                [own.ms[TOTAL] / base.ms[TOTAL] for own, base in pairs]
            )
        ends = [rows[f"{second:g}"] for second in (plan.seconds[0], plan.seconds[-1])]
        systems[name] = {
            "positions": rows,
            "late_over_early": ends[1]["total"]["median"] / ends[0]["total"]["median"],
            "resident_growth_mib": ends[1]["resident_mib"] - ends[0]["resident_mib"],
            "startup_s": measured.startup_s.get(name),
            "sessions": measured.sessions.get(name),
        }
    spread = percentile(measured.noise, 95) / median(measured.noise)
    return {
        "chunk_ms": plan.chunk_ms,
        "task": plan.task,
        "clock": plan.clock,
        "threads": plan.threads,
        "settings": dict(plan.settings),
        "cores": list(measured.cores),
        "tokens_per_second": plan.rates.tokens,
        "units_per_second": plan.rates.units,
        "repeats": plan.repeats,
        "load": measured.load,
        "noise": spread,
        "quiet": spread <= NOISY,
        "systems": systems,
    }


def _position(samples: list[Sample], chunk_ms: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage in (*STAGES, TOTAL):
        values = [sample.ms[stage] for sample in samples]
        found[stage] = {"median": median(values), "p95": percentile(values, 95)}
        floors = [sample.floor_ms[stage] for sample in samples]
        found[stage]["floor"] = median(floors)
        ratios = [v / f for v, f in zip(values, floors, strict=True) if f]
        found[stage]["over_floor"] = median(ratios) if ratios else None
    found["compute_rtf"] = sum(s.ms[TOTAL] for s in samples) / (chunk_ms * len(samples))
    found["state_mib"] = samples[-1].state_mib
    found["resident_mib"] = samples[-1].resident_mib
    found["tokens_written"] = sum(sample.tokens for sample in samples)
    found["units_spoken"] = sum(sample.units for sample in samples)
    return found


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def markdown(data: dict[str, Any]) -> str:
    """Tables of :func:`figures`."""
    lines = [
        f"{data['chunk_ms']} ms chunks, {data['threads']} thread(s) on core(s) "
        f"{', '.join(map(str, data['cores'])) or 'of the system'}, {data['tokens_per_second']:g} "
        f"subwords and {data['units_per_second']:g} units a second; ms of {data['clock']} time per "
        "chunk, median "
        "(95th percentile).",
        "",
        f"| system | at second | {' | '.join(STAGES)} | total | encoder / floor "
        "| total / floor | compute RTF | over first | state MiB | resident MiB |",
        "| --- |" + " --: |" * (len(STAGES) + 8),
    ]
    for name, system in data["systems"].items():
        for second, row in system["positions"].items():
            cells = [
                f"{row[stage]['median']:.1f} ({row[stage]['p95']:.1f})"
                for stage in (*STAGES, TOTAL)
            ]
            cells += [
                *(_ratio(row[stage]["over_floor"]) for stage in ("encoder", TOTAL)),
                f"{row['compute_rtf']:.3f}",
                f"{row['over_first']:.2f}",
                f"{row['state_mib']:.2f}",
                f"{row['resident_mib']:.0f}",
            ]
            lines.append(f"| {name} | {second} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| system | last / first position | start-up s | resident growth MiB |",
        "| --- |" + " --: |" * 3,
    ]
    for name, system in data["systems"].items():
        startup = "-" if system["startup_s"] is None else f"{system['startup_s']:.1f}"
        cells = [
            f"{system['late_over_early']:.2f}",
            startup,
            f"{system['resident_growth_mib']:.1f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    crowds = {name: s["sessions"] for name, s in data["systems"].items() if s["sessions"]}
    if crowds:
        lines += ["", crowd_markdown(crowds).rstrip()]
    verdict = "quiet" if data["quiet"] else "not quiet: these figures are not to be published"
    lines += [
        "",
        f"A fixed product took {data['noise']:.2f} times its median at the 95th percentile; load "
        f"{data['load']:.1f}. The machine was {verdict}.",
    ]
    return "\n".join(lines) + "\n"
