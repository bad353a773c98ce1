"""Translations said by a voice: words as they are finished, nothing lost, any cut, many streams."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from echostream.checkpoint import load_model_dir, save_model_dir
from echostream.config import BacklogConfig, EndpointConfig, PolicyConfig, SpeechConfig
from echostream.models.decoders.hypothesis import Hypothesis
from echostream.models.echostream_model import seeded_model
from echostream.streaming import tensors_of
from echostream.synthetic import random_system, synthetic_clip
from echostream.text import WORD_START, Vocabulary
from echostream.translator import stages
from echostream.translator.pipeline import Pipeline
from echostream.translator.speech import Written
from tests.streams import LEARNED, by_sentence, group_sizes, push, step_batch, told, total
from tests.voice.conftest import spell, voice  # noqa: F401

pytest.importorskip("num2words")

from echostream.translator.voiced import VoicedSpeaker  # noqa: E402
from echostream.voice.streaming_voice import StreamingVoice  # noqa: E402

RATE, CHUNK = 16000, 5120
POLICY = PolicyConfig("wait_k", max_len=4)
PLAIN = SpeechConfig(voice="test")
AHEAD = SpeechConfig(voice="test", voice_ahead=3, voice_words=1)
EARLY = SpeechConfig(voice="test", whole_words=True, min_piece_ms=300, fill_chunks=1.0)


@pytest.fixture
def speaking(voice):  # noqa: F811
    return StreamingVoice(replace(voice, phonemizer=spell))


def with_words(system, speaking):
    vocabulary = system.target_vocabulary
    pieces = [WORD_START + piece.strip(WORD_START) for piece in vocabulary.pieces[4:]]
    return replace(system, target_vocabulary=Vocabulary(pieces), voices={"test": speaking})


@pytest.fixture
def talking(double_system, speaking):
    """A system each of whose subwords is a word, and a voice that says them."""
    return with_words(double_system, speaking)


@pytest.fixture(scope="module")
def clip():
    return synthetic_clip(4.1, RATE, seed=3)


def pipeline_of(system, speech=PLAIN, **options):
    return Pipeline(system, policy=POLICY, speech=speech, **options)


def joined(outputs):
    return np.concatenate([o.waveform for o in outputs])


@pytest.mark.parametrize("speech", [PLAIN, AHEAD, EARLY], ids=["plain", "ahead", "early"])
def test_any_way_of_pushing_sounds_alike_and_text_is_as_ever(talking, clip, speech):
    pipeline = pipeline_of(talking, speech)
    assert pipeline.output_rate == 8000
    whole, state = push(pipeline, clip, RATE, len(clip))
    units, waves = total(whole)["units"], joined(whole)
    assert len(units) > 50 and np.abs(waves).max() > 0
    # Each unit became samples: nothing stays behind in the vocoder.
    assert len(waves) == len(units) * 100 and not state.speech.voiced.voice.holds
    plain, _ = push(pipeline_of(talking, SpeechConfig()), clip, RATE, len(clip))
    assert [o.mt_tokens for o in whole] == [o.mt_tokens for o in plain]
    for size in (160, 7777):
        outputs, _ = push(pipeline, clip, RATE, size)
        assert total(outputs) == total(whole)
        np.testing.assert_allclose(joined(outputs), waves, atol=1e-6)


@pytest.mark.parametrize("speech", [PLAIN, AHEAD], ids=["plain", "ahead"])
def test_streams_together_equal_streams_alone(talking, speech, monkeypatch):
    endpoint = EndpointConfig("pause", endpoint_ms=120, min_tokens=2)
    pipeline = pipeline_of(talking, speech, endpoint=endpoint)
    clips = [synthetic_clip(s, RATE, seed=i) for i, s in enumerate((3.0, 2.4, 4.0))]
    alone = [push(pipeline, one, RATE, CHUNK)[0] for one in clips]
    sizes = group_sizes(monkeypatch)
    states, outputs = [pipeline.init_state() for _ in clips], [[] for _ in clips]
    for start in range(0, max(map(len, clips)), CHUNK):
        going = [i for i, one in enumerate(clips) if start < len(one)]
        batch = [
            (clips[i][start : start + CHUNK], RATE, states[i], start + CHUNK >= len(clips[i]))
            for i in going
        ]
        for i, (new, state) in zip(going, step_batch(pipeline, batch), strict=True):
            outputs[i] += new
            states[i] = state
    assert max(sizes[stages.PRONOUNCE]) >= 2 and max(sizes[stages.SOUND]) >= 2
    assert not sizes[stages.SPEAK] and not sizes[stages.VOCODE]
    for one, other in zip(outputs, alone, strict=True):
        assert told(one) == told(other)
        np.testing.assert_allclose(joined(one), joined(other), atol=1e-6)


def test_sentences_are_said_to_their_ends(ending_system, speaking, clip):  # noqa: F811
    system = with_words(ending_system, speaking)
    outputs, _ = push(pipeline_of(system, endpoint=LEARNED), clip, RATE, 3000)
    sentences = [found for found in by_sentence(outputs).values() if any(o.units for o in found)]
    assert len(sentences) > 1
    end = speaking.voice.inventory.indices("$")[0]
    for found in sentences:
        units = total(found)["units"]
        assert found[-1].sentence_end and units[-1] // 3 == end
        assert len(joined(found)) == len(units) * 100


def test_the_state_stays_as_large_as_it_was(talking, clip):
    pipeline = pipeline_of(talking)
    state = pipeline.init_state()
    shapes = [tensor.shape for tensor in tensors_of(state.speech.voiced)]
    limit = talking.voices["test"].voice.prosody.config.context_symbols
    assert len(shapes) > 5
    for start in range(0, len(clip), CHUNK):
        _, state = pipeline.step(clip[start : start + CHUNK], RATE, state)
        assert [tensor.shape for tensor in tensors_of(state.speech.voiced)] == shapes
        assert len(state.speech.voiced.voice.said) <= limit
    assert len(state.speech.voiced.voice.said) == limit


class Script:
    """Stages that answer at once, of a model that writes a given text; a voice says it."""

    dur_prediction = False

    def __init__(self, text, speaking):
        self.vocabulary = Vocabulary(sorted(set(text)))
        self.text = [self.vocabulary.pieces.index(piece) for piece in text]
        self.voice, self.written = speaking, 0
        self.model = SimpleNamespace(vocoder=None)
        self.watch = lambda stage: torch.no_grad()

    def write(self, count):
        new = tuple(self.text[self.written : self.written + count])
        self.written += len(new)
        return Hypothesis(new, torch.zeros(1, len(new), 1), None, False, 0.0)

    def translate(self, state, limit, final, tail, watch):
        following = tuple(self.text[self.written : self.written + limit])
        return Hypothesis(following, torch.zeros(1, len(following), 1), None, False, 0.0)

    def pronounce(self, phrase, watch):
        self.phrases.append(phrase)
        return self.voice.predict([phrase])[0]

    def sound(self, units, state, final, watch):
        ((wave, state),) = self.voice.sound([units], [state], [final])
        self.finals.append(final)
        return wave.numpy(), state

    def run(self, speech, writes, chunk_ms=320):
        """Of each decision: symbols said, those seen ahead, samples, and whether it was final."""
        self.written, told = 0, []
        speaker = VoicedSpeaker(
            self,
            self.vocabulary,
            speech=speech,
            backlog=BacklogConfig(),
            chunk_ms=chunk_ms,
            sample_rate=8000,
        )
        state, symbols = speaker.init_state(), self.voice.voice.inventory.symbols
        for index, count in enumerate(writes):
            self.phrases, self.finals = [], []
            hypothesis = self.write(count) if count else None
            ends = index == len(writes) - 1
            written = Written(hypothesis, None, ends, chunk_ms * (index + 1.0))
            steps = speaker.step(written, self.watch, SimpleNamespace(mt=None), state)
            try:
                answer = next(steps)
                while True:
                    answer = steps.send(answer)
            except StopIteration as end:
                units, waveform, _, state = end.value
            said = ["".join(symbols[s] for s in phrase.symbols) for phrase in self.phrases]
            seen = ["".join(symbols[s] for s in phrase.ahead) for phrase in self.phrases]
            told.append((said, seen, len(waveform) - 100 * len(units), self.finals))
        assert not state.tokens and not state.voiced.waiting and not state.voiced.voice.holds
        return told


TEXT = [f"{WORD_START}one", f"{WORD_START}se", "ven", f"{WORD_START}three", ".", f"{WORD_START}go"]
LONG_CHUNK, SHORT_CHUNK = 60_000, 1


def said_by(speaking, speech, writes, **options):
    return [said for said, *_ in Script(TEXT, speaking).run(speech, writes, **options)]


def test_words_are_said_when_they_are_finished(speaking):
    # The next word tells that one is finished; two are said at a time, and a sentence's rest.
    assert said_by(speaking, PLAIN, [1, 1, 1, 1, 1, 1, 0]) == [
        *([], [], [], ["^one seven"], [], [" three.$"]),
        ["^go.$"],
    ]
    assert said_by(speaking, replace(PLAIN, voice_words=1), [2, 2, 0]) == [
        ["^one"],
        [" seven"],
        [" three.$"],
    ]
    # The text decoder, asked for the next subword, tells it earlier.
    one = replace(PLAIN, voice_words=1, whole_words=True)
    assert said_by(speaking, one, [1, 1, 1, 3]) == [["^one"], [], [" seven"], [" three.$", "^go.$"]]
    assert said_by(speaking, PLAIN, [6]) == [["^one seven three.$", "^go.$"]]
    assert said_by(speaking, PLAIN, [0, 0]) == [[], []]


def test_guessed_words_are_seen_and_not_said(speaking):
    speech = replace(PLAIN, voice_words=1, voice_ahead=3)
    told = Script(TEXT, speaking).run(speech, [1, 2, 3])
    assert [said for said, *_ in told] == [["^one"], [" seven"], [" three.$", "^go.$"]]
    # Of three guessed subwords, "three" may go on; a full stop is its own word's.
    assert [seen for _, seen, *_ in told] == [[" seven"], [" three."], ["", ""]]


def test_what_is_held_back_comes_out_before_a_silence(speaking):
    words = replace(PLAIN, voice_words=1, whole_words=True)
    held = round(8 * speaking.held_ms)
    # Long until the next decision: everything comes out at once.
    told = Script(TEXT, speaking).run(words, [1, 0, 5], chunk_ms=LONG_CHUNK)
    assert [(missing, finals) for _, _, missing, finals in told] == [
        (0, [True]),
        (0, []),
        (0, [True, True]),
    ]
    # Speech goes on being played: the last of a phrase waits for the next one, until it must not.
    told = Script(TEXT, speaking).run(words, [1, *[0] * 400, 5], chunk_ms=SHORT_CHUNK)
    assert told[0][2:] == (-held, [False])
    later = [(missing, finals) for _, _, missing, finals in told[1:-1] if finals]
    assert later == [(held, [True])]


def test_a_system_without_a_unit_decoder_speaks_by_its_own_voice(tmp_path, voice, clip):  # noqa: F811
    single = random_system()
    config = replace(
        single.config,
        num_units=0,
        vocoder=None,
        speech=SpeechConfig(voice="own"),
        policy=POLICY,
    )
    model = seeded_model(config, 1)
    assert not [name for name, _ in model.named_parameters() if name.startswith("decoder.")]
    own = StreamingVoice(replace(voice, phonemizer=spell))
    system = replace(single, config=config, model=model, voices={"own": own})
    save_model_dir(tmp_path / "m", system)
    assert sorted(path.name for path in (tmp_path / "m" / "voice").iterdir()) == [
        "inventory.json",
        "prosody.safetensors",
        "vocoder.safetensors",
    ]
    save_model_dir(tmp_path / "m", system)  # what is there is a model directory and is replaced
    again = load_model_dir(tmp_path / "m")
    assert again.config.speaks and again.folder == tmp_path / "m"
    again.voices["own"] = own
    outputs, _ = push(Pipeline(again), clip, RATE, CHUNK)
    assert len(joined(outputs)) == 100 * len(total(outputs)["units"]) > 0
    text, _ = push(Pipeline(again, task="s2tt"), clip, RATE, CHUNK)
    assert total(text)["mt"] == total(outputs)["mt"] and not total(text)["units"]
    with pytest.raises(ValueError, match="a vocoder or a voice"):
        Pipeline(again, speech=SpeechConfig())
    with pytest.raises(ValueError, match="no unit decoder"):
        model.speak([torch.zeros(1, 1, 32)], model.init_speech())
    with pytest.raises(ValueError, match="has no vocoder"):
        replace(config, vocoder=single.config.vocoder)


def test_voices_that_are_not_there_are_named(double_system, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such voice: .*gone"):
        Pipeline(double_system, speech=SpeechConfig(voice=str(tmp_path / "gone")))
    with pytest.raises(ValueError, match="not read from a directory"):
        Pipeline(double_system, speech=SpeechConfig(voice="own"))
    with pytest.raises(ValueError, match="voice must be null or name a voice"):
        SpeechConfig(voice="")
    from echostream.voice import phonemes

    def missing(self):
        raise RuntimeError("espeak not installed on your system")

    monkeypatch.setattr(phonemes.Phonemizer, "__init__", missing)
    with pytest.raises(ValueError, match="apt-get install espeak-ng"):
        Pipeline(double_system, speech=SpeechConfig(voice="shipped"))
