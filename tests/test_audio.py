"""The frontend: exact against torchaudio and soxr, whatever way the samples arrive."""

import numpy as np
import pytest
import soxr
import torch
import torchaudio.compliance.kaldi as kaldi

from echostream.audio import CMVN, Frontend, fbank
from echostream.config import FrontendConfig
from echostream.samples import Resampler, check_samples, read_audio
from echostream.synthetic import synthetic_clip

RATES = (8000, 11025, 22050, 44100, 48000, 96000)


def noise(count, seed=0):
    return (np.random.default_rng(seed).standard_normal(count) * 0.1).astype(np.float32)


def pieces(x, size):
    return [x[i : i + size] for i in range(0, len(x), size)] or [x]


def stream(frontend, x, rate, size):
    state, out = frontend.init_state(), []
    parts = pieces(x, size)
    for index, part in enumerate(parts):
        features, state = frontend.step(part, rate, state, final=index == len(parts) - 1)
        out.append(features)
    return torch.cat(out, dim=1), state


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("size", [37, 997, 10**9])
def test_resampling_equals_soxr_on_the_whole_signal(rate, size):
    x = noise(rate)
    resampler = Resampler(rate, 16000)
    state, out = resampler.init_state(), []
    parts = pieces(x, size)
    for index, part in enumerate(parts):
        converted, state = resampler.step(part, state, final=index == len(parts) - 1)
        out.append(converted)
        assert len(state.recent) <= 2 * resampler.reach + resampler.source_period + len(part)
    np.testing.assert_allclose(
        np.concatenate(out), soxr.resample(x, rate, 16000, quality="HQ"), atol=1e-6
    )


def test_resampling_sample_by_sample():
    x = noise(2000)
    resampler = Resampler(8000, 16000)
    state, out = resampler.init_state(), []
    for index in range(len(x)):
        converted, state = resampler.step(x[index : index + 1], state, final=index == len(x) - 1)
        out.append(converted)
    np.testing.assert_allclose(
        np.concatenate(out), soxr.resample(x, 8000, 16000, quality="HQ"), atol=1e-6
    )


def test_features_equal_torchaudio_at_16_khz():
    x = noise(16000 * 3)
    frontend = Frontend(FrontendConfig())
    expected = kaldi.fbank(torch.from_numpy(x)[None] * 2**15, num_mel_bins=80, dither=0.0)
    whole, _ = stream(frontend, x, 16000, 10**9)
    assert torch.equal(whole[0], expected)
    for size in (160, 333, 5120):
        part, _ = stream(frontend, x, 16000, size)
        torch.testing.assert_close(part[0], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("rate", RATES)
def test_features_do_not_depend_on_the_cut(rate):
    x = synthetic_clip(0.7, rate, seed=0)
    frontend = Frontend(FrontendConfig())
    whole, _ = stream(frontend, x, rate, 10**9)
    for size in (101, rate // 3):
        part, state = stream(frontend, x, rate, size)
        assert part.shape == whole.shape
        # soxr computes in float32: below about exp(0) a bin holds its rounding only (above the
        # source's band, for one), and the logarithm shows it.
        heard = whole > 0
        assert heard.float().mean() > 0.3
        assert (part - whole)[heard].abs().max() < 0.03
        assert state.frames == whole.size(1) and state.received == len(x)


def test_one_sample_pieces_and_tiny_inputs():
    frontend = Frontend(FrontendConfig())
    x = noise(1000)
    whole, _ = stream(frontend, x, 16000, 10**9)
    single, _ = stream(frontend, x, 16000, 1)
    torch.testing.assert_close(single, whole, atol=2e-5, rtol=0)
    for count in (0, 1, 399, 400):
        features, _ = stream(frontend, x[:count], 16000, 10**9)
        assert features.shape == (1, int(count >= 400), 80)


def test_latency_of_48_khz_is_six_milliseconds():
    """320 ms at 48 kHz complete as many frames as 320 ms at 16 kHz minus the filter's reach."""
    frontend = Frontend(FrontendConfig())
    features, _ = frontend.step(noise(15360), 48000, frontend.init_state())
    assert features.size(1) == (5120 - 100 - 400) // 160 + 1
    features, _ = frontend.step(noise(5120), 16000, frontend.init_state())
    assert features.size(1) == 30


def test_state_is_not_changed_and_streams_do_not_touch():
    frontend = Frontend(FrontendConfig())
    x, y = noise(48000, 1), noise(48000, 2)
    first, second = frontend.init_state(), frontend.init_state()
    mixed = []
    for a, b in zip(pieces(x, 5000), pieces(y, 5000), strict=True):
        features, following = frontend.step(a, 48000, first)
        again, _ = frontend.step(a, 48000, first)
        assert torch.equal(features, again)
        first = following
        mixed.append(features)
        _, second = frontend.step(b, 48000, second)
    alone, state = [], frontend.init_state()
    for a in pieces(x, 5000):
        features, state = frontend.step(a, 48000, state)
        alone.append(features)
    assert torch.equal(torch.cat(mixed, 1), torch.cat(alone, 1))


def test_cmvn_normalises(tmp_path):
    np.savez(tmp_path / "gcmvn.npz", mean=np.full(80, 3.0), std=np.full(80, 2.0))
    cmvn = CMVN.from_npz(tmp_path / "gcmvn.npz")
    assert torch.equal(cmvn(torch.full((1, 80), 5.0)), torch.ones(1, 80))
    with pytest.raises(ValueError, match="CMVN has 80 bins, the frontend 40"):
        Frontend(FrontendConfig(num_mel_bins=40), cmvn)
    with pytest.raises(ValueError, match="std must be positive"):
        CMVN(torch.zeros(4), torch.zeros(4))
    with pytest.raises(FileNotFoundError, match="no such CMVN file"):
        CMVN.from_npz(tmp_path / "missing.npz")
    np.savez(tmp_path / "other.npz", average=np.zeros(80))
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "empty.npz").write_bytes(b"")
    whole = (tmp_path / "gcmvn.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("other.npz", "text.npz", "empty.npz", "half.npz"):
        with pytest.raises(ValueError, match=f"{name}: not a CMVN file"):
            CMVN.from_npz(tmp_path / name)


def test_integers_and_channels_become_mono_floats():
    pcm = np.array([[16384, -16384], [32767, 32767]], dtype=np.int16)
    np.testing.assert_allclose(check_samples(pcm), [0.0, 32767 / 32768])
    np.testing.assert_allclose(check_samples([0.5, -0.25]), [0.5, -0.25])
    assert check_samples([]).shape == (0,)
    assert check_samples(np.zeros((0, 2), dtype=np.float32)).shape == (0,)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.array([0.0, np.nan, 0.0]), "audio sample 11 is nan"),
        (np.array([0.0, 0.0, np.inf]), "audio sample 12 is inf"),
        (np.zeros((2, 2, 2)), r"got shape \(2, 2, 2\)"),
        (np.zeros((2, 100)), r"got shape \(2, 100\)"),
        (np.array(["a"]), "must be float or int8, int16 or int32, got <U1"),
        (np.array([True]), "must be float or int8, int16 or int32, got bool"),
        ([1000, -2000], "must be float or int8, int16 or int32, got int64"),
    ],
)
def test_bad_samples(samples, message):
    with pytest.raises(ValueError, match=message):
        check_samples(samples, position=10)


def test_read_audio_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such sound file"):
        read_audio(tmp_path / "missing.wav")
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(ValueError, match="not a readable sound file"):
        read_audio(tmp_path / "text.wav")


def test_rates_out_of_range():
    for rate in (0, -1, 100, 10**6):
        with pytest.raises(ValueError, match=f"between 4000 and 384000 Hz, got {rate}"):
            Resampler(rate, 16000)


def test_fbank_of_silence_is_finite():
    assert torch.isfinite(fbank(torch.zeros(1000), FrontendConfig())).all()
