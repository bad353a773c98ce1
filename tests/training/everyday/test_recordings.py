"""Real recordings from Debian packages, with packages made here."""

import dataclasses
import gzip
import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echostream.training.everyday import debian, recordings
from echostream.training.everyday.debian import DebianPackage
from tests.training.everyday.packages import g722, make_deb, tone

av = pytest.importorskip("av")
ROOT = Path(__file__).resolve().parents[3]
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg is not installed")

SPANISH = """; comment: not a prompt
vm-goodbye: Adiós
vm-press: Marque 2 para cambiar de carpeta.
vm-mute: Marque 500 ahora, por favor
beep: [un tono muy muy corto]
vm-nosound: esta no tiene ningún sonido
vm-noenglish: esta no tiene texto inglés
empty:
"""
ENGLISH = """vm-goodbye: Goodbye
vm-press: Press 2 to change   folders.
vm-mute: Dial 500 now, please (a tone sounds)
vm-nosound: this one has no sound
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Three packages, pinned in place of Debian's."""
    for attribute, language, text in (("SPANISH", "es", SPANISH), ("ENGLISH", "en", ENGLISH)):
        name = f"asterisk-core-sounds-{language}"
        listing = f"usr/share/doc/{name}/core-sounds-{language}.txt.gz"
        pin = make_deb(tmp_path, name, {listing: gzip.compress(text.encode())})
        monkeypatch.setattr(recordings, attribute, pin)
    folder = "usr/share/asterisk/sounds/es_MX"
    files = {
        f"{folder}/{name}.g722": g722(tone(hertz))
        for name, hertz in (("vm-goodbye", 300), ("vm-press", 500), ("vm-mute", 900), ("beep", 99))
    }
    notice = "usr/share/doc/asterisk-core-sounds-es-g722/copyright"
    pin = make_deb(tmp_path, "asterisk-core-sounds-es-g722", {**files, notice: b"whose it is"})
    monkeypatch.setattr(recordings, "SOUNDS", pin)
    return tmp_path / "packages"


@needs_dpkg
def test_the_folder_is_what_evaluate_reads(packages, tmp_path):
    out = tmp_path / "out"
    prompts = recordings.make_recordings(out, packages)
    assert [one.name for one in prompts] == ["vm-mute", "vm-press"]
    lists = out / "simuleval" / "asterisk"
    assert (lists / "src.txt").read_text().splitlines() == [
        "marque quinientos ahora por favor",
        "marque dos para cambiar de carpeta",
    ]
    assert (lists / "target.txt").read_text().splitlines() == [
        "dial five hundred now please",
        "press two to change folders",
    ]
    assert (out / "COPYRIGHT").read_text() == "whose it is"
    assert "ShareAlike" in (out / "ATTRIBUTION.md").read_text()
    for path, hertz in zip((lists / "wav_list.txt").read_text().split(), (900, 500), strict=True):
        samples, rate = soundfile.read(path)
        assert rate == 16000 and len(samples) == pytest.approx(8000, abs=160)
        loudest = np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples)
        assert loudest == pytest.approx(hertz, abs=3)


@needs_dpkg
def test_recordings_that_ship_name_paths_from_the_checkout(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "DEMO_PROMPTS", ("vm-press",))
    recordings.make_demo(tmp_path / "data" / "real", tmp_path, packages)
    folder = tmp_path / "data" / "real"
    assert (folder / "wav_list.txt").read_text() == "data/real/vm-press.flac\n"
    assert (folder / "target.txt").read_text() == "press two to change folders\n"
    assert soundfile.info(folder / "vm-press.flac").samplerate == 16000
    assert "decoded from G.722 to FLAC" in (folder / "ATTRIBUTION.md").read_text()


def test_shipped_recordings_are_whole():
    folder = ROOT / "data" / "everyday" / "real"
    sounds, sources, targets = (
        (folder / name).read_text(encoding="utf-8").splitlines()
        for name in ("wav_list.txt", "src.txt", "target.txt")
    )
    assert len(sounds) == len(sources) == len(targets) == len(recordings.DEMO_PROMPTS)
    for name in sounds:
        info = soundfile.info(ROOT / name)
        assert info.samplerate == 16000 and 4 <= info.duration <= 9
    assert "Allison Smith" in (folder / "ATTRIBUTION.md").read_text()


@needs_dpkg
def test_another_file_under_the_name_is_refused(packages, tmp_path, monkeypatch):
    pin = dataclasses.replace(recordings.SPANISH, sha256="0" * 64)
    monkeypatch.setattr(recordings, "SPANISH", pin)
    with pytest.raises(ValueError, match="SHA-256 must be 0000"):
        recordings.make_recordings(tmp_path / "out", packages)


def test_apt_downloads_what_is_missing_and_it_is_checked(tmp_path, monkeypatch):
    content = b"a package"
    pin = DebianPackage("some-data", "4:1.0-1", hashlib.sha256(content).hexdigest())

    def download(command, cwd, **options):
        assert command == ["apt-get", "download", "some-data=4:1.0-1"]
        name = "some-data_4%3a1.0-1_all.deb"
        with open(f"{cwd}/{name}", "wb") as file:
            file.write(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(debian.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(debian.subprocess, "run", download)
    assert debian.fetch(pin, tmp_path / "kept").read_bytes() == content
    wrong = dataclasses.replace(pin, sha256="1" * 64)
    with pytest.raises(ValueError, match="is not some-data"):
        debian.fetch(wrong, tmp_path / "other")
    assert not list((tmp_path / "other").glob("*"))


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(debian.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="put Debian's file asterisk-core-sounds-en_"):
        debian.fetch(recordings.ENGLISH, tmp_path)


@needs_dpkg
def test_a_broken_package_is_named(tmp_path):
    (tmp_path / "a.deb").write_bytes(b"not a package")
    with pytest.raises(ValueError, match="a.deb: not a Debian package"):
        debian.read_files(tmp_path / "a.deb", lambda name: True)


def test_a_broken_sound_is_an_error():
    with pytest.raises(ValueError, match="not wav sound"):
        recordings.decode(b"RIFF no sound", "wav")


def test_long_numbers_are_read_digit_by_digit():
    assert recordings.reference("Marque 8500 o 28.8", "es") == (
        "marque ocho cinco cero cero o veintiocho ocho"
    )
