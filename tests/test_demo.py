"""The demonstration prepares and reports, with the reference clips and without them."""

import json

import numpy as np
import soundfile

from echostream import demo
from echostream.checkpoint import load_model_dir


def test_without_reference_clips_one_is_synthesised(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "checkout" / "echostream" / "demo.py"))
    demo.main(["prepare", str(tmp_path / "out")])
    sources = (tmp_path / "out" / "source.txt").read_text().split()
    assert sources == [str(tmp_path / "out" / "synthetic.wav")]
    samples, rate = soundfile.read(sources[0])
    assert rate == 48000 and len(samples) == 4 * rate and 0.2 < np.abs(samples).max() < 0.31
    assert len((tmp_path / "out" / "target.txt").read_text().splitlines()) == 1
    assert load_model_dir(tmp_path / "out" / "model").config.num_units == 50
    assert "random weights" in capsys.readouterr().out


def test_report_shows_scores_and_files(tmp_path, capsys):
    folder = tmp_path / "s2st"
    folder.mkdir()
    wav = folder / "0_pred.wav"
    soundfile.write(wav, np.zeros(8000), 16000)
    (folder / "scores.tsv").write_text("AL\tATD\n12.5\t7.0\n")
    rows = [
        {"prediction": str(wav), "delays": [320, 640], "source": "a.wav"},
        {"prediction": str(folder / "1_pred.wav"), "delays": [], "source": "b.wav"},
    ]
    (folder / "instances.log").write_text("".join(json.dumps(row) + "\n" for row in rows))
    demo.main(["report", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "12.5" in printed and "0.50 s in 2 writes, from a.wav" in printed
    assert "0.00 s in 0 writes, from b.wav" in printed
