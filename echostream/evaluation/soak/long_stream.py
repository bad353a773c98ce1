"""One long stream through one system, measured while it runs.

What is kept meanwhile is a few numbers a decision, so that memory that grows is the stream's.
"""

from __future__ import annotations

import json
import logging
import os
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from echostream.checkpoint import load_model_dir
from echostream.config import Settings, overlay
from echostream.evaluation.runs.logged_instances import speech_layout
from echostream.evaluation.runs.run_folder import TRACE_FILE
from echostream.evaluation.soak.sounds import RATE, blocks
from echostream.files import write_atomically
from echostream.session import Session, TraceWriter
from echostream.streaming import state_bytes
from echostream.threads import use_threads
from echostream.translator.pipeline import Pipeline

logger = logging.getLogger(__name__)

MIB = 2**20
SUBSAMPLING = 4
WAV_FILE = "0_pred.wav"


def resident_bytes() -> int | None:
    """Memory that this process holds now; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Setup:
    """How a system runs.

    Attributes:
        model_dir: model directory.
        chunk_ms: source per decision.
        settings: by key, instead of the model directory's values.
        threads: of the model; None: what suits it.
    """

    model_dir: str
    chunk_ms: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None


def open_pipeline(setup: Setup) -> Pipeline:
    """A pipeline on the CPU."""
    system = load_model_dir(Path(setup.model_dir))
    settings = overlay(Settings.of(system.config), setup.settings)
    use_threads(system.model, setup.threads)
    return Pipeline(system.with_settings(settings), chunk_ms=setup.chunk_ms)


@dataclass
class Growth:
    """How large a stream and its process are, once a minute of source.

    Attributes:
        source_s, state_bytes, resident: (N,) of the same moments; ``resident`` in bytes, 0 where
            the system does not tell.
    """

    source_s: array = field(default_factory=lambda: array("d"))
    state_bytes: array = field(default_factory=lambda: array("q"))
    resident: array = field(default_factory=lambda: array("q"))

    def note(self, source_s: float, state: object) -> None:
        self.source_s.append(source_s)
        self.state_bytes.append(state_bytes(state))
        self.resident.append(resident_bytes() or 0)

    def due(self, source_s: float) -> bool:
        """Whether a minute has passed."""
        return not self.source_s or source_s >= self.source_s[-1] + 60

    def figures(self) -> dict[str, Any]:
        """Sizes at half of the stream and at its end, in MiB."""
        half = int(np.searchsorted(self.source_s, self.source_s[-1] / 2))
        resident = [self.resident[half] / MIB, self.resident[-1] / MIB]
        known = bool(self.resident[-1])
        return {
            "resident_half_mib": resident[0] if known else None,
            "resident_end_mib": resident[1] if known else None,
            "resident_growth_mib": resident[1] - resident[0] if known else None,
            "state_half_mib": self.state_bytes[half] / MIB,
            "state_highest_mib": max(self.state_bytes) / MIB,
            "resident_mib_by_minute": [round(size / MIB, 2) for size in self.resident],
        }


def without_speech(setup: Setup, sound: str, minutes: float) -> dict[str, Any]:
    """Let a system listen to one of ``sounds.SOUNDS``.

    Returns:
        Words of source and translation, samples of speech, those of sentences without a word,
        and sizes.
    """
    pipeline = open_pipeline(setup)
    session, growth = Session(pipeline, keep_tokens=False), Growth()
    spoken: dict[int, int] = {}

    def push(samples: np.ndarray, final: bool) -> None:
        for output in session.iterate(samples, RATE, final=final):
            if len(output.waveform):
                spoken[output.sentence] = spoken.get(output.sentence, 0) + len(output.waveform)

    for block in blocks(sound, 60 * minutes):
        push(block, False)
        if growth.due(session.received / RATE):
            growth.note(session.received / RATE, session.state)
    push(np.zeros(0, dtype=np.float32), True)
    growth.note(session.received / RATE, session.state)
    wordless = sum(
        samples for index, samples in spoken.items() if not session.sentences[index].translation
    )
    return {
        "minutes": minutes,
        "threads": torch.get_num_threads(),
        "words": len(session.translation),
        "words_a_minute": len(session.translation) / minutes,
        "source_words": len(session.transcript),
        "speech_samples": session.samples_written,
        "speech_s": session.samples_written / pipeline.output_rate,
        "speech_samples_without_words": wordless,
        "text": " ".join(session.translation),
        **growth.figures(),
    }


class PlayedSpeech:
    """Writes speech as SimulEval does: from the first segment on, with silence where it waits.

    Attributes:
        delays, elapsed: when each segment was written, in ms, without and with all computation.
        durations: ms of each segment.
    """

    def __init__(self, path: Path, sample_rate: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.sample_rate = path, sample_rate
        self.delays, self.elapsed, self.durations = array("d"), array("d"), array("d")
        self._end: float | None = None
        self._file = soundfile.SoundFile(path, "w", sample_rate, 1, subtype="PCM_16")

    def write(self, samples: np.ndarray, source_ms: float, compute_ms: float) -> None:
        """Add a segment that was written at a point of source time."""
        end = source_ms if self._end is None else self._end
        start = max(end, source_ms)
        self._file.write(np.zeros(int(self.sample_rate * (start - end) / 1000), np.float32))
        self._file.write(samples)
        duration = 1000 * len(samples) / self.sample_rate
        self.delays.append(source_ms)
        self.elapsed.append(source_ms + compute_ms)
        self.durations.append(duration)
        self._end = start + duration

    def close(self) -> None:
        self._file.close()

    def log_line(self, source: Path, source_ms: float, reference: str) -> str:
        """The utterance's line of ``instances.log``."""
        delays, durations = list(self.delays), list(self.durations)
        intervals, _ = speech_layout(delays, durations)
        played = intervals[-1][0] + intervals[-1][1] - delays[0] if delays else 0.0
        return json.dumps(
            {
                "index": 0,
                "prediction": self.path.absolute().as_posix(),
                "delays": delays,
                "durations": durations,
                "prediction_offset": delays[0] if delays else source_ms,
                "elapsed": list(self.elapsed),
                "intervals": intervals,
                "prediction_length": played / 1000,
                "source_length": source_ms,
                "reference": reference,
                "source": [str(source)],
            }
        )


def due_frames(pipeline: Pipeline, samples: int) -> int:
    """Encoder frames (40 ms) of so many samples at the model's rate, at the end of a stream."""
    config = pipeline.system.config.frontend
    windows = max((samples - config.window_samples) // config.shift_samples + 1, 0)
    return -(-windows // SUBSAMPLING)


def long_stream(setup: Setup, sound: str, reference: str, folder: str) -> dict[str, Any]:
    """Translate a sound file of any length as one stream.

    ``folder`` becomes what SimulEval would have left: log, wav and trace of one instance.

    Returns:
        What went in and came out, and sizes over the second half.
    """
    pipeline = open_pipeline(setup)
    place = Path(folder)
    session = Session(pipeline, trace=TraceWriter(place / TRACE_FILE), keep_tokens=False)
    speech = PlayedSpeech(place / "wavs" / WAV_FILE, pipeline.output_rate)
    growth, frames, compute_ms = Growth(), 0, 0.0
    with soundfile.SoundFile(sound) as file:
        rate, length = file.samplerate, len(file)
        for block, final in _chunks(file, setup.chunk_ms):
            for output in session.iterate(block, rate, final=final):
                frames += output.encoder_frames
                compute_ms += sum(output.compute_ms.values())
                if len(output.waveform):
                    speech.write(output.waveform, output.source_ms, compute_ms)
            if final or growth.due(session.received / rate):
                growth.note(session.received / rate, session.state)
    speech.close()
    state = session.state
    line = speech.log_line(Path(sound), 1000 * length / rate, reference)
    write_atomically(place / "instances.log", line + "\n")
    resampled = state.frontend.resampler
    taken = resampled.written if rate != pipeline.system.config.frontend.sample_rate else length
    return {
        "source_s": length / rate,
        "threads": torch.get_num_threads(),
        "samples_in_file": length,
        "samples_taken_in": state.processed,
        "encoder_frames_due": due_frames(pipeline, taken),
        "encoder_frames_out": frames,
        "speech_samples": session.samples_written,
        "compute_rtf": compute_ms * rate / (1000 * length),
        **growth.figures(),
    }


def _chunks(file: soundfile.SoundFile, chunk_ms: int) -> Iterable[tuple[np.ndarray, bool]]:
    """(T, channels) blocks of about a chunk, and whether it is the last one."""
    size = max(file.samplerate * chunk_ms // 1000, 1)
    for block in file.blocks(size, dtype="float32", always_2d=True):
        yield block, False
    yield np.zeros((0, file.channels), dtype=np.float32), True
