"""Steps as CUDA graphs against plain ones. What surrounds a graph is tested everywhere, with a
stand-in that computes anew into the same memory; the graphs themselves need a GPU."""

from __future__ import annotations

import pytest
import torch

from echostream.acceleration.compiled import compile_encoder
from echostream.acceleration.cuda_graphs import GraphedStep, graph_encoder
from echostream.acceleration.steady_state import QuickStack, SteadyStep, plain_steps, use
from echostream.assets import model_dir
from echostream.checkpoint import load_model_dir
from echostream.config import preset
from echostream.models.echostream_model import seeded_model
from echostream.samples import read_audio
from echostream.session import Session, advance_sessions
from echostream.streaming import join_rows, take_rows, tensors_of
from echostream.translator.pipeline import Pipeline
from tests.conftest import tiny_config

requires_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=requires_cuda)]
CHUNKS = [30, *[32] * 10, 17, 32, 32]  # of 320 ms, but for one
VARIANTS = {
    "memory": {},
    "no memory": {"memory_size": 0},
    "convolution": {"depthwise_kernel_size": 5},
    "right context": {"right_context_frames": 4},
    "no left context": {"left_context_frames": 0},
    "conv1d_glu": {"subsampler": "conv1d_glu"},
}


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """Convolutions as exact as on a CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def stand_in(run):
    """A graph's replay as far as memory goes."""
    results = run()

    def replay():
        for kept, new in zip(results, run(), strict=True):
            kept.copy_(new)

    return replay, results


def graphed_model(device, batch_sizes=(1,), **encoder):
    """A tiny model with graphs, or their stand-in; and the answers that they gave."""
    model = seeded_model(tiny_config(**encoder), 1).to(device)
    if device == "cpu":
        step = SteadyStep.of(model, 320)
        use(model, GraphedStep(step, step.inputs, batch_sizes, stand_in))
    else:
        graph_encoder(model, chunk_ms=320, batch_sizes=batch_sizes)
    stack, answers = model.encoder.emformer, []
    quick = stack.quick
    stack.quick = lambda inputs: answers.append(quick(inputs)) or answers[-1]
    return model, answers


def chunks(device, seed=3):
    """Makes features of (streams, frames, bins), new ones at every call."""
    generator = torch.Generator().manual_seed(seed)

    def chunk(streams=1, frames=32):
        return torch.randn(streams, frames, 80, generator=generator).to(device)

    return chunk


def assert_same(state, other, device):
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if device == "cuda" else {"atol": 1e-5, "rtol": 1e-5}
    assert state.frames == other.frames and state.emformer.segments == other.emformer.segments
    for own, its in zip(tensors_of(state), tensors_of(other), strict=True):
        torch.testing.assert_close(own, its, **tolerance)


@torch.no_grad()
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_graphed_steps_equal_plain_ones(name, device):
    """From a stream's first chunk to its end, through chunks of other lengths."""
    model, answers = graphed_model(device, **VARIANTS[name])
    encoder, chunk = model.encoder, chunks(device)
    state = expected = encoder.init_state()
    for position, count in enumerate(CHUNKS):
        features = chunk(frames=count)
        final = position == len(CHUNKS) - 1
        with plain_steps(model):
            wanted, expected = encoder.step(features, expected, final=final)
        out, state = encoder.step(features, state, final=final)
        torch.testing.assert_close(out, wanted, atol=1e-4, rtol=1e-4)
        assert_same(state, expected, device)
    used = [answer is not None for answer in answers]
    # All but the first, the short one and the last, which brings what waited too.
    assert used.count(True) == len(CHUNKS) - 3


@torch.no_grad()
@pytest.mark.parametrize("device", DEVICES)
def test_streams_take_turns_and_old_states_stay(device):
    model, answers = graphed_model(device)
    encoder, chunk = model.encoder, chunks(device)
    states = [encoder.step(chunk(frames=30), encoder.init_state())[1] for _ in range(2)]
    for _ in range(4):
        states = [encoder.step(chunk(), state)[1] for state in states]
    assert answers[-1] is not None
    old, kept = states[0], [x.clone() for x in tensors_of(states[0])]
    first = chunk()
    out, _ = encoder.step(first, old)
    wanted = out.clone()
    for _ in range(3):
        states = [encoder.step(chunk(), state)[1] for state in states]
    # Neither what went in nor what came out has changed since.
    assert all(map(torch.equal, kept, tensors_of(old)))
    assert torch.equal(out, wanted)
    again, _ = encoder.step(first, old)
    torch.testing.assert_close(again, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("streams", [2, 3, 5])
def test_streams_of_different_ages_share_a_graph_of_at_least_their_number(device, streams):
    model, answers = graphed_model(device, (1, 2, 4))
    encoder, chunk = model.encoder, chunks(device)
    own = []
    with plain_steps(model):
        for age in range(streams):
            state = encoder.step(chunk(frames=30), encoder.init_state())[1]
            for _ in range(2 * age):
                state = encoder.step(chunk(), state)[1]
            own.append(state)
    state, expected = join_rows(own), own
    for _ in range(6):
        features = chunk(streams)
        with plain_steps(model):
            alone = [encoder.step(features[row : row + 1], expected[row]) for row in range(streams)]
        expected = [following for _, following in alone]
        out, state = encoder.step(features, state)
        for row, (wanted, following) in enumerate(alone):
            torch.testing.assert_close(out[row : row + 1], wanted, atol=1e-4, rtol=1e-4)
            assert_same(take_rows(state, [row]), following, device)
    assert len(answers) == 6 and all((answer is not None) == (streams <= 4) for answer in answers)


@torch.no_grad()
def test_other_formats_are_left_alone():
    model, answers = graphed_model("cpu")
    encoder, chunk = model.double().encoder, chunks("cpu")
    state = encoder.init_state()
    for frames in (30, *[32] * 4):
        out, state = encoder.step(chunk(frames=frames).double(), state)
    assert out.dtype == torch.double and answers == [None] * 5


def test_what_cannot_be_captured_is_named():
    model = seeded_model(preset("tiny"), 1)
    with pytest.raises(ValueError, match="need a model on a CUDA device, got one on cpu"):
        graph_encoder(model, chunk_ms=320)
    step = SteadyStep.of(model, 320)
    for sizes in ((), (0, 1)):
        with pytest.raises(ValueError, match="batch sizes must be at least 1, got"):
            GraphedStep(step, step.inputs, sizes, stand_in)
    model.encoder = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="only an Emformer's steps"):
        graph_encoder(model, chunk_ms=320)


@requires_cuda
def test_compiling_on_a_gpu_means_graphs():
    model = seeded_model(preset("tiny"), 1).to("cuda")
    assert compile_encoder(model, chunk_ms=320) is None
    assert isinstance(model.encoder.emformer, QuickStack)


# Whole systems on a GPU.


def translated(pipeline, samples, rate):
    """Words heard and written, units and pieces of waveform of a clip in chunks."""
    state, outputs = pipeline.init_state(), []
    for start in range(0, len(samples), 5120):
        final = start + 5120 >= len(samples)
        new, state = pipeline.step(samples[start : start + 5120], rate, state, final=final)
        outputs += new
    words = [word for output in outputs for word in output.translation]
    heard = [word for output in outputs for word in output.transcript]
    units = [unit for output in outputs for unit in output.units]
    return heard, words, units, [output.waveform for output in outputs]


@pytest.fixture(scope="module")
def clip():
    path = model_dir("echostream").parents[3] / "data/echo_mini/test_audio/test_00031.flac"
    if not path.exists():
        pytest.skip(f"audio not there: {path.name}")
    return read_audio(path)


@requires_cuda
@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
def test_a_shipped_system_translates_alike_on_both_devices(clip, graphs):
    found = {}
    for device in ("cpu", "cuda"):
        system = load_model_dir(model_dir("echostream"), device=device)
        if graphs and device == "cuda":
            compile_encoder(system.model, chunk_ms=320)
        found[device] = translated(Pipeline(system), *clip)
    on_cpu, on_gpu = found["cpu"], found["cuda"]
    assert on_cpu[1] and on_cpu[:3] == on_gpu[:3]
    for own, other in zip(on_gpu[3], on_cpu[3], strict=True):
        assert own.shape == other.shape
        torch.testing.assert_close(
            torch.from_numpy(own), torch.from_numpy(other), atol=1e-3, rtol=1e-3
        )


@requires_cuda
def test_sessions_share_chunks_on_a_gpu(clip):
    """Three streams of one clip, one of them a chunk behind, with graphs against one alone."""
    samples, rate = clip
    system = load_model_dir(model_dir("echostream"), device="cuda")
    expected = translated(Pipeline(system), samples, rate)
    compile_encoder(system.model, chunk_ms=320)
    pipeline = Pipeline(system)
    sessions = [Session(pipeline) for _ in range(3)]
    for turn in range(len(samples) // 5120 + 2):
        due = []
        for session, behind in zip(sessions, (0, 0, 1), strict=True):
            start = (turn - behind) * 5120
            if 0 <= start < len(samples):
                final = start + 5120 >= len(samples)
                session.feed(samples[start : start + 5120], rate, final=final)
                due.append(session)
        for _, result in advance_sessions(due):
            assert not isinstance(result, Exception)
    assert all(session.translation == expected[1] for session in sessions)
