"""Speech from text: espeak-ng for the Spanish source, Flite for the English target.

Both synthesisers are deterministic; what varies on top (level, noise, silence at the edges) is
drawn from the utterance's id, so any utterance can be made alone and comes out the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
import soxr

from echostream.files import atomic_path
from echostream.training.corpus.speakers import Speaker

SAMPLE_RATE = 16000
TARGET_VOICE = "slt"
SOURCE_PEAK_DB = (-14.0, -2.0)
NOISE_SNR_DB = (18.0, 40.0)
EDGE_SILENCE_MS = (60, 300)
_TIMEOUT_S = 120


def require_synthesizers(*names: str) -> None:
    """Raise ``RuntimeError`` naming the Debian packages that are missing, of both by default."""
    missing = [name for name in names or ("espeak-ng", "flite") if shutil.which(name) is None]
    if missing:
        raise RuntimeError(
            f"speech synthesis needs {' and '.join(missing)}, not found on PATH; on Debian and "
            f"Ubuntu: apt-get install {' '.join(missing)}"
        )


def require_voices(speakers: Iterable[Speaker]) -> None:
    """Raise ``RuntimeError`` naming a voice or variant that this espeak-ng lacks.

    espeak-ng itself says nothing and speaks in its default voice.
    """
    listings = [
        subprocess.run(
            ["espeak-ng", f"--voices={kind}"], capture_output=True, text=True, check=True
        ).stdout
        for kind in ("es", "variant")
    ]
    languages = {line.split()[1] for line in listings[0].splitlines()[1:]}
    variants = {word[3:] for word in listings[1].split() if word.startswith("!v/")}
    for speaker in speakers:
        language, _, variant = speaker.voice.partition("+")
        if language not in languages or (variant and variant not in variants):
            raise RuntimeError(
                f"this espeak-ng has no voice {speaker.voice!r} (speaker {speaker.id}); "
                "echo-mini was made with espeak-ng 1.51"
            )


def _run(command: list[str], what: str, output: Path) -> np.ndarray:
    """Run a synthesiser that writes ``output``; its sound as 16 kHz float32."""
    try:
        result = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError:
        require_synthesizers()
        raise
    message = result.stderr.decode("utf-8", "replace").strip()
    if result.returncode or not output.is_file() or not output.stat().st_size:
        raise RuntimeError(f"{command[0]} failed on {what}: {message or result.returncode}")
    samples, rate = soundfile.read(output, dtype="float32")
    if not len(samples) or not np.abs(samples).max() > 0:
        raise RuntimeError(f"{command[0]} produced no sound for {what}: {message}")
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)


def espeak(text: str, speaker: Speaker) -> np.ndarray:
    """Clean Spanish speech, (T,) at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "speech.wav"
        command = ["espeak-ng", "-v", speaker.voice, "-p", str(speaker.pitch)]
        command += ["-s", str(speaker.rate_wpm), "-w", str(output), "--", text]
        return _run(command, repr(text), output)


def flite(text: str) -> np.ndarray:
    """English speech in Flite's ``slt`` voice, (T,) at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "speech.wav"
        command = ["flite", "-voice", TARGET_VOICE, "-t", text, "-o", str(output)]
        return _run(command, repr(text), output)


def generator_for(*key: object) -> np.random.Generator:
    """A random generator that depends on ``key`` alone."""
    text = ":".join(map(str, key)).encode("utf-8")
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:8], "big"))


def add_recording_conditions(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put speech between silences, set its level and add coloured noise.

    Args:
        speech: (T,) clean speech.

    Returns:
        float32 within [-1, 1].
    """
    before, after = (int(rng.uniform(*EDGE_SILENCE_MS)) * SAMPLE_RATE // 1000 for _ in "ab")
    padded = np.pad(speech.astype(np.float64), (before, after))
    level = 10 ** (rng.uniform(*SOURCE_PEAK_DB) / 20)
    padded *= level / np.abs(padded).max()
    noise = rng.standard_normal(len(padded))
    # Between white noise and the low rumble of rooms: first-order low-pass of random strength.
    pole = rng.uniform(0.0, 0.95)
    spectrum = np.fft.rfft(noise)
    angle = np.linspace(0, np.pi, len(spectrum))
    noise = np.fft.irfft(spectrum / np.abs(1 - pole * np.exp(-1j * angle)), len(padded))
    power = np.mean(padded[before : before + len(speech)] ** 2)
    snr = rng.uniform(*NOISE_SNR_DB)
    noise *= np.sqrt(power / 10 ** (snr / 10) / np.mean(noise**2))
    return np.clip(padded + noise, -1, 1).astype(np.float32)


def save_flac(samples: np.ndarray, path: Path) -> None:
    """Write 16-bit FLAC at 16 kHz, atomically."""
    with atomic_path(path) as temporary:
        soundfile.write(temporary, samples, SAMPLE_RATE, subtype="PCM_16")


def stray(speaker: Speaker, rng: np.random.Generator) -> Speaker:
    """The speaker with pitch and rate a little off, as nobody speaks alike twice."""
    pitch = int(np.clip(speaker.pitch + rng.integers(-6, 7), 0, 99))
    rate = speaker.rate_wpm + int(rng.integers(-10, 11))
    return dataclasses.replace(speaker, pitch=pitch, rate_wpm=rate)


def synthesize_source(identifier: str, text: str, speaker: Speaker, seed: int) -> np.ndarray:
    """One source utterance as the corpus has it."""
    rng = generator_for(seed, "source", identifier)
    return add_recording_conditions(espeak(text, stray(speaker, rng)), rng)
