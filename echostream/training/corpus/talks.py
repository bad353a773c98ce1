"""Talks: many sentences of one speaker in one file, for evaluating on continuous speech.

A talk is planned from the texts and a seed alone (who says which sentences, with what pauses, how
loud, in what noise) and then spoken. It is built from clean speech: the utterances of the corpus
carry a noise of their own that stops at their edges, which no recording of a talk does. Sets with
the same base differ in their pauses only, so what pauses cost can be read off.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from echostream.files import atomic_path
from echostream.training.corpus import synthesis
from echostream.training.corpus.speakers import speaker, speakers_of
from echostream.training.corpus.text_files import Chooser, Utterance, normalize

LEAD_MS, TAIL_MS = (500, 3000), (1000, 3000)
ALONE_EDGE_MS = (60, 300)  # as around the utterances of the corpus
# One level a talk, as a speaker keeps to a microphone; sentences stray from it.
PEAK_DB, PEAK_SPREAD_DB = (-12.0, -4.0), 2.0
MAX_POLE = 0.95
SPEECH_FLOOR_DB = -45.0  # below the loudest window of a sentence, this is no speech
_PER_MS = synthesis.SAMPLE_RATE // 1000
_WINDOW_MS = 10
_NOISE_TAPS = 256  # 0.95**256 is -114 dB
_BLOCK = 1 << 20


@dataclass(frozen=True)
class TalkSet:
    """One set of talks.

    Attributes:
        base: seeds sentences, speakers, levels and noise; sets of one base share them.
        split: whose sentences and speakers.
        sentences: fewest and most in a talk.
        pause_ms: shortest and longest silence between the speech of two sentences.
        snr_db: range of the noise floor's distance from the speech.
        bookends: the last tenth of a talk says the sentences of the first tenth again, so that
            the two can be compared on the same words.
        alone: every sentence of the talks is a file by itself, for comparison.
    """

    base: str
    split: str
    talks: int
    sentences: tuple[int, int]
    pause_ms: tuple[int, int] = (0, 1500)
    snr_db: tuple[float, float] = (25.0, 40.0)
    bookends: bool = False
    alone: bool = False


TALK_SETS: Mapping[str, TalkSet] = {
    "test_talks": TalkSet("test_talks", "test", 20, (30, 60)),
    "test_talks_nopause": TalkSet("test_talks", "test", 20, (30, 60), (0, 0)),
    "test_talks_pauses": TalkSet("test_talks", "test", 20, (30, 60), (300, 1500)),
    "test_talks_sentences": TalkSet("test_talks", "test", 20, (30, 60), alone=True),
    "test_hour": TalkSet("test_hour", "test", 1, (984, 984), bookends=True),
    "dev_talks": TalkSet("dev_talks", "dev", 6, (10, 15)),
    "dev_talks_nopause": TalkSet("dev_talks", "dev", 6, (10, 15), (0, 0)),
    "dev_talks_pauses": TalkSet("dev_talks", "dev", 6, (10, 15), (300, 1500)),
    "dev_talks_sentences": TalkSet("dev_talks", "dev", 6, (10, 15), alone=True),
}
# Ships with the repository: noise does not compress, so little of it.
DEMO_SET = TalkSet("demo_talk", "test", 1, (27, 27), (200, 1000), (40.0, 40.0))


@dataclass(frozen=True)
class Talk:
    """The plan of one sound file.

    Attributes:
        id: also the file's stem.
        pauses_ms: between the sentences, one fewer than these.
        peaks_db: peak of each sentence, relative to full scale.
        snr_db: mean power of the speech over that of the noise.
        noise_pole: of the noise's first-order low-pass; 0 is white.
    """

    id: str
    speaker: str
    utterances: tuple[Utterance, ...]
    lead_ms: int
    pauses_ms: tuple[int, ...]
    tail_ms: int
    peaks_db: tuple[float, ...]
    snr_db: float
    noise_pole: float


@dataclass(frozen=True)
class Sentence:
    """One row of ``sentences.tsv``: when a sentence is said, without the silence around it.

    Attributes:
        index: place in the talk, from 1.
        utterance: id of the row of the split file.
        src_text, tgt_text: normalised as SimulEval's lists are.
    """

    talk: str
    index: int
    utterance: str
    start_ms: int
    end_ms: int
    src_text: str
    tgt_text: str


SENTENCE_COLUMNS = tuple(field.name for field in dataclasses.fields(Sentence))


def _decks(utterances: Sequence[Utterance], chooser: Chooser) -> Iterator[Utterance]:
    """All sentences in a drawn order, then all again in another, without end."""
    while True:
        yield from chooser.shuffled(utterances)


def _draw(deck: Iterator[Utterance], count: int, distinct: bool) -> list[Utterance]:
    drawn: list[Utterance] = []
    while len(drawn) < count:
        utterance = next(deck)
        if not distinct or utterance not in drawn:
            drawn.append(utterance)
    return drawn


def _talk_conditions(
    talk_set: TalkSet, number: int, count: int, seed: int
) -> tuple[int, int, tuple[float, ...], float, float]:
    rng = synthesis.generator_for(seed, "talk", talk_set.base, number)
    lead, tail = (int(rng.uniform(*bounds)) for bounds in (LEAD_MS, TAIL_MS))
    level, snr, pole = (
        rng.uniform(*PEAK_DB),
        rng.uniform(*talk_set.snr_db),
        rng.uniform(0, MAX_POLE),
    )
    strays = rng.uniform(-PEAK_SPREAD_DB, PEAK_SPREAD_DB, count)
    return lead, tail, tuple(float(level + stray) for stray in strays), float(snr), float(pole)


def plan_talks(
    name: str, talk_set: TalkSet, utterances: Sequence[Utterance], seed: int
) -> list[Talk]:
    """Decide everything about a set's talks but the sound.

    Args:
        name: of the set; talks are called ``<name>_01`` and so on.
        utterances: the sentences of the set's split. All are said equally often, as far as the
            numbers allow, and none twice in a talk unless they are too few.

    Raises:
        ValueError: no sentences.
    """
    if not utterances:
        raise ValueError(f"talks {name!r} need sentences of split {talk_set.split!r}, got none")
    chooser = Chooser(seed, "talks", talk_set.base)
    names = [one.id for one in speakers_of(talk_set.split)]
    speakers = itertools.chain.from_iterable(iter(lambda: chooser.shuffled(names), None))
    deck = _decks(utterances, chooser)
    low, high = talk_set.sentences
    talks = []
    for number in range(1, talk_set.talks + 1):
        who = next(speakers)
        count = chooser.choice(range(low, high + 1))
        distinct = count <= len(utterances)
        if talk_set.bookends:
            tenth = min(math.ceil(count / 10), len(utterances))
            first = _draw(deck, tenth, True)
            middle = _draw(deck, count - 2 * tenth, distinct)
            said = [*first, *middle, *chooser.shuffled(first)]
        else:
            said = _draw(deck, count, distinct)
        lead, tail, peaks, snr, pole = _talk_conditions(talk_set, number, count, seed)
        rng = synthesis.generator_for(seed, "pauses", talk_set.base, number)
        shortest, longest = talk_set.pause_ms
        pauses = (shortest + rng.random(count - 1) * (longest - shortest)).astype(int).tolist()
        talk = Talk(
            f"{name}_{number:02d}", who, tuple(said), lead, tuple(pauses), tail, peaks, snr, pole
        )
        talks += _alone(talk, seed) if talk_set.alone else [talk]
    return talks


def _alone(talk: Talk, seed: int) -> list[Talk]:
    """A talk's sentences, each as a file between short silences."""
    parts = []
    for index, (utterance, peak) in enumerate(zip(talk.utterances, talk.peaks_db, strict=True), 1):
        name = f"{talk.id}_{index:03d}"
        rng = synthesis.generator_for(seed, "alone", name)
        lead, tail = (int(rng.uniform(*ALONE_EDGE_MS)) for _ in "ab")
        parts.append(
            dataclasses.replace(
                talk,
                id=name,
                utterances=(utterance,),
                lead_ms=lead,
                pauses_ms=(),
                tail_ms=tail,
                peaks_db=(peak,),
            )
        )
    return parts


def trim_silence(speech: np.ndarray) -> np.ndarray:
    """Cut what is no speech from both ends, to whole windows of 10 ms.

    Args:
        speech: (T,) clean speech at 16 kHz, not all zero.
    """
    window = _WINDOW_MS * _PER_MS
    padded = np.pad(speech, (0, -len(speech) % window))
    power = np.square(padded.reshape(-1, window)).mean(1)
    loud = np.flatnonzero(power > power.max() * 10 ** (SPEECH_FLOOR_DB / 10))
    return padded[loud[0] * window : (loud[-1] + 1) * window]


def speak(utterance: Utterance, who: str, seed: int) -> np.ndarray:
    """A sentence in a test speaker's voice, clean and without silence at its edges.

    Where the corpus has the sentence from this speaker, pitch and rate are the same.
    """
    key = utterance.id if utterance.speaker == who else f"{utterance.id}:{who}"
    rng = synthesis.generator_for(seed, "source", key)
    voice = synthesis.stray(speaker(who), rng)
    return trim_silence(synthesis.espeak(utterance.src_text, voice))


def noise_floor(count: int, pole: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Blocks of low-passed noise of unit power, ``count`` samples in all, without seams."""
    taps = (pole ** np.arange(_NOISE_TAPS)).astype(np.float32)
    taps /= np.sqrt(np.square(taps).sum())
    history = rng.standard_normal(_NOISE_TAPS - 1, dtype=np.float32)
    for start in range(0, count, _BLOCK):
        fresh = rng.standard_normal(min(_BLOCK, count - start), dtype=np.float32)
        white = np.concatenate([history, fresh])
        history = white[len(fresh) :]
        yield np.convolve(white, taps, mode="valid")


def mix(talk: Talk, speech: Sequence[np.ndarray], seed: int) -> tuple[np.ndarray, list[Sentence]]:
    """Lay out a talk's sentences and run the noise floor through.

    Args:
        speech: clean sentences without silence at their edges, (T,) each, in whole milliseconds.

    Returns:
        (S,) float32 within [-1, 1], and when each sentence is said.
    """
    starts, clock_ms = [], talk.lead_ms
    for sound, pause_ms in zip(speech, (*talk.pauses_ms, talk.tail_ms), strict=True):
        starts.append(clock_ms)
        clock_ms += len(sound) // _PER_MS + pause_ms
    samples = np.zeros(clock_ms * _PER_MS, dtype=np.float32)
    sentences, energy = [], 0.0
    for index, (utterance, sound, start_ms, peak_db) in enumerate(
        zip(talk.utterances, speech, starts, talk.peaks_db, strict=True), 1
    ):
        level = 10 ** (peak_db / 20) / np.abs(sound).max()
        samples[start_ms * _PER_MS :][: len(sound)] = level * sound
        energy += float(np.square(level * sound.astype(np.float64)).sum())
        sentences.append(
            Sentence(
                talk.id,
                index,
                utterance.id,
                start_ms,
                start_ms + len(sound) // _PER_MS,
                normalize(utterance.src_text),
                normalize(utterance.tgt_text),
            )
        )
    power = energy / sum(map(len, speech))
    deviation = np.float32(np.sqrt(power / 10 ** (talk.snr_db / 10)))
    rng = synthesis.generator_for(seed, "noise floor", talk.id)
    position = 0
    for noise in noise_floor(len(samples), talk.noise_pole, rng):
        samples[position : position + len(noise)] += deviation * noise
        position += len(noise)
    return np.clip(samples, -1, 1, out=samples), sentences


def write_talk(talk: Talk, path: Path, seed: int) -> list[Sentence]:
    """Speak a talk into a FLAC file; returns when each sentence is said."""
    sounds: dict[Utterance, np.ndarray] = {}  # an hour says its sentences several times
    for utterance in talk.utterances:
        if utterance not in sounds:
            sounds[utterance] = speak(utterance, talk.speaker, seed)
    samples, sentences = mix(talk, [sounds[one] for one in talk.utterances], seed)
    with (
        atomic_path(path) as temporary,
        soundfile.SoundFile(
            temporary, "w", synthesis.SAMPLE_RATE, 1, subtype="PCM_16", format="FLAC"
        ) as stream,
    ):
        for start in range(0, len(samples), _BLOCK):
            stream.write(samples[start : start + _BLOCK])
    return sentences
