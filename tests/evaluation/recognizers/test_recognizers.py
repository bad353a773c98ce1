"""Recognisers: the loading code of each, on small models made here."""

from __future__ import annotations

import json
import os
import pickle
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn
from torch.nn.utils import weight_norm

from echostream.evaluation.recognizers import ctc as ctc_recognizers
from echostream.evaluation.recognizers import fairseq_wav2vec2
from echostream.evaluation.recognizers.recognizer import (
    MoonshineRecognizer,
    WhisperRecognizer,
    load_recognizer,
    recognizer_name,
    resample,
    split_spec,
    strip_punctuation,
)
from echostream.evaluation.recognizers.words import RecognizedWord
from echostream.torch_files import read_checkpoint
from tests.evaluation.conftest import ROOT

CLIP = ROOT / "data" / "echo_mini" / "test_audio" / "test_00011.flac"  # Spanish, but speech
CONV_LAYERS = [(8, 10, 5), (8, 3, 2), (8, 2, 2)]
CONV_TEXT = "[(8, 10, 5)] + [(8, 3, 2)] * 1 + [(8, 2, 2)]"
WIDTH, HEADS, LAYERS, FFN = 16, 4, 2, 32


class TransposeLast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(-2, -1)


class FairseqSelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.dropout_module = nn.Dropout(0.0)
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))


class FairseqLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = FairseqSelfAttention()
        self.self_attn_layer_norm = nn.LayerNorm(WIDTH)
        self.dropout2, self.dropout3 = nn.Dropout(0.0), nn.Dropout(0.0)
        self.fc1, self.fc2 = nn.Linear(WIDTH, FFN), nn.Linear(FFN, WIDTH)
        self.final_layer_norm = nn.LayerNorm(WIDTH)


class FairseqEncoder(nn.Module):
    def __init__(self, layer_norm_first: bool) -> None:
        super().__init__()
        convolution = nn.Conv1d(WIDTH, WIDTH, 8, padding=4, groups=4)
        self.pos_conv = nn.Sequential(weight_norm(convolution, name="weight", dim=2))
        self.layers = nn.ModuleList(FairseqLayer() for _ in range(LAYERS))
        self.layer_norm = nn.LayerNorm(WIDTH)
        self.layer_norm_first, self.layerdrop = layer_norm_first, 0.0


class FairseqExtractor(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        channels, blocks = 1, []
        for number, (width, kernel, stride) in enumerate(CONV_LAYERS):
            parts = [nn.Conv1d(channels, width, kernel, stride, bias=mode == "layer_norm")]
            parts.append(nn.Dropout(0.0))
            if mode == "layer_norm":
                parts.append(nn.Sequential(TransposeLast(), nn.LayerNorm(width), TransposeLast()))
            elif number == 0:
                parts.append(nn.GroupNorm(width, width))
            blocks.append(nn.Sequential(*parts, nn.GELU()))
            channels = width
        self.conv_layers = nn.ModuleList(blocks)


class FairseqWav2Vec2(nn.Module):
    def __init__(self, mode: str, layer_norm_first: bool) -> None:
        super().__init__()
        self.mask_emb = nn.Parameter(torch.zeros(WIDTH))
        self.feature_extractor = FairseqExtractor(mode)
        self.layer_norm = nn.LayerNorm(CONV_LAYERS[-1][0])
        self.post_extract_proj = nn.Linear(CONV_LAYERS[-1][0], WIDTH)
        self.dropout_input = nn.Dropout(0.0)
        self.encoder = FairseqEncoder(layer_norm_first)


class Wav2VecEncoder(nn.Module):
    """The module tree of fairseq's class of this name, which torchaudio's importer reads."""

    def __init__(self, mode: str, layer_norm_first: bool, outputs: int) -> None:
        super().__init__()
        self.w2v_model = FairseqWav2Vec2(mode, layer_norm_first)
        self.proj = nn.Linear(WIDTH, outputs)


def random_encoder(mode: str, outputs: int = 32) -> Wav2VecEncoder:
    torch.manual_seed(7)
    encoder = Wav2VecEncoder(mode, mode == "layer_norm", outputs).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return encoder


def save_checkpoint(encoder: nn.Module, path: Path, *, mode: str, style: str) -> None:
    """As fairseq saves it: old checkpoints use ``args``, newer ones ``cfg``."""
    settings = {
        "conv_feature_layers": CONV_TEXT,
        "encoder_attention_heads": HEADS,
        "layer_norm_first": mode == "layer_norm",
        "extractor_mode": "layer_norm" if mode == "layer_norm" else "default",
    }
    normalize = mode == "layer_norm"
    state = {f"w2v_encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    if style == "args":
        inner = Namespace(**settings)
        checkpoint = {"args": Namespace(w2v_args=inner, normalize=normalize), "model": state}
    else:
        checkpoint = {
            "cfg": {
                "model": {"_name": "wav2vec_ctc", "w2v_args": {"model": settings}},
                "task": {"normalize": normalize},
            },
            "args": None,
            "model": state,
        }
    torch.save(checkpoint, path, _use_new_zipfile_serialization=style != "args")


def speech(length: int = 16000) -> np.ndarray:
    generator = np.random.default_rng(3)
    return (0.1 * generator.standard_normal(length)).astype(np.float32)


@pytest.mark.parametrize("mode", ["layer_norm", "group_norm"])
@pytest.mark.parametrize("style", ["args", "cfg"])
def test_fairseq_checkpoint_equals_torchaudios_import(
    mode: str, style: str, tmp_path: Path
) -> None:
    from torchaudio.models.wav2vec2.utils import import_fairseq_model

    encoder = random_encoder(mode)
    save_checkpoint(encoder, tmp_path / "model.pt", mode=mode, style=style)
    recognizer = load_recognizer(f"wav2vec2:{tmp_path / 'model.pt'}", device="cpu")

    reference = import_fairseq_model(encoder).eval()
    waveform = torch.from_numpy(speech())[None]
    if mode == "layer_norm":
        waveform = nn.functional.layer_norm(waveform, waveform.shape)
    with torch.inference_mode():
        expected = reference(waveform)[0][0]

    actual = recognizer.emissions(speech())
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    assert recognizer.tokens == tokens
    text = ctc_recognizers.greedy_ctc(expected, tokens, 0, "|")
    assert recognizer.transcribe(speech()) == text
    assert text and text == text.lower().strip()


def test_greedy_decoding_merges_drops_blanks_and_lowers() -> None:
    tokens = ["<s>", "|", "A", "B"]
    path = [1, 2, 2, 0, 2, 3, 3, 1, 1, 0, 1, 3, 0, 1]
    emissions = torch.nn.functional.one_hot(torch.tensor(path), len(tokens)).float()
    # Two separators around a blank stay two spaces, as in the toolkit; BLEU splits on any.
    assert ctc_recognizers.greedy_ctc(emissions, tokens, 0, "|") == "aab  b"


def test_words_of_a_greedy_path_lie_where_their_letters_are() -> None:
    tokens = ["<s>", "|", "A", "B"]
    path = [1, 2, 2, 0, 2, 3, 3, 1, 1, 0, 1, 3, 0]
    emissions = torch.nn.functional.one_hot(torch.tensor(path), len(tokens)).float()
    words = ctc_recognizers.greedy_ctc_words(emissions, tokens, 0, "|", 20.0)
    assert words == [RecognizedWord("aab", 20.0, 140.0), RecognizedWord("b", 220.0, 240.0)]
    assert ctc_recognizers.greedy_ctc_words(emissions[:1], tokens, 0, "|", 20.0) == []


def test_words_of_a_ctc_recogniser_are_its_transcript(tmp_path: Path) -> None:
    save_checkpoint(random_encoder("layer_norm"), tmp_path / "m.pt", mode="layer_norm", style="cfg")
    recognizer = load_recognizer(f"wav2vec2:{tmp_path / 'm.pt'}", device="cpu")
    words = recognizer.transcribe_words(speech())
    assert [word.text for word in words] == recognizer.transcribe(speech()).split() and words
    times = [time for word in words for time in (word.start_ms, word.end_ms)]
    assert times == sorted(times) and 0 <= times[0] and times[-1] <= 1000 * len(speech()) / 16000
    assert recognizer.transcribe_words(speech(10)) == []


def test_words_of_pocketsphinx_are_its_transcript() -> None:
    pytest.importorskip("pocketsphinx")
    clip, _ = soundfile.read(CLIP, dtype="float32")
    recognizer = load_recognizer("pocketsphinx")
    words = recognizer.transcribe_words(clip)
    assert [word.text for word in words] == recognizer.transcribe(clip).split()
    assert len(words) > 3
    times = [time for word in words for time in (word.start_ms, word.end_ms)]
    assert times == sorted(times) and 0 <= times[0] and times[-1] <= 1000 * len(clip) / 16000


def test_words_of_whisper_lose_their_punctuation() -> None:
    heard = [
        [
            Namespace(word=" Well-known:", start=0.5, end=1.0),
            Namespace(word=" it’s", start=1, end=2),
        ],
        [Namespace(word=" —", start=2.0, end=2.1), Namespace(word=" fine.", start=2.5, end=3.0)],
    ]
    recognizer = WhisperRecognizer.__new__(WhisperRecognizer)
    recognizer._language = "en"
    asked = []

    def transcribe(samples, **options):
        asked.append(options["word_timestamps"])
        return [Namespace(words=words) for words in heard], None

    recognizer._model = Namespace(transcribe=transcribe)
    assert recognizer.transcribe_words(speech()) == [
        RecognizedWord("Well", 500.0, 1000.0),
        RecognizedWord("known", 500.0, 1000.0),
        RecognizedWord("it's", 1000, 2000),
        RecognizedWord("fine", 2500.0, 3000.0),
    ]
    assert asked == [True]


def test_greedy_decoding_equals_the_toolkits_beam_of_one() -> None:
    pytest.importorskip("flashlight.lib.text")
    from torchaudio.models.decoder import ctc_decoder

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    decoder = ctc_decoder(
        lexicon=None,
        tokens=tokens,
        lm=None,
        nbest=1,
        beam_size=1,
        beam_size_token=None,
        lm_weight=0.0,
        word_score=0.0,
        unk_score=float("-inf"),
        sil_token="|",
        sil_score=0.0,
        log_add=False,
        blank_token="<s>",
    )
    generator = torch.Generator().manual_seed(5)
    for frames in (1, 2, 7, 60):
        emissions = torch.randn(1, frames, len(tokens), generator=generator)
        emissions[..., 0] += 1.0
        letters = decoder.idxs_to_tokens(decoder(emissions)[0][0].tokens)
        expected = "".join(letters).replace("|", " ").strip().lower()
        assert ctc_recognizers.greedy_ctc(emissions[0], tokens, 0, "|") == expected


def test_dictionary_beside_the_checkpoint_names_the_letters(tmp_path: Path) -> None:
    save_checkpoint(
        random_encoder("layer_norm", 8), tmp_path / "m.pt", mode="layer_norm", style="cfg"
    )
    with pytest.raises(ValueError, match="8 outputs but the dictionary has 32 symbols"):
        load_recognizer(f"wav2vec2:{tmp_path / 'm.pt'}", device="cpu")
    (tmp_path / "dict.ltr.txt").write_text("| 4\nX 3\nY 2\nZ 1\n")
    recognizer = load_recognizer(f"wav2vec2:{tmp_path / 'm.pt'}", device="cpu")
    assert recognizer.tokens[4:] == ["|", "X", "Y", "Z"]
    assert recognizer.transcribe(speech(10)) == ""


class Malicious:
    def __reduce__(self):
        return (print, ("this must never be printed",))


class Shell:
    def __reduce__(self):
        return (os.system, ("echo never",))


class Stray:
    pass


def test_a_checkpoint_that_names_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save({"model": {}, "args": Malicious()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="bad.pt: cannot be read.*print, which is not admitted"):
        load_recognizer(f"wav2vec2:{tmp_path / 'bad.pt'}", device="cpu")
    assert "never" not in capsys.readouterr().out
    torch.save({"model": {}, "args": Shell()}, tmp_path / "shell.pt")
    with pytest.raises(ValueError, match=r"shell.pt: cannot be read .*\w+\.system, which is not"):
        load_recognizer(f"wav2vec2:{tmp_path / 'shell.pt'}", device="cpu")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="text.pt"):
        load_recognizer(f"wav2vec2:{tmp_path / 'text.pt'}", device="cpu")
    torch.save({"model": {}, "args": Stray()}, tmp_path / "stray.pt")
    with pytest.raises(ValueError, match="Stray"):
        load_recognizer(f"wav2vec2:{tmp_path / 'stray.pt'}", device="cpu")
    with pytest.raises(FileNotFoundError, match="absent.pt"):
        load_recognizer(f"wav2vec2:{tmp_path / 'absent.pt'}", device="cpu")


def test_settings_classes_of_fairseq_are_read_as_inert_objects(tmp_path: Path) -> None:
    class Meter:
        pass

    Meter.__module__, Meter.__qualname__ = "fairseq.meters", "AverageMeter"
    Meter.__name__ = "AverageMeter"
    import sys
    import types

    module = types.ModuleType("fairseq.meters")
    module.AverageMeter = Meter
    packages = {"fairseq": types.ModuleType("fairseq"), "fairseq.meters": module}
    saved = {name: sys.modules.get(name) for name in packages}
    sys.modules.update(packages)
    try:
        meter = Meter()
        meter.average = 2.5
        torch.save({"model": {"w": torch.ones(2)}, "meter": meter}, tmp_path / "m.pt")
    finally:
        for name, previous in saved.items():
            if previous is None:
                del sys.modules[name]
            else:
                sys.modules[name] = previous
    loaded = read_checkpoint(tmp_path / "m.pt")
    assert loaded["meter"].state == {"average": 2.5} and type(loaded["meter"]) is not Meter
    assert loaded["model"]["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("text", ["__import__('os')", "[(1, 2)]", "[]", "[(1,2,3)] * 99999", "(("])
def test_convolution_settings_are_not_evaluated(text: str) -> None:
    with pytest.raises(ValueError, match="conv_feature_layers"):
        fairseq_wav2vec2.parse_conv_layers(text)
    assert fairseq_wav2vec2.parse_conv_layers(CONV_TEXT) == CONV_LAYERS


def test_receptive_field_of_wav2vec2() -> None:
    layers = fairseq_wav2vec2.parse_conv_layers(fairseq_wav2vec2.DEFAULT_CONV_LAYERS)
    assert ctc_recognizers.receptive_field(layers) == 400


def hf_model(folder: Path, vocabulary: list[str], *, normalize: bool) -> None:
    transformers = pytest.importorskip("transformers")
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), word_delimiter_token="|"
    )
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    torch.manual_seed(1)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=FFN,
        conv_dim=(8, 8),
        conv_kernel=(10, 4),
        conv_stride=(5, 4),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    extractor.save_pretrained(folder)


@pytest.mark.parametrize("normalize", [True, False])
def test_transformers_model(normalize: bool, tmp_path: Path) -> None:
    hf_model(tmp_path, ["<pad>", "<s>", "</s>", "<unk>", "|", "é", "a", "b"], normalize=normalize)
    from transformers import Wav2Vec2ForCTC

    recognizer = load_recognizer(f"hf:{tmp_path}", device="cpu")
    waveform = torch.from_numpy(speech(4000))[None]
    if normalize:
        waveform = nn.functional.layer_norm(waveform, waveform.shape)
    with torch.inference_mode():
        logits = Wav2Vec2ForCTC.from_pretrained(tmp_path).eval()(waveform).logits[0]
    torch.testing.assert_close(recognizer.emissions(speech(4000)), logits)
    expected = ctc_recognizers.greedy_ctc(logits, recognizer.tokens, 0, "|")
    assert recognizer.transcribe(speech(4000)) == expected
    assert recognizer.transcribe(speech(5)) == ""


def test_unknown_recognisers_are_refused() -> None:
    for spec in ("kaldi", "wav2vec2", "wav2vec2:", "pocketsphinx:x", "moonshine:x", ""):
        with pytest.raises(ValueError, match="--asr-model takes one of"):
            split_spec(spec)
    with pytest.raises(ValueError, match="English model only, got target language 'fr'"):
        load_recognizer("pocketsphinx", language="fr")
    with pytest.raises(ValueError, match="moonshine brings an English model only"):
        load_recognizer("moonshine", language="fr")
    assert recognizer_name("wav2vec2:/models/wav2vec_vox_960h_pl.pt").endswith("_960h_pl.pt")
    assert recognizer_name("whisper:base.en") == "whisper:base.en"


def test_whisper_text_is_reduced_to_letters() -> None:
    assert (
        strip_punctuation(" Well-known: “it’s” — fine, isn't it?\n")
        == "Well known it's fine isn't it"
    )


def test_pickle_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.pt").write_bytes(pickle.dumps({"model": 1}))
    with pytest.raises(ValueError, match="p.pt"):
        load_recognizer(f"wav2vec2:{tmp_path / 'p.pt'}", device="cpu")


def whisper_model(folder: Path) -> None:
    """A small random Whisper in the format faster-whisper loads, with its tokenizer."""
    pytest.importorskip("faster_whisper")
    transformers = pytest.importorskip("transformers")
    from ctranslate2.converters.transformers import WhisperLoader
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["endoftext", "startoftranscript", "en", "translate", "transcribe", "startoflm"]
    special += ["startofprev", "nocaptions", "notimestamps"]
    tokens = letters + [f"<|{name}|>" for name in special]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(2)
    config = transformers.WhisperConfig(
        vocab_size=len(tokens) + 1501,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        pad_token_id=vocabulary["<|endoftext|>"],
        bos_token_id=vocabulary["<|endoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        decoder_start_token_id=vocabulary["<|startoftranscript|>"],
        suppress_tokens=[],
        begin_suppress_tokens=[],
        init_std=0.5,
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()

    class Vocabulary:
        """What the converter asks a tokenizer for."""

        def get_vocab(self) -> dict[str, int]:
            return vocabulary

    with torch.no_grad():
        spec = WhisperLoader()(model, Vocabulary())
    spec.validate()
    spec.optimize()
    folder.mkdir()
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))


def test_whisper_model(tmp_path: Path) -> None:
    whisper_model(tmp_path / "tiny")
    from faster_whisper import WhisperModel

    recognizer = load_recognizer(f"whisper:{tmp_path / 'tiny'}", device="cpu")
    assert recognizer.name == "whisper:tiny" and recognizer.sample_rate == 16000
    model = WhisperModel(str(tmp_path / "tiny"), device="cpu", compute_type="float32")
    segments, _ = model.transcribe(
        speech(), language="en", beam_size=1, temperature=0.0, condition_on_previous_text=False
    )
    expected = strip_punctuation("".join(segment.text for segment in segments))
    assert recognizer.transcribe(speech()) == expected
    assert recognizer.transcribe(speech()) == expected  # nothing is carried over
    assert expected


def test_moonshine_hears_its_own_recording() -> None:
    moonshine = pytest.importorskip("moonshine_voice")
    samples, rate = soundfile.read(
        moonshine.get_assets_path() / "two_cities.wav", dtype="float32", always_2d=True
    )
    words = resample(samples[: 4 * rate, 0], rate, 16000)
    recognizer = load_recognizer("moonshine")
    assert recognizer.name == "moonshine" and recognizer.sample_rate == 16000
    with pytest.raises(ValueError, match="moonshine does not say when words are spoken"):
        recognizer.transcribe_words(np.zeros(16000, dtype=np.float32))
    heard = recognizer.transcribe(words)
    assert "best of times" in heard.lower()
    assert heard == strip_punctuation(heard)
    # Nothing is carried over, and a pause does not split an utterance or add words to it.
    recognizer.transcribe(samples[rate : 2 * rate, 0])
    assert recognizer.transcribe(words) == heard
    assert recognizer.transcribe(np.zeros(0, np.float32)) == ""
    assert recognizer.transcribe(words[: recognizer.min_samples - 1]) == ""
    assert isinstance(recognizer.transcribe(words[: recognizer.min_samples]), str)


def test_moonshine_without_weights_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("moonshine_voice")
    monkeypatch.setattr("moonshine_voice.utils.get_model_path", lambda name: tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"echostream\[moonshine\]"):
        MoonshineRecognizer("en")
