"""Text spoken as it arrives: pieces, sentences, any cut of the text, prosody, the folder."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from echostream import cli
from echostream.models.decoders.phone_prosody import PhoneProsody, PhoneProsodyConfig
from echostream.voice.folder import Voice, load_prosody, read_inventory
from echostream.voice.phone_units import PhoneInventory, symbol_pitch
from echostream.voice.speaker import VoiceSpeaker
from echostream.voice.streaming_voice import StreamingVoice
from tests.speaking import say_in_parts
from tests.voice.conftest import spell

TEXT = "It will snow, later.  \nMr. Son and 2 cousins\r\ngot married!\n\n-- \n(Last night)"
SENTENCES = ["It will snow, later.", "Mr. Son and 2 cousins", "got married!", "(Last night)"]


def make(voice, **options):
    return VoiceSpeaker(StreamingVoice(replace(voice, phonemizer=spell)), **options)


def told(spoken):
    return [(piece.words, piece.units, piece.sentence, piece.sentence_end) for piece in spoken]


@pytest.mark.parametrize("words", [0, 1, 2])
def test_sentences_and_words(voice, words):
    speaker = make(voice, words=words)
    spoken, state = speaker.step(TEXT, speaker.init_state(), final=True)
    assert state.finished and not state.waiting
    for number, sentence in enumerate(SENTENCES):
        pieces = [piece for piece in spoken if piece.sentence == number]
        assert " ".join(word for piece in pieces for word in piece.words) == sentence
        assert [piece.sentence_end for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        if words:
            assert all(len(piece.words) <= words for piece in pieces)
        else:
            assert len(pieces) == 1
        frames = sum(len(piece.units) for piece in pieces)
        samples = sum(len(piece.waveform) for piece in pieces)
        assert samples == frames * voice.vocoder.config.unit_samples > 0
    assert len({piece.sentence for piece in spoken}) == len(SENTENCES)


@pytest.mark.parametrize("words", [0, 2])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_word_by_word_equals_the_whole_text(voice, words, seed):
    speaker = make(voice, words=words)
    whole, _ = speaker.step(TEXT, speaker.init_state(), final=True)
    spoken, state = say_in_parts(speaker, TEXT, seed)
    assert told(spoken) == told(whole)
    for one, other in zip(spoken, whole, strict=True):
        np.testing.assert_allclose(one.waveform, other.waveform, atol=1e-6)
    with pytest.raises(ValueError, match="has ended"):
        speaker.step("more", state)


def test_numbers_are_written_out_before_they_are_said(voice):
    speaker = make(voice)
    assert speaker.voice.phonemes("2 cousins") == "two cousins"


def test_each_sentence_is_said_as_if_alone(voice):
    speaker = make(voice, words=2)
    both, _ = speaker.step("one two three. four five", speaker.init_state(), final=True)
    alone, _ = speaker.step("four five", speaker.init_state(), final=True)
    assert [piece.units for piece in both if piece.sentence] == [piece.units for piece in alone]


def test_speed_shortens_what_is_said(voice):
    slow, fast = (
        make(voice, speed=speed).step("a longer sentence", make(voice).init_state(), final=True)[0]
        for speed in (0.5, 1.0)
    )
    ratio = len(slow[0].units) / len(fast[0].units)
    assert ratio == pytest.approx(2, rel=0.1)
    with pytest.raises(ValueError, match="speed must lie"):
        make(voice, speed=0.1)
    with pytest.raises(ValueError, match="words must not be negative"):
        make(voice, words=-1)


def test_prosody_sees_its_piece_and_what_was_said_and_nothing_more(voice):
    prosody = voice.prosody
    before, piece = list(range(5, 25)), [7, 8, 9, 10]
    told = prosody.predict(before, piece)
    assert len(told.frames) == len(told.log_f0) == 4 and min(told.frames) >= 1
    assert prosody.predict(before[-12:], piece) == told  # its context
    assert prosody.predict(before[-11:], piece) != told
    longer = prosody.predict(before, [*piece, 11])
    assert longer.frames[:4] != told.frames
    # What is ahead is seen as if it were said, and not told.
    ((seen),) = prosody.predict_rows([(before, piece, [11])])
    assert (seen.frames, seen.log_f0) == (longer.frames[:4], longer.log_f0[:4])
    assert prosody.predict(before, []).frames == prosody.predict([], []).log_f0 == ()


def test_pieces_of_many_streams_are_predicted_together(voice):
    rows = [
        ([5, 6, 7], [8, 9], []),
        ([], [], []),
        ([], [7], [8]),
        (list(range(5, 25)), [3] * 9, []),
    ]
    alone = [voice.prosody.predict_rows([row])[0] for row in rows]
    for one, other in zip(voice.prosody.predict_rows(rows), alone, strict=True):
        np.testing.assert_allclose(one.frames, other.frames, atol=1e-9)
        np.testing.assert_allclose(one.log_f0, other.log_f0, atol=1e-9)


def test_rows_of_a_batch_are_padded_without_a_trace(voice):
    long, short = torch.arange(10)[None], torch.arange(6)[None]
    table = torch.full((2, 10), -1)
    table[0], table[1, :6] = long, short
    together = voice.prosody(table)
    for row, alone in ((0, voice.prosody(long)), (1, voice.prosody(short))):
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[row, : other.size(1)], other[0], atol=1e-9, rtol=0)


def test_folder_gives_back_the_voice(tmp_path, voice):
    voice.save(tmp_path / "v")
    again = Voice.load(tmp_path / "v")
    assert again.inventory == voice.inventory
    spoken = [
        make(v).step("hello there", make(v).init_state(), final=True)[0][0] for v in (voice, again)
    ]
    difference = len(spoken[0].units) - len(spoken[1].units)  # half precision may round otherwise
    assert abs(difference) <= 2


def test_folders_that_are_no_voice_are_refused(tmp_path, voice):
    with pytest.raises(FileNotFoundError, match="no such voice"):
        Voice.load(tmp_path / "gone")
    voice.save(tmp_path)
    inventory = json.loads((tmp_path / "inventory.json").read_text(encoding="utf-8"))
    for broken, message in (
        ({**inventory, "symbols": inventory["symbols"][:-1]}, "32 symbols, the prosody network 33"),
        ({**inventory, "pitch_edges": [100.0]}, "in 2 pitch classes, the vocoder 99 in 3"),
        ({**inventory, "pitch_edges": [3.0, 2.0]}, "must be positive and rise"),
        ({"symbols": "^$"}, "not an inventory"),
    ):
        (tmp_path / "inventory.json").write_text(json.dumps(broken), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            Voice.load(tmp_path)
    (tmp_path / "prosody.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="not a prosody file"):
        load_prosody(tmp_path / "prosody.safetensors")
    with pytest.raises(FileNotFoundError, match="no such inventory"):
        read_inventory(tmp_path / "none.json")


def test_parts_of_different_frames_do_not_go_together(voice):
    config = replace(voice.prosody.config, frame_ms=20.0)
    with pytest.raises(ValueError, match=r"units last 12.5 ms, .* counts 20 ms"):
        replace(voice, prosody=PhoneProsody(config))


def test_inventory_names_what_it_has():
    inventory = PhoneInventory(("^", "$", "a", "b"), (100.0, 200.0))
    assert inventory.num_units == 12 and inventory.pitch_classes == 3
    assert inventory.units([0, 2, 3], np.log([90, 150, 250]).tolist()) == [0, 7, 11]
    assert inventory.known("abcx ba") == "abba"
    with pytest.raises(ValueError, match="no such symbol: 'c' at position 1"):
        inventory.indices("ac")
    for symbols in (("a", "b"), ("^", "$", "^"), ("^", "$", "ab")):
        with pytest.raises(ValueError, match="symbols must"):
            PhoneInventory(symbols, ())
    assert PhoneProsodyConfig().frame_ms == 12.5


def test_pitch_of_symbols_is_the_mean_of_their_voice():
    f0 = [0, 0, 100, 100, 0, 200, 200, 0]
    pitches, voiced = symbol_pitch(f0, [2, 2, 1, 3])
    middle = np.log(100) + np.log(2) / 2  # straight across the hole
    np.testing.assert_allclose(pitches, [np.log(100), np.log(100), middle, np.log(200)])
    assert voiced.tolist() == [0, 2, 0, 2]
    with pytest.raises(ValueError, match="last 7 frames, but there is pitch for 8"):
        symbol_pitch(f0, [7])


def test_speak_command_uses_a_voice(tmp_path, voice, monkeypatch, capsys):
    """Text from standard input to a file; the phonemizer is made up."""
    voice.save(tmp_path / "voice")
    monkeypatch.setattr("echostream.voice.phonemes.Phonemizer", lambda: spell)
    out = tmp_path / "said.wav"
    for words in ([], ["--words", "1"]):
        text = io.TextIOWrapper(io.BytesIO(b"I have 2 cats. Do you?\n"), encoding="utf-8")
        monkeypatch.setattr("sys.stdin", text)
        command = ["speak", "--voice", str(tmp_path / "voice"), "--out", str(out), *words]
        assert cli.main(command) == 0
        samples, rate = soundfile.read(out)
        assert rate == 8000 and np.abs(samples).max() > 0
        said = [line.split(" s  ")[1] for line in capsys.readouterr().out.splitlines()[:-1]]
        assert " ".join(said) == "I have 2 cats. Do you?" and len(said) == (6 if words else 2)


def test_speak_command_says_what_a_voice_needs(tmp_path, voice, monkeypatch, capsys):
    voice.save(tmp_path / "voice")

    def missing():
        raise ImportError("no phonemizer")

    monkeypatch.setattr("echostream.voice.phonemes.Phonemizer", missing)
    command = ["speak", "--out", str(tmp_path / "x.wav"), "--voice"]
    assert cli.main([*command, str(tmp_path / "voice")]) == 2
    assert "echostream[voice]" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "gone")]) == 2
    assert "no such voice" in capsys.readouterr().err
    assert not (tmp_path / "x.wav").exists()
