"""What streams ask for, computed with torch: all rows of a group in one step.

Shapes: B rows, T filterbank frames, S encoder frames.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echostream.models.ctc_output import CTCOutput
from echostream.models.decoders.hypothesis import Hypothesis, Stands
from echostream.models.decoders.mt_state import MTState
from echostream.models.decoders.phone_prosody import Prosody
from echostream.models.echostream_model import ListeningState, SpeechState
from echostream.models.encoder import Features
from echostream.streaming import join_rows, rows_apart
from echostream.translator.stages import Stages, Stopwatch

if TYPE_CHECKING:  # its packages are optional
    from echostream.voice.streaming_voice import Phrase, VoiceState


class ModelStages(Stages):
    """:class:`~echostream.translator.stages.Stages` over an
    :class:`~echostream.models.echostream_model.EchoStreamModel`."""

    @functools.cached_property
    def _weight(self) -> Tensor:
        # Looked up once: it stays the same object wherever the model is moved.
        return next(self.model.parameters())

    @property
    def device(self) -> torch.device:
        return self._weight.device

    def place(self, features: Features) -> Features:
        """Features on the weights' device, in their format."""
        return features.to(self._weight)

    def inference(self) -> AbstractContextManager[Any]:
        """Without gradients."""
        return torch.no_grad()

    def _listen(
        self,
        features: Sequence[Features],
        states: Sequence[ListeningState],
        final: Sequence[bool],
        watch: Stopwatch,
    ) -> list[tuple[Tensor, CTCOutput, ListeningState]]:
        with watch("encoder"):
            state, lengths, joined = join_rows(states), None, features[0]
            plain = [row for row in features if isinstance(row, Tensor)]
            if len(plain) > 1:
                sizes = [row.size(1) for row in plain]
                lengths = None if len(set(sizes)) == 1 else sizes
                joined = pad_sequence([row[0] for row in plain], batch_first=True)
            encoded, state = self.model.encode(joined, state, lengths=lengths, final=final)
        with watch("ctc"):
            outputs, state = self.model.emit(encoded, state, transcribe_only=self.transcribe_only)
        with watch("encoder"):
            frames = self.model.text_frames(encoded)
            return [
                (frames[row : row + 1, :count], output, own)
                for row, (count, output, own) in enumerate(
                    zip(encoded.counts, outputs, rows_apart(state, len(states)), strict=True)
                )
            ]

    def _translate(
        self,
        states: Sequence[MTState],
        limits: Sequence[int],
        final: Sequence[bool],
        tails: Sequence[Tensor | None],
        stands: Sequence[Stands | None],
        guesses: Sequence[Sequence[int]],
        least: Sequence[int],
        watch: Stopwatch,
    ) -> list[Hypothesis]:
        judged = any(stands)
        with watch("mt"):
            found = self.model.translate(
                join_rows(states),
                limits,
                final,
                tail=tails[0],
                beam=self.beam,
                stands=stands if judged else None,
                attention_layer=self.attention_layer if judged else None,
                guesses=guesses,
                least=least,
            )
            # What was read is as it was: no copies of it are kept.
            return [
                replace(one, state=replace(one.state, sources=own.sources))
                for one, own in zip(found, states, strict=True)
            ]

    def _speak(
        self, hidden: Sequence[Tensor], states: Sequence[SpeechState], watch: Stopwatch
    ) -> list[tuple[list[int], SpeechState]]:
        with watch("units"):
            units, state = self.model.speak(hidden, join_rows(states))
            return list(zip(units, rows_apart(state, len(states)), strict=True))

    def _vocode(
        self,
        units: Sequence[list[int]],
        states: Sequence[SpeechState],
        speeds: Sequence[float],
        watch: Stopwatch,
    ) -> list[tuple[np.ndarray, SpeechState]]:
        with watch("vocoder"):
            samples, state = self.model.vocode(
                units, join_rows(states), speeds, dur_prediction=self.dur_prediction
            )
            speech = [one.float().cpu().numpy() for one in samples]
            return list(zip(speech, rows_apart(state, len(states)), strict=True))

    def _pronounce(self, phrases: Sequence[Phrase], watch: Stopwatch) -> list[Prosody]:
        assert self.voice is not None  # else nobody asks
        with watch("units"):
            return self.voice.predict(phrases)

    def _sound(
        self,
        units: Sequence[list[int]],
        states: Sequence[VoiceState],
        final: Sequence[bool],
        watch: Stopwatch,
    ) -> list[tuple[np.ndarray, VoiceState]]:
        assert self.voice is not None  # as above
        with watch("vocoder"):
            spoken = self.voice.sound(units, states, final)
            return [(samples.float().cpu().numpy(), state) for samples, state in spoken]
