"""Names of pictures with their speech, from a small package of the same layout."""

import io
import json
import shutil

import pytest
import soundfile

from echostream.training.everyday import spoken_stamps
from echostream.training.everyday.aligned import LISTED, TRANSLATIONS
from echostream.training.warm_start.clips import SpeechPool
from echostream.training.warm_start.train import read_translations
from tests.training.everyday.packages import make_deb, tone

FOLDER, DOC = "usr/share/tuxpaint/stamps", "usr/share/doc"
NOTICE = b"License: GPL-2\n"
OWL = "An owl.\nde.utf8=Eine Eule.\nes.utf8=Un búho real.\nfr.utf8=Un hibou.\n"
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg is not installed")


def ogg(seconds, hertz=300):
    written = io.BytesIO()
    soundfile.write(written, tone(hertz, seconds), 16000, format="OGG", subtype="VORBIS")
    return written.getvalue()


def text_file(spanish, english="A thing."):
    return f"{english}\nca.utf8=Una cosa.\nes.utf8={spanish}\n".encode()


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (OWL, ("Un búho real.", "An owl.")),
        ("One.\r\nes.utf8=  Uno \t mismo. \r\n", ("Uno mismo.", "One.")),
        (
            "A “kiwi”—from afar.\nes.utf8=Un «kiwi», “de lejos”.",
            ('Un "kiwi", "de lejos".', 'A "kiwi", from afar.'),
        ),
        ("One.\nes.utf8=Uno.\nes.utf8=Dos.\n", ("Uno.", "One.")),
        ("One.\nes_MX.utf8=Uno.\nast.utf8=es.utf8=Un.\n", ("", "One.")),
        ("\nes.utf8=Uno.\n", ("Uno.", "")),
        ("", ("", "")),
    ],
)
def test_texts_are_the_first_line_and_the_spanish_one(content, texts):
    assert spoken_stamps.parse_texts(content) == texts


@pytest.mark.parametrize(
    ("seconds", "texts", "kept"),
    [
        (1.0, text_file("Un búho real."), True),
        (1.0, text_file("Un búho real.", english=" "), False),
        (1.0, b"An owl.\nfr.utf8=Un hibou.\n", False),
        (1.0, text_file(" "), False),
        (1.0, text_file("La letra búho."), False),
        (1.0, text_file("El signo de la letra B."), False),
        (1.0, text_file("Esta es la letra B."), True),
        (0.5, text_file("Un búho."), False),  # short
        (0.7, text_file("Un búho."), True),
        (11.4, text_file("Un búho real. " * 10), True),
        (11.6, text_file("Un búho real. " * 10), False),  # long
        (1.0, text_file("Un búho real. " * 2), False),  # fast: 27 characters
        (4.0, text_file("Un búho real."), False),  # slow
    ],
)
def test_what_does_not_fit_is_left_out(seconds, texts, kept):
    files = {f"{FOLDER}/owl_desc_es.ogg": ogg(seconds), f"{FOLDER}/owl.txt": texts}
    found = list(spoken_stamps.choose(files))
    assert [one.name for one in found] == (["owl_desc_es.ogg"] if kept else [])
    assert [one.seconds for one in found] == pytest.approx([seconds] if kept else [])


def test_a_sound_belongs_to_the_text_of_its_name():
    texts = {name: text_file(f"Esto es {name}.") for name in ("b", "a", "b_desc", "c")}
    files = {f"{FOLDER}/x/{name}.txt": content for name, content in texts.items()}
    names = ("b_desc_es", "a_es", "c_desc_fr", "d_desc_es", "a_desc_es_es")
    files |= {f"{FOLDER}/x/{name}.ogg": ogg(1.0) for name in names}
    found = [(one.name, one.spanish) for one in spoken_stamps.choose(files)]
    assert found == [("x/a_es.ogg", "Esto es a."), ("x/b_desc_es.ogg", "Esto es b.")]


@pytest.mark.parametrize(
    ("sound", "texts"), [(b"no sound", OWL.encode()), (ogg(1.0), OWL.encode("latin-1"))]
)
def test_what_cannot_be_read_is_named(sound, texts):
    files = {f"{FOLDER}/owl_desc_es.ogg": sound, f"{FOLDER}/owl.txt": texts}
    with pytest.raises(ValueError, match=f"{FOLDER}/owl_desc_es.ogg or its text cannot be read: "):
        list(spoken_stamps.choose(files))


def pin(tmp_path, monkeypatch, files):
    """Make the package of these files the pinned one; its folder."""
    monkeypatch.setattr(spoken_stamps, "STAMPS", make_deb(tmp_path, "some-stamps", files))
    return tmp_path / "packages"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """The pinned package of a few stamps: three with Spanish speech, two of which fit their texts,
    speech in French, and a sound that is no speech."""
    files = {
        f"{FOLDER}/town/bell.txt": text_file("Una campana.", "A bell."),
        f"{FOLDER}/town/bell.ogg": ogg(1.0),
        f"{FOLDER}/town/bell_desc_es.ogg": ogg(1.0, 400),
        f"{FOLDER}/animals/owl.txt": OWL.encode(),
        f"{FOLDER}/animals/owl_desc_es.ogg": ogg(1.2, 500),
        f"{FOLDER}/animals/owl_desc_fr.ogg": ogg(1.2, 600),
        f"{FOLDER}/symbols/a.txt": text_file("La letra A."),
        f"{FOLDER}/symbols/a_desc_es.ogg": ogg(1.2, 700),
        f"{DOC}/some-stamps/copyright": NOTICE,
        f"{DOC}/some-stamps/changelog.gz": b"changes",
    }
    return pin(tmp_path, monkeypatch, files)


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@needs_dpkg
def test_the_package_becomes_a_folder_that_training_reads(packages, tmp_path):
    out = tmp_path / "out"
    stamps = spoken_stamps.make_spoken_stamps(out, packages)
    assert sum(one.seconds for one in stamps) == pytest.approx(2.2)

    rows = read_translations(out / TRANSLATIONS)
    assert rows == [
        ("train_stamp_0000", "Un búho real.", "An owl."),
        ("train_stamp_0001", "Una campana.", "A bell."),
    ]
    entries = [json.loads(line) for line in (out / LISTED).read_text("utf-8").splitlines()]
    assert [(entry["id"], entry["text"]) for entry in entries] == [row[:2] for row in rows]
    pool = SpeechPool([out], [], {name: target for name, _, target in rows})
    pool.refresh()
    assert [(one.text, one.target, one.length) for one in pool.texts] == [
        ("Un búho real.", "An owl.", 19200),
        ("Una campana.", "A bell.", 16000),
    ]
    found = content(out)
    sounds = {f"ogg/{one.name}": one.sound for one in stamps}  # as packaged
    assert sounds.keys() == {"ogg/animals/owl_desc_es.ogg", "ogg/town/bell_desc_es.ogg"}
    assert found.keys() == {*sounds, "COPYRIGHT", "ATTRIBUTION.md", LISTED, TRANSLATIONS}
    assert {name: found[name] for name in sounds} == sounds
    assert found["COPYRIGHT"] == NOTICE
    assert "GNU General Public License, version 2" in found["ATTRIBUTION.md"].decode()


@needs_dpkg
def test_a_second_run_makes_nothing_new_and_mends_what_is_broken(packages, tmp_path):
    out = tmp_path / "out"
    spoken_stamps.make_spoken_stamps(out, packages)
    before = content(out)
    owl, bell = out / "ogg/animals/owl_desc_es.ogg", out / "ogg/town/bell_desc_es.ogg"
    bell.write_bytes(b"cut")
    whole, cut = owl.stat().st_ino, bell.stat().st_ino
    spoken_stamps.make_spoken_stamps(out, packages)
    assert content(out) == before
    assert owl.stat().st_ino == whole  # not written again
    assert bell.stat().st_ino != cut


@needs_dpkg
def test_what_breaks_off_is_not_listed(packages, tmp_path, monkeypatch):
    out, write, written = tmp_path / "out", spoken_stamps.write_atomically, []

    def full(path, data):
        if written:
            raise OSError("no space left")
        written.append(path)
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(spoken_stamps, "write_atomically", full)
        with pytest.raises(OSError, match="no space"):
            spoken_stamps.make_spoken_stamps(out, packages)
    assert list(content(out)) == ["ogg/animals/owl_desc_es.ogg"]
    spoken_stamps.make_spoken_stamps(out, packages)
    assert len((out / LISTED).read_text("utf-8").splitlines()) == 2


@needs_dpkg
def test_another_package_is_refused(packages, tmp_path):
    path = packages / spoken_stamps.STAMPS.file_name
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"some-stamps_1\.0-1_all\.deb is not some-stamps 1\.0-1"):
        spoken_stamps.make_spoken_stamps(tmp_path / "out", packages)
    assert not (tmp_path / "out").exists()


@needs_dpkg
@pytest.mark.parametrize(
    ("files", "got"),
    [
        ({f"{DOC}/some-stamps/copyright": NOTICE}, "a notice and 0 sounds"),
        (
            {f"{FOLDER}/owl.txt": OWL.encode(), f"{FOLDER}/owl_desc_es.ogg": ogg(1.0)},
            "no notice and 1 sounds",
        ),
        (
            {
                f"{DOC}/some-stamps/copyright": NOTICE,
                "usr/share/owl.txt": OWL.encode(),
                "usr/share/owl_desc_es.ogg": ogg(1.0),
            },
            "a notice and 0 sounds",
        ),
    ],
)
def test_a_package_of_another_layout_is_an_error(tmp_path, monkeypatch, files, got):
    packages = pin(tmp_path, monkeypatch, files)
    with pytest.raises(ValueError, match=f"some-stamps_1.0-1_all.deb must hold .* got {got}"):
        spoken_stamps.make_spoken_stamps(tmp_path / "out", packages)
    assert not (tmp_path / "out").exists()
