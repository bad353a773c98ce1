"""A system's steps computed by onnxruntime, with everything that a stream remembers in numpy.

What :class:`~echostream.models.echostream_model.EchoStreamModel` is to torch, for one row: the same
states by other means, the same functions for the same pipeline.

Shapes: T filterbank frames, S encoder frames, R right-context frames, N text states, F unit frames,
D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from echostream.acceleration.onnx.cache import ArrayCache, causal_mask, newest_mask
from echostream.acceleration.onnx.onnx_manifest import Manifest, VocoderSpec
from echostream.acceleration.onnx.states import (
    ArrayListening,
    ArrayMT,
    ArraySpeech,
    ArrayState,
)
from echostream.config import EmformerConfig, VocoderConfig
from echostream.models.ctc_output import CTCOutput
from echostream.models.decoders.ctc_collapse import label_emissions, label_units
from echostream.models.decoders.hypothesis import Hypothesis
from echostream.models.decoders.pace import check_speed
from echostream.models.decoders.unit_layout import UnitTail, lay_out
from echostream.text import Vocabulary

SUBSAMPLING = 4  # filterbank frames per encoder frame
# Runs a graph: its name and inputs, to outputs in order.
Run = Callable[[str, dict[str, Any]], Sequence[Any]]


@dataclass(frozen=True)
class EncoderTraits:
    """What a pipeline asks of an encoder."""

    joins_rows: bool = False
    utterances_only: bool = False


class ArrayVocoder:
    """What a pipeline asks of a vocoder.

    Args:
        config: sizes.
        spec: what the manifest says of it.
        num_units: units that may be asked for.
        run: runs a graph.
    """

    def __init__(self, config: VocoderConfig, spec: VocoderSpec, num_units: int, run: Run) -> None:
        self.config, self.spec, self.num_units, self._run = config, spec, num_units, run
        self.sample_rate, self.unit_samples = config.sampling_rate, config.unit_samples
        self.predicts_durations = config.dur_predictor_params is not None

    def durations(self, units: Sequence[Sequence[int]]) -> list[list[int]]:
        """Frames that each unit of each sequence lasts, predicted from its neighbours.

        Raises:
            ValueError: this vocoder has no duration predictor.
        """
        if not self.predicts_durations:
            raise ValueError("this vocoder has no duration predictor")
        rows = [np.array([row], dtype=np.int64) for row in units]
        return [self._run("durations", {"units": row})[0].tolist() for row in rows]

    def synthesize(self, frames: np.ndarray) -> np.ndarray:
        """(F,) the unit of every frame to waveform."""
        return self._run("vocoder", {"units": frames[None]})[0]

    def check_units(self, units: Sequence[int]) -> None:
        """Raise ``ValueError`` naming the first unit outside the vocoder's range."""
        for position, unit in enumerate(units):
            if not 0 <= unit < self.num_units:
                raise ValueError(
                    f"unit {unit} at position {position} is outside the vocoder's range "
                    f"0 to {self.num_units - 1}"
                )


class OnnxModel:
    """Steps of one stream.

    Args:
        manifest: what was exported.
        run: runs a graph.
        threads: that it computes with.

    Attributes:
        vocoder: None: the system does not speak.
    """

    encoder = EncoderTraits()

    def __init__(self, manifest: Manifest, run: Run, threads: int = 1) -> None:
        self.manifest, self.config, self._run = manifest, manifest.config, run
        self.threads = threads
        self.source_frames = 1
        self.vocoder: ArrayVocoder | None = None
        if not isinstance(self.config.encoder, EmformerConfig):
            raise ValueError(f"graphs are of Emformers, got a {self.config.encoder.kind} encoder")
        self._sizes = self.config.encoder
        if manifest.vocoder is not None and self.config.vocoder is not None:
            self.vocoder = ArrayVocoder(
                self.config.vocoder, manifest.vocoder, self.config.num_units, run
            )
        encoder = manifest.graphs["encoder"]
        self._encoder_inputs = {spec.name for spec in encoder.inputs}

    def init_state(self, *, chunk_ms: int = 320) -> ArrayState:
        """A fresh stream."""
        return ArrayState(self.init_listening(chunk_ms=chunk_ms), self._init_mt(), self._speech())

    def init_listening(self, *, chunk_ms: int = 320) -> ArrayListening:
        """Before any source; steps bring chunks of any length."""
        tensors: dict[str, np.ndarray] = {
            name: np.zeros([int(size) for size in self.manifest.state[name]], dtype=np.float32)
            for name in ("first", "second", "left", "memory", "conv")
            if name in self.manifest.state
        }
        encoder = self.config.encoder
        return ArrayListening(
            np.zeros((0, encoder.input_dim), dtype=np.float32),
            np.zeros((0, encoder.embed_dim), dtype=np.float32),
            tensors,
            self._cache("asr_past"),
            self._cache("st_past"),
        )

    def _cache(self, name: str) -> ArrayCache | None:
        """An empty cache, or None if the system has nothing to put there."""
        shape = self.manifest.state.get(name)
        if shape is None:
            return None
        _, layers, _, heads, head_dim = shape
        return ArrayCache.empty(int(layers), int(heads), int(head_dim))

    def _needed(self, name: str) -> ArrayCache:
        """An empty cache.

        Raises:
            ValueError: the manifest does not say how large.
        """
        cache = self._cache(name)
        if cache is None:
            raise ValueError(f"the manifest names no state {name!r}")
        return cache

    def _init_mt(self) -> ArrayMT:
        return ArrayMT(self._needed("text_past"), self._needed("text_sources"))

    def _speech(self) -> ArraySpeech:
        return ArraySpeech(
            self._cache("t2u_past"), self._needed("unit_past"), self._needed("unit_sources")
        )

    def next_sentence(self, state: ArrayState) -> ArrayState:
        """Forget what was read, written and spoken; encoder and CTC heads go on, and so does the
        speed of speech."""
        speech = replace(self._speech(), tail=UnitTail(speed=state.speech.tail.speed))
        return replace(state, mt=self._init_mt(), speech=speech)

    def read(self, frames: np.ndarray, state: ArrayState) -> ArrayState:
        """Hand (1, S, D) new source frames to the text decoder."""
        if not frames.shape[1]:
            return state
        (new,) = self._run("source", {"frames": frames})
        sources = state.mt.sources.append(new).trim(self.config.mt.source_context_frames)
        return replace(state, mt=replace(state.mt, sources=sources))

    def keep_source(self, frames: int, state: ArrayState) -> ArrayState:
        """Forget source frames before about the last ``frames`` read."""
        return replace(state, mt=replace(state.mt, sources=state.mt.sources.trim(frames)))

    def listen(
        self, features: np.ndarray, state: ArrayListening, final: bool
    ) -> tuple[np.ndarray, CTCOutput, ArrayListening]:
        """(1, T, bins) new features to (1, S, D) encoder frames, what the heads emit, and the new
        state; ``final`` ends the stream."""
        known = np.concatenate([state.pending, features[0]])
        used = len(known) if final else len(known) - len(known) % SUBSAMPLING
        state = replace(state, pending=known[used:])
        frames = state.ahead
        if used:
            new, state = self._subsample(known[:used], state)
            frames = np.concatenate([frames, new])
        right = self._sizes.right_context_frames
        size = len(frames) if final else max(len(frames) - right, 0)
        state = replace(state, ahead=frames[size:])
        if not size:
            none = np.zeros((1, 0, frames.shape[1]), dtype=np.float32)
            return none, CTCOutput((), (), (), (), None, 0), state
        return self._segment(frames[None, :size], frames[None, size:], state)

    def _subsample(
        self, features: np.ndarray, state: ArrayListening
    ) -> tuple[np.ndarray, ArrayListening]:
        """(T, bins) to (T / 4, D); only at the end of a stream T is no multiple of 4."""
        used = len(features)
        padded = np.pad(features, ((0, -used % SUBSAMPLING), (0, 0)))
        half = len(padded) // 2
        frames, first, second = self._run(
            "subsampler",
            {
                "features": padded[None],
                "valid": (np.arange(half) < (used + 1) // 2).astype(np.float32),
                "first": state.tensors["first"],
                "second": state.tensors["second"],
            },
        )
        return frames[0], replace(
            state, tensors={**state.tensors, "first": first, "second": second}
        )

    def _segment(
        self, segment: np.ndarray, right: np.ndarray, state: ArrayListening
    ) -> tuple[np.ndarray, CTCOutput, ArrayListening]:
        """(1, S, D) and the (1, R, D) behind it through encoder and heads."""
        size, config = segment.shape[1], self.config
        inputs = {
            "segment": segment,
            "mask": self._mask(size, right.shape[1], state),
            **{name: state.tensors[name] for name in state.tensors if name in self._encoder_inputs},
        }
        if self._sizes.right_context_frames:
            inputs["right"] = right
        heads = {}
        for name, head, cache in (
            ("asr", config.asr_ctc, state.asr),
            ("st", config.st_ctc, state.st),
        ):
            if cache is not None:
                heads[name] = head.context_frames
                inputs[f"{name}_past"] = cache.seen()
                inputs[f"{name}_mask"] = causal_mask(cache.stored, size, head.context_frames)
        names = [spec.name for spec in self.manifest.graphs["encoder"].outputs]
        found = dict(zip(names, self._run("encoder", inputs), strict=True))
        tensors = {name: found.get(f"new_{name}", tensor) for name, tensor in state.tensors.items()}
        caches = {
            name: getattr(state, name).append(found[f"{name}_new"]).trim(window)
            for name, window in heads.items()
        }
        asr, asr_frames, asr_collapse = label_emissions(
            found["asr_labels"].tolist(), state.asr_collapse
        )
        st, st_frames, st_collapse = label_emissions(found["st_labels"].tolist(), state.st_collapse)
        output = CTCOutput(
            tuple(asr),
            tuple(st),
            (),
            (),
            None,
            size,
            tuple(asr_frames),
            tuple(st_frames),
            found["asr_logits"],
        )
        return (
            found["frames"],
            output,
            replace(
                state,
                tensors=tensors,
                asr_collapse=asr_collapse,
                st_collapse=st_collapse,
                frames=state.frames + size,
                segments=state.segments + 1,
                **caches,
            ),
        )

    def _mask(self, size: int, right: int, state: ArrayListening) -> np.ndarray:
        """(Q, K) added to attention scores; see
        :meth:`echostream.models.emformer_layer.EmformerStack.layout`."""
        slots, left = self._sizes.memory_size, self._sizes.left_context_frames
        visible = np.concatenate(
            [
                newest_mask(slots, state.segments),
                newest_mask(left, state.frames),
                np.ones(right + size, dtype=bool),
            ]
        )
        visible = np.repeat(visible[None], right + size + bool(slots), axis=0)
        if slots:
            visible[-1, :slots] = False  # a summary must not copy older summaries
        return np.where(visible, np.float32(0), np.float32(-np.inf))

    def translate(self, state: ArrayMT, limit: int, final: bool) -> Hypothesis:
        """Write at most ``limit`` subwords, greedily; see
        :meth:`echostream.models.decoders.transformer_decoder.TransformerMTDecoder.decode_rows`.

        Raises:
            ValueError: no source frame was read.
        """
        if not state.source_length:
            raise ValueError("the text decoder needs at least one source frame before it can step")
        window = self.config.mt.context_tokens
        sources = state.sources.seen(self.config.mt.source_context_frames)
        before, cache, last = state.cache.length, state.cache, state.last_token
        tokens: list[int] = []
        hidden: list[np.ndarray] = []
        finished, score = False, 0.0
        while len(tokens) < limit:
            position = cache.length
            states, log_probs, new = self._run(
                "text_decoder",
                {
                    "token": np.array([[last]], dtype=np.int64),
                    "position": np.array([position], dtype=np.int64),
                    "past": cache.seen(None if window is None else window - 1),
                    "sources": sources,
                },
            )
            cache = cache.append(new).trim(window)
            hidden.append(states)
            # Never padding, and no empty sentence.
            log_probs[[Vocabulary.pad] if position else [Vocabulary.pad, Vocabulary.eos]] = -np.inf
            token = int(log_probs.argmax())
            if token == Vocabulary.eos:
                finished = final
                score += float(log_probs[token]) if final else 0.0
                break
            tokens.append(token)
            score += float(log_probs[token])
            last = token
        # The position of an end-of-sentence that was not accepted is forgotten.
        kept = len(tokens) + finished
        following = replace(state, cache=cache.truncate(before + kept), last_token=last)
        states = np.concatenate(hidden, axis=1)[:, :kept]
        return Hypothesis(tuple(tokens), states, following, finished, score)

    def speak(self, hidden: np.ndarray, state: ArraySpeech) -> tuple[list[int], ArraySpeech]:
        """(1, N, D) new text states to newly emitted units."""
        count, unit = hidden.shape[1], self.config.unit
        ratio, context = unit.upsample_ratio, unit.context_tokens
        window = None if context is None else context * ratio
        inputs = {
            "text": hidden,
            "past": state.units.seen(),
            "mask": causal_mask(state.units.stored, count * ratio, window),
            "sources": state.texts.seen(),
            "source_mask": newest_mask(state.texts.stored + count, context),
        }
        if state.t2u is not None:
            inputs["t2u_past"] = state.t2u.seen()
            inputs["t2u_mask"] = causal_mask(
                state.t2u.stored, count, self.config.t2u.context_tokens
            )
        labels, new, read, *t2u = self._run("unit_decoder", inputs)
        units, collapse = label_units(labels.tolist(), state.collapse, self.config.num_units)
        if state.t2u is not None:
            state = replace(
                state, t2u=state.t2u.append(t2u[0]).trim(self.config.t2u.context_tokens)
            )
        return units, replace(
            state,
            units=state.units.append(new).trim(window),
            texts=state.texts.append(read).trim(context),
            collapse=collapse,
        )

    def vocode(
        self, units: Sequence[int], state: ArraySpeech, speed: float, *, dur_prediction: bool
    ) -> tuple[np.ndarray, ArraySpeech]:
        """New units to (samples,) new waveform: the end of what synthesising the frames that it
        depends on gives.

        Raises:
            ValueError: a unit that the vocoder does not have, or a speed out of range.
        """
        vocoder = self.vocoder
        if vocoder is None:
            raise ValueError("this system has no vocoder, it cannot produce a waveform")
        vocoder.check_units(units)
        check_speed(speed)
        everything = (*state.tail.units, *units)
        predicted = [1] * len(everything)
        if dur_prediction:
            (predicted,) = vocoder.durations([everything])
        unsettled = vocoder.spec.unsettled_units if dur_prediction else 0
        write = lay_out(units, state.tail, speed, predicted, unsettled)
        laid_out = [
            u for u, n in zip(write.units, write.pace.frames, strict=True) for _ in range(n)
        ]
        frames, context = (*state.spoken, *laid_out), vocoder.spec.left_context_frames
        settled = len(state.spoken)
        first = settled + write.growth.first_new
        start = max(first - context, 0)
        waveform = vocoder.synthesize(np.array(frames[start:], dtype=np.int64))
        spoken = frames[: settled + write.growth.newly_settled]
        return waveform[(first - start) * vocoder.unit_samples :], replace(
            state, tail=write.tail, spoken=spoken[max(len(spoken) - context, 0) :]
        )
