"""Files in pieces: what comes out is what went in, or nothing."""

from __future__ import annotations

import numpy as np
import pytest

from echostream.training import pieces


@pytest.fixture
def packed(tmp_path):
    """A folder and a file, in pieces of 10 kB."""
    folder, file = tmp_path / "speech", tmp_path / "texts.tsv"
    (folder / "audio").mkdir(parents=True)
    noise = np.random.default_rng(0).bytes(25_000)
    (folder / "audio" / "a.flac").write_bytes(noise)
    file.write_text("a\thola\thello\n")
    made = pieces.pack(tmp_path / "pieces", [folder, file], 0.01)
    assert len(made) == 3 and all(piece.stat().st_size <= 10_000 for piece in made)
    return tmp_path / "pieces", noise


def test_what_was_packed_comes_out(packed, tmp_path):
    folder, noise = packed
    assert pieces.unpack(folder, tmp_path / "out") == ["speech", "texts.tsv"]
    assert (tmp_path / "out/speech/audio/a.flac").read_bytes() == noise
    assert (tmp_path / "out/texts.tsv").read_text() == "a\thola\thello\n"


def test_missing_and_damaged_pieces_are_named(packed, tmp_path):
    folder, _ = packed
    (folder / "piece-000").unlink()
    (folder / "piece-002").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"piece-000 is missing, piece-002 is damaged \(1 of"):
        pieces.unpack(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="no table of pieces"):
        pieces.unpack(tmp_path, tmp_path / "out")


def test_what_cannot_be_packed(packed, tmp_path, capsys):
    folder, _ = packed
    with pytest.raises(FileExistsError, match="holds pieces already"):
        pieces.pack(folder, [tmp_path / "texts.tsv"])
    with pytest.raises(FileNotFoundError, match="nothing to pack at"):
        pieces.pack(tmp_path / "new", [tmp_path / "none"])
    with pytest.raises(ValueError, match="last name of its own"):
        pieces.pack(tmp_path / "new", [tmp_path / "texts.tsv"] * 2)
    with pytest.raises(ValueError, match="must hold something, got 0"):
        pieces.pack(tmp_path / "new", [tmp_path / "texts.tsv"], 0)
    with pytest.raises(SystemExit, match="1"):
        pieces.main(["unpack", str(tmp_path), str(tmp_path / "out")])
    assert "error: no table of pieces" in capsys.readouterr().err


def test_links_are_followed(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.txt").write_text("a")
    (tmp_path / "near").symlink_to(tmp_path / "far")
    pieces.pack(tmp_path / "pieces", [tmp_path / "near"])
    assert pieces.unpack(tmp_path / "pieces", tmp_path / "out") == ["near"]
    assert (tmp_path / "out" / "near" / "a.txt").read_text() == "a"
