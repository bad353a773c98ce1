"""Speech without text out of packages."""

import re
import shutil

import numpy as np
import pytest
import soundfile

from echostream.training.everyday import unlabelled
from tests.training.everyday.packages import g722, make_deb, tone

pytest.importorskip("av")
RATE = 16000


def silence(seconds):
    return np.zeros(int(seconds * RATE), np.float32)


def test_silence_at_the_edges_goes_and_a_little_stays():
    sound = np.concatenate([silence(1.0), tone(300, 2.0), silence(0.5), tone(300, 1.0), silence(2)])
    kept = unlabelled.trim(sound)
    assert len(kept) == pytest.approx(3.5 * RATE + 0.3 * RATE, abs=0.03 * RATE)
    assert np.abs(kept[: RATE // 20]).max() < 1e-3 < np.abs(kept[RATE // 5 :]).max()


def test_a_click_is_not_the_level_of_speech():
    sound = 0.01 * tone(300, 2.0)
    sound[RATE] = 1.0
    assert len(unlabelled.trim(sound)) == pytest.approx(2 * RATE, abs=0.02 * RATE)


@pytest.mark.parametrize("sound", [silence(1), silence(0), tone(300, 0.4), tone(300, 0.005)])
def test_silence_and_short_sounds_are_no_clips(sound):
    assert unlabelled.clips_of(sound) == []


def test_long_recordings_are_cut():
    clips = unlabelled.clips_of(tone(300, 32.0))
    assert len(clips) == 3
    assert sum(map(len, clips)) == 32 * RATE
    assert max(map(len, clips)) <= unlabelled.LONGEST_S * RATE


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg is not installed")
def test_packages_become_clips_once(tmp_path, caplog):
    folder = "usr/share/sounds/fr"
    speech = g722(tone(300, 1.5))
    pin = make_deb(
        tmp_path,
        "some-sounds",
        {
            f"{folder}/hello.g722": speech,
            f"{folder}/again.g722": speech,
            f"{folder}/dial-tone.g722": g722(tone(440, 2.0)),
            f"{folder}/broken.ogg": b"no sound",
            f"{folder}/readme.txt": b"a text",
        },
    )
    wanted = r"/sounds/(?!.*(tone|beep)[^/]*$).*\.(g722|ogg)"
    source = unlabelled.Source("some", pin, "GPL-2", wanted)
    out = tmp_path / "out"
    rows = unlabelled.make_speech(out, tmp_path / "packages", [source])
    assert rows == [("some", "GPL-2", "1", 0.0)]  # 1.5 s
    [path] = out.glob("*.wav")
    samples, rate = soundfile.read(path)
    assert rate == RATE and len(samples) == pytest.approx(1.5 * RATE, abs=0.03 * RATE)
    assert "1 files could not be read" in caplog.text
    path.unlink()
    assert unlabelled.make_speech(out, tmp_path / "packages", [source]) == rows
    assert not list(out.glob("*.wav"))  # a finished source is left alone


@pytest.mark.parametrize(
    ("name", "path", "speaks"),
    [
        ("asterisk-fr", "usr/share/asterisk/sounds/fr_CA/vm-goodbye.g722", True),
        ("asterisk-fr", "usr/share/asterisk/sounds/fr_CA/silence/5.g722", True),
        ("asterisk-fr", "usr/share/asterisk/sounds/fr_CA/beeperr.g722", False),
        ("fillets-cs", "usr/share/games/fillets-ng/sound/gods/cs/b1-vyhral.ogg", True),
        ("fillets-cs", "usr/share/games/fillets-ng/sound/gods/cs/br-x-pracka.ogg", False),
        ("tuxpaint", "usr/share/tuxpaint/stamps/animals/dog_desc_es.ogg", True),
        ("tuxpaint", "usr/share/tuxpaint/stamps/animals/dog.ogg", False),
        ("klettres", "usr/share/klettres/es/syllab/nna.ogg", True),
    ],
)
def test_which_files_speak(name, path, speaks):
    [source] = [one for one in unlabelled.SOURCES if one.name == name]
    assert bool(re.search(source.wanted, path)) is speaks


def test_the_speaker_of_the_test_is_in_no_source():
    packages = {source.package.name for source in unlabelled.SOURCES}
    assert not packages & {"asterisk-core-sounds-en-g722", "asterisk-core-sounds-es-g722"}
    assert len(packages) == len(unlabelled.SOURCES)
