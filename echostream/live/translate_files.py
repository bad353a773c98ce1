"""``echostream translate``: sound files through a model, as a stream or whole."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from tqdm import tqdm

from echostream.files import write_atomically
from echostream.live.captions import Captions, show_words
from echostream.live.ends import (
    cutter_for,
    ends_are_given,
    for_streams,
    gate_for,
    open_pipeline,
)
from echostream.live.live_options import OFFLINE_BEAM
from echostream.live.speech_gate import GatedStream, SpeechGate
from echostream.live.utterances import SpokenSession, UtteranceCutter
from echostream.samples import sound_file
from echostream.session import Session
from echostream.translator.pipeline import Pipeline
from echostream.translator.stream import MAX_CHUNK_MS, Decision

if TYPE_CHECKING:
    from echostream.acceleration.onnx.runtime import OnnxSystem
    from echostream.checkpoint import System


def audio_blocks(path: Path, block_ms: int = 100) -> Iterator[tuple[np.ndarray, int, bool]]:
    """Yield (samples, sample rate, last) blocks of a sound file without loading all of it."""
    if not path.is_file():
        raise FileNotFoundError(f"no such sound file: {path}")
    try:
        with soundfile.SoundFile(path) as file:
            size = max(file.samplerate * block_ms // 1000, 1)
            remaining = file.frames
            while True:
                block = file.read(size, dtype="float32")
                remaining -= len(block)
                last = remaining <= 0 or not len(block)
                yield block, file.samplerate, last
                if last:
                    return
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: not a readable sound file: {error}") from error


def paced(
    blocks: Iterator[tuple[np.ndarray, int, bool]],
) -> Iterator[tuple[np.ndarray, int, bool]]:
    """The same blocks, each no sooner than its last sample would have sounded."""
    begun, samples = time.monotonic(), 0
    for block, rate, last in blocks:
        samples += len(block)
        time.sleep(max(begun + samples / rate - time.monotonic(), 0))
        yield block, rate, last


def translate_file(
    pipeline: Pipeline,
    path: Path,
    out: Path,
    *,
    realtime: bool = False,
    gate: SpeechGate | None = None,
    cutter: UtteranceCutter | None = None,
) -> Iterator[Decision]:
    """Stream a file through a pipeline, yield every decision and leave the speech in ``out``.

    Without speech output (tasks ``asr`` and ``s2tt``) there is no file.

    Args:
        gate: keeps what is no speech from the pipeline.
        cutter: gives the pipeline utterance after utterance.
    """
    gated = GatedStream(gate)
    session = (
        Session(pipeline, keep_tokens=False)
        if cutter is None
        else SpokenSession(pipeline, cutter, keep_tokens=False)
    )
    blocks = audio_blocks(path)
    with sound_file(out if pipeline.task == "s2st" else None, pipeline.output_rate) as write:
        for samples, rate, last in paced(blocks) if realtime else blocks:
            samples = gated.push(samples, rate, final=last)
            for output in session.push(samples, rate, final=last):
                write(output.waveform)
                yield output


def targets(inputs: list[Path], out: Path) -> list[Path]:
    """Where each file's speech goes.

    Raises:
        FileNotFoundError: an input is missing.
        ValueError: two inputs would go to one place.
    """
    for path in inputs:
        if not path.is_file():
            raise FileNotFoundError(f"no such sound file: {path}")
    if len(inputs) == 1 and not out.is_dir():
        return [out]
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder for several files, {out} is a file")
    places = [out / f"{path.stem}.wav" for path in inputs]
    if len(set(places)) != len(places):
        raise ValueError("two of the files have the same name; translate them one by one")
    taken = {path.resolve() for path in inputs} & {place.resolve() for place in places}
    if taken:
        raise ValueError(f"--out would overwrite the source {min(taken)}")
    return places


def run_translate(args: argparse.Namespace) -> int:
    places = targets(args.inputs, args.out)
    # Exported decoders write greedily.
    searches = args.offline and args.runtime == "torch"
    beam = args.beam if args.beam is not None else (OFFLINE_BEAM if searches else 1)
    chunk_ms = MAX_CHUNK_MS if args.offline else args.chunk_ms
    if args.offline and args.compile:
        raise ValueError("--compile is for chunks, --offline decides once over the whole file")
    loaded, opened, threads = _load(args, chunk_ms)
    given = ends_are_given(args)
    chunk_ms = loaded.config.card.chunk_or(chunk_ms)
    options = {"chunk_ms": chunk_ms, "task": args.task, "beam": beam}
    alone = opened(loaded, **options)
    stream = opened(for_streams(loaded, given=given), **options)
    cutter = None if given else cutter_for(loaded, args.vad)
    for path, place in zip(args.inputs, places, strict=True):
        if args.offline or (not given and is_utterance(path, loaded)):
            _translate_one(alone, path, place, args, threads)
        elif cutter is not None:
            _translate_one(alone, path, place, args, threads, cutter=cutter)
        else:
            gate = gate_for(loaded, args.vad)
            _translate_one(stream, path, place, args, threads, gate=gate)
    return 0


def _load(
    args: argparse.Namespace, chunk_ms: int | None
) -> tuple[System | OnnxSystem, Callable[..., Pipeline], int]:
    """The model, what opens pipelines over it, and how many threads it computes with. Loads the
    runtime that the flags ask for, and no other."""
    if args.runtime == "onnx":
        from echostream.acceleration.onnx.runtime import load_from_args, onnx_pipeline

        system = load_from_args(args)
        return system, onnx_pipeline, system.model.threads
    import torch

    from echostream.live import computing

    return (
        computing.load_to_compute(args.model_dir, args, chunk_ms),
        open_pipeline,
        torch.get_num_threads(),
    )


def is_utterance(path: Path, system: System | OnnxSystem) -> bool:
    """Whether a sound file is no longer than the longest sentence of a stream."""
    duration_s = _duration_s(path)
    return duration_s is not None and 1000 * duration_s <= system.config.endpoint.max_sentence_ms


def _translate_one(
    pipeline: Pipeline,
    path: Path,
    out: Path,
    args: argparse.Namespace,
    threads: int,
    *,
    gate: SpeechGate | None = None,
    cutter: UtteranceCutter | None = None,
) -> None:
    captions, seconds, speech = Captions(), 0.0, 0
    with tqdm(
        total=_duration_s(path),
        desc=path.name,
        unit="s",
        disable=None,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} s [{elapsed}]",
    ) as progress:
        decisions = translate_file(
            pipeline, path, out, realtime=args.realtime, gate=gate, cutter=cutter
        )
        for output in decisions:
            progress.update(output.source_ms / 1000 - seconds)
            seconds = output.source_ms / 1000
            speech += len(output.waveform)
            captions.add(output)
            if args.text:
                for line in show_words(output):
                    tqdm.write(line)
    if args.srt:
        write_atomically(out.with_suffix(".srt"), captions.srt())
    if args.json:
        report = {
            "source": path.name,
            "source_s": seconds,
            "speech_s": speech / pipeline.output_rate,
            "threads": threads,
            "sentences": captions.to_dicts(),
        }
        text = json.dumps(report, ensure_ascii=False, indent=1)
        write_atomically(out.with_suffix(".json"), text + "\n")
    if pipeline.task == "s2st":
        said = f"{speech / pipeline.output_rate:.2f} s of speech from {seconds:.2f} s of source"
    else:
        said = " / ".join(caption.text for caption in captions.sentences)
    print(f"{out if pipeline.task == 's2st' else path}: {said}")


def _duration_s(path: Path) -> float | None:
    try:
        return soundfile.info(path).duration
    except soundfile.LibsndfileError:
        return None  # reading it says what is wrong
