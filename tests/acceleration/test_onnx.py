"""The exported system against torch: the same tokens and decisions, the same speech."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from echostream.acceleration.onnx import graphs
from echostream.acceleration.onnx.cache import ArrayCache, causal_mask
from echostream.acceleration.onnx.numpy_filterbank import ArrayFrontend
from echostream.acceleration.onnx.onnx_export import export_onnx, filterbank_tables
from echostream.acceleration.onnx.onnx_manifest import MANIFEST_FILE, Manifest, read_manifest
from echostream.acceleration.onnx.runtime import (
    load_from_args,
    load_onnx_dir,
    onnx_pipeline,
)
from echostream.assets import model_dir
from echostream.audio import fbank
from echostream.checkpoint import System, load_model_dir, save_model_dir
from echostream.cli import build_parser, main
from echostream.config import (
    ChunkConformerConfig,
    EmformerConfig,
    EndpointConfig,
    PolicyConfig,
    SpeechConfig,
    preset,
)
from echostream.models.echostream_model import seeded_model
from echostream.models.kv_cache import KVCache
from echostream.models.kv_cache import causal_mask as torch_causal_mask
from echostream.samples import read_audio
from echostream.session import Session
from echostream.synthetic import SEED, random_system, synthetic_clip
from echostream.threads import suitable_threads
from echostream.translator.pipeline import Pipeline
from echostream.translator.stream import Decision

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "echo_mini"
TALK = DATA / "talk" / "talk.flac"
WAVES = 1e-4  # largest difference of a sample
SAME = (
    "source_ms",
    "write",
    "final",
    "asr_tokens",
    "st_tokens",
    "mt_tokens",
    "units",
    "transcript",
    "translation",
    "transcript_tail",
    "translation_tail",
    "encoder_frames",
    "sentence",
    "sentence_end",
    "backlog_ms",
)


OLD_MANIFEST = Manifest(preset("tiny"), {}, {}, None, {}, {}, {})


def every_part(**encoder) -> System:
    """A tiny random system in which no part is left out: look-ahead, memory, a convolution, layers
    in both heads and in the text-to-unit encoder, windows that are soon full."""
    small = random_system()
    config = replace(
        small.config,
        encoder=replace(
            small.config.encoder,
            **{"layers": 1, "right_context_frames": 4, "depthwise_kernel_size": 5, **encoder},
        ),
        asr_ctc=replace(small.config.asr_ctc, layers=1, attention_heads=4, context_frames=9),
        st_ctc=replace(small.config.st_ctc, layers=1, context_frames=30),
        mt=replace(small.config.mt, layers=1, context_tokens=3, source_context_frames=20),
        t2u=replace(small.config.t2u, layers=1, context_tokens=4),
        unit=replace(small.config.unit, layers=1, context_tokens=2),
        vocoder=replace(
            small.config.vocoder,
            upsample_rates=(16, 20),
            upsample_kernel_sizes=(32, 40),
            resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1, 3),),
        ),
    )
    return replace(small, config=config, model=seeded_model(config, SEED))


@pytest.fixture(scope="module")
def tiny() -> System:
    return every_part()


@pytest.fixture(scope="module")
def tiny_export(tiny, tmp_path_factory) -> Path:
    """Written by the command, over an older export."""
    root = tmp_path_factory.mktemp("onnx")
    save_model_dir(root / "model", tiny)
    (root / "tiny").mkdir()
    old = replace(OLD_MANIFEST, config=tiny.config)
    (root / "tiny" / MANIFEST_FILE).write_text(old.to_json())
    assert main(["export-onnx", str(root / "model"), str(root / "tiny")]) == 0
    return root / "tiny"


@pytest.fixture(scope="module")
def shipped() -> System:
    return load_model_dir(model_dir("echostream"))


@pytest.fixture(scope="module")
def shipped_export(shipped, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "shipped"
    export_onnx(shipped, folder)
    return folder


def decisions(pipeline: Pipeline, samples: np.ndarray, rate: int, block: int) -> list[Decision]:
    session, found = Session(pipeline), []
    for start in range(0, len(samples), block):
        final = start + block >= len(samples)
        found += session.push(samples[start : start + block], rate, final=final)
    return found


def check_equal(exported: list[Decision], expected: list[Decision]) -> None:
    assert len(exported) == len(expected)
    for found, wanted in zip(exported, expected, strict=True):
        for name in SAME:
            assert getattr(found, name) == getattr(wanted, name), (name, wanted.source_ms)
        assert found.waveform.dtype == np.float32
        assert found.waveform.shape == wanted.waveform.shape
        np.testing.assert_allclose(found.waveform, wanted.waveform, rtol=0, atol=WAVES)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunk_ms": 160, "policy": PolicyConfig(name="wait_k", lagging_k1=1)},
        {"endpoint": EndpointConfig("pause", endpoint_ms=320, min_tokens=1)},
        {"chunk_ms": 640, "speech": SpeechConfig(whole_words=True, fill_chunks=2.0)},
        {"dur_prediction": False},
        {"task": "s2tt"},
        {"task": "asr"},
    ],
    ids=str,
)
def test_every_part_equals_torch(tiny, tiny_export, options):
    """Longer than any window, at a rate that has to be converted, in blocks of any length."""
    clip = synthetic_clip(6.0, 22050, 3)
    exported = onnx_pipeline(load_onnx_dir(tiny_export), **options)
    found = decisions(exported, clip, 22050, 1777)
    expected = decisions(Pipeline(tiny, **options), clip, 22050, 5000)
    check_equal(found, expected)
    if options.get("task", "s2st") != "asr":
        assert sum(len(one.mt_tokens) for one in expected) > 5
    if options.get("task", "s2st") == "s2st":
        assert sum(len(one.waveform) for one in expected) > 10_000


@pytest.mark.slow
def test_a_system_without_the_optional_parts_equals_torch(tmp_path):
    """One-dimensional subsampling, no memory, no look-ahead, no layers in the heads, no vocoder."""
    full = every_part(
        subsampler="conv1d_glu", memory_size=0, right_context_frames=0, depthwise_kernel_size=0
    )
    config = replace(
        full.config,
        asr_ctc=replace(full.config.asr_ctc, layers=0),
        st_ctc=replace(full.config.st_ctc, layers=0),
        t2u=replace(full.config.t2u, layers=0),
        vocoder=None,
    )
    system = replace(full, config=config, model=seeded_model(config, SEED))
    export_onnx(system, tmp_path / "out")
    assert not (tmp_path / "out" / "vocoder.onnx").exists()
    clip = synthetic_clip(4.0, 16000, 5)
    exported = load_onnx_dir(tmp_path / "out")
    found = decisions(onnx_pipeline(exported, task="s2tt"), clip, 16000, 1600)
    check_equal(found, decisions(Pipeline(system, task="s2tt"), clip, 16000, 1600))
    with pytest.raises(ValueError, match="'s2st' needs a model with a vocoder"):
        onnx_pipeline(exported, task="s2st")


@pytest.mark.slow
@pytest.mark.parametrize("chunk_ms", [320, 640])
def test_the_shipped_system_equals_torch_on_a_talk(shipped, shipped_export, chunk_ms):
    """Its first 20 seconds, with ends of sentences inside the stream."""
    with soundfile.SoundFile(TALK) as file:
        rate = file.samplerate
        samples = file.read(20 * rate, dtype="float32")
    found = decisions(
        onnx_pipeline(load_onnx_dir(shipped_export), chunk_ms=chunk_ms), samples, rate, 1600
    )
    check_equal(found, decisions(Pipeline(shipped, chunk_ms=chunk_ms), samples, rate, 1600))
    assert sum(one.sentence_end and not one.final for one in found) >= 4
    assert sum(len(one.waveform) for one in found) > 8 * rate


@pytest.mark.slow
def test_the_shipped_system_equals_torch_on_clips(shipped, shipped_export):
    exported, pipeline = onnx_pipeline(load_onnx_dir(shipped_export)), Pipeline(shipped)
    for path in (DATA / "test_audio" / "wav_list.txt").read_text().split()[::10]:
        samples, rate = read_audio(ROOT / path)
        found = decisions(exported, samples, rate, 4000)
        check_equal(found, decisions(pipeline, samples, rate, 4000))
        assert any(one.translation for one in found), path


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # whoever imports it fails
from echostream.cli import main
status = main(sys.argv[1:])
loaded = {name.split(".")[0] for name in sys.modules if sys.modules[name] is not None}
assert "onnxruntime" in loaded
assert not loaded & {"torch", "torchaudio", "safetensors"}, loaded
sys.exit(status)
"""


def test_a_file_is_translated_without_torch(tiny, tiny_export, tmp_path):
    clip, out = tmp_path / "clip.wav", tmp_path / "speech.wav"
    soundfile.write(clip, synthetic_clip(3.0, 16000, 4), 16000)
    command = [sys.executable, "-c", WITHOUT_TORCH, "translate", str(clip), "--out", str(out)]
    command += ["--runtime", "onnx", "--model-dir", str(tiny_export), "--json", "--srt", "--text"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    samples, rate = read_audio(clip)
    expected = decisions(Pipeline(tiny), samples, rate, 1600)
    spoken = np.concatenate([one.waveform for one in expected])
    written, _ = read_audio(out)
    assert len(written) == len(spoken) > 1000
    np.testing.assert_allclose(written, spoken, rtol=0, atol=WAVES + 2**-15)  # 16-bit samples
    sentences = json.loads(out.with_suffix(".json").read_text())["sentences"]
    words = [word for one in expected for word in one.translation]
    assert [word for one in sentences for word in one["translation"]] == words


def test_the_filterbank_equals_torchaudio_and_any_cut_gives_the_same(shipped):
    """In float32 torchaudio itself lies up to 1e-3 from its float64, in the quietest bins; all but
    one value in a thousand lie within 1e-4 of the features' scale."""
    samples, rate = read_audio(TALK)
    config = shipped.config.frontend
    frontend = ArrayFrontend(config, filterbank_tables(shipped))
    waveform = samples[: 20 * rate]
    expected = fbank(torch.from_numpy(waveform), config).numpy()
    found = frontend.filterbank(waveform)
    assert found.shape == expected.shape and found.dtype == np.float32
    difference = np.abs(found - expected)
    assert np.quantile(difference, 0.999) < 1e-4 * expected.std()
    assert difference.max() < 2e-3
    np.testing.assert_allclose(
        frontend.features(waveform),
        shipped.frontend().features(waveform).numpy(),
        rtol=0,
        atol=1e-3,
    )
    state, parts = frontend.init_state(), []
    cuts = [0, 100, 101, 5000, 60_000, 60_007, len(waveform)]
    for start, stop in zip(cuts, cuts[1:], strict=False):
        features, state = frontend.step(waveform[start:stop], rate, state)
        parts.append(features[0])
    np.testing.assert_allclose(
        np.concatenate(parts), frontend.features(waveform), rtol=0, atol=2e-3
    )


def test_a_cache_is_what_it_is_to_torch():
    """Appends, rollbacks and trims in random order: the same positions are held, old views stay as
    they were."""
    generator = np.random.default_rng(7)
    ours, theirs = ArrayCache.empty(1, 2, 3), KVCache.empty(1, torch.empty(0), 1, 2, 3)
    kept: list[tuple[ArrayCache, np.ndarray]] = []
    for _ in range(200):
        new = generator.standard_normal((int(generator.integers(1, 9)), 1, 2, 2, 3))
        new = new.astype(np.float32)
        ours = ours.append(new)
        appending = theirs.extend([len(new)])
        tensor = torch.from_numpy(new[:, 0]).permute(1, 2, 0, 3)[:, None]
        appending.write(0, tensor[0], tensor[1])
        theirs = appending.cache
        if generator.random() < 0.3:
            length = max(ours.offset, ours.length - int(generator.integers(0, 5)))
            ours, theirs = ours.truncate(length), theirs.truncate(length)
        limit = int(generator.integers(5, 40))
        ours, theirs = ours.trim(limit), theirs.trim(limit)
        assert (ours.length, ours.stored) == (theirs.length, theirs.stored[0])
        key, value = theirs.layer(0)
        held = torch.stack([key[0], value[0]]).permute(2, 0, 1, 3).numpy()
        np.testing.assert_array_equal(ours.seen()[:, 0], held)
        kept.append((ours, ours.seen().copy()))
    for cache, before in kept:
        np.testing.assert_array_equal(cache.seen(), before)
    assert ours.nbytes < 2**17
    with pytest.raises(ValueError, match="cannot truncate to 0 positions"):
        ours.truncate(0)


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize(("past", "new"), [(0, 1), (0, 5), (7, 3)])
def test_masks_are_those_of_torch(past, new, window):
    expected = torch_causal_mask(new, past + new, window, torch.device("cpu"))
    found = causal_mask(past, new, window)
    if expected is None:
        assert found.all()
    else:
        np.testing.assert_array_equal(found, expected.numpy())


def test_the_manifest_says_what_there_is(tiny, tiny_export):
    manifest = read_manifest(tiny_export)
    assert manifest.config == tiny.config
    assert set(manifest.sha256) == {file.name for file in tiny_export.iterdir()} - {MANIFEST_FILE}
    assert manifest.state["left"] == (1, 16, 64)
    assert manifest.state["unit_past"] == ("P", 1, 2, 4, 8)
    assert manifest.graphs["encoder"].shape("segment") == (1, "S", 32)
    assert manifest.vocabularies == {"source": 64, "target": 64}
    assert manifest.versions["torch"] == torch.__version__


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_damaged_folders_are_refused(tiny_export, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_onnx_dir(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="write one with 'echostream export-onnx"):
        load_onnx_dir(model_dir("echostream"))
    folder = copied(tiny_export, tmp_path / "changed")
    content = bytearray((folder / "vocoder.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "vocoder.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"vocoder.onnx: sha256 must be .* got"):
        load_onnx_dir(folder)
    (folder / "vocoder.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"no such file: .*vocoder.onnx"):
        load_onnx_dir(folder)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    for change, message in (
        ({"format": 99}, "format must be 1, got 99"),
        ({"graphs": {"encoder": {}}}, "damaged"),
        ({"config": {}}, "manifest.json"),
    ):
        (folder / MANIFEST_FILE).write_text(json.dumps(manifest | change))
        with pytest.raises(ValueError, match=message):
            load_onnx_dir(folder)
    (folder / MANIFEST_FILE).write_text("{")
    with pytest.raises(ValueError, match="not a manifest"):
        load_onnx_dir(folder)


def test_what_cannot_be_exported_is_said(tiny, tmp_path):
    baseline = SimpleNamespace(config=replace(tiny.config, encoder=ChunkConformerConfig()))
    with pytest.raises(ValueError, match="only systems with an Emformer .* is 'chunk_conformer'"):
        graphs.check_exportable(baseline)
    assert isinstance(tiny.config.encoder, EmformerConfig)
    double = replace(tiny, model=seeded_model(tiny.config, SEED).double())
    with pytest.raises(ValueError, match="exported in float32 from the CPU, got torch.float64"):
        export_onnx(double, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_exports_replace_exports_and_nothing_else(tiny, tmp_path, monkeypatch):
    from echostream.acceleration.onnx import onnx_export

    monkeypatch.setattr(onnx_export._Plan, "_encoder", lambda plan: 1 / 0)
    for files in ({"notes.txt": "mine"}, {MANIFEST_FILE: "{}", "notes.txt": "mine"}):
        folder = tmp_path / str(len(files))
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        with pytest.raises(ZeroDivisionError):
            export_onnx(tiny, folder)
        assert {file.name: file.read_text() for file in folder.iterdir()} == files
    assert len(list(tmp_path.iterdir())) == 2


def arguments(folder: Path, *more: str) -> Namespace:
    words = ["clip.wav", "--out", "out.wav", "--runtime", "onnx", "--model-dir", str(folder)]
    return build_parser().parse_args(["translate", *words, *more])


def test_flags_of_torch_alone_are_refused(tiny_export):
    for flags in (["--device", "cuda"], ["--dtype", "bf16"], ["--compile"]):
        with pytest.raises(ValueError, match=f"leave out {flags[0]}, got"):
            load_from_args(arguments(tiny_export, *flags))
    with pytest.raises(ValueError, match="greedily: beam must be 1, got 3"):
        onnx_pipeline(load_onnx_dir(tiny_export), beam=3)


def test_policies_that_ask_for_attention_are_refused(tiny_export):
    with pytest.raises(ValueError, match="counts alone; 'alignatt' asks for attention"):
        onnx_pipeline(load_onnx_dir(tiny_export), policy=PolicyConfig(name="alignatt"))


def test_flags_reach_the_pipeline(tiny_export):
    system = load_from_args(arguments(tiny_export, "--threads", "2", "--set", "policy.stride_n=3"))
    assert system.model.threads == 2
    assert onnx_pipeline(system).policy_config.stride_n == 3
    assert load_from_args(arguments(tiny_export)).model.threads == suitable_threads(1)


def test_units_and_speeds_out_of_range_are_named(tiny_export):
    model = load_onnx_dir(tiny_export).model
    speech = model.init_state().speech
    with pytest.raises(ValueError, match="unit 50 at position 1 is outside"):
        model.vocode([3, 50], speech, 1.0, dur_prediction=True)
    with pytest.raises(ValueError, match="speed must lie between"):
        model.vocode([3], speech, 9.0, dur_prediction=True)
    with pytest.raises(ValueError, match="at least one source frame"):
        model.translate(model.init_state().mt, 1, False)
