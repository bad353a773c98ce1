"""Speech recognisers behind one interface, chosen by the value of ``--asr-model``."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from echostream.evaluation.recognizers.words import RecognizedWord

SPECS = "pocketsphinx, moonshine, wav2vec2:PATH, hf:PATH, whisper:SIZE_OR_PATH"
SAMPLE_RATE = 16000


class Recognizer(Protocol):
    """Turns speech into text.

    ``name`` is what score tables print; ``sample_rate`` is what both calls expect, Hz.
    """

    name: str
    sample_rate: int

    def transcribe(self, samples: np.ndarray) -> str:
        """Recognise mono speech (T), float32 in [-1, 1]."""
        ...

    def transcribe_words(self, samples: np.ndarray) -> list[RecognizedWord]:
        """The words of :meth:`transcribe` with their times, in order."""
        ...


def split_spec(spec: str) -> tuple[str, str]:
    """Split ``kind:argument`` and check the kind.

    Raises:
        ValueError: not one of the known forms.
    """
    kind, _, argument = spec.partition(":")
    if kind in ("pocketsphinx", "moonshine") and not argument:
        return kind, ""
    if kind in ("wav2vec2", "hf", "whisper") and argument:
        return kind, argument
    raise ValueError(f"unknown recogniser {spec!r}; --asr-model takes one of: {SPECS}")


def recognizer_name(spec: str) -> str:
    """The name for tables: the kind and the last part of the path."""
    kind, argument = split_spec(spec)
    return f"{kind}:{Path(argument).name}" if argument else kind


def full_spec(spec: str) -> str:
    """The specification with its path in full: what tells two recognisers apart."""
    kind, argument = split_spec(spec)
    if argument and Path(argument).exists():
        argument = str(Path(argument).resolve())
    return f"{kind}:{argument}" if argument else kind


@functools.lru_cache(maxsize=2)
def load_recognizer(spec: str, *, device: str = "auto", language: str = "en") -> Recognizer:
    """Load a recogniser; the last ones stay loaded for the second figure of the same run.

    Raises:
        ValueError: ``spec`` is not one of the known forms, or the model does not fit it.
        FileNotFoundError: the model is not there.
        ImportError: the package behind it is not installed; the message names the extra.
    """
    kind, argument = split_spec(spec)
    if kind == "pocketsphinx":
        return PocketsphinxRecognizer(language)
    if kind == "moonshine":
        return MoonshineRecognizer(language)
    if kind == "whisper":
        return WhisperRecognizer(argument, device, language)
    # torch is needed from here on.
    from echostream.evaluation.recognizers import ctc

    resolved = ctc.resolve_device(device)
    if kind == "wav2vec2":
        from echostream.evaluation.recognizers.fairseq_wav2vec2 import load_fairseq_recognizer

        return load_fairseq_recognizer(Path(argument), resolved)
    return ctc.load_hf_recognizer(argument, resolved)


def resample(samples: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resample (T) as StreamSpeech's toolkit does, with torchaudio's windowed sinc."""
    if source_rate == target_rate:
        return samples
    import torch
    from torchaudio.functional import resample as torchaudio_resample

    tensor = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    return torchaudio_resample(tensor, source_rate, target_rate).numpy()


_SPHINX_FRAME_MS = 10.0


class PocketsphinxRecognizer:
    """CMU Sphinx with the US English model inside its wheel: weak, but there on any machine."""

    name = "pocketsphinx"
    sample_rate = SAMPLE_RATE

    def __init__(self, language: str) -> None:
        if language != "en":
            raise ValueError(
                f"pocketsphinx brings an English model only, got target language {language!r}; "
                "use --asr-model hf:PATH or whisper:SIZE_OR_PATH"
            )
        try:
            import pocketsphinx
        except ImportError as error:
            raise ImportError(
                "the pocketsphinx recogniser needs the package pocketsphinx: "
                "pip install 'echostream[asr]'"
            ) from error
        self._decoder = pocketsphinx.Decoder(samprate=self.sample_rate, loglevel="FATAL")

    def _decode(self, samples: np.ndarray) -> None:
        decoder = self._decoder
        # The front-end remembers earlier audio; without this a transcript would depend on the
        # order of the test set.
        decoder.reinit_feat()
        pcm = np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)
        decoder.start_utt()
        decoder.process_raw(pcm.tobytes(), full_utt=True)
        decoder.end_utt()

    def transcribe(self, samples: np.ndarray) -> str:
        self._decode(samples)
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis is not None else ""

    def transcribe_words(self, samples: np.ndarray) -> list[RecognizedWord]:
        self._decode(samples)
        if self._decoder.hyp() is None:
            return []
        # Silence and noises come between the words; "read(2)" is a second way to say "read".
        return [
            RecognizedWord(
                re.sub(r"\(\d+\)$", "", part.word),
                part.start_frame * _SPHINX_FRAME_MS,
                (part.end_frame + 1) * _SPHINX_FRAME_MS,
            )
            for part in self._decoder.seg()
            if not part.word.startswith(("<", "[", "+"))
        ]


# Apostrophes are letters to the CTC recognisers and stay; everything else they cannot write goes.
_WHISPER_TO_SPACE = str.maketrans(dict.fromkeys("-/–—…", " "))
_WHISPER_TO_NOTHING = str.maketrans(dict.fromkeys(string.punctuation.replace("'", "") + "¡¿«»“”„♪"))


def strip_punctuation(text: str) -> str:
    """Reduce punctuated text to what a letter CTC recogniser could have written."""
    plain = text.replace("’", "'").translate(_WHISPER_TO_SPACE).translate(_WHISPER_TO_NOTHING)
    return " ".join(plain.split())


class WhisperRecognizer:
    """Whisper through faster-whisper, greedy, without context between segments.

    Its punctuation is removed: the references of CVSS-C and the CTC recognisers have none.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, size_or_path: str, device: str, language: str) -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise ImportError(
                "whisper recognisers need the package faster-whisper: "
                "pip install 'echostream[whisper]'"
            ) from error
        self.name = f"whisper:{Path(size_or_path).name}"
        self._language = language
        self._model = WhisperModel(
            size_or_path, device=device, compute_type="float32" if device == "cpu" else "default"
        )

    def _segments(self, samples: np.ndarray, word_timestamps: bool) -> Iterable[Any]:
        segments, _ = self._model.transcribe(
            np.ascontiguousarray(samples, dtype=np.float32),
            language=self._language,
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            word_timestamps=word_timestamps,
        )
        return segments

    def transcribe(self, samples: np.ndarray) -> str:
        segments = self._segments(samples, False)
        return strip_punctuation("".join(segment.text for segment in segments))

    def transcribe_words(self, samples: np.ndarray) -> list[RecognizedWord]:
        return [
            RecognizedWord(text, 1000 * word.start, 1000 * word.end)
            for segment in self._segments(samples, True)
            for word in segment.words
            # One of Whisper's words may be several once its dashes are gone, or none.
            for text in strip_punctuation(word.word).split()
        ]


class MoonshineRecognizer:
    """Moonshine tiny (27 M parameters, English) with the weights inside its wheel.

    An encoder-decoder over the raw waveform, so independent of everything that pocketsphinx rests
    on. Its punctuation is removed, as Whisper's. The wheels lost the weights with version 0.1.
    """

    name = "moonshine"
    sample_rate = SAMPLE_RATE
    min_samples = 1600  # the convolutions in front refuse less

    def __init__(self, language: str) -> None:
        if language != "en":
            raise ValueError(
                f"moonshine brings an English model only, got target language {language!r}; "
                "use --asr-model hf:PATH or whisper:SIZE_OR_PATH"
            )
        try:
            from moonshine_voice import ModelArch
            from moonshine_voice.transcriber import Transcriber
            from moonshine_voice.utils import get_model_path
        except ImportError as error:
            raise ImportError(
                "the moonshine recogniser needs the package moonshine-voice: "
                "pip install 'echostream[moonshine]'"
            ) from error
        folder = Path(get_model_path("tiny-en"))
        if not (folder / "encoder_model.ort").is_file():
            raise FileNotFoundError(
                f"{folder} has no weights: moonshine-voice brings them up to version 0.0.73 only; "
                "pip install 'echostream[moonshine]'"
            )
        # Without the voice detector in front, which cuts utterances in two at their pauses and
        # makes up a word for the shorter part.
        self._transcriber = Transcriber(folder, ModelArch.TINY, options={"vad_threshold": "0"})

    def transcribe(self, samples: np.ndarray) -> str:
        if len(samples) < self.min_samples:
            return ""
        audio = np.asarray(samples, dtype=np.float32).tolist()
        transcript = self._transcriber.transcribe_without_streaming(audio, self.sample_rate)
        return strip_punctuation(" ".join(line.text for line in transcript.lines))

    def transcribe_words(self, samples: np.ndarray) -> list[RecognizedWord]:
        raise ValueError(
            "moonshine does not say when words are spoken, which talks need; "
            "use another --asr-model, for example pocketsphinx"
        )
