"""Words spoken whole and pieces drawn out, while the text is what it was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from echostream.config import BacklogConfig, EndpointConfig, PolicyConfig, SpeechConfig
from echostream.models.decoders.hypothesis import Hypothesis
from echostream.models.echostream_model import EchoStreamModel, EchoStreamState, seeded_model
from echostream.synthetic import synthetic_clip
from echostream.translator.pipeline import Pipeline
from echostream.translator.speech import MOST_HELD, Speaker, SpeakerState, Written
from tests.streams import five_units_a_subword, push, total

RATE = 16000
WHOLE = SpeechConfig(whole_words=True)
DRAWN = SpeechConfig(fill_chunks=2.0, min_speed=0.6)
BOTH = SpeechConfig(whole_words=True, fill_chunks=1.0, min_speed=0.6)
LONG = SpeechConfig(min_piece_ms=500)
ALL = replace(BOTH, min_piece_ms=500)
UNIT_SAMPLES, CHUNK_MS = 320, 320
SPOKEN = object()  # what the script remembers of speech: nothing


@dataclass
class Script:
    """Stages that answer at once, of a model that writes a given text: token ``t`` has the
    state ``[t]``, sounds as the unit ``t``, one frame long, and the text decoder always knows what
    comes next."""

    tokens: list[int]
    predicted: int = 1
    dur_prediction = True

    def __post_init__(self):
        self.written = 0
        self.said: list[list[int]] = []
        self.speeds: list[float] = []
        vocoder = SimpleNamespace(
            sample_rate=RATE,
            unit_samples=UNIT_SAMPLES,
            durations=lambda rows: [[self.predicted] * len(row) for row in rows],
        )
        self.model = SimpleNamespace(vocoder=vocoder)

    def write(self, count):
        new = self.tokens[self.written : self.written + count]
        self.written += len(new)
        hidden = torch.tensor(new, dtype=torch.float64).reshape(1, -1, 1)
        return Hypothesis(tuple(new), hidden, None, False, 0.0)

    def translate(self, state, limit, final, tail, watch):
        assert limit == 1 and not final
        following = tuple(self.tokens[self.written : self.written + 1])
        return Hypothesis(following, torch.zeros(1, len(following), 1), None, False, 0.0)

    def speak(self, hidden, state, watch):
        self.said.append([int(t) for t in hidden.flatten()])
        return self.said[-1], state

    def vocode(self, units, state, speed, watch):
        self.speeds.append(speed)
        return torch.zeros(round(UNIT_SAMPLES * self.predicted * len(units) / speed)), state


def starts_word(token):
    return token % 10 == 0


def speaker_of(model, speech, backlog=None):
    return Speaker(
        model,
        starts_word,
        speech=speech,
        backlog=backlog or BacklogConfig(),
        chunk_ms=CHUNK_MS,
        sample_rate=RATE,
    )


def step(speaker, written, state):
    """What a speaker says of what was written, with the script's answers."""
    steps = speaker.step(written, None, EchoStreamState(None, None, SPOKEN), state)
    try:
        answer = next(steps)
        while True:
            answer = steps.send(answer)
    except StopIteration as end:
        return end.value


def run(model, speech, writes):
    """One sentence in decisions of so many subwords each (0: READ); what each one said."""
    speaker, state, said = speaker_of(model, speech), SpeakerState(), []
    for index, count in enumerate(writes):
        ends = index == len(writes) - 1
        hypothesis = model.write(count) if count else None
        written = Written(hypothesis, None, ends, CHUNK_MS * (index + 1.0))
        units, waveform, _, state = step(speaker, written, state)
        assert len(waveform) > 0 or not units
        said.append(units)
    assert state.states is None and not state.tokens
    return said


def test_a_word_is_spoken_when_it_is_finished():
    tokens = [10, 11, 12, 20, 30, 31, 40]
    assert run(Script(tokens), SpeechConfig(), [2, 1, 3, 1]) == [[10, 11], [12], [20, 30, 31], [40]]
    # 20 comes next after 12, and 40 after 31, so these words are finished.
    assert run(Script(tokens), WHOLE, [2, 1, 3, 1]) == [[], [10, 11, 12], [20, 30, 31], [40]]
    assert run(Script(tokens), WHOLE, [1, 4, 2]) == [[], [10, 11, 12, 20], [30, 31, 40]]
    # The last word may end with the source, whatever the decoder says next.
    assert run(Script([*tokens, 41]), WHOLE, [6, 1]) == [[10, 11, 12, 20, 30, 31], [40]]


def test_a_finished_word_does_not_wait_for_the_next_write():
    model = Script([10, 11, 12, 20])
    speaker, state = speaker_of(model, WHOLE), SpeakerState()
    units, _, _, state = step(speaker, Written(model.write(2), None, False, 320.0), state)
    assert units == [] and state.tokens == (10, 11)
    units, _, _, state = step(speaker, Written(None, None, False, 640.0), state)
    assert units == [] and state.tokens == (10, 11)
    model.tokens = [10, 11, 20]  # more source, and the decoder has changed its mind
    units, _, _, state = step(speaker, Written(None, None, False, 960.0), state)
    assert units == [10, 11] and state == SpeakerState(backlog=state.backlog)


def test_endless_words_are_spoken_in_parts():
    said = run(Script([10] + [11] * 60), WHOLE, [4] * 16)
    lengths = [len(units) for units in said if units]
    assert sum(lengths) == 61 and max(lengths) <= MOST_HELD + 4 and len(lengths) >= 3


@given(
    st.lists(st.sampled_from([10, 11, 12, 20]), max_size=30),
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
)
def test_everything_is_said_once_in_order_and_never_before_it_is_written(tokens, writes):
    model = Script(tokens)
    said = run(model, WHOLE, [*writes, len(tokens) + 1])
    assert sum(said, []) == tokens
    spoken = written = 0
    for count, units in zip([*writes, len(tokens) + 1], said, strict=True):
        written = min(written + count, len(tokens))
        spoken += len(units)
        assert spoken <= written
        follows = tokens[spoken : spoken + 1]
        assert not units or not follows or starts_word(follows[0])


def test_pieces_are_drawn_out_to_the_next_decision_where_silence_would_follow():
    def speeds(config, waiting_units=0, ends=False, count=8, backlog=None):
        model = Script([10] * 100)
        speaker, state = speaker_of(model, config, backlog), SpeakerState()
        if waiting_units:
            first = Written(model.write(waiting_units), None, True, 320.0)
            *_, state = step(speaker, first, state)
        step(speaker, Written(model.write(count), None, ends, 320.0), state)
        return model.speeds[-1]

    fill = SpeechConfig(fill_chunks=1.0, min_speed=0.6)
    assert speeds(SpeechConfig()) == 1.0
    # 8 frames of 20 ms are half a chunk, 14 are 280 ms of 320.
    assert speeds(fill) == 0.6
    assert speeds(fill, count=14) == pytest.approx(280 / 320)
    assert speeds(fill, count=20) == 1.0
    assert speeds(SpeechConfig(fill_chunks=2.0, min_speed=0.5), count=20) == pytest.approx(
        400 / 640
    )
    # What waits to be played fills time as well; nothing follows the end; haste comes first.
    assert speeds(fill, waiting_units=6, count=8) == pytest.approx(160 / 200)
    assert speeds(fill, waiting_units=20) == 1.0
    assert speeds(fill, ends=True) == 1.0
    assert (
        speeds(replace(fill, fill_chunks=100.0), waiting_units=40, backlog=BacklogConfig(100)) > 1
    )


def test_short_pieces_wait_unless_speech_is_played_or_the_sentence_ends():
    model = Script([10] * 100)
    speaker, state = speaker_of(model, SpeechConfig(min_piece_ms=300)), SpeakerState()

    def decide(chunk, count, ends=False):
        """Frames of 20 ms that come out when so many are written."""
        nonlocal state
        hypothesis = model.write(count) if count else None
        written = Written(hypothesis, None, ends, float(CHUNK_MS * chunk))
        units, waveform, _, state = step(speaker, written, state)
        assert len(units) == count
        return len(waveform) / UNIT_SAMPLES

    assert decide(1, 10) == 0 and decide(2, 0) == 0  # 200 ms are too short
    assert decide(3, 10) == 20  # 400 ms: played until 1360 ms
    assert decide(4, 10) == 10  # at 1280 ms that is still playing; now until 1560 ms
    assert decide(5, 5) == 0  # silence
    assert decide(6, 0, ends=True) == 5
    assert state.samples is None
    assert decide(7, 2, ends=True) == 2


@pytest.fixture(scope="module")
def clip():
    return synthetic_clip(4.1, RATE, seed=3)


@pytest.fixture
def talking(double_system, monkeypatch):
    """A system that says five units with every subword, of a few frames each."""
    model = seeded_model(double_system.config, 1).double()
    with torch.no_grad():
        model.vocoder.generator.dur_predictor.proj.bias.fill_(1.2)

    monkeypatch.setattr(EchoStreamModel, "speak", five_units_a_subword)
    return replace(double_system, model=model)


def pipeline_of(system, speech=None, **options):
    policy = PolicyConfig("wait_k", max_len=3)
    return Pipeline(system, policy=policy, speech=speech, **options)


@pytest.mark.parametrize("speech", [WHOLE, DRAWN, BOTH, LONG, ALL])
def test_text_is_as_ever_and_no_text_state_stays_unspoken(talking, clip, speech, monkeypatch):
    spoken: list[int] = []
    original = EchoStreamModel.speak

    def speak(self, hidden, state):
        spoken.append(hidden[0].size(1))
        return original(self, hidden, state)

    monkeypatch.setattr(EchoStreamModel, "speak", speak)
    plain, _ = push(pipeline_of(talking), clip, RATE, 8000)
    states, calls = sum(spoken), len(spoken)
    spoken.clear()
    outputs, end = push(pipeline_of(talking, speech), clip, RATE, 8000)
    assert sum(spoken) == states and end.speech.states is None and end.speech.samples is None
    assert (len(spoken) < calls) == speech.whole_words
    for name in ("asr", "st", "mt", "transcript", "translation", "times"):
        assert total(outputs)[name] == total(plain)[name]
    assert [o.mt_tokens for o in outputs] == [o.mt_tokens for o in plain]
    samples, before = sum(total(outputs)["samples"]), sum(total(plain)["samples"])
    if speech == LONG:
        assert samples == before
        pieces = [sum(len(o.waveform) > 0 for o in run) for run in (outputs, plain)]
        assert 1 <= pieces[0] < pieces[1]
    elif not speech.whole_words:
        assert total(outputs)["units"] == total(plain)["units"]
        assert 1.05 * before < samples <= before / speech.min_speed + UNIT_SAMPLES


@pytest.mark.parametrize("speech", [WHOLE, DRAWN, BOTH, LONG, ALL])
def test_any_way_of_pushing_speaks_alike(talking, clip, speech):
    one, _ = push(pipeline_of(talking, speech), clip, RATE, 3777)
    other, _ = push(pipeline_of(talking, speech), clip, RATE, len(clip))
    assert total(one) == total(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.waveform, b.waveform, atol=1e-9)


def test_off_is_the_default_and_states_are_not_touched(talking, clip):
    plain, _ = push(pipeline_of(talking), clip, RATE, len(clip))
    off, _ = push(pipeline_of(talking, SpeechConfig(False, 0.0, 0.5)), clip, RATE, len(clip))
    for a, b in zip(plain, off, strict=True):
        assert np.array_equal(a.waveform, b.waveform) and a.units == b.units
    pipeline = pipeline_of(talking, BOTH)
    _, old = pipeline.step(clip[:40000], RATE, pipeline.init_state())
    first, _ = pipeline.step(clip[40000:], RATE, old, final=True)
    again, _ = pipeline.step(clip[40000:], RATE, old, final=True)
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.waveform, b.waveform)


@pytest.mark.parametrize("speech", [WHOLE, BOTH])
def test_sentences_end_spoken_and_begin_with_nothing_held(ending_system, clip, speech):  # noqa: F811
    pipeline = pipeline_of(
        ending_system, speech, endpoint=EndpointConfig("learned", endpoint_ms=4000)
    )
    ended = held = 0
    steps = pipeline.iterate(clip, RATE, pipeline.init_state(), final=True)
    for output, state in steps:
        if output is not None and not output.sentence_end:
            held += bool(state.speech.tokens)
        if output is not None and output.sentence_end:
            ended += 1
    assert state.speech.states is None and not state.speech.tokens
    assert ended > 1 and held
    plain = pipeline_of(ending_system, endpoint=EndpointConfig("learned", endpoint_ms=4000))
    reference, _ = push(plain, clip, RATE, len(clip))
    outputs, _ = push(pipeline, clip, RATE, len(clip))
    assert [o.mt_tokens for o in outputs] == [o.mt_tokens for o in reference]
    said = {o.sentence for o in reference if o.units}
    assert {o.sentence for o in outputs if o.units} == said


@pytest.mark.parametrize(
    "values, message",
    [
        ({"fill_chunks": -1.0}, "fill_chunks must be >= 0"),
        ({"min_speed": 0.4}, "between 0.5 and 1"),
        ({"min_piece_ms": -1}, "min_piece_ms must be >= 0"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SpeechConfig(**values)
