"""The shipped systems: what is in the box, and that they translate."""

import dataclasses

import numpy as np
import pytest
import sacrebleu
import soundfile
import torch
from safetensors.torch import load_file

from echostream.assets import ECHO_MINI, SYSTEMS, model_dir
from echostream.checkpoint import KNOWN_FILES, load_model_dir
from echostream.config import ChunkConformerConfig, EmformerConfig, EndpointConfig
from echostream.session import Session
from echostream.translator.pipeline import Pipeline
from tests.speech import ROOT, TEST_AUDIO, speech_alone


@pytest.fixture(scope="module")
def systems():
    return {name: load_model_dir(model_dir(name)) for name in SYSTEMS}


def test_the_box_is_small_half_precision_and_described():
    files = [path for path in ECHO_MINI.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60e6
    for name in SYSTEMS:
        assert {path.name for path in model_dir(name).iterdir()} <= KNOWN_FILES
        for weights in model_dir(name).glob("*.safetensors"):
            kinds = {tensor.dtype for tensor in load_file(weights).values()}
            assert torch.float16 in kinds and torch.float32 not in kinds
    card = (ECHO_MINI / "README.md").read_text()
    assert "small domain" in card and "synthetic voices" in card


def test_the_twin_differs_in_its_encoder_alone(systems):
    ours, baseline = (systems[name].config for name in SYSTEMS)
    assert isinstance(ours.encoder, EmformerConfig)
    assert isinstance(baseline.encoder, ChunkConformerConfig)
    for part in ("frontend", "asr_ctc", "st_ctc", "mt", "t2u", "unit", "vocoder", "policy"):
        assert getattr(ours, part) == getattr(baseline, part), part
    sizes = [
        sum(parameter.numel() for parameter in systems[name].model.parameters()) for name in SYSTEMS
    ]
    assert abs(sizes[0] - sizes[1]) < 0.1 * sizes[1]
    vocoders = [load_file(model_dir(name) / "vocoder.safetensors") for name in SYSTEMS]
    assert all(torch.equal(tensor, vocoders[1][name]) for name, tensor in vocoders[0].items())


@pytest.mark.parametrize("name", SYSTEMS)
def test_shipped_utterances_are_translated(systems, name):
    """Six of them, while they come in; the model card has the figures on all 300."""
    wavs = (TEST_AUDIO / "wav_list.txt").read_text().split()[::5]
    references = (TEST_AUDIO / "target.txt").read_text().splitlines()[::5]
    pipeline = Pipeline(systems[name], chunk_ms=320)
    written = []
    for wav in wavs:
        samples, rate = soundfile.read(ROOT / wav, dtype="float32")
        outputs, _ = pipeline.step(samples, rate, pipeline.init_state(), final=True)
        written.append(" ".join(word for out in outputs for word in out.translation))
        before_the_end = [out for out in outputs if len(out.waveform) and not out.final]
        assert before_the_end, wav
        seconds = sum(len(out.waveform) for out in outputs) / pipeline.output_rate
        assert 0.5 < seconds < 10, wav
    floor = {"echostream": 75, "streamspeech": 65}[name]
    assert sacrebleu.corpus_bleu(written, [references]).score > floor


def test_unknown_systems_are_named():
    with pytest.raises(ValueError, match="echostream, streamspeech, everyday, got 'other'"):
        model_dir("other")


def test_the_talk_is_translated_as_one_stream(systems):
    """Its first 40 seconds, 12 sentences; the model card has whole talks and an hour."""
    samples, rate = soundfile.read(ROOT / "data/echo_mini/talk/talk.flac", dtype="float32")
    references = (ROOT / "data/echo_mini/talk/target.txt").read_text().split()
    session = Session(Pipeline(systems["echostream"], chunk_ms=320, task="s2tt"))
    session.push(samples[: 40 * rate], rate, final=True)
    said = [sentence for sentence in session.sentences if sentence.translation]
    assert 11 <= len(said) <= 15
    words = session.translation
    part = " ".join(references[: len(words)])
    assert sacrebleu.corpus_bleu([" ".join(words)], [[part]]).score > 88


def test_sentences_without_a_pause_are_told_apart(systems):
    """Ten shipped utterances by several speakers, nothing at all between two of them."""
    wavs = (TEST_AUDIO / "wav_list.txt").read_text().split()[:10]
    references = (TEST_AUDIO / "target.txt").read_text().splitlines()[:10]
    session = Session(Pipeline(systems["echostream"], chunk_ms=320, task="s2tt"))
    session.push(np.concatenate([speech_alone(wav) for wav in wavs]), 16000, final=True)
    assert 8 <= len([sentence for sentence in session.sentences if sentence.translation]) <= 11
    words = " ".join(session.translation)
    assert sacrebleu.corpus_bleu([words], [[" ".join(references)]]).score > 70


@pytest.mark.parametrize("sound", ["silence", "noise", "tone"])
def test_nothing_said_nothing_spoken(systems, sound):
    rng, seconds = np.random.default_rng(0), 20
    samples = {
        "silence": np.zeros(16000 * seconds),
        "noise": 0.2 * rng.standard_normal(16000 * seconds),
        "tone": 0.3 * np.sin(np.arange(16000 * seconds) * 2 * np.pi * 440 / 16000),
    }[sound].astype(np.float32)
    session = Session(Pipeline(systems["echostream"], chunk_ms=320))
    session.push(samples, 16000, final=True)
    assert len(session.translation) <= 1
    assert session.samples_written <= 16000 * bool(session.translation)


def test_silence_does_not_fill_an_encoder_that_remembers_everything(systems):
    """The chunk Conformer starts anew in long silences, and what is said behind them is heard."""
    endpoint = EndpointConfig("learned", max_sentence_ms=2000)
    pipeline = Pipeline(systems["streamspeech"], chunk_ms=320, task="s2tt", endpoint=endpoint)
    state, sizes, frames = pipeline.init_state(), [], 0
    for _ in range(40):
        outputs, state = pipeline.step(np.zeros(5120, dtype=np.float32), 16000, state)
        frames += sum(output.encoder_frames for output in outputs)
        sizes.append(stored(state))
    assert max(sizes[8:]) <= max(sizes[:8])
    wav = (TEST_AUDIO / "wav_list.txt").read_text().split()[0]
    samples, rate = soundfile.read(ROOT / wav, dtype="float32")
    outputs, state = pipeline.step(samples, rate, state, final=True)
    frames += sum(output.encoder_frames for output in outputs)
    reference = (TEST_AUDIO / "target.txt").read_text().splitlines()[0]
    words = " ".join(word for output in outputs for word in output.translation)
    assert sacrebleu.sentence_bleu(words, [reference]).score > 30
    windows = (40 * 5120 + len(samples) - 400) // 160 + 1
    assert frames == -(-windows // 4)


def stored(state) -> int:
    """Elements of all tensors in a state."""
    if isinstance(state, torch.Tensor):
        return state.numel()
    if dataclasses.is_dataclass(state):
        return sum(stored(getattr(state, field.name)) for field in dataclasses.fields(state))
    return sum(map(stored, state)) if isinstance(state, tuple) else 0
