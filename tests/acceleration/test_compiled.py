"""Steps compiled ahead of time against plain ones. Needs a C++ compiler."""

from __future__ import annotations

import argparse
import shutil

import numpy as np
import pytest
import soundfile
import torch
import torch._inductor

from echostream.acceleration import compiled
from echostream.acceleration.compiled import compile_encoder
from echostream.agents.echostream_s2tt import EchoStreamS2TTAgent
from echostream.assets import model_dir
from echostream.bench.systems import load_system
from echostream.cli import main
from echostream.config import preset
from echostream.live.computing import load_to_compute
from echostream.models.echostream_model import seeded_model
from echostream.models.emformer_layer import EmformerStack
from echostream.streaming import tensors_of

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"
)
CHUNKS = [30, *[32] * 12, 17, 32, 32]  # of 320 ms, but for one


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return tmp_path_factory.mktemp("packages")


@torch.no_grad()
def run(encoder, *, seed=3):
    generator = torch.Generator().manual_seed(seed)
    state, frames = encoder.init_state(), []
    for position, count in enumerate(CHUNKS):
        features = torch.randn(1, count, 80, generator=generator)
        final = position == len(CHUNKS) - 1
        out, state = encoder.step(features, state, final=final)
        frames.append(out)
    return torch.cat(frames, dim=1), state


@pytest.mark.slow
def test_compiled_steps_equal_plain_ones(packages):
    plain, model = seeded_model(preset("tiny"), 1), seeded_model(preset("tiny"), 1)
    package = compile_encoder(model, chunk_ms=320, folder=packages)
    stack, used = model.encoder.emformer, []
    quick = stack.quick
    stack.quick = lambda inputs: used.append(quick(inputs)) or used[-1]
    expected, wanted = run(plain.encoder)
    got, state = run(model.encoder)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert state.frames == wanted.frames == (got.size(1),)
    for own, other in zip(tensors_of(state), tensors_of(wanted), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)
    # All but the first, the short one and the last, which brings what waited too.
    assert [answer is not None for answer in used].count(True) == len(CHUNKS) - 3
    # The package is used again.
    written = package.stat().st_mtime_ns
    again = seeded_model(preset("tiny"), 1)
    assert compile_encoder(again, chunk_ms=320, folder=packages) == package
    assert package.stat().st_mtime_ns == written
    assert torch.equal(run(again.encoder)[0], got)


def test_other_weights_chunks_and_threads_have_packages_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "compile_step", lambda *args: args[-1].touch())
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda package: None)

    def package(seed=1, chunk_ms=320):
        return compile_encoder(
            seeded_model(preset("tiny"), seed), chunk_ms=chunk_ms, folder=tmp_path
        )

    usual = package()
    assert package() == usual
    others = [package(seed=2), package(chunk_ms=640)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert len({usual, *others, package()}) == 4 == len(list(tmp_path.iterdir()))


def test_what_cannot_be_compiled_is_named(tmp_path):
    model = seeded_model(preset("tiny"), 1)
    with pytest.raises(ValueError, match="float32 on the CPU, got torch.bfloat16"):
        compile_encoder(model.to(torch.bfloat16), chunk_ms=320, folder=tmp_path)
    model = seeded_model(preset("tiny"), 1)
    for chunk_ms in (330, 20):
        with pytest.raises(ValueError, match=f"whole frames of 40 ms, got {chunk_ms} ms"):
            compile_encoder(model, chunk_ms=chunk_ms, folder=tmp_path)
    model.encoder = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="only an Emformer's steps"):
        compile_encoder(model, chunk_ms=320, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_compilation_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("no compiler here")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    monkeypatch.setattr(torch.export, "export", lambda *args: None)
    model = seeded_model(preset("tiny"), 1)
    with pytest.raises(RuntimeError, match="could not be compiled .* no compiler here"):
        compile_encoder(model, chunk_ms=320, folder=tmp_path)
    assert not list(tmp_path.iterdir()) and type(model.encoder.emformer) is EmformerStack


@pytest.fixture
def asked(monkeypatch):
    """What was to be compiled, by kind of encoder and chunk, instead of compiling it."""
    calls = []

    def note(model, *, chunk_ms):
        calls.append((model.config.encoder.kind, chunk_ms))

    for user in ("agents.base", "live.computing", "bench.systems"):
        monkeypatch.setattr(f"echostream.{user}.compile_encoder", note)
    return calls


def test_flags_ask_for_it(asked, tmp_path):
    parser = argparse.ArgumentParser()
    EchoStreamS2TTAgent.add_args(parser)
    flags = ["--model-dir", str(model_dir("echostream")), "--chunk-ms", "640"]
    EchoStreamS2TTAgent(parser.parse_args(flags))
    assert not asked
    EchoStreamS2TTAgent(parser.parse_args([*flags, "--compile"]))
    assert asked == [("emformer", 640)]
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(8000), 16000)
    out = ["--model-dir", "echo-mini", "--out", str(tmp_path / "out.wav"), "--compile"]
    assert main(["translate", str(silence), *out]) == 0
    assert asked[1:] == [("emformer", 320)]
    assert main(["translate", str(silence), *out, "--offline"]) == 2
    load_system("tiny:compiled", chunk_ms=160)
    assert asked[2:] == [("emformer", 160)]


def test_a_server_compiles_emformers_alone(asked):
    args = argparse.Namespace(device="cpu", dtype="fp32", threads=1, compile=True)
    for system in ("echostream", "streamspeech"):
        load_to_compute(model_dir(system), args, 320)
    assert asked == [("emformer", 320)]
