"""Streams through a pipeline, and what came out of them."""

from __future__ import annotations

from dataclasses import replace

from echostream.config import EndpointConfig
from echostream.translator import stages

RATE = 16000
CHUNK = 5120  # 320 ms: 7 encoder frames the first time, 8 each further time
LEARNED = EndpointConfig("learned", endpoint_ms=4000)
MOST_TOKENS = 24  # that one decision of a random system writes; it ends no text by itself


def push(pipeline, samples, rate, size):
    """Push in pieces of ``size``; returns all outputs and the state."""
    state, outputs = pipeline.init_state(), []
    starts = range(0, max(len(samples), 1), size)
    for start in starts:
        new, state = pipeline.step(
            samples[start : start + size], rate, state, final=start + size >= len(samples)
        )
        outputs += new
    return outputs, state


def total(outputs):
    """Everything that came out, joined."""
    return {
        "asr": [t for o in outputs for t in o.asr_tokens],
        "st": [t for o in outputs for t in o.st_tokens],
        "mt": [t for o in outputs for t in o.mt_tokens],
        "units": [u for o in outputs for u in o.units],
        "transcript": [w for o in outputs for w in o.transcript],
        "translation": [w for o in outputs for w in o.translation],
        "times": [o.source_ms for o in outputs],
        "writes": [o.write for o in outputs],
        "samples": [len(o.waveform) for o in outputs],
    }


def told(outputs):
    return [
        (
            o.source_ms,
            o.asr_tokens,
            o.st_tokens,
            o.mt_tokens,
            o.units,
            o.transcript,
            o.translation,
            o.transcript_tail,
            o.translation_tail,
            o.sentence,
            o.sentence_end,
            o.final,
            o.backlog_ms,
        )
        for o in outputs
    ]


def step_batch(pipeline, pushes):
    """(samples, rate, state, final) of each stream to its decisions and new state, or exception."""
    found, states, indices = {}, [], []
    for index, (samples, rate, state, final) in enumerate(pushes):
        try:
            states.append(pipeline.accept(samples, rate, state, final=final))
            indices.append(index)
        except ValueError as problem:
            found[index] = problem
    for index, result in pipeline.step_states(states):
        found[indices[index]] = result
    return [found[index] for index in range(len(pushes))]


def group_sizes(monkeypatch):
    """By stage, how many rows were computed together, from now on."""
    sizes = {stage: [] for stage in range(6)}
    run = stages.Stages.run

    def counting(self, stage, rows, watch):
        sizes[stage].append(len(rows))
        return run(self, stage, rows, watch)

    monkeypatch.setattr(stages.Stages, "run", counting)
    return sizes


def by_sentence(outputs):
    """What each sentence brought."""
    found = {}
    for output in outputs:
        found.setdefault(output.sentence, []).append(output)
    return found


def encode(system, samples, chunk=CHUNK):
    """Encoder frames of a stream, as the pipeline's chunks complete them."""
    frontend, model = system.frontend(), system.model
    front, state, parts = frontend.init_state(), model.init_listening(), []
    for start in [*range(0, len(samples) + 1, chunk)]:
        piece = samples[start : start + chunk]
        final = len(piece) < chunk
        features, front = frontend.step(piece, RATE, front, final=final)
        encoded, state = model.encode(features.double(), state, final=final)
        parts.append(encoded.frames)
    return parts


def check_written(model, output, state):
    """Decode once more what a decision wrote, from all that its sentence had read by then; returns
    the state behind it."""
    limit = MOST_TOKENS if output.sentence_end else len(output.mt_tokens)
    (hypothesis,) = model.translate(state.mt, [limit], output.sentence_end)
    (units,), speech = model.speak([hypothesis.hidden], state.speech)
    assert hypothesis.tokens == output.mt_tokens and tuple(units) == output.units
    return replace(state, mt=hypothesis.state, speech=speech)


def five_units_a_subword(self, hidden, state):
    """Stands in for ``EchoStreamModel.speak`` of one stream."""
    spoken = state.t2u.length
    (own,) = hidden
    _, t2u = self.synthesizer_encoder.step(own, state.t2u)
    first, count = 5 * spoken, 5 * own.size(1)
    return [[7 * u % 50 for u in range(first, first + count)]], replace(state, t2u=t2u)
