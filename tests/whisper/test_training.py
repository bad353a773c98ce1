"""Distillation, recognition and translation from Whisper's weights, on a few seconds of noise."""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from echostream.training.warm_start import train
from echostream.training.warm_start.augment import AugmentOptions, augment
from echostream.training.warm_start.clips import Batch, Clip, SpeechPool, draw_batch, sound
from echostream.training.warm_start.measure import measure, read_clips
from echostream.training.warm_start.train import weighted_folder
from echostream.training.warm_start.trainer import (
    batch_features,
    relative_distance,
    stack_outputs,
)
from tests.whisper.small_training import LOSSES_OF_TEXT, RATE, SOURCES, TARGETS, build

ALL_EFFECTS = AugmentOptions(
    room=1.0, noise=1.0, music=1.0, telephone=0.5, narrow=0.5, codec=1.0, clipped=0.5
)


def test_pool_reads_what_is_there(pool, speech):
    assert [one.source for one in pool.texts] == list(SOURCES)
    assert [one.target for one in pool.texts] == list(TARGETS)
    assert pool.sounds[0].length == 16000  # resampled, channels averaged
    assert len(pool.samples) == sum(one.length for one in pool.texts + pool.sounds)
    assert pool.refresh() == 0
    assert pool.hours[0] > 3 / 3600


def test_numbers_are_spelled_in_the_language_of_the_speech(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros(RATE, np.float32), RATE)
    entry = {"id": "train_a", "text": "J'ai 21 ans !", "file": "a.flac"}
    (tmp_path / "part-0.jsonl").write_text(json.dumps(entry) + "\n")
    pool = SpeechPool([tmp_path], [], {}, language="fr")
    pool.refresh()
    assert pool.texts[0].source == "j ai vingt et un ans"
    (tmp_path / "held.tsv").write_text("file\tsource\ttarget\na.flac\tJ'ai 21 ans !\tI am 21\n")
    (clip,) = read_clips(tmp_path / "held.tsv", language="fr")
    assert clip.source == "j ai vingt et un ans"


def test_clips_join_utterances(pool):
    for seed in range(5):
        batch = draw_batch(pool, 6.0, random.Random(seed), sounds=0.0)
        sounds = sound(pool.samples, batch)
        assert sounds.shape == (len(batch.clips), batch.size)
        for clip, heard in zip(batch.clips, sounds, strict=True):
            assert len(clip.parts) == len(clip.speech)
            rest = heard.clone()
            for (start, end), one in zip(clip.parts, clip.speech, strict=True):
                expected = pool.samples[one.start : one.start + one.length] / 32768
                torch.testing.assert_close(heard[start:end], expected, atol=1e-6, rtol=0)
                rest[start:end] = 0
            assert end < clip.length <= batch.size and not rest.any()


def test_clips_are_played_faster_or_slower(pool):
    lengths = {one.length for one in pool.texts}
    found = set()
    for seed in range(5):
        for clip in draw_batch(pool, 6.0, random.Random(seed), sounds=0.0, speed=0.1).clips:
            for (start, end), one in zip(clip.parts, clip.speech, strict=True):
                assert abs(end - start - one.length) <= 0.12 * one.length
                found.add(end - start)
    assert len(found - lengths) > 5


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_another_speed_is_another_height(pool, speed):
    time = torch.arange(RATE) / RATE
    samples = (torch.sin(2 * torch.pi * 1000 * time) * 8000).short()
    length = round(RATE / speed)
    tone = replace(pool.texts[0], start=0, length=RATE)
    (heard,) = sound(samples, Batch((Clip(length, ((0, length),), (tone,)),), length))
    time = torch.arange(length) / RATE
    expected = torch.sin(2 * torch.pi * 1000 * RATE / length * time) * 8000 / 32768
    torch.testing.assert_close(heard[20:-20], expected[20:-20], atol=2e-3, rtol=0)


def test_speech_of_a_heavy_folder_is_drawn_more_often(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, count in zip(folders, (10, 10, 5), strict=True):
        folder.mkdir()
        soundfile.write(folder / "x.flac", np.zeros(RATE * 2, np.float32), RATE)
        entries = [
            {"id": f"train_{index}", "text": folder.name, "file": "x.flac"}
            for index in range(count)
        ]
        (folder / "part-0.jsonl").write_text("\n".join(map(json.dumps, entries)))
    pool = SpeechPool(folders, [], {}, weights={folders[1]: 3.0, folders[2]: 0.5})
    pool.refresh()
    assert pool.hours[0] == pytest.approx(25 * 2 / 3600)  # as long as it is
    batch = draw_batch(pool, 3000.0, random.Random(0))
    drawn = Counter(one.source for clip in batch.clips for one in clip.speech)
    shares = [drawn[name] / drawn.total() for name in "abc"]
    assert shares == pytest.approx([10 / 42.5, 30 / 42.5, 2.5 / 42.5], abs=0.04)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speech", ("speech", 1.0)),
        ("out/speech:3", ("out/speech", 3.0)),
        ("speech:0.5", ("speech", 0.5)),
        ("speech:3/", ("speech:3", 1.0)),
        ("a:3/speech", ("a:3/speech", 1.0)),
        ("a:b", ("a:b", 1.0)),
    ],
)
def test_folders_have_weights(text, expected):
    folder, weight = weighted_folder(text)
    assert (folder.as_posix(), weight) == expected


@pytest.mark.parametrize("weight", ["0", "-1", "inf", "nan"])
def test_weights_are_positive(weight):
    with pytest.raises(argparse.ArgumentTypeError, match="above 0 and finite"):
        weighted_folder(f"speech:{weight}")


def test_augmented_padding_stays_silent():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 9000, generator=generator) * 0.1
    lengths = torch.tensor([9000, 4000, 8999, 1])
    x *= torch.arange(9000) < lengths[:, None]
    first = augment(x, lengths, torch.Generator().manual_seed(1), ALL_EFFECTS)
    again = augment(x, lengths, torch.Generator().manual_seed(1), ALL_EFFECTS)
    torch.testing.assert_close(first, again)
    assert bool(torch.isfinite(first).all())
    assert first.abs().max() <= 1.0
    for row, length in enumerate(lengths.tolist()):
        assert not first[row, length:].any()
        assert not torch.allclose(first[row, :length], x[row, :length])


def test_telephone_band_holds_no_high_tones():
    time = torch.arange(16000) / RATE
    x = (torch.sin(2 * torch.pi * 1000 * time) + torch.sin(2 * torch.pi * 6000 * time))[None] * 0.2
    quiet = dict.fromkeys(("room", "noise", "music", "narrow", "codec", "clipped"), 0.0)
    options = AugmentOptions(telephone=1.0, gain_db=(0.0, 0.0), **quiet)
    out = augment(x, torch.tensor([16000]), torch.Generator().manual_seed(0), options)
    spectrum = torch.fft.rfft(out[0]).abs()
    assert spectrum[6000] < 1e-3 * spectrum[1000]


def test_whisper_is_no_distance_from_itself(hugging_face_folder, tokenizer, pool):
    """One block over the whole clip, one scale: what remains is nothing."""
    trainer = build(hugging_face_folder, tokenizer, pool)
    waveforms = torch.randn(2, 9000) * 0.1
    features, frames = batch_features(
        waveforms,
        torch.tensor([9000, 7000]),
        trainer.system.config.frontend,
        running=False,
    )
    options = {"segment_frames": [features.size(1) // 4], "offsets": torch.tensor([3, 50])}
    trainer.model.eval()
    own, _ = stack_outputs(trainer.model.encoder, features, frames, **options)
    goals, _ = stack_outputs(trainer.teacher, features, frames, **options)
    valid = torch.arange(own[-1].size(1)) < (frames // 2)[:, None]
    for a, b in zip(own, goals, strict=True):
        assert relative_distance(a, b, valid) < 1e-10


def test_training_learns_and_teaches_the_student_alone(hugging_face_folder, tokenizer, pool):
    trainer = build(hugging_face_folder, tokenizer, pool, encoder_rate=1e-2, sounds_share=0.3)
    with torch.no_grad():  # something to learn: a random network hardly looks around
        trainer.model.encoder.layer_norm.bias.add_(0.5)
    before = {name: t.clone() for name, t in trainer.teacher.state_dict().items()}
    stem = trainer.model.encoder.subsample.conv1.weight.clone()
    found = [trainer.update() for _ in range(30)]
    first, last = (
        np.mean([float(losses["distance"]) for losses in part]) for part in (found[:5], found[-5:])
    )
    assert last < 0.6 * first
    assert {"asr", "st", "mt", "transcript", "distance", "hidden"} == set().union(*found)
    assert any(set(losses) == {"distance", "hidden"} for losses in found)  # sounds without text
    for name, tensor in trainer.teacher.state_dict().items():
        torch.testing.assert_close(tensor, before[name])
    torch.testing.assert_close(trainer.model.encoder.subsample.conv1.weight, stem)


def test_resumed_training_is_the_same(hugging_face_folder, tokenizer, pool, tmp_path):
    trainer = build(hugging_face_folder, tokenizer, pool)
    for _ in range(2):
        trainer.update()
    trainer.save(tmp_path / "checkpoint.pt")
    torch.manual_seed(1)
    expected = trainer.update()
    resumed = build(hugging_face_folder, tokenizer, pool)
    resumed.load(tmp_path / "checkpoint.pt")
    torch.manual_seed(1)
    found = resumed.update()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_another_run_gives_its_weights_alone(hugging_face_folder, tokenizer, pool, tmp_path):
    first = build(hugging_face_folder, tokenizer, pool, st_share=0.0, sounds_share=0.0)
    assert "st" not in first.update()
    first.save(tmp_path / "checkpoint.pt")
    second = build(hugging_face_folder, tokenizer, pool)
    second.load_weights(tmp_path / "checkpoint.pt")
    assert second.progress.updates == 0
    for name, tensor in second.model.state_dict().items():
        torch.testing.assert_close(tensor, first.model.state_dict()[name], rtol=0, atol=0)


def test_a_run_without_transcripts_gives_its_weights(
    hugging_face_folder, tokenizer, pool, tmp_path
):
    first = build(hugging_face_folder, tokenizer, pool)
    decoder = first.model.target_unigram_decoder
    name = "target_unigram_decoder.embed_tokens.weight"
    weights = {key: tensor.clone() + 1.0 for key, tensor in first.model.state_dict().items()}
    weights[name] = weights[name][: decoder.vocab_size]
    torch.save({"model": weights}, tmp_path / "checkpoint.pt")
    started = decoder.embed_tokens.weight[decoder.vocab_size :].clone()
    first.load_weights(tmp_path / "checkpoint.pt")
    found = first.model.state_dict()
    torch.testing.assert_close(found[name][: decoder.vocab_size], weights[name])
    torch.testing.assert_close(found[name][decoder.vocab_size :], started)
    torch.testing.assert_close(
        found["encoder.merge.linear.bias"], weights["encoder.merge.linear.bias"]
    )


def test_alone_means_that_heads_do_not_teach(hugging_face_folder, tokenizer, pool):
    """While they are alone the encoder's gradient is that of distillation."""
    gradients = []
    for weight in (1.0, 0.0):
        trainer = build(
            hugging_face_folder,
            tokenizer,
            pool,
            alone=1.0,
            sounds_share=0.0,
            asr_weight=weight,
            mt_weight=weight,
            st_weight=weight,
        )
        torch.manual_seed(2)
        trainer.update()
        gradients.append(trainer.model.encoder.emformer.layers[0].fc1.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-3)


def test_measure(hugging_face_folder, tokenizer, pool, held_out):
    trainer = build(hugging_face_folder, tokenizer, pool)
    found = measure(trainer.system, read_clips(held_out))
    assert found.wer is not None and found.wer > 0
    assert len(found.examples) == 2 and found.examples[0][1] == "the cat"
    assert trainer.model.training


def test_an_encoder_that_nobody_teaches_stays(hugging_face_folder, tokenizer, pool):
    trainer = build(hugging_face_folder, tokenizer, pool, encoder_rate=0.0, sounds_share=0.0)
    before = {name: t.clone() for name, t in trainer.model.encoder.state_dict().items()}
    written = trainer.model.target_unigram_decoder.embed_tokens.weight.clone()
    found = [trainer.update() for _ in range(3)]
    assert all({"asr", "mt", "transcript"} <= set(losses) <= LOSSES_OF_TEXT for losses in found)
    for name, tensor in trainer.model.encoder.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    after = trainer.model.target_unigram_decoder.embed_tokens.weight
    assert not torch.equal(after, written)


@pytest.mark.slow
def test_compiled_layers_give_the_same_losses_in_any_shape(
    hugging_face_folder, tokenizer, pool, held_out, capsys
):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiler = {"backend": backend, "fullgraph": True}
    settings = {"batch_seconds": 25.0, "long_segments": 0.5}
    plain = build(hugging_face_folder, tokenizer, pool, **settings)
    captured = build(hugging_face_folder, tokenizer, pool, compiler, **settings)
    found = []
    for trainer in (captured, plain):
        torch.manual_seed(1)  # dropout of the heads
        found.append(trainer.update())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    # Of teacher and student, each with a first layer and others, and of the text decoder.
    assert 0 < len(graphs) <= 5
    made = list(graphs)
    for _ in range(2):
        captured.update()
    train._report(captured, {"held": read_clips(held_out)})
    assert "held: WER" in capsys.readouterr().out
    assert graphs == made
