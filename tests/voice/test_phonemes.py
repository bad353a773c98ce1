"""Text to phonemic text by espeak-ng."""

import pytest

pytest.importorskip("phonemizer")

from echostream.voice.phonemes import Phonemizer  # noqa: E402


@pytest.fixture(scope="module")
def phonemizer():
    try:
        return Phonemizer()
    except RuntimeError as error:  # no espeak-ng on this machine
        pytest.skip(str(error))


def test_sounds_stress_and_marks(phonemizer):
    assert phonemizer("I only watch movies once.") == "I ˈOnli wˈɑʧ mˈuvɪz wˈʌns."
    assert phonemizer("Oh don't worry!") == "ˈO dˈOnt wˈʌɹi!"


def test_marks_are_single_and_behind_words(phonemizer):
    assert phonemizer('"Well...", (he said)?!') == "wˈɛl… hi sˈɛd?"
    assert phonemizer("...") == phonemizer("") == phonemizer(" \u00bf! ") == ""


def test_words_that_no_dictionary_has_are_read(phonemizer):
    assert phonemizer("Blorptastic Xqzvk").count(" ") >= 1
