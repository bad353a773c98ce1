"""Speech with text out of a game, from small packages of the same layout."""

import json
import shutil
import struct

import numpy as np
import pytest
import soundfile

from echostream.training.everyday import spoken_game
from echostream.training.everyday.aligned import LISTED, TRANSLATIONS
from echostream.training.warm_start.clips import SpeechPool
from echostream.training.warm_start.measure import read_clips
from echostream.training.warm_start.train import read_translations
from tests.training.everyday.packages import make_deb

RATE = 16000
TRAILER = b"\0fact\4\0\0\0FILT"
NOTICE, README = b"License: some\n", b"Keep this intact.\r\n"
SPANISH, ENGLISH = "¿QUE MAÑANA, IGOR?", "WHAT MORNING, IGOR?"


def sound(seconds, *, silence=0.0, hertz=300):
    """A clip as the game has it: unsigned bytes at 11,025 Hz."""
    clock_s = np.arange(int(seconds * 11025)) / 11025
    tone = 128 + 50 * np.sin(2 * np.pi * hertz * clock_s)
    quiet = np.full(int(silence * 11025), 128)
    return np.concatenate([quiet, tone, quiet]).astype(np.uint8).tobytes()


def block(texts):
    content = b"\0\0"
    for text in texts:
        text = text.encode("cp850") + b"\0"
        text += b"\0" * (len(text) % 2)
        content += struct.pack(">H", len(text) + 2) + text
    return struct.pack(">H", len(content)) + content


def dat(texts, version=6):
    """Texts, (Spanish, English) by role, after tables of two rows each, in three languages."""
    content = b"DRASCULA" + bytes([version])
    for size in (4, 4, 4, 2, 4, 2, 4, 2, 2, 20, 20, 10, 8):
        content += struct.pack(">H", 2) + b"\x7f" * (2 * size)
    content += struct.pack(">H", 3)
    for role in spoken_game.ROLES:
        pairs = texts.get(role, [])
        content += struct.pack(">H", len(pairs))
        spanish, english = ([pair[side] for pair in pairs] for side in (0, 1))
        content += block(english) + block(spanish) + block(["ja"] * len(pairs))
    return content + b"more"


def test_texts_are_those_of_role_and_number():
    texts = {"": [("", ""), ("UNOºDOS  TRES", "ONE")], "VB": [("SEÑOR", "SIR")]}
    found = spoken_game.parse_texts(dat(texts))
    assert found[""] == [("", ""), ("UNO DOS TRES", "ONE")]
    assert found["VB"] == [("SEÑOR", "SIR")]
    assert found["D"] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"other", r"must begin with b'DRASCULA\\x06', got b'other'"),
        (dat({}, version=7), r"must begin with .* got b'DRASCULA\\x07'"),
        (dat({"": [("A", "B")]})[:150], r"\(150 bytes\) ends too early"),
        (dat({"": [("A", "B")]}).replace(b"\0\2\0\0", b"\0\4\0\0\0\0"), "0 texts must fill"),
    ],
)
def test_another_layout_is_an_error(content, message):
    with pytest.raises(ValueError, match=message):
        spoken_game.parse_texts(content)


def test_sounds_are_resampled_and_lose_silence_and_what_is_no_sound():
    samples = spoken_game.decode(sound(2.0, silence=1.0) + TRAILER)
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(2.32 * RATE, abs=0.03 * RATE)  # a little silence stays
    assert np.abs(samples).max() == pytest.approx(50 / 128, rel=0.05)
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() * RATE / len(samples) == pytest.approx(300, abs=1)


@pytest.mark.parametrize(
    ("clip", "spanish", "english", "kept"),
    [
        (sound(1.5), SPANISH, ENGLISH, True),
        (sound(0.9), SPANISH, ENGLISH, False),  # short
        (sound(13), SPANISH * 10, ENGLISH, False),  # long
        (sound(0.5, silence=2.0), SPANISH, ENGLISH, False),  # short but for silence
        (sound(1.5), "", ENGLISH, False),
        (sound(1.5), SPANISH, "", False),
        (sound(1.5), SPANISH + " (CIEGO)", ENGLISH, False),
        (sound(1.5), SPANISH, ENGLISH + " (WHISTLE)", False),
        (sound(1.5), SPANISH * 3, ENGLISH, False),  # fast
        (sound(3.5), "¡... SI, ESO ...!", ENGLISH, False),  # slow
    ],
)
def test_what_does_not_fit_is_left_out(clip, spanish, english, kept):
    texts = {"D": [("", ""), (spanish, english)]}
    found = list(spoken_game.pair({"D1": clip, "F1": clip, "D9": clip}, texts))
    assert [(one.name, one.role) for one in found] == ([("D1", "D")] if kept else [])


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Pinned packages of a small game."""
    game, doc = "usr/share/scummvm/drascula", "usr/share/doc"
    line = (SPANISH, ENGLISH)
    texts = {"": [("", ""), line, line], "D": [("", ""), line], "I": [("", ""), line]}
    clips = {
        f"{game}/es/{name}.ALS": sound(1.5, hertz=hertz) + TRAILER
        for name, hertz in {"1": 200, "2": 250, "D1": 300, "I1": 350, "S1": 400}.items()
    }
    sounds = make_deb(
        tmp_path,
        "some-sounds",
        {
            **clips,
            f"{doc}/some-sounds/copyright": NOTICE,
            f"{doc}/some-sounds/readme_es.txt": README,
        },
    )
    others = make_deb(
        tmp_path,
        "some-game",
        {f"{game}/en/drascula.dat": dat(texts), f"{doc}/some-game/readme.txt": README},
    )
    monkeypatch.setattr(spoken_game, "SOUNDS", sounds)
    monkeypatch.setattr(spoken_game, "TEXTS", others)
    return tmp_path / "packages"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg is not installed")
def test_packages_become_a_folder_that_training_reads(packages, tmp_path):
    out, texts = tmp_path / "out", tmp_path / "texts.txt"
    texts.write_text("¿Qué?\n", encoding="utf-8")
    totals = spoken_game.make_spoken_game(out, packages, [texts])
    assert {role: count for role, (count, _) in totals.items() if count} == {"": 2, "D": 1, "I": 1}
    assert totals["D"][1] == pytest.approx(1.5 / 3600, rel=0.1)

    rows = read_translations(out / TRANSLATIONS)
    ids = [f"train_drascula_{name}" for name in ("1", "2", "D1")]
    assert rows == [(name, "¿Qué mañana, Igor?", "What morning, Igor?") for name in ids]
    pool = SpeechPool([out], [], {name: target for name, _, target in rows})
    pool.refresh()
    assert [(one.source, one.target) for one in pool.texts] == [
        ("qué mañana igor", "What morning, Igor?")
    ] * 3
    [clip] = read_clips(out / spoken_game.DEV)
    assert (clip.source, clip.target) == ("qué mañana igor", "What morning, Igor?")
    sounds = {path.stem for path in (out / "wav").iterdir()}
    assert sounds == {"1", "2", "D1", "I1"}  # no hidden parts, and not S1
    assert soundfile.info(out / "wav" / "I1.wav").samplerate == RATE

    assert (out / "COPYRIGHT").read_bytes() == NOTICE
    assert (out / "readme_es.txt").read_bytes() == (out / "readme.txt").read_bytes() == README
    assert "MODIFIED VERSION" in (out / "ATTRIBUTION.md").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg is not installed")
def test_what_breaks_off_is_not_listed_and_made_again(packages, tmp_path, monkeypatch):
    out, write, written = tmp_path / "out", soundfile.write, []

    def full(path, *others):
        if len(written) == 2:
            raise OSError("no space left")
        written.append(path)
        write(path, *others)

    with monkeypatch.context() as patch:
        patch.setattr(soundfile, "write", full)
        with pytest.raises(OSError, match="no space"):
            spoken_game.make_spoken_game(out, packages)
    assert [path.name for path in out.iterdir()] == ["wav"]
    spoken_game.make_spoken_game(out, packages)
    lines = (out / LISTED).read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["text"] for entry in entries] == [
        "¿Que mañana, Igor?"
    ] * 3  # no accents asked for
    assert all((out / entry["file"]).is_file() for entry in entries)


def test_the_roles_held_out_are_roles_and_leave_others():
    assert len(spoken_game.HELD_OUT) == 2
    assert set(spoken_game.HELD_OUT) < spoken_game.ROLES.keys()
