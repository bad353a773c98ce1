"""Streams are dealt from utterances: nothing lost, nothing twice, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("fairseq")

from echostream.checkpoint import load_model_dir  # noqa: E402
from echostream.config import FrontendConfig  # noqa: E402
from echostream.fairseq_plugin.architectures import build_config  # noqa: E402
from echostream.fairseq_plugin.data_config import (  # noqa: E402
    ASR_TASK,
    MT_TASK,
    DataConfig,
    load_text_tasks,
)
from echostream.fairseq_plugin.export import export_checkpoint  # noqa: E402
from echostream.fairseq_plugin.nonspeech import (  # noqa: E402
    DB,
    FLOOR,
    KINDS,
    NonspeechPool,
    mix,
    speech_span,
)
from echostream.fairseq_plugin.streams import (  # noqa: E402
    EDGE_FRAMES,
    LATE_START_FRAMES,
    StreamDataset,
    StreamOptions,
    plan_epoch,
)
from echostream.text import Vocabulary  # noqa: E402
from tests.fairseq_plugin.corpus import (  # noqa: E402
    BINS,
    SOURCE_PIECES,
    TARGET_PIECES,
    UNITS,
)
from tests.fairseq_plugin.trainer import run_training  # noqa: E402


@pytest.fixture(scope="module")
def pool():
    return NonspeechPool.synthesize(FrontendConfig(), 1, seconds=2.0, each=1)


def open_streams(folder, options=None, *, training=True, seed=1):
    config = build_config(
        "echostream_tiny", {}, source_vocab_size=SOURCE_PIECES + 4,
        target_vocab_size=TARGET_PIECES + 4, num_units=UNITS, num_mel_bins=BINS,
    )  # fmt: skip
    dataset = StreamDataset.load(
        "train",
        folder,
        DataConfig.load(folder / "config_gcmvn.yaml"),
        load_text_tasks(folder / "config_mtl_asr_st_ctcst.yaml"),
        config,
        training=training,
        unfit="error",
        seed=seed,
    )
    return dataset.join(options or StreamOptions(4, frames=1200), config.frontend)


@pytest.mark.parametrize("sentences", [1, 3, 10])
@pytest.mark.parametrize("seed", range(3))
def test_every_utterance_is_dealt_once(sentences, seed):
    rng = np.random.default_rng(seed)
    frames = rng.integers(100, 700, 200)
    speakers = [str(s) for s in rng.integers(0, 5, 200)]
    options = StreamOptions(sentences, frames=2000)
    plans = plan_epoch(frames, speakers, options, 10.0, (seed, 1))
    assert sorted(row for plan in plans for row in plan.rows) == list(range(200))
    for plan in plans:
        assert 1 <= len(plan.rows) <= sentences
        onset = plan.onset[1] + EDGE_FRAMES if plan.onset else 0
        assert plan.frames == frames[list(plan.rows)].sum() + sum(plan.pauses) + onset
        assert len(plan.pauses) == len(plan.rows) + 1
        assert all(s <= p for s, p in zip(plan.stretches, plan.pauses, strict=True))
    again = plan_epoch(frames, speakers, options, 10.0, (seed, 1))
    assert again == plans != plan_epoch(frames, speakers, options, 10.0, (seed, 2))


def test_some_streams_keep_their_speaker_and_some_mix():
    rng = np.random.default_rng(0)
    speakers = [str(s) for s in rng.integers(0, 4, 400)]
    plans = plan_epoch(np.full(400, 200), speakers, StreamOptions(6), 10.0, (1,))
    several = [{speakers[row] for row in plan.rows} for plan in plans if len(plan.rows) > 2]
    one = sum(len(names) == 1 for names in several)
    assert one > len(several) / 4 and len(several) - one > len(several) / 4


def test_streams_hold_their_utterances(corpus):
    dataset = open_streams(corpus)
    several = touching = 0
    for index, plan in enumerate(dataset.plans):
        stream = dataset[index]
        assert stream.features.shape[1] == BINS
        assert len(stream.features) <= plan.frames
        assert bool(torch.isfinite(stream.features).all())
        assert len(stream.sentences) == len(stream.spans) == len(plan.rows)
        several += len(plan.rows) > 1
        behind = 0
        for row, (begin, end), pause in zip(plan.rows, stream.spans, plan.pauses[:-1], strict=True):
            first, last = speech_span(dataset._load(row))
            late = 0 if behind else LATE_START_FRAMES  # a stream may begin in the middle of things
            assert last - first - late <= end - begin <= last - first
            # Nothing but the pause and what is left of the edges lies between.
            edges = first if not behind else 2 * EDGE_FRAMES
            assert behind + pause <= begin <= behind + pause + edges
            touching += bool(behind) and begin == behind
            assert pause or not behind or begin == behind
            behind = end
        assert behind <= len(stream.features)
    assert several and touching


def test_streams_repeat_for_an_epoch_and_change_with_it(corpus):
    one, other = open_streams(corpus), open_streams(corpus)
    assert torch.equal(one[0].features, other[0].features)
    plans = one.plans
    one.set_epoch(2)
    assert one.plans != plans and not one.can_reuse_epoch_itr_across_epochs
    one.set_epoch(1)
    assert one.plans == plans
    held_out = open_streams(corpus, training=False)
    plans = held_out.plans
    held_out.set_epoch(5)
    assert held_out.plans == plans and held_out.can_reuse_epoch_itr_across_epochs


def test_batches_end_every_sentence_and_keep_a_row_for_each(corpus):
    dataset = open_streams(corpus)
    samples = [dataset[index] for index in range(len(dataset))]
    batch = dataset.collater(samples)
    sentences = batch["net_input"]["sentences"]
    count = sum(len(s.sentences) for s in samples)
    assert sentences.shape == (count, 3)
    assert len(batch["target"]) == count == len(batch["texts"][MT_TASK]["target"])
    asr = batch["texts"][ASR_TASK]["target"]
    assert len(asr) == len(samples)
    for row, sample in zip(asr, samples, strict=True):
        assert int((row == Vocabulary.eos).sum()) == len(sample.sentences)
        assert row[row != Vocabulary.pad][-1] == Vocabulary.eos
    assert (sentences[:, 0].diff() >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_sounds_have_the_level_asked_for(pool, kind):
    rng = np.random.default_rng(0)
    loud = pool.draw(150, -10.0, rng, (kind,))
    assert loud.shape == (150, 80) and np.isfinite(loud).all()
    quiet = pool.draw(150, -40.0, np.random.default_rng(0), (kind,))
    loud = pool.draw(150, -10.0, np.random.default_rng(0), (kind,))
    above = quiet > FLOOR
    assert np.allclose((loud - quiet)[above], 30 * DB, atol=1e-3)
    # White noise at full scale has the power of 16-bit samples in every band.
    if kind == "white":
        assert pool.draw(150, 0.0, rng, (kind,)).mean() > 15


def test_mixing_adds_powers():
    one = np.full((3, 4), np.log(2.0))
    assert np.allclose(mix(one, np.full((3, 4), np.log(6.0))), np.log(8.0))
    assert np.allclose(mix(one, np.full((3, 4), FLOOR)), one, atol=1e-6)


def test_pauses_carry_the_background_on(pool):
    rng = np.random.default_rng(0)
    left = rng.normal(2.0, 0.3, (50, 80)).astype(np.float32)
    right = rng.normal(6.0, 0.3, (50, 80)).astype(np.float32)
    pause = pool.extend(left, right, 400, rng)
    assert abs(pause[:20].mean() - 2.0) < 0.4 and abs(pause[-20:].mean() - 6.0) < 0.4
    assert pool.extend(None, right, 30, rng).mean() > 5
    assert pool.extend(left, None, 0, rng).shape == (0, 80)


def test_speech_is_what_rises_above_the_edges():
    features = np.full((100, 80), -3.0, dtype=np.float32)
    features[20:70] = 5.0
    assert speech_span(features) == (20, 70)
    assert speech_span(np.zeros((10, 80), dtype=np.float32)) == (0, 10)


@pytest.mark.parametrize(
    "values", [{"sentences": 0}, {"sentences": 2, "frames": 0}, {"sentences": 2, "pause_ms": -1}]
)
def test_impossible_streams_are_refused(values):
    with pytest.raises(ValueError, match="at least one sentence"):
        StreamOptions(**values)


@pytest.mark.parametrize("arch", ["echostream_tiny", "streamspeech_tiny"])
def test_training_on_streams_runs_validates_and_resumes(corpus, tmp_path, arch):
    sentences = "3" if arch.startswith("echostream") else "1"
    flags = ["--arch", arch, "--stream-sentences", sentences, "--stream-frames", "1500"]
    flags += ["--lr", "0.001", "--save-interval-updates", "2"]
    log = run_training(corpus, tmp_path / "save", *flags, "--max-update", "2")
    assert '"dev_asr_error"' in log
    log = run_training(corpus, tmp_path / "save", *flags, "--max-update", "4")
    assert "at 4 updates" in log or "@ 4 updates" in log
    out = tmp_path / "model"
    export_checkpoint(tmp_path / "save" / "checkpoint_last.pt", out)
    endpoint = load_model_dir(out).config.endpoint
    assert endpoint.method == "learned" and endpoint.endpoint_ms == 2000
