"""What the shipped systems decide on shipped recordings, as JSON; ``decisions.json`` was recorded
before the streaming core was rebuilt.

    python -m tests.goldens.decisions tests/goldens/decisions.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from echostream.assets import model_dir
from echostream.checkpoint import load_model_dir
from echostream.config import EndpointConfig, PolicyConfig, SpeechConfig
from echostream.samples import read_audio
from echostream.translator.pipeline import Pipeline
from echostream.translator.stream import Decision

AUDIO = Path(__file__).parents[2] / "data/echo_mini"
CLIPS = ("test_00001", "test_00011", "test_00021")
PROBES = 8  # samples of a waveform that are compared, beside their number and power
RUNS: dict[str, dict[str, Any]] = {
    "speech": {},
    "text": {"task": "s2tt"},
    "recognition": {"task": "asr"},
    "whole words": {"chunk_ms": 640},
    "beam": {"chunk_ms": 960, "beam": 3},
    "one sentence": {"endpoint": EndpointConfig("off")},
    "wait-k": {"policy": PolicyConfig("wait_k", lagging_k1=3, stride_n=2)},
    "words drawn out": {"speech": SpeechConfig(whole_words=True, fill_chunks=2.0)},
    "short chunks": {"chunk_ms": 120},
}


def described(output: Decision) -> dict[str, Any]:
    """A decision in numbers and words."""
    wave = output.waveform
    probes = wave[:: max(len(wave) // PROBES, 1)][:PROBES]
    return {
        "source_ms": output.source_ms,
        "asr": list(output.asr_tokens),
        "st": list(output.st_tokens),
        "mt": list(output.mt_tokens),
        "units": list(output.units),
        "transcript": " ".join(output.transcript),
        "translation": " ".join(output.translation),
        "sentence": [output.sentence, output.sentence_end],
        "backlog_ms": round(output.backlog_ms, 3),
        "samples": len(wave),
        "power": round(float(np.mean(np.square(wave, dtype=np.float64))), 8) if len(wave) else 0.0,
        "probes": [round(float(value), 6) for value in probes],
    }


def decide(system: str, run: str, clip: str) -> Iterable[dict[str, Any]]:
    """Every decision of a shipped system on a shipped clip, pushed in blocks of 320 ms."""
    pipeline = Pipeline(load_model_dir(model_dir(system)), **RUNS[run])
    samples, rate = read_audio(AUDIO / f"test_audio/{clip}.flac")
    state, block = pipeline.init_state(), rate * 320 // 1000
    for start in range(0, len(samples) + block, block):
        piece = samples[start : start + block]
        outputs, state = pipeline.step(piece, rate, state, final=len(piece) < block)
        yield from map(described, outputs)
        if state.finished:
            return


def record() -> dict[str, list[dict[str, Any]]]:
    """All runs: every clip as speech, the other settings on one."""
    return {
        f"{system}/{run}/{clip}": list(decide(system, run, clip))
        for system in ("echostream", "streamspeech")
        for run in RUNS
        for clip in (CLIPS if run == "speech" else CLIPS[:1])
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(record(), separators=(",", ":")) + "\n")
