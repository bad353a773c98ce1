"""Everything behind the encoder against tensors recorded from StreamSpeech."""

import torch

from echostream.audio import CMVN, Frontend
from echostream.config import (
    FrontendConfig,
    MTDecoderConfig,
    T2UEncoderConfig,
    UnitDecoderConfig,
)
from echostream.models.decoders.ctc_decoder import CTCDecoder
from echostream.models.decoders.policy_visibility import ctc_emission, streaming_visibility
from echostream.models.decoders.transformer_decoder import TransformerMTDecoder
from echostream.models.decoders.unit_decoder import (
    CTCTransformerUnitDecoder,
    T2UEncoder,
    strided_visibility,
)
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder, read_vocoder_state
from echostream.samples import read_audio
from tests.reference.recordings import clip

TOLERANCE = 1e-4
CHUNK = 8


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


def part(state, prefix, *dropped):
    return {
        key[len(prefix) :]: tensor
        for key, tensor in state.items()
        if key.startswith(prefix) and key[len(prefix) :] not in dropped
    }


def layers(state, prefix):
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


class Recorded:
    """The decoders with recorded weights."""

    def __init__(self, recording):
        self.tensors = tensors = recording.tensors
        state = recording.weights
        heads = recording.number("--decoder-attention-heads")
        ratio = recording.number("--ctc-upsample-rate")
        width = state["source_unigram_decoder.proj.weight"].size(1)
        vocab, dim = state["target_unigram_decoder.embed_tokens.weight"].shape
        mt_ffn = state["target_unigram_decoder.layers.0.fc1.weight"].size(0)
        ffn = state["decoder.layers.0.fc1.weight"].size(0)
        self.asr, self.st = CTCDecoder(width, vocab), CTCDecoder(width, vocab)
        self.asr.load_state_dict(part(state, "source_unigram_decoder."))
        self.st.load_state_dict(part(state, "ctc_target_unigram_decoder."))
        count = layers(state, "target_unigram_decoder.layers.")
        config = MTDecoderConfig(layers=count, embed_dim=dim, attention_heads=heads, ffn_dim=mt_ffn)
        self.mt = TransformerMTDecoder(config, width, vocab).eval()
        self.mt.load_state_dict(
            part(state, "target_unigram_decoder.", "version", "output_projection.weight")
        )
        count = layers(state, "synthesizer_encoder.layers.")
        config = T2UEncoderConfig(layers=count, attention_heads=heads, ffn_dim=ffn)
        self.t2u = T2UEncoder(config, dim).eval()
        self.t2u.load_state_dict(part(state, "synthesizer_encoder."))
        config = UnitDecoderConfig(
            layers=layers(state, "decoder.layers."),
            upsample_ratio=ratio,
            embed_dim=dim,
            attention_heads=heads,
            ffn_dim=ffn,
            positions="streamspeech",
        )
        units = state["decoder.output_projection.weight"].size(0)
        self.unit = CTCTransformerUnitDecoder(config, units).eval()
        self.unit.load_state_dict(part(state, "decoder.", "version", "embed_tokens.weight"))
        self.frames = tensors["encoder.chunk8.conv8.out"]
        self.padding = tensors["encoder.chunk8.conv8.padding_mask"]
        self.tokens = tensors["in.prev_tokens"]

    def visibility(self):
        length = self.frames.size(0)
        ends = [*range(CHUNK, length, CHUNK), length]
        return streaming_visibility(
            ctc_emission(self.asr(self.frames).transpose(0, 1)),
            ctc_emission(self.st(self.frames).transpose(0, 1)),
            self.tokens.size(1),
            lagging_k1=0,
            stride_n=1,
            segment_ends=ends,
        )

    def unit_logits(self, hidden, visible):
        padding = self.tokens.eq(1)
        text = self.t2u(hidden.transpose(0, 1), padding)
        return self.unit(text.transpose(0, 1), padding, visible)


@torch.no_grad()
def test_ctc_heads(recorded):
    model = Recorded(recorded)
    close(model.asr(model.frames), model.tensors["asr_ctc.logits"])
    close(model.st(model.frames), model.tensors["st_ctc.logits"])


@torch.no_grad()
def test_mt_decoder(recorded):
    model = Recorded(recorded)
    logits, hidden = model.mt(model.tokens, model.frames, model.padding)
    close(logits, model.tensors["mt.logits"])
    close(hidden, model.tensors["mt.hidden"])


@torch.no_grad()
def test_streaming_mask_and_streaming_forward(recorded):
    model = Recorded(recorded)
    visible = model.visibility()
    hidden_frames = torch.arange(model.frames.size(0)) >= visible[..., None]
    assert torch.equal(hidden_frames, model.tensors["policy.train_streaming_mask"])
    logits, hidden = model.mt(model.tokens, model.frames, model.padding, visible)
    close(logits, model.tensors["forward.streaming.mt_logits"])
    strided = strided_visibility(model.tokens.size(1), lagging_k2=0, stride_n2=2)
    close(model.unit_logits(hidden, strided), model.tensors["forward.streaming.unit_logits"])


@torch.no_grad()
def test_offline_units(recorded):
    model = Recorded(recorded)
    _, hidden = model.mt(model.tokens, model.frames, model.padding)
    close(model.unit_logits(hidden, None), model.tensors["forward.offline.unit_logits"])


@torch.no_grad()
def test_vocoder_with_and_without_durations(recorded):
    tensors, voice = recorded.tensors, recorded.config / "voc"
    vocoder = CodeHiFiGANVocoder.load(voice / "g", voice / "config.json")
    units = tensors["in.code"][0].tolist()
    waveform, durations = vocoder.generate(units)
    assert torch.equal(durations, tensors["vocoder.durations"][0])
    close(waveform, tensors["vocoder.wav"])
    close(vocoder.generate(units, dur_prediction=False)[0], tensors["vocoder.wav_no_duration"])
    # The same weights in the other two containers.
    for path in recorded.folder.glob("vocoder*.safetensors"):
        vocoder.load_generator(read_vocoder_state(path), path.name)
        close(vocoder.generate(units)[0], tensors["vocoder.wav"])


def test_features_of_the_clips(recorded):
    cmvn = CMVN.from_npz(recorded.config / "gcmvn.npz")
    frontend = Frontend(FrontendConfig(), cmvn)
    for wav, recorded_features in recorded.features.items():
        samples, rate = read_audio(clip(wav))
        features, _ = frontend.step(samples, rate, frontend.init_state(), final=True)
        assert features[0].shape == recorded_features.shape
        difference = ((features[0] - recorded_features) * cmvn.std).abs()
        # The recording rounds through SoX's integers, which shows in the digital silence at the
        # start of a clip (samples below 2e-5): frame 1 of one clip is off by up to 0.13 there.
        assert difference.max() < 0.15
        assert difference[2:].max() < 0.033
        assert difference.mean() < 2e-4
