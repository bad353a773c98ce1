"""Units: features, k-means, sequences."""

import pickle

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.models import wav2vec2_model

from echostream.training.units.extractor import UnitExtractor
from echostream.training.units.kmeans import KMeans
from echostream.training.units.quantize import quantize
from echostream.training.units.sequences import read_units, reduce_units, write_units
from echostream.training.units.unit_features import HubertFeatures, MFCCFeatures, build_features

TINY_HUBERT = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2,
    "extractor_conv_bias": False,
    "encoder_embed_dim": 16,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 3,
    "encoder_num_heads": 2,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 32,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
    "aux_num_out": None,
}


@pytest.fixture
def sklearn():
    """Fitting needs scikit-learn, of the extra ``train``; using units does not."""
    return pytest.importorskip("sklearn.cluster")


@pytest.fixture
def waveform():
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(16000, generator=generator)


@pytest.fixture
def torchaudio_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = wav2vec2_model(**TINY_HUBERT)
    path = tmp_path / "hubert.pt"
    torch.save({"config": TINY_HUBERT, "model": model.state_dict()}, path)
    return path


def tones(seed):
    """A second of speech-like sound: stretches of different tones."""
    rng = np.random.default_rng(seed)
    frequencies = np.repeat(rng.choice([150.0, 700.0, 2500.0], 10), 1600)
    phase = np.cumsum(2 * np.pi * frequencies / 16000)
    noise = 0.01 * rng.standard_normal(16000)
    return torch.from_numpy((0.3 * np.sin(phase) + noise).astype(np.float32))


def test_reduce_and_expand_are_inverse():
    rng = np.random.default_rng(0)
    for length in (0, 1, 2, 50):
        units = rng.integers(0, 3, length)
        reduced, durations = reduce_units(units)
        np.testing.assert_array_equal(np.repeat(reduced, durations), units)
        assert not (reduced[1:] == reduced[:-1]).any() and (durations > 0).all()
    assert [part.tolist() for part in reduce_units([5, 5, 7, 5])] == [[5, 7, 5], [2, 1, 1]]
    with pytest.raises(ValueError, match="one-dimensional"):
        reduce_units(np.zeros((2, 2)))


def test_unit_files_round_trip(tmp_path):
    units = {"a": np.array([1, 1, 2]), "b": np.array([], dtype=np.int64)}
    write_units(tmp_path / "x.km3", units)
    assert (tmp_path / "x.km3").read_text() == "a|1 1 2\nb|\n"
    for name, values in read_units(tmp_path / "x.km3", 3).items():
        np.testing.assert_array_equal(values, units[name])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a 1 2", "line 2: expected 'id.units'"),
        ("a|1 x", "line 2: units must be integers"),
        ("a|1 9", "line 2: units must lie between 0 and 8"),
        ("z|1", "line 2: utterance 'z' occurs twice"),
    ],
)
def test_malformed_unit_files_name_the_line(tmp_path, line, message):
    (tmp_path / "x.km9").write_text(f"z|1\n{line}\n")
    with pytest.raises(ValueError, match=f"x.km9, {message}"):
        read_units(tmp_path / "x.km9", 9)
    with pytest.raises(FileNotFoundError, match="no such unit file"):
        read_units(tmp_path / "none")


def test_mfcc_has_39_dimensions_at_50_hz(waveform):
    features = MFCCFeatures()
    assert features(waveform).shape == (50, 39)
    assert features(waveform[:700]).shape == (2, 39)
    assert features(waveform[:319]).shape == (0, 39)
    with pytest.raises(ValueError, match="expected a float waveform"):
        features(waveform[None])


def test_mfcc_frames_are_centred_on_their_samples():
    silence_then_noise = torch.zeros(16000)
    silence_then_noise[8000:] = torch.randn(8000, generator=torch.Generator().manual_seed(1))
    energy = MFCCFeatures()(silence_then_noise)[:, 0]
    assert (energy[:24] < energy[26:].min()).all()


def test_kmeans_is_seeded_and_assigns_the_nearest(tmp_path, sklearn):
    data = [MFCCFeatures()(tones(seed)) for seed in range(6)]
    first, second = (KMeans.fit(data, 8, seed=3) for _ in range(2))
    torch.testing.assert_close(first.centroids, second.centroids, rtol=0, atol=0)
    features = torch.cat(data)
    expected = torch.cdist(features, first.centroids).argmin(1)
    assert (first.assign(features) == expected).float().mean() > 0.99
    first.save(tmp_path / "km.safetensors")
    torch.testing.assert_close(KMeans.load(tmp_path / "km.safetensors").centroids, first.centroids)
    np.savez(tmp_path / "km.npz", centroids=first.centroids.numpy())
    torch.testing.assert_close(KMeans.load(tmp_path / "km.npz").centroids, first.centroids)


def test_kmeans_errors(tmp_path, sklearn):
    with pytest.raises(ValueError, match="100 clusters need as many frames, got 50"):
        KMeans.fit([torch.randn(50, 3)], 100)
    with pytest.raises(ValueError, match=r"features must be \(frames, 3\)"):
        KMeans(torch.zeros(2, 3)).assign(torch.zeros(4, 5))
    with pytest.raises(FileNotFoundError, match="no such k-means file"):
        KMeans.load(tmp_path / "none.npz")
    for name in ("a.safetensors", "a.npz", "a.pt"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match="not a k-means file"):
            KMeans.load(tmp_path / name)


def test_a_published_scikit_learn_model_is_read_without_running_it(tmp_path):
    joblib = pytest.importorskip("joblib")
    cluster = pytest.importorskip("sklearn.cluster")
    data = np.random.default_rng(0).standard_normal((200, 5)).astype(np.float32)
    model = cluster.MiniBatchKMeans(7, random_state=0, n_init=1).fit(data)
    joblib.dump(model, tmp_path / "km.bin")
    loaded = KMeans.load(tmp_path / "km.bin")
    np.testing.assert_array_equal(loaded.centroids.numpy(), model.cluster_centers_)
    np.testing.assert_array_equal(
        loaded.assign(torch.from_numpy(data)).numpy(), model.predict(data)
    )


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


def test_a_malicious_file_runs_nothing(tmp_path):
    (tmp_path / "km.bin").write_bytes(pickle.dumps({"cluster_centers_": _Trap(tmp_path / "ran")}))
    with pytest.raises(ValueError, match="not a k-means file"):
        KMeans.load(tmp_path / "km.bin")
    assert not (tmp_path / "ran").exists()


def test_mfcc_kmeans_extractor_stores_and_loads(tmp_path, sklearn):
    extractor = UnitExtractor.fit(MFCCFeatures(), [tones(s) for s in range(6)], 8, seed=1)
    units = extractor(tones(7))
    assert units.shape == (50,) and units.min() >= 0 and units.max() < 8 == extractor.num_units
    assert len(set(units.tolist())) > 1
    extractor.save(tmp_path / "model")
    np.testing.assert_array_equal(UnitExtractor.load(tmp_path / "model")(tones(7)), units)
    again = UnitExtractor.mfcc_kmeans(tmp_path / "model" / "kmeans.safetensors")
    np.testing.assert_array_equal(again(tones(7).numpy()), units)


def test_torchaudio_hubert_units(tmp_path, torchaudio_checkpoint, waveform, sklearn):
    features = HubertFeatures.from_path(torchaudio_checkpoint, 2)
    hidden = features(waveform)
    assert hidden.shape == (49, 16)
    expected, _ = features.model.extract_features(waveform[None], num_layers=2)
    torch.testing.assert_close(hidden, expected[-1][0])
    fitted = UnitExtractor.fit(features, [waveform], 5)
    fitted.save(tmp_path / "model")
    loaded = UnitExtractor.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded(waveform), fitted(waveform))
    direct = UnitExtractor.hubert_kmeans(
        torchaudio_checkpoint, 2, tmp_path / "model" / "kmeans.safetensors"
    )
    np.testing.assert_array_equal(direct(waveform), fitted(waveform))
    assert len(direct(waveform[:300])) == 0


def test_transformers_hubert_equals_its_hidden_state(tmp_path, waveform):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    model = transformers.HubertModel(config).eval()
    model.save_pretrained(tmp_path / "hubert")
    features = HubertFeatures.from_path(tmp_path / "hubert", 2, normalize=True)
    scaled = (waveform - waveform.mean()) / (waveform.var(unbiased=False) + 1e-5).sqrt()
    with torch.inference_mode():
        expected = model(scaled[None], output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(features(waveform), expected, rtol=1e-4, atol=1e-5)


def test_hubert_errors(tmp_path, torchaudio_checkpoint):
    with pytest.raises(ValueError, match="layer must lie between 1 and 3, got 4"):
        HubertFeatures.from_path(torchaudio_checkpoint, 4)
    with pytest.raises(FileNotFoundError, match="no such HuBERT checkpoint"):
        HubertFeatures.from_path(tmp_path / "none", 1)
    (tmp_path / "bad.pt").write_bytes(b"bad")
    with pytest.raises(ValueError, match="not a torchaudio checkpoint"):
        HubertFeatures.from_path(tmp_path / "bad.pt", 1)
    with pytest.raises(ValueError, match="features must be mfcc or hubert"):
        build_features("wav2vec", {})


def test_broken_unit_models_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such unit model"):
        UnitExtractor.load(tmp_path)
    (tmp_path / "units.json").write_text("{}")
    with pytest.raises(ValueError, match="needs 'features' and 'options'"):
        UnitExtractor.load(tmp_path)


class _Counting:
    """Counts calls, and fails after some, as a power cut would."""

    num_units = 200

    def __init__(self, fail_after):
        self.features, self.left = MFCCFeatures(), fail_after

    def __call__(self, waveform):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return np.arange(len(waveform) // 320)


def test_quantizing_goes_on_where_it_stopped(tmp_path):
    sounds = {}
    for index, rate in enumerate((16000, 8000, 48000, 16000)):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, 0.1 * np.ones((rate, 1 + index % 2)), rate)
        sounds[f"u{index}"] = path
    out = tmp_path / "units.km200"
    with pytest.raises(KeyboardInterrupt):
        quantize(_Counting(2), sounds, out, save_every=1)
    assert not out.exists()
    rest = _Counting(9)
    quantize(rest, sounds, out)
    assert rest.left == 7
    assert {name: len(units) for name, units in read_units(out).items()} == dict.fromkeys(
        sounds, 50
    )
    assert list(read_units(out)) == list(sounds) and not list(tmp_path.glob("*.part"))
    quantize(_Counting(0), sounds, out)
    with pytest.raises(FileNotFoundError, match="no such sound file"):
        quantize(rest, {"x": tmp_path / "x.wav"}, tmp_path / "y.km200")
