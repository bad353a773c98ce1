"""Text spoken as it arrives."""

import numpy as np
import pytest
import torch

from echostream import assets
from echostream.checkpoint import load_model_dir
from echostream.speaking import TextSpeaker
from tests.speaking import say_in_parts

TEXT = "It will snow, later.  \nMy son and your cousin\r\ngot married!\n\n(Last night)"
SENTENCES = ["it will snow later", "my son and your cousin", "got married", "last night"]


@pytest.fixture(scope="module")
def system():
    return load_model_dir(assets.model_dir("echostream"))


@pytest.fixture(scope="module")
def speaker(system):
    return TextSpeaker(system)


@pytest.fixture(scope="module")
def whole(speaker):
    """Everything spoken of the text given at once."""
    return speaker.step(TEXT, speaker.init_state(), final=True)[0]


def told(spoken):
    return [(piece.words, piece.units, piece.sentence, piece.sentence_end) for piece in spoken]


def test_sentences_and_words(whole):
    for number, sentence in enumerate(SENTENCES):
        pieces = [piece for piece in whole if piece.sentence == number]
        assert " ".join(word for piece in pieces for word in piece.words) == sentence
        assert [piece.sentence_end for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert all(len(piece.words) <= 2 for piece in pieces)
        assert sum(len(piece.waveform) for piece in pieces) > 4000
    assert len({piece.sentence for piece in whole}) == len(SENTENCES)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_word_by_word_equals_the_whole_text(speaker, whole, seed):
    spoken, state = say_in_parts(speaker, TEXT, seed)
    assert told(spoken) == told(whole)
    for one, other in zip(spoken, whole, strict=True):
        np.testing.assert_array_equal(one.waveform, other.waveform)
    with pytest.raises(ValueError, match="has ended"):
        speaker.step("more", state)


def test_speech_begins_before_the_text_ends(speaker):
    state, heard = speaker.init_state(), []
    for part in ("my ", "son", " and your", " "):
        spoken, state = speaker.step(part, state)
        heard.append([word for piece in spoken for word in piece.words])
    assert heard == [[], [], ["my", "son"], ["and", "your"]]


def test_an_old_state_is_a_rollback(speaker):
    _, state = speaker.step("my son and ", speaker.init_state())
    first, _ = speaker.step("your cousin ", state)
    speaker.step("the radio ", state)
    again, _ = speaker.step("your cousin ", state)
    assert told(first) == told(again)
    np.testing.assert_array_equal(first[0].waveform, again[0].waveform)


@pytest.mark.parametrize("name", assets.SYSTEMS)
def test_states_predict_the_given_subwords(name):
    system = load_model_dir(assets.model_dir(name))
    speaker = TextSpeaker(system)
    tokens = system.target_vocabulary.encode("the woman sometimes listens to the radio")
    decoder, state, states = system.model.target_unigram_decoder, speaker.states.init_state(), []
    for start in range(0, len(tokens), 3):
        ends = start + 3 >= len(tokens)
        hidden, state = speaker.states.step(tokens[start : start + 3], state, ends=ends)
        states.append(hidden)
    probabilities = decoder.logits(torch.cat(states, dim=1))[0].softmax(dim=-1)
    named = [float(row[token]) for row, token in zip(probabilities, [*tokens, 2], strict=True)]
    assert min(named) >= 0.9
    # The source says the text: the translation head reads it, one frame a subword.
    source = speaker.states.source(torch.tensor(tokens))
    assert system.model.ctc_target_unigram_decoder.proj(source)[0].argmax(-1).tolist() == tokens


def test_how_many_words_at_a_time(system):
    speaker = TextSpeaker(system, words=3)
    spoken, _ = speaker.step(
        "my son and your cousin got\nmarried", speaker.init_state(), final=True
    )
    assert [piece.words for piece in spoken] == [
        ("my", "son", "and"),
        ("your", "cousin", "got"),
        ("married",),
    ]
    with pytest.raises(ValueError, match="words must be at least 1, got 0"):
        TextSpeaker(system, words=0)


def test_what_cannot_be_spelt_is_said_and_left_out(speaker, caplog):
    spoken, _ = speaker.step("\u0436 ... snow\u0436 -- \n", speaker.init_state(), final=True)
    assert [piece.words for piece in spoken] == [("\u0436",), ("snow\u0436",)]
    assert len(spoken[0].waveform) < len(spoken[1].waveform)
    assert caplog.text.count("cannot spell") == 2


def test_silence_for_no_text(speaker):
    for text in ("", "\n \n", "... !\n"):
        assert speaker.step(text, speaker.init_state(), final=True)[0] == []
