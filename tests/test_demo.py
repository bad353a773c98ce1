"""What the demonstration shows is what its runs hold."""

import json

import pytest
import soundfile

from echostream import demo
from echostream.synthetic import synthetic_clip
from tests.evaluation.runs.written import REFERENCES, write_speech_run


def trace_line(index, source_ms, transcript, translation):
    return {
        "index": index,
        "source_ms": source_ms,
        "transcript": transcript,
        "translation": translation,
    }


@pytest.fixture
def output(tmp_path):
    for system, lag in (("echostream", 0.0), ("streamspeech", 640.0)):
        folder = write_speech_run(tmp_path / system, lag_ms=lag)
        lines = []
        for index, reference in enumerate(REFERENCES):
            words = reference.split()
            lines.append(trace_line(index, 960.0, "hola", ""))
            lines.append(trace_line(index, 1280.0, "hola", ""))
            lines.append(trace_line(index, 1920.0, "hola a todos", words[0]))
            lines.append(trace_line(index, 4000.0, "hola a todos", reference))
            # Behind its end a next sentence waits.
            lines.append(trace_line(index, 4000.0, "", "") | {"sentence": 1})
        (folder / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_table_has_every_figure_of_both_systems(output, capsys):
    assert demo.main([str(output)]) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = {line[:32].strip(): line[32:].split() for line in printed if len(line) > 50}
    for _, heading, _ in demo.ROWS:
        assert len(rows[heading]) == 2, heading
        assert all(float(cell) == float(cell) for cell in rows[heading]), heading
    assert rows["ASR-BLEU"] == ["100.0", "100.0"]
    assert rows["BLEU of the text"] == ["100.0", "100.0"]
    assert float(rows["AL"][1]) > float(rows["AL"][0]) > 0
    assert rows["StartOffset"] == ["960", "1600"]
    assert "12 s of Spanish, 8 s of English" in "\n".join(printed)  # without the silence


def test_what_limits_a_comparison_is_said(output, capsys):
    """A system that stays silent must not look quick."""
    log = output / "streamspeech" / "instances.log"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows[0].update(delays=[], elapsed=[], durations=[], intervals=[], prediction="")
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    demo.main([str(output)])
    printed = capsys.readouterr().out
    assert "streamspeech: 1 of 3 utterances have no output; latency leaves them out" in printed


def test_examples_show_each_growth_once(output, capsys):
    demo.main([str(output)])
    printed = capsys.readouterr().out
    assert printed.count("es  hola\n") == demo.EXAMPLES
    assert "   1.92 s  es  hola a todos\n   1.92 s  en  she\n" in printed
    assert "   4.00 s  en  she has been a teacher\n" in printed
    assert "es  \n" not in printed and "en  \n" not in printed
    for system in ("echostream", "streamspeech"):
        assert f"speech: {output / system / 'wavs'}/" in printed


def test_a_missing_run_is_named(output):
    (output / "streamspeech" / "instances.log").unlink()
    with pytest.raises(FileNotFoundError, match="streamspeech"):
        demo.report(output)


def test_recordings_are_told_one_by_one(model_dir, tmp_path, capsys):
    names = []
    for seed in (1, 2):
        names.append(str(tmp_path / f"clip{seed}.wav"))
        soundfile.write(names[-1], synthetic_clip(1.5, 16000, seed), 16000)
    (tmp_path / "wav_list.txt").write_text("".join(name + "\n" for name in names))
    (tmp_path / "target.txt").write_text("good morning\nwe are here\n")
    told = demo.recordings_report(tmp_path, tmp_path / "said", model_dir)
    assert [next(told) for _ in range(2)][1] == "clip1"
    assert not (tmp_path / "said" / "clip2.wav").exists()  # the second is not begun
    assert demo.main([str(tmp_path), "--recordings", str(tmp_path), "--model", str(model_dir)]) == 0
    printed = capsys.readouterr().out
    assert "(reference: good morning)" in printed and "(reference: we are here)" in printed
    assert "2 recordings, 3 s; BLEU" in printed and "speech included" in printed
    for name in ("clip1", "clip2"):
        samples, _ = soundfile.read(tmp_path / "recordings" / f"{name}.wav")
        assert len(samples)
