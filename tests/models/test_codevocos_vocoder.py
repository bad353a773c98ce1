"""CodeVocos as a vocoder: durations, speed, any cut, batches, its file, the protocol, ONNX."""

from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import save_file

from echostream.config import (
    CodeVocosConfig,
    UnitDurationConfig,
    VocoderConfig,
    from_dict,
    preset,
    to_dict,
)
from echostream.models.decoders.codevocos_vocoder import CodeVocosVocoder, StreamingCodeVocos
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder
from echostream.models.decoders.vocoder_integration import StreamingVocoder
from echostream.models.decoders.vocoder_protocol import Vocoder, VocoderFront

SMALL = CodeVocosConfig(
    num_embeddings=20,
    sampling_rate=8000,
    hop_samples=20,
    width=8,
    hidden_width=12,
    blocks=2,
    kernel=3,
    lookahead_frames=2,
    noise_frames=5,
    durations=UnitDurationConfig(width=6, past_units=3, future_units=2),
)


def make(config=SMALL):
    torch.manual_seed(0)
    vocoder = CodeVocosVocoder(config).double().eval().requires_grad_(False)
    for parameter in vocoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    if vocoder.durations is not None:
        vocoder.durations.out.bias.fill_(1.2)  # one to a few frames
        vocoder.durations.out.weight.mul_(3)
    return vocoder


@dataclass(frozen=True)
class Holder:
    vocoder: VocoderConfig | CodeVocosConfig


UNITS = torch.randint(20, (60,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.mark.parametrize("durations", [True, False])
@pytest.mark.parametrize("sizes", [(1,) * 60, (0, 2, 1, 30, 0, 27), (59, 1), (60, 0)])
def test_any_cut_gives_the_whole(durations, sizes):
    vocoder = make()
    front = StreamingCodeVocos(vocoder, dur_prediction=durations)
    whole, whole_frames = vocoder.generate(UNITS, dur_prediction=durations)
    state, done, waves, frames = front.init_state(), 0, [], []
    for index, size in enumerate(sizes):
        final = index == len(sizes) - 1
        wave, told, state = front.step(UNITS[done : done + size], state, final=final)
        done += size
        waves.append(wave)
        frames.append(told)
    assert torch.equal(torch.cat(frames), whole_frames) and len(whole_frames) == 60
    torch.testing.assert_close(torch.cat(waves), whole, atol=1e-10, rtol=0)
    assert len(whole) == int(whole_frames.sum()) * SMALL.unit_samples
    if durations:
        assert len(set(whole_frames.tolist())) > 2


def test_rows_of_a_batch_are_streams_of_their_own():
    """Units, speeds and ends of each row differ from step to step."""
    vocoder = make()
    front = StreamingCodeVocos(vocoder)
    plan = [  # per step and row: units, speed, end
        [(4, 1.0, False), (0, 1.0, False), (1, 1.3, False)],
        [(9, 0.8, False), (12, 1.0, False), (0, 1.0, True)],
        [(0, 1.0, True), (7, 1.6, False), (5, 1.0, False)],
        [(6, 1.0, True), (3, 1.0, True), (8, 0.7, True)],
    ]
    state, alone = front.init_state(3), [front.init_state() for _ in range(3)]
    at = 0
    for step in plan:
        rows = [UNITS[at + row : at + row + count] for row, (count, _, _) in enumerate(step)]
        at += 9
        speeds, ends = [speed for _, speed, _ in step], [end for _, _, end in step]
        waves, frames, state = front.step_rows(rows, state, speeds, final=ends)
        for row, (_, speed, end) in enumerate(step):
            wave, told, alone[row] = front.step(rows[row], alone[row], speed=speed, final=end)
            torch.testing.assert_close(waves[row], wave, atol=1e-10, rtol=0)
            assert torch.equal(frames[row], told)
    for row in range(3):
        assert state.speed[row] == alone[row].speed[0]


def test_speed_changes_the_length_as_asked():
    vocoder = make()
    front = StreamingCodeVocos(vocoder)
    lengths = {}
    for speed in (0.7, 1.0, 1.5):
        state = replace(front.init_state(), speed=torch.tensor([speed], dtype=torch.float64))
        lengths[speed] = len(front.step(UNITS, state, speed=speed, final=True)[0])
    assert lengths[0.7] == pytest.approx(lengths[1.0] / 0.7, rel=0.03)
    # Units of a single frame cannot be shortened.
    assert lengths[1.0] / 1.5 * 0.97 < lengths[1.5] < 0.9 * lengths[1.0]


def test_end_makes_a_new_stream_at_the_same_speed():
    front = StreamingCodeVocos(make())
    _, _, state = front.step(UNITS, front.init_state(), speed=1.1, final=True)
    assert state.speed.item() == pytest.approx(1.1)
    assert torch.equal(front.init_state().at_speed_of(state).speed, state.speed)
    first, _, _ = front.step(UNITS[:30], replace(state, speed=torch.ones(1)), final=True)
    again, _, _ = front.step(UNITS[:30], front.init_state(), final=True)
    assert torch.equal(first, again)


def test_file_gives_back_the_vocoder(tmp_path):
    vocoder = make().float()
    vocoder.save(tmp_path / "v.safetensors", dtype=torch.float32)
    loaded = CodeVocosVocoder.load(tmp_path / "v.safetensors")
    assert loaded.config == SMALL
    assert torch.equal(loaded.generate(UNITS)[0], vocoder.generate(UNITS)[0])


def test_bad_files_and_units_are_refused(tmp_path):
    path = tmp_path / "v.safetensors"
    with pytest.raises(FileNotFoundError, match="v.safetensors"):
        CodeVocosVocoder.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a CodeVocos file"):
        CodeVocosVocoder.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a CodeVocos file"):
        CodeVocosVocoder.load(path)
    vocoder = make()
    with pytest.raises(ValueError, match="unit 20 at position 1 .* 0 to 19"):
        vocoder.generate([3, 20])
    with pytest.raises(ValueError, match="speed must lie between"):
        front = StreamingCodeVocos(vocoder)
        front.step([1], front.init_state(), speed=9.0)
    with pytest.raises(ValueError, match="no duration predictor"):
        StreamingCodeVocos(CodeVocosVocoder(replace(SMALL, durations=None)))


@pytest.mark.parametrize(
    ("config", "kind", "streams"),
    [
        (SMALL, CodeVocosVocoder, StreamingCodeVocos),
        (preset("tiny").vocoder, CodeHiFiGANVocoder, StreamingVocoder),
    ],
)
def test_both_vocoders_keep_the_protocol(config, kind, streams):
    """Built by their configurations, as a file of settings has them."""
    again = from_dict(Holder, {"vocoder": to_dict(config)}).vocoder
    assert again == config
    unsaid = {name: value for name, value in to_dict(VocoderConfig()).items() if name != "kind"}
    assert from_dict(Holder, {"vocoder": unsaid}).vocoder == VocoderConfig()  # older files
    vocoder = kind(again)
    vocoder.eval().requires_grad_(False)
    assert isinstance(vocoder, Vocoder) and vocoder.predicts_durations
    for durations in (True, False):
        front = streams(vocoder, dur_prediction=durations)
        assert isinstance(front, VocoderFront)
        wave, frames, state = front.step([1, 2, 3, 4, 5], front.init_state())
        rest, more, _ = front.step([6], state, speed=1.0, final=True)
        whole = (len(wave) + len(rest)) / vocoder.unit_samples
        assert whole == int(frames.sum() + more.sum())
        assert len(frames) + len(more) == 6
    assert kind(config, 7).num_units == 7


class OneStep(torch.nn.Module):
    """A step with plain tensors in and out, as exporters want it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, units, counts, final, *state):
        from echostream.models.decoders.codevocos import CodeVocosState

        out = self.network.step(units, counts, CodeVocosState(*state), final)
        return (out.samples, out.begins, out.lengths, *vars(out.state).values())


def test_exported_to_onnx_it_speaks_the_same(tmp_path):
    """Three steps of two rows, one of which ends."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = make().network.float()
    step, state = OneStep(network).eval(), network.init_state(2)
    names = list(vars(state))
    inputs = ["units", "counts", "final", *names]
    example = (
        torch.zeros(2, 5, dtype=torch.long),
        torch.tensor([5, 3]),
        torch.tensor([False, True]),
        *vars(state).values(),
    )
    path = tmp_path / "vocoder.onnx"
    outputs = ["samples", "begins", "lengths", *(f"new_{name}" for name in names)]
    torch.onnx.export(
        step, example, str(path), input_names=inputs, output_names=outputs, dynamo=True
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ours = theirs = [value.clone() for value in vars(state).values()]
    for turn, ends in enumerate([(False, False), (False, True), (True, False)]):
        units = torch.tensor(UNITS[turn * 10 : turn * 10 + 10]).view(2, 5)
        common = (units, torch.tensor([5, 1 + turn]), torch.tensor(ends))
        samples, begins, lengths, *ours = step(*common, *ours)
        fed = dict(zip(inputs, [value.numpy() for value in (*common, *theirs)], strict=True))
        other, other_begins, other_lengths, *theirs = map(torch.from_numpy, session.run(None, fed))
        assert torch.equal(begins, other_begins) and torch.equal(lengths, other_lengths)
        for row in range(2):
            span = slice(int(begins[row]), int(begins[row] + lengths[row]))
            torch.testing.assert_close(samples[row, span], other[row, span], atol=1e-5, rtol=1e-4)
