"""English text to phonemic text, by espeak-ng through the package phonemizer.

What comes out is IPA as espeak-ng writes it, with stress marks, spaces between words and the
punctuation of the text, diphthongs and affricates as single characters. Words that no dictionary
has are read by rule, so any text can be said.
"""

from __future__ import annotations

import logging
import re

# One character per sound, as the speech was made that the voice has learned from. The order
# matters: some contain others.
_SINGLE = (
    ("ʔˌn\u0329", "tᵊn"),
    ("ʔn\u0329", "tᵊn"),
    ("ʔn", "tᵊn"),
    ("ʔ", "t"),
    ("aɪ", "I"),
    ("aʊ", "W"),
    ("dʒ", "ʤ"),
    ("eɪ", "A"),
    ("tʃ", "ʧ"),
    ("ɔɪ", "Y"),
    ("əl", "ᵊl"),
    ("oʊ", "O"),
    ("əʊ", "O"),
    ("ɜːɹ", "ɜɹ"),
    ("ɜː", "ɜɹ"),
    ("ɪə", "iə"),
    ("ː", ""),
    ("ɚ", "əɹ"),
    ("r", "ɹ"),
    ("x", "k"),
    ("ç", "k"),
    ("ɐ", "ə"),
    ("ɬ", "l"),
    ("\u0303", ""),
    ("\u0329", ""),
)
MARKS = ",;:.!?\u2014\u2026"
_UNSAID = re.compile(r"[\"\u00a1\u00bf\u201c\u201d\u00ab\u00bb()\[\]{}*_<>|~^`]")
_WORD = re.compile(r"\w")


class Phonemizer:
    """Holds espeak-ng.

    Raises:
        ImportError: no phonemizer.
        RuntimeError: no espeak-ng.
    """

    def __init__(self) -> None:
        try:
            from phonemizer.backend import EspeakBackend
        except ImportError as error:
            raise ImportError(
                "this voice needs the package phonemizer: pip install 'echostream[voice]'"
            ) from error
        quiet = logging.getLogger("phonemizer")
        quiet.setLevel(logging.ERROR)
        self._espeak = EspeakBackend(
            "en-us", preserve_punctuation=True, with_stress=True, logger=quiet
        )

    def __call__(self, text: str) -> str:
        """Phonemic text of a piece of text, without white space around it."""
        text = _UNSAID.sub(" ", text.replace("\u2013", "\u2014").replace("...", "\u2026"))
        # One mark where several follow one another, and none before the first word.
        text = re.sub(rf"([{MARKS}])(?:\s*[{MARKS}])+", r"\1", text).lstrip(MARKS + " ")
        if not _WORD.search(text):
            return ""
        said = self._espeak.phonemize([text], strip=True)[0]
        said = re.sub(r"\([\w-]+\)", "", said)  # where espeak-ng changes the language
        for sound, symbol in _SINGLE:
            said = said.replace(sound, symbol)
        return re.sub(rf" (?=[{MARKS}])", "", " ".join(said.split()))
