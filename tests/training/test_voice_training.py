"""From aligned speech to a voice: units and pitch, prosody, exact resuming, the whole command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from echostream.config import to_dict
from echostream.training.units.sequences import read_units, reduce_units
from echostream.training.vocoder.train_vocoder import main as train_vocoder
from echostream.training.voice import assemble, material, prosody
from echostream.training.voice.material import make_inventory, read_utterances, write_material
from echostream.training.voice.prosody import cut_piece
from echostream.voice.folder import Voice, load_prosody, read_inventory, write_inventory
from echostream.voice.phone_units import PhoneInventory
from tests.training.small_vocoders import VOCOS
from tests.training.small_voice import (
    FRAME,
    make_trainer,
    record,
    write_speech,
)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech"))


def test_units_are_symbols_and_pitches_and_come_before_their_labels(tmp_path, speech):
    inventory = write_material(speech, tmp_path, pitch_classes=2, lag_ms=25.0)
    assert inventory == read_inventory(tmp_path / "inventory.json")
    assert inventory.symbols == (" ", "$", "^", "a", "b", "c")
    assert 110 < inventory.pitch_edges[0] <= 220
    for split, count in (("train", 12), ("dev", 3), ("test", 2)):
        units = read_units(tmp_path / f"{split}.units", inventory.num_units)
        pitch = read_units(tmp_path / f"{split}.f0")
        assert len(units) == count and pitch.keys() == units.keys()
        for utterance in read_utterances(speech):
            if utterance.split != split:
                continue
            mine, total = units[utterance.name], int(utterance.frames.sum())
            assert len(mine) == len(pitch[utterance.name]) == total
            symbols = np.repeat(inventory.indices(utterance.symbols), utterance.frames)
            assert (mine[:-2] // 2 == symbols[2:]).all()  # 25 ms are two frames
            reduced, lengths = reduce_units(mine)
            assert set((reduced[reduced // 2 == 3] % 2).tolist()) <= {0}  # "a" is low
            assert set((reduced[reduced // 2 == 4] % 2).tolist()) <= {1}  # "b" is high
            assert set(pitch[utterance.name].tolist()) <= {0, 110, 220}
            assert sum(lengths) == total
    rows = (tmp_path / "test.tsv").read_text().splitlines()
    assert rows[0] == "id\ttgt_text" and len(rows) == 3


def test_one_class_is_no_pitch(speech):
    inventory = make_inventory(list(read_utterances(speech)), 1)
    assert inventory.pitch_edges == () and inventory.num_units == len(inventory.symbols)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"durations": [1, 2]}, "4 symbols .* but 2 durations"),
        ({"f0": [100, 100]}, "make 22 values of pitch, but there are 2"),
        ({"id": "other_1"}, "id must begin with"),
        ({"text": None, "phonemes": None, "file": 3}, "line 2"),
    ],
)
def test_lines_that_are_not_as_described_are_named(tmp_path, change, message):
    good = record("train_0", "ab")
    line = json.dumps({**good, **change})
    (tmp_path / "x.jsonl").write_text(f"{json.dumps(good)}\n{line}\n")
    if change.get("phonemes", 1) is None:
        line = json.dumps({k: v for k, v in good.items() if k != "durations"})
        (tmp_path / "x.jsonl").write_text(f"{json.dumps(good)}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        list(read_utterances(tmp_path))
    with pytest.raises(FileNotFoundError, match="no alignments"):
        list(read_utterances(tmp_path / "empty"))


def test_lengths_and_pitches_are_learned(speech):
    trainer, held = make_trainer(speech)
    before = trainer.validate(held)
    for _ in range(80):
        trainer.step()
    after = trainer.validate(held)
    assert after["duration"] < 0.3 * before["duration"] and after["pitch"] < 0.3 * before["pitch"]
    assert after["length_ratio"] == pytest.approx(1, abs=0.1)


def test_resuming_is_bit_exact(tmp_path, speech):
    straight, _ = make_trainer(speech)
    history = [straight.step() for _ in range(8)]
    first, _ = make_trainer(speech)
    for _ in range(3):
        first.step()
    first.save(tmp_path / "c.safetensors")
    second, _ = make_trainer(speech)
    second.restore(tmp_path / "c.safetensors")
    assert [second.step() for _ in range(5)] == history[3:]
    other, _ = make_trainer(speech, updates=9)
    with pytest.raises(ValueError, match="was trained with updates = 80, now it is 9"):
        other.restore(tmp_path / "c.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="not a prosody training checkpoint"):
        other.restore(tmp_path / "x.safetensors")


def test_a_voice_can_learn_on(tmp_path, speech, caplog):
    """From its weights, in its symbols, on other speech."""
    first, held = make_trainer(speech)
    for _ in range(20):
        first.step()
    first.export(tmp_path / "prosody.safetensors")
    second, _ = make_trainer(speech)
    second.config = replace(second.config, network=replace(second.config.network, mean_log_f0=4.0))
    second.start_from(tmp_path / "prosody.safetensors")
    learned, going_on = first.validate(held), second.validate(held)
    assert going_on["pitch"] == pytest.approx(learned["pitch"], rel=0.02)  # half precision
    assert going_on["duration"] == pytest.approx(learned["duration"], rel=0.02)
    other, _ = make_trainer(speech)
    other.config = replace(other.config, network=replace(other.config.network, layers=2))
    with pytest.raises(ValueError, match="a network of other sizes"):
        other.start_from(tmp_path / "prosody.safetensors")
    inventory = replace(
        make_inventory(list(read_utterances(speech)), 2), symbols=(" ", "$", "^", "a", "b", "d")
    )
    made = write_material(speech, tmp_path / "m", pitch_classes=5, lag_ms=25.0, inventory=inventory)
    assert made == inventory == read_inventory(tmp_path / "m" / "inventory.json")
    known = read_units(tmp_path / "m" / "train.units", inventory.num_units)
    spoken = [u for u in read_utterances(speech) if u.split == "train"]
    assert set(known) == {u.name for u in spoken if "c" not in u.symbols} != set()
    assert len(known) < len(spoken)
    left = f"left out {len(spoken) - len(known)} of {len(spoken)} utterances, whose symbols c the"
    assert f"train: {left}" in caplog.text


def test_pieces_lie_within_their_utterance():
    rng = np.random.default_rng(0)
    cuts = [cut_piece(length, 8, rng) for length in (1, 3, 5, 40) for _ in range(50)]
    for length, (first, begin, end) in zip(np.repeat([1, 3, 5, 40], 50), cuts, strict=True):
        assert 0 <= first <= begin < end <= length and begin - first <= 8
    assert len(set(cuts)) > 20 and cut_piece(7, 8, None) == (0, 0, 7)


def test_parts_become_a_voice_that_speaks(tmp_path, speech, monkeypatch):
    """The commands of scripts/train_voice.sh, small."""
    pytest.importorskip("num2words")
    from echostream.training.vocoder import validation
    from echostream.voice.speaker import VoiceSpeaker
    from echostream.voice.streaming_voice import StreamingVoice

    monkeypatch.setattr(validation, "recogniser_is_installed", lambda: False)
    units, out = tmp_path / "units", tmp_path / "voice"
    assert (
        material.main(["--speech", str(speech), "--out", str(units), "--pitch-classes", "2"]) == 0
    )
    inventory = str(units / "inventory.json")
    common = ["--inventory", inventory, "--updates", "6"]
    common += ["--batch-size", "2", "--every", "4"]
    arguments = ["--speech", str(speech), "--out", str(tmp_path / "prosody"), *common]
    assert prosody.main(arguments) == 0
    report = (tmp_path / "prosody" / "training.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in report] == [4, 6]
    settings = tmp_path / "vocoder.yaml"
    settings.write_text(json.dumps(small_vocoder()))
    arguments = ["--out", str(tmp_path / "vocoder"), "--config", str(settings), "--device", "cpu"]
    for option, split in (("", "train"), ("valid-", "dev")):
        arguments += [f"--{option}units", str(units / f"{split}.units")]
        arguments += [
            f"--{option}audio",
            str(speech),
            f"--{option}pitch",
            str(units / f"{split}.f0"),
        ]
    assert train_vocoder(arguments) == 0
    parts = ["--prosody", str(tmp_path / "prosody" / "prosody.safetensors")]
    parts += ["--vocoder", str(tmp_path / "vocoder" / "model.safetensors")]
    assert assemble.main(["--inventory", inventory, *parts, "--out", str(out)]) == 0
    voice = Voice.load(out)
    assert voice.vocoder.durations is None
    assert torch.isfinite(load_prosody(out / "prosody.safetensors").out.weight).all()
    speaker = VoiceSpeaker(StreamingVoice(replace(voice, phonemizer=lambda text: text)))
    (spoken,), _ = speaker.step("abba cab", speaker.init_state(), final=True)
    assert len(spoken.waveform) == len(spoken.units) * FRAME and np.abs(spoken.waveform).max() > 0


def small_vocoder():
    vocoder = replace(
        VOCOS.vocoder, num_embeddings=12, pitch_classes=2, hop_samples=FRAME, frames_per_unit=1
    )
    return to_dict(replace(VOCOS, vocoder=vocoder, updates=3))


def test_commands_say_what_is_wrong(tmp_path, speech, capsys):
    for main in (material.main, prosody.main):
        arguments = ["--speech", str(tmp_path), "--out", str(tmp_path / "out")]
        if main is prosody.main:
            arguments += ["--inventory", str(tmp_path / "inventory.json")]
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 1
    told = capsys.readouterr().err
    assert "no alignments" in told and "no such inventory" in told
    # Nobody says what the inventory has not.
    inventory = tmp_path / "inventory.json"
    write_inventory(inventory, PhoneInventory(("$", "^", "z"), ()))
    arguments = ["--speech", str(speech), "--inventory", str(inventory), "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        prosody.main(arguments)
    assert f"whose symbols {inventory} has, got 0 and 0" in capsys.readouterr().err


@pytest.mark.parametrize("command", [material, prosody, assemble])
def test_help_of_the_commands(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    assert command.__name__ in capsys.readouterr().out
